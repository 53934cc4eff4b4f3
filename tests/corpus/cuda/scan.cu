// Prefix sums.
//
//   scanBlockKern     out[i] = in[0] + … + in[i] within each block, by shuffles; a block of a multiple of 32
//   scanBlellochKern  the same, exclusive, by Blelloch's tree in dynamic shared memory; 2 * block elements a block
//   scanLookbackKern  over all blocks in one pass: each adds what the blocks before it publish (decoupled look-back)
//                     state: uint64[grid] and ticket: uint32[1], zeros to begin with; a block of a multiple of 32
//   compactKern       out: the elements of in above `limit`, in order; count: uint32[1]; one block of a multiple of 32
#include <cstdint>

__device__ uint32_t scan_warp(uint32_t value) {
    for (uint32_t offset = 1; offset < 32; offset *= 2) {
        const uint32_t before = __shfl_up_sync(0xffffffff, value, offset);
        if (threadIdx.x % 32 >= offset) value += before;
    }
    return value;
}

// Inclusive, over the block.
__device__ uint32_t scan_block(uint32_t value) {
    __shared__ uint32_t of_warp[32];
    value = scan_warp(value);
    if (threadIdx.x % 32 == 31) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x < 32) of_warp[threadIdx.x] = scan_warp(threadIdx.x < blockDim.x / 32 ? of_warp[threadIdx.x] : 0);
    __syncthreads();
    if (threadIdx.x >= 32) value += of_warp[threadIdx.x / 32 - 1];
    __syncthreads();
    return value;
}

extern "C" __global__ void scanBlockKern(const uint32_t* in, uint32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = scan_block(in[i]);
}

extern "C" __global__ void scanBlellochKern(const float* in, float* out) {
    extern __shared__ float tree[];
    const uint32_t count = 2 * blockDim.x, base = blockIdx.x * count;
    tree[threadIdx.x] = in[base + threadIdx.x];
    tree[threadIdx.x + blockDim.x] = in[base + threadIdx.x + blockDim.x];
    uint32_t stride = 1;
    for (uint32_t active = blockDim.x; active > 0; active /= 2, stride *= 2) {
        __syncthreads();
        if (threadIdx.x < active) tree[stride * (2 * threadIdx.x + 2) - 1] += tree[stride * (2 * threadIdx.x + 1) - 1];
    }
    if (threadIdx.x == 0) tree[count - 1] = 0;
    for (uint32_t active = 1; active < count; active *= 2) {
        stride /= 2;
        __syncthreads();
        if (threadIdx.x < active) {
            const uint32_t left = stride * (2 * threadIdx.x + 1) - 1, right = stride * (2 * threadIdx.x + 2) - 1;
            const float before = tree[left];
            tree[left] = tree[right];
            tree[right] += before;
        }
    }
    __syncthreads();
    out[base + threadIdx.x] = tree[threadIdx.x];
    out[base + threadIdx.x + blockDim.x] = tree[threadIdx.x + blockDim.x];
}

extern "C" __global__ void scanLookbackKern(uint32_t n, const uint32_t* in, uint32_t* out, volatile uint64_t* state,
                                            uint32_t* ticket) {
    constexpr uint64_t AGGREGATE = 1ull << 32, PREFIX = 2ull << 32;
    __shared__ uint32_t tile, before;
    if (threadIdx.x == 0) tile = atomicAdd(ticket, 1);
    __syncthreads();
    const uint32_t i = tile * blockDim.x + threadIdx.x;
    const uint32_t inclusive = scan_block(i < n ? in[i] : 0);
    if (threadIdx.x == blockDim.x - 1) {
        state[tile] = (tile == 0 ? PREFIX : AGGREGATE) | inclusive;
        __threadfence();
        uint32_t sum = 0;
        for (int32_t earlier = int32_t(tile) - 1; earlier >= 0;) {
            const uint64_t seen = state[earlier];
            if (seen == 0) continue;
            sum += uint32_t(seen);
            if (seen & PREFIX) break;
            --earlier;
        }
        before = sum;
        state[tile] = PREFIX | (sum + inclusive);
        __threadfence();
    }
    __syncthreads();
    if (i < n) out[i] = before + inclusive;
}

extern "C" __global__ void compactKern(uint32_t n, int32_t limit, const int32_t* in, int32_t* out, uint32_t* count) {
    __shared__ uint32_t kept_before, kept_here;
    if (threadIdx.x == 0) kept_before = 0;
    __syncthreads();
    for (uint32_t start = 0; start < n; start += blockDim.x) {
        const uint32_t i = start + threadIdx.x;
        const bool keep = i < n && in[i] > limit;
        const uint32_t rank = scan_block(keep);
        if (keep) out[kept_before + rank - 1] = in[i];
        if (threadIdx.x == blockDim.x - 1) kept_here = rank;
        __syncthreads();
        if (threadIdx.x == 0) kept_before += kept_here;
        __syncthreads();
    }
    if (threadIdx.x == 0) *count = kept_before;
}
