#!/usr/bin/env bash
# ptxas 13.0.88 compiles `slct.s32.s32 d, a, b, c` wrongly where c is a constant whose bits would be a NaN as a float.
#
# One would think: `slct` with an .s32 selector gives a where c >= 0, and folding a constant c can only save the comparison.
# Seen (ptxas 13.0.88 for sm_90, PTX 8.0): with c = 0x7fffffff, the largest positive integer, b is selected, as `slct.f32` would for a
#   NaN; the instruction `11 if c >= 0 else 22` is compiled to a store of 22. With c in a register the code compares and is right.
# Seen (ptxas 13.5.37): the constant is folded as an integer, and 11 is stored.
# So: the emulated device and a GPU behind a 13.0 driver differ here; comparisons leave the form out (tests/fuzz/README.md).
# Source: PTX ISA, "slct": for .s32 selectors "if c >= 0, a is stored in d".
#
# Needs Python with venv and pip on x86-64 Linux; no GPU and no driver. Fails when what is seen changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > selects.ptx <<'PTX'
.version 8.0
.target sm_90
.address_size 64
.visible .entry selects(.param .u64 out)
{
  .reg .b32 r<2>;
  .reg .b64 d<1>;
  ld.param.u64 d0, [out];
  mov.b32 r0, 0x7fffffff;
  slct.s32.s32 r1, 11, 22, r0;
  st.global.b32 [d0], r1;
  ret;
}
PTX

# Prints the one constant among 11 and 22 that is stored. A small constant is put into a register as a pair of halves in which it
# looks like a subnormal float, 11 as 6.55e-07, or as an immediate integer.
stored() {
  python3 -m venv "$1" > /dev/null
  "$1/bin/pip" install --quiet --disable-pip-version-check --no-deps "nvidia-cuda-nvcc==$1" "nvidia-cuda-nvdisasm==13.5.37" 2> /dev/null
  bin=$(dirname "$(find "$1" -name ptxas -type f)")
  "$bin/ptxas" -arch=sm_90 selects.ptx -o "$1.cubin"
  "$bin/nvdisasm" -c "$1.cubin" > "$1.sass"
  if grep -Eq '6\.5565109[0-9]*e-07|, 0xb ;' "$1.sass"; then echo 11; fi
  if grep -Eq '1\.3113021[0-9]*e-06|, 0x16 ;' "$1.sass"; then echo 22; fi
}

old=$(stored 13.0.88)
new=$(stored 13.5.37)
echo "slct.s32.s32 d, 11, 22, 0x7fffffff stores: ptxas 13.0.88: $old; ptxas 13.5.37: $new (right: 11)"
[ "$old" = 22 ] && [ "$new" = 11 ]
