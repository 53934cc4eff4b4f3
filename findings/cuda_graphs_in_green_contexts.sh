#!/usr/bin/env bash
# A CUDA graph that is launched into a stream of a green context runs on all multiprocessors of the GPU.
#
# One would think: a green context is a set of multiprocessors, its streams keep what is launched into them to these, and so a graph too.
# Seen (driver 580.159 (CUDA 13.0), H200, cuda-bindings 13.0.3): kernels that are launched one by one keep to the 8 multiprocessors of
#   the green context. A graph of the same kernel runs on all 132, also where its node names the context beside a CUfunction, whichever
#   context that function is of. Only a node with a CUkernel (cuLibraryGetKernel) and the context keeps to them, in any stream.
# So: code is loaded as a CUlibrary, and nodes name CUkernel and context.
# Source: CUDA driver API, "Green Contexts" (work on a stream of a green context executes on its resources) and cuGraphAddKernelNode.
#
# Needs a GPU with green contexts and more than 16 multiprocessors, Python 3.12 and pip on x86-64 Linux. Fails when what is seen changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/site" cuda-bindings==13.0.3 cuda-pathfinder==1.3.2
PYTHONPATH="$folder/site" python3 - <<'PYTHON'
import ctypes
import struct

from cuda.bindings import driver

PTX = b"""
.version 8.0
.target sm_70
.address_size 64
.visible .entry where(.param .u64 out)
{
  .reg .b32 r<2>;
  .reg .b64 d<6>;
  .reg .pred p;
  ld.param.u64 d0, [out];
  mov.u64 d1, %globaltimer;
WAIT:
  mov.u64 d2, %globaltimer;
  sub.u64 d3, d2, d1;
  setp.lt.u64 p, d3, 50000;
  @p bra WAIT;
  mov.u32 r0, %smid;
  mov.u32 r1, %ctaid.x;
  mul.wide.u32 d4, r1, 4;
  add.u64 d5, d0, d4;
  st.global.u32 [d5], r0;
  ret;
}
\0"""
BLOCKS = 1024


def check(answer):
    status, *values = answer
    if status:
        raise RuntimeError(status.name)
    return values[0] if len(values) == 1 else values


check(driver.cuInit(0))
device = check(driver.cuDeviceGet(0))
primary = check(driver.cuDevicePrimaryCtxRetain(device))
check(driver.cuCtxSetCurrent(primary))
whole = check(driver.cuDeviceGetDevResource(device, driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM))
groups, _, _ = check(driver.cuDevSmResourceSplitByCount(2, whole, 0, 8))
description = check(driver.cuDevResourceGenerateDesc(groups[:1], 1))
green = check(driver.cuGreenCtxCreate(description, device, driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM))
context = check(driver.cuCtxFromGreenCtx(green))
stream = check(driver.cuGreenCtxStreamCreate(green, driver.CUstream_flags.CU_STREAM_NON_BLOCKING, 0))
library = check(driver.cuLibraryLoadData(PTX, [], [], 0, [], [], 0))
kernel = check(driver.cuLibraryGetKernel(library, b"where"))
function = check(driver.cuKernelGetFunction(kernel))
check(driver.cuCtxSetCurrent(context))
green_function = check(driver.cuKernelGetFunction(kernel))
check(driver.cuCtxSetCurrent(primary))
out = check(driver.cuMemAlloc(4 * BLOCKS))
value = ctypes.c_uint64(int(out))
parameters = (ctypes.c_void_p * 1)(ctypes.addressof(value))
host = ctypes.create_string_buffer(4 * BLOCKS)


def used():
    check(driver.cuStreamSynchronize(stream))
    check(driver.cuMemcpyDtoH(ctypes.addressof(host), out, 4 * BLOCKS))
    return len(set(struct.unpack(f"{BLOCKS}I", host.raw)))


def in_graph(**named):
    graph = check(driver.cuGraphCreate(0))
    node = driver.CUDA_KERNEL_NODE_PARAMS()
    for name, given in named.items():
        setattr(node, name, given)
    node.gridDimX, node.gridDimY, node.gridDimZ, node.blockDimX, node.blockDimY, node.blockDimZ = BLOCKS, 1, 1, 128, 1, 1
    node.sharedMemBytes, node.kernelParams = 0, ctypes.addressof(parameters)
    check(driver.cuGraphAddKernelNode(graph, [], 0, node))
    check(driver.cuGraphLaunch(check(driver.cuGraphInstantiate(graph, 0)), stream))
    return used()


check(driver.cuLaunchKernel(function, BLOCKS, 1, 1, 128, 1, 1, 0, stream, ctypes.addressof(parameters), 0))
seen = {
    "launched": used(),
    "graph, CUfunction": in_graph(func=function),
    "graph, CUfunction and context": in_graph(func=function, ctx=context),
    "graph, CUfunction of the context, and context": in_graph(func=green_function, ctx=context),
    "graph, CUkernel": in_graph(kern=kernel),
    "graph, CUkernel and context": in_graph(kern=kernel, ctx=context),
}
for name, number in seen.items():
    print(f"{name}: {number} of {whole.sm.smCount} multiprocessors, in a stream of a green context of {groups[0].sm.smCount}")
few, total = groups[0].sm.smCount, whole.sm.smCount
assert list(seen.values()) == [few, total, total, total, total, few]
PYTHON
