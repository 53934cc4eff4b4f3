#!/usr/bin/env bash
# Triton cannot give PTX of a version that its own ptxas does not know, also where nobody wants machine code.
#
# One would think: ptx_version= says which PTX triton.compile writes; whoever takes .asm["ptx"] for a newer driver may ask for what that takes.
# Seen (Triton 3.9.0, no GPU): for sm_90 ptx_version=94 gives PTX 9.4, and ptx_version=95 fails with a PTXASError, though its code
#   generator has written the text: compile always goes on to machine code, with a ptxas of its package that ends at 9.4.
# So: Triton's own version is taken first, and ptx_version is given only where a device takes no more than something older.
# Source: the options of Triton's NVIDIA backend, which have ptx_version and no bound for it.
#
# Needs Python 3.11 to 3.13 and pip on x86-64 Linux. Fails when what is seen changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/site" triton==3.9.0
cat >"$folder/kernel.py" <<'PYTHON'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def fill(y, value):
    tl.store(y + tl.arange(0, 32), value)


def version(**options):
    source = ASTSource(fill, {"y": "*fp32", "value": "fp32"}, {})
    try:
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    except Exception as error:
        return f"{type(error).__name__}: {re.search(r'Unsupported .version [0-9.]+', str(error))[0]}"
    return re.search(r"\.version (\S+)", made.asm["ptx"])[1]


seen = {str(asked): version(**({"ptx_version": asked} if asked else {})) for asked in (None, 94, 95)}
print(*(f"ptx_version={asked}: {got}" for asked, got in seen.items()), sep="\n")
assert seen == {"None": "9.4", "94": "9.4", "95": "PTXASError: Unsupported .version 9.5"}
PYTHON
TRITON_CACHE_DIR="$folder/cache" TRITON_DEFAULT_FP_FUSION=1 PYTHONPATH="$folder/site" python3 "$folder/kernel.py" | tail -n 3  # without the text that Triton prints
