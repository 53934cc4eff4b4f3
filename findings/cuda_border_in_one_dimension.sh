#!/usr/bin/env bash
# A one-dimensional texture with a border and a linear filter gives half of what it holds.
#
# One would think: cudaAddressModeBorder mixes the border's zeros in only where a sample lies between the last texel and the outside, in
#   one dimension as in two.
# Seen (driver 580.159 (CUDA 13.0), H200, cuda-bindings 13.0.3): tex.1d in the middle of a texel of a CUDA array without height, which the
#   manual's formula gives whole, comes back halved with the address mode border, and whole with clamp. tex.2d on the same texels as one
#   row of two dimensions, at y = 0.5, gives them whole with border too.
# So: filtered textures with a border have at least two dimensions.
# Source: CUDA C++ Programming Guide, texture fetching, linear filtering: tex(x) = (1 - a) T[i] + a T[i + 1].
#
# Needs an NVIDIA driver with a GPU, Python 3.12 and pip on x86-64 Linux. Fails when what is seen changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/site" cuda-bindings==13.0.3 cuda-pathfinder==1.3.2
PYTHONPATH="$folder/site" python3 - <<'PYTHON'
import ctypes

from cuda.bindings import driver

PTX = b"""
.version 8.0
.target sm_70
.address_size 64
.visible .entry one(.param .u64 texture, .param .u64 to)
{
    .reg .b64 %t, %to; .reg .f32 %x, %a, %b, %c, %d; .reg .b32 %i; .reg .b64 %o;
    ld.param.u64 %t, [texture]; ld.param.u64 %to, [to];
    mov.u32 %i, %tid.x; cvt.rn.f32.u32 %x, %i; add.f32 %x, %x, 0f3F000000;
    tex.1d.v4.f32.f32 {%a, %b, %c, %d}, [%t, {%x}];
    mul.wide.u32 %o, %i, 4; add.u64 %to, %to, %o; st.global.f32 [%to], %a;
    ret;
}
.visible .entry two(.param .u64 texture, .param .u64 to)
{
    .reg .b64 %t, %to; .reg .f32 %x, %y, %a, %b, %c, %d; .reg .b32 %i; .reg .b64 %o;
    ld.param.u64 %t, [texture]; ld.param.u64 %to, [to];
    mov.u32 %i, %tid.x; cvt.rn.f32.u32 %x, %i; add.f32 %x, %x, 0f3F000000; mov.f32 %y, 0f3F000000;
    tex.2d.v4.f32.f32 {%a, %b, %c, %d}, [%t, {%x, %y}];
    mul.wide.u32 %o, %i, 4; add.u64 %to, %to, %o; st.global.f32 [%to], %a;
    ret;
}
\0"""
N = 8
HELD = (ctypes.c_float * N)(*range(1, N + 1))
MODE = driver.CUaddress_mode


def check(answer):
    status, *values = answer
    if status:
        raise RuntimeError(status.name)
    return values[0] if len(values) == 1 else values


check(driver.cuInit(0))
check(driver.cuCtxSetCurrent(check(driver.cuDevicePrimaryCtxRetain(check(driver.cuDeviceGet(0))))))
module = check(driver.cuModuleLoadData(PTX))
target = check(driver.cuMemAlloc(4 * N))


def sampled(name, height, mode):
    made = driver.CUDA_ARRAY_DESCRIPTOR()
    made.Width, made.Height, made.NumChannels, made.Format = N, height, 1, driver.CUarray_format.CU_AD_FORMAT_FLOAT
    array = check(driver.cuArrayCreate(made))
    copy = driver.CUDA_MEMCPY2D()
    copy.srcMemoryType, copy.srcHost = driver.CUmemorytype.CU_MEMORYTYPE_HOST, ctypes.addressof(HELD)
    copy.dstMemoryType, copy.dstArray = driver.CUmemorytype.CU_MEMORYTYPE_ARRAY, array
    copy.WidthInBytes, copy.Height = 4 * N, 1
    check(driver.cuMemcpy2D(copy))
    what = driver.CUDA_RESOURCE_DESC()
    what.resType = driver.CUresourcetype.CU_RESOURCE_TYPE_ARRAY
    what.res.array.hArray = array
    how = driver.CUDA_TEXTURE_DESC()
    how.addressMode, how.filterMode = [mode] * 3, driver.CUfilter_mode.CU_TR_FILTER_MODE_LINEAR
    texture = check(driver.cuTexObjectCreate(what, how, None))
    parameters = (ctypes.c_uint64 * 2)(int(texture), int(target))
    pointers = (ctypes.c_void_p * 2)(*(ctypes.addressof(parameters) + 8 * i for i in range(2)))
    kernel = check(driver.cuModuleGetFunction(module, name.encode()))
    check(driver.cuLaunchKernel(kernel, 1, 1, 1, N, 1, 1, 0, 0, ctypes.addressof(pointers), 0))
    found = (ctypes.c_float * N)()
    check(driver.cuMemcpyDtoH(ctypes.addressof(found), target, 4 * N))
    print(f"{name} dimension{'s' * (name == 'two')}, {mode.name}: {list(found)}", flush=True)
    return list(found)


whole = list(HELD)
assert sampled("one", 0, MODE.CU_TR_ADDRESS_MODE_CLAMP) == whole
assert sampled("one", 0, MODE.CU_TR_ADDRESS_MODE_BORDER) == [each / 2 for each in whole]
assert sampled("two", 1, MODE.CU_TR_ADDRESS_MODE_BORDER) == whole
PYTHON
