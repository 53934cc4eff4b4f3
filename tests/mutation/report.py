"""What is said of the mutants: how many were noticed, and those that were not, each with its change."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path

from tests.mutation.mutants import Mutant
from tests.mutation.runner import Outcome

PACKAGES = ("front", "worker", "store", "request", "api", "ipc")
ACCEPTED = Path(__file__).with_name("accepted.toml")
WANTED = 0.9
_OUTCOMES = ("killed", "survived", "timed out", "no coverage", "accepted")


def report(results: list[tuple[Mutant, Outcome]], wanted: int, seed: int, failed: list[str]) -> tuple[str, float]:
    """Return the report as Markdown, and the share that was noticed of those that have to be.

    ``wanted`` is how many mutants there will be in all, ``failed`` are the tests that fail with no change at all.
    """
    entries = tomllib.loads(ACCEPTED.read_text()).get("mutant", [])
    reasons = {(entry["file"], entry["line"], entry["mutation"]): entry["reason"] for entry in entries}
    lines = ["# Mutation testing", "", f"{len(results)} of {wanted} mutants, `--seed {seed}`.", ""]
    lines += [f"| package | {' | '.join(_OUTCOMES)} |", "|---|" + "--:|" * len(_OUTCOMES)]
    total: Counter[str] = Counter()
    for package in PACKAGES:
        count = Counter(
            "accepted" if mutant.key in reasons and not outcome.is_noticed else outcome.what
            for mutant, outcome in results
            if mutant.path.startswith(f"kaasd/{package}/")
        )
        total += count
        lines.append(f"| {package} | " + " | ".join(str(count[what]) for what in _OUTCOMES) + " |")
    lines.append("| all | " + " | ".join(str(total[what]) for what in _OUTCOMES) + " |")
    noticed = total["killed"] + total["timed out"]
    judged = total.total() - total["accepted"]
    share = noticed / judged if judged else 1.0
    lines += ["", f"Killed or timed out: {noticed} of {judged}, {share:.1%}; at least {WANTED:.0%} are wanted.", ""]
    if failed:
        lines += ["Left out, as they fail with no change at all:", "", *(f"* `{test}`" for test in failed), ""]
    for mutant, outcome in sorted(results, key=lambda result: (result[0].path, result[0].line)):
        if not outcome.is_noticed:
            lines += [f"## {mutant.path}:{mutant.line} {outcome.what}", "", *([outcome.note, ""] if outcome.note else [])]
            lines += ["```diff", mutant.diff, "```", ""]
            lines += [f"Accepted: {reasons[mutant.key]}", ""] if mutant.key in reasons else _entry(mutant)
    return "\n".join(lines), share


def _entry(mutant: Mutant) -> list[str]:
    """Return the entry of ``accepted.toml`` in which only the reason is missing."""
    entry = zip(("file", "line", "mutation", "reason"), (*mutant.key, ""), strict=True)
    return ["```toml", "[[mutant]]", *(f"{name} = {json.dumps(text)}" for name, text in entry), "```", ""]
