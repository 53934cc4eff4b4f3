// Products of matrices on tensor cores through nvcuda::wmma: C[m][n] = A[m][k] B[k][n] + C, one warp a tile.
//
//   halfKern, halfColumnKern  f16 with float32 sums, B by rows and by columns, 16 x 16 x 16
//   wideKern, tallKern        the shapes 32 x 8 x 16 and 8 x 32 x 16
//   bfloatKern                bf16
//   tf32Kern                  tf32, 16 x 16 x 8, converted on the fly
//   int8Kern                  s8 with int32 sums
//   uint8Kern                 u8 with int32 sums
//   doubleKern                f64, 8 x 8 x 4
//   scaledKern                f16 sums, scaled element by element in the fragment: C = 2 A B - C
#include <cstdint>
#include <cuda_bf16.h>
#include <mma.h>

using namespace nvcuda;

template <int M, int N, int K, typename In, typename Sum, typename Layout, typename Kind = In>
__device__ void multiply(uint32_t n, uint32_t k, const In* a, const In* b, Sum* c) {
    const uint32_t row = blockIdx.y * M, column = blockIdx.x * N;
    wmma::fragment<wmma::matrix_a, M, N, K, Kind, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, M, N, K, Kind, Layout> fb;
    wmma::fragment<wmma::accumulator, M, N, K, Sum> sums;
    wmma::load_matrix_sync(sums, c + row * n + column, n, wmma::mem_row_major);
    constexpr bool BY_ROWS = std::is_same<Layout, wmma::row_major>::value;
    for (uint32_t start = 0; start < k; start += K) {
        wmma::load_matrix_sync(fa, a + row * k + start, k);
        wmma::load_matrix_sync(fb, BY_ROWS ? b + start * n + column : b + column * k + start, BY_ROWS ? n : k);
        if constexpr (std::is_same<Kind, wmma::precision::tf32>::value) {
            for (int i = 0; i < fa.num_elements; ++i) fa.x[i] = wmma::__float_to_tf32(fa.x[i]);
            for (int i = 0; i < fb.num_elements; ++i) fb.x[i] = wmma::__float_to_tf32(fb.x[i]);
        }
        wmma::mma_sync(sums, fa, fb, sums);
    }
    wmma::store_matrix_sync(c + row * n + column, sums, n, wmma::mem_row_major);
}

extern "C" __global__ void halfKern(uint32_t n, uint32_t k, const __half* a, const __half* b, float* c) {
    multiply<16, 16, 16, __half, float, wmma::row_major>(n, k, a, b, c);
}

extern "C" __global__ void halfColumnKern(uint32_t n, uint32_t k, const __half* a, const __half* b, float* c) {
    multiply<16, 16, 16, __half, float, wmma::col_major>(n, k, a, b, c);
}

extern "C" __global__ void wideKern(uint32_t n, uint32_t k, const __half* a, const __half* b, float* c) {
    multiply<8, 32, 16, __half, float, wmma::row_major>(n, k, a, b, c);
}

extern "C" __global__ void tallKern(uint32_t n, uint32_t k, const __half* a, const __half* b, float* c) {
    multiply<32, 8, 16, __half, float, wmma::col_major>(n, k, a, b, c);
}

extern "C" __global__ void bfloatKern(uint32_t n, uint32_t k, const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
    multiply<16, 16, 16, __nv_bfloat16, float, wmma::row_major>(n, k, a, b, c);
}

extern "C" __global__ void tf32Kern(uint32_t n, uint32_t k, const float* a, const float* b, float* c) {
    multiply<16, 16, 8, float, float, wmma::row_major, wmma::precision::tf32>(n, k, a, b, c);
}

extern "C" __global__ void int8Kern(uint32_t n, uint32_t k, const signed char* a, const signed char* b, int* c) {
    multiply<16, 16, 16, signed char, int, wmma::row_major>(n, k, a, b, c);
}

extern "C" __global__ void uint8Kern(uint32_t n, uint32_t k, const unsigned char* a, const unsigned char* b, int* c) {
    multiply<16, 16, 16, unsigned char, int, wmma::col_major>(n, k, a, b, c);
}

extern "C" __global__ void doubleKern(uint32_t n, uint32_t k, const double* a, const double* b, double* c) {
    multiply<8, 8, 4, double, double, wmma::row_major>(n, k, a, b, c);
}

extern "C" __global__ void scaledKern(uint32_t n, uint32_t k, const __half* a, const __half* b, __half* c) {
    const uint32_t row = blockIdx.y * 16, column = blockIdx.x * 16;
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::row_major> fb;
    wmma::fragment<wmma::accumulator, 16, 16, 16, __half> sums, before;
    wmma::fill_fragment(sums, 0.0f);
    for (uint32_t start = 0; start < k; start += 16) {
        wmma::load_matrix_sync(fa, a + row * k + start, k);
        wmma::load_matrix_sync(fb, b + start * n + column, n);
        wmma::mma_sync(sums, fa, fb, sums);
    }
    wmma::load_matrix_sync(before, c + row * n + column, n, wmma::mem_row_major);
    for (int i = 0; i < sums.num_elements; ++i) sums.x[i] = __hsub(__hmul(__half(2), sums.x[i]), before.x[i]);
    wmma::store_matrix_sync(c + row * n + column, sums, n, wmma::mem_row_major);
}
