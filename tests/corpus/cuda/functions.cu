// Mathematical functions of the CUDA library, in float32 and float64: out[row][i] = function number `row` of in[i].
//
//   floatsKern      sin cos tan exp log pow(x, 1.7) tanh asin atan cbrt log1p expm1 erf lgamma
//   doublesKern     the same
//   fastKern        __sinf __cosf __expf __logf __powf(x, 1.5) __fdividef(1, x) __tanf rsqrtf
//   roundingKern    float32: floor ceil trunc rint fmod(x, 3) remainder(x, 3) ldexp(x, 3) frexp's mantissa, and division, product
//                   and sum with 1/3 in the four rounding modes
#include <cmath>
#include <cstdint>

template <typename T>
__device__ void evaluate(uint32_t n, uint32_t i, const T* in, T* out) {
    const T x = in[i];
    const T small = x / (1 + fabs(x));
    const T results[] = {sin(x),   cos(x),  tan(x),       exp(x / 8),        log(fabs(x)),      pow(fabs(x), T(1.7)), tanh(x),
                         asin(small), atan(x), cbrt(x), log1p(fabs(x)), expm1(small), erf(x / 8), lgamma(fabs(x) + T(0.5))};
    for (uint32_t row = 0; row < sizeof(results) / sizeof(T); ++row) out[row * n + i] = results[row];
}

extern "C" __global__ void floatsKern(uint32_t n, const float* in, float* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) evaluate(n, i, in, out);
}

extern "C" __global__ void doublesKern(uint32_t n, const double* in, double* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) evaluate(n, i, in, out);
}

extern "C" __global__ void fastKern(uint32_t n, const float* in, float* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float x = in[i];
    const float results[] = {__sinf(x), __cosf(x), __expf(x), __logf(x), __powf(x, 1.5f), __fdividef(1.0f, x), __tanf(x), rsqrtf(x)};
    for (uint32_t row = 0; row < 8; ++row) out[row * n + i] = results[row];
}

extern "C" __global__ void roundingKern(uint32_t n, const float* in, float* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float x = in[i], third = 1.0f / 3;
    int exponent;
    const float results[] = {
        floorf(x), ceilf(x), truncf(x), rintf(x), fmodf(x, 3.0f), remainderf(x, 3.0f), ldexpf(x, 3), frexpf(x, &exponent),
        __fdiv_rn(x, third), __fdiv_rz(x, third), __fdiv_ru(x, third), __fdiv_rd(x, third),
        __fmul_rn(x, third), __fmul_rz(x, third), __fmul_ru(x, third), __fmul_rd(x, third),
        __fadd_rn(x, third), __fadd_rz(x, third), __fadd_ru(x, third), __fadd_rd(x, third),
    };
    for (uint32_t row = 0; row < sizeof(results) / sizeof(float); ++row) out[row * n + i] = results[row];
}
