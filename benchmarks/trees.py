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
from itertools import cycle
from pathlib import Path

import numpy as np

from benchmarks.problems import CHAIN_N, DOT_N
from benchmarks.requests import chain_request, dot_request, reading_request, storing_request
from benchmarks.turns import Contender, Turns, take_turns, timed
from examples.local_daemon import server_process
from kaas_client import Client, Key

ROOT = Path(__file__).parent.parent
THIS, OTHER = "this", "other"
CALLS = 100
"""A block."""
IN_FLIGHT = 32
CALLERS = (4, 16, 64)
LARGE_BYTES, LARGE_CALLS = 64 << 20, 10
DEVICE_MEMORY = "100MiB"
Work = Callable[[], object]


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trees", description="Compare this tree with another, in turns.")
    parser.add_argument("other", type=Path, help="the other tree's folder")
    parser.add_argument("--device", default="emulator", help="cuda:N or emulator; default %(default)s")
    parser.add_argument("--starts", type=int, default=4, help="times that both daemons are started anew; default %(default)s")
    parser.add_argument("--rounds", type=int, default=4, help="rounds a row and start; default %(default)s")
    options = parser.parse_args()
    found: dict[str, list[Turns]] = {}
    for start in range(options.starts):
        for name, turns in _measure(options.other, options.device, options.rounds, other_first=start % 2 == 1):
            found.setdefault(name, []).append(turns)
    print(f"{'':28}{'this, µs':>10}{'other, µs':>10}{'ratio':>8}   of each start")
    for name, starts in found.items():
        whole = Turns({each: [block for turns in starts for block in turns.rounds[each]] for each in (THIS, OTHER)})
        this, other = (whole.figure(each).median * 1e6 for each in (THIS, OTHER))
        each_start = " ".join(f"{turns.ratio(THIS, OTHER).median:.2f}" for turns in starts)
        print(f"{name:28}{this:10.0f}{other:10.0f}{whole.ratio(THIS, OTHER).median:8.3f}   {each_start}", flush=True)


def _measure(other: Path, device: str, rounds: int, *, other_first: bool) -> Iterator[tuple[str, Turns]]:
    """Start both daemons, and yield what was measured of each row. Where a process comes to run shows for as long as it lives."""
    folders = {THIS: ROOT, OTHER: other.absolute()}
    with ExitStack() as stack:
        order = (OTHER, THIS) if other_first else (THIS, OTHER)
        trees = {each: stack.enter_context(_rows(folders[each], device)) for each in order}
        for name in trees[THIS]:
            yield name, take_turns({each: trees[each][name] for each in order}, rounds=rounds, seconds=60)


@contextmanager
def _rows(tree: Path, device: str) -> Iterator[dict[str, Contender]]:
    """Yield what is measured of one tree's daemon, by name."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kaasd-"))
        address = f"unix:{folder}/kaasd.sock"
        daemon = ["-m", "kaasd", "--device", device, "--listen", address, "--store", f"{folder}/store", "--log-level", "WARNING"]
        daemon += ["--device-memory", DEVICE_MEMORY]
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
        kaas.register("load", reading_request(library, LARGE_BYTES))
        for key in ("large/0", "large/1"):
            kaas.put(key, np.ones(LARGE_BYTES, "u1"))
        rows["load 64 MiB again"] = timed(_alternating(kaas, "load", "input", ("large/0", "large/1")), LARGE_CALLS)
        kaas.register("store", storing_request(library, LARGE_BYTES))
        rows["store 64 MiB"] = timed(lambda: kaas.invoke("store", returns=()), LARGE_CALLS)
        yield rows


def _alternating(kaas: Client, name: str, buffer: str, keys: tuple[str, str]) -> Work:
    """Call with the one key and then with the other, for both of which the device has no room."""
    turns = cycle(keys)
    return lambda: kaas.invoke(name, {buffer: Key(next(turns))}, returns=())


def _at_once(pool: ThreadPoolExecutor, callers: int, work: Work) -> Work:
    def run() -> Sequence[object]:
        return list(pool.map(lambda _: work(), range(callers)))

    return run


if __name__ == "__main__":
    main()
