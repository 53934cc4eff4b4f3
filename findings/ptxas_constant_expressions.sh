#!/usr/bin/env bash
# In constant expressions of PTX `%` is unsigned whatever its operands are, and `?:` keeps the type of the operand that it picks.
#
# One would think: `-7 % 3` is -1, as in C and as `rem.s64` gives, while `-7 / 3` is -2; and `1 ? -1 : 1U` is unsigned, as in C, so
#   that shifting it right gives 0x7fff....
# Seen (ptxas 13.0.88 and 13.5.37, for sm_90): `-7 / 3` is -2 but `-7 % 3` is 0 and `8 % -3` is 8; what `%` gives is unsigned, so that
#   `(8 % 3) - 9 < 0` is 0. `(1 ? -1 : 1U) >> 1` is -1. `~0 < 0` is 0, since `~` gives an unsigned number too, but `(-1 & -1) < 0` is 1.
#   None of them is refused or warned about.
# So: the emulated device types constants as ptxas does (tests/devices/emulator/ptx/test_parser.py).
# Source: PTX ISA, "Constant expressions", against "rem" for .s64.
#
# Needs Python with venv and pip on x86-64 Linux; no GPU and no driver. Fails when what is seen changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > constants.ptx <<'PTX'
.version 8.0
.target sm_90
.address_size 64
.visible .global .align 8 .s64 values[9] = {
  -7 / 3, -7 % 3, 8 % -3, (8 % 3) - 9 < 0, (1 ? -1 : 1U) >> 1, ~0 < 0, (-1 & -1) < 0, -1 < 3, -1 < 3U
};
PTX
expected='-2 0 8 0 -1 0 1 1 0'

for version in 13.0.88 13.5.37; do
  python3 -m venv "$version" > /dev/null
  "$version/bin/pip" install --quiet --disable-pip-version-check --no-deps "nvidia-cuda-nvcc==$version" 2> /dev/null
  "$(find "$version" -name ptxas -type f)" -arch=sm_90 constants.ptx -o "$version.cubin"
  # The variable is all there is in the section of initialised global memory.
  seen=$(python3 - "$version.cubin" <<'PYTHON'
import struct
import sys

data = open(sys.argv[1], "rb").read()
(table,) = struct.unpack_from("<Q", data, 40)
count, strings = struct.unpack_from("<HH", data, 60)
sections = [struct.unpack_from("<IIQQQQ", data, table + 64 * index) for index in range(count)]
names = data[sections[strings][4] :]
for name, _, _, _, offset, size in sections:
    if names[name : names.index(b"\0", name)] == b".nv.global.init":
        print(*struct.unpack_from(f"<{size // 8}q", data, offset))
PYTHON
  )
  echo "ptxas $version: $seen"
  [ "$seen" = "$expected" ]
done
