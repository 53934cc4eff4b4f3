"""Kernels of strings, graphs and tables."""

from __future__ import annotations

import base64

import numpy as np

from tests.conformance.launching import Call, inout, inp, out, u32
from tests.corpus.running import Corpus, words

ZERO = np.zeros(1, np.uint32)


def test_matches_of_a_pattern(corpus: Corpus) -> None:
    text = words(19, 3000, 3).astype(np.uint8) + ord("a")
    pattern = np.frombuffer(b"abca", np.uint8)
    text[-4:] = pattern
    results = corpus.run(
        "text",
        Call("storeKern", 1, 32, [u32(4), inp("pattern")]),
        Call("matchKern", 12, 256, [u32(3000), inp("text"), out("y")]),
        text=text,
        pattern=pattern,
        y=np.zeros(3000, np.uint8),
    )
    string = text.tobytes()
    assert results["y"].tolist() == [string.startswith(b"abca", i) for i in range(3000)]


def test_automaton(corpus: Corpus) -> None:
    lines = words(20, 50 * 40, 9).astype(np.uint8).reshape(50, 40) + ord("a")
    call = Call("automatonKern", 2, 32, [u32(50), u32(40), inp("x"), out("y")])
    results = corpus.run("text", call, x=lines, y=np.zeros(50, np.uint32))

    def count(line: bytes) -> int:
        state = found = 0
        for c in line.decode():
            if c == "c":
                found += state
            elif c == "d":
                found += 1000
            elif c == "e":
                found ^= 2**31
            elif c == "f":
                found = int(f"{found % 2**32:032b}"[::-1], 2)
            elif c == "g":
                found *= 3
            state = 1 if c == "a" else state if c == "b" else 0
        return found % 2**32

    assert results["y"].tolist() == [count(line.tobytes()) for line in lines]


def test_smith_waterman(corpus: Corpus) -> None:
    a, b = words(21, 70, 4).astype(np.uint8), words(22, 90, 4).astype(np.uint8)
    b[20:50] = a[30:60]
    call = Call("smithKern", 1, 64, [u32(70), u32(90), inp("a"), inp("b"), inout("best")], 12 * 71)
    results = corpus.run("text", call, a=a, b=b, best=np.zeros(1, np.int32))
    score = np.zeros((71, 91), int)
    for i in range(1, 71):
        for j in range(1, 91):
            diagonal = score[i - 1, j - 1] + (3 if a[i - 1] == b[j - 1] else -2)
            score[i, j] = max(0, diagonal, score[i - 1, j] - 4, score[i, j - 1] - 4)
    assert results["best"][0] == score.max()


def test_edit_distance(corpus: Corpus) -> None:
    pairs = [
        ("kitten", "sitting"),
        ("", "abc"),
        ("abc", ""),
        ("", ""),
        ("a" * 32, "b" * 32),
        ("abcdefgh", "bcdefghi"),
        ("x", "x"),
    ]
    letters, lengths = words(23, 40 * 64, 3).reshape(40, 2, 32) + ord("a"), words(24, 80, 33).reshape(40, 2)
    pairs += [tuple("".join(map(chr, letters[i, j, : lengths[i, j]])) for j in range(2)) for i in range(40)]  # type: ignore[misc]
    data = np.zeros((len(pairs), 2, 32), np.uint8)
    for row, pair in zip(data, pairs, strict=True):
        for target, word in zip(row, pair, strict=True):
            target[: len(word)] = list(word.encode())
    call = Call("levenshteinKern", 2, 32, [u32(len(pairs)), inp("x"), out("y")])
    results = corpus.run("text", call, x=data, y=np.zeros(len(pairs), np.uint32))

    def distance(a: str, b: str) -> int:
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, start=1):
            before, row[0] = row[0], i
            for j, y in enumerate(b, start=1):
                before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
        return row[-1]

    assert results["y"].tolist() == [distance(*pair) for pair in pairs]


def test_base64(corpus: Corpus) -> None:
    data = words(25, 75).view(np.uint8)
    call = Call("base64Kern", 2, 64, [u32(100), inp("x"), out("y")])
    results = corpus.run("text", call, x=data, y=np.zeros(400, np.uint8))
    assert results["y"].tobytes() == base64.b64encode(data.tobytes())


def test_utf8(corpus: Corpus) -> None:
    text = "Kernels, Öfen, 窯, печь, 🔥, ف" * 5
    data = np.frombuffer(text.encode(), np.uint8)
    call = Call("utf8Kern", 2, 128, [u32(len(data)), inp("x"), out("y")])
    results = corpus.run("text", call, x=data, y=np.zeros(len(data), np.int32))
    assert "".join(chr(point) for point in results["y"] if point >= 0) == text


def csr_graph(seed: int, nodes: int, edges: int) -> tuple[np.ndarray, np.ndarray]:
    """A random directed graph as starts and neighbours."""
    ends = words(seed, 2 * edges, nodes).reshape(2, edges)
    order = np.argsort(ends[0], kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(ends[0], minlength=nodes))]).astype(np.uint32)
    return starts, ends[1][order]


def test_breadth_first_search(corpus: Corpus) -> None:
    nodes = 600
    starts, neighbours = csr_graph(26, nodes, 1500)
    root = int(np.argmax(np.diff(starts)))
    depths = np.full(nodes, 0xFFFFFFFF, np.uint32)
    depths[root] = 0
    frontier, size, depth = np.full(nodes, root, np.uint32), np.ones(1, np.uint32), 0
    expected, level = depths.copy(), [root]
    while size[0]:
        depth += 1
        level = sorted(
            {int(x) for node in level for x in neighbours[starts[node] : starts[node + 1]] if expected[x] == 0xFFFFFFFF}
        )
        expected[level] = depth
        arguments = [
            u32(depth),
            inp("starts"),
            inp("neighbours"),
            inout("depths"),
            inp("now"),
            inp("size"),
            out("next"),
            inout("count"),
        ]
        results = corpus.run(
            "graph",
            Call("bfsKern", 2, 64, arguments),
            starts=starts,
            neighbours=neighbours,
            depths=depths,
            now=frontier,
            size=size,
            next=np.zeros(nodes, np.uint32),
            count=ZERO,
        )
        depths, frontier, size = results["depths"], results["next"], results["count"]
        assert np.array_equal(np.sort(frontier[: size[0]]), level)
    assert depth > 4
    assert np.array_equal(depths, expected)


def test_connected_components(corpus: Corpus) -> None:
    nodes, edges = 400, words(27, 2 * 300, 400).reshape(300, 2)
    labels, changed = np.arange(nodes, dtype=np.uint32), np.ones(1, np.uint32)
    while changed[0]:
        call = Call("componentsKern", 3, 128, [u32(300), inp("edges"), inout("labels"), inout("changed")])
        results = corpus.run("graph", call, edges=edges, labels=labels, changed=ZERO)
        labels, changed = results["labels"], results["changed"]
    expected = np.arange(nodes)
    for _ in range(nodes):
        for a, b in edges:
            expected[[a, b]] = min(expected[a], expected[b])
    assert np.array_equal(labels, expected)


def test_hash_table(corpus: Corpus) -> None:
    keys, values = words(28, 600, 700) + 1, words(29, 600)
    queries = np.arange(1, 801, dtype=np.uint32)
    results = corpus.run(
        "graph",
        Call("insertKern", 5, 128, [u32(600), u32(10), inp("keys"), inp("values"), inout("table")]),
        Call("findKern", 7, 128, [u32(800), u32(10), inp("queries"), inp("table"), out("found")]),
        keys=keys,
        values=values,
        table=np.zeros(1024, np.uint64),
        queries=queries,
        found=np.zeros(800, np.uint32),
    )
    expected: dict[int, int] = {}
    for key, value in zip(keys.tolist(), values.tolist(), strict=True):
        expected[key] = max(value, expected.get(key, 0))
    assert results["found"].tolist() == [expected.get(key, 0xFFFFFFFF) for key in queries.tolist()]


def test_lists_of_a_table(corpus: Corpus) -> None:
    keys = words(30, 500)
    call = Call("listKern", 4, 128, [u32(500), u32(16), inp("keys"), inout("heads"), out("next")])
    results = corpus.run("graph", call, keys=keys, heads=np.zeros(16, np.uint32), next=np.zeros(500, np.uint32))
    for bucket, head in enumerate(results["heads"]):
        members, node = [], int(head)
        while node:
            members.append(node - 1)
            node = int(results["next"][node - 1])
        assert sorted(members) == np.flatnonzero(keys % 16 == bucket).tolist()
