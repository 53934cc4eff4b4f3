"""What the benchmarks found: rows with their alternatives and targets, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from benchmarks.turns import Figure, Turns

MIN_SAMPLES_OF_P99 = 100
"""Of fewer samples a 99th percentile is but the largest."""


@dataclass(frozen=True)
class Target:
    """What a row is held to: a ratio to something, and where it has to lie."""

    beside: str
    """What the ratio is to: an alternative's name, or a word for a share."""
    ratio: Figure
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        """Whether the median lies where it has to."""
        value = self.ratio.median
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)

    def __str__(self) -> str:
        bounds = [f"≥ {self.at_least:g}"] if self.at_least is not None else []
        bounds += [f"≤ {self.at_most:g}"] if self.at_most is not None else []
        bound = ", ".join(bounds)
        return f"{number(self.ratio.median)} × {self.beside} ({bound})"  # noqa: RUF001


@dataclass(frozen=True)
class Row:
    """One thing measured on kaasd, beside its alternatives."""

    section: str
    what: str
    unit: str
    kaasd: Figure | str
    """A word says why there is none."""
    beside: Mapping[str, Figure | str] = field(default_factory=dict)
    """By the alternative's name; a word says why there is none."""
    targets: Sequence[Target] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Further figures, for the JSON file and, where they are text, for the table."""
    x: float | None = None
    """Where the row stands on its section's horizontal axis."""
    series: str = ""
    """Which line of its section's plot it belongs to."""

    def to_json(self) -> dict[str, Any]:
        """Return the row for the JSON file."""
        targets = [{**asdict(target), "met": target.met} for target in self.targets]
        return {**asdict(self), "targets": targets}


def compare(
    turns: Turns, *, scale: float = 1.0, missing: Mapping[str, str] | None = None, name: str = "kaasd"
) -> tuple[Figure, dict[str, Figure | str]]:
    """Return kaasd's figure and those beside it, times ``scale``; ``missing`` says which were not there, and why."""
    figures: dict[str, Figure | str] = {other: turns.figure(other).scaled(scale) for other in turns.rounds if other != name}
    return turns.figure(name).scaled(scale), {**figures, **(missing or {})}


def targets(
    turns: Turns,
    *,
    at_most: Mapping[str, float] | None = None,
    at_least: Mapping[str, float] | None = None,
    name: str = "kaasd",
) -> list[Target]:
    """Return the targets that can be told: a bound on the ratio to each of these alternatives, those that are missing aside."""
    below = [Target(other, turns.ratio(name, other), at_most=x) for other, x in (at_most or {}).items() if other in turns]
    above = [Target(other, turns.ratio(name, other), at_least=x) for other, x in (at_least or {}).items() if other in turns]
    return [*below, *above]


def number(value: float) -> str:
    """Return a number as a person would write it: three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def shown(figure: Figure | str) -> Text:
    """Return a figure with its spread, or the word in its place."""
    if isinstance(figure, str):
        return Text(figure, style="dim")
    if figure.samples == 1:
        return Text(number(figure.median))
    tail = f"; p99 {number(figure.p99)}" if figure.samples >= MIN_SAMPLES_OF_P99 else ""
    return Text.assemble(number(figure.median), (f" ({number(figure.p10)} to {number(figure.p90)}{tail})", "dim"))


def table(rows: Sequence[Row], title: str) -> Table:
    """Return all rows, an alternative a line."""
    result = Table(
        title=title, title_justify="left", caption="medians, with the 10th and 90th percentile", caption_justify="left"
    )
    result.add_column("what", max_width=44)
    result.add_column("kaasd", justify="right")
    result.add_column("beside")
    result.add_column("target")
    for row in rows:
        beside = Text("\n").join(Text.assemble((f"{name}: ", "cyan"), shown(figure)) for name, figure in row.beside.items())
        verdicts = Text("\n").join(
            Text(f"{'pass' if target.met else 'MISS'}  {target}", style="green" if target.met else "red")
            for target in row.targets
        )
        kaasd = shown(row.kaasd)
        if not isinstance(row.kaasd, str):
            kaasd.append(f" {row.unit}")
        notes = [f"{name}: {note}" for name, note in row.notes.items() if isinstance(note, str)]
        what = Text.assemble(row.what, *(Text(f"\n{note}", style="dim") for note in notes))
        result.add_row(what, kaasd, beside, verdicts, end_section=True)
    return result
