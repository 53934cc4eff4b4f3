#!/usr/bin/env bash
# ptxas 13.0.88 takes a constant position or length of a bit field modulo 32, where PTX clamps it; in a register it is clamped.
#
# One would think: `bfi.b32` and `bfe.s32` give the same whether position and length are constants or come from registers: both count up to
#   255, and what reaches past bit 31 ends there.
# Seen (ptxas 13.0.88 for sm_90, PTX 8.0): `bfi.b32 d, a, b, 4, 40` inserts 8 bits (40 modulo 32) with the mask 0xff0 instead of all that
#   are left, 0xfffffff0; `bfe.s32 d, a, 40, 4` does not even read a, and stores -1 for every a, where the sign of a is right.
# Seen (ptxas 13.5.37): the mask is 0xfffffff0, and the extracted field is a's sign, shifted by 31.
# So: a GPU behind a 13.0 driver gives other results for constants than for the same numbers in registers; the emulated device follows
#   PTX, and comparisons leave such constants out (tests/fuzz/README.md).
# Source: PTX ISA, "bfe" and "bfi": the pseudocode's `min(pos + len - 1, msb)` and `i < len && pos + i <= msb`.
#
# Needs Python with venv and pip on x86-64 Linux; no GPU and no driver. Fails when what is seen changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

# Writes the PTX of a kernel that stores the result of one instruction on two loaded registers.
kernel() {
  cat > "$1.ptx" <<PTX
.version 8.0
.target sm_90
.address_size 64
.visible .entry $1(.param .u64 out, .param .u64 in)
{
  .reg .b32 r<5>;
  .reg .b64 d<2>;
  ld.param.u64 d0, [out];
  ld.param.u64 d1, [in];
  ld.global.b32 r1, [d1];
  ld.global.b32 r2, [d1+4];
  $2
  st.global.b32 [d0], r3;
  ret;
}
PTX
}
kernel insert 'bfi.b32 r3, r1, r2, 4, 40;'
kernel extract 'bfe.s32 r3, r1, 40, 4;'

for version in 13.0.88 13.5.37; do
  python3 -m venv "$version" > /dev/null
  "$version/bin/pip" install --quiet --disable-pip-version-check --no-deps "nvidia-cuda-nvcc==$version" "nvidia-cuda-nvdisasm==13.5.37" 2> /dev/null
  bin=$(dirname "$(find "$version" -name ptxas -type f)")
  for name in insert extract; do
    "$bin/ptxas" -arch=sm_90 "$name.ptx" -o "$name.cubin"
    "$bin/nvdisasm" -c "$name.cubin" > "$name.$version.sass"
  done
  echo "ptxas $version: insert masks with $(grep -Eo '0x(ff0|fffffff0)' "insert.$version.sass"); extract loads its operand" \
    "$(grep -c LDG "extract.$version.sass" || true) times"
done

grep -q ' 0xff0,' insert.13.0.88.sass
grep -q ' 0xfffffff0,' insert.13.5.37.sass
grep -q '0xffffffff' extract.13.0.88.sass
! grep -q LDG extract.13.0.88.sass
grep -q LDG extract.13.5.37.sass
