// Computations on grids of points.
//
//   heatKern       one step of the 7-point stencil in three dimensions, float32, the edge kept; planes held in registers
//   lifeKern       one step of Conway's Game of Life on a torus, uint8
//   mandelbrotKern iterations until escape, uint32, in float64 (an int selects the Julia set of c instead)
//   waveKern       leap-frog step of the wave equation, float64, on a periodic line, through dynamic shared memory with halos
//   floydKern      Floyd–Warshall's step k on int32 distances
#include <cstdint>

extern "C" __global__ void heatKern(int width, int height, int depth, float rate, const float* in, float* out) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    const int plane = width * height;
    const bool edge = x == 0 || y == 0 || x == width - 1 || y == height - 1;
    float below, here = in[y * width + x], above = in[plane + y * width + x];
    out[y * width + x] = here;
    for (int z = 1; z < depth - 1; ++z) {
        const int i = z * plane + y * width + x;
        below = here, here = above, above = in[i + plane];
        out[i] = edge ? here
                      : here + rate * (in[i - 1] + in[i + 1] + in[i - width] + in[i + width] + below + above - 6.0f * here);
    }
    out[(depth - 1) * plane + y * width + x] = above;
}

extern "C" __global__ void lifeKern(uint32_t width, uint32_t height, const uint8_t* in, uint8_t* out) {
    __shared__ uint8_t tile[10][34];
    for (uint32_t i = threadIdx.y * blockDim.x + threadIdx.x; i < 340; i += blockDim.x * blockDim.y) {
        const uint32_t x = (blockIdx.x * 32 + i % 34 + width - 1) % width, y = (blockIdx.y * 8 + i / 34 + height - 1) % height;
        tile[i / 34][i % 34] = in[y * width + x];
    }
    __syncthreads();
    const uint32_t x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 8 + threadIdx.y;
    if (x >= width || y >= height) return;
    uint32_t neighbours = 0;
    for (uint32_t j = 0; j < 3; ++j) {
        for (uint32_t i = 0; i < 3; ++i) neighbours += tile[threadIdx.y + j][threadIdx.x + i];
    }
    const uint8_t alive = tile[threadIdx.y + 1][threadIdx.x + 1];
    out[y * width + x] = neighbours == 3 || (alive && neighbours == 4);
}

extern "C" __global__ void mandelbrotKern(uint32_t width, uint32_t height, double2 low, double2 step, int julia, double2 c,
                                          uint32_t limit, uint32_t* out) {
    const uint32_t x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    double a = low.x + x * step.x, b = low.y + y * step.y;
    if (!julia) c = make_double2(a, b);
    uint32_t count = 0;
    while (count < limit && a * a + b * b <= 4.0) {
        const double next = a * a - b * b + c.x;
        b = 2 * a * b + c.y;
        a = next;
        ++count;
    }
    out[y * width + x] = count;
}

extern "C" __global__ void waveKern(uint32_t n, double courant2, const double* before, const double* now, double* next) {
    extern __shared__ double tile[];
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) tile[threadIdx.x + 1] = now[i];
    if (threadIdx.x == 0) tile[0] = now[(i + n - 1) % n];
    if (threadIdx.x == blockDim.x - 1 || i == n - 1) tile[threadIdx.x + 2] = now[(i + 1) % n];
    __syncthreads();
    if (i >= n) return;
    const double here = tile[threadIdx.x + 1];
    next[i] = 2 * here - before[i] + courant2 * (tile[threadIdx.x] - 2 * here + tile[threadIdx.x + 2]);
}

extern "C" __global__ void floydKern(uint32_t n, uint32_t k, int32_t* distance) {
    const uint32_t x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
    if (x >= n) return;
    const int32_t through = distance[y * n + k] + distance[k * n + x];
    if (x != k && y != k) distance[y * n + x] = min(distance[y * n + x], through);
}
