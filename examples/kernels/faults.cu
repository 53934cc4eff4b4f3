// Kernels that misbehave on purpose, one way each, for tests. Any grid and block; the first thread alone misbehaves, except
// where noted.
//
//   writeAtKern          out[index] = 1                 out: uint32; an index past the buffer's end writes out of bounds
//   readAtKern           out[0] = in[index]             in, out: uint32; an index past the end of `in` reads out of bounds
//   misalignedKern       a 4-byte write at out + 1      out: at least 8 bytes
//   trapKern             traps; out[0] = 1 before that  out: uint32[1]
//   expectKern           traps unless in[i] == value    in: uint32[n]; every thread i < n checks one element
//   writeInputKern       in[0] += 1                     in: uint32[1], meant to be passed as an input
//   spinKern             loops until flag[0] != 0       flag: uint32[1]; with a zero it never ends
#include <cstdint>

static __device__ bool is_first_thread() {
    return blockIdx.x + blockIdx.y + blockIdx.z + threadIdx.x + threadIdx.y + threadIdx.z == 0;
}

extern "C" __global__ void writeAtKern(uint64_t index, uint32_t* out) {
    if (is_first_thread()) out[index] = 1;
}

extern "C" __global__ void readAtKern(uint64_t index, const uint32_t* in, uint32_t* out) {
    if (is_first_thread()) out[0] = in[index];
}

extern "C" __global__ void misalignedKern(uint8_t* out) {
    if (is_first_thread()) *reinterpret_cast<volatile uint32_t*>(out + 1) = 1;
}

extern "C" __global__ void trapKern(uint32_t* out) {
    if (is_first_thread()) {
        out[0] = 1;
        __trap();
    }
}

extern "C" __global__ void expectKern(uint64_t n, uint32_t value, const uint32_t* in) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n && in[i] != value) __trap();
}

extern "C" __global__ void writeInputKern(uint32_t* in) {
    if (is_first_thread()) in[0] += 1;
}

extern "C" __global__ void spinKern(volatile uint32_t* flag) {
    while (flag[0] == 0) {
    }
}
