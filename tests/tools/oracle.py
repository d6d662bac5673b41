"""What is true, computed slowly, and how far a result may be from it. Every tolerance of the tests is derived here.

Two rules. A result may err by twice the bound of the sums on the way to it, plus one rounding of its own type: steps *
u * magnitude, u the unit roundoff of the type that sums (Higham, Accuracy and Stability, 2002, chapter 3); `bounds.py`
follows the bound through every operation. Integers are compared with ==. No tolerance is what a library errs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# 64 bits of mantissa on x86; where it is no wider than float64, the bounds below still cover both sums.
LONG = np.longdouble
FIXED_POINT = 32767  # 15 bits, as documented; written again here so that a change of the library's does not pass


def roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of one rounding to `dtype`."""
    return torch.finfo(dtype).eps / 2


def sums_in(dtype: torch.dtype) -> torch.dtype:
    """The type that sums products of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def one_rounding(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """Largest error of rounding `truth` once to `dtype`, subnormals included."""
    return truth.double().abs() * roundoff(dtype) + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


shares: list[float] = []  # of what is allowed beyond the rounding of a result, how much each comparison needed


def assert_within(got: Tensor, truth: Tensor, allowed: Tensor) -> None:
    """`got` is within `allowed` and one rounding of its own type."""
    assert got.shape == truth.shape, f"shape {list(got.shape)}, expected {list(truth.shape)}"
    error, rounding = (got.double() - truth.double()).abs(), one_rounding(truth.abs() + allowed, got.dtype)
    bad = ~(error <= allowed + rounding)  # a NaN is never within
    needed = (error - rounding).clamp(min=0) / allowed.clamp(min=torch.finfo(torch.float64).tiny)
    shares.append(float(needed.max()) if needed.numel() else 0.0)
    if bool(bad.any()):
        worst = int((error / (allowed + rounding)).nan_to_num(nan=torch.inf).flatten().argmax())
        where = np.unravel_index(worst, tuple(got.shape))
        pair = f"{float(got.flatten()[worst])!r} against {float(truth.flatten()[worst])!r}"
        raise AssertionError(f"{int(bad.sum())} of {bad.numel()} too far, worst at {[int(i) for i in where]}: {pair}")


def assert_summed(got: Tensor, truth: Tensor, steps: int, magnitude: Tensor | float) -> None:
    """`got` is within `steps` roundings of the summing type, at `magnitude`, and one rounding of its own type."""
    wide = roundoff(sums_in(got.dtype))
    assert_within(got, truth, (steps * wide * torch.as_tensor(magnitude, dtype=torch.float64)).expand(truth.shape))


@dataclass(frozen=True)
class Truth:
    """Exact values, float64, and the size of what was summed or multiplied to get them."""

    value: Tensor
    magnitude: Tensor


def _long(x: Tensor) -> Any:
    return x.detach().double().cpu().numpy().astype(LONG)


def _pairs(x: Tensor, y: Tensor, metric: str, gamma: float) -> Truth:
    a, b = _long(x)[:, None, :], _long(y)[None, :, :]
    dot, sizes = (a * b).sum(-1), (np.abs(a) * np.abs(b)).sum(-1)
    if metric == "rbf":
        square = LONG(gamma) * ((a - b) ** 2).sum(-1)
        value = np.exp(-square)
        magnitude = value * (1 + square)
    elif metric == "dot":
        value, magnitude = dot, sizes
    else:
        lengths = np.sqrt((a * a).sum(-1)) * np.sqrt((b * b).sum(-1))
        cos = np.where(lengths > 0, dot / np.where(lengths > 0, lengths, 1), 0)
        value = {"cosine": cos, "shifted_cosine": (1 + cos) / 2, "clamped_cosine": np.maximum(cos, 0)}[metric]
        magnitude = np.ones_like(cos)
    return Truth(torch.from_numpy(value.astype(np.float64)), torch.from_numpy(magnitude.astype(np.float64)))


def similarity(
    x: Tensor, y: Tensor | None = None, *, metric: str = "cosine", offsets: Tensor | None = None, gamma: float = 1.0
) -> Truth:
    """The scores of `mrtkern.similarity`, pair by pair."""
    if offsets is not None:
        ends = offsets.tolist()
        parts = [_pairs(x[i:j], x[i:j], metric, gamma) for i, j in itertools.pairwise(ends)]
        none = torch.empty(0, dtype=torch.float64)
        return Truth(
            torch.cat([none, *(part.value.flatten() for part in parts)]),
            torch.cat([none, *(part.magnitude.flatten() for part in parts)]),
        )
    other = x if y is None else y
    if x.ndim == 2:
        return _pairs(x, other, metric, gamma)
    parts = [_pairs(a, b, metric, gamma) for a, b in zip(x, other, strict=True)]
    return Truth(torch.stack([part.value for part in parts]), torch.stack([part.magnitude for part in parts]))


def neighbor_scores(x: Tensor, y: Tensor, metric: str = "cosine", gamma: float = 1.0) -> Any:
    """float64 scores [M, N] as `mrtkern.neighbors` defines them: 16 interleaved lanes ascending, then by halves. What
    rbf is ordered by is "distance", -|x - y|^2."""
    a, b = (v.double().numpy() for v in (x, y))
    if metric not in ("dot", "rbf", "distance") and x.dtype == torch.float64:
        a, b = (np.ldexp(v, -np.frexp(np.abs(v).max(axis=1, keepdims=True, initial=0))[1]) for v in (a, b))

    def summed(term: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
        lanes = np.zeros((*np.broadcast_shapes(a.shape[:-1], b.shape[:-1]), 16))
        for d in range(a.shape[-1]):
            lanes[..., d % 16] += term(a[..., d], b[..., d])
        for half in (8, 4, 2, 1):
            lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        return lanes[..., 0]

    if metric in ("rbf", "distance"):
        squares = summed(lambda u, v: (u - v) ** 2, a[:, None], b[None])
        return -squares if metric == "distance" else np.exp(squares * -gamma)
    dots = summed(np.multiply, a[:, None], b[None])
    if metric == "dot":
        return dots
    lengths = np.sqrt(summed(np.multiply, a, a)[:, None] * summed(np.multiply, b, b))
    cos = np.where(lengths > 0, dots / np.where(lengths > 0, lengths, 1), 0).clip(-1, 1)
    return {"cosine": cos, "shifted_cosine": (1 + cos) / 2, "clamped_cosine": np.maximum(cos, 0)}[metric]


def fine_products(x: Tensor, y: Tensor, metric: str = "cosine", is_self: bool = False) -> tuple[Any, Any]:
    """Products [M, N] on the fine lattice, as `mrtkern.neighbors` defines them, and what one step is worth [M]."""
    radius = 32767 - np.sqrt(x.shape[1]) / 2
    a, b = (v.double().numpy() for v in (x, y))
    long_a, long_b = (np.sqrt(np.diag(neighbor_scores(v, v, "dot"))) for v in (x, y))
    worth = np.full(len(a), 1 / radius**2)
    if metric == "dot":
        long_b = np.full(len(b), long_b.max(initial=0))
        long_a = np.full(len(a), long_b.max(initial=0)) if is_self else long_a
        worth = long_a * long_b.max(initial=0) / radius**2
    scale_a, scale_b = (np.divide(radius, v, out=np.zeros_like(v), where=v > 0) for v in (long_a, long_b))
    p, q = (np.rint(v * scale[:, None]).astype(np.int64) for v, scale in ((a, scale_a), (b, scale_b)))
    return p @ q.T, worth


def nearest(keys: Any, k: int, excluded: Any = None) -> tuple[Any, Any]:
    """ids and keys [M, k] by brute force: larger keys first, equal keys by the lower index, -1 and -inf at the end."""
    ids, found = np.full((len(keys), k), -1), np.full((len(keys), k), -np.inf)
    for m, row in enumerate(keys):
        open_ids = [n for n in range(len(row)) if excluded is None or not excluded[m, n]]
        best = sorted(open_ids, key=lambda n: (-row[n], n))[:k]
        ids[m, : len(best)], found[m, : len(best)] = best, row[best]
    return ids, found


def chains(links: Any) -> list[int]:
    """The lowest row of every connected component of links [N, N], by depth-first search from the lowest row left."""
    seen: set[int] = set()
    first = []
    for start in range(len(links)):
        if start in seen:
            continue
        first.append(start)
        todo = [start]
        while todo:
            row = todo.pop()
            if row not in seen:
                seen.add(row)
                todo.extend(np.flatnonzero(links[row]).tolist())
    return first


def steps(n: float) -> float:
    """n steps of the fixed point in which selections count; 32767 of them are the largest pair."""
    return n / FIXED_POINT


def coverage_error(rows: int, pair_error: float) -> float:
    """Largest |value - F| of a selection over `rows` rows, in units of the largest weight times quality.

    Every row errs by its pair's error, by the half step of rounding to fixed point, and by at most eight roundings of
    the float32 product before that, each 2**-24 of the largest pair: 2**-6 of a step is more than that.
    """
    return rows * (pair_error + steps(0.5 + 2.0**-6))


def sum_error(n: int, dtype: torch.dtype) -> float:
    """Largest relative error, to first order, of n positive numbers rounded and summed in any order, then rounded."""
    return (n + 1) * roundoff(dtype)


def similarity_steps(D: int) -> int:
    """Roundings on the way to one score: D products and D sums, two normalised rows, four steps of the metric."""
    return 2 * D + 6


def coverage(c: Any, ids: Any) -> Any:
    """F = sum_i max_{j in ids} c_ij of a matrix c [M, N]; 0 for no ids."""
    columns = np.asarray(c)[:, list(ids)]
    return columns.max(axis=1).sum() if columns.shape[1] else columns.dtype.type(0)


def best_subset(c: Any, k: int) -> Any:
    """The largest coverage of any k columns of c [M, N], by trying all of them."""
    c = np.asarray(c)
    return max(coverage(c, ids) for ids in itertools.combinations(range(c.shape[1]), k))


def greedy(c: Any, k: int) -> tuple[list[int], list[Any]]:
    """k columns by largest marginal gain, equal gains to the lower index, and the gains; naive."""
    c = np.asarray(c)
    best = np.zeros(c.shape[0], dtype=c.dtype)
    ids: list[int] = []
    gains: list[Any] = []
    for _ in range(k):
        gain = [None if j in ids else np.maximum(c[:, j], best).sum() - best.sum() for j in range(c.shape[1])]
        j = max((j for j in range(c.shape[1]) if j not in ids), key=lambda j: (gain[j], -j))
        ids.append(j)
        gains.append(gain[j])
        best = np.maximum(best, c[:, j])
    return ids, gains


def peak_bytes(call: Callable[[], Any]) -> tuple[int, Any]:
    """Most bytes of tensors alive at once that `call` allocated on the CPU, and what it returned."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        result = call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    running = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(running.max(initial=0)), result


# Of one exponential in units of 2**-24, as csrc/cross_entropy/lanes.h derives it; one more where a product follows.
EXPONENTIAL = 4
LANE_SUM = 32  # numbers that one lane adds up in float32
LOSS = 1e-5  # relative, what the loss of realistic logits promises in every type


def cross_entropy_steps() -> int:
    """Roundings on the way to one loss in units of max(1, |u|): difference, exponential, sum, logarithm."""
    return EXPONENTIAL + LANE_SUM + 2


@dataclass(frozen=True)
class Losses:
    """Exact values in float64: what a loss of logits is, by autograd through its formula."""

    loss: Tensor
    nll: Tensor  # one per target
    entropy: Tensor  # one per row
    gradient: Tensor
    magnitude: Tensor  # of what was added up to the loss


def cross_entropy(
    logits: Tensor, targets: Tensor, *, token_weight: Tensor | None = None, ignore_index: int = -100,
    label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float | None = None,
    target_offsets: Tensor | None = None,
) -> Losses:  # fmt: skip
    """`mrtkern.cross_entropy` of finite logits, target by target."""
    z = logits.detach().double().requires_grad_()
    u = softcap * torch.tanh(z / softcap) if softcap else z
    log_p, lse = u.log_softmax(1), u.logsumexp(1)
    ends = list(range(len(z) + 1)) if target_offsets is None else target_offsets.tolist()
    rows = [t for t, (i, j) in enumerate(itertools.pairwise(ends)) for _ in range(i, j)]
    valid = [e for e, y in enumerate(targets.tolist()) if y != ignore_index]
    loss = (z * 0).sum()
    nll, magnitude = torch.zeros(len(targets), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for e in valid:
        t, y = rows[e], int(targets[e])
        w = 1 / len(valid) if token_weight is None else float(token_weight[e])
        smooth = -(1 - label_smoothing) * log_p[t, y] - label_smoothing * log_p[t].mean()
        loss = loss + w * (smooth + z_loss * lse[t] ** 2)
        nll[e] = -log_p[t, y].detach()
        magnitude += abs(w) * (1 + u[t].detach().abs().max() + z_loss * lse[t].detach() ** 2)
    loss.backward()
    assert z.grad is not None
    entropy = -(log_p.exp() * log_p).sum(1).detach()
    return Losses(loss.detach(), nll, entropy, z.grad, magnitude)


SPLIT = 1e-6  # largest relative difference of a gradient made in parts, by accumulation and over ranks
IGNORE = -100

# largest relative difference between a row that shares its prompt and a row for each response
SHARED = {torch.float32: 1e-5, torch.float64: 1e-13}


def normalized(prompts: Sequence[Sequence[Tensor]], normalize: str, constant: float = 1.0) -> Tensor:
    """The loss of responses, of each its tokens' losses, prompt by prompt."""
    responses = [tokens for prompt in prompts for tokens in prompt]
    if normalize == "token":
        return torch.cat(responses).mean()
    if normalize == "response":
        return torch.stack([tokens.mean() for tokens in responses]).mean()
    of_prompt: Callable[[Sequence[Tensor]], Tensor] = {
        "prompt": lambda k: torch.stack([tokens.mean() for tokens in k]).mean(),
        "prompt_token": lambda k: torch.cat([*k]).mean(),
        "prompt_sum": lambda k: torch.stack([tokens.sum() / constant for tokens in k]).mean(),
    }[normalize]
    return torch.stack([of_prompt(k) for k in prompts]).mean()
