"""What is newer than a module's own version or target is refused, as ptxas refuses it, and what is not is taken."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from kaasd.devices.emulator.isa.instruction_set import INSTRUCTION_SET
from kaasd.devices.emulator.ptx import ast, requirements
from kaasd.devices.emulator.ptx.parser import parse
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.libraries import UnsupportedLibrary
from kaasd.request.device_checks import DeviceProperties
from tests.devices.emulator.runner import load_all

ROOT = Path(__file__).parents[4]
COMMITTED = sorted(path for path in ROOT.glob("*/**/*.ptx") if ".venv" not in path.parts)

# What ptxas 13.5.37 takes and refuses: a line, the first version and the first target.
BORDERS = {
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {f0, f1, f2, f3}, {r0, r1, r2, r3}, {r0, r1}, {f0, f1, f2, f3};":
        ("7.0", "sm_80"),
    "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {r0, r1}, {r2}, {r3}, {r0, r1};": ("6.5", "sm_75"),
    "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {f0, f1, f2, f3}, {r0, r1, r2, r3}, {r0, r1}, {f0, f1, f2, f3};":
        ("8.4", "sm_89"),
    "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {r0}, [d0];": ("6.5", "sm_75"),
    "stmatrix.sync.aligned.m8n8.x1.shared.b16 [d0], {r0};": ("7.8", "sm_90"),
    "redux.sync.add.u32 r0, r1, r2;": ("7.0", "sm_80"),
    "cp.async.ca.shared.global [d0], [d1], 4;": ("7.0", "sm_80"),
    "cp.async.ca.shared.global [d0], [d1], 4, p0;": ("7.5", "sm_80"),
    "mbarrier.init.shared.b64 [d0], 1;": ("7.0", "sm_80"),
    "mbarrier.arrive.shared.b64 d1, [d0];": ("7.0", "sm_80"),
    "mbarrier.arrive.shared.b64 _, [d0];": ("7.1", "sm_80"),
    "mbarrier.arrive.shared.b64 d1, [d0], r0;": ("7.8", "sm_90"),
    "mbarrier.try_wait.shared.b64 p0, [d0], d1;": ("7.8", "sm_90"),
    "min.xorsign.abs.f32 f0, f1, f2;": ("7.2", "sm_86"),
    "min.NaN.f32 f0, f1, f2;": ("7.0", "sm_80"),
    "min.f32 f0, f1, f2, f3;": ("8.8", "sm_100"),
    "add.f32x2 d0, d1, d2;": ("8.6", "sm_100"),
    "ex2.approx.ftz.bf16 h0, h1;": ("7.8", "sm_90"),
    "tanh.approx.f32 f0, f1;": ("7.0", "sm_75"),
    "fma.rn.relu.f16 h0, h1, h2, h3;": ("7.0", "sm_80"),
    "cvt.rn.bf16.f32 h0, f0;": ("7.0", "sm_80"),
    "cvt.rna.tf32.f32 r0, f0;": ("7.0", "sm_80"),
    "cvt.rn.satfinite.e4m3x2.f32 h0, f0, f1;": ("7.8", "sm_89"),
    "cvt.rn.bf16x2.e4m3x2 r0, h0;": ("9.2", "sm_100f"),
    "atom.global.add.noftz.bf16x2 r0, [d0], r1;": ("7.8", "sm_90"),
    "atom.global.add.f64 dd0, [d0], dd1;": ("5.0", "sm_60"),
    "atom.global.cas.b16 h0, [d0], h1, h2;": ("6.3", "sm_70"),
    "red.relaxed.gpu.global.add.u32 [d0], r0;": ("6.0", "sm_70"),
    "ld.global.v8.f32 {f0, f1, f2, f3, f4, f5, f6, f7}, [d0];": ("8.8", "sm_100"),
    "ld.shared::cta.u32 r0, [d0];": ("7.8", ""),
    "elect.sync r0|p0, -1;": ("8.0", "sm_90"),
    "fence.acq_rel.cluster;": ("7.8", "sm_90"),
    "wgmma.fence.sync.aligned;": ("8.0", "sm_90a"),
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {f0, f1, f2, f3}, d0, d1, p0, 1, 1, 0, 0;": ("8.0", "sm_90a"),
    "tensormap.replace.tile.rank.global.b1024.b32 [d0], 1;": ("8.3", "sm_90a"),
    "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [d0], [r0], 128;": ("8.3", "sm_90"),
    "prefetch.tensormap [d0];": ("8.0", "sm_90"),
    "barrier.cluster.arrive; barrier.cluster.wait;": ("7.8", "sm_90"),
    "barrier.cluster.arrive.relaxed;": ("8.0", "sm_90"),
    "mapa.shared::cluster.u32 r0, r0, 0;": ("7.8", "sm_90"),
    "getctarank.shared::cluster.u32 r0, r0;": ("7.8", "sm_90"),
    "ld.shared::cluster.u32 r0, [r0];": ("7.8", "sm_90"),
    "mbarrier.arrive.shared::cluster.b64 _, [r0];": ("8.0", "sm_90"),
    "fence.acquire.sync_restrict::shared::cluster.cluster;": ("8.6", "sm_90"),
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r0], [d0], 16, [r0];": ("8.0", "sm_90"),
    "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [r0], [d0], 16, [r0];": ("8.6", "sm_90"),
    "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [d0], [r0], 16;": ("8.0", "sm_90"),
    "fence.release.cluster;": ("8.6", "sm_90"),
    "fence.mbarrier_init.release.cluster;": ("8.0", "sm_90"),
    "dp4a.s32.s32 r0, r1, r2, r3;": ("5.0", "sm_61"),
    "lop3.b32 r0, r1, r2, r3, 0x80;": ("4.3", "sm_50"),
    "shfl.sync.idx.b32 r0, r1, 0, 31, -1;": ("6.0", "sm_30"),
    "vote.sync.all.pred p0, p1, -1;": ("6.0", "sm_30"),
    "match.any.sync.b32 r0, r1, -1;": ("6.0", "sm_70"),
    "bar.warp.sync -1;": ("6.0", "sm_30"),
    "nanosleep.u32 20;": ("6.2", "sm_70"),
    "griddepcontrol.wait;": ("7.8", "sm_90"),
    "setmaxnreg.inc.sync.aligned.u32 64;": ("8.0", "sm_90a"),
    "mov.u32 r0, %clusterid.x;": ("7.8", "sm_90"),
    "mov.u32 r0, %reserved_smem_offset_cap;": ("7.6", "sm_80"),
    ".reg .b128 q;": ("8.3", "sm_70"),
}  # fmt: skip

# The first version with each target.
TARGETS = {"sm_30": "3.0", "sm_50": "4.0", "sm_53": "4.2", "sm_61": "5.0", "sm_70": "6.0", "sm_75": "6.3", "sm_80": "7.0",
           "sm_86": "7.1", "sm_89": "7.8", "sm_90": "7.8", "sm_90a": "8.0", "sm_100": "8.6", "sm_100f": "8.8"}  # fmt: skip
VERSIONS = ("2.3", "3.0", "4.0", "4.2", "4.3", "5.0", "6.0", "6.1", "6.2", "6.3", "6.4", "6.5", "7.0", "7.1", "7.2", "7.4", "7.5",
            "7.6", "7.8", "8.0", "8.2", "8.3", "8.4", "8.5", "8.6", "8.7", "8.8", "9.0", "9.1", "9.2", "9.5")  # fmt: skip
BEFORE = {
    "sm_30": "sm_20", "sm_50": "sm_37", "sm_53": "sm_52", "sm_60": "sm_53", "sm_61": "sm_60", "sm_70": "sm_62", "sm_75": "sm_72",
    "sm_80": "sm_75", "sm_86": "sm_80", "sm_89": "sm_87", "sm_90": "sm_89", "sm_90a": "sm_90", "sm_100": "sm_90",
    "sm_100f": "sm_100",
}  # fmt: skip


def refusal(version: str, target: str, body: str, before: str = "") -> str:
    """Return why a module is refused; empty if it is not."""
    digits = target.removeprefix("sm_").rstrip("af")
    capability = (int(digits[:-1]), int(digits[-1]))
    source = f""".version {version}
.target {target}
.address_size 64
{before}
.visible .entry k(.param .u64 p) {{
.reg .pred p<4>; .reg .b16 h<4>; .reg .b32 r<8>; .reg .f32 f<8>; .reg .b64 d<8>; .reg .f64 dd<4>;
{body}
ret; }}
"""
    with closing(EmulatedDevice(DeviceProperties("emulator", "a test's", 1 << 30, compute_capability=capability))) as device:
        try:
            load_all(device, source.encode()).close()
        except UnsupportedLibrary as error:
            return str(error)
    return ""


@pytest.mark.parametrize("line", BORDERS)
def test_both_sides_of_the_border(line: str) -> None:
    version, target = BORDERS[line][0], BORDERS[line][1] or "sm_53"
    assert refusal(version, target, line) == ""
    name = line.split()[0].rstrip(";")
    older = VERSIONS[VERSIONS.index(version) - 1]
    lowest = next((each for each in reversed(TARGETS) if VERSIONS.index(TARGETS[each]) <= VERSIONS.index(older)), "sm_20")
    message = refusal(older, lowest, line)
    assert message.startswith("PTX line 7: ")
    assert name.split(".")[0] in message
    assert f"needs PTX ISA {version}" in message
    assert f".version {older}" in message
    if not BORDERS[line][1]:
        return
    message = refusal("9.5", BEFORE[target], line)
    assert message.startswith("PTX line 7: ")
    assert f"needs {target}, the module declares .target {BEFORE[target]}" in message


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_needs_a_version(target: str) -> None:
    first = TARGETS[target]
    assert refusal(first, target, "") == ""
    older = VERSIONS[VERSIONS.index(first) - 1]
    assert f".target {target}: needs PTX ISA {first}, the module declares .version {older}" in refusal(older, target, "")


@pytest.mark.parametrize(
    ("before", "version", "target"),
    [
        (".weak .func f(); .func g() { ret; } .alias f, g;", "6.3", "sm_30"),
        (".func f() .noreturn { trap; }", "6.4", "sm_30"),
        (".common .global .u32 g;", "5.0", ""),
        (".global .u32 a; .global .u64 b = generic(a);", "3.1", ""),
        (".global .u32 a; .global .u8 b[2] = {0xff(a), 0xff00(a)};", "7.1", ""),
        (".visible .entry e(.param .b8 x[4353]) { ret; }", "8.1", "sm_70"),
        (".global .b128 g;", "8.3", "sm_70"),
        (".visible .entry e() .maxclusterrank 4 { ret; }", "7.8", "sm_90"),
    ],
)
def test_declarations(before: str, version: str, target: str) -> None:
    major, _, minor = version.partition(".")
    assert refusal("9.5", target or "sm_35", "", before) == ""
    older = f"{major}.{int(minor) - 1}" if int(minor) else f"{int(major) - 1}.3"
    message = refusal(older, "sm_20", "", before)
    assert message.startswith("PTX line 4: ")
    assert f"needs PTX ISA {version}" in message
    if target:
        assert f"needs {target}, the module declares .target sm_20" in refusal("9.5", "sm_20", "", before)


def test_both_are_named() -> None:
    message = refusal("6.3", "sm_70", "redux.sync.add.u32 r0, r1, r2;")
    assert message.endswith("redux.sync.add.u32: needs PTX ISA 7.0 and sm_80, the module declares .version 6.3 and .target sm_70")


def test_a_target_of_an_older_name_counts_as_the_new_one() -> None:
    assert refusal("9.0", "sm_110a", "setmaxnreg.inc.sync.aligned.u32 64;") == ""
    declared = requirements.Declared((9, 0), ["sm_101a"])
    assert not declared.lacks(requirements.Requirement((8, 0), "sm_103f"))


def test_modifiers_in_another_order_need_the_same() -> None:
    assert "needs sm_86" in refusal("9.5", "sm_80", "min.abs.xorsign.f32 f0, f1, f2;")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_ptxas_takes_is_never_refused(path: Path) -> None:
    module = parse(path.read_text())
    declared = requirements.Declared(module.version, module.targets)
    requirements.check_declarations(module, declared)
    for function in module.functions:
        for statement in function.body or ():
            if isinstance(statement, ast.Instruction):
                match = INSTRUCTION_SET.find(statement.opcode, statement.modifiers)
                assert not isinstance(match, str)
                assert declared.lacks_for(match, (f"#{len(statement.operands)}",)) == ""
