// Eight-bit floating point.
//
//   packKern    float32 pairs to e4m3 and e5m2 pairs, saturating; out: uint16[2][pairs]
//   unpackKern  all 256 values of e4m3 and e5m2 as float32; out: float32[2][256]
//   scaleKern   rows of 128 float32 quantised to e4m3 with a scale a row, and back
#include <cstdint>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

extern "C" __global__ void packKern(uint32_t pairs, const float2* in, uint16_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pairs) return;
    out[i] = __nv_cvt_float2_to_fp8x2(in[i], __NV_SATFINITE, __NV_E4M3);
    out[pairs + i] = __nv_cvt_float2_to_fp8x2(in[i], __NV_SATFINITE, __NV_E5M2);
}

extern "C" __global__ void unpackKern(float* out) {
    const __nv_fp8x2_storage_t pair = threadIdx.x | (255 - threadIdx.x) << 8;
    const __half2 a = __half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)), b = __half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E5M2));
    out[threadIdx.x] = __low2float(a);
    out[256 + 255 - threadIdx.x] = __high2float(b);
}

extern "C" __global__ void scaleKern(const float4* in, uint32_t* packed, float* scales, float4* back) {
    const uint32_t row = blockIdx.x, lane = threadIdx.x;
    const float4 v = in[32 * row + lane];
    float largest = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
    for (uint32_t mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, mask));
    const float scale = __fdiv_rn(largest, 448.0f);
    const float4 scaled = make_float4(__fdiv_rn(v.x, scale), __fdiv_rn(v.y, scale), __fdiv_rn(v.z, scale), __fdiv_rn(v.w, scale));
    const __nv_fp8x4_e4m3 quantised(scaled);
    packed[32 * row + lane] = quantised.__x;
    const float4 wide = float4(quantised);
    back[32 * row + lane] = make_float4(wide.x * scale, wide.y * scale, wide.z * scale, wide.w * scale);
    if (lane == 0) scales[row] = scale;
}
