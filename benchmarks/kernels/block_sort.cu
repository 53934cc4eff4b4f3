// What `emulator-loading` loads: CUB's sort of a block's keys with their values. Compiled when it is measured, with the toolkit's own headers.
#include <cstdint>
#include <cub/block/block_radix_sort.cuh>

constexpr int ITEMS = 20;

extern "C" __global__ void blockSortKern(uint64_t* keys, uint64_t* values) {
    using Sort = cub::BlockRadixSort<uint64_t, 256, ITEMS, uint64_t>;
    __shared__ typename Sort::TempStorage storage;
    uint64_t key[ITEMS], value[ITEMS];
    const uint32_t start = (blockIdx.x * 256 + threadIdx.x) * ITEMS;
    for (int i = 0; i < ITEMS; ++i) key[i] = keys[start + i], value[i] = values[start + i];
    Sort(storage).Sort(key, value);
    for (int i = 0; i < ITEMS; ++i) keys[start + i] = key[i], values[start + i] = value[i];
}
