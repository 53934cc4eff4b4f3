// What sum.c launches.
#include <cstdint>

// out[blockIdx.x] = sum of the 2 * blockDim.x elements of `in` from there on. blockDim.x is a power of two; dynamic shared memory
// has one element for each thread.
extern "C" __global__ void partialSumKern(const uint32_t *in, uint32_t *out, uint64_t n) {
    extern __shared__ uint32_t sums[];
    const uint64_t first = 2ull * blockDim.x * blockIdx.x + threadIdx.x, second = first + blockDim.x;
    sums[threadIdx.x] = (first < n ? in[first] : 0) + (second < n ? in[second] : 0);
    for (uint32_t half = blockDim.x / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
}
