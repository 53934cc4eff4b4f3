// Images.
//
//   convolveKern  5 x 5 convolution of float32 by weights of a constant table that has an initialiser, zero outside
//   sobelKern     gradient magnitude of uint8, the integer square root rounded down, edges clamped
//   resizeKern    bilinear resize of RGBA uchar4
//   medianKern    3 x 3 median of uint8 by a sorting network of SIMD-in-a-word instructions, four pixels a thread
//   integralKern  summed-area table of one block's rows: uint8 to uint32; grid 1, block of height threads
//
// Sizes in elements; one thread a pixel unless said.
#include <cstdint>

__constant__ float weights[5][5] = {
    {0.0039f, 0.0156f, 0.0234f, 0.0156f, 0.0039f}, {0.0156f, 0.0625f, 0.0938f, 0.0625f, 0.0156f},
    {0.0234f, 0.0938f, 0.1406f, 0.0938f, 0.0234f}, {0.0156f, 0.0625f, 0.0938f, 0.0625f, 0.0156f},
    {-0.0039f, 0.0156f, 0.0234f, 0.0156f, 0.0039f},
};

extern "C" __global__ void convolveKern(int width, int height, const float* in, float* out) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    float sum = 0;
    for (int j = -2; j <= 2; ++j) {
        for (int i = -2; i <= 2; ++i) {
            if (x + i >= 0 && x + i < width && y + j >= 0 && y + j < height) {
                sum = fmaf(weights[j + 2][i + 2], in[(y + j) * width + x + i], sum);
            }
        }
    }
    out[y * width + x] = sum;
}

__device__ int at(int width, int height, const uint8_t* in, int x, int y) {
    return in[min(max(y, 0), height - 1) * width + min(max(x, 0), width - 1)];
}

extern "C" __global__ void sobelKern(int width, int height, const uint8_t* in, uint16_t* out) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    int across = 0, down = 0;
    for (int i = -1; i <= 1; ++i) {
        const int weight = i == 0 ? 2 : 1;
        across += weight * (at(width, height, in, x + 1, y + i) - at(width, height, in, x - 1, y + i));
        down += weight * (at(width, height, in, x + i, y + 1) - at(width, height, in, x + i, y - 1));
    }
    out[y * width + x] = uint16_t(__fsqrt_rd(float(across * across + down * down)));
}

extern "C" __global__ void resizeKern(int in_width, int in_height, int width, int height, const uchar4* in, uchar4* out) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    const float u = fminf(fmaxf(__fdiv_rn((x + 0.5f) * in_width, float(width)) - 0.5f, 0.0f), in_width - 1.0f);
    const float v = fminf(fmaxf(__fdiv_rn((y + 0.5f) * in_height, float(height)) - 0.5f, 0.0f), in_height - 1.0f);
    const int left = int(u), top = int(v), right = min(left + 1, in_width - 1), bottom = min(top + 1, in_height - 1);
    const float a = u - left, b = v - top;
    const uchar4 p = in[top * in_width + left], q = in[top * in_width + right];
    const uchar4 r = in[bottom * in_width + left], s = in[bottom * in_width + right];
    auto blend = [&](uint8_t p, uint8_t q, uint8_t r, uint8_t s) {
        const float upper = fmaf(a, float(q) - float(p), float(p)), lower = fmaf(a, float(s) - float(r), float(r));
        return uint8_t(__float2uint_rn(fmaf(b, lower - upper, upper)));
    };
    out[y * width + x] = make_uchar4(blend(p.x, q.x, r.x, s.x), blend(p.y, q.y, r.y, s.y), blend(p.z, q.z, r.z, s.z),
                                     blend(p.w, q.w, r.w, s.w));
}

__device__ void order(uint32_t& a, uint32_t& b) {
    const uint32_t smaller = __vminu4(a, b);
    b = __vmaxu4(a, b);
    a = smaller;
}

extern "C" __global__ void medianKern(uint32_t words, uint32_t height, const uint32_t* in, uint32_t* out) {
    const uint32_t x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
    if (x >= words) return;
    uint32_t v[9];
    for (int j = 0; j < 3; ++j) {
        const uint32_t row = min(max(int(y) + j - 1, 0), int(height) - 1) * words;
        const uint32_t here = in[row + x];
        const uint32_t before = x > 0 ? in[row + x - 1] : here << 24, after = x + 1 < words ? in[row + x + 1] : here >> 24;
        v[3 * j] = __byte_perm(before, here, 0x6543);
        v[3 * j + 1] = here;
        v[3 * j + 2] = __byte_perm(here, after, 0x4321);
    }
    constexpr uint8_t NETWORK[19][2] = {{1, 2}, {4, 5}, {7, 8}, {0, 1}, {3, 4}, {6, 7}, {1, 2}, {4, 5}, {7, 8}, {0, 3},
                                        {5, 8}, {4, 7}, {3, 6}, {1, 4}, {2, 5}, {4, 7}, {4, 2}, {6, 4}, {4, 2}};
#pragma unroll
    for (int i = 0; i < 19; ++i) order(v[NETWORK[i][0]], v[NETWORK[i][1]]);
    out[y * words + x] = v[4];
}

extern "C" __global__ void integralKern(uint32_t width, const uint8_t* in, uint32_t* out) {
    const uint32_t height = blockDim.x, y = threadIdx.x;
    uint32_t sum = 0;
    for (uint32_t x = 0; x < width; ++x) out[y * width + x] = sum += in[y * width + x];
    __syncthreads();
    for (uint32_t x = threadIdx.x; x < width; x += blockDim.x) {
        for (uint32_t j = 1; j < height; ++j) out[j * width + x] += out[(j - 1) * width + x];
    }
}
