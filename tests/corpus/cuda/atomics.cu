// Every atomic operation of CUDA C++, in global and in shared memory, with and without use of the old value.
//
//   integersKern  u: uint32[12], s: int32[4], l: uint64[8]; each thread applies its values to all of them
//   floatsKern    f: float32[2], d: float64[2]; values chosen so that sums are exact in any order
//   sharedKern    as integersKern in shared memory, then stored
//   ticketsKern   old: uint32[threads]: the values that atomicAdd, atomicInc and atomicDec returned, each of a grid once
//   customKern    out: float32[1]: a maximum of floats, and uint64[1] a product modulo 2^61 - 1, both by loops around atomicCAS
#include <cstdint>

typedef unsigned long long word64;

__device__ void apply(uint32_t* u, int32_t* s, word64* l, uint32_t value, word64 wide) {
    atomicAdd(&u[0], value);
    atomicSub(&u[1], value);
    atomicMin(&u[2], value);
    atomicMax(&u[3], value);
    atomicAnd(&u[4], value | 0xfff0);
    atomicOr(&u[5], value);
    atomicXor(&u[6], value);
    atomicInc(&u[7], 1000);
    atomicDec(&u[8], 1000);
    atomicCAS(&u[9], 0, 12345);
    atomicExch(&u[10], 99);
    atomicAdd_block(&u[11], 1);
    atomicAdd(&s[0], int32_t(value));
    atomicMin(&s[1], int32_t(value));
    atomicMax(&s[2], int32_t(value));
    atomicSub(&s[3], int32_t(value));
    atomicAdd(&l[0], wide);
    atomicMin(&l[1], wide);
    atomicMax(&l[2], wide);
    atomicMin((long long*)&l[3], (long long)wide);
    atomicMax((long long*)&l[4], (long long)wide);
    atomicAnd(&l[5], wide | 0xffff);
    atomicOr(&l[6], wide & 0x0101010101010101);
    atomicXor(&l[7], wide);
}

extern "C" __global__ void integersKern(const uint32_t* values, const word64* wides, uint32_t* u, int32_t* s, word64* l) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    apply(u, s, l, values[i], wides[i]);
}

extern "C" __global__ void sharedKern(const uint32_t* values, const word64* wides, uint32_t* u, int32_t* s, word64* l) {
    __shared__ uint32_t shared_u[12];
    __shared__ int32_t shared_s[4];
    __shared__ word64 shared_l[8];
    const uint32_t i = threadIdx.x;
    if (i < 12) shared_u[i] = u[i];
    if (i < 4) shared_s[i] = s[i];
    if (i < 8) shared_l[i] = l[i];
    __syncthreads();
    apply(shared_u, shared_s, shared_l, values[i], wides[i]);
    __syncthreads();
    if (i < 12) u[i] = shared_u[i];
    if (i < 4) s[i] = shared_s[i];
    if (i < 8) l[i] = shared_l[i];
}

extern "C" __global__ void floatsKern(const float* values, float* f, double* d) {
    __shared__ float sum;
    __shared__ double wide_sum;
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (threadIdx.x == 0) sum = 0, wide_sum = 0;
    __syncthreads();
    atomicAdd(&f[0], values[i]);
    atomicAdd(&d[0], double(values[i]) / 1024);
    atomicAdd(&sum, values[i]);
    atomicAdd(&wide_sum, double(values[i]) * 3);
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd_system(&f[1], sum);
        atomicAdd(&d[1], wide_sum);
    }
}

extern "C" __global__ void ticketsKern(uint32_t* counters, uint32_t* old) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, count = gridDim.x * blockDim.x;
    old[i] = atomicAdd(&counters[0], 1);
    old[count + i] = atomicInc(&counters[1], count - 1);
    old[2 * count + i] = atomicDec(&counters[2], count - 1);
    old[3 * count + i] = atomicExch(&counters[3], i + 1);
}

extern "C" __global__ void customKern(const float* values, const word64* factors, float* largest, word64* product) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t* bits = (uint32_t*)largest;
    uint32_t seen = *bits;
    while (__uint_as_float(seen) < values[i]) {
        const uint32_t before = atomicCAS(bits, seen, __float_as_uint(values[i]));
        if (before == seen) break;
        seen = before;
    }
    word64 old = *product, assumed;
    do {
        assumed = old;
        const unsigned __int128 wide = (unsigned __int128)assumed * factors[i];
        old = atomicCAS(product, assumed, word64(wide % ((1ull << 61) - 1)));
    } while (old != assumed);
}
