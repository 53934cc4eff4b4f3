// Blocks and threads that wait for each other.
//
//   spinLockKern   every thread adds to counters under a lock: a plain read and write, not an atomic; lock: uint32[1]
//   ticketLockKern the same with tickets, so that they come in order; order: uint32[threads], who came n-th; served: uint32[2]
//   producerKern   block 0 fills rooms of a ring buffer that block 1 empties; ring: uint32[8], ready: uint32[8], zeros at first
#include <cstdint>

extern "C" __global__ void spinLockKern(uint32_t* lock, volatile uint64_t* counters) {
    for (bool done = false; !done;) {
        if (atomicCAS(lock, 0, 1) == 0) {
            __threadfence();
            counters[0] = counters[0] + 1;
            counters[1] = counters[1] + blockIdx.x * blockDim.x + threadIdx.x;
            __threadfence();
            atomicExch(lock, 0);
            done = true;
        }
    }
}

extern "C" __global__ void ticketLockKern(volatile uint32_t* served, uint32_t* next, volatile uint32_t* order) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t ticket = atomicAdd(next, 1);
    for (bool done = false; !done;) {
        if (served[0] == ticket) {
            __threadfence();
            order[served[1]] = i;
            served[1] = served[1] + 1;
            __threadfence();
            served[0] = ticket + 1;
            done = true;
        }
    }
}

extern "C" __global__ void producerKern(uint32_t count, volatile uint32_t* ring, volatile uint32_t* ready, uint32_t* out) {
    constexpr uint32_t ROOMS = 8;
    if (threadIdx.x != 0) return;
    for (uint32_t i = 0; i < count; ++i) {
        const uint32_t room = i % ROOMS;
        if (blockIdx.x == 0) {
            while (ready[room] != 0) {}
            ring[room] = i * i + 1;
            __threadfence();
            ready[room] = 1;
        } else {
            while (ready[room] == 0) {}
            __threadfence();
            out[i] = ring[room];
            __threadfence();
            ready[room] = 0;
        }
    }
}
