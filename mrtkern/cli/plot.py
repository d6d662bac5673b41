"""What was kept, in one picture: the trade-off of the methods, and one prompt on which each method's picks can be seen.

Left: a point per method (coverage against mean reward, or against diversity without rewards); with one method alone,
the coverage of every prompt instead. Right: the rows of one prompt, their unit vectors projected onto their two main
directions, drawn once per method: kept rows are filled and numbered in pick order, a line joins each dropped row with
the kept one that stands for it, larger dots have larger rewards. With one method, six prompts.
"""

from __future__ import annotations

import textwrap
import warnings
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mrtkern.cli import counted
from mrtkern.cli.packing import Packed
from mrtkern.cli.report import Scores

# Okabe and Ito's palette: told apart with every common colour blindness
COLOURS = {
    "random": "#56606b",
    "stratified": "#0072b2",
    "coverage": "#009e73",
    "quality_diversity": "#d55e00",
    "additive": "#cc79a7",
    "reward": "#b8860b",
    "max_variance": "#56b4e9",
}
MARKERS = {
    "random": "o", "stratified": "s", "coverage": "^", "quality_diversity": "D", "additive": "v", "reward": "P",
    "max_variance": "X",
}  # fmt: skip
GREY, INK = "#aeb6bf", "#22272e"
LARGEST_DRAWN = 1e300  # of a mean reward
SAMPLED = 300  # prompts among which the ones to draw are looked for
DRAWN_ROWS = (6, 40)  # fewer show nothing, more cover each other
PANELS = 6


class Map(NamedTuple):
    """The rows of one prompt in the plane."""

    prompt: int
    points: Any  # [N, 2]
    explained: float  # part of the squared distances from the mean that the plane shows
    size: Any  # [N] area of the dots


def plane(packed: Packed, vectors: Any, prompt: int) -> Map:
    """Project the unit vectors of a prompt onto their two main directions."""
    first, last = packed.offsets[prompt], packed.offsets[prompt + 1]
    x = vectors[first:last].numpy().astype(np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    centred = x - x.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(x), 2))
    points[:, : min(2, len(s))] = (u * s)[:, :2]
    points *= np.where(points[np.abs(points).argmax(0), [0, 1]] < 0, -1.0, 1.0)  # the sign of a direction is arbitrary
    explained = float((s[:2] ** 2).sum() / max((s**2).sum(), 1e-30))
    if packed.reward is None:
        return Map(prompt, points, explained, np.full(len(x), 60.0))
    r = packed.reward[first:last]
    rank = np.searchsorted(np.unique(r), r) / max(len(np.unique(r)) - 1, 1)
    return Map(prompt, points, explained, 30.0 + 170.0 * rank)


def named(packed: Packed, found: Map) -> str:
    """The prompt's id on one line."""
    return " ".join(packed.labels[found.prompt].split())


def chosen_maps(packed: Packed, vectors: Any, count: int) -> list[Map]:
    """The prompts that lose least by being drawn flat, among the first ones of a size that can be drawn."""
    sizes = np.diff(packed.offsets)
    fitting = np.flatnonzero((sizes >= DRAWN_ROWS[0]) & (sizes <= DRAWN_ROWS[1]))[:SAMPLED]
    if not len(fitting):
        fitting = np.argsort(np.abs(sizes - DRAWN_ROWS[1]), kind="stable")[:count]
    maps = [plane(packed, vectors, int(prompt)) for prompt in fitting]
    return sorted(maps, key=lambda found: (-found.explained, found.prompt))[:count]


def draw(
    file: Any, packed: Packed, vectors: Any, selections: dict[str, Any], scores: dict[str, Scores], method: str
) -> None:
    """Write the picture as PNG."""
    with warnings.catch_warnings(), matplotlib.rc_context({"text.parse_math": False}):  # a $ in a text is a dollar
        warnings.simplefilter("ignore", UserWarning)  # the font lacks a letter: a box is drawn
        figure = composed(packed, vectors, selections, scores, method)
        figure.savefig(file, format="png", metadata={"Software": None})


def composed(
    packed: Packed, vectors: Any, selections: dict[str, Any], scores: dict[str, Scores], method: str
) -> Figure:
    """The whole figure."""
    figure = Figure(figsize=(15, 8), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    parts: Any = figure
    left, right = parts.subfigures(1, 2, width_ratios=(0.36, 0.64))
    kept, rows = scores[method].kept, int(packed.offsets[-1])
    figure.suptitle(
        f"{kept:,} of {counted(rows, 'row')} kept, {counted(len(packed.labels), 'prompt')}, method {method}",
        x=0.02, ha="left", fontsize=15, fontweight="bold", color=INK,
    )  # fmt: skip
    above, below = left.subfigures(2, 1, height_ratios=(0.6, 0.4))
    maps = chosen_maps(packed, vectors, 1 if len(selections) > 1 else PANELS)
    if len(selections) > 1:
        draw_trade_off(above, scores, method, packed.reward is not None)
        panels = [(name, maps[0], selections[name]) for name in selections]
    else:
        draw_coverage(above, scores[method], method)
        panels = [(method, found, selections[method]) for found in maps]
    draw_panels(right, packed, panels, by_prompt=len(selections) == 1)
    draw_legend(below, packed, maps[0], selections[method], method)
    return figure


def plain_axes(axes: Any) -> None:
    """Two thin axes, no box."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color="#eceff2", linewidth=0.8)
    axes.set_axisbelow(True)


def draw_trade_off(part: Any, scores: dict[str, Scores], method: str, has_reward: bool) -> None:
    """A labelled point per method."""
    axes = part.add_axes((0.15, 0.14, 0.8, 0.66))
    plain_axes(axes)
    other = [float((score.mean_reward if has_reward else score.diversity) or 0.0) for score in scores.values()]
    label = "mean reward of the kept rows" if has_reward else "diversity of the kept rows"
    if np.abs(other).max() > LARGEST_DRAWN:  # matplotlib's margins and ticks would overflow
        other, label = [number / LARGEST_DRAWN for number in other], f"{label}, in {LARGEST_DRAWN:g}"
    points = np.nan_to_num(np.column_stack([[score.coverage for score in scores.values()], other]))
    for (name, _), point in zip(scores.items(), points, strict=True):
        ring = {"edgecolors": INK, "linewidths": 2.0} if name == method else {"edgecolors": "white", "linewidths": 0.8}
        axes.scatter(*point, s=150, color=COLOURS[name], marker=MARKERS[name], zorder=3, **ring)
    axes.margins(0.22, 0.16)
    place_labels(axes, points, list(scores), method)
    axes.set_xlabel("coverage: mean similarity of a row to its nearest kept one", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.set_title("What each method trades (ringed: the method written to OUT)", loc="left", fontsize=10, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def place_labels(axes: Any, points: Any, names: list[str], method: str) -> None:
    """Names beside the points: right or left of them, moved apart where they would overlap."""
    low, high = points.min(0), points.max(0)
    unit = (points - low) / np.where(high > low, high - low, 1.0)
    taken: list[tuple[float, float, bool]] = []
    for i in np.lexsort((unit[:, 0], unit[:, 1])):
        is_left = unit[i, 0] > 0.6
        height = float(unit[i, 1])
        while any(side == is_left and abs(height - y) < 0.085 and abs(x - unit[i, 0]) < 0.5 for x, y, side in taken):
            height += 0.01
        taken.append((float(unit[i, 0]), height, is_left))
        shift = (height - float(unit[i, 1])) * axes.bbox.height / 1.32 * 72 / axes.figure.dpi
        axes.annotate(
            names[i].replace("_", " "), points[i], xytext=(-11 if is_left else 11, shift), textcoords="offset points",
            ha="right" if is_left else "left", va="center", fontsize=10.5, color=COLOURS[names[i]],
            fontweight="bold" if names[i] == method else "normal",
        )  # fmt: skip


def draw_coverage(part: Any, score: Scores, method: str) -> None:
    """How well each prompt is covered."""
    axes = part.add_axes((0.15, 0.14, 0.8, 0.66))
    plain_axes(axes)
    axes.hist(score.prompt_coverage, bins=30, color=COLOURS[method], edgecolor="white")
    axes.axvline(score.coverage, color=INK, linewidth=1.5)
    axes.set_xlabel("coverage: mean similarity of a row to its nearest kept one", color=INK)
    axes.set_ylabel("prompts", color=INK)
    axes.set_title(f"How well prompts are covered (line: {score.coverage:.3f})", loc="left", fontsize=11, color=INK)


def draw_panels(part: Any, packed: Packed, panels: list[tuple[str, Map, Any]], by_prompt: bool) -> None:
    """One small map per method, or per prompt."""
    grid = part.subplots(
        2, 3, gridspec_kw={"left": 0.02, "right": 0.98, "top": 0.86, "bottom": 0.03, "wspace": 0.05, "hspace": 0.16}
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (name, found, selection) in zip(grid.flat, panels, strict=False):
        title = named(packed, found) if by_prompt else name.replace("_", " ")
        draw_map(axes, packed, found, selection, COLOURS[name])
        axes.set_title(title, fontsize=11, loc="left", color=INK if by_prompt else COLOURS[name], fontweight="bold")
    one = "The rows of one prompt, {!r}, under {} methods"
    heading = "Six prompts" if by_prompt else one.format(named(packed, panels[0][1]), min(len(panels), PANELS))
    part.text(0.02, 0.925, heading, fontsize=11, color=INK)


def draw_map(axes: Any, packed: Packed, found: Map, selection: Any, colour: str) -> None:
    """All rows of a prompt as dots; kept ones filled and numbered, joined with the rows that they stand for."""
    first, last = int(packed.offsets[found.prompt]), int(packed.offsets[found.prompt + 1])
    start, end = (int(selection.offsets[found.prompt + i]) for i in (0, 1))
    ids = selection.ids[start:end].numpy() - first
    owner = selection.owner[first:last].numpy() - first
    points = found.points
    for row in range(last - first):
        if owner[row] >= 0 and owner[row] != row:
            axes.plot(*points[[row, owner[row]]].T, color=colour, alpha=0.35, linewidth=1.3, zorder=1)
    axes.scatter(*points.T, s=found.size, facecolors="white", edgecolors=GREY, linewidths=1.3, zorder=2)
    axes.scatter(
        *points[ids].T, s=np.maximum(found.size[ids], 130.0), color=colour, edgecolors="white", linewidths=1.0, zorder=3
    )
    for rank, row in enumerate(ids):
        axes.annotate(
            str(rank + 1),
            points[row],
            ha="center",
            va="center_baseline",
            fontsize=8,
            color="white",
            fontweight="bold",
            zorder=4,
        )
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#dde2e7")
    axes.margins(0.1)


def draw_legend(part: Any, packed: Packed, found: Map, selection: Any, method: str) -> None:
    """How to read the maps, and the kept texts of the prompt that is drawn."""
    lines = ["● kept, numbered in pick order     ○ dropped     — stands for it"]
    if packed.reward is not None:
        lines.append("larger dot: larger reward (by rank inside the prompt)")
    lines.append(f"{100 * found.explained:.0f} % of the variance inside {named(packed, found)!r} lies in this plane")
    part.text(0.04, 0.98, "\n".join(lines), va="top", fontsize=9, color=INK, linespacing=1.5)
    if packed.texts is None:
        return
    start, end = (int(selection.offsets[found.prompt + i]) for i in (0, 1))
    kept = [f"Kept of {named(packed, found)!r} by {method.replace('_', ' ')}:"]
    for rank, row in enumerate(selection.ids[start:end].tolist()[:6]):
        text = " ".join(packed.texts[row].as_py().split())
        kept.append(f"{rank + 1}  " + textwrap.shorten(text, 72, placeholder=" …"))
    part.text(0.04, 0.68, "\n".join(kept), va="top", fontsize=9, color=INK, linespacing=1.6)
