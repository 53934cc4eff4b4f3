// One step of Jacobi's method for A x = b:  x_new = x + (b - A x) / diag(A).
//
//   jacobiKern   a: float32[n][n], row-major, with a non-zero diagonal; b, x, x_new: float64[n]; residual: float64[2]
//
// One warp a row: block of a multiple of 32 (w warps), grid ceil(n / w), dynamic shared memory 8 * n bytes (it holds x).
//
// A step reads x and writes x_new, so a solver alternates: launch (phase 0, x -> y), launch (phase 1, y -> x), and repeats the
// pair; 3000 steps are 1500 iterations. Every step adds sum |b - A x| of the x that it was given to residual[phase], and clears
// the other slot for the next step. After a pair, residual[1] is therefore that of the last y and residual[0] is zero. With x
// starting at zeros, the residual at the start is sum |b|.
#include <cstdint>

extern "C" __global__ void jacobiKern(uint32_t n, uint32_t phase, const float* a, const double* b, const double* x,
                                      double* x_new, double* residual) {
    extern __shared__ double x_shared[];
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) x_shared[i] = x[i];
    __syncthreads();

    if (blockIdx.x == 0 && threadIdx.x == 0) residual[phase ^ 1] = 0.0;

    const uint32_t lane = threadIdx.x % 32;
    const uint32_t row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= n) return;

    const float* a_row = a + uint64_t(row) * n;
    double product = 0.0;
    for (uint32_t column = lane; column < n; column += 32) product += double(a_row[column]) * x_shared[column];
    for (uint32_t distance = 16; distance > 0; distance /= 2) product += __shfl_down_sync(0xffffffff, product, distance);

    if (lane == 0) {
        const double error = b[row] - product;
        x_new[row] = x_shared[row] + error / double(a_row[row]);
        atomicAdd(&residual[phase], fabs(error));
    }
}
