// Sorting.
//
//   bitonicKern     each block sorts its 2 * block (a power of two) int32 in dynamic shared memory
//   bitonicWarpKern each warp sorts 32 float32, by shuffles alone
//   radixKern       one block sorts n <= 1024 uint32, a bit at a time, keeping values with their keys
//   quicksortKern   each thread sorts its own row of `length` <= 256 uint16, with a stack in local memory
//   mergeKern       merges two sorted arrays of int64: each thread finds its place by binary search along a diagonal
#include <cstdint>
#include <cfloat>

extern "C" __global__ void bitonicKern(int32_t* data) {
    extern __shared__ int32_t keys[];
    const uint32_t count = 2 * blockDim.x;
    int32_t* own = data + blockIdx.x * count;
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) keys[i] = own[i];
    for (uint32_t size = 2; size <= count; size *= 2) {
        for (uint32_t stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            const uint32_t low = 2 * threadIdx.x - (threadIdx.x & (stride - 1)), high = low + stride;
            const bool descending = low & size;
            const int32_t a = keys[low], b = keys[high];
            if ((a > b) != descending) {
                keys[low] = b;
                keys[high] = a;
            }
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) own[i] = keys[i];
}

extern "C" __global__ void bitonicWarpKern(float* data) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32;
    float value = data[i];
    for (uint32_t size = 2; size <= 32; size *= 2) {
        for (uint32_t stride = size / 2; stride > 0; stride /= 2) {
            const float other = __shfl_xor_sync(0xffffffff, value, stride);
            const bool smaller = ((lane & size) == 0) == ((lane & stride) == 0);
            value = smaller ? fminf(value, other) : fmaxf(value, other);
        }
    }
    data[i] = value;
}

extern "C" __global__ void radixKern(uint32_t n, uint32_t* keys, uint32_t* values) {
    __shared__ uint32_t of_warp[32];
    __shared__ uint32_t sorted_keys[1024], sorted_values[1024];
    const uint32_t i = threadIdx.x, lane = i % 32, warp = i / 32;
    uint32_t key = i < n ? keys[i] : 0xffffffff, value = i < n ? values[i] : 0;
    for (uint32_t bit = 0; bit < 32; ++bit) {
        const bool one = key >> bit & 1;
        const uint32_t zeros = __ballot_sync(0xffffffff, !one);
        if (lane == 0) of_warp[warp] = __popc(zeros);
        __syncthreads();
        uint32_t zeros_before = __popc(zeros & ((1u << lane) - 1)), zeros_in_all = 0;
        for (uint32_t other = 0; other < blockDim.x / 32; ++other) {
            if (other < warp) zeros_before += of_warp[other];
            zeros_in_all += of_warp[other];
        }
        const uint32_t place = one ? zeros_in_all + i - zeros_before : zeros_before;
        sorted_keys[place] = key;
        sorted_values[place] = value;
        __syncthreads();
        key = sorted_keys[i];
        value = sorted_values[i];
        __syncthreads();
    }
    if (i < n) {
        keys[i] = key;
        values[i] = value;
    }
}

extern "C" __global__ void quicksortKern(uint32_t rows, uint32_t length, uint16_t* data) {
    const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    uint16_t items[256];
    for (uint32_t i = 0; i < length; ++i) items[i] = data[row * length + i];
    struct Range { int16_t low, high; } stack[64];
    int depth = 0;
    stack[depth++] = {0, int16_t(length - 1)};
    while (depth > 0) {
        auto [low, high] = stack[--depth];
        while (low < high) {
            const uint16_t pivot = items[(low + high) / 2];
            int i = low - 1, j = high + 1;
            for (;;) {
                while (items[++i] < pivot) {}
                while (items[--j] > pivot) {}
                if (i >= j) break;
                const uint16_t kept = items[i];
                items[i] = items[j];
                items[j] = kept;
            }
            if (j - low < high - j - 1) {  // the larger part waits, so that the stack stays short
                stack[depth++] = {int16_t(j + 1), high};
                high = j;
            } else {
                stack[depth++] = {low, int16_t(j)};
                low = j + 1;
            }
        }
    }
    for (uint32_t i = 0; i < length; ++i) data[row * length + i] = items[i];
}

extern "C" __global__ void mergeKern(uint32_t a_count, uint32_t b_count, const int64_t* a, const int64_t* b, int64_t* out) {
    const uint32_t place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= a_count + b_count) return;
    uint32_t low = place > b_count ? place - b_count : 0, high = min(place, a_count);
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (a[middle] <= b[place - 1 - middle]) low = middle + 1;
        else high = middle;
    }
    const uint32_t i = low, j = place - low;
    out[place] = j >= b_count || (i < a_count && a[i] <= b[j]) ? a[i] : b[j];
}
