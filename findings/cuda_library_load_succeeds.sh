#!/usr/bin/env bash
# cuLibraryLoadData succeeds for PTX that the driver's compiler has refused.
#
# One would think: cuLibraryLoadData, which takes the options of cuModuleLoadDataEx, fails where that one does.
# Seen (driver 580.159 (CUDA 13.0), H200, cuda-bindings 13.0.3): for PTX with an unknown instruction cuModuleLoadDataEx returns
#   CUDA_ERROR_INVALID_PTX. cuLibraryLoadData returns CUDA_SUCCESS, though it has written the compiler's error into CU_JIT_ERROR_LOG_BUFFER.
# So: a library counts as loaded when its module was got, and what the compiler said of one is asked for by loading it as a module.
# Source: CUDA driver API, cuLibraryLoadData (CUDA_ERROR_INVALID_PTX is among its results).
#
# Needs an NVIDIA driver with a GPU, Python 3.12 and pip on x86-64 Linux. Fails when what is seen changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/site" cuda-bindings==13.0.3 cuda-pathfinder==1.3.2
PYTHONPATH="$folder/site" python3 - <<'PYTHON'
from cuda.bindings import driver

OPTION = driver.CUjit_option
PTX = b".version 8.0\n.target sm_70\n.address_size 64\n.visible .entry k() { foo; }\n\0"


def check(answer):
    status, *values = answer
    if status:
        raise RuntimeError(status.name)
    return values[0] if len(values) == 1 else values


def loaded(load):
    log = bytearray(4096)
    options = {OPTION.CU_JIT_ERROR_LOG_BUFFER: log, OPTION.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES: len(log)}
    status = load(list(options), list(options.values()), len(options))[0]
    return status.name, log.partition(b"\0")[0].decode().strip()


check(driver.cuInit(0))
check(driver.cuCtxSetCurrent(check(driver.cuDevicePrimaryCtxRetain(check(driver.cuDeviceGet(0))))))
module, module_log = loaded(lambda names, values, number: driver.cuModuleLoadDataEx(PTX, number, names, values))
library, library_log = loaded(lambda names, values, number: driver.cuLibraryLoadData(PTX, names, values, number, [], [], 0))
print(f"cuModuleLoadDataEx: {module}, log: {module_log!r}")
print(f"cuLibraryLoadData: {library}, log: {library_log!r}")
assert (module, library) == ("CUDA_ERROR_INVALID_PTX", "CUDA_SUCCESS")
assert "foo" in module_log and "foo" in library_log
PYTHON
