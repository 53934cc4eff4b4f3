"""Declarations and special registers, as texts for ptxas."""

from __future__ import annotations

from kaasd.devices.emulator.isa import special_registers

DECLARATIONS = {
    ".noreturn": ".func f() .noreturn { trap; }",
    ".explicitcluster": ".entry k() .explicitcluster { ret; }",
    ".reqnctapercluster": ".entry k() .reqnctapercluster 1 { ret; }",
    ".maxclusterrank": ".entry k() .maxclusterrank 4 { ret; }",
    ".blocksareclusters": ".entry k() .reqntid 32 .blocksareclusters .reqnctapercluster 1 { ret; }",
    ".abi_preserve": ".func f() .abi_preserve 8 { ret; }",
    ".abi_preserve_control": ".func f() .abi_preserve_control 8 { ret; }",
    ".minnctapersm": ".entry k() .maxntid 32 .minnctapersm 2 { ret; }",
    ".maxnreg": ".entry k() .maxnreg 32 { ret; }",
    ".alias": ".weak .func f(); .func g() { ret; } .alias f, g;",
    ".weak": ".weak .global .u32 g;",
    ".common": ".common .global .u32 g;",
    ".b128": ".global .b128 g;",
    ".f16": ".global .f16 g;",
    ".f16x2": ".global .f16x2 g;",
    ".param 4353": ".entry k(.param .b8 x[4353]) { ret; }",
    ".generic": ".global .u32 a; .global .u64 b = generic(a);",
    ".mask": ".global .u32 a; .global .u8 b[] = {0xff00(a)};",
}
"""By name in the table: a text with it. ``.mask`` is one byte of an address."""

_64 = ("%clock64", "%globaltimer", "%gridid", "%current_graph_exec")


def special_register_lines() -> dict[str, tuple[str, ...]]:
    """Return lines that read each special register there is, with its name."""
    lines = {}
    for name in special_registers.names():
        if name == "%is_explicit_cluster":
            line = f"mov.pred %p1, {name};"
        elif name in _64 or name.endswith("_64"):
            line = f"mov.u64 %d1, {name};"
        else:
            line = f"mov.u32 %r1, {name};"
        lines[line] = (name.partition(".")[0],)
    return lines
