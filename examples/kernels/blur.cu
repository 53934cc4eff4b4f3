// Gaussian blur of an 8-bit image with the 5 x 5 binomial stencil (1 4 6 4 1)^T (1 4 6 4 1) / 256, rounded to nearest.
// Integer arithmetic throughout, so the result is exact. At the border the edge pixel is repeated.
//
//   blurKern   in, out: uint8[height][width][channels] (grey: 1 channel, RGB: 3); they must not be the same buffer
//
// One thread a sample: grid (ceil(width / blockDim.x), ceil(height / blockDim.y), channels), for example block (16, 16).
// The blur of one launch has a standard deviation of one pixel; repeat it, alternating two buffers, for more.
#include <cstdint>

extern "C" __global__ void blurKern(uint32_t width, uint32_t height, uint32_t channels, const uint8_t* in, uint8_t* out) {
    constexpr uint32_t WEIGHTS[5] = {1, 4, 6, 4, 1};
    const int32_t x = blockIdx.x * blockDim.x + threadIdx.x;
    const int32_t y = blockIdx.y * blockDim.y + threadIdx.y;
    const uint32_t channel = blockIdx.z;
    if (x >= int32_t(width) || y >= int32_t(height) || channel >= channels) return;

    uint32_t sum = 128;  // half of the divisor: rounds to nearest
#pragma unroll
    for (int32_t dy = -2; dy <= 2; ++dy) {
        const int32_t row = min(max(y + dy, 0), int32_t(height) - 1);
#pragma unroll
        for (int32_t dx = -2; dx <= 2; ++dx) {
            const int32_t column = min(max(x + dx, 0), int32_t(width) - 1);
            sum += WEIGHTS[dy + 2] * WEIGHTS[dx + 2] * in[(uint64_t(row) * width + column) * channels + channel];
        }
    }
    out[(uint64_t(y) * width + x) * channels + channel] = uint8_t(sum / 256);
}
