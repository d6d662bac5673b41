"""The best K of a budget: the curve, its minimum, and the K from which more responses stop paying."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.science import common
from bench.science.common import Found, Mean
from mrtkern import optimal_k

HEADING = "The best K of a budget"
CLAIM = """A budget `B = n (c_p + K c_r)` has a best number of responses, `K* = sqrt(V_yx c_p / (V_x c_r))`, with
variance `(sqrt(c_p V_x) + sqrt(c_r V_yx))² / B`. Here V_x = 0.187, V_yx = 1.329, a prompt costs 4 responses, and the
budget is 720 responses."""
SIZE = (12.0, 4.6)
BETWEEN, WITHIN, PROMPT_COST, RESPONSE_COST, BUDGET = 0.187, 1.329, 4.0, 1.0, 720.0
RESPONSES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 56)
DRAWS = 1500  # of a whole budget, a seed
PRINTED_K, PRINTED_RATIO = 5.33, 1.86
PAPER = {1: 73.4, 4: 12.2}  # the paper's own simulation of a budget, best at K = 4


def bought(K: int) -> int:
    """Prompts that the budget pays for."""
    return int(BUDGET // (PROMPT_COST + K * RESPONSE_COST))


def estimates(rng: np.random.Generator, K: int, draws: int) -> Any:
    """[draws] means of what a budget buys; skewed prompts, responses in three modes, both of mean 0."""
    n = bought(K)
    means = (rng.exponential(size=(draws, n)) - 1) * np.sqrt(BETWEEN)
    responses = 1.5 * rng.integers(-1, 2, (draws, n, K)) + 0.1 * rng.standard_normal((draws, n, K))
    responses *= np.sqrt(WITHIN / (1.5**2 * 2 / 3 + 0.1**2))
    return (means + responses.mean(2)).mean(1)


def measure(seeds: int, *, draws: int = DRAWS) -> Found:
    """simulated [seeds, K] and law [K]."""
    simulated = [
        [np.square(estimates(common.generator(2, seed, K), K, draws)).mean() for K in RESPONSES]
        for seed in range(seeds)
    ]
    law = [(BETWEEN + WITHIN / K) / bought(K) for K in RESPONSES]
    return {"simulated": np.asarray(simulated), "law": np.asarray(law)}


def choice() -> Any:
    """The library's answer."""
    costs = {"prompt_cost": PROMPT_COST, "response_cost": RESPONSE_COST, "budget": BUDGET}
    return optimal_k(BETWEEN, WITHIN, **costs)


def gain(found: Found) -> Mean:
    """Variance of one response over that of K, for the same budget."""
    return Mean.of(found["simulated"][:, :1] / found["simulated"])


def table(found: Found) -> str:
    """What was predicted, printed and found."""
    c, gains = choice(), gain(found)
    best = found["simulated"].mean(0).argmin()
    at = RESPONSES.index(c.k)
    even, beyond = c.continuous**2, RESPONSES.index(32)
    paper = f"{PAPER[1] / PAPER[4]:.1f}"
    four = gains[RESPONSES.index(4)].text(2)
    lines = [
        ["K*", f"{c.continuous:.2f}", f"{PRINTED_K}", f"{RESPONSES[best]} has the least variance"],
        ["variance of K = 1 over the least", f"{c.ratio:.2f}", f"{PRINTED_RATIO}", gains[at].text(2)],
        ["K as good as 1: K*²", f"{even:.1f}", "", f"K = 32: {gains[beyond].text(2)}"],
        ["K = 1 over K = 4, the paper's simulation", "below 4", paper, f"{four} with the components above"],
    ]
    return common.table(("", "by the law", "printed", "simulated"), lines)


def findings(found: Found) -> list[str]:
    """In words."""
    law = Mean.of(found["simulated"] / found["law"])
    flat = [K for K, value in zip(RESPONSES, gain(found).value, strict=True) if value > 0.95 * gain(found).value.max()]
    return [
        f"Simulated / predicted is {law.value.min():.3f} to {law.value.max():.3f} over K = {RESPONSES[0]} … "
        f"{RESPONSES[-1]}.",
        f"The minimum is flat: K = {flat[0]} … {flat[-1]} are within 5 % of the best. On a logarithmic axis the law is "
        "symmetric about K*, so K and K*²/K are equally good, and more responses than K*² are worse than one.",
        f"The paper's simulation gains {PAPER[1] / PAPER[4]:.1f} times at K = 4. The law itself cannot: its ratio is "
        "below K for all components and costs. Measured against a finite pool both variances lose the same constant, "
        "which makes a ratio larger; how the paper's was set up is not known, so only its direction is reproduced.",
    ]


def draw(figure: Figure, found: Found) -> None:
    """The curve of this budget, and of other costs."""
    left, right = figure.subplots(1, 2)
    common.titled(left, f"What {BUDGET:.0f} buy: variance against K", "responses K per prompt", "variance")
    K = np.geomspace(1, 64, 200)
    c = choice()
    left.plot(K, [c.variance(k) for k in K], color=common.INK, linewidth=1.4, label="the law")
    common.points(left, RESPONSES, Mean.of(found["simulated"]), common.BLUE, label="simulated")
    left.axvline(c.continuous, color=common.RED, linewidth=1.0, linestyle="--")
    left.axvspan(c.continuous**2, 64, color=common.RED, alpha=0.08, linewidth=0)
    top = c.variance(64)
    left.annotate(f"K* = {c.continuous:.2f}", (c.continuous * 1.06, top * 0.97), fontsize=9, color=common.RED)
    left.annotate("worse than\nK = 1", (c.continuous**2 * 1.06, c.variance(4)), fontsize=9, color=common.RED)
    common.titled(
        right, "Times the budget that K = 1 needs for the same", "responses K per prompt", "variance of K = 1 / of K"
    )
    for cost, colour in zip((1, 4, 16, 64), (common.GREEN, common.BLUE, common.PURPLE, common.GOLD), strict=True):
        other = optimal_k(BETWEEN, WITHIN, prompt_cost=cost, response_cost=1.0)
        right.plot(K, [other.variance(1) / other.variance(k) for k in K], color=colour, linewidth=1.4)
        right.scatter([other.continuous], [other.variance(1) / other.variance(other.continuous)], color=colour, s=30)
        right.annotate(
            f"a prompt costs {cost}", (64, other.variance(1) / other.variance(64)), xytext=(4, -3),
            textcoords="offset points", fontsize=9, color=colour, annotation_clip=False,
        )  # fmt: skip
    common.points(right, RESPONSES, gain(found), common.BLUE, markersize=3.5)
    common.baseline(right, 1.0)
    for axes in (left, right):
        axes.set(xscale="log", xlim=(0.9, 64))
        common.ticks(axes.xaxis, (1, 2, 4, 8, 16, 32, 64))
    common.legend(left, loc="upper left")
