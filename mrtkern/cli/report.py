"""What was kept, in numbers: one row per method on the terminal, and the same as JSON.

For rows i of a prompt, kept rows S, unit vectors e, s_ij = (1 + cos_ij) / 2, and a, w, q as in select_responses:

    coverage    mean over all rows of max_{j in S} s_ij
    diversity   mean over prompts of the mean pairwise 1 - cos of S (prompts that keep at least two rows)
    value       mean over prompts of F(S) / F(all rows), F = sum_i w_i max_{j in S} a_j s_ij: the quality_diversity
                objective for every method, so that the column compares them; without rewards a = w = 1
    skill       mean over prompts with a choice of (F - random) / (bound - random), in the method's own objective
    top K       mean over the same prompts of the part of S that is among the |S| largest rewards
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mrtkern.cli.packing import Packed
from mrtkern.cli.writing import without_nan
from mrtkern.ops.similarity.op import similarity

FLOOR = 1e-4  # smallest quality, as in select_responses
NUMBERS_PER_CHUNK = 1 << 22  # float32 numbers in the largest temporary array


@dataclass(frozen=True)
class Scores:
    """One method on the whole table; None where the table has nothing to say."""

    coverage: float
    diversity: float | None
    mean_reward: float | None
    value: float
    skill: float | None
    effective_k: float
    reward_top_k: float | None
    ran_dry: float  # part of the prompts whose picks after effective_k only fill
    kept: int
    prompt_coverage: Any  # [B] float64, for the picture

    def as_json(self) -> dict[str, float | None]:
        """The fields that are numbers."""
        return {name: value for name, value in vars(self).items() if name != "prompt_coverage"}


class Row(Protocol):
    """A line of the table."""

    def as_json(self) -> dict[str, float | None]:
        """The fields that are numbers."""


class Sums(NamedTuple):
    """Per prompt, [B] float64."""

    coverage: Any
    diversity: Any
    objective: Any
    everything: Any


def qualities(packed: Packed, alpha: float) -> Tensor:
    """[T] float32: a of SCIENCE's objective; ones without rewards."""
    T = int(packed.offsets[-1])
    if packed.reward is None or T == 0:
        return torch.ones(T, dtype=torch.float32, device="cpu")
    sizes = np.diff(packed.offsets)
    starts = packed.offsets[:-1][sizes > 0]
    low, high = (np.repeat(f.reduceat(packed.reward, starts), sizes[sizes > 0]) for f in (np.minimum, np.maximum))
    half_span = high / 2 - low / 2  # halves, because the span itself can overflow
    q = np.where(half_span < 0.5e-8, 1.0, (packed.reward / 2 - low / 2) / np.maximum(half_span, 0.5e-8))
    return torch.from_numpy(np.clip(q, FLOOR, 1.0) ** alpha).float()


def per_prompt(vectors: Tensor, packed: Packed, kept: Any, ids: Any, a: Tensor) -> Sums:
    """Sums over the rows of each prompt, by prompts of like size at a time; kept [B+1] offsets of ids."""
    sizes, counts = np.diff(packed.offsets), np.diff(kept)
    sums = Sums(*(np.zeros(len(sizes)) for _ in Sums._fields))
    by_size = np.argsort(sizes, kind="stable")
    first = int((sizes == 0).sum())
    while first < len(by_size):
        N = max(int(sizes[by_size[first]]), 1)
        last = first + max(1, NUMBERS_PER_CHUNK // (2 * N * max(vectors.shape[1], 2 * N)))
        last = min(len(by_size), last, int(np.searchsorted(sizes[by_size], 2 * N, side="right")))
        chunk = by_size[first:last]
        N, K = int(sizes[chunk].max()), int(counts[chunk].max(initial=1))
        has_row = torch.from_numpy(np.arange(N) < sizes[chunk, None])  # [B, N]
        has_pick = torch.from_numpy(np.arange(K) < counts[chunk, None])  # [B, K]
        rows = torch.from_numpy(np.where(has_row, packed.offsets[chunk, None] + np.arange(N), 0))
        places = np.minimum(kept[chunk, None] + np.arange(K), len(ids) - 1)
        picks = torch.from_numpy(np.where(has_pick, ids[places] - packed.offsets[chunk, None], 0))
        for total, found in zip(sums, batched(vectors[rows], a[rows], has_row, picks, has_pick), strict=True):
            total[chunk] = found.numpy()
        first = last
    return sums


def batched(x: Tensor, a: Tensor, has_row: Tensor, picks: Tensor, has_pick: Tensor) -> tuple[Tensor, ...]:
    """x [B, N, D], a [B, N], picks [B, K] positions → four sums [B] float64, in the order of Sums."""
    x = torch.nn.functional.normalize(x, dim=2)
    chosen = x.gather(1, picks[:, :, None].expand(-1, -1, x.shape[2]))  # [B, K, D]
    s = similarity(x, metric="shifted_cosine").masked_fill(~has_row[:, None, :], 0.0)  # [B, N, N]
    near = s.gather(2, picks[:, None, :].expand(-1, x.shape[1], -1)).masked_fill(
        ~has_pick[:, None, :], 0.0
    )  # [B, N, K]
    w = a.clamp(min=FLOOR).masked_fill(~has_row, 0.0)
    coverage = (near.amax(2) * has_row).double().sum(1)
    objective = (w * (near * a.gather(1, picks)[:, None, :]).amax(2)).double().sum(1)
    everything = (w * (s * a[:, None, :]).amax(2)).double().sum(1)
    chosen = chosen * has_pick[:, :, None]
    n = has_pick.sum(1).double()
    apart = chosen.double().sum(1).square().sum(1) - chosen.double().square().sum(
        (1, 2)
    )  # sum of cos over pairs i != j
    return coverage, 1 - apart / (n * (n - 1)), objective, everything


def is_top_reward(packed: Packed, kept: Any) -> Any:
    """[T] int64, 1 or 0: among the |S| largest rewards of its prompt, equal ones by row."""
    sizes = np.diff(packed.offsets)
    prompt = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((-packed.reward, prompt))
    position = np.arange(len(order)) - np.repeat(packed.offsets[:-1], sizes)
    top = np.zeros(len(order), dtype=np.int64)
    top[order[position < np.repeat(np.diff(kept), sizes)]] = 1
    return top


def mean(values: Any) -> float | None:
    """The mean, None of nothing."""
    if not len(values):
        return None
    down = 2.0**-64 if np.abs(values).max() > 2.0**900 else 1.0  # their sum could overflow; this rounds nothing
    return float((values * down).mean() / down)


def score(vectors: Tensor, packed: Packed, selection: Any, a: Tensor) -> Scores:
    """All the numbers of one selection."""
    ids, kept = selection.ids.numpy(), selection.offsets.numpy()
    sizes, counts = np.diff(packed.offsets), np.diff(kept)
    sums = per_prompt(vectors, packed, kept, ids, a)
    has_choice, full = sizes > counts, sizes > 0
    overlap = reward = None
    if packed.reward is not None:
        top = np.add.reduceat(np.append(is_top_reward(packed, kept)[ids], 0), kept[:-1]) * (counts > 0)
        overlap = mean((top / np.maximum(counts, 1))[has_choice])
        reward = mean(packed.reward[ids])
    return Scores(
        coverage=float(sums.coverage.sum() / sizes.sum()),
        diversity=mean(sums.diversity[counts > 1]),
        mean_reward=reward,
        value=float((sums.objective[full] / sums.everything[full]).mean()),
        skill=mean(selection.skill.numpy()[has_choice]),
        effective_k=float(selection.effective_k.numpy()[full].mean()),
        reward_top_k=overlap,
        ran_dry=float((selection.effective_k.numpy() < counts)[full].mean()),
        kept=len(ids),
        prompt_coverage=sums.coverage / np.maximum(sizes, 1),
    )


COLUMNS = ("coverage", "diversity", "mean_reward", "value", "upper_bound", "skill", "effective_k", "reward_top_k")
HEADINGS = ("coverage", "diversity", "reward", "value", "bound", "skill", "eff. K", "top K")


def cell(name: str, number: float | None) -> str:
    """A number as the table shows it."""
    if number is None:
        return "–"
    if name == "reward_top_k":
        return f"{100 * number:.0f} %"
    if name == "mean_reward":
        return f"{number:.4g}"
    return f"{number:.2f}" if name == "effective_k" else f"{number:,.3f}"


def print_table(scores: Mapping[str, Row], method: str, title: str, notes: list[str]) -> None:
    """The comparison on the terminal; the method that was written is marked."""
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method", no_wrap=True)
    numbers = {name: row.as_json() for name, row in scores.items()}
    used = [i for i, name in enumerate(COLUMNS) if any(row.get(name) is not None for row in numbers.values())]
    for i in used:
        table.add_column(HEADINGS[i], justify="right", no_wrap=True)
    for name, row in numbers.items():
        mark = "→" if name == method and len(scores) > 1 else " "
        style = "bold" if mark == "→" else None
        table.add_row(f"{mark} {name}", *(cell(COLUMNS[i], row[COLUMNS[i]]) for i in used), style=style)
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, needed)  # no number is cut on a narrow terminal
    console.print(title, style="bold", soft_wrap=True, markup=False)  # a table's own title wraps at its width
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)


def as_json(facts: dict[str, Any], scores: Mapping[str, Row], notes: list[str]) -> bytes:
    """The report: what was asked, every method's numbers, what the terminal said."""
    methods = {name: row.as_json() for name, row in scores.items()}
    report = without_nan({**facts, "methods": methods, "notes": notes})
    text = json.dumps(report, indent=2, allow_nan=False)
    return text.encode() + b"\n"
