// Histogram of bytes: counted in shared memory by each block, then added to the global bins.
//
//   histogramKern   data: uint8[n]; bins: uint32[256], added to, so zeros to begin with
//
// Any grid and block: the threads stride over the data.
#include <cstdint>

constexpr uint32_t BINS = 256;

extern "C" __global__ void histogramKern(uint64_t n, const uint8_t* data, uint32_t* bins) {
    __shared__ uint32_t block_bins[BINS];
    for (uint32_t bin = threadIdx.x; bin < BINS; bin += blockDim.x) block_bins[bin] = 0;
    __syncthreads();

    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) atomicAdd(&block_bins[data[i]], 1u);
    __syncthreads();

    for (uint32_t bin = threadIdx.x; bin < BINS; bin += blockDim.x) atomicAdd(&bins[bin], block_bins[bin]);
}
