#!/usr/bin/env bash
# cuMemAllocAsync takes all memory that is free before it fails, and what it took stays with the pool.
#
# One would think: an allocation that is larger than the whole GPU is refused at once and changes nothing.
# Seen (driver 580.159 (CUDA 13.0), H200, cuda-bindings 13.0.3): with a release threshold, of a GPU of 150.1 GB with 149.6 GB free, one for
#   150.1 GB takes 0.1 to 0.5 s to fail with CUDA_ERROR_OUT_OF_MEMORY. Afterwards the pool has all that was free, in spite of the error, and
#   cuMemGetInfo, which is the same for every process, says that some MB are left. Trimming the pool takes 0.15 to 0.8 s more. One for
#   2^50 bytes fails at once and takes nothing.
# So: what is free is asked first (7 us), and a pool is trimmed after a failure.
# Source: CUDA C++ Programming Guide, stream ordered memory allocator; the failure's side effect is not among what it says.
#
# Needs an NVIDIA driver with a GPU that nobody else uses, Python 3.12 and pip on x86-64 Linux. Fails when what is seen changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/site" cuda-bindings==13.0.3 cuda-pathfinder==1.3.2
PYTHONPATH="$folder/site" python3 - <<'PYTHON'
import time

from cuda.bindings import driver

ATTRIBUTE = driver.CUmemPool_attribute


def check(answer):
    status, *values = answer
    if status:
        raise RuntimeError(status.name)
    return values[0] if len(values) == 1 else values


check(driver.cuInit(0))
device = check(driver.cuDeviceGet(0))
check(driver.cuCtxSetCurrent(check(driver.cuDevicePrimaryCtxRetain(device))))
pool = check(driver.cuDeviceGetDefaultMemPool(device))
check(driver.cuMemPoolSetAttribute(pool, ATTRIBUTE.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, driver.cuuint64_t(2**64 - 1)))
stream = check(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
free, total = check(driver.cuMemGetInfo())


def after_asking_for(size):
    begun = time.monotonic()
    status = driver.cuMemAllocAsync(size, stream)[0]
    took = time.monotonic() - begun
    check(driver.cuStreamSynchronize(stream))
    left, _ = check(driver.cuMemGetInfo())
    kept = int(check(driver.cuMemPoolGetAttribute(pool, ATTRIBUTE.CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)))
    print(f"{size} bytes of {total}, {free} free: {status.name} in {took:.3f} s; the pool has {kept}, {left} are free", flush=True)
    check(driver.cuMemPoolTrimTo(pool, 0))
    return status.name, kept, left


assert after_asking_for(1 << 50) == ("CUDA_ERROR_OUT_OF_MEMORY", 0, free)
status, kept, left = after_asking_for(total)
assert status == "CUDA_ERROR_OUT_OF_MEMORY" and kept > 0.95 * free and left < 0.05 * free
PYTHON
