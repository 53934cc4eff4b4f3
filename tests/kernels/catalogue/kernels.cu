// The kernels of cuda_cases.py.
#include <cooperative_groups.h>
#include <cuda_fp16.h>

template <typename T>
__global__ void vector_add(const T *x, const T *y, T *z, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) z[i] = x[i] + y[i];
}

// The sum of what each block strides over.
extern "C" __global__ void sum_blocks(const unsigned *x, unsigned *sums, unsigned n)
{
    extern __shared__ unsigned part[];
    unsigned sum = 0;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    part[threadIdx.x] = sum;
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = part[0];
}

extern "C" __global__ void sum_warps(const int *x, int *total, int n)
{
    int sum = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffffu, sum, distance);
    if (threadIdx.x % 32 == 0) atomicAdd(total, sum);
}

// c[m][n] = a[m][k] b[k][n], added up in Sum.
template <typename Sum, int TILE>
__global__ void matmul(const float *a, const float *b, float *c, int m, int n, int k)
{
    __shared__ float of_a[TILE][TILE], of_b[TILE][TILE + 1];
    int row = blockIdx.y * TILE + threadIdx.y, column = blockIdx.x * TILE + threadIdx.x;
    Sum sum = 0;
    for (int start = 0; start < k; start += TILE) {
        int i = start + threadIdx.x, j = start + threadIdx.y;
        of_a[threadIdx.y][threadIdx.x] = row < m && i < k ? a[row * k + i] : 0;
        of_b[threadIdx.y][threadIdx.x] = j < k && column < n ? b[j * n + column] : 0;
        __syncthreads();
        for (int i = 0; i < TILE; ++i) sum += Sum(of_a[threadIdx.y][i]) * Sum(of_b[i][threadIdx.x]);
        __syncthreads();
    }
    if (row < m && column < n) c[row * n + column] = float(sum);
}

// One block a row, which it keeps in shared memory.
extern "C" __global__ void softmax(const float *x, float *y, int columns)
{
    extern __shared__ float row[];
    __shared__ float largest, sum;
    x += blockIdx.x * columns;
    y += blockIdx.x * columns;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) row[i] = x[i];
    __syncthreads();
    if (threadIdx.x < 32) {
        float most = row[0];
        for (int i = threadIdx.x; i < columns; i += 32) most = fmaxf(most, row[i]);
        for (int other = 16; other > 0; other /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, other));
        float all = 0;
        for (int i = threadIdx.x; i < columns; i += 32) all += expf(row[i] - most);
        for (int other = 16; other > 0; other /= 2) all += __shfl_xor_sync(0xffffffffu, all, other);
        if (threadIdx.x == 0) {
            largest = most;
            sum = all;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < columns; i += blockDim.x) y[i] = expf(row[i] - largest) / sum;
}

// One step of a plate whose edges keep their temperature.
extern "C" __global__ void heat(const float *t, float *next, int rows, int columns)
{
    __shared__ float tile[18][18];
    int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
    for (int i = threadIdx.y * 16 + threadIdx.x; i < 18 * 18; i += 256) {
        int y = min(max(int(blockIdx.y) * 16 + i / 18 - 1, 0), rows - 1);
        int x = min(max(int(blockIdx.x) * 16 + i % 18 - 1, 0), columns - 1);
        tile[i / 18][i % 18] = t[y * columns + x];
    }
    __syncthreads();
    if (row >= rows || column >= columns) return;
    int y = threadIdx.y + 1, x = threadIdx.x + 1;
    bool edge = row == 0 || column == 0 || row == rows - 1 || column == columns - 1;
    float around = (tile[y - 1][x] + tile[y + 1][x]) + (tile[y][x - 1] + tile[y][x + 1]);
    next[row * columns + column] = edge ? tile[y][x] : tile[y][x] + 0.2f * (around - 4 * tile[y][x]);
}

extern "C" __global__ void transpose(const int *x, int *y, int columns, int rows)
{
    __shared__ int tile[32][33];
    int column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
    for (int i = 0; i < 32; i += 8)
        if (column < columns && row + i < rows) tile[threadIdx.y + i][threadIdx.x] = x[(row + i) * columns + column];
    __syncthreads();
    column = blockIdx.y * 32 + threadIdx.x;
    row = blockIdx.x * 32 + threadIdx.y;
    for (int i = 0; i < 32; i += 8)
        if (column < rows && row + i < columns) y[(row + i) * rows + column] = tile[threadIdx.x][threadIdx.y + i];
}

extern "C" __global__ void histogram(const unsigned char *x, unsigned *bins, int n, int number)
{
    extern __shared__ unsigned own[];
    for (int i = threadIdx.x; i < number; i += blockDim.x) own[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&own[x[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < number; i += blockDim.x) atomicAdd(&bins[i], own[i]);
}

extern "C" __global__ void scan(const int *x, int *y)
{
    extern __shared__ int kept[];
    int i = threadIdx.x, sum = x[blockIdx.x * blockDim.x + i];
    for (int distance = 1; distance < blockDim.x; distance *= 2) {
        kept[i] = sum;
        __syncthreads();
        if (i >= distance) sum += kept[i - distance];
        __syncthreads();
    }
    y[blockIdx.x * blockDim.x + i] = sum;
}

struct View {
    float *data;
    int shape[2];
    long long strides[2];

    __device__ float &at(int i, int j) const
    {
        return *reinterpret_cast<float *>(reinterpret_cast<char *>(data) + i * strides[0] + j * strides[1]);
    }
};

extern "C" __global__ void copy_view(View from, View to)
{
    int i = blockIdx.y * blockDim.y + threadIdx.y, j = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < from.shape[0] && j < from.shape[1]) to.at(i, j) = from.at(i, j);
}

struct Settings {
    double g;
    float softening;
    int count;
};

extern "C" __global__ void gravity(Settings settings, const float4 *bodies, float3 *acceleration)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= settings.count) return;
    float4 own = bodies[i];
    float3 sum = {0, 0, 0};
    for (int j = 0; j < settings.count; ++j) {
        float4 other = bodies[j];
        float x = other.x - own.x, y = other.y - own.y, z = other.z - own.z;
        float inverse = rsqrtf(x * x + y * y + z * z + settings.softening);
        float weight = other.w * inverse * inverse * inverse;
        sum.x += weight * x;
        sum.y += weight * y;
        sum.z += weight * z;
    }
    acceleration[i] = {float(settings.g * sum.x), float(settings.g * sum.y), float(settings.g * sum.z)};
}

struct Matrix {
    float rows[3][4];
};

extern "C" __global__ void move_points(Matrix matrix, float4 shift, float3 *points, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float3 p = points[i];
    float moved[3];
    for (int row = 0; row < 3; ++row) {
        const float *of = matrix.rows[row];
        moved[row] = of[0] * p.x + of[1] * p.y + of[2] * p.z + of[3];
    }
    points[i] = {moved[0] + shift.x, moved[1] + shift.y, moved[2] + shift.z};
}

// 256 bins, 64 in each block of a cluster of four.
extern "C" __global__ void cluster_histogram(const unsigned char *x, unsigned *bins, int n)
{
    namespace cg = cooperative_groups;
    extern __shared__ unsigned own[];
    cg::cluster_group cluster = cg::this_cluster();
    for (int i = threadIdx.x; i < 64; i += blockDim.x) own[i] = 0;
    cluster.sync();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(cluster.map_shared_rank(own, x[i] / 64) + x[i] % 64, 1u);
    cluster.sync();
    for (int i = threadIdx.x; i < 64; i += blockDim.x) atomicAdd(&bins[cluster.block_rank() * 64 + i], own[i]);
}

extern "C" __global__ void mandelbrot(const double2 *c, int *counts, int width, int height, int most)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    double2 at = c[y * width + x];
    double real = 0, imaginary = 0;
    int count = 0;
    // Each product rounded, as NumPy does.
    while (count < most && __dadd_rn(__dmul_rn(real, real), __dmul_rn(imaginary, imaginary)) <= 4) {
        double next = __dadd_rn(__dadd_rn(__dmul_rn(real, real), -__dmul_rn(imaginary, imaginary)), at.x);
        imaginary = __dadd_rn(__dadd_rn(__dmul_rn(real, imaginary), __dmul_rn(imaginary, real)), at.y);
        real = next;
        ++count;
    }
    counts[y * width + x] = count;
}

extern "C" __global__ void half_axpy(float a, const __half2 *x, __half2 *y, int pairs)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < pairs) y[i] = __hfma2(__float2half2_rn(a), x[i], y[i]);
}

extern "C" __global__ void bitonic_step(unsigned *x, unsigned size, unsigned distance)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x, other = i ^ distance;
    if (other <= i) return;
    bool rising = (i & size) == 0;
    unsigned a = x[i], b = x[other];
    if ((a > b) == rising) {
        x[i] = b;
        x[other] = a;
    }
}
