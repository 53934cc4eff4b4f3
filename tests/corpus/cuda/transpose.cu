// Transposes, through a padded tile in shared memory, of elements of 1, 4, 8 and 16 bytes.
//
//   transpose1Kern, transpose4Kern, transpose8Kern, transpose16Kern   in: [height][width], out: [width][height]
//   permuteKern   out[k][i][j] = in[i][j][k], elements of three floats as a structure
//
// Block 32 x 8.
#include <cstdint>

template <typename T>
__device__ void transpose(uint32_t width, uint32_t height, const T* in, T* out) {
    __shared__ T tile[32][33];
    uint32_t x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
    for (uint32_t j = 0; j < 32; j += 8) {
        if (x < width && y + j < height) tile[threadIdx.y + j][threadIdx.x] = in[(y + j) * width + x];
    }
    __syncthreads();
    x = blockIdx.y * 32 + threadIdx.x, y = blockIdx.x * 32 + threadIdx.y;
    for (uint32_t j = 0; j < 32; j += 8) {
        if (x < height && y + j < width) out[(y + j) * height + x] = tile[threadIdx.x][threadIdx.y + j];
    }
}

#define TRANSPOSE(bytes, type)                                                                                              \
    extern "C" __global__ void transpose##bytes##Kern(uint32_t width, uint32_t height, const type* in, type* out) {         \
        transpose<type>(width, height, in, out);                                                                            \
    }

TRANSPOSE(1, uint8_t)
TRANSPOSE(4, float)
TRANSPOSE(8, double)
TRANSPOSE(16, int4)

struct Vector {
    float x, y, z;
};

extern "C" __global__ void permuteKern(dim3 shape, const Vector* in, Vector* out) {
    const uint32_t k = blockIdx.x * blockDim.x + threadIdx.x, j = blockIdx.y * blockDim.y + threadIdx.y, i = blockIdx.z;
    if (k < shape.z && j < shape.y) out[(k * shape.x + i) * shape.y + j] = in[(i * shape.y + j) * shape.z + k];
}
