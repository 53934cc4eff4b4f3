// CUTLASS's GEMM of single-precision complex numbers: D = alpha A B + beta C, all in rows.
//
// complex_gemm.ptx was made of this with NVRTC 13.0, and the headers of CUTLASS 4.2 and CCCL 13.0 (nvidia-cutlass 4.2.0.0 and
// nvidia-cuda-cccl 13.0.85 on PyPI; INCLUDE and CCCL are their folders of headers):
//
//     kaasctl compile complex_gemm.cu --option=-IINCLUDE --option=-ICCCL --option=-ICCCL/cccl
//         --option=-std=c++17 --option=-default-device
//
// CUTLASS is under the BSD 3-clause licence, CCCL under Apache 2.0 with LLVM exceptions.

#include <cutlass/complex.h>
#include <cutlass/gemm/device/gemm.h>

using Complex = cutlass::complex<float>;
using Row = cutlass::layout::RowMajor;
using Gemm =
    cutlass::gemm::device::Gemm<Complex, Row, Complex, Row, Complex, Row, Complex, cutlass::arch::OpClassSimt, cutlass::arch::Sm50>;
using Kernel = Gemm::GemmKernel;

struct Launch {
    int grid[3], block, shared_bytes;
};

// What CUTLASS's host code does: fill in the kernel's parameters, with whatever stands for addresses, and how it is launched.
extern "C" __global__ void describe(int m, int n, int k, float2 alpha, float2 beta, Complex *a, Complex *b, Complex *c, Complex *d,
                                    Kernel::Params *params, Launch *launch)
{
    cutlass::gemm::GemmCoord size(m, n, k);
    typename Gemm::ThreadblockSwizzle swizzle;
    auto tiles = swizzle.get_tiled_shape(
        size, {Gemm::ThreadblockShape::kM, Gemm::ThreadblockShape::kN, Gemm::ThreadblockShape::kK}, 1);
    new (params) Kernel::Params(size, tiles, {a, k}, {b, n}, {c, n}, {d, n}, {{alpha.x, alpha.y}, {beta.x, beta.y}});
    int log_tile = swizzle.get_log_tile(tiles), tile = 1 << log_tile;
    *launch = {{tiles.m() * tile, (tiles.n() + tile - 1) / tile, tiles.k()}, Kernel::kThreadCount, int(sizeof(Kernel::SharedStorage))};
}

extern "C" __global__ void __launch_bounds__(Kernel::kThreadCount) cgemm(Kernel::Params params)
{
    extern __shared__ __align__(16) char shared[];
    Kernel()(params, *reinterpret_cast<Kernel::SharedStorage *>(shared));
}
