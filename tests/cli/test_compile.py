"""``kaasctl compile`` and ``run``: files of CUDA C++ and arrays, with a daemon on the emulated device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from examples.local_daemon import local_daemon

Kaasctl = Callable[..., subprocess.CompletedProcess[str]]

SOURCE = """
extern "C" __global__ void saxpy(float a, const float* x, float* y, unsigned long n)
{
    unsigned long i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += a * x[i];
}
extern "C" __global__ void fill(short value, short* c) { c[blockIdx.x * blockDim.x + threadIdx.x] = value; }
template <int N> __global__ void zeros(int* c) { c[threadIdx.x] = N; }
"""
X, Y = np.arange(100, dtype=np.float32), np.ones(100, np.float32)
SAXPY = ["--kernel", "saxpy", "--grid", "4", "--block", "32", "--arg", "f32=2.0"]


@pytest.fixture(scope="module")
def daemon() -> Iterator[str]:
    with local_daemon("--device", "emulator", "--log-level", "WARNING") as address:
        yield address


@pytest.fixture
def kaasctl(daemon: str, tmp_path: Path) -> Kaasctl:
    (tmp_path / "k.cu").write_text(SOURCE)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kaas_client.cli.main", *arguments],
            cwd=tmp_path,
            env={**os.environ, "KAAS_ADDRESS": daemon, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run


def test_a_kernel_runs(kaasctl: Kaasctl, tmp_path: Path) -> None:
    done = kaasctl(
        "-o", "json", "run", "k.cu", *SAXPY, "--arg", "x=in:x.npy", "--arg", "y=inout:y.npy,result.npy", "--arg", "u64=100"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["device"] == "emulator"
    assert np.array_equal(np.load(tmp_path / "result.npy"), 2 * X + Y)
    assert np.array_equal(np.load(tmp_path / "y.npy"), Y)
    assert kaasctl("kv", "ls").stdout == kaasctl("kv", "ls", "nothing").stdout


def test_an_output_has_the_shape_that_is_asked_for(kaasctl: Kaasctl, tmp_path: Path) -> None:
    options = ["--kernel", "fill", "--grid", "2", "--block", "16,1", "--arg", "i16=-7", "--arg", "c=out:i2,4x8,c.npy"]
    done = kaasctl("run", "k.cu", *options)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "c.npy"), np.full((4, 8), -7, np.int16))


def test_a_file_is_compiled_and_its_ptx_runs(kaasctl: Kaasctl, tmp_path: Path) -> None:
    done = kaasctl("-o", "json", "compile", "k.cu", "-o", "k.ptx", "--kernel", "zeros<3>", "--target", "sm_75", "--option=-DX")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["file"], found["target"]) == ("k.ptx", "sm_75")
    assert [(each["kernel"], each["parameters"]) for each in found["kernels"]] == [
        ("fill", [2, 8]), ("saxpy", [4, 8, 8, 8]), ("zeros<3>", [8]),
    ]  # fmt: skip
    entry = found["kernels"][2]["entry"]
    done = kaasctl("run", "k.ptx", "--kernel", entry, "--grid", "1", "--block", "4", "--arg", "c=out:i4,4,c.npy")
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "c.npy").tolist() == [3] * 4


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--arg", "x=in:none.npy"], 2, "none.npy: No such file or directory"),
        (["--arg", "x=in:k.cu"], 2, "k.cu is no .npy file that can be read"),
        (["--arg", "x=in:k.cu"], 2, "k.cu"),
        (["--arg", "f32=two"], 2, "'two' is no number of type f32"),
        (["--arg", "x"], 2, "an argument has one of these forms"),
        (["--arg", "y=inout:y.npy"], 2, "names two files"),
        (["--arg", "c=out:f4,32"], 2, "has dtype, shape and file"),
        (["--arg", "c=out:f5,32,c.npy"], 2, "f5"),
        (["--arg", "c=out:f4,32,nowhere/c.npy"], 2, "the directory nowhere does not exist"),
        (["--arg", "x=in:x.npy"], 1, "it has 4 parameters, and gets 2"),
        (["--option=-DX"], 1, "it has 4 parameters, and gets 1"),
        (["--option=--no-such-option"], 1, "NVRTC_ERROR_INVALID_OPTION"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], status: int, words: str, kaasctl: Kaasctl) -> None:
    done = kaasctl("run", "k.cu", *SAXPY, *arguments)
    assert done.returncode == status, done.stderr
    assert words in " ".join(done.stderr.replace("│", " ").split())


def test_a_source_that_is_wrong(kaasctl: Kaasctl, tmp_path: Path) -> None:
    (tmp_path / "wrong.cu").write_text("__global__ void k() { nothing(); }\n")
    done = kaasctl("compile", "wrong.cu")
    assert (done.returncode, done.stdout) == (1, "")
    assert 'wrong.cu(1): error: identifier "nothing" is undefined' in done.stderr
    assert not (tmp_path / "wrong.ptx").exists()
    done = kaasctl("run", "k.cu", "--kernel", "none", "--grid", "1", "--block", "1")
    assert done.returncode == 1 and 'identifier "none" is undefined' in done.stderr
    done = kaasctl("run", "k.cu", "--kernel", "saxpy", "--grid", "1,2,3,4")
    assert done.returncode == 2 and "is not of the form X[,Y[,Z]]" in done.stderr
