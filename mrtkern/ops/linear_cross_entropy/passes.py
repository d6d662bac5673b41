"""The passes over the chunks: losses with their gradients, log-probabilities, the gradient of those.

`rows` is the module of a backend: its `forward` does one chunk of logits, `multiplies` and `chunk_size` say how.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from mrtkern.ops.linear_cross_entropy import chunks
from mrtkern.ops.linear_cross_entropy.chunks import Gradients
from mrtkern.ops.linear_cross_entropy.problem import Problem
from mrtkern.ops.linear_cross_entropy.rows import Entries, Options

DETAILS = ("nll", "entropy", "argmax")


@dataclass(frozen=True)
class Losses:
    """The loss, its gradients in the summing type, and what each entry and row adds to the details."""

    loss: float
    gradients: Gradients
    details: tuple[Tensor, Tensor, Tensor] | None  # nll [E], entropy [T], argmax [T]: 0, 0, -1 where nothing counts


def losses(
    rows: ModuleType, problem: Problem, hidden: Tensor, weight: Tensor, bias: Tensor | None, given: Entries,
    options: Options, num_entries: int, wants_details: bool,
) -> Losses:  # fmt: skip
    """The loss and its gradients in one pass."""
    T = problem.T if given.rows is None else given.rows.shape[0]
    total = 0.0
    nll = given.weight.new_zeros(given.weight.shape)
    entropy, argmax = nll.new_zeros(T), given.targets.new_full((T,), -1)

    def step(z: Tensor, chunk: slice) -> None:
        nonlocal total
        part = given.chunk(chunk)
        found = rows.forward(
            z, part, options, wants_gradient=problem.wants_grad, wants=DETAILS if wants_details else ()
        )
        total += found.loss
        if wants_details:
            nll[given.span(chunk)], entropy[chunk], argmax[chunk] = found.nll, found.entropy, found.argmax

    size, product = rows.chunk_size(problem), rows.multiplies(problem)
    made = chunks.run(hidden, weight, bias, given.rows, step, size=size, product=product, needs=problem.needs)
    if not wants_details:
        return Losses(total, made, None)
    if given.rows is not None:
        entropy = entropy.new_zeros(problem.T).index_copy_(0, given.rows, entropy)
        argmax = argmax.new_full((problem.T,), -1).index_copy_(0, given.rows, argmax)
    return Losses(total, made, (given.spread(nll, num_entries), entropy, argmax))


def log_probs(
    rows: ModuleType, problem: Problem, hidden: Tensor, weight: Tensor, bias: Tensor | None, given: Entries,
    options: Options,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """logp [T], entropy [T]; 0 in rows that do not count."""
    T = problem.T if given.rows is None else given.rows.shape[0]
    logp, entropy = given.weight.new_empty(T), given.weight.new_empty(T)

    def step(z: Tensor, chunk: slice) -> None:
        found = rows.forward(z, given.chunk(chunk), options, wants=("nll", "entropy"))
        logp[chunk], entropy[chunk] = -found.nll, found.entropy

    chunks.run(
        hidden, weight, bias, given.rows, step, size=rows.chunk_size(problem), product=rows.multiplies(problem)
    )
    return given.spread(logp, problem.T), given.spread(entropy, problem.T)


def log_probs_backward(
    rows: ModuleType, problem: Problem, hidden: Tensor, weight: Tensor, bias: Tensor | None, given: Entries,
    options: Options, entropy_weight: Tensor | None,
) -> Gradients:  # fmt: skip
    """Gradients of sum_t given.weight_t nll_t + entropy_weight_t H_t, from logits that are computed again."""

    def step(z: Tensor, chunk: slice) -> None:
        h = None if entropy_weight is None else entropy_weight[chunk]
        rows.forward(z, given.chunk(chunk), options, entropy_weight=h, wants_gradient=True)

    return chunks.run(
        hidden, weight, bias, given.rows, step, size=rows.chunk_size(problem), product=rows.multiplies(problem),
        needs=problem.needs,
    )  # fmt: skip
