// Dot product of two uint32 vectors in two kernels with a temporary between them, modulo 2^32: exact in any order of summation.
//
//   prodKern   p[i] = a[i] * b[i] for i < n             a, b, p: uint32[n]; one thread an element
//   sumKern    c[0] = the sum of p[0 .. 2*blockDim.x)   p: uint32[2 * blockDim.x], c: uint32[1]; grid 1, block of at most 1024
//
// For n = 1024: prodKern with grid 1, block 1024, then sumKern with grid 1, block 512.
#include <cstdint>

extern "C" __global__ void prodKern(uint64_t n, const uint32_t* a, const uint32_t* b, uint32_t* p) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) p[i] = a[i] * b[i];
}

extern "C" __global__ void sumKern(const uint32_t* p, uint32_t* c) {
    __shared__ uint32_t partial[1024];
    const uint32_t thread = threadIdx.x;

    partial[thread] = p[thread] + p[thread + blockDim.x];
    __syncthreads();
    // Fold the upper half onto the lower one; of an odd count the middle element stays where it is.
    for (uint32_t count = blockDim.x; count > 1;) {
        const uint32_t half = (count + 1) / 2;
        if (thread + half < count) partial[thread] += partial[thread + half];
        __syncthreads();
        count = half;
    }
    if (thread == 0) c[0] = partial[0];
}
