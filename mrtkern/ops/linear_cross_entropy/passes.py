"""The passes over the chunks: losses with their gradients, log-probabilities, the gradient of those.

`rows` is the module of a backend: its `forward` does one chunk of logits, `multiplies` and `chunk_size` say how.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from mrtkern.ops.cross_entropy.problem import Options
from mrtkern.ops.linear_cross_entropy import chunks
from mrtkern.ops.linear_cross_entropy.chunks import Gradients
from mrtkern.ops.linear_cross_entropy.problem import Cap, Problem
from mrtkern.ops.linear_cross_entropy.rows import Entries


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
            z, part.targets, part.weight, part.offsets, options, z if problem.wants_grad else None, wants_details
        )
        total += float(found.loss)
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
    rows: ModuleType, problem: Problem, hidden: Tensor, weight: Tensor, bias: Tensor | None, given: Entries, cap: Cap
) -> tuple[Tensor, Tensor]:
    """logp [T], entropy [T]; 0 in rows that do not count."""
    logp, entropy = torch.empty_like(given.weight), torch.empty_like(given.weight)

    def step(z: Tensor, chunk: slice) -> None:
        logp[chunk], entropy[chunk], _ = rows.log_probs(z, given.targets[chunk], cap)

    size, product = rows.chunk_size(problem), rows.multiplies(problem)
    chunks.run(hidden, weight, bias, given.rows, step, size=size, product=product)
    return given.spread(logp, problem.T), given.spread(entropy, problem.T)


def log_probs_backward(
    rows: ModuleType, problem: Problem, hidden: Tensor, weight: Tensor, bias: Tensor | None, given: Entries, cap: Cap,
    c: Tensor | None, *, z_loss: float = 0.0, lse: Tensor | None = None,
) -> Gradients:  # fmt: skip
    """Gradients of sum_t given.weight_t (z_loss lse_t^2 - logp_t) + c_t H_t, from logits that are computed again."""

    def step(z: Tensor, chunk: slice) -> None:
        c_part, lse_part = (None if value is None else value[chunk] for value in (c, lse))
        rows.log_probs_backward(z, given.targets[chunk], cap, given.weight[chunk], c_part, z_loss=z_loss, lse=lse_part)

    size, product = rows.chunk_size(problem), rows.multiplies(problem)
    return chunks.run(hidden, weight, bias, given.rows, step, size=size, product=product, needs=problem.needs)
