"""What a loss over responses can say beside its value: per response, per prompt, and how much varies between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mrtkern import _check, _operators, _sums
from mrtkern._groups import IdGroups
from mrtkern.ops.cross_entropy.problem import Rows


@dataclass(frozen=True)
class LossDetails:
    """A loss with what it says of R responses and P prompts. Only `loss` has a gradient.

    All are of the type of the loss, float32 (float64 for float64), but response_tokens; negative log-likelihoods and
    entropies are in nats.

    loss, 0-d: the loss itself.
    response_nll [R]: sum of the negative log-likelihood over a response's tokens, without smoothing, z-loss and
    weights.
    response_tokens [R] int64: targets of a response that are not ignored.
    prompt_loss [P]: each prompt's part of the loss, prompts ascending; without prompt [R], each response's part.
    within_variance, 0-d: variance of response_nll / response_tokens inside prompts; NaN when no prompt has two
    responses.
    between_variance, 0-d: that between prompts, unbiased and cut off at 0; NaN for fewer than two prompts.
    accuracy, 0-d: share of valid targets that are the row's largest logit.
    entropy, 0-d: mean over valid targets of the row's entropy.
    """

    loss: Tensor
    response_nll: Tensor
    response_tokens: Tensor
    prompt_loss: Tensor
    within_variance: Tensor
    between_variance: Tensor
    accuracy: Tensor
    entropy: Tensor


def response_tokens(targets: Tensor, offsets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which targets are valid [T], and how many of each response are [R]."""
    is_valid = targets != ignore_index
    before = torch.nn.functional.pad(is_valid.cumsum(0), (1, 0))
    return is_valid, before[offsets[1:]] - before[offsets[:-1]]


def by_response(values: Tensor, offsets: Tensor) -> Tensor:
    """Sums over responses [R], in float64."""
    return torch.segment_reduce(values.double(), "sum", offsets=offsets, axis=0, unsafe=True)


def response_details(
    op: str, found: Rows, targets: Tensor, target_offsets: Tensor | None, ignore_index: int, offsets: Tensor,
    prompt: Tensor | None,
) -> LossDetails:  # fmt: skip
    """Details from what the rows of the function `op` left."""
    loss, *rows = found
    return LossDetails(
        loss, *torch.ops.mrtkern.response_details(*rows, targets, target_offsets, ignore_index, offsets, prompt, op)
    )


def _run(
    nll: Tensor, weighted: Tensor, entropy: Tensor, argmax: Tensor, targets: Tensor, target_offsets: Tensor | None,
    ignore_index: int, offsets: Tensor, prompt: Tensor | None, op: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    """nll, weighted: one per target; entropy, argmax: one per row."""
    E = targets.shape[0]
    offsets, is_right = _check.covering_offsets(op, offsets, E, "offsets", "targets")
    if target_offsets is not None:
        inside, _ = _check.covering_offsets(op, target_offsets, E, "target_offsets", "targets")
        rows = torch.repeat_interleave(inside.diff(), output_size=E)
        entropy, argmax = entropy[rows], argmax[rows]
    is_valid, tokens = response_tokens(targets, offsets, ignore_index)
    nlls = by_response(nll, offsets)
    prompts = _prompts(nlls, tokens, by_response(weighted, offsets), prompt)
    count = is_valid.sum().clamp(min=1).double()
    accuracy = ((argmax == targets) & is_valid).sum() / count
    mean_entropy = _sums.total(torch.where(is_valid, entropy, 0).double()) / count
    nlls, *numbers = (
        torch.where(is_right, value, torch.nan).to(nll.dtype) for value in (nlls, *prompts, accuracy, mean_entropy)
    )
    return nlls, tokens, *numbers


def _fake(
    nll: Tensor, weighted: Tensor, entropy: Tensor, argmax: Tensor, targets: Tensor, target_offsets: Tensor | None,
    ignore_index: int, offsets: Tensor, prompt: Tensor | None, op: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    R = offsets.shape[0] - 1
    P = R if prompt is None else torch.library.get_ctx().new_dynamic_size()
    numbers = (nll.new_empty(()) for _ in range(4))
    return nll.new_empty(R), offsets.new_empty(R), nll.new_empty(P), *numbers


_operators.define(
    "response_details",
    "(Tensor nll, Tensor weighted, Tensor entropy, Tensor argmax, Tensor targets, Tensor? target_offsets, "
    "int ignore_index, Tensor offsets, Tensor? prompt, str op) -> (Tensor response_nll, Tensor response_tokens, "
    "Tensor prompt_loss, Tensor within_variance, Tensor between_variance, Tensor accuracy, Tensor entropy)",
    _run,
    _fake,
)


def _prompts(nlls: Tensor, tokens: Tensor, losses: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each prompt [P]; variances within and between prompts, as `variance_components` has them."""
    groups = IdGroups(prompt)
    counts = (tokens > 0).double()
    x = nlls / tokens.clamp(min=1) * counts
    k = groups.segments(counts)  # [R] responses of each prompt, then zeros
    R, num_prompts = k.sum(), (k > 0).sum()
    means, mean = groups.segments(x) / k.clamp(min=1), _sums.total(x) / R
    within = _sums.total((x - groups.spread(means)).square() * counts) / (R - num_prompts)
    outside = _sums.total(k * (means - mean).square()) / (num_prompts - 1)
    k0 = (R - k.square().sum() / R) / (num_prompts - 1)
    between = ((outside - within) / k0).clamp(min=0)
    losses = groups.segments(losses)
    return losses[: int(groups.number)] if groups.has_ids else losses, within, between
