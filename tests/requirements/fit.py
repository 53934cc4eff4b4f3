"""Rules from what was measured: words of a mnemonic, in order, and what an instruction that has them needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations

Words = tuple[str, ...]
Rules = dict[Words, int]


def is_within(words: Words, mnemonic: Words) -> bool:
    """Whether the words stand in a mnemonic, in this order, with others between or not, and none of those with a ``!`` does."""
    if words[-1][0] == "!":
        return words[-1][1:] not in mnemonic and is_within(words[:-1], mnemonic)
    left = iter(mnemonic[1:])
    return words[0] == mnemonic[0] and all(word in left for word in words[1:])


def fit(needed: Mapping[Words, int]) -> Rules:
    """Return rules of which the largest that applies is what each mnemonic needs; mnemonics are of one opcode.

    Greedy: of all rules that no mnemonic contradicts, the shortest that says something new of most mnemonics, again and again.
    """
    said = dict.fromkeys(needed, 0)
    rules: Rules = {}
    for most in sorted(set(needed.values()) - {0}):
        while open_ := [words for words, number in needed.items() if number == most > said[words]]:
            rule = _best(open_, needed, most)
            rules[rule] = most
            for words in needed:
                if is_within(rule, words):
                    said[words] = max(said[words], most)
    return rules


def _best(open_: Iterable[Words], needed: Mapping[Words, int], number: int) -> Words:
    some = list(open_)
    lower = [words for words, other in needed.items() if other < number]
    unlike = sorted({word for words in lower for word in words[1:]})
    for others in ([""], unlike):
        for length in range(1, max(map(len, some)) + 1):
            candidates = {part for words in some for part in _parts(words, length)}
            rules = [(*part, f"!{other}") if other else part for part in candidates for other in others]
            valid = [rule for rule in rules if not any(is_within(rule, words) for words in lower)]
            counts = {rule: sum(is_within(rule, words) for words in some) for rule in valid}
            if counts and max(counts.values()):
                return max(counts, key=lambda rule: (counts[rule], rule))
    raise ValueError(f"{some[0]} needs {number}, and others with its words need less")


def _parts(words: Words, length: int) -> Iterator[Words]:
    if len(words) >= length:
        for rest in combinations(words[1:], length - 1):
            yield (words[0], *rest)
