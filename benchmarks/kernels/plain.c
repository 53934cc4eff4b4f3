/* What the emulated device's kernels do, as one would write it for a processor: elements, or rows, from `begin` up to `end`. */
#include <stdint.h>

void fma_loop(uint32_t begin, uint32_t end, uint32_t steps, float a, float b, float *x) {
    for (uint32_t i = begin; i < end; ++i) {
        float value = x[i];
        for (uint32_t step = 0; step < steps; ++step) value = a * value + b;
        x[i] = value;
    }
}

void collatz(uint32_t begin, uint32_t end, uint32_t *steps) {
    for (uint32_t i = begin; i < end; ++i) {
        uint64_t value = i + 1;
        uint32_t count = 0;
        for (; value != 1; ++count) value = value % 2 ? 3 * value + 1 : value / 2;
        steps[i] = count;
    }
}

void saxpy(uint32_t begin, uint32_t end, float a, const float *x, float *y) {
    for (uint32_t i = begin; i < end; ++i) y[i] = a * x[i] + y[i];
}

void matmul(uint32_t begin, uint32_t end, uint32_t n, const float *a, const float *b, float *c) {
    for (uint32_t row = begin; row < end; ++row) {
        float *out = c + (uint64_t)row * n;
        for (uint32_t column = 0; column < n; ++column) out[column] = 0;
        for (uint32_t k = 0; k < n; ++k) {
            const float factor = a[(uint64_t)row * n + k], *line = b + (uint64_t)k * n;
            for (uint32_t column = 0; column < n; ++column) out[column] += factor * line[column];
        }
    }
}

/* One step: y = x + (rhs - a x) / the diagonal of a. */
void jacobi_step(uint32_t begin, uint32_t end, uint32_t n, const float *a, const double *rhs, const double *x, double *y) {
    for (uint32_t row = begin; row < end; ++row) {
        const float *line = a + (uint64_t)row * n;
        double sum = rhs[row];
        for (uint32_t column = 0; column < n; ++column) sum -= line[column] * x[column];
        y[row] = x[row] + sum / line[row];
    }
}
