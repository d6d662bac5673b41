"""The variance law: predicted and simulated variance of n prompts with K responses each, drawn from a finite pool."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from bench.science import common
from bench.science.common import Found, Mean
from mrtkern import variance_components

HEADING = "The variance law"
CLAIM = """The mean over n prompts of the mean over K responses has variance `V_x / n + V_yx / (n K)`. Drawn without
replacement from P prompts of N responses, and measured against this pool, it is
`(1 − n/P) S²_b / n + (1 − K/N) S²_w / (n K)`, with the sample variances of the prompts' means and of responses."""
SIZE = (12.0, 4.6)
P, N = 400, 16  # prompts of the pool, responses of each
BETWEEN, WITHIN = 3.9333, 17.6128  # sample variances of the pool: those of the printed numbers
PROMPTS, RESPONSES = (10, 40, 160, 400), (1, 2, 4, 8, 12, 16)
DRAWS = 1000  # a seed
PRINTED = {1: (0.4993, 0.5013), 4: (0.1754, 0.1711), 12: (0.0970, 0.0977), 16: (0.0889, 0.0885)}  # n = 40
COLOURS = (common.BLUE, common.GREEN, common.RED, common.PURPLE)


def pool(rng: np.random.Generator, prompts: int) -> Any:
    """y [prompts, N] with exactly BETWEEN and WITHIN; prompts are skewed, responses lie in three modes."""
    means = rng.exponential(size=(prompts, 1))
    means = (means - means.mean()) * np.sqrt(BETWEEN / means.var(ddof=1))
    noise = rng.integers(-1, 2, (prompts, N)) + 0.1 * rng.standard_normal((prompts, N))
    noise -= noise.mean(1, keepdims=True)
    return means + noise * np.sqrt(WITHIN / noise.var(1, ddof=1).mean())


def predicted(y: Any, n: int, K: int, *, is_finite: bool = True) -> float:
    """By the formula, from the components that the library estimates."""
    prompts, size = y.shape
    v = variance_components(torch.from_numpy(y.reshape(-1)), torch.arange(0, y.size + 1, size))
    if not is_finite:
        return (v.between_raw + v.within / K) / n
    means = v.between_raw + v.within / size  # the sample variance of the prompts' means
    return (1 - n / prompts) * means / n + (1 - K / size) * v.within / (n * K)


def simulated(rng: np.random.Generator, y: Any, n: int, draws: int) -> Any:
    """Mean squared error of the mean over draws, for every K in RESPONSES."""
    which = rng.permuted(np.tile(np.arange(len(y)), (draws, 1)), axis=1)[:, :n] if n < len(y) else np.arange(n)[None]
    values = rng.permuted(np.broadcast_to(y[which], (draws, n, y.shape[1])), axis=2)
    sums = values.cumsum(2)[:, :, np.asarray(RESPONSES) - 1]
    estimates = (sums / np.asarray(RESPONSES)).mean(1)
    return ((estimates - y.mean()) ** 2).mean(0)


def measure(seeds: int, *, prompts: int = P, draws: int = DRAWS) -> Found:
    """simulated, finite, infinite [seeds, n, K]."""
    sizes = [n for n in PROMPTS if n <= prompts]
    found: Found = {"n": sizes, "simulated": [], "finite": [], "infinite": []}
    for seed in range(seeds):
        rng = common.generator(1, seed)
        y = pool(rng, prompts)
        found["simulated"].append([simulated(rng, y, n, draws) for n in sizes])
        for name, is_finite in (("finite", True), ("infinite", False)):
            grid = [[predicted(y, n, K, is_finite=is_finite) for K in RESPONSES] for n in sizes]
            found[name].append(grid)
    return {name: np.asarray(values) for name, values in found.items()}


def ratio(found: Found, name: str) -> Mean:
    """Simulated over predicted; where all is kept both are 0 and the ratio is none."""
    law = np.where(found[name] > 1e-9, found[name], np.nan)
    return Mean.of(found["simulated"] / law)


def table(found: Found) -> str:
    """n = 40 beside the printed numbers."""
    row = list(found["n"]).index(40)
    simulation, law, plain = (Mean.of(found[name][:, row]) for name in ("simulated", "finite", "infinite"))
    lines = []
    for i, K in enumerate(RESPONSES):
        printed = PRINTED.get(K)
        said = [f"{number:.4f}" for number in printed] if printed else ["", ""]
        lines.append([f"{K}", simulation[i].text(4), f"{law.value[i]:.4f}", *said, f"{plain.value[i]:.4f}"])
    header = ("K, at n = 40", "simulated", "formula", "printed: simulated", "formula", "without correction")
    return common.table(header, lines)


def findings(found: Found) -> list[str]:
    """In words."""
    finite = ratio(found, "finite")
    off = np.abs(finite.value - 1)
    K = RESPONSES[-1]
    whole = Mean.of(found["simulated"])[-1]
    return [
        f"Over the grid simulated / predicted is {np.nanmin(finite.value):.3f} to {np.nanmax(finite.value):.3f}; "
        f"{int((off <= finite.half).sum())} of {int(np.isfinite(off).sum())} intervals hold 1.",
        f"Without the correction it is as low as {np.nanmin(ratio(found, 'infinite').value):.3f}, and with every "
        f"prompt and K = {K} kept it predicts variance where there is none ({whole.value[-1]:.1e} simulated).",
        "Use the correction when the target is this very pool, not when the pool stands for more prompts.",
    ]


def draw(figure: Figure, found: Found) -> None:
    """Left: the law and the simulation. Right: their ratio, with and without the correction."""
    left, right = figure.subplots(1, 2, width_ratios=(0.5, 0.5))
    common.titled(left, "Lines: the formula for a finite pool. Points: simulated", "responses K per prompt", "variance")
    common.titled(right, "Simulated over predicted", "responses K per prompt", "ratio")
    simulation, ratios = Mean.of(found["simulated"]), {name: ratio(found, name) for name in ("finite", "infinite")}
    for i, n in enumerate(found["n"]):
        shown = found["finite"].mean(0)[i]
        has = shown > 1e-9
        left.plot(np.asarray(RESPONSES)[has], shown[has], color=COLOURS[i], linewidth=1.4)
        common.points(left, np.asarray(RESPONSES)[has], simulation[i][has], COLOURS[i], label=f"n = {n} of {P} prompts")
        shift = np.asarray(RESPONSES) * (1 + 0.03 * (i - 1.5))
        common.points(right, shift, ratios["finite"][i], COLOURS[i])
        right.plot(RESPONSES, ratios["infinite"].value[i], color=COLOURS[i], linewidth=1.2, linestyle=":")
    left.set(xscale="log", yscale="log")
    right.set(xscale="log", ylim=(-0.03, 1.25))
    common.ticks(left.xaxis, RESPONSES)
    common.ticks(right.xaxis, RESPONSES)
    common.baseline(right, 1.0)
    right.annotate("points: with the finite pool's correction", (1.0, 1.12), fontsize=9, color=common.INK)
    right.annotate("dotted: without it", (1.0, 0.16), fontsize=9, color=common.INK)
    common.legend(left, loc="lower left")
