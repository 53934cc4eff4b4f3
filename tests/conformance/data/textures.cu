// Textures and surfaces by handle: what they give at places that are passed in.
#include <cuda_fp16.h>

// Reads of each geometry, at float places: four for each thread, in texels or normalised as the texture says.
extern "C" __global__ void sample1Kern(cudaTextureObject_t t, int n, const float4 *places, float4 *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = tex1D<float4>(t, places[i].x);
}

extern "C" __global__ void sample2Kern(cudaTextureObject_t t, int n, const float4 *places, float4 *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = tex2D<float4>(t, places[i].x, places[i].y);
}

extern "C" __global__ void sample3Kern(cudaTextureObject_t t, int n, const float4 *places, float4 *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = tex3D<float4>(t, places[i].x, places[i].y, places[i].z);
}

extern "C" __global__ void layered1Kern(cudaTextureObject_t t, int n, const float4 *places, float4 *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = tex1DLayered<float4>(t, places[i].x, (int)places[i].w);
}

extern "C" __global__ void layered2Kern(cudaTextureObject_t t, int n, const float4 *places, float4 *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = tex2DLayered<float4>(t, places[i].x, places[i].y, (int)places[i].w);
}

// A level and gradients of a texture of one level.
extern "C" __global__ void levelsKern(cudaTextureObject_t t, int n, const float4 *places, float4 *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float4 a = tex2DLod<float4>(t, places[i].x, places[i].y, 0.0f);
        float4 b = tex2DGrad<float4>(t, places[i].x, places[i].y, make_float2(0.01f, 0), make_float2(0, 0.01f));
        out[i] = make_float4(a.x, a.y, b.x, b.y);
    }
}

extern "C" __global__ void gatherKern(cudaTextureObject_t t, int n, const float4 *places, float4 *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = tex2Dgather<float4>(t, places[i].x, places[i].y, 1);
}

// Elements as they are, extended to 32 bits.
extern "C" __global__ void signedKern(cudaTextureObject_t t, int width, int4 *out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
    if (x < width) out[y * width + x] = tex2D<int4>(t, x + 0.5f, y + 0.5f);
}

// Copies a surface, with 1 added to each byte; one that is as wide as a thread's element.
extern "C" __global__ void bytesKern(cudaSurfaceObject_t from, cudaSurfaceObject_t to, int width, int height) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
    if (x < width && y < height) {
        uchar4 v = surf2Dread<uchar4>(from, x * 4, y);
        surf2Dwrite(make_uchar4(v.x + 1, v.y + 1, v.z + 1, v.w + 1), to, x * 4, y);
    }
}

// Each boundary mode, at places around the surface: what is read of `s`, and then what writes leave in it.
extern "C" __global__ void edgesKern(cudaSurfaceObject_t s, int reach, float *read) {
    int x = threadIdx.x - reach, y = threadIdx.y - reach, i = threadIdx.y * blockDim.x + threadIdx.x;
    float clamped, zeroed;
    surf2Dread(&clamped, s, x * 4, y, cudaBoundaryModeClamp);
    surf2Dread(&zeroed, s, x * 4, y, cudaBoundaryModeZero);
    read[2 * i] = clamped;
    read[2 * i + 1] = zeroed;
    __syncthreads();
    surf2Dwrite(zeroed + 100, s, x * 4, y, cudaBoundaryModeZero);
}

extern "C" __global__ void beyondKern(cudaSurfaceObject_t s, int x) {
    surf1Dwrite(1.0f, s, x * 4, cudaBoundaryModeTrap);
}

// Fills surfaces of the other geometries with where their texels are.
extern "C" __global__ void fillKern(cudaSurfaceObject_t line, cudaSurfaceObject_t lines, cudaSurfaceObject_t images,
                                    cudaSurfaceObject_t volume, int width, int height, int depth) {
    int x = threadIdx.x, y = threadIdx.y, z = threadIdx.z;
    if (x >= width || y >= height || z >= depth) return;
    if (!y && !z) surf1Dwrite((short)(x + 7), line, x * 2);
    if (!y) surf1DLayeredwrite(make_uint2(x, z), lines, x * 8, z);
    surf2DLayeredwrite(make_float4(x, y, z, -1), images, x * 16, y, z);
    surf3Dwrite(__half_as_ushort(__float2half(x + 10 * y + 100 * z)), volume, x * 2, y, z);
}

// A step of heat through a texture that the launch before has written as a surface.
extern "C" __global__ void diffuseKern(cudaTextureObject_t from, cudaSurfaceObject_t to, int width, int height) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
    if (x < width && y < height) {
        float sum = tex2D<float>(from, x - 0.5f, y + 0.5f) + tex2D<float>(from, x + 1.5f, y + 0.5f) +
                    tex2D<float>(from, x + 0.5f, y - 0.5f) + tex2D<float>(from, x + 0.5f, y + 1.5f);
        surf2Dwrite(0.25f * sum, to, x * 4, y);
    }
}
