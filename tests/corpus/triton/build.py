"""Rebuilds the PTX of the Triton kernels, and beside it the facts that a launch needs.

    pip install triton==3.5.1 && python build.py

No GPU is needed. Tensor-core kernels are built for sm_80, since for sm_90 Triton emits ``wgmma``.
"""

import json
import re
from pathlib import Path

import kernels
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HERE = Path(__file__).parent
P32, P16, I32, F32 = "*fp32", "*fp16", "i32", "fp32"
BUILDS = {
    "add": (90, 4, {"x": P32, "y": P32, "out": P32, "n": I32}, {"BLOCK": 1024}),
    "softmax": (90, 4, {"x": P32, "out": P32, "columns": I32}, {"BLOCK": 1024}),
    "matmul": (
        80,
        4,
        {"a": P16, "b": P16, "c": P32, "m": I32, "n": I32, "k": I32},
        {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32},
    ),
    "layer_norm": (
        90,
        4,
        {"x": P32, "scale": P32, "shift": P32, "out": P32, "mean_out": P32, "columns": I32, "epsilon": F32},
        {"BLOCK": 256},
    ),
    "attention": (
        80,
        4,
        {"q": P16, "k": P16, "v": P16, "out": P32, "keys": I32, "scale": F32},
        {"WIDTH": 32, "BLOCK_M": 64, "BLOCK_N": 32},
    ),
    "dropout": (90, 4, {"x": P32, "out": P32, "n": I32, "keep": F32, "seed": I32}, {"BLOCK": 512}),
    "scans": (90, 2, {"x": "*i32", "sums": "*i32", "largest": "*i32", "n": I32}, {"BLOCK": 256}),
    "sort": (80, 1, {"x": "*i32", "out": "*i32"}, {"BLOCK": 64}),
    "quantise": (90, 2, {"x": "*bf16", "packed": "*i8", "scales": P32}, {"BLOCK": 512}),
    "histogram": (80, 4, {"x": "*i32", "bins": "*i32", "n": I32}, {"BLOCK": 1024, "BINS": 64}),
}
"""Each kernel's compute capability, warps, parameters and constants."""


def without_paths(ptx: str) -> str:
    """Take this machine's folders out of the line information; the text is otherwise as Triton emits it."""
    ptx = re.sub(r'(\.file\s+\d+ )"(?:[^"]*/)?([^"/]+)"', r'\1"\2"', ptx)
    directory = r"(\.b8 \d+ +// DW_AT_comp_dir\n)((?:\.b8 [1-9]\d*\n)*)"
    # The section's offsets count on the length, so the folder becomes "/././…".
    return re.sub(directory, lambda found: found[1] + "".join(f".b8 {46 + i % 2}\n" for i in range(found[2].count("\n"))), ptx)


def build(name: str) -> None:
    capability, warps, parameters, constants = BUILDS[name]
    signature = parameters | dict.fromkeys(constants, "constexpr")
    # As Triton specialises a launch whose pointers and sizes are multiples of 16.
    aligned = [index for index, kind in enumerate(parameters.values()) if kind.startswith("*")]
    attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
    source = ASTSource(getattr(kernels, name), signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": 2})
    (HERE / f"{name}.ptx").write_text(without_paths(compiled.asm["ptx"]))
    facts = {
        "kernel": compiled.metadata.name,
        "target": f"sm_{capability}",
        "num_warps": compiled.metadata.num_warps,
        "shared_memory_bytes": compiled.metadata.shared,
        "signature": parameters,
        "constants": constants,
        "trailing_pointers": ["global_scratch", "profile_scratch"],
        "global_scratch_bytes": compiled.metadata.global_scratch_size,
        "triton": triton.__version__,
    }
    (HERE / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    for kernel in BUILDS:
        build(kernel)
