"""The passes over the chunks: losses with their gradients, log-probabilities, the gradient of those,
and how gradients leave.

`kernels` is a backend's module: its `forward` does one chunk of logits, `products` makes it, `multiplies` and
`chunk_size` say how.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mrtkern import _dispatch
from mrtkern.ops.cross_entropy.problem import Options, Rows
from mrtkern.ops.linear_cross_entropy import chunks
from mrtkern.ops.linear_cross_entropy.chunks import Gradients
from mrtkern.ops.linear_cross_entropy.problem import NO_TARGET, Cap, Head, Problem, sums_in
from mrtkern.ops.linear_cross_entropy.rows import Entries


def losses(
    kernels: ModuleType, problem: Problem, head: Head, given: Entries, options: Options, *, num_entries: int,
    wants_details: bool,
) -> tuple[Rows, Gradients]:  # fmt: skip
    """The loss and its gradients in one pass. Details are 0, argmax -1, where nothing counts."""
    T, E = (given.num_rows(problem.T), len(given.targets)) if wants_details else (0, 0)
    parts: list[Tensor] = []
    options = options._replace(ignore_index=NO_TARGET)
    nll, weighted = given.weight.new_zeros(E), given.weight.new_zeros(E)
    entropy, argmax = given.weight.new_empty(T), given.targets.new_empty(T)

    def step(z: Tensor, dz: Tensor, chunk: slice) -> None:
        part = given.chunk(chunk)
        gradient = dz if problem.wants_grad else None
        found = kernels.forward(z, part.targets, part.weight, part.offsets, options, gradient, wants_details)
        parts.append(found.loss)
        if wants_details:
            given.put(nll, chunk, found.nll)
            given.put(weighted, chunk, found.weighted)
            entropy[chunk], argmax[chunk] = found.entropy, found.argmax

    made = run(kernels, problem, head, given, step)
    loss = torch.stack([part.double() for part in parts]).sum() if parts else given.weight.new_zeros(())
    loss = loss.to(given.weight.dtype)
    if not wants_details:
        return Rows(loss, nll, weighted, entropy, argmax), made
    nll, weighted = given.spread(nll, num_entries), given.spread(weighted, num_entries)
    if given.rows is not None:
        entropy = entropy.new_zeros(problem.T).index_copy_(0, given.rows, entropy)
        argmax = argmax.new_full((problem.T,), -1).index_copy_(0, given.rows, argmax)
    return Rows(loss, nll, weighted, entropy, argmax), made


def log_probs(kernels: ModuleType, problem: Problem, head: Head, given: Entries, cap: Cap) -> tuple[Tensor, Tensor]:
    """logp [T], entropy [T]; 0 in rows that do not count."""
    logp, entropy = torch.empty_like(given.weight), torch.empty_like(given.weight)

    def step(z: Tensor, _: Tensor, chunk: slice) -> None:
        logp[chunk], entropy[chunk], *_ = kernels.log_probs(z, given.targets[chunk], cap)

    run(kernels, problem, head, given, step)
    return given.spread(logp, problem.T), given.spread(entropy, problem.T)


def log_probs_backward(
    kernels: ModuleType, problem: Problem, head: Head, given: Entries, cap: Cap, c: Tensor | None, *,
    lse: Tensor | None = None, **whole: Any,
) -> Gradients:  # fmt: skip
    """Gradients of sum_t given.weight_t (-logp_t) + c_t H_t, from logits that are computed again.

    lse and `whole` (z_loss, label_smoothing, classes) are given where weight has a part of the classes.
    """

    def step(z: Tensor, dz: Tensor, chunk: slice) -> None:
        c_part, lse_part = (None if value is None else value[chunk] for value in (c, lse))
        kernels.log_probs_backward(
            z, given.targets[chunk], cap, given.weight[chunk], c_part, gradient=dz, lse=lse_part, **whole
        )

    return run(kernels, problem, head, given, step)


def run(kernels: ModuleType, problem: Problem, head: Head, given: Entries, step: chunks.Step) -> Gradients:
    """The chunks of the rows that count, equal ones."""
    size, product = kernels.chunk_size(replace(problem, T=given.num_rows(problem.T))), kernels.multiplies(problem)
    return chunks.run(
        kernels.products(head.weight, head.bias, product), head.hidden, problem.V, given.rows, step, size=size,
        wide=sums_in(product), needs=problem.needs, keeps=given.keeps,
    )  # fmt: skip


def scaled(gradient: Tensor, factor: Tensor | None, dtype: torch.dtype, *, in_place: bool = False) -> Tensor:
    """A gradient times the upstream gradient (None: 1), rounded once to dtype; `in_place` where it may be given away.

    On the CPU by the compiled kernels, whose bits no mode of the calling thread changes; on a device in one pass.
    """
    kernels = _dispatch.load("linear_cross_entropy", "tiles" if gradient.device.type == "cpu" else "triton")
    if not isinstance(kernels, str) and kernels.scales(gradient):
        scaled: Tensor = kernels.scaled(gradient, factor, dtype, in_place)
        return scaled
    product = gradient if factor is None else gradient.mul_(factor) if in_place else gradient * factor
    return product.to(dtype)
