"""The policies by which groups share devices, on emulated ones, and what cannot be asked for."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from examples.local_daemon import local_daemon
from kaas_client import Client, Kernel, Request, inp, out, u64
from kaas_client.errors import InvalidRequestError

N = 1024
TWO = "--device", "emulator", "--emulator-devices", "2", "--log-level", "ERROR"


def squares(library_root: Path) -> Request:
    arguments = [u64(N), inp("a", 4 * N), inp("a"), out("p", 4 * N, ephemeral=True)]
    return Request([Kernel(str(library_root / "dot.ptx"), "prodKern", 1, N, arguments)])


def served(kaas: Client, groups: Iterable[str], threads: int = 4) -> list[tuple[str, str]]:
    """Run a request for each of these groups; return group and device of each."""

    def call(group: str) -> tuple[str, str]:
        result = kaas.invoke("squares", {"a": np.full(N, 3, np.uint32)}, returns=["p"], group=group)
        assert (result.array("p", "u4") == 9).all() and result.group == group
        return group, result.device

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, groups))


def test_static_devices_are_their_groups_own_and_the_rest_is_shared(library_root: Path) -> None:
    options = *TWO, "--policy", "static", "--device-group", "emulator:1=a", "--library-root", str(library_root)
    with local_daemon(*options) as address, Client(address) as kaas:
        for group in "abc":
            kaas.set_group(group)
        kaas.register("squares", squares(library_root))
        where = Counter(served(kaas, "abcabcabcabc"))
        assert where == {("a", "emulator:1"): 4, ("b", "emulator:0"): 4, ("c", "emulator:0"): 4}
        with pytest.raises(InvalidRequestError, match="cannot ask for emulator:1: that device is for others"):
            kaas.invoke("squares", {"a": np.zeros(N, np.uint32)}, group="b", device="emulator:1")


def test_an_exclusive_device_starts_anew_for_the_next_group(library_root: Path) -> None:
    options = "--device", "emulator", "--policy", "exclusive", "--library-root", str(library_root), "--log-level", "ERROR"
    with local_daemon(*options) as address, Client(address) as kaas:
        for group in "ab":
            kaas.set_group(group)
        kaas.register("squares", squares(library_root))
        pids = []
        for group in "aabba":
            served(kaas, group)
            pids.append(kaas.devices()[0].worker_pid)
        assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
        assert len(served(kaas, "abababab", threads=8)) == 8


def test_balanced_requests_go_to_both_whatever_they_need(library_root: Path) -> None:
    options = *TWO, "--policy", "balance", "--library-root", str(library_root)
    with local_daemon(*options) as address, Client(address) as kaas:
        kaas.set_group("a")
        kaas.register("squares", squares(library_root))
        assert {device for _, device in served(kaas, "a" * 12, threads=1)} == {"emulator:0", "emulator:1"}


def test_each_set_of_devices_has_its_policy(library_root: Path, tmp_path: Path) -> None:
    """Four devices: one that anybody uses, one that the group "own" has, two that groups have to themselves, in turns."""
    config = tmp_path / "kaasd.toml"
    config.write_text(
        f"""
        device = ["emulator"]
        emulator_devices = 4
        library_root = ["{library_root}"]
        device_group = ["emulator:1=own"]
        log_level = "ERROR"
        [device_policy]
        static = ["emulator:1"]
        exclusive = ["emulator:2", "emulator:3"]
        """
    )
    with local_daemon("--config", str(config)) as address, Client(address) as kaas:
        for group in ("own", *"abc"):
            kaas.set_group(group)
        kaas.register("squares", squares(library_root))
        for device, why in {"emulator:1": "is for others", "emulator:2": "belongs to one group at a time"}.items():
            with pytest.raises(InvalidRequestError, match=f"device: group a cannot ask for {device}: that device {why}"):
                kaas.invoke("squares", {"a": np.zeros(N, np.uint32)}, group="a", device=device)
        where = Counter(served(kaas, ["own", *"abc"] * 12, threads=24))
        assert where.total() == 48
        assert {device for group, device in where if group == "own"} == {"emulator:1"}
        others = {device for group, device in where if group != "own"}
        assert "emulator:0" in others and "emulator:1" not in others
        kaas.drain_device("emulator:0")
        (mine,), (others,) = ({device for _, device in served(kaas, group * 3, threads=1)} for group in "ab")
        assert {mine, others} == {"emulator:2", "emulator:3"}
        pids = {device.name: device.worker_pid for device in kaas.devices()}
        ((_, third),) = served(kaas, "c")
        assert {device.name for device in kaas.devices() if pids[device.name] != device.worker_pid} == {third}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--policy", "fair"), "fair"),
        (("--policy", "static", "--device-group", "emulator:1"), "expected DEVICE=GROUP, got 'emulator:1'"),
        (("--policy", "static", "--device-group", "cuda:7=a"), "there is no device 'cuda:7'; there are: emulator"),
        (("--device-group", "emulator=a"), "--device-group: the policy of emulator is affinity; it is for devices of static"),
        (("--device-policy", "exclusive=cuda:7"), "--device-policy: there is no device 'cuda:7'; there are: emulator"),
    ],
)
def test_settings_that_cannot_be(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kaasd", "--store", str(tmp_path / "store"), "--listen", f"unix:{tmp_path}/s"]
    done = subprocess.run([*command, "--device", "emulator", *options], capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    assert words in done.stderr and "Traceback" not in done.stderr
