// Cooperative groups within a block.
//
//   tilesKern      sums over tiles of 8 threads, by shuffles of the tile; out: uint32[2][n]: the sum, and the rank in the tile
//   reduceKern     cg::reduce over tiles of 16 and over the whole warp; out: int32[3][n]: sum, largest, exclusive or
//   coalescedKern  threads that meet in a branch add together once; total: uint32[1]
//   partitionKern  labeled_partition: threads of the same label find their number and their leader's value
//   scanKern       cg::inclusive_scan over a warp
//   gridKern       thread ranks and sizes of block and grid
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cstdint>

namespace cg = cooperative_groups;

extern "C" __global__ void tilesKern(uint32_t n, const uint32_t* in, uint32_t* out) {
    const auto block = cg::this_thread_block();
    const auto tile = cg::tiled_partition<8>(block);
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t sum = in[i];
    for (uint32_t offset = tile.size() / 2; offset > 0; offset /= 2) sum += tile.shfl_xor(sum, offset);
    block.sync();
    out[i] = sum;
    out[n + i] = tile.thread_rank() + 100 * tile.meta_group_rank();
}

extern "C" __global__ void reduceKern(uint32_t n, const int32_t* in, int32_t* out) {
    const auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    const auto half = cg::tiled_partition<16>(warp);
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = cg::reduce(half, in[i], cg::plus<int32_t>());
    out[n + i] = cg::reduce(warp, in[i], cg::greater<int32_t>());
    out[2 * n + i] = cg::reduce(warp, in[i], cg::bit_xor<int32_t>());
}

extern "C" __global__ void coalescedKern(uint32_t n, const uint32_t* in, uint32_t* total) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && in[i] % 3 == 0) {
        const auto group = cg::coalesced_threads();
        const uint32_t met = group.size();
        if (group.thread_rank() == 0) atomicAdd(total, met);
    }
}

extern "C" __global__ void partitionKern(const uint32_t* labels, uint32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    const auto same = cg::labeled_partition(warp, labels[i]);
    out[i] = same.shfl(i, 0) * 10000 + same.size() * 100 + same.thread_rank();
}

extern "C" __global__ void scanKern(const uint32_t* in, uint32_t* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    out[i] = cg::inclusive_scan(warp, in[i], cg::plus<uint32_t>());
}

extern "C" __global__ void gridKern(uint64_t* out) {
    const auto grid = cg::this_grid();
    const auto block = cg::this_thread_block();
    const uint64_t rank = grid.thread_rank();
    out[rank] = rank + block.thread_rank() * 100000ull + block.size() * 1000000000ull + grid.block_rank() * 1000000000000ull;
}
