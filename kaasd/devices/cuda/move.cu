// Moves small ranges between host and device memory within a stream: one launch before a request's kernels, one behind them.
//
// In a CUDA graph on an H100 a node that copies 4 bytes to the host takes 7 microseconds, since another engine of the GPU does it;
// a kernel that writes them there takes 1 to 2.
#include <cstdint>

constexpr unsigned RANGES = 32;

struct Range {
    uint8_t* to;
    const uint8_t* from;  // null: zeros
    uint64_t size;        // bytes
};

struct Moves {
    Range ranges[RANGES];
};

__device__ uint64_t now() {
    uint64_t nanoseconds;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
    return nanoseconds;
}

// Block row y moves range y; its ends may be host or device memory, and begin at multiples of 16. Behind all that, where `flag` is
// not null, it becomes 1: the host then sees what was moved. `arrived` is 0 before and after. `time`, where it is not null, becomes
// what the GPU's clock says, in nanoseconds: just before the flag is set, or where there is none as the launch begins.
extern "C" __global__ void moveKern(
    const __grid_constant__ Moves moves, uint32_t* arrived, volatile uint32_t* flag, volatile uint64_t* time
) {
    if (time && !flag && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *time = now();
    const Range range = moves.ranges[blockIdx.y];
    const uint64_t thread = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t step = uint64_t(gridDim.x) * blockDim.x;

    uint4* const to = reinterpret_cast<uint4*>(range.to);
    const uint4* const from = reinterpret_cast<const uint4*>(range.from);
    for (uint64_t i = thread; i < range.size / 16; i += step) to[i] = from ? from[i] : uint4{0, 0, 0, 0};
    const uint64_t tail = range.size & ~uint64_t(15);
    if (thread < range.size - tail) range.to[tail + thread] = from ? range.from[tail + thread] : 0;

    if (flag == nullptr) return;
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x != 0) return;
    const uint32_t last = gridDim.x * gridDim.y - 1;
    if (atomicInc(arrived, last) != last) return;
    if (time) *time = now();
    __threadfence_system();
    *flag = 1;
}
