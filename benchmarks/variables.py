"""Measures what module variables cost a request, which start each one as the library initialises them.

Run with ``python -m benchmarks.variables [--device NAME]``. The same small kernel runs over and over, from three libraries: one
without variables, one with 4 KB that it only reads, and one with 4 KB that it may write.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing

from rich.console import Console
from rich.table import Table

from benchmarks.turns import Contender, take_turns, timed
from kaas_core.request import Access
from kaasd.devices.base import BufferRef, Device, Launch
from kaasd.devices.registry import open_device

KERNEL = """
.version 8.0
.target sm_75
.address_size 64
{declaration}
.visible .entry addKern(.param .u64 out) {{
    .reg .b64 %rd<3>;
    .reg .b32 %r<3>;
    .reg .pred %p<2>;
    ld.param.u64 %rd1, [out];
    ld.global.u32 %r1, [%rd1];
    {access}
    add.u32 %r1, %r1, 1;
    st.global.u32 [%rd1], %r1;
    ret;
}}
"""
DECLARATION = ".global .align 4 .b8 kept[4096] = {1, 2, 3};"
LIBRARIES = {
    "none": KERNEL.format(declaration="", access=""),
    "4 KB, read": KERNEL.format(declaration=DECLARATION, access="ld.global.u32 %r2, [kept+8];\n    add.u32 %r1, %r1, %r2;"),
    "4 KB, written": KERNEL.format(declaration=DECLARATION, access="st.global.u32 [kept+8], %r1;"),
}
RUNS = 200
"""In one block of measurements."""


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="emulator", help="as for kaasd (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="to measure for (default: %(default)s)")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        device = stack.enter_context(closing(open_device(arguments.device)))
        contenders = {name: _contender(device, text, stack) for name, text in LIBRARIES.items()}
        turns = take_turns(contenders, rounds=10_000, seconds=arguments.seconds)
    table = Table(title=f"a run of one small kernel on {device.properties.model}")
    for heading in ("module variables", "µs, p50", "p99", "more than none, µs"):
        table.add_column(heading, justify="left" if heading == "module variables" else "right")
    without = turns.figure("none").median
    for name in LIBRARIES:
        figure = turns.figure(name)
        table.add_row(name, f"{figure.median * 1e6:.2f}", f"{figure.p99 * 1e6:.2f}", f"{(figure.median - without) * 1e6:+.2f}")
    Console().print(table)


def _contender(device: Device, text: str, stack: ExitStack) -> Contender:
    module = stack.enter_context(closing(device.load(text.encode())))
    buffer = stack.enter_context(closing(device.allocate(4)))
    launch = Launch(module.kernels["addKern"], (1, 1, 1), (1, 1, 1), 0, (BufferRef("out", buffer, Access.INOUT),))
    run = stack.enter_context(closing(device.prepare([launch], 1, zeroed=[buffer], downloads=[buffer])))

    def once() -> None:
        run.start()
        while not run.done():
            pass

    return timed(once, RUNS)


if __name__ == "__main__":
    main()
