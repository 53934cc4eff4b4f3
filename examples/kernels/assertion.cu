// A kernel that uses the C assert, for tests. It is not in faults.cu because it calls the driver's __assertfail.
//
//   assertKern   asserts in[i] == value    in: uint32[n]; every thread i < n checks one element
#include <cassert>
#include <cstdint>

extern "C" __global__ void assertKern(uint64_t n, uint32_t value, const uint32_t* in) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) assert(in[i] == value);
}
