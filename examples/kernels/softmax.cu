// Softmax of every row of a matrix, stable for large values: out = exp(in - max) / sum exp(in - max).
//
//   softmaxKern   in, out: float32[rows][columns], row-major; they may be the same buffer
//
// One block a row: grid rows, block of a multiple of 32, at most 1024.
#include <cmath>
#include <cstdint>

struct Max {
    static __device__ float identity() { return -INFINITY; }
    static __device__ float combine(float a, float b) { return fmaxf(a, b); }
};

struct Sum {
    static __device__ float identity() { return 0.0f; }
    static __device__ float combine(float a, float b) { return a + b; }
};

// Reduce within each warp by shuffles, then across the warps through shared memory. Every thread gets the result.
template <typename Operation>
__device__ float reduce_block(float value) {
    __shared__ float of_warp[32];
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t warp = threadIdx.x / 32;

    for (uint32_t mask = 16; mask > 0; mask /= 2) value = Operation::combine(value, __shfl_xor_sync(0xffffffff, value, mask));
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();
    value = lane < blockDim.x / 32 ? of_warp[lane] : Operation::identity();
    for (uint32_t mask = 16; mask > 0; mask /= 2) value = Operation::combine(value, __shfl_xor_sync(0xffffffff, value, mask));
    return value;
}

extern "C" __global__ void softmaxKern(uint32_t columns, const float* in, float* out) {
    const float* in_row = in + uint64_t(blockIdx.x) * columns;
    float* out_row = out + uint64_t(blockIdx.x) * columns;

    float largest = -INFINITY;
    for (uint32_t i = threadIdx.x; i < columns; i += blockDim.x) largest = fmaxf(largest, in_row[i]);
    largest = reduce_block<Max>(largest);

    float sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < columns; i += blockDim.x) sum += expf(in_row[i] - largest);
    sum = reduce_block<Sum>(sum);

    for (uint32_t i = threadIdx.x; i < columns; i += blockDim.x) out_row[i] = expf(in_row[i] - largest) / sum;
}
