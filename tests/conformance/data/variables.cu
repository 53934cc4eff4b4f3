// Kernels that use module variables of every kind; buffers in their order.
//
//   countKern   out: uint32[2]: the counter and how often a kernel of this module counted, each one more than before; one thread
//   throughKern out: uint32[1]: the counter, counted up through a pointer that is itself a variable; one thread
//   leaveKern   n, fault, in: uint32[n]: keeps up to 1024 of them, and traps then where fault is not 0
//   peekKern    n, out: uint32[n]: what is kept
//   scaleKern   n, x: float[n] in and out: each by one of three constant factors
//   totalKern   n, hang, x: uint32[n], partial: uint32[blocks], total: uint32[1]: the last block to come adds up what all have;
//               where hang is not 0 the last block of the grid never comes
//   sayKern     number: prints it
#include <cstdint>
#include <cstdio>

__device__ uint32_t counter = 40;
static __device__ uint32_t* place = &counter;
__device__ uint32_t kept[1024];
__constant__ float factors[3] = {0.5f, -2.0f, 3.0f};
static __device__ uint32_t arrived;

static __device__ uint32_t times() {
    static uint32_t calls = 0;
    return ++calls;
}

extern "C" __global__ void countKern(uint32_t* out) {
    out[0] = ++counter;
    out[1] = times();
}

extern "C" __global__ void throughKern(uint32_t* out) {
    *out = ++*place;
}

extern "C" __global__ void leaveKern(uint32_t n, uint32_t fault, const uint32_t* in) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) kept[i] = in[i];
    __threadfence();
    if (fault) __trap();
}

extern "C" __global__ void peekKern(uint32_t n, uint32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = kept[i];
}

extern "C" __global__ void scaleKern(uint32_t n, float* x) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= factors[i % 3];
}

extern "C" __global__ void totalKern(uint32_t n, uint32_t hang, const uint32_t* x, volatile uint32_t* partial, uint32_t* total) {
    if (threadIdx.x != 0) return;
    uint32_t sum = 0;
    for (uint32_t i = blockIdx.x; i < n; i += gridDim.x) sum += x[i];
    partial[blockIdx.x] = sum;
    __threadfence();
    while (hang != 0 && blockIdx.x == gridDim.x - 1 && partial[blockIdx.x] == sum) continue;
    if (atomicAdd(&arrived, 1) != gridDim.x - 1) return;
    sum = 0;
    for (uint32_t block = 0; block < gridDim.x; ++block) sum += partial[block];
    *total = sum;
    arrived = 0;
}

extern "C" __global__ void sayKern(uint32_t number) {
    printf("it is %u\n", number);
}
