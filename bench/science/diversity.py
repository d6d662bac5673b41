"""Where a larger K pays: response diversity by prompt redundancy, two by two."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from bench.science import common
from bench.science.common import Found, Mean
from mrtkern import deduplicate, variance_components

HEADING = "Diversity of responses by redundancy of prompts"
CLAIM = """A larger K gains most where responses of a prompt differ and prompts do not repeat. Corpora of 160 rows; the
target is a mean over the embeddings of all responses; the gain is the error (variance) with one response over that with
K. Diversity is the mean of 1 − cos over pairs of responses of a prompt, redundancy what `deduplicate` finds."""
SIZE = (12.0, 4.4)
ROWS, N, D = 160, 8, 16  # rows of a corpus, responses drawn of each, features
SPREADS = {"low": 0.35, "high": 1.4}  # length of what a response adds to its prompt's unit vector
COPIES = {"low": 1, "high": 8}  # rows of the same prompt
RESPONSES = (1, 2, 4, 8)
CORPORA = 120  # a seed
THRESHOLD = 0.95
CELLS = tuple((spread, copies) for spread in SPREADS for copies in COPIES)  # (diversity, redundancy)


def corpora(rng: np.random.Generator, spread: str, copies: str, count: int) -> tuple[Any, Any]:
    """prompts [count, ROWS, D] unit and slightly paraphrased, responses [count, ROWS, N, D]."""
    m = COPIES[copies]
    prompts = rng.standard_normal((count, ROWS // m, D), dtype=np.float32)
    prompts /= np.linalg.norm(prompts, axis=2, keepdims=True)
    prompts = prompts.repeat(m, axis=1)
    added = rng.standard_normal((count, ROWS, N, D), dtype=np.float32) * (SPREADS[spread] / np.sqrt(D))
    paraphrased = prompts + 0.1 / np.sqrt(D) * rng.standard_normal(prompts.shape, dtype=np.float32)
    return paraphrased, prompts[:, :, None] + added


def diversity(responses: Any) -> float:
    """Mean of 1 − cos over pairs of responses of a row, without forming pairs."""
    unit = responses / np.linalg.norm(responses, axis=-1, keepdims=True)
    return float((N / (N - 1) * (1 - np.square(unit.mean(-2)).sum(-1))).mean())


def cell(rng: np.random.Generator, spread: str, copies: str, count: int) -> dict[str, Any]:
    """What is seen of a kind of corpus, its error at every K, and the gain that its components predict."""
    prompts, responses = corpora(rng, spread, copies, count)
    sums = responses.cumsum(2)[:, :, np.asarray(RESPONSES) - 1] / np.asarray(RESPONSES)[:, None]
    error = np.square(sums.mean(1)).sum(-1).mean(0)  # [K]; the mean of all prompts is 0
    distinct = deduplicate(torch.from_numpy(prompts[0]), THRESHOLD)
    m = ROWS / len(distinct)
    own = responses[0][distinct.numpy()]
    v = variance_components(torch.from_numpy(own.reshape(-1, D)), torch.arange(0, len(own) * N + 1, N))
    law = v.between * m + v.within / np.asarray(RESPONSES)
    return {"gain": error[0] / error, "law": law[0] / law, "diversity": diversity(own), "copies": m}


def measure(seeds: int, *, count: int = CORPORA) -> Found:
    """gain, law [seeds, cell, K]; diversity, copies [seeds, cell]."""
    found: Found = {"gain": [], "law": [], "diversity": [], "copies": []}
    for seed in range(seeds):
        rng = common.generator(7, seed)
        cells = [cell(rng, spread, copies, count) for spread, copies in CELLS]
        for name, values in found.items():
            values.append([one[name] for one in cells])
    return {name: np.asarray(values) for name, values in found.items()}


def table(found: Found) -> str:
    """A line per cell."""
    gain, law, diverse, copies = (Mean.of(found[name]) for name in ("gain", "law", "diversity", "copies"))
    lines = [
        [
            f"diversity {spread}, redundancy {repeated}", diverse[i].text(2), copies[i].text(2),
            gain[i, 2].text(2), law[i, 2].text(2), gain[i, 3].text(2), law[i, 3].text(2),
        ]
        for i, (spread, repeated) in enumerate(CELLS)
    ]  # fmt: skip
    header = ("", "diversity", "rows a prompt", "gain of K = 4", "predicted", "gain of K = 8", "predicted")
    return common.table(header, lines)


def findings(found: Found) -> list[str]:
    """In words."""
    gain = Mean.of(found["gain"])
    order = sorted(range(len(CELLS)), key=lambda i: -gain.value[i, -1])
    best, second = order[:2]
    return [
        f"The gain is largest with diversity {CELLS[best][0]} and redundancy {CELLS[best][1]}: "
        f"{gain[best, -1].text(2)} at K = {RESPONSES[-1]}; next {gain[second, -1].text(2)} with diversity "
        f"{CELLS[second][0]} and redundancy {CELLS[second][1]}.",
        "The prediction uses one corpus: components of the prompts that `deduplicate` leaves, V_x times the rows of a "
        "prompt. Gains are at equal numbers of rows; what a response costs is the budget's matter, not this one's.",
    ]


def draw(figure: Figure, found: Found) -> None:
    """A panel for each redundancy, and the two by two at K = 4."""
    left, right = figure.subplots(1, 2, width_ratios=(0.6, 0.4))
    common.titled(left, "Points: measured. Lines: predicted from one corpus", "responses K per row", "gain over K = 1")
    gain, law = Mean.of(found["gain"]), Mean.of(found["law"])
    for i, (spread, copies) in enumerate(CELLS):
        colour = common.BLUE if spread == "high" else common.GOLD
        dashes = "-" if copies == "low" else "--"
        left.plot(RESPONSES, law.value[i], color=colour, linestyle=dashes, linewidth=1.4)
        label = f"diversity {spread}, redundancy {copies}"
        marker = "o" if copies == "low" else "s"
        common.points(left, RESPONSES, gain[i], colour, marker=marker, label=label)
    left.set_xscale("log")
    common.ticks(left.xaxis, RESPONSES)
    common.legend(left, loc="upper left")
    numbers = np.array([[gain.value[CELLS.index((s, c)), 2] for s in SPREADS] for c in COPIES])
    right.imshow(numbers, cmap="Blues", vmin=0.8, vmax=numbers.max() * 1.3, aspect="auto")
    for row, column in np.ndindex(2, 2):
        text = f"{numbers[row, column]:.2f} ×"
        right.text(column, row, text, ha="center", va="center", fontsize=16, color=common.INK)
    right.set_xticks(range(2), [f"diversity {name}" for name in SPREADS], color=common.INK)
    right.set_yticks(range(2), [f"redundancy\n{name}" for name in COPIES], color=common.INK)
    right.set_title("Gain of K = 4", loc="left", fontsize=10.5, color=common.INK)
    right.spines[:].set_visible(False)
    right.tick_params(length=0)
