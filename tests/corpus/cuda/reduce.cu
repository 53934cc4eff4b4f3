// Reductions: shuffles within a warp, shared memory across warps, one result a block or one for all.
//
//   sumKern      out: uint32[1], added to
//   sumTreeKern  partial: float64[grid], each the sum of 2 * block elements, paired in a fixed order
//   argmaxKern   best: uint64[1], zeros to begin with: the largest value's ordered bits above the complement of its index
//   normKern     out: float32[1]: Euclidean norm, by the last block to finish; done: uint32[1], zeros to begin with
//
// Blocks of a multiple of 32.
#include <cstdint>

template <typename T, typename Operation>
__device__ T reduce_block(T value, T identity, Operation operation) {
    __shared__ T of_warp[32];
    for (uint32_t offset = 16; offset > 0; offset /= 2) value = operation(value, __shfl_down_sync(0xffffffff, value, offset));
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x >= 32) return identity;
    value = threadIdx.x < blockDim.x / 32 ? of_warp[threadIdx.x] : identity;
    for (uint32_t offset = 16; offset > 0; offset /= 2) value = operation(value, __shfl_down_sync(0xffffffff, value, offset));
    return value;
}

struct Plus {
    template <typename T>
    __device__ T operator()(T a, T b) const { return a + b; }
};

struct Largest {
    template <typename T>
    __device__ T operator()(T a, T b) const { return a > b ? a : b; }
};

extern "C" __global__ void sumKern(uint32_t n, const uint32_t* in, uint32_t* out) {
    uint32_t sum = 0;
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += in[i];
    sum = reduce_block(sum, 0u, Plus());
    if (threadIdx.x == 0) atomicAdd(out, sum);
}

extern "C" __global__ void sumTreeKern(const double* in, double* partial) {
    const double* own = in + 2 * blockIdx.x * blockDim.x;
    const double sum = reduce_block(own[threadIdx.x] + own[threadIdx.x + blockDim.x], 0.0, Plus());
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

extern "C" __global__ void argmaxKern(uint32_t n, const float* in, unsigned long long* best) {
    unsigned long long largest = 0;
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const uint32_t bits = __float_as_uint(in[i]);
        const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
        largest = Largest()(largest, (unsigned long long)ordered << 32 | ~i);
    }
    largest = reduce_block(largest, 0ull, Largest());
    if (threadIdx.x == 0) atomicMax(best, largest);
}

extern "C" __global__ void normKern(uint32_t n, const float* in, volatile float* partial, uint32_t* done, float* out) {
    __shared__ bool last;
    float sum = 0;
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum = fmaf(in[i], in[i], sum);
    sum = reduce_block(sum, 0.0f, Plus());
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        __threadfence();
        last = atomicInc(done, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x != 0) return;
    float total = 0;
    for (uint32_t block = 0; block < gridDim.x; ++block) total += partial[block];
    *out = sqrtf(total);
}
