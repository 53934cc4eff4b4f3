// One wgmma of each kind: see test_warpgroup.py. The factors come as images of shared memory, with what their descriptors say of
// them beside the address; each thread's accumulators are read from d and written back.

#include <cstdint>

#define LIST8(p, o) p(o), p(o + 1), p(o + 2), p(o + 3), p(o + 4), p(o + 5), p(o + 6), p(o + 7)
#define INOUT_F(i) "+f"(d[i])
#define INOUT_R(i) "+r"(d[i])
#define D32                                                                                                                     \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "  \
  "%26, %27, %28, %29, %30, %31}"
#define D16 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"

__device__ __forceinline__ uint64_t bring(unsigned char *to, const unsigned char *from, uint64_t form) {
  for (unsigned i = threadIdx.x; i < 8192; i += blockDim.x) to[i] = from[i];
  return form | ((__cvta_generic_to_shared(to) & 0x3ffff) >> 4);
}

#define BEGIN(T, COUNT)                                                                                                         \
  __shared__ alignas(1024) unsigned char left[8192], right[8192];                                                               \
  uint64_t a = bring(left, in_a, form_a), b = bring(right, in_b, form_b);                                                       \
  T d[COUNT];                                                                                                                   \
  for (int i = 0; i < COUNT; ++i) d[i] = out[COUNT * threadIdx.x + i];                                                          \
  asm volatile("fence.proxy.async.shared::cta;");                                                                               \
  __syncthreads();                                                                                                              \
  asm volatile("wgmma.fence.sync.aligned;");
#define END(COUNT)                                                                                                              \
  asm volatile("wgmma.commit_group.sync.aligned;");                                                                             \
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");                                                                \
  for (int i = 0; i < COUNT; ++i) out[COUNT * threadIdx.x + i] = d[i];
#define PARAMETERS(T)                                                                                                           \
  const unsigned char *in_a, const unsigned char *in_b, uint64_t form_a, uint64_t form_b, unsigned adds, T *out

#define KERNEL32(NAME, T, INOUT, WORDS, REST)                                                                                   \
  extern "C" __global__ void __launch_bounds__(128) NAME(PARAMETERS(T)) {                                                       \
    BEGIN(T, 32)                                                                                                                \
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %34, 0; wgmma.mma_async.sync.aligned." WORDS " " D32 ", %32, %33, p" REST "; }" \
                 : LIST8(INOUT, 0), LIST8(INOUT, 8), LIST8(INOUT, 16), LIST8(INOUT, 24)                                         \
                 : "l"(a), "l"(b), "r"(adds));                                                                                  \
    END(32)                                                                                                                     \
  }

KERNEL32(halfKern00, float, INOUT_F, "m64n64k16.f32.f16.f16", ", 1, 1, 0, 0")
KERNEL32(halfKern01, float, INOUT_F, "m64n64k16.f32.f16.f16", ", 1, 1, 0, 1")
KERNEL32(halfKern10, float, INOUT_F, "m64n64k16.f32.f16.f16", ", 1, 1, 1, 0")
KERNEL32(halfKern11, float, INOUT_F, "m64n64k16.f32.f16.f16", ", 1, 1, 1, 1")
KERNEL32(negatedKern, float, INOUT_F, "m64n64k16.f32.f16.f16", ", -1, 1, 0, 0")
KERNEL32(bfloatKern, float, INOUT_F, "m64n64k16.f32.bf16.bf16", ", 1, -1, 0, 0")
KERNEL32(tf32Kern, float, INOUT_F, "m64n64k8.f32.tf32.tf32", ", 1, 1")
KERNEL32(fp8Kern, float, INOUT_F, "m64n64k32.f32.e4m3.e5m2", ", 1, 1")
KERNEL32(byteKern, unsigned, INOUT_R, "m64n64k32.s32.s8.u8", "")
KERNEL32(saturatedKern, unsigned, INOUT_R, "m64n64k32.satfinite.s32.s8.s8", "")

// The sums are f16, two in each register.
extern "C" __global__ void __launch_bounds__(128) narrowKern(PARAMETERS(unsigned)) {
  BEGIN(unsigned, 16)
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %18, 0;\n wgmma.mma_async.sync.aligned.m64n64k16.f16.f16.f16 " D16
               ", %16, %17, p, 1, 1, 0, 0; }"
               : LIST8(INOUT_R, 0), LIST8(INOUT_R, 8)
               : "l"(a), "l"(b), "r"(adds));
  END(16)
}

// The left factor comes in registers: four of each thread, from in_a.
extern "C" __global__ void __launch_bounds__(128) registersKern(PARAMETERS(float)) {
  const unsigned *held = reinterpret_cast<const unsigned *>(in_a) + 4 * threadIdx.x;
  unsigned x = held[0], y = held[1], z = held[2], w = held[3];
  BEGIN(float, 32)
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " D32
               ", {%32, %33, %34, %35}, %36, p, -1, 1, 0; }"
               : LIST8(INOUT_F, 0), LIST8(INOUT_F, 8), LIST8(INOUT_F, 16), LIST8(INOUT_F, 24)
               : "r"(x), "r"(y), "r"(z), "r"(w), "l"(b), "r"(adds));
  END(32)
}
