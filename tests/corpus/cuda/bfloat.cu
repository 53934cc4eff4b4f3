// bfloat16.
//
//   arithmeticKern out: bfloat16[8][n]: sum, difference, product, fma, min, max, abs, neg
//   pairsKern      the same of pairs: fma with relu, sums, maxima: out: bfloat162[3][pairs]
//   convertKern    float32 to bfloat16 in four roundings, bfloat16 to int32 and back: out: uint32[6][n]
//   sumKern        total: bfloat162[1] by atomicAdd of small integers (exact)
#include <cstdint>
#include <cuda_bf16.h>

extern "C" __global__ void arithmeticKern(uint32_t n, const __nv_bfloat16* a, const __nv_bfloat16* b, __nv_bfloat16* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const __nv_bfloat16 x = a[i], y = b[i];
    const __nv_bfloat16 results[8] = {__hadd(x, y), __hsub(x, y), __hmul(x, y), __hfma(x, y, y),
                                      __hmin(x, y), __hmax(x, y), __habs(x),    __hneg(x)};
    for (uint32_t row = 0; row < 8; ++row) out[row * n + i] = results[row];
}

extern "C" __global__ void pairsKern(uint32_t pairs, const __nv_bfloat162* a, const __nv_bfloat162* b, __nv_bfloat162* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pairs) return;
    out[i] = __hfma2_relu(a[i], b[i], b[i]);
    out[pairs + i] = __hadd2(a[i], b[i]);
    out[2 * pairs + i] = __hmax2(a[i], b[i]);
}

extern "C" __global__ void convertKern(uint32_t n, const float* in, uint32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float x = in[i];
    const __nv_bfloat16 h = __float2bfloat16_rn(x);
    const uint32_t results[6] = {
        __bfloat16_as_ushort(h),
        __bfloat16_as_ushort(__float2bfloat16_rz(x)),
        __bfloat16_as_ushort(__float2bfloat16_ru(x)),
        __bfloat16_as_ushort(__float2bfloat16_rd(x)),
        uint32_t(__bfloat162int_rz(h)),
        __bfloat16_as_ushort(__int2bfloat16_rn(int32_t(x))),
    };
    for (uint32_t row = 0; row < 6; ++row) out[row * n + i] = results[row];
}

extern "C" __global__ void sumKern(uint32_t n, const __nv_bfloat162* in, __nv_bfloat162* total) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(total, in[i]);
}
