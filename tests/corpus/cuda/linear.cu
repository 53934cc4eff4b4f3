// Linear algebra.
//
//   gemvKern      y = A x, float32, one warp a row, float4 loads; columns a multiple of 128
//   matmulKern    C = A B, float64, square of a multiple of 16, tiles in shared memory
//   luKern        step k of LU decomposition without pivoting, float64, one block: scales the column, updates the rest
//   spmvKern      y = A x, A in CSR with float64 values, one warp a row
//   spmvEllKern   the same in ELLPACK with float32 values, one thread a row, columns of 0xffffffff empty
//   kmeansKern    one step of k-means on float2 points: nearest centre, sums by float atomics of multiples of 1/256 (exact)
//   complexKern   z = a * b + conj(c) of complex float64 as a structure with operators
#include <cmath>
#include <cstdint>

extern "C" __global__ void gemvKern(uint32_t rows, uint32_t columns, const float4* a, const float4* x, float* y) {
    const uint32_t row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    float sum = 0;
    for (uint32_t i = lane; i < columns / 4; i += 32) {
        const float4 p = __ldg(&a[row * (columns / 4) + i]), q = __ldg(&x[i]);
        sum += p.x * q.x + p.y * q.y + p.z * q.z + p.w * q.w;
    }
    for (uint32_t mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffff, sum, mask);
    if (lane == 0) y[row] = sum;
}

extern "C" __global__ void __launch_bounds__(256) matmulKern(uint32_t n, const double* a, const double* b, double* c) {
    __shared__ double a_tile[16][16], b_tile[16][16];
    const uint32_t x = blockIdx.x * 16 + threadIdx.x, y = blockIdx.y * 16 + threadIdx.y;
    double sum = 0;
    for (uint32_t start = 0; start < n; start += 16) {
        a_tile[threadIdx.y][threadIdx.x] = a[y * n + start + threadIdx.x];
        b_tile[threadIdx.y][threadIdx.x] = b[(start + threadIdx.y) * n + x];
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < 16; ++i) sum = fma(a_tile[threadIdx.y][i], b_tile[i][threadIdx.x], sum);
        __syncthreads();
    }
    c[y * n + x] = sum;
}

extern "C" __global__ void luKern(uint32_t n, uint32_t k, double* a) {
    const double pivot = a[k * n + k];
    for (uint32_t i = k + 1 + threadIdx.x; i < n; i += blockDim.x) a[i * n + k] /= pivot;
    __syncthreads();
    const uint32_t rest = n - k - 1;
    for (uint32_t at = threadIdx.x; at < rest * rest; at += blockDim.x) {
        const uint32_t i = k + 1 + at / rest, j = k + 1 + at % rest;
        a[i * n + j] = fma(-a[i * n + k], a[k * n + j], a[i * n + j]);
    }
}

extern "C" __global__ void spmvKern(uint32_t rows, const uint32_t* starts, const uint32_t* columns, const double* values,
                                    const double* x, double* y) {
    const uint32_t row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    double sum = 0;
    for (uint32_t i = starts[row] + lane; i < starts[row + 1]; i += 32) sum = fma(values[i], x[columns[i]], sum);
    for (uint32_t offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffff, sum, offset);
    if (lane == 0) y[row] = sum;
}

extern "C" __global__ void spmvEllKern(uint32_t rows, uint32_t width, const uint32_t* columns, const float* values,
                                       const float* x, float* y) {
    const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float sum = 0;
    for (uint32_t i = 0; i < width; ++i) {
        const uint32_t column = columns[i * rows + row];
        if (column == 0xffffffff) break;
        sum = __fadd_rn(sum, __fmul_rn(values[i * rows + row], x[column]));
    }
    y[row] = sum;
}

extern "C" __global__ void kmeansKern(uint32_t n, uint32_t k, const float2* points, const float2* centres, uint32_t* nearest,
                                      float2* sums, uint32_t* counts) {
    extern __shared__ float2 shared_centres[];
    for (uint32_t i = threadIdx.x; i < k; i += blockDim.x) shared_centres[i] = centres[i];
    __syncthreads();
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float2 p = points[i];
    uint32_t best = 0;
    float smallest = INFINITY;
    for (uint32_t j = 0; j < k; ++j) {
        const float dx = p.x - shared_centres[j].x, dy = p.y - shared_centres[j].y;
        const float distance = fmaf(dx, dx, __fmul_rn(dy, dy));
        if (distance < smallest) smallest = distance, best = j;
    }
    nearest[i] = best;
    atomicAdd(&sums[best].x, p.x);
    atomicAdd(&sums[best].y, p.y);
    atomicAdd(&counts[best], 1);
}

struct Complex {
    double re, im;
    __device__ Complex operator+(Complex o) const { return {re + o.re, im + o.im}; }
    __device__ Complex operator*(Complex o) const { return {re * o.re - im * o.im, re * o.im + im * o.re}; }
    __device__ Complex conj() const { return {re, -im}; }
};

extern "C" __global__ void complexKern(uint32_t n, const Complex* a, const Complex* b, const Complex* c, Complex* z) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) z[i] = a[i] * b[i] + c[i].conj();
}
