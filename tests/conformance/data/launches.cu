// Kernels that need more of a launch than a grid and a block: see test_launch_attributes.py.

#include <cooperative_groups.h>
#include <cuda/ptx>

namespace cg = cooperative_groups;
namespace ptx = cuda::ptx;

// out[b] = (b + 1) * the sum of all of in, for which every block waits for all others.
extern "C" __global__ void gridSumKern(unsigned n, const unsigned *in, unsigned *partial, unsigned *out) {
  cg::grid_group grid = cg::this_grid();
  unsigned sum = 0;
  for (unsigned i = grid.thread_rank(); i < n; i += grid.size()) sum += in[i];
  atomicAdd(&partial[blockIdx.x], sum);
  grid.sync();
  unsigned total = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) total += static_cast<volatile unsigned *>(partial)[b];
  grid.sync();
  if (threadIdx.x) return;
  partial[blockIdx.x] = 0;
  out[blockIdx.x] = total * (blockIdx.x + 1);
}

// Each block leaves numbers in its shared memory, and adds up those of all blocks of its cluster. Then all of its threads count
// in the next one's. Blocks of 64 threads.
extern "C" __global__ void exchangeKern(const unsigned *in, unsigned *out) {
  __shared__ unsigned own[64];
  cg::cluster_group cluster = cg::this_cluster();
  unsigned rank = cluster.block_rank(), blocks = cluster.num_blocks(), thread = blockIdx.x * blockDim.x + threadIdx.x;
  own[threadIdx.x] = in[thread] + rank;
  cluster.sync();
  unsigned sum = 0;
  for (unsigned r = 0; r < blocks; ++r) sum += *cluster.map_shared_rank(&own[threadIdx.x], r);
  cluster.sync();
  atomicAdd(cluster.map_shared_rank(&own[0], (rank + 1) % blocks), 1u);
  cluster.sync();
  out[thread] = threadIdx.x ? sum : own[0];
}

// Where a block is in its cluster, and which cluster that is: 8 numbers for each block.
extern "C" __global__ void __cluster_dims__(2, 2, 1) placeKern(unsigned *out) {
  cg::cluster_group cluster = cg::this_cluster();
  dim3 place = cluster.block_index(), size = cluster.dim_blocks();
  unsigned x, y, number;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(x));
  asm("mov.u32 %0, %%clusterid.y;" : "=r"(y));
  asm("mov.u32 %0, %%nclusterid.x;" : "=r"(number));
  if (threadIdx.x) return;
  unsigned *p = out + 8 * ((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
  p[0] = cluster.block_rank(), p[1] = place.x, p[2] = place.y, p[3] = size.x * 10 + size.y;
  p[4] = cluster.num_threads(), p[5] = x, p[6] = y, p[7] = number;
}

// A block that ends early does not keep the others of its cluster from going on.
extern "C" __global__ void leaveKern(unsigned *out) {
  cg::cluster_group cluster = cg::this_cluster();
  if (cluster.block_rank() == 1) return;
  cluster.sync();
  if (threadIdx.x == 0) out[blockIdx.x] = cluster.block_rank() + 10;
}

// x[i] = a * x[i] + 1, of what the launch before left there.
extern "C" __global__ void stepKern(unsigned n, unsigned a, unsigned *x) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
  if (i < n) x[i] = a * x[i] + 1;
}

// out = 2 * in + 1, through bulk copies of 256 numbers. The first block of each cluster brings them to all of its blocks, and each
// leaves them in a part of out of its own: blocks of 128 threads, and out has a part for each rank.
extern "C" __global__ void bulkKern(const unsigned *in, unsigned *out) {
  __shared__ alignas(16) unsigned tile[256];
  __shared__ alignas(8) uint64_t arrived;
  cg::cluster_group cluster = cg::this_cluster();
  unsigned rank = cluster.block_rank(), blocks = cluster.num_blocks(), number = blockIdx.x / blocks;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&arrived, 1);
    ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
    ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &arrived, sizeof tile);
  }
  cluster.sync();
  if (threadIdx.x == 0 && rank == 0)
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], 1024, [%2], %3;"
                 ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(tile))), "l"(__cvta_generic_to_global(in + 256 * number)),
                 "r"(static_cast<unsigned>(__cvta_generic_to_shared(&arrived))), "h"(static_cast<uint16_t>((1 << blocks) - 1))
                 : "memory");
  while (!ptx::mbarrier_try_wait_parity(&arrived, 0)) {}
  for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) tile[i] = 2 * tile[i] + 1;
  ptx::fence_proxy_async(ptx::space_shared);
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::cp_async_bulk(ptx::space_global, ptx::space_shared, out + 256 * (rank * (gridDim.x / blocks) + number), tile, sizeof tile);
    ptx::cp_async_bulk_commit_group();
    ptx::cp_async_bulk_wait_group(ptx::n32_t<0>());
  }
}
