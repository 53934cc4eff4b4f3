// The warp-wide reductions of compute capability 8.0: every operation of __reduce_*_sync, also over part of a warp.
//
//   reduxKern  in: uint32[32 * warps]; out: uint32[8][32 * warps], one row an operation
#include <cstdint>

extern "C" __global__ void reduxKern(uint32_t count, const uint32_t* in, uint32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t value = in[i];
    const uint32_t all = 0xffffffff;
    const uint32_t half = threadIdx.x & 1 ? 0xaaaaaaaa : 0x55555555;
    const uint32_t results[8] = {
        __reduce_add_sync(all, value),
        __reduce_min_sync(all, value),
        __reduce_max_sync(all, value),
        uint32_t(__reduce_min_sync(all, int32_t(value))),
        uint32_t(__reduce_max_sync(half, int32_t(value))),
        __reduce_and_sync(half, value),
        __reduce_or_sync(half, value),
        __reduce_xor_sync(half, value),
    };
    for (uint32_t row = 0; row < 8; ++row) out[row * count + i] = results[row];
}
