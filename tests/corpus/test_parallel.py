"""Kernels whose threads work together: reductions, scans, sorts, warps, locks, atomics, cooperative groups, transposes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.launching import Call, inout, inp, out, u32
from tests.corpus.running import Check, Corpus, i32, wides, words

ZERO = np.zeros(1, np.uint32)


def test_sum(corpus: Corpus) -> None:
    values = words(1, 10_007)
    results = corpus.run("reduce", Call("sumKern", 4, 256, [u32(len(values)), inp("x"), inout("sum")]), x=values, sum=ZERO + 5)
    assert results["sum"][0] == (int(values.sum(dtype=np.uint64)) + 5) % 2**32


def test_sum_in_a_fixed_order(corpus: Corpus, same_as_gpu: Check) -> None:
    values = np.random.default_rng(2).standard_normal(4 * 512) * 10.0 ** np.random.default_rng(3).integers(-8, 8, 4 * 512)
    results = corpus.run("reduce", Call("sumTreeKern", 4, 256, [inp("x"), out("sums")]), x=values, sums=np.zeros(4))
    blocks = values.reshape(4, 2, 256)
    level = (blocks[:, 0] + blocks[:, 1]).reshape(4, 8, 32)
    for offset in (16, 8, 4, 2, 1):
        level[..., :offset] += level[..., offset : 2 * offset]
    of_warp = level[..., 0]
    for offset in (4, 2, 1):
        of_warp[..., :offset] += of_warp[..., offset : 2 * offset]
    assert np.array_equal(results["sums"], of_warp[:, 0])
    same_as_gpu(sums=results["sums"])


def test_argmax(corpus: Corpus) -> None:
    values = np.random.default_rng(4).standard_normal(5000).astype(np.float32)
    values[[1234, 4321]] = 7.5
    for sign in (1, -1):
        results = corpus.run(
            "reduce",
            Call("argmaxKern", 5, 128, [u32(5000), inp("x"), inout("best")]),
            x=sign * values,
            best=np.zeros(1, np.uint64),
        )
        assert 0xFFFFFFFF - (int(results["best"][0]) & 0xFFFFFFFF) == np.argmax(sign * values)


def test_norm_by_the_last_block(corpus: Corpus, same_as_gpu: Check) -> None:
    values = np.random.default_rng(5).standard_normal(3000).astype(np.float32)
    results = corpus.run(
        "reduce",
        Call("normKern", 6, 128, [u32(3000), inp("x"), out("partial"), inout("done"), out("norm")]),
        iterations=2,
        x=values,
        partial=np.zeros(6, np.float32),
        done=ZERO,
        norm=np.zeros(1, np.float32),
    )
    assert results["done"][0] == 0
    np.testing.assert_allclose(results["norm"][0], np.linalg.norm(values.astype(np.float64)), rtol=1e-6)
    same_as_gpu(partial=results["partial"], norm=results["norm"])


def test_warp_reductions(corpus: Corpus) -> None:
    values = words(6, 128)
    results = corpus.run(
        "redux", Call("reduxKern", 2, 64, [u32(128), inp("x"), out("y")]), x=values, y=np.zeros((8, 128), np.uint32)
    )
    warps, signed = values.reshape(4, 32), values.view(np.int32).reshape(4, 32)
    halves = values.reshape(4, 16, 2)
    assert np.array_equal(results["y"][0], np.repeat(warps.sum(axis=1, dtype=np.uint32), 32))
    assert np.array_equal(results["y"][1], np.repeat(warps.min(axis=1), 32))
    assert np.array_equal(results["y"][2], np.repeat(warps.max(axis=1), 32))
    assert np.array_equal(results["y"][3].view(np.int32), np.repeat(signed.min(axis=1), 32))
    for row, operation in enumerate(
        (np.maximum.reduce, np.bitwise_and.reduce, np.bitwise_or.reduce, np.bitwise_xor.reduce), start=4
    ):
        source = halves.view(np.int32) if row == 4 else halves
        expected = np.repeat(operation(source, axis=1)[:, None], 16, axis=1).reshape(-1)
        assert np.array_equal(results["y"][row], expected.view(np.uint32))


def test_scan_of_blocks(corpus: Corpus) -> None:
    values = words(7, 3 * 320)
    results = corpus.run("scan", Call("scanBlockKern", 3, 320, [inp("x"), out("y")]), x=values, y=np.zeros_like(values))
    assert np.array_equal(results["y"], values.reshape(3, 320).cumsum(axis=1, dtype=np.uint32).ravel())


def test_blelloch_scan(corpus: Corpus, same_as_gpu: Check) -> None:
    values = np.random.default_rng(8).uniform(0, 1, 2 * 256).astype(np.float32)
    results = corpus.run("scan", Call("scanBlellochKern", 2, 128, [inp("x"), out("y")], 1024), x=values, y=np.zeros_like(values))
    sums = values.reshape(2, 256).astype(np.float64).cumsum(axis=1)
    exact = np.concatenate([np.zeros((2, 1)), sums[:, :-1]], axis=1).ravel()
    np.testing.assert_allclose(results["y"], exact, rtol=2e-6, atol=1e-7)
    same_as_gpu(y=results["y"])


def test_scan_with_decoupled_look_back(corpus: Corpus) -> None:
    values, blocks = words(9, 12_001), 47
    results = corpus.run(
        "scan",
        Call("scanLookbackKern", blocks, 256, [u32(len(values)), inp("x"), out("y"), inout("state"), inout("ticket")]),
        x=values,
        y=np.zeros_like(values),
        state=np.zeros(blocks, np.uint64),
        ticket=ZERO,
    )
    assert np.array_equal(results["y"], values.cumsum(dtype=np.uint32))


def test_compaction(corpus: Corpus) -> None:
    values = words(10, 1500).view(np.int32)
    results = corpus.run(
        "scan",
        Call("compactKern", 1, 256, [u32(1500), i32(-(2**29)), inp("x"), out("y"), out("count")]),
        x=values,
        y=np.zeros_like(values),
        count=ZERO,
    )
    kept = values[values > -(2**29)]
    assert results["count"][0] == len(kept)
    assert np.array_equal(results["y"], np.concatenate([kept, np.zeros(1500 - len(kept), np.int32)]))


def test_bitonic_sort(corpus: Corpus) -> None:
    values = words(11, 3 * 512).view(np.int32)
    results = corpus.run("sort", Call("bitonicKern", 3, 256, [inout("x")], 2048), x=values)
    assert np.array_equal(results["x"], np.sort(values.reshape(3, 512), axis=1).ravel())


def test_bitonic_sort_within_warps(corpus: Corpus) -> None:
    values = np.random.default_rng(12).standard_normal(256).astype(np.float32)
    results = corpus.run("sort", Call("bitonicWarpKern", 2, 128, [inout("x")]), x=values)
    assert np.array_equal(results["x"], np.sort(values.reshape(8, 32), axis=1).ravel())


@pytest.mark.parametrize("n", [512, 300])
def test_radix_sort(corpus: Corpus, n: int) -> None:
    keys, values = words(13, n) >> 20, np.arange(n, dtype=np.uint32)
    results = corpus.run("sort", Call("radixKern", 1, 512, [u32(n), inout("keys"), inout("values")]), keys=keys, values=values)
    order = np.argsort(keys, kind="stable")
    assert np.array_equal(results["keys"], keys[order])
    assert np.array_equal(results["values"], order)


def test_quicksort_with_a_stack(corpus: Corpus) -> None:
    rows = np.random.default_rng(14).integers(0, 500, (50, 200), np.uint16)
    rows[0], rows[1] = np.arange(200), 7
    results = corpus.run("sort", Call("quicksortKern", 2, 32, [u32(50), u32(200), inout("x")]), x=rows)
    assert np.array_equal(results["x"], np.sort(rows, axis=1))


def test_merge(corpus: Corpus) -> None:
    a, b = np.sort(wides(15, 700, 5000).view(np.int64) - 2000), np.sort(wides(16, 301, 5000).view(np.int64) - 2000)
    results = corpus.run(
        "sort",
        Call("mergeKern", 8, 128, [u32(700), u32(301), inp("a"), inp("b"), out("c")]),
        a=a,
        b=b,
        c=np.zeros(1001, np.int64),
    )
    assert np.array_equal(results["c"], np.sort(np.concatenate([a, b])))


def test_histogram_by_matching(corpus: Corpus) -> None:
    values = words(17, 3001, 40)
    results = corpus.run(
        "warp", Call("histogramMatchKern", 24, 128, [u32(3001), inp("x"), inout("bins")]), x=values, bins=np.zeros(40, np.uint32)
    )
    assert np.array_equal(results["bins"], np.bincount(values, minlength=40))


def test_compaction_by_ballots(corpus: Corpus) -> None:
    values = wides(18, 1000)
    results = corpus.run(
        "warp",
        Call("compactBallotKern", 8, 128, [u32(1000), inp("x"), out("y"), inout("count")]),
        x=values,
        y=np.zeros_like(values),
        count=ZERO,
    )
    kept = values[values % 2 == 1]
    assert results["count"][0] == len(kept)
    assert np.array_equal(np.sort(results["y"][: len(kept)]), np.sort(kept))


def test_votes(corpus: Corpus) -> None:
    values = np.concatenate([wides(19, 32, 100), wides(20, 32) % 50 + 11, np.full(32, 77), np.full(32, 2**40 + 5)]).astype(
        np.uint64
    )
    results = corpus.run(
        "warp", Call("votesKern", 1, 128, [u32(128), inp("x"), out("y")]), x=values, y=np.zeros((6, 128), np.uint32)
    )
    warps = values.reshape(4, 32)
    assert np.array_equal(results["y"][0], np.repeat((warps > 10).all(axis=1), 32))
    assert np.array_equal(results["y"][1], np.repeat((warps == 77).any(axis=1), 32))
    assert np.array_equal(results["y"][2], np.repeat([sum(1 << i for i in range(32) if row[i] % 2) for row in warps], 32))
    assert np.array_equal(results["y"][3], np.repeat([len(set(row)) == 1 for row in warps], 32))
    first = [[list(row).index(x) + 1 if x % 2 else 0 for x in row] for row in warps]
    assert np.array_equal(results["y"][4].reshape(4, 32), first)
    assert np.array_equal(results["y"][5], np.tile(2 ** np.arange(32, dtype=np.uint64) - 1, 4))


def test_shuffles_on_diverged_paths(corpus: Corpus) -> None:
    values = words(21, 128, 1000)
    results = corpus.run("warp", Call("divergedKern", 1, 128, [inp("x"), out("y")]), x=values, y=np.zeros_like(values))
    expected = []
    for warp in values.reshape(4, 32):
        same = [warp[warp % 3 == path] for path in range(3)]
        expected.append([(same[0].sum(), 3 * same[1].sum(), len(same[2]))[value % 3] for value in warp])
    assert np.array_equal(results["y"].reshape(4, 32), expected)


def test_spin_lock(corpus: Corpus) -> None:
    results = corpus.run(
        "locks", Call("spinLockKern", 4, 64, [inout("lock"), inout("counters")]), lock=ZERO, counters=np.zeros(2, np.uint64)
    )
    assert results["counters"].tolist() == [256, 255 * 128]
    assert results["lock"][0] == 0


def test_ticket_lock(corpus: Corpus) -> None:
    results = corpus.run(
        "locks",
        Call("ticketLockKern", 3, 32, [inout("served"), inout("next"), inout("order")]),
        served=np.zeros(2, np.uint32),
        next=ZERO,
        order=np.zeros(96, np.uint32),
    )
    assert results["served"].tolist() == [96, 96]
    assert np.array_equal(np.sort(results["order"]), np.arange(96))


def test_producer_and_consumer(corpus: Corpus) -> None:
    results = corpus.run(
        "locks",
        Call("producerKern", 2, 32, [u32(100), inout("ring"), inout("ready"), out("y")]),
        ring=np.zeros(8, np.uint32),
        ready=np.zeros(8, np.uint32),
        y=np.zeros(100, np.uint32),
    )
    assert np.array_equal(results["y"], np.arange(100) ** 2 + 1)


def atomics_on_integers(values: np.ndarray, wide: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    """What the atomics of the corpus leave, from the initial values that ``atomic_buffers`` gives."""
    u, signed = [int(x) for x in values], [int(x) for x in values.view(np.int32)]
    ls, signed_l = [int(x) for x in wide], [int(x) for x in wide.view(np.int64)]
    count = len(u)
    low, high = 2**32, 2**64
    # Inc and Dec wrap to 0 and to 1000: of any order, since each thread applies the same.
    after = [
        sum(u) % low,
        -sum(u) % low,
        min(u),
        max(u),
        int(np.bitwise_and.reduce(values | 0xFFF0)),
        int(np.bitwise_or.reduce(values)),
        int(np.bitwise_xor.reduce(values)),
        count % 1001,
        -count % 1001,
        12345,
        99,
        count,
    ]
    s = [sum(signed), min(signed), max(signed), -sum(signed)]
    wrapped = [(x + 2**31) % low - 2**31 for x in s]
    long = [
        sum(ls) % high,
        min(ls),
        max(ls),
        min(signed_l) % high,
        max(signed_l) % high,
        int(np.bitwise_and.reduce(wide | np.uint64(0xFFFF))),
        int(np.bitwise_or.reduce(wide)) & 0x0101010101010101,
        int(np.bitwise_xor.reduce(wide)),
    ]
    return after, wrapped, long


@pytest.mark.parametrize(("kernel", "grid", "block"), [("integersKern", 5, 64), ("sharedKern", 1, 320)])
def test_atomics_on_integers(corpus: Corpus, kernel: str, grid: int, block: int) -> None:
    values, wide = words(22, 320), wides(23, 320)
    u = np.zeros(12, np.uint32)
    u[[2, 4]] = 0xFFFFFFFF
    long = np.array([0, 2**64 - 1, 0, 2**63 - 1, 2**63, 2**64 - 1, 0, 0], np.uint64)
    s = np.array([0, 2**31 - 1, -(2**31), 0], np.int32)
    call = Call(kernel, grid, block, [inp("values"), inp("wide"), inout("u"), inout("s"), inout("l")])
    results = corpus.run("atomics", call, values=values, wide=wide, u=u, s=s, l=long)
    expected = atomics_on_integers(values, wide)
    assert (results["u"].tolist(), results["s"].tolist(), results["l"].tolist()) == expected


def test_atomics_on_floats(corpus: Corpus) -> None:
    values = np.random.default_rng(24).integers(-1000, 1000, 256).astype(np.float32)
    call = Call("floatsKern", 2, 128, [inp("x"), inout("f"), inout("d")])
    results = corpus.run("atomics", call, x=values, f=np.zeros(2, np.float32), d=np.zeros(2))
    total = float(values.sum(dtype=np.float64))
    assert results["f"].tolist() == [total, total]
    assert results["d"].tolist() == [total / 1024, 3 * total]


def test_values_that_atomics_return(corpus: Corpus) -> None:
    call = Call("ticketsKern", 3, 64, [inout("counters"), out("old")])
    results = corpus.run("atomics", call, counters=np.array([0, 0, 191, 0], np.uint32), old=np.zeros((4, 192), np.uint32))
    for row in results["old"][:3]:
        assert np.array_equal(np.sort(row), np.arange(192))
    seen = np.append(results["old"][3], results["counters"][3])
    assert np.array_equal(np.sort(seen), np.arange(193))


def test_atomics_made_of_compare_and_swap(corpus: Corpus) -> None:
    values = np.random.default_rng(25).uniform(0, 100, 256).astype(np.float32)
    factors, modulus = wides(26, 256, 2**61 - 1), 2**61 - 1
    call = Call("customKern", 4, 64, [inp("x"), inp("factors"), inout("largest"), inout("product")])
    results = corpus.run(
        "atomics", call, x=values, factors=factors, largest=np.zeros(1, np.float32), product=np.ones(1, np.uint64)
    )
    product = 1
    for factor in factors:
        product = product * int(factor) % modulus
    assert results["largest"][0] == values.max()
    assert results["product"][0] == product


@pytest.mark.parametrize(
    ("bytes_each", "kind"), [(1, np.dtype("u1")), (4, np.dtype("f4")), (8, np.dtype("f8")), (16, np.dtype("(4,)i4"))], ids=str
)
def test_transpose(corpus: Corpus, bytes_each: int, kind: np.dtype) -> None:
    height, width = 45, 70
    raw = np.random.default_rng(27).integers(0, 255, (height, width, bytes_each), np.uint8)
    raw[..., -1] &= 0x3F  # no NaN
    call = Call(f"transpose{bytes_each}Kern", (3, 2, 1), (32, 8, 1), [u32(width), u32(height), inp("x"), out("y")])
    results = corpus.run("transpose", call, x=raw, y=np.zeros((width, height, bytes_each), np.uint8))
    assert np.array_equal(results["y"], raw.transpose(1, 0, 2)), kind


def test_permute(corpus: Corpus) -> None:
    shape = (3, 10, 21)
    values = np.random.default_rng(28).standard_normal((*shape, 3)).astype(np.float32)
    packed = np.array(shape, np.uint32).tobytes()
    call = Call("permuteKern", (2, 2, 3), (16, 8, 1), [packed, inp("x"), out("y")])
    results = corpus.run("transpose", call, x=values, y=np.zeros((21, 3, 10, 3), np.float32))
    assert np.array_equal(results["y"], values.transpose(2, 0, 1, 3))


def test_tiles_of_a_block(corpus: Corpus) -> None:
    values = words(29, 128)
    results = corpus.run(
        "cooperative", Call("tilesKern", 2, 64, [u32(128), inp("x"), out("y")]), x=values, y=np.zeros((2, 128), np.uint32)
    )
    assert np.array_equal(results["y"][0], np.repeat(values.reshape(-1, 8).sum(axis=1, dtype=np.uint32), 8))
    thread = np.arange(128) % 64
    assert np.array_equal(results["y"][1], thread % 8 + 100 * (thread // 8))


def test_reductions_of_groups(corpus: Corpus) -> None:
    values = words(30, 128).view(np.int32)
    results = corpus.run(
        "cooperative", Call("reduceKern", 2, 64, [u32(128), inp("x"), out("y")]), x=values, y=np.zeros((3, 128), np.int32)
    )
    assert np.array_equal(results["y"][0], np.repeat(values.reshape(-1, 16).sum(axis=1, dtype=np.int32), 16))
    assert np.array_equal(results["y"][1], np.repeat(values.reshape(-1, 32).max(axis=1), 32))
    assert np.array_equal(results["y"][2], np.repeat(np.bitwise_xor.reduce(values.reshape(-1, 32), axis=1), 32))


def test_coalesced_threads(corpus: Corpus) -> None:
    values = words(31, 250)
    results = corpus.run("cooperative", Call("coalescedKern", 4, 64, [u32(250), inp("x"), inout("total")]), x=values, total=ZERO)
    assert results["total"][0] == (values % 3 == 0).sum()


def test_partition_by_label(corpus: Corpus) -> None:
    labels = words(32, 64, 5)
    results = corpus.run("cooperative", Call("partitionKern", 1, 64, [inp("x"), out("y")]), x=labels, y=np.zeros(64, np.uint32))
    expected = []
    for i, label in enumerate(labels):
        members = [j for j in range(i // 32 * 32, i // 32 * 32 + 32) if labels[j] == label]
        expected.append(members[0] * 10000 + len(members) * 100 + members.index(i))
    assert results["y"].tolist() == expected


def test_scan_of_a_group(corpus: Corpus) -> None:
    values = words(33, 64)
    results = corpus.run("cooperative", Call("scanKern", 1, 64, [inp("x"), out("y")]), x=values, y=np.zeros_like(values))
    assert np.array_equal(results["y"], values.reshape(2, 32).cumsum(axis=1, dtype=np.uint32).ravel())


def test_ranks_in_the_grid(corpus: Corpus) -> None:
    results = corpus.run("cooperative", Call("gridKern", (2, 3, 1), (4, 3, 2), [out("y")]), y=np.zeros(144, np.uint64))
    rank = np.arange(144, dtype=np.uint64)
    assert np.array_equal(results["y"], rank + rank % 24 * 100_000 + 24 * 10**9 + rank // 24 * 10**12)
