"""Draws what was measured, one picture a section."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Row, number
from benchmarks.turns import Figure


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw a section: lines over its axis where it has one, else a bar for each figure. Raises ``ImportError``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if isinstance(row.kaasd, Figure)]
    if not rows:
        return
    along = all(row.x is not None for row in rows) and len({row.x for row in rows}) > 1
    series = list(dict.fromkeys(row.series for row in rows)) if along else [""]
    height = 4.5 if along else 1.2 + 0.3 * sum(1 + len(figures(row)) for row in rows)
    figure, axes = pyplot.subplots(1, len(series), figsize=(7 * len(series), height), squeeze=False, layout="constrained")
    for name, axis in zip(series, axes[0], strict=True):
        if along:
            _lines(axis, [row for row in rows if row.series == name])
            axis.set_title(name)
        else:
            _bars(axis, rows)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def figures(row: Row) -> dict[str, Figure]:
    """Return the alternatives that were measured."""
    return {name: figure for name, figure in row.beside.items() if isinstance(figure, Figure)}


def _lines(axis: Any, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in figures(row)))
    for name in ["kaasd", *names]:
        points = [(row.x, row.kaasd if name == "kaasd" else figures(row).get(name)) for row in rows]
        seen = [(x, figure) for x, figure in points if isinstance(figure, Figure)]
        xs = [x for x, _ in seen]
        style = {"linewidth": 2.5, "color": "black"} if name == "kaasd" else {"linewidth": 1.2}
        (line,) = axis.plot(xs, [figure.median for _, figure in seen], marker="o", label=name, **style)
        axis.fill_between(xs, [f.p10 for _, f in seen], [f.p90 for _, f in seen], alpha=0.15, color=line.get_color())
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks([row.x for row in rows], [f"{row.x:g}" for row in rows])
    axis.set_ylabel(rows[0].unit)
    axis.grid(alpha=0.3)
    axis.legend()


def _bars(axis: Any, rows: Sequence[Row]) -> None:
    labels, values, colours = [], [], []
    for row in rows:
        assert isinstance(row.kaasd, Figure)
        for name, figure in {"kaasd": row.kaasd, **figures(row)}.items():
            labels.append(f"{row.what} ({row.unit}): {name}")
            values.append(figure.median)
            colours.append("black" if name == "kaasd" else "silver")
    bars = axis.barh(range(len(values)), values, color=colours)
    axis.bar_label(bars, [number(value) for value in values], padding=3)
    axis.set_yticks(range(len(values)), labels)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.margins(x=0.2)
