// What threads of a warp can tell each other.
//
//   histogramMatchKern  bins: uint32[bins], added to; equal values of a warp are found by __match_any_sync and added once
//   compactBallotKern   out: the odd elements of in, in any order; count: uint32[1], added to once a warp
//   votesKern           out: uint32[6][n]: all, any, ballot, uniform value, the first odd lane of this
//                       value (from 1), the lanes below
//   divergedKern        out: uint32[n]: each path of a switch sums over the threads that took it
#include <cstdint>

extern "C" __global__ void histogramMatchKern(uint32_t n, const uint32_t* in, uint32_t* bins) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t active = __ballot_sync(0xffffffff, i < n);
    if (i >= n) return;
    const uint32_t same = __match_any_sync(active, in[i]);
    if (__ffs(same) - 1 == threadIdx.x % 32) atomicAdd(&bins[in[i]], __popc(same));
}

extern "C" __global__ void compactBallotKern(uint32_t n, const uint64_t* in, uint64_t* out, uint32_t* count) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32;
    const bool keep = i < n && in[i] % 2 == 1;
    const uint32_t kept = __ballot_sync(0xffffffff, keep);
    uint32_t base = 0;
    if (lane == 0 && kept) base = atomicAdd(count, __popc(kept));
    base = __shfl_sync(0xffffffff, base, 0);
    if (keep) out[base + __popc(kept & ((1u << lane) - 1))] = in[i];
}

extern "C" __global__ void votesKern(uint32_t n, const uint64_t* in, uint32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint64_t value = in[i];
    int uniform;
    out[i] = __all_sync(0xffffffff, value > 10);
    out[n + i] = __any_sync(0xffffffff, value == 77);
    out[2 * n + i] = __ballot_sync(0xffffffff, value & 1);
    __match_all_sync(0xffffffff, value, &uniform);
    out[3 * n + i] = uniform;
    uint32_t below;
    asm("mov.u32 %0, %%lanemask_lt;" : "=r"(below));
    const uint32_t odd = __ballot_sync(0xffffffff, value & 1);
    if (value & 1) out[4 * n + i] = __ffs(__match_any_sync(odd, value));
    out[5 * n + i] = below;
}

extern "C" __global__ void divergedKern(const uint32_t* in, uint32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t path = in[i] % 3;
    const uint32_t mask = __match_any_sync(0xffffffff, path);
    uint32_t sum = 0;
    if (path == 0) {
        for (uint32_t lanes = mask; lanes; lanes &= lanes - 1) sum += __shfl_sync(mask, in[i], __ffs(lanes) - 1);
    } else if (path == 1) {
        for (uint32_t lane = 0; lane < 32; ++lane) {
            if (mask >> lane & 1) sum += 3 * __shfl_sync(mask, in[i], lane);
        }
    } else {
        sum = __popc(mask);
    }
    out[i] = sum;
}
