#!/usr/bin/env bash
# CUDA_DEVICE_MAX_CONNECTIONS decides how long the driver takes to tell of a trap.
#
# One would think: the number of hardware queues is about which streams wait for each other; a fault is told as soon as it is there.
# Seen (driver 580.159 (CUDA 13.0), H200, cuda-bindings 13.0.3): with 32 queues a context takes three times as long to make as with 8, and
#   the call that waits for a kernel that traps comes back with CUDA_ERROR_LAUNCH_FAILED after some 3 s instead of 0.6 s.
# So: a process whose faults must be noticed soon has as few queues as its streams need, or does not wait for the driver's word.
# Source: CUDA C++ Programming Guide, environment variables, CUDA_DEVICE_MAX_CONNECTIONS.
#
# Needs an NVIDIA driver with a GPU, Python 3.12 and pip on x86-64 Linux. Fails when what is seen changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/site" cuda-bindings==13.0.3 cuda-pathfinder==1.3.2
cat >"$folder/trap.py" <<'PYTHON'
import time

from cuda.bindings import driver

PTX = b".version 8.0\n.target sm_70\n.address_size 64\n.visible .entry k() { trap; }\n\0"


def check(answer):
    status, *values = answer
    if status:
        raise RuntimeError(status.name)
    return values[0] if len(values) == 1 else values


check(driver.cuInit(0))
begun = time.monotonic()
check(driver.cuCtxSetCurrent(check(driver.cuDevicePrimaryCtxRetain(check(driver.cuDeviceGet(0))))))
context = time.monotonic() - begun
kernel = check(driver.cuModuleGetFunction(check(driver.cuModuleLoadData(PTX)), b"k"))
begun = time.monotonic()
check(driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0))
status = driver.cuCtxSynchronize()[0]
assert status == driver.CUresult.CUDA_ERROR_LAUNCH_FAILED, status
print(f"{context:.3f} {time.monotonic() - begun:.3f}", flush=True)
PYTHON
median() { # of three runs with so many queues: seconds until there is a context, and until the trap is told
	for _ in 1 2 3; do
		CUDA_DEVICE_MAX_CONNECTIONS=$1 PYTHONPATH="$folder/site" python3 "$folder/trap.py"
	done | sort -n -k "$2" | sed -n 2p
}
few=$(median 8 2)
many=$(median 32 2)
echo "8 queues: context and trap ${few/ / s, } s"
echo "32 queues: context and trap ${many/ / s, } s"
read -r few_context few_trap <<<"$few"
read -r many_context many_trap <<<"$many"
python3 -c "assert $many_trap > 2 * $few_trap and $many_context > 1.5 * $few_context"
