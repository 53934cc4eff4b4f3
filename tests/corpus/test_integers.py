"""Kernels of integers: big numbers, checksums, ciphers, random numbers, transforms."""

from __future__ import annotations

import hashlib
import math
import zlib

import numpy as np
import pytest

from tests.conformance.launching import Call, inout, inp, out, u32, u64
from tests.corpus.running import Corpus, normals, wides, words


def numbers_of(parts: np.ndarray) -> list[int]:
    """The rows of an array as long numbers, the lowest word first."""
    return [int.from_bytes(row.tobytes(), "little") for row in parts]


def test_product_of_long_numbers(corpus: Corpus) -> None:
    a, b = words(1, 8 * 64).reshape(64, 8), words(2, 8 * 64).reshape(64, 8)
    a[0], b[0], b[1] = 0xFFFFFFFF, 0xFFFFFFFF, 0
    call = Call("multiplyKern", 1, 64, [u32(64), inp("a"), inp("b"), out("c")])
    results = corpus.run("numbers", call, a=a, b=b, c=np.zeros((64, 16), np.uint32))
    assert numbers_of(results["c"]) == [x * y for x, y in zip(numbers_of(a), numbers_of(b), strict=True)]


def test_sum_of_long_numbers(corpus: Corpus) -> None:
    a, b = wides(3, 16 * 40).reshape(40, 16), wides(4, 16 * 40).reshape(40, 16)
    a[0], b[0] = 2**64 - 1, [1, *[0] * 15]
    call = Call("addKern", 2, 32, [u32(40), inp("a"), inp("b"), out("c")])
    results = corpus.run("numbers", call, a=a, b=b, c=np.zeros((40, 17), np.uint64))
    assert numbers_of(results["c"]) == [x + y for x, y in zip(numbers_of(a), numbers_of(b), strict=True)]


def truncated(a: int, b: int) -> tuple[int, int]:
    """Quotient towards zero, and the remainder."""
    quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return quotient, a - quotient * b


def test_division_of_64_bits(corpus: Corpus) -> None:
    n = 200
    a, b = wides(5, n), wides(6, n) >> np.arange(n).astype(np.uint64) % 61 | np.uint64(1)
    call = Call("divideKern", 2, 128, [u32(n), inp("a"), inp("b"), out("c")])
    results = corpus.run("numbers", call, a=a, b=b, c=np.zeros((4, n), np.uint64))
    signed = [truncated(int(x), int(y)) for x, y in zip(a.view(np.int64), b.view(np.int64), strict=True)]
    assert np.array_equal(results["c"][0], a // b)
    assert np.array_equal(results["c"][1], a % b)
    assert results["c"][2].view(np.int64).tolist() == [quotient for quotient, _ in signed]
    assert results["c"][3].view(np.int64).tolist() == [remainder for _, remainder in signed]


def test_numbers_of_128_bits(corpus: Corpus) -> None:
    n = 64
    a, b = wides(7, 2 * n).reshape(n, 2), wides(8, 2 * n).reshape(n, 2)
    b[::2, 1] >>= np.uint64(50)
    b[::3, 1] = 0
    b[:, 0] |= np.uint64(2)
    call = Call("wideKern", 1, 64, [u32(n), inp("a"), inp("b"), out("c")])
    results = corpus.run("numbers", call, a=a, b=b, c=np.zeros((3, n, 2), np.uint64))
    pairs = list(zip(numbers_of(a), numbers_of(b), strict=True))
    assert numbers_of(results["c"][0]) == [x * y % 2**128 for x, y in pairs]
    assert numbers_of(results["c"][1]) == [x // y for x, y in pairs]
    expected = [truncated(x - (x >> 127 << 128), y >> 1)[1] % 2**128 for x, y in pairs]
    assert numbers_of(results["c"][2]) == expected


def test_modular_powers(corpus: Corpus) -> None:
    bases, exponents, modulus = wides(9, 32), wides(10, 32), 2**64 - 59
    call = Call("modpowKern", 1, 32, [u32(32), u64(modulus), inp("a"), inp("b"), out("c")])
    results = corpus.run("numbers", call, a=bases, b=exponents, c=np.zeros(32, np.uint64))
    assert results["c"].tolist() == [pow(int(x), int(y), modulus) for x, y in zip(bases, exponents, strict=True)]


def test_greatest_common_divisors(corpus: Corpus) -> None:
    a, b = wides(11, 100, 2**40) * np.uint64(720720), wides(12, 100, 2**40) * np.uint64(5040)
    a[0], b[1] = 0, 0
    call = Call("gcdKern", 1, 128, [u32(100), inp("a"), inp("b"), out("c")])
    results = corpus.run("numbers", call, a=a, b=b, c=np.zeros(100, np.uint64))
    assert np.array_equal(results["c"], np.gcd(a, b))


def test_sieve(corpus: Corpus) -> None:
    n = 4096
    results = corpus.run("numbers", Call("primesKern", 1, 128, [u32(n), out("bits")], n // 8), bits=np.zeros(n // 32, np.uint32))
    found = np.flatnonzero(np.unpackbits(results["bits"].view(np.uint8), bitorder="little"))
    assert found.tolist() == [p for p in range(2, n) if all(p % d for d in range(2, math.isqrt(p) + 1))]


def test_bit_tricks(corpus: Corpus) -> None:
    values = wides(13, 128)
    values[:2] = [0, 2**64 - 1]
    call = Call("bitsKern", 1, 128, [u32(128), inp("x"), out("y")])
    results = corpus.run("numbers", call, x=values, y=np.zeros((10, 128), np.uint32))
    for i, value in enumerate(map(int, values)):
        low, high = value % 2**32, value >> 32
        lows, highs = low.to_bytes(4, "little"), high.to_bytes(4, "little")
        signed = [int.from_bytes(part, "little", signed=True) for part in (lows, highs)]
        expected = [
            value.bit_count(),
            64 - value.bit_length(),
            int(f"{value:064b}"[::-1], 2) >> 32,
            int.from_bytes([lows[0], highs[0], lows[1], highs[1]], "little"),
            sum(abs(x - y) for x, y in zip(lows, highs, strict=True)),
            int.from_bytes([min(x + y, 255) for x, y in zip(lows, highs, strict=True)], "little"),
            abs(low - high) + 7,
            5 + sum((x ^ 128) * (y ^ 128) - 128 * ((x ^ 128) + (y ^ 128)) + 128**2 for x, y in zip(lows, highs, strict=True)),
            signed[0] * signed[1] >> 32,
            signed[0] + signed[1] >> 1,
        ]
        assert results["y"][:, i].tolist() == [x % 2**32 for x in expected], i


def test_collatz(corpus: Corpus) -> None:
    results = corpus.run("numbers", Call("collatzKern", 4, 64, [u32(250), out("y")]), y=np.zeros(250, np.uint32))

    def steps(x: int) -> int:
        count = 0
        while x != 1:
            x, count = (3 * x + 1 if x % 2 else x // 2), count + 1
        return count

    assert results["y"].tolist() == [steps(i + 1) for i in range(250)]


@pytest.mark.parametrize(("kernel", "reference"), [("crc32Kern", zlib.crc32), ("adlerKern", zlib.adler32)])
def test_checksums(corpus: Corpus, kernel: str, reference) -> None:  # type: ignore[no-untyped-def]
    data = words(14, 70 * 25).view(np.uint8).reshape(70, 100)
    call = Call(kernel, 3, 32, [u32(70), u32(100), inp("x"), out("y")])
    results = corpus.run("crypto", call, x=data, y=np.zeros(70, np.uint32))
    assert results["y"].tolist() == [reference(row.tobytes()) for row in data]


@pytest.mark.parametrize("length", [0, 3, 55, 56, 64, 130])
def test_sha256(corpus: Corpus, length: int) -> None:
    data = words(15, 33 * 33).view(np.uint8)[: 33 * length].reshape(33, length)
    call = Call("sha256Kern", 2, 32, [u32(33), u32(length), inp("x"), out("y")])
    results = corpus.run("crypto", call, x=np.append(data.ravel(), np.uint8(0)), y=np.zeros((33, 8), np.uint32))
    assert [row.byteswap().tobytes() for row in results["y"]] == [hashlib.sha256(row.tobytes()).digest() for row in data]


def test_chacha20(corpus: Corpus) -> None:
    key = np.arange(32, dtype=np.uint8).view(np.uint32)
    nonce = np.array([0x09000000, 0x4A000000, 0], np.uint32)
    call = Call("chachaKern", 1, 32, [inp("key"), inp("nonce"), out("stream")])
    results = corpus.run("crypto", call, key=key, nonce=nonce, stream=np.zeros((32, 16), np.uint32))
    # The key stream of block 1 in section 2.3.2 of RFC 8439.
    expected = (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )
    assert results["stream"][1].tobytes().hex() == expected
    assert len(set(map(bytes, results["stream"]))) == 32


def aes_key_schedule(key: bytes) -> np.ndarray:
    """The round keys of AES-128 as 44 little-endian words."""

    def times(a: int, b: int) -> int:
        result = 0
        for bit in range(8):
            result ^= (a << bit) * (b >> bit & 1)
        for bit in range(14, 7, -1):
            result ^= (0x11B << bit - 8) * (result >> bit & 1)
        return result

    def substitute(x: int) -> int:
        inverse = next((y for y in range(256) if times(x, y) == 1), 0)
        for by in range(1, 5):
            x = (inverse << by | inverse >> 8 - by) & 255 ^ (x if by > 1 else inverse)
        return x ^ 0x63

    schedule = [list(key[i : i + 4]) for i in range(0, 16, 4)]
    constant = 1
    for i in range(4, 44):
        word = list(schedule[i - 1])
        if i % 4 == 0:
            word = [substitute(x) for x in word[1:] + word[:1]]
            word[0] ^= constant
            constant = times(constant, 2)
        schedule.append([x ^ y for x, y in zip(schedule[i - 4], word, strict=True)])
    return np.array(schedule, np.uint8).reshape(-1).view(np.uint32)


def test_aes128(corpus: Corpus) -> None:
    # The examples of FIPS 197, appendices B and C.1.
    cases = [
        ("2b7e151628aed2a6abf7158809cf4f3c", "3243f6a8885a308d313198a2e0370734", "3925841d02dc09fbdc118597196a0b32"),
        ("000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff", "69c4e0d86a7b0430d8cdb78070b4c55a"),
    ]
    for key, text, cipher in cases:
        blocks = words(16, 4 * 40).view(np.uint8).reshape(40, 16)
        blocks[[5, 39]] = np.frombuffer(bytes.fromhex(text), np.uint8)
        call = Call("aesKern", 2, 32, [u32(40), inp("keys"), inp("x"), out("y")])
        results = corpus.run("crypto", call, keys=aes_key_schedule(bytes.fromhex(key)), x=blocks, y=np.zeros_like(blocks))
        assert [results["y"][i].tobytes().hex() for i in (5, 39)] == [cipher, cipher]
        assert len(set(map(bytes, results["y"]))) == 39


def test_siphash(corpus: Corpus) -> None:
    key = np.arange(16, dtype=np.uint8).tobytes()
    data = np.tile(np.arange(8, dtype=np.uint8), (32, 1))
    call = Call("siphashKern", 1, 32, [u32(32), u32(1), key, inp("x"), out("y")])
    results = corpus.run("crypto", call, x=data, y=np.zeros(32, np.uint64))
    # Number 8 of the reference vectors of SipHash-2-4: the message 00 01 … 07.
    assert results["y"].tolist() == [0x93F5F5799A932462] * 32


def test_xorshift(corpus: Corpus) -> None:
    state = wides(17, 128).reshape(64, 2)
    call = Call("xorshiftKern", 2, 32, [u32(20), inout("state"), out("y")])
    results = corpus.run("random", call, state=state, y=np.zeros((20, 64), np.uint64))
    a, b = state[:, 0].copy(), state[:, 1].copy()
    for row in results["y"]:
        t, a = a, b
        t = t ^ t << np.uint64(23)
        b = t ^ (t >> np.uint64(18) ^ b ^ b >> np.uint64(5))
        assert np.array_equal(row, a + b)
    assert np.array_equal(results["state"], np.stack([a, b], axis=1))


def test_philox(corpus: Corpus) -> None:
    key = np.array([0xA4093822, 0x299F31D0], np.uint32)
    call = Call("philoxKern", 2, 64, [u32(3), key.tobytes(), out("y")])
    results = corpus.run("random", call, y=np.zeros((128, 4), np.uint32))
    for i in (0, 1, 127):
        # NumPy counts before it draws, and its key and counter are of 64 bits: the four-by-32 variant is written out here.
        c, k = [i, 3, 0, 0], key.tolist()
        for _ in range(10):
            x, y = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [y >> 32 ^ c[1] ^ k[0], y % 2**32, x >> 32 ^ c[3] ^ k[1], x % 2**32]
            k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
        assert results["y"][i].tolist() == c


def test_pcg(corpus: Corpus) -> None:
    seed = 0x853C49E6748FEA9B
    results = corpus.run("random", Call("pcgKern", 1, 128, [u64(seed), out("y")]), y=np.zeros(128, np.uint32))
    expected, state = [], seed
    for _ in range(128):
        mixed = ((state >> 18 ^ state) >> 27) % 2**32
        turn = state >> 59
        expected.append((mixed >> turn | mixed << (32 - turn)) % 2**32)
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
    assert results["y"].tolist() == expected


def test_pi_by_monte_carlo(corpus: Corpus) -> None:
    results = corpus.run("random", Call("piKern", 4, 64, [u32(100), inout("hits")]), hits=np.zeros(1, np.uint64))
    state = (np.arange(1, 257, dtype=np.uint32) * np.uint32(2654435761)).astype(np.uint32)
    hits = 0

    def draw() -> np.ndarray:
        nonlocal state
        state = state ^ state << np.uint32(13)
        state = state ^ state >> np.uint32(17)
        state = state ^ state << np.uint32(5)
        return (state >> np.uint32(1)).astype(np.uint64)

    for _ in range(100):
        x, y = draw(), draw()
        hits += int((x * x + y * y < 2**62).sum())
    assert results["hits"][0] == hits
    assert abs(4 * hits / 25600 - math.pi) < 0.05


def test_normal_numbers(corpus: Corpus) -> None:
    pairs = words(18, 2000).reshape(1000, 2)
    call = Call("normalsKern", 8, 128, [u32(1000), inp("x"), out("y")])
    results = corpus.run("random", call, x=pairs, y=np.zeros((1000, 2), np.float32))
    u, v = ((pairs[:, 0] >> 8) + 0.5) * 2.0**-24, (pairs[:, 1] >> 8) * 2.0**-24
    radius = np.sqrt(-2 * np.log(u.astype(np.float32).astype(np.float64)))
    exact = np.stack([radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)], axis=1)
    np.testing.assert_allclose(results["y"], exact, rtol=1e-6, atol=1e-6)


def test_number_theoretic_transform(corpus: Corpus) -> None:
    modulus = 3 * 2**30 + 1
    root = pow(5, (modulus - 1) // 256, modulus)
    data = words(31, 2 * 256, modulus).reshape(2, 256)
    results = corpus.run("fourier", Call("nttKern", 2, 128, [u32(root), inout("x")]), x=data)
    powers = [pow(root, i, modulus) for i in range(256)]
    for row, transformed in zip(data.tolist(), results["x"].tolist(), strict=True):
        for k in range(0, 256, 7):
            assert transformed[k] == sum(x * powers[i * k % 256] for i, x in enumerate(row)) % modulus


def test_distances_between_all_pairs(corpus: Corpus) -> None:
    n = 40
    distances = words(32, n * n, 1000).astype(np.int32).reshape(n, n)
    distances[normals(33, n, n) > 0] = 10**8
    np.fill_diagonal(distances, 0)
    calls = [Call("floydKern", (1, n, 1), 64, [u32(n), u32(k), inout("d")]) for k in range(n)]
    results = corpus.run("grid", *calls, d=distances)
    expected = distances.copy()
    for k in range(n):
        expected = np.minimum(expected, expected[:, k : k + 1] + expected[k : k + 1])
    assert np.array_equal(results["d"], expected)
