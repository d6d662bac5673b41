"""What --global kept, in one picture.

Left: unit vectors of at most 20,000 rows and of all kept ones, projected onto the two main directions of those rows;
the first picks are numbered. Right: the objective after each pick, where it bends most, and the room up to the bound
that no K rows exceed.
"""

from __future__ import annotations

import warnings
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mrtkern.cli import counted
from mrtkern.cli.plot import COLOURS, GREY, INK, plain_axes
from mrtkern.ops.facility_location.explain import elbow

DRAWN = 20_000  # rows of the pool: more only blacken the paper
CROWD = 500  # from which dots are smaller
NUMBERED = 9  # picks
SEED = 0  # of the rows that are drawn and of the search for directions among very many features


def draw(file: Any, vectors: Any, selection: Any, method: str) -> None:
    """Write the picture as PNG."""
    figure = Figure(figsize=(15, 7), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    kept, rows = len(selection.ids), len(vectors)
    with matplotlib.rc_context({"text.parse_math": False}):
        figure.suptitle(
            f"{kept:,} of {counted(rows, 'row')} kept, method {method}",
            x=0.02, ha="left", fontsize=15, fontweight="bold", color=INK,
        )  # fmt: skip
        draw_pool(figure.add_axes((0.02, 0.04, 0.47, 0.8)), vectors, selection, COLOURS[method])
        draw_gains(figure.add_axes((0.56, 0.1, 0.41, 0.74)), selection, COLOURS[method])
        figure.savefig(file, format="png", metadata={"Software": None})


def unit(vectors: Any, rows: Any) -> Any:
    """[rows, D] float64 of length one."""
    x = vectors[rows].numpy().astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)


def plane(pool: Any, kept: Any) -> tuple[Any, Any, float]:
    """Both projected onto the two main directions of the pool, and the part of its variance that they show."""
    from sklearn.decomposition import PCA

    count = min(2, *pool.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # shares of the variance of equal rows are 0/0: not used
        found = PCA(count, random_state=SEED).fit(pool)
    points = [np.zeros((len(x), 2)) for x in (pool, kept)]
    for place, x in zip(points, (pool, kept), strict=True):
        if len(x):
            place[:, :count] = found.transform(x)
    total = float(np.square(pool - pool.mean(0)).sum())
    centred = points[0] - points[0].mean(0)
    shown = float(np.square(centred).sum()) / total if total > 0 else 1.0
    return points[0], points[1], shown


def draw_pool(axes: Any, vectors: Any, selection: Any, colour: str) -> None:
    """The pool in grey, the picks in colour."""
    rows = np.arange(len(vectors))
    if len(rows) > DRAWN:
        rows = np.sort(np.random.default_rng(SEED).choice(len(rows), DRAWN, replace=False))
    pool, kept, shown = plane(unit(vectors, rows), unit(vectors, selection.ids.numpy()))
    size, large = 6.0 if len(rows) > CROWD else 18.0, 18.0 if len(kept) > CROWD else 60.0
    axes.scatter(*pool.T, s=size, color=GREY, alpha=0.45, linewidths=0)
    axes.scatter(*kept.T, s=large, color=colour, edgecolors="white", linewidths=0.6, zorder=3)
    for rank, point in enumerate(kept[:NUMBERED]):
        axes.scatter(*point, s=150, color=colour, edgecolors="white", linewidths=1.0, zorder=4)
        axes.annotate(
            str(rank + 1), point, ha="center", va="center_baseline", fontsize=8, color="white", fontweight="bold",
            zorder=5,
        )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#dde2e7")
    axes.margins(0.04)
    drawn = f"{len(rows):,} of the rows" if len(rows) < len(vectors) else "all rows"
    axes.set_title(
        f"Kept rows (coloured) among {drawn}; {100 * shown:.0f} % of the variance lies in this plane",
        loc="left", fontsize=11, color=INK,
    )  # fmt: skip


def draw_gains(axes: Any, selection: Any, colour: str) -> None:
    """F after each pick, and the bound."""
    plain_axes(axes)
    value = np.concatenate([[0.0], np.cumsum(selection.gains.numpy())])
    bound, picks = float(selection.upper_bound), np.arange(len(value))
    axes.fill_between(picks, value, bound, color=colour, alpha=0.12, linewidth=0)
    axes.plot(picks, value, color=colour, linewidth=2.2)
    bend = elbow(selection.gains)
    if 0 < bend < len(value) - 1:
        axes.plot([bend], [value[bend]], marker="o", color=INK, markersize=6, zorder=4)
        axes.annotate(
            f"elbow: {counted(bend, 'pick')}", (bend, value[bend]), xytext=(8, -14), textcoords="offset points",
            fontsize=9.5, color=INK,
        )  # fmt: skip
    axes.axhline(bound, color=INK, linewidth=1.2, linestyle="--")
    axes.annotate(
        f"upper bound of {len(value) - 1:,} picks: {bound:,.6g}", (1.0, bound), xycoords=("axes fraction", "data"),
        xytext=(0, 5), textcoords="offset points", ha="right", fontsize=9.5, color=INK,
    )  # fmt: skip
    axes.set_xlim(0, max(len(value) - 1, 1))
    axes.set_ylim(0, max(bound, float(value[-1])) * 1.08 or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("picks", color=INK)
    axes.set_ylabel("objective F", color=INK)
    title = f"What each pick adds: F = {value[-1]:,.6g}, skill {float(selection.skill):.3f} (0 chance, 1 the bound)"
    axes.set_title(title, loc="left", fontsize=11, color=INK)
