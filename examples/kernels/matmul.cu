// Matrix product C = A B in tiles of 16 x 16, staged in static shared memory.
//
//   matmulKern   a: float32[m][k], b: float32[k][n], c: float32[m][n], all row-major, of any size
//
// Grid (ceil(n / 16), ceil(m / 16)), block (16, 16).
#include <cstdint>

constexpr uint32_t TILE = 16;

extern "C" __global__ void matmulKern(uint32_t m, uint32_t n, uint32_t k, const float* a, const float* b, float* c) {
    __shared__ float a_tile[TILE][TILE];
    __shared__ float b_tile[TILE][TILE];
    const uint32_t row = blockIdx.y * TILE + threadIdx.y;
    const uint32_t column = blockIdx.x * TILE + threadIdx.x;

    float sum = 0.0f;
    for (uint32_t start = 0; start < k; start += TILE) {
        const uint32_t a_column = start + threadIdx.x;
        const uint32_t b_row = start + threadIdx.y;
        a_tile[threadIdx.y][threadIdx.x] = row < m && a_column < k ? a[uint64_t(row) * k + a_column] : 0.0f;
        b_tile[threadIdx.y][threadIdx.x] = b_row < k && column < n ? b[uint64_t(b_row) * n + column] : 0.0f;
        __syncthreads();
        for (uint32_t i = 0; i < TILE; ++i) sum += a_tile[threadIdx.y][i] * b_tile[i][threadIdx.x];
        __syncthreads();
    }
    if (row < m && column < n) c[uint64_t(row) * n + column] = sum;
}
