"""How time grows with the number of rows: measured in one interleaved run per size, drawn on logarithmic axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from bench.harness import Competitor, Spread, interleave
from bench.roofline import Flush

SIZES = tuple(round(10 ** (4 + quarter / 4)) for quarter in range(7))  # 10^4 … 10^5.5
ROWS = 512  # that are searched for
ROUNDS = 3


def measured(competitors: Callable[[int], list[Competitor]]) -> dict[str, list[float]]:
    """Median seconds of every competitor at every size."""
    found: dict[str, list[float]] = {}
    flush = Flush()
    for N in SIZES:
        those = competitors(N)
        interleave(those[:1], 1)  # creates threads
        for name, seconds in interleave(those, ROUNDS, before=flush, label=f"{N:,} rows").items():
            found.setdefault(name, []).append(Spread.of(seconds).median)
    return found


def draw(path: Path, seconds: Mapping[str, list[float]], title: str) -> None:
    """One line per competitor, named at its end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in seconds.items():
        is_ours = name.startswith("mrtkern")
        axes.plot(SIZES, values, marker="o", markersize=3, linewidth=2.5 if is_ours else 1.2, label=name)
        axes.annotate(name, (SIZES[-1], values[-1]), xytext=(6, -3), textcoords="offset points", fontsize=9)
    axes.set(xscale="log", yscale="log", xlabel="rows N", ylabel="seconds", title=title)
    axes.set_xlim(right=SIZES[-1] * 2.2)
    axes.grid(which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
