// Copies to shared memory that run beside the computation.
//
//   doubleBufferKern  sums of 3-point neighbourhoods over tiles, two tiles in shared memory, cp.async of 16 bytes
//   stagesKern        dot products of long rows, four stages of cp.async.ca of 4 bytes, zeros filled past the end
//   barrierKern       cuda::barrier: arrivals of copying and computing threads counted by an mbarrier in shared memory
//   blockPipelineKern cuda::pipeline of the block with memcpy_async
#include <cooperative_groups.h>
#include <cuda/barrier>
#include <cuda/pipeline>
#include <cuda_pipeline.h>
#include <cstdint>

#pragma nv_diag_suppress static_var_with_dynamic_init  // barriers in shared memory are initialised by the kernels

extern "C" __global__ void doubleBufferKern(uint32_t tiles, const float4* in, float4* out) {
    __shared__ float4 tile[2][64];
    const uint32_t t = threadIdx.x;
    const float4* own = in + blockIdx.x * tiles * 64;
    __pipeline_memcpy_async(&tile[0][t], &own[t], 16);
    __pipeline_commit();
    for (uint32_t i = 0; i < tiles; ++i) {
        if (i + 1 < tiles) __pipeline_memcpy_async(&tile[(i + 1) % 2][t], &own[(i + 1) * 64 + t], 16);
        __pipeline_commit();
        __pipeline_wait_prior(1);
        __syncthreads();
        const float4 here = tile[i % 2][t];
        const float before = t > 0 ? tile[i % 2][t - 1].w : 0, after = t < 63 ? tile[i % 2][t + 1].x : 0;
        out[(blockIdx.x * tiles + i) * 64 + t] = make_float4(before + here.x + here.y, here.x + here.y + here.z,
                                                             here.y + here.z + here.w, here.z + here.w + after);
        __syncthreads();
    }
}

extern "C" __global__ void stagesKern(uint32_t columns, const float* a, const float* b, float* out) {
    constexpr uint32_t STAGES = 4;
    __shared__ float a_stage[STAGES][32], b_stage[STAGES][32];
    const uint32_t lane = threadIdx.x;
    const float *a_row = a + blockIdx.x * columns, *b_row = b + blockIdx.x * columns;
    const uint32_t steps = (columns + 31) / 32;
    auto fetch = [&](uint32_t step) {
        if (step < steps) {
            const uint32_t i = step * 32 + lane, at = min(i, columns - 1);
            __pipeline_memcpy_async(&a_stage[step % STAGES][lane], &a_row[at], 4, i < columns ? 0 : 4);
            __pipeline_memcpy_async(&b_stage[step % STAGES][lane], &b_row[at], 4, i < columns ? 0 : 4);
        }
        __pipeline_commit();
    };
    for (uint32_t step = 0; step < STAGES - 1; ++step) fetch(step);
    float sum = 0;
    for (uint32_t step = 0; step < steps; ++step) {
        fetch(step + STAGES - 1);
        __pipeline_wait_prior(STAGES - 1);
        __syncwarp();
        sum = fmaf(a_stage[step % STAGES][lane], b_stage[step % STAGES][lane], sum);
        __syncwarp();
    }
    for (uint32_t mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffff, sum, mask);
    if (lane == 0) out[blockIdx.x] = sum;
}

extern "C" __global__ void barrierKern(uint32_t rounds, const uint32_t* in, uint32_t* out) {
    using Barrier = cuda::barrier<cuda::thread_scope_block>;
    __shared__ Barrier filled, emptied;
    __shared__ uint32_t room[64];
    if (threadIdx.x == 0) {
        init(&filled, blockDim.x);
        init(&emptied, blockDim.x);
    }
    __syncthreads();
    const bool copies = threadIdx.x < 64;  // the first 64 threads fill the room, the other 64 read it
    uint32_t sum = 0;
    for (uint32_t round = 0; round < rounds; ++round) {
        if (copies) {
            room[threadIdx.x] = in[round * 64 + threadIdx.x];
            (void)filled.arrive();
            emptied.arrive_and_wait();
        } else {
            filled.arrive_and_wait();
            sum = sum * 5 + room[127 - threadIdx.x];
            (void)emptied.arrive();
        }
    }
    if (!copies) out[threadIdx.x - 64] = sum;
}

extern "C" __global__ void blockPipelineKern(uint32_t tiles, const uint32_t* in, uint32_t* out) {
    __shared__ __align__(16) uint32_t tile[2][128];
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> state;
    const auto block = cooperative_groups::this_thread_block();
    auto pipeline = cuda::make_pipeline(block, &state);
    uint32_t sum = 0;
    for (uint32_t next = 0, i = 0; i < tiles; ++i) {
        for (; next < tiles && next < i + 2; ++next) {
            pipeline.producer_acquire();
            cuda::memcpy_async(block, tile[next % 2], in + next * 128, cuda::aligned_size_t<16>(512), pipeline);
            pipeline.producer_commit();
        }
        pipeline.consumer_wait();
        sum = sum * 7 + tile[i % 2][127 - threadIdx.x];
        pipeline.consumer_release();
    }
    out[threadIdx.x] = sum;
}
