"""Kernels that use the language: calls, recursion, function pointers, classes, structures, variables, heap, printf."""

from __future__ import annotations

import ctypes
import struct

import numpy as np
import pytest

from tests.conformance.launching import Call, inp, out, u32
from tests.corpus.running import Check, Corpus, normals, wides, words


def test_recursion(corpus: Corpus) -> None:
    n = 100
    results = corpus.run("language", Call("recursionKern", 2, 64, [u32(n), out("y")]), y=np.zeros((2, n), np.uint32))

    def hanoi(discs: int, start: int, end: int, seen: int) -> int:
        if discs == 0:
            return seen
        between = 3 - start - end
        seen = (hanoi(discs - 1, start, between, seen) * 31 + start * 3 + end) % 2**32
        return hanoi(discs - 1, between, end, seen)

    assert results["y"][0].tolist() == [2 * (i % 4) + 3 for i in range(n)]
    assert results["y"][1].tolist() == [hanoi(i % 6, 0, 2, i) for i in range(n)]


OPERATIONS = [np.add, np.subtract, np.multiply, np.maximum, np.bitwise_xor]


def test_function_pointers(corpus: Corpus) -> None:
    n = 200
    which, a, b = words(1, n, 5), wides(2, n).view(np.int64), wides(3, n).view(np.int64)
    call = Call("pointersKern", 2, 128, [u32(n), inp("which"), inp("a"), inp("b"), out("y")])
    results = corpus.run("language", call, which=which, a=a, b=b, y=np.zeros(n, np.int64))
    assert np.array_equal(results["y"], np.choose(which, [operation(a, b) for operation in OPERATIONS]))


def test_function_pointers_passed_on(corpus: Corpus) -> None:
    rows = wides(4, 8 * 90).view(np.int64).reshape(90, 8)
    results = corpus.run("language", Call("foldKern", 3, 32, [u32(90), inp("x"), out("y")]), x=rows, y=np.zeros(90, np.int64))
    assert results["y"].tolist() == [int(OPERATIONS[i % 5].reduce(row)) for i, row in enumerate(rows)]


def test_virtual_functions(corpus: Corpus) -> None:
    n = 100
    sides = words(5, 2 * n, 50).astype(np.float32).reshape(n, 2)
    results = corpus.run("language", Call("virtualKern", 2, 64, [u32(n), inp("x"), out("y")]), x=sides, y=np.zeros(n, np.float32))
    area = sides[:, 0] * sides[:, 1]
    i = np.arange(n)
    assert np.array_equal(results["y"], np.where(i % 3 == 0, area / 2, area) + np.where(i % 2, -area / 2 * 3, area * 3))


def test_structures_by_value(corpus: Corpus) -> None:
    n, kind = 128, np.dtype([("value", "f8"), ("clamped", "i4"), ("kind", "S1")], align=True)
    x = words(6, n).view(np.int32)
    table = np.array([0.5, -1.25, 1e10], np.float32)
    settings = struct.pack("<BxHxxxxdii3f4x", 5, 0x7FF, 0.125, -(10**9), 10**9, *table)
    call = Call("structuresKern", 1, 128, [u32(n), settings, inp("x"), out("y")])
    results = corpus.run("language", call, x=x, y=np.zeros(n, kind))
    clamped = np.clip(x, -(10**9), 10**9)
    value = (x >> 5 & 0x7FF) * 0.125 + table[x.view(np.uint32) % 3].astype(np.float64)
    assert np.array_equal(results["y"]["value"], value)
    assert np.array_equal(results["y"]["clamped"], clamped)
    assert np.array_equal(results["y"]["kind"], np.where(clamped == x, b"i", b"o"))


def test_stack_machine(corpus: Corpus) -> None:
    program = [0, 4, 17, 3, 0, 8, 2, 4, 251, 1, 5, 4, 9, 6, 2, 7, 0, 4, 1, 9, 1, 200, 0, 1, 4, 3, 9]
    x = words(7, 150).view(np.int32)
    code = np.array(program, np.uint8)
    call = Call("switchKern", 2, 128, [u32(150), u32(len(code)), inp("program"), inp("x"), out("y")])
    results = corpus.run("language", call, program=code, x=x, y=np.zeros(150, np.int32))

    def wrap(value: int) -> int:
        return (value + 2**31) % 2**32 - 2**31

    def execute(value: int) -> int:
        stack, at = [value], 0
        while at < len(program):
            op = program[at]
            if op == 0:
                stack.append(stack[-1])
            elif op in (1, 2, 3, 9):
                b, a = stack.pop(), stack.pop()
                quotient = (abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)) if b else 0
                stack.append(wrap({1: a + b, 2: a - b, 3: a * b, 9: quotient}[op]))
            elif op == 4:
                at += 1
                stack.append(program[at] - 256 if program[at] > 127 else program[at])
            elif op == 5:
                stack[-1] = ~stack[-1]
            elif op == 6:
                stack[-1], stack[-2] = stack[-2], stack[-1]
            elif op == 7:
                stack[-1] >>= 3
            elif op == 8:
                at += program[at + 1] + 1 if stack.pop() & 1 else 1
            else:
                stack[-1] ^= 0x5A5A5A5A
            at += 1
        return stack[-1]

    assert results["y"].tolist() == [execute(value) for value in x.tolist()]


def test_queens(corpus: Corpus) -> None:
    results = corpus.run("language", Call("queensKern", 1, 32, [u32(7), out("y")]), y=np.zeros(7, np.uint32))
    assert results["y"].sum() == 40
    assert np.array_equal(results["y"], results["y"][::-1])


def test_expressions(corpus: Corpus) -> None:
    expressions = ["1+2*3", "(1+2)*3", "7", "2*(3+4*(5-6))-8", "((((9))))*9-1-1", "10-2-3", "2*3*4+(1-5)*(6+7)"]
    data = np.zeros((len(expressions), 32), np.uint8)
    for row, text in zip(data, expressions, strict=True):
        row[: len(text)] = list(text.encode())
    call = Call("evaluateKern", 1, 32, [u32(len(expressions)), u32(32), inp("x"), out("y")])
    results = corpus.run("language", call, x=data, y=np.zeros(len(expressions), np.int32))
    assert results["y"].tolist() == [eval(text) for text in expressions]


def test_variables_of_the_module(corpus: Corpus) -> None:
    call = Call("variablesKern", 2, 48, [out("counts"), out("y")])
    expected = [-1 + 10 * -5, 0.5 - 1.25, 1e300, ord("e") + 256 * ord("n"), ord("x") * 2.5, 0x12345678, 7]
    for _ in range(2):
        results = corpus.run("memory", call, counts=np.zeros(96, np.uint32), y=np.zeros(7))
        assert np.array_equal(np.sort(results["counts"]), 40 + 2 * np.arange(96))
        assert results["y"].tolist() == expected


def test_polynomials_of_constant_memory(corpus: Corpus, same_as_gpu: Check) -> None:
    x = normals(8, 200)
    results = corpus.run("memory", Call("polynomialKern", 2, 128, [u32(200), inp("x"), out("y")]), x=x, y=np.zeros_like(x))
    rows = np.array([[1, -2, 3, -4, 5, -6], [2.0**-i for i in range(1, 7)], [1e-3, 1e3, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]])
    powers = x.astype(np.float64)[:, None] ** np.arange(6)
    np.testing.assert_allclose(results["y"], (rows[np.arange(200) % 4] * powers).sum(axis=1), rtol=1e-5, atol=1e-5)
    same_as_gpu(y=results["y"])


@pytest.mark.parametrize("n", [5, 1000])
def test_dynamic_shared_memory_carved_up(corpus: Corpus, n: int) -> None:
    x = words(9, n)
    call = Call("carveKern", 1, 64, [u32(n), inp("x"), out("sums"), out("bytes")], 13 * n)
    results = corpus.run("memory", call, x=x, sums=np.zeros(n), bytes=np.zeros(n, np.uint32))
    assert np.array_equal(results["sums"], x[::-1] * 1.5)
    top = x >> 24
    assert np.array_equal(results["bytes"], top | np.roll(top, -1) << 8 | np.roll(top, -2) << 16)


def test_heap(corpus: Corpus) -> None:
    results = corpus.run("memory", Call("heapKern", 3, 64, [u32(150), out("y")]), y=np.zeros(150, np.uint64))
    assert results["y"].tolist() == [int(sum((i * j + 1) * 10**j for j in range(i % 7 + 1))) for i in range(150)]


def test_printf(corpus: Corpus, capfd: pytest.CaptureFixture[str]) -> None:
    results = corpus.run("memory", Call("printKern", 1, 32, [u32(4), out("n")]), n=np.zeros(4, np.uint32))
    assert results["n"].tolist() == [6] * 4
    ctypes.CDLL(None).fflush(None)  # the driver prints through the C library
    printed = corpus.printed or capfd.readouterr().out
    names = ["even", "odd", "even", "odd"]
    assert sorted(printed.splitlines()) == [
        f"thread {i} is {names[i]}: {i * 1.5:5.2f} {-(10**12) * i} {chr(97 + i)} {'0x%x' % (17 * i) if i else '0'}%"
        for i in range(4)
    ]


def test_local_array(corpus: Corpus) -> None:
    results = corpus.run("memory", Call("localKern", 2, 64, [u32(100), out("y")]), y=np.zeros(100, np.uint32))

    def shuffled(i: int) -> int:
        deck, state = list(range(64)), (i * 747796405 + 2891336453) % 2**32
        for j in range(63, 0, -1):
            state = (state * 1664525 + 1013904223) % 2**32
            other = (state >> 16) % (j + 1)
            deck[j], deck[other] = deck[other], deck[j]
        value = 2166136261
        for card in deck:
            value = (value ^ card) * 16777619 % 2**32
        return value

    assert results["y"].tolist() == [shuffled(i) for i in range(100)]


def test_generic_pointers(corpus: Corpus) -> None:
    x = words(10, 68)
    results = corpus.run("memory", Call("genericKern", 1, 64, [inp("x"), out("y")]), x=x, y=np.zeros(64, np.uint32))
    for t in range(64):
        sources = [x[t : t + 4], [(t % 60 + j) * 5 for j in range(4)], [11, 22, 33, 44], [t + j for j in range(4)]]
        total = sum(int(value) * 3 ** (3 - j) for j, value in enumerate(sources[t % 4]))
        assert results["y"][t] == (total << 4 | 8 >> t % 4) % 2**32


def test_vectors_of_memory(corpus: Corpus) -> None:
    x = {"b": words(11, 64).view(np.uint8).reshape(64, 4), "s": words(12, 64).view(np.int16).reshape(64, 2)}
    x |= {"w": words(13, 256).reshape(64, 4), "d": normals(14, 64, 2).astype(np.float64)}
    arguments = [*map(inp, x), *(out(name * 2) for name in x)]
    results = corpus.run("memory", Call("vectorsKern", 2, 32, arguments), **x, **{name * 2: np.zeros_like(x[name]) for name in x})
    assert np.array_equal(results["bb"], x["b"][:, ::-1])
    assert np.array_equal(results["ss"], np.stack([-x["s"][:, 1], x["s"][:, 0] + 1], axis=1))
    assert np.array_equal(results["ww"], np.roll(x["w"], -1, axis=1))
    assert np.array_equal(results["dd"], np.stack([x["d"].sum(axis=1), x["d"][:, 0] - x["d"][:, 1]], axis=1))
