"""How many times less variance K responses per prompt give than one, with the interval, and the K that is advised."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mrtkern.cli.plan import Plan, advice
from mrtkern.cli.plot import COLOURS, GREY, INK, plain_axes

LETTERS = 90  # of a line of advice


def draw(file: Any, plan: Plan) -> None:
    """Write the picture as PNG: without a curve where no value differs from another."""
    figure = Figure(figsize=(9, 5), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    if not plan.is_blind:
        draw_curve(figure.add_axes((0.09, 0.12, 0.86, 0.68)), plan)
    text = "\n".join(textwrap.wrap(advice(plan), LETTERS))
    figure.text(0.03, 0.96, text, va="top", fontsize=11, fontweight="bold", color=INK, linespacing=1.4)
    figure.savefig(file, format="png", metadata={"Software": None})


def draw_curve(axes: Any, plan: Plan) -> None:
    """The curve, its interval, and the K that is advised."""
    plain_axes(axes)
    colour, mark = COLOURS["stratified"], COLOURS["quality_diversity"]
    axes.fill_between(plan.K, *plan.band, color=colour, alpha=0.15, linewidth=0, label="95 %, prompts drawn anew")
    axes.plot(plan.K, plan.ratio, color=colour, linewidth=2.2)
    axes.axhline(1.0, color=GREY, linewidth=1.0)
    span, k = plan.spans["k"], plan.choice.k
    if span.high > span.low:
        axes.axvspan(span.low, span.high, color=mark, alpha=0.08, linewidth=0, label="95 % of the best K")
    axes.scatter([k], [plan.choice.ratio], s=90, color=mark, edgecolors="white", linewidths=1.0, zorder=4)
    axes.annotate(
        f"K = {k}: {plan.choice.ratio:.2f} ×", (k, plan.choice.ratio), xytext=(0, 12), textcoords="offset points",
        ha="center", fontsize=11, fontweight="bold", color=mark,
    )  # fmt: skip
    axes.set_xscale("log")
    most = max(plan.costs.max_k, 2)
    powers = [1 << i for i in range(most.bit_length()) if 1 << i <= most]
    step = -(-len(powers) // 10)
    axes.xaxis.set_ticks(powers[::step], [f"{K:,}" for K in powers[::step]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(1 / 1.05, most * 1.05)
    low, high = min(1.0, float(plan.band[0].min())), max(float(plan.band[1].max()), plan.choice.ratio)
    axes.set_ylim(max(0.0, low - 0.08 * (high - low + 0.1)), high + 0.14 * (high - low + 0.1))
    axes.set_xlabel("responses K per prompt", color=INK)
    axes.set_ylabel("variance of K = 1 over that of K", color=INK)
    if np.ptp(plan.band, axis=0).max() > 0:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
