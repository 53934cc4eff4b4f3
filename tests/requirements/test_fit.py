"""The words that are found say what was measured, and no more."""

from __future__ import annotations

from tests.requirements.fit import fit, is_within

NEEDED = {
    ("cvt", "f32", "f16"): 0,
    ("cvt", "f16", "f32"): 0,
    ("cvt", "bf16", "f32"): 3,
    ("cvt", "rn", "bf16", "f32"): 3,
    ("cvt", "f32", "bf16"): 4,
    ("cvt", "rn", "f32", "bf16"): 4,
    ("cvt", "relu", "bf16", "f32"): 6,
    ("fence", "release", "cluster"): 5,
    ("fence", "mbarrier_init", "release", "cluster"): 4,
}


def test_the_largest_rule_that_applies_is_what_was_measured() -> None:
    for opcode in ("cvt", "fence"):
        needed = {words: number for words, number in NEEDED.items() if words[0] == opcode}
        rules = fit(needed)
        for words, number in needed.items():
            assert max((value for rule, value in rules.items() if is_within(rule, words)), default=0) == number
        assert len(rules) <= len(needed)


def test_the_order_of_words_counts() -> None:
    rules = fit({words: number for words, number in NEEDED.items() if words[0] == "cvt"})
    assert rules[("cvt", "f32", "bf16")] == 4
    assert rules[("cvt", "bf16")] == 3


def test_a_word_that_must_be_missing() -> None:
    assert is_within(("fence", "release", "!mbarrier_init"), ("fence", "release", "cluster"))
    assert not is_within(("fence", "release", "!mbarrier_init"), ("fence", "mbarrier_init", "release", "cluster"))
