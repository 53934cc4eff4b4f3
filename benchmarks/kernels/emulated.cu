// What the emulated device is measured with, beside the Jacobi step of the examples.
//
//   saxpyKern        y[i] += a * x[i]                  x, y: float32[n]; one thread an element
//   matmulKern       c = a b in tiles of 16 x 16       a, b, c: float32[n][n], n a multiple of 16; grid (n / 16, n / 16), block (16, 16)
//   reduceKern       out[block] = sum of its elements  in: float32[n], out: float32[blocks]; block 256: strided, then shuffles and a barrier
//   mandelbrotKern   steps[i] = until |z| > 2          steps: uint32[height][width]; grid (width / 16, height / 16), block (16, 16)
#include <cstdint>

extern "C" __global__ void saxpyKern(uint32_t n, float a, const float* x, float* y) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}

constexpr uint32_t TILE = 16;

extern "C" __global__ void matmulKern(uint32_t n, const float* a, const float* b, float* c) {
    __shared__ float a_tile[TILE][TILE], b_tile[TILE][TILE];
    const uint32_t row = blockIdx.y * TILE + threadIdx.y, column = blockIdx.x * TILE + threadIdx.x;
    float sum = 0.0f;
    for (uint32_t start = 0; start < n; start += TILE) {
        a_tile[threadIdx.y][threadIdx.x] = a[row * n + start + threadIdx.x];
        b_tile[threadIdx.y][threadIdx.x] = b[(start + threadIdx.y) * n + column];
        __syncthreads();
        for (uint32_t i = 0; i < TILE; ++i) sum += a_tile[threadIdx.y][i] * b_tile[i][threadIdx.x];
        __syncthreads();
    }
    c[row * n + column] = sum;
}

extern "C" __global__ void reduceKern(uint32_t n, const float* in, float* out) {
    __shared__ float partial[8];
    float sum = 0.0f;
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += in[i];
    for (uint32_t offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffff, sum, offset);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (uint32_t warp = 1; warp < 8; ++warp) sum += partial[warp];
        out[blockIdx.x] = sum;
    }
}

extern "C" __global__ void mandelbrotKern(uint32_t width, uint32_t height, uint32_t limit, uint32_t* steps) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    const float x = -2.0f + 2.5f * column / width, y = -1.25f + 2.5f * row / height;
    float re = 0.0f, im = 0.0f;
    uint32_t step = 0;
    for (; step < limit && re * re + im * im <= 4.0f; ++step) {
        const float next = re * re - im * im + x;
        im = 2.0f * re * im + y;
        re = next;
    }
    steps[row * width + column] = step;
}
