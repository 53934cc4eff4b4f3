// Half precision.
//
//   axpyKern       y = a x + y in half2, fused
//   arithmeticKern out: half[12][n]: sum, difference, product, quotient, fma, min, max, abs, neg, floor, rint, relu of fma
//   compareKern    out: uint16[7][n]: == < <= > != of halves, isnan, and equality of pairs as a mask
//   convertKern    float32 to half in four roundings, half to int32, uint16 and float32, int32 to half: out: uint32[8][n]
//   dotKern        dot products of rows of 64 halves, summed in half2 then in float32
//   functionsKern  sqrt, rsqrt, exp2, log2, sin, cos, rcp of halves
#include <cstdint>
#include <cuda_fp16.h>

extern "C" __global__ void axpyKern(uint32_t pairs, __half2 a, const __half2* x, __half2* y) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < pairs) y[i] = __hfma2(a, x[i], y[i]);
}

extern "C" __global__ void arithmeticKern(uint32_t n, const __half* a, const __half* b, __half* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const __half x = a[i], y = b[i], half = __float2half(0.5f);
    const __half results[12] = {__hadd(x, y), __hsub(x, y), __hmul(x, y), __hdiv(x, y), __hfma(x, y, half), __hmin(x, y),
                                __hmax(x, y), __habs(x), __hneg(x), hfloor(x), hrint(x), __hmax(__hfma(x, y, half), __half(0.0f))};
    for (uint32_t row = 0; row < 12; ++row) out[row * n + i] = results[row];
}

extern "C" __global__ void compareKern(uint32_t n, const __half* a, const __half* b, uint16_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const __half x = a[i], y = b[i];
    const uint32_t mask = __heq2_mask(__halves2half2(x, y), __halves2half2(y, y));
    const uint16_t results[7] = {__heq(x, y), __hlt(x, y), __hle(x, y), __hgt(x, y), __hneu(x, y), __hisnan(x), uint16_t(mask ^ mask >> 8)};
    for (uint32_t row = 0; row < 7; ++row) out[row * n + i] = results[row];
}

extern "C" __global__ void convertKern(uint32_t n, const float* in, uint32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float x = in[i];
    const __half h = __float2half_rn(x);
    const uint32_t results[8] = {
        __half_as_ushort(h),
        __half_as_ushort(__float2half_rz(x)),
        __half_as_ushort(__float2half_ru(x)),
        __half_as_ushort(__float2half_rd(x)),
        uint32_t(__half2int_rn(h)),
        __half2ushort_rz(h),
        __float_as_uint(__half2float(h)),
        __half_as_ushort(__int2half_rn(int32_t(x))),
    };
    for (uint32_t row = 0; row < 8; ++row) out[row * n + i] = results[row];
}

extern "C" __global__ void dotKern(uint32_t rows, const __half2* a, const __half2* b, float* out) {
    const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float sum = 0;
    for (uint32_t start = 0; start < 32; start += 4) {
        __half2 part = __float2half2_rn(0.0f);
        for (uint32_t i = start; i < start + 4; ++i) part = __hfma2(a[row * 32 + i], b[row * 32 + i], part);
        sum += __low2float(part) + __high2float(part);
    }
    out[row] = sum;
}

extern "C" __global__ void functionsKern(uint32_t n, const __half* in, __half* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const __half x = in[i];
    const __half results[7] = {hsqrt(x), hrsqrt(x), hexp2(x), hlog2(x), hsin(x), hcos(x), hrcp(x)};
    for (uint32_t row = 0; row < 7; ++row) out[row * n + i] = results[row];
}
