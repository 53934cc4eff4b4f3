#!/usr/bin/env bash
# CuTe DSL cannot write the object file of what it compiled, on a machine with no GPU, unless its runtime library is in the process.
#
# One would think: an object file leaves the names that it calls to whoever links it. Compiling for a target needs no GPU, so neither
#   does dump_to_object.
# Seen (nvidia-cutlass-dsl 4.8.1, no GPU): cute.compile for sm_80 and sm_90a gives PTX, and dump_to_object of the result raises a
#   DSLRuntimeError, "This is a bug in the DSL, not a mistake in your kernel": it links the host function for this process first, where
#   cudaLaunchKernelEx and others are not found. After the package's own shared libraries were loaded with RTLD_GLOBAL it writes the ELF.
# So: they are loaded like that before a host function is taken from CuTe DSL.
# Source: base_dsl/jit_executor.py of the package, whose export_to_c also begins with dump_to_object; neither says so.
#
# Needs Python 3.11 to 3.13 and pip on x86-64 Linux. Fails when what is seen changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nvidia-cutlass-dsl==4.8.1
cat >"$folder/kernel.py" <<'PYTHON'
import ctypes
import re

import cutlass
from cutlass import cute
from cutlass.cutlass_dsl import CuTeDSL


@cute.kernel
def fill_kernel(y: cute.Tensor):
    t, _, _ = cute.arch.thread_idx()
    y[t] = cutlass.Float32(1)


@cute.jit
def fill(y: cute.Tensor):
    fill_kernel(y).launch(grid=[1, 1, 1], block=[32, 1, 1])


def written(target):
    example = cute.runtime.make_fake_compact_tensor(cutlass.Float32, (32,), assumed_align=16)
    made = cute.compile(fill, example, options=f"--keep-ptx --gpu-arch={target}")
    found = re.search(r"\.target (\S+)", made.artifacts.PTX)[1]
    try:
        return found, made.dump_to_object("fill")[:4]
    except Exception as error:
        return found, type(error).__name__


seen = [written("sm_80"), written("sm_90a")]
for library in CuTeDSL._get_dsl().get_shared_libs():
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
seen += [written("sm_80"), written("sm_90a")]
print(*seen, sep="\n")
assert seen == [
    ("sm_80", "DSLRuntimeError"),
    ("sm_90a", "DSLRuntimeError"),
    ("sm_80", b"\x7fELF"),
    ("sm_90a", b"\x7fELF"),
]
PYTHON
cd "$folder" && venv/bin/python kernel.py
