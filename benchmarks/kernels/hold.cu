// A kernel that takes as long as it is told to, whatever runs beside it.
//
//   holdKern   out[block] = 3 * in[block] + 1   in, out: uint32[grid]; each block holds its place for `hold_ns` nanoseconds
#include <cstdint>

__device__ uint64_t now_ns() {
    uint64_t now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

extern "C" __global__ void holdKern(uint64_t hold_ns, const uint32_t* in, uint32_t* out) {
    if (threadIdx.x == 0) {
        const uint64_t begin = now_ns();
        while (now_ns() - begin < hold_ns) {
        }
        out[blockIdx.x] = 3 * in[blockIdx.x] + 1;
    }
    __syncthreads();
}
