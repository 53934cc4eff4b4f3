"""Compares this tree with another one, in turns: ``python -m benchmarks.trees /path/to/other [--device cuda:0]``.

For a change that must not cost anything. One daemon of each tree runs, both are called by this tree's client. Each row's ratio is
this tree's median over the other's, round by round: above 1 is slower.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from benchmarks.problems import CHAIN_N, DOT_N
from benchmarks.requests import chain_request, dot_request
from benchmarks.turns import Contender, take_turns, timed
from examples.local_daemon import server_process
from kaas_client import Client

ROOT = Path(__file__).parent.parent
CALLS = 100
"""A block."""
IN_FLIGHT = 32
CALLERS = (4, 16, 64)
Work = Callable[[], object]


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trees", description="Compare this tree with another, in turns.")
    parser.add_argument("other", type=Path, help="the other tree's folder")
    parser.add_argument("--device", default="emulator", help="cuda:N or emulator; default %(default)s")
    parser.add_argument("--rounds", type=int, default=12, help="rounds a row; default %(default)s")
    options = parser.parse_args()
    with ExitStack() as stack:
        trees = [stack.enter_context(_rows(tree.absolute(), options.device)) for tree in (ROOT, options.other)]
        print(f"{'':32}{'this, µs':>12}{'other, µs':>12}{'ratio':>9}{'p10':>8}{'p90':>8}")
        for name in trees[0]:
            contenders = {"this": trees[0][name], "other": trees[1][name]}
            turns = take_turns(contenders, rounds=options.rounds, seconds=120)
            ratio = turns.ratio("this", "other")
            this, other = (turns.figure(each).median * 1e6 for each in contenders)
            print(f"{name:32}{this:12.0f}{other:12.0f}{ratio.median:9.3f}{ratio.p10:8.3f}{ratio.p90:8.3f}", flush=True)


@contextmanager
def _rows(tree: Path, device: str) -> Iterator[dict[str, Contender]]:
    """Yield what is measured of one tree's daemon, by name."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kaasd-"))
        address = f"unix:{folder}/kaasd.sock"
        daemon = ["-m", "kaasd", "--device", device, "--listen", address, "--store", f"{folder}/store", "--log-level", "WARNING"]
        # In the tree's folder, so that it is that tree's code that runs.
        path = os.pathsep.join([str(tree), str(tree / "proto"), os.environ.get("PYTHONPATH", "")])
        stack.enter_context(server_process(["env", "-C", str(tree), sys.executable, *daemon], {"PYTHONPATH": path}))
        kaas = stack.enter_context(Client(address))
        library = kaas.upload(ROOT / "examples/kernels/dot.ptx")
        a = np.arange(DOT_N, dtype="u4")
        kaas.put("b", a)
        kaas.put("w", np.ones(CHAIN_N, "u4"))
        dot = kaas.register("dot", dot_request(library))
        stored = kaas.register("stored", dot_request(library, stored=True))
        stream = stack.enter_context(kaas.stream())
        pool = stack.enter_context(ThreadPoolExecutor(max(CALLERS)))

        def pipelined() -> None:
            futures = [stream.submit("dot", {"a": a}, returns=["c"]) for _ in range(IN_FLIGHT)]
            for future in futures:
                future.result()

        rows = {
            "unary": timed(lambda: dot(a=a), CALLS),
            "unary, stored": timed(lambda: stored(a=a), CALLS),
            "stream, one at a time": timed(lambda: stream.submit("dot", {"a": a}, returns=["c"]).result(), CALLS),
            f"stream, {IN_FLIGHT} in flight": timed(pipelined, CALLS // 10),
        }
        for callers in CALLERS:
            rows[f"{callers} callers, a call each"] = timed(_at_once(pool, callers, lambda: dot(a=a)), CALLS // 10)
        for kernels in (90, 800):
            chain = kaas.register(f"chain{kernels}", chain_request(library, kernels))
            rows[f"{kernels} kernels"] = timed(chain, CALLS // 10)
        yield rows


def _at_once(pool: ThreadPoolExecutor, callers: int, work: Work) -> Work:
    def run() -> Sequence[object]:
        return list(pool.map(lambda _: work(), range(callers)))

    return run


if __name__ == "__main__":
    main()
