"""Near-duplicate prompts act as more responses: m rows of one prompt with K responses each behave like K m of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from bench.science import common
from bench.science.common import Found, Mean
from mrtkern import deduplicate

HEADING = "Near-duplicate prompts are responses"
CLAIM = """A corpus of n rows in which every prompt occurs m times, paraphrased, has n / m different prompts with K m
responses each: `Var = V_x / (n / m) + V_yx / (n K)`. `deduplicate` on embeddings of the prompts finds m."""
SIZE = (12.0, 4.6)
ROWS, K, D = 240, 2, 32  # rows of a corpus, responses of each, features of an embedding
BETWEEN, WITHIN = 0.4, 1.6
COPIES = (1, 2, 4, 8)
NOISE = 0.12  # length of what a paraphrase adds to a unit embedding
THRESHOLD = 0.9  # of the cosine: paraphrases lie at 1 / (1 + NOISE²) = 0.986, other prompts near 0
CORPORA = 1500  # a seed
SWEPT = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)  # noises at which duplicates are looked for


def embeddings(rng: np.random.Generator, copies: int, noise: float, rows: int) -> Any:
    """[rows, D] unit rows; those of one prompt follow each other."""
    prompts = rng.standard_normal((rows // copies, D))
    prompts /= np.linalg.norm(prompts, axis=1, keepdims=True)
    added = rng.standard_normal((rows, D)) / np.sqrt(D) * noise
    x = prompts.repeat(copies, axis=0) + added
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def found_copies(rng: np.random.Generator, copies: int, noise: float, rows: int) -> float:
    """Rows per prompt, as `deduplicate` sees it."""
    x = torch.from_numpy(embeddings(rng, copies, noise, rows)).float()
    return rows / len(deduplicate(x, THRESHOLD))


def simulated(rng: np.random.Generator, copies: int, rows: int, corpora: int) -> float:
    """Mean squared error of the corpus's mean over corpora; the true mean is 0."""
    prompts = (rng.exponential(size=(corpora, rows // copies)) - 1) * np.sqrt(BETWEEN)
    responses = rng.integers(-1, 2, (corpora, rows, K)) * np.sqrt(WITHIN * 1.5)
    values = prompts.repeat(copies, axis=1) + responses.mean(2)
    return float(np.square(values.mean(1)).mean())


def measure(seeds: int, *, rows: int = ROWS, corpora: int = CORPORA) -> Found:
    """simulated, found [seeds, copies]; swept [seeds, noise], of m = 4."""
    found: Found = {"simulated": [], "found": [], "swept": []}
    for seed in range(seeds):
        rng = common.generator(5, seed)
        found["simulated"].append([simulated(rng, m, rows, corpora) for m in COPIES])
        found["found"].append([found_copies(rng, m, NOISE, rows) for m in COPIES])
        found["swept"].append([found_copies(rng, 4, noise, rows) for noise in SWEPT])
    found["naive"] = np.full(len(COPIES), (BETWEEN + WITHIN / K) / rows)
    found["law"] = [BETWEEN * m / rows + WITHIN / (rows * K) for m in COPIES]
    return {name: np.asarray(values) for name, values in found.items()}


def table(found: Found) -> str:
    """A line per m."""
    simulation, copies = Mean.of(found["simulated"]), Mean.of(found["found"])
    lines = [
        [
            f"{m}", f"{K * m}", f"{K * copies.value[i]:.2f}", f"{1e3 * found['law'][i]:.3f}",
            (Mean(1e3 * simulation.value[i], 1e3 * simulation.half[i])).text(3), f"{1e3 * found['naive'][i]:.3f}",
        ]
        for i, m in enumerate(COPIES)
    ]  # fmt: skip
    header = ("m", "K m", "effective K found", "predicted, x 1000", "simulated", "if rows were prompts")
    return common.table(header, lines)


def findings(found: Found) -> list[str]:
    """In words."""
    law = Mean.of(found["simulated"] / found["law"])
    swept = Mean.of(found["swept"])
    return [
        f"Simulated / predicted is {law.value.min():.3f} to {law.value.max():.3f}. Counting rows as prompts "
        f"underestimates the variance {found['law'][-1] / found['naive'][-1]:.1f} times at m = {COPIES[-1]}.",
        "So duplicated prompts are paid for as prompts and give what responses give: with them, count the prompts that "
        "`deduplicate` leaves, and K m responses of each, before asking for the best K.",
        f"At the threshold {THRESHOLD} all four copies are found up to a noise of 0.2; at {SWEPT[3]} "
        f"{swept[3].text(2)} rows a prompt, at {SWEPT[-1]} {swept[-1].text(2)}: a paraphrase that the embedding "
        "does not see as one counts as a prompt of its own.",
    ]


def draw(figure: Figure, found: Found) -> None:
    """Variance against m, and what deduplicate finds."""
    left, right = figure.subplots(1, 2)
    common.titled(left, f"{ROWS} rows with K = {K} responses each", "rows m of the same prompt", "variance")
    left.plot(COPIES, found["law"], color=common.INK, linewidth=1.4, label="V_x m / n + V_yx / (n K)")
    left.plot(COPIES, found["naive"], color=common.RED, linewidth=1.4, linestyle="--", label="if rows were prompts")
    common.points(left, COPIES, Mean.of(found["simulated"]), common.BLUE, label="simulated")
    left.set(xscale="log", ylim=(0, None))
    common.ticks(left.xaxis, COPIES)
    common.legend(left, loc="upper left")
    title = f"Copies that deduplicate finds at cosine {THRESHOLD}"
    common.titled(right, title, "length of what a paraphrase adds to a unit embedding", "rows per prompt found")
    common.points(right, SWEPT, Mean.of(found["swept"]), common.GREEN, linestyle="-", label="m = 4")
    common.baseline(right, 4.0)
    limit = np.sqrt(1 / THRESHOLD - 1)
    right.axvline(limit, color=common.RED, linewidth=1.0, linestyle="--")
    text = "two paraphrases at the threshold"
    right.annotate(text, (limit, 3.5), xytext=(5, 0), textcoords="offset points", fontsize=9, color=common.RED)
    right.set_ylim(0.8, 4.4)
    common.legend(right, loc="lower left")
