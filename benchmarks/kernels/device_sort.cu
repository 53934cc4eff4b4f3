// What `emulator-loading` loads: CUB's sort of keys with their values, all of its kernels. Compiled when it is measured, with the
// toolkit's own headers.
#include <cstdint>
#include <cub/device/device_radix_sort.cuh>

cudaError_t sort(void* storage, size_t& bytes, uint64_t* keys, uint64_t* sorted, uint32_t* values, uint32_t* moved, int n) {
    const cudaError_t error = cub::DeviceRadixSort::SortPairs(storage, bytes, keys, sorted, values, moved, n);
    return error ? error : cub::DeviceRadixSort::SortPairsDescending(storage, bytes, keys, sorted, values, moved, n);
}
