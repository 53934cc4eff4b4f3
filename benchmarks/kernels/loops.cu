// Loops of one thread, measured on the emulated device beside the same in C: plain.c.
//
//   fmaKern       x[i] = a * x[i] + b, `steps` times                      x: float32[n]; one thread an element
//   collatzKern   steps[i] = until the sequence from i + 1 comes to 1     steps: uint32[n]; one thread an element
#include <cstdint>

extern "C" __global__ void fmaKern(uint32_t n, uint32_t steps, float a, float b, float* x) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float value = x[i];
    for (uint32_t step = 0; step < steps; ++step) value = fmaf(a, value, b);
    x[i] = value;
}

extern "C" __global__ void collatzKern(uint32_t n, uint32_t* steps) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint64_t value = i + 1;
    uint32_t count = 0;
    for (; value != 1; ++count) value = value % 2 ? 3 * value + 1 : value / 2;
    steps[i] = count;
}
