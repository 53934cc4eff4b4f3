// Products of matrices on tensor cores through inline PTX: C[m][n] = A[m][k] B[k][n], B given transposed as Bt[n][k].
// One warp computes 16 x 8 (halfKern 32 x 16) of C; sizes are multiples of the instruction's.
//
//   halfKern      m16n8k16 f16, sums in float32, tiles through shared memory and ldmatrix
//   halfSumsKern  m16n8k16 f16, sums in f16
//   bfloatKern    m16n8k16 bf16, sums in float32
//   tf32Kern      m16n8k8 tf32, sums in float32
//   doubleKern    m8n8k4 f64, 8 x 8 of C
//   int8Kern      m16n8k32 s8, sums in int32
//   uint8Kern     m16n8k32 u8 times s8, saturating
//   int4Kern      m16n8k64 s4
//   binaryKern    m16n8k256 b1, and with popcount
//   transKern     transposes 8 x 8 tiles of 16-bit elements by ldmatrix.trans
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

struct Place {
    uint32_t group, member;
};

__device__ Place place() { return {threadIdx.x / 4, threadIdx.x % 4}; }

// Store the 16 x 8 tile of accumulators that the m16n8 shapes share.
template <typename T>
__device__ void store(uint32_t n, T* c, const T (&sums)[4]) {
    const auto [group, member] = place();
    T* tile = c + blockIdx.y * 16 * n + blockIdx.x * 8;
    tile[group * n + 2 * member] = sums[0];
    tile[group * n + 2 * member + 1] = sums[1];
    tile[(group + 8) * n + 2 * member] = sums[2];
    tile[(group + 8) * n + 2 * member + 1] = sums[3];
}

// Load the fragments of a shape whose A is 16 rows and B 8 columns of `words` words: four words of A, two of B.
__device__ void load(uint32_t pitch, const uint32_t* a, const uint32_t* bt, uint32_t (&fa)[4], uint32_t (&fb)[2]) {
    const auto [group, member] = place();
    const uint32_t* a_tile = a + blockIdx.y * 16 * pitch;
    const uint32_t* b_tile = bt + blockIdx.x * 8 * pitch;
    fa[0] = a_tile[group * pitch + member];
    fa[1] = a_tile[(group + 8) * pitch + member];
    fa[2] = a_tile[group * pitch + member + 4];
    fa[3] = a_tile[(group + 8) * pitch + member + 4];
    fb[0] = b_tile[group * pitch + member];
    fb[1] = b_tile[group * pitch + member + 4];
}

#define MMA(form, kind, sums)                                                                                              \
    asm volatile("mma.sync.aligned." form " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"               \
                 : "+" kind(sums[0]), "+" kind(sums[1]), "+" kind(sums[2]), "+" kind(sums[3])                              \
                 : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]))

// `words` is the number of words of 4 bytes in a row of A.
#define PRODUCT(name, form, kind, type)                                                                                    \
    extern "C" __global__ void name(uint32_t n, uint32_t words, const uint32_t* a, const uint32_t* bt, type* c) {          \
        type sums[4] = {};                                                                                                 \
        for (uint32_t start = 0; start < words; start += 8) {                                                              \
            uint32_t fa[4], fb[2];                                                                                         \
            load(words, a + start, bt + start, fa, fb);                                                                    \
            MMA(form, kind, sums);                                                                                         \
        }                                                                                                                  \
        store(n, c, sums);                                                                                                 \
    }

PRODUCT(bfloatKern, "m16n8k16.row.col.f32.bf16.bf16.f32", "f", float)
PRODUCT(int8Kern, "m16n8k32.row.col.s32.s8.s8.s32", "r", int32_t)
PRODUCT(uint8Kern, "m16n8k32.row.col.satfinite.s32.u8.s8.s32", "r", int32_t)
PRODUCT(int4Kern, "m16n8k64.row.col.s32.s4.s4.s32", "r", int32_t)
PRODUCT(binaryKern, "m16n8k256.row.col.s32.b1.b1.s32.and.popc", "r", int32_t)

extern "C" __global__ void tf32Kern(uint32_t n, uint32_t k, const float* a, const float* bt, float* c) {
    const auto [group, member] = place();
    const float* a_tile = a + blockIdx.y * 16 * k;
    const float* b_tile = bt + blockIdx.x * 8 * k;
    float sums[4] = {};
    auto round = [](float x) {
        uint32_t bits;
        asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
        return bits;
    };
    for (uint32_t start = 0; start < k; start += 8) {
        const uint32_t fa[4] = {round(a_tile[group * k + start + member]), round(a_tile[(group + 8) * k + start + member]),
                                round(a_tile[group * k + start + member + 4]), round(a_tile[(group + 8) * k + start + member + 4])};
        const uint32_t fb[2] = {round(b_tile[group * k + start + member]), round(b_tile[group * k + start + member + 4])};
        MMA("m16n8k8.row.col.f32.tf32.tf32.f32", "f", sums);
    }
    store(n, c, sums);
}

extern "C" __global__ void halfSumsKern(uint32_t n, uint32_t words, const uint32_t* a, const uint32_t* bt, uint32_t* c) {
    const auto [group, member] = place();
    uint32_t sums[2] = {};
    for (uint32_t start = 0; start < words; start += 8) {
        uint32_t fa[4], fb[2];
        load(words, a + start, bt + start, fa, fb);
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
                     : "+r"(sums[0]), "+r"(sums[1])
                     : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
    }
    uint32_t* tile = c + blockIdx.y * 16 * n / 2 + blockIdx.x * 4;
    tile[group * n / 2 + member] = sums[0];
    tile[(group + 8) * n / 2 + member] = sums[1];
}

extern "C" __global__ void doubleKern(uint32_t n, uint32_t k, const double* a, const double* bt, double* c) {
    const auto [group, member] = place();
    double sums[2] = {};
    for (uint32_t start = 0; start < k; start += 4) {
        const double fa = a[(blockIdx.y * 8 + group) * k + start + member], fb = bt[(blockIdx.x * 8 + group) * k + start + member];
        asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                     : "+d"(sums[0]), "+d"(sums[1])
                     : "d"(fa), "d"(fb));
    }
    c[(blockIdx.y * 8 + group) * n + blockIdx.x * 8 + 2 * member] = sums[0];
    c[(blockIdx.y * 8 + group) * n + blockIdx.x * 8 + 2 * member + 1] = sums[1];
}

extern "C" __global__ void halfKern(uint32_t n, uint32_t k, const __half* a, const __half* bt, float* c) {
    __shared__ __align__(16) __half a_tile[32][24], b_tile[16][24];  // rows of 48 bytes, so that no two of eight share banks
    const uint32_t warp = threadIdx.y, lane = threadIdx.x, thread = warp * 32 + lane;
    float sums[2][4] = {};
    for (uint32_t start = 0; start < k; start += 16) {
        if (thread < 64) {
            *(uint4*)&a_tile[thread / 2][thread % 2 * 8] =
                *(const uint4*)&a[(blockIdx.y * 32 + thread / 2) * k + start + thread % 2 * 8];
        }
        if (thread < 32) {
            *(uint4*)&b_tile[thread / 2][thread % 2 * 8] =
                *(const uint4*)&bt[(blockIdx.x * 16 + thread / 2) * k + start + thread % 2 * 8];
        }
        __syncthreads();
        uint32_t fa[4], b[4];
        const uint32_t a_address = __cvta_generic_to_shared(&a_tile[warp * 16 + lane % 16][lane / 16 * 8]);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                     : "r"(a_address));
        const uint32_t b_address = __cvta_generic_to_shared(&b_tile[lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8]);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                     : "r"(b_address));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t fb[2] = {b[2 * half], b[2 * half + 1]};
            MMA("m16n8k16.row.col.f32.f16.f16.f32", "f", sums[half]);
        }
        __syncthreads();
    }
    const auto [group, member] = place();
    for (int half = 0; half < 2; ++half) {
        float* tile = c + (blockIdx.y * 32 + warp * 16) * n + blockIdx.x * 16 + half * 8 + 2 * member;
        *(float2*)&tile[group * n] = make_float2(sums[half][0], sums[half][1]);
        *(float2*)&tile[(group + 8) * n] = make_float2(sums[half][2], sums[half][3]);
    }
}

extern "C" __global__ void transKern(const uint16_t* in, uint32_t* out) {
    __shared__ __align__(16) uint16_t tile[2][8][8];
    const uint32_t lane = threadIdx.x;
    for (uint32_t i = lane; i < 128; i += 32) ((uint16_t*)tile)[i] = in[blockIdx.x * 128 + i];
    __syncwarp();
    uint32_t first, second;
    const uint32_t address = __cvta_generic_to_shared(&tile[lane / 8 % 2][lane % 8][0]);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(first), "=r"(second) : "r"(address));
    out[blockIdx.x * 64 + lane] = first;
    out[blockIdx.x * 64 + 32 + lane] = second;
}
