// Code as it was written before __syncwarp: it counts on the threads of a warp advancing together. Every kernel gets 64 words a block
// of `x` and writes 64, or as many as it says.

typedef unsigned int u32;

// The last warp of a sum, through shared memory.
extern "C" __global__ void sharedSum(const u32 *x, u32 *out) {
    __shared__ volatile u32 s[64];
    const u32 t = threadIdx.x;
    s[t] = x[blockIdx.x * 64 + t];
    __syncthreads();
    if (t < 32) {
        s[t] += s[t + 32];
        s[t] += s[t + 16];
        s[t] += s[t + 8];
        s[t] += s[t + 4];
        s[t] += s[t + 2];
        s[t] += s[t + 1];
    }
    if (t == 0) out[blockIdx.x] = s[0];
}

// The same through global memory.
extern "C" __global__ void globalSum(const u32 *x, volatile u32 *scratch, u32 *out) {
    const u32 t = threadIdx.x;
    volatile u32 *s = scratch + blockIdx.x * 64;
    s[t] = x[blockIdx.x * 64 + t];
    __syncthreads();
    if (t < 32) {
        s[t] += s[t + 32];
        s[t] += s[t + 16];
        s[t] += s[t + 8];
        s[t] += s[t + 4];
        s[t] += s[t + 2];
        s[t] += s[t + 1];
    }
    if (t == 0) out[blockIdx.x] = s[0];
}

// A sum in which fewer and fewer threads take part.
extern "C" __global__ void shrinkingSum(const u32 *x, u32 *out) {
    __shared__ volatile u32 s[64];
    const u32 t = threadIdx.x;
    s[t] = x[blockIdx.x * 64 + t];
    __syncthreads();
    if (t < 32) s[t] += s[t + 32];
    if (t < 16) s[t] += s[t + 16];
    if (t < 8) s[t] += s[t + 8];
    if (t < 4) s[t] += s[t + 4];
    if (t < 2) s[t] += s[t + 2];
    if (t < 1) s[t] += s[t + 1];
    if (t == 0) out[blockIdx.x] = s[0];
}

// A read after a branch of which threads take both sides.
extern "C" __global__ void afterBranch(const u32 *x, u32 *out) {
    __shared__ volatile u32 s[64];
    const u32 t = threadIdx.x, i = blockIdx.x * 64 + t;
    if (x[i] & 1) {
        u32 v = x[i];
        while (v > 9) v = v / 10 + v % 10;
        s[t] = v;
    } else {
        s[t] = x[i] * 7;
    }
    out[i] = s[t ^ 1];
}

// A read after a loop that threads leave at different times.
extern "C" __global__ void afterLoop(const u32 *x, u32 *out) {
    __shared__ volatile u32 s[64];
    const u32 t = threadIdx.x, i = blockIdx.x * 64 + t;
    s[t] = 0;
    for (u32 k = 0; k < (x[i] & 31); k++) s[t] += k * x[i];
    out[i] = s[t ^ 31];
}

// An inclusive scan of each warp.
extern "C" __global__ void scan(const u32 *x, u32 *out) {
    __shared__ volatile u32 s[64];
    const u32 t = threadIdx.x, lane = t & 31, i = blockIdx.x * 64 + t;
    s[t] = x[i];
#pragma unroll 1
    for (u32 d = 1; d < 32; d *= 2)
        if (lane >= d) s[t] += s[t - d];
    out[i] = s[t];
}

// One thread of each warp writes what all read.
extern "C" __global__ void leader(const u32 *x, u32 *out) {
    __shared__ volatile u32 s[2];
    const u32 t = threadIdx.x, i = blockIdx.x * 64 + t;
    u32 sum = 0;
#pragma unroll 1
    for (u32 k = 0; k < 32; k++) {
        if ((t & 31) == 31 - k) s[t / 32] = x[i];
        sum = sum * 3 + s[t / 32];
    }
    out[i] = sum;
}

// Threads of a warp take turns at one place, the last first.
extern "C" __global__ void turns(const u32 *x, u32 *out) {
    __shared__ volatile u32 s[2];
    const u32 t = threadIdx.x, i = blockIdx.x * 64 + t;
    s[t / 32] = 1;
#pragma unroll 1
    for (u32 k = 0; k < 32; k++)
        if ((t & 31) == 31 - k) s[t / 32] = s[t / 32] * 3 + x[i];
    out[i] = s[t / 32];
}

// A warp turns a tile of 4 by 8 words.
extern "C" __global__ void transpose(const u32 *x, u32 *out) {
    __shared__ volatile u32 tile[2][32];
    const u32 t = threadIdx.x, lane = t & 31, i = blockIdx.x * 64 + t;
    tile[t / 32][lane] = x[i];
    out[i] = tile[t / 32][lane % 4 * 8 + lane / 4];
}

// Threads of one warp add to a word in turn, each with the lock: the others wait for it.
extern "C" __global__ void spinLock(u32 *lock, u32 *word) {
    bool done = false;
    while (!done) {
        if (atomicCAS(lock, 0, 1) == 0) {
            volatile u32 *w = word;
            *w = *w * 5 + 1;
            __threadfence();
            atomicExch(lock, 0);
            done = true;
        }
    }
}

// Each thread waits for what the one before it leaves, across warps and blocks.
extern "C" __global__ void lookBack(volatile u32 *state, u32 *ticket, u32 *out) {
    __shared__ u32 block;
    if (threadIdx.x == 0) block = atomicAdd(ticket, 1);
    __syncthreads();
    const u32 i = block * blockDim.x + threadIdx.x;
    u32 before = 1;
    if (i > 0)
        do before = state[i - 1]; while (before == 0);
    __threadfence();
    state[i] = before + 1;
    out[i] = before;
}
