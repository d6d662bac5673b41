"""What a loss over responses can say beside its value: per response, per prompt, and how much varies between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mrtkern import _check
from mrtkern.ops.cross_entropy.problem import Rows


@dataclass(frozen=True)
class LossDetails:
    """Only `loss` has a gradient. A response's negative log-likelihood excludes smoothing, z-loss and weights."""

    loss: Tensor  # 0-d
    response_nll: Tensor  # [R] sum over the response's tokens
    response_tokens: Tensor  # [R] int64: targets that are not ignored
    prompt_loss: Tensor  # [P] each prompt's part of the loss, prompts ascending; without prompt: [R]
    within_variance: Tensor  # 0-d: of response_nll / response_tokens inside prompts; NaN when no prompt has two
    between_variance: Tensor  # 0-d: between prompts, unbiased and cut off at 0; NaN for fewer than two prompts
    accuracy: Tensor  # 0-d: share of valid targets that are the row's largest logit
    entropy: Tensor  # 0-d: mean over valid targets of the row's entropy, in nats


def response_tokens(targets: Tensor, offsets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which targets are valid [T], and how many of each response are [R]."""
    is_valid = targets != ignore_index
    before = torch.nn.functional.pad(is_valid.cumsum(0), (1, 0))
    return is_valid, before[offsets[1:]] - before[offsets[:-1]]


def by_response(values: Tensor, offsets: Tensor) -> Tensor:
    """Sums over responses [R], in float64."""
    return torch.segment_reduce(values.double(), "sum", offsets=offsets, axis=0, unsafe=True)


def response_details(
    found: Rows, targets: Tensor, target_offsets: Tensor | None, ignore_index: int, offsets: Tensor,
    prompt: Tensor | None,
) -> LossDetails:  # fmt: skip
    """Details from what the rows left."""
    loss, nll, weighted, entropy, argmax = found
    if targets.device.type == "cpu":
        _check.offsets_values("return_details", offsets, targets.shape[0], "offsets", "targets")
    if target_offsets is not None:
        rows = torch.repeat_interleave(target_offsets.diff(), output_size=targets.shape[0])
        entropy, argmax = entropy[rows], argmax[rows]
    is_valid, tokens = response_tokens(targets, offsets, ignore_index)
    nlls = by_response(nll, offsets)
    losses, within, between = _prompts(nlls, tokens, by_response(weighted, offsets), prompt)
    count = is_valid.sum().clamp(min=1)
    dtype = loss.dtype
    return LossDetails(
        loss,
        nlls.to(dtype),
        tokens,
        losses.to(dtype),
        within.to(dtype),
        between.to(dtype),
        ((argmax == targets) & is_valid).sum().to(dtype) / count,
        (torch.where(is_valid, entropy, 0).double().sum() / count).to(dtype),
    )


def _prompts(nlls: Tensor, tokens: Tensor, losses: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each prompt [P]; variances within and between prompts, as `variance_components` has them."""
    if prompt is None:
        group, P = torch.arange(tokens.shape[0], device=tokens.device), tokens.shape[0]
    else:
        ids, group = prompt.unique(return_inverse=True)
        P = ids.shape[0]

    def add_up(values: Tensor) -> Tensor:
        return values.new_zeros(P).index_add_(0, group, values)

    counts = (tokens > 0).double()
    x = nlls / tokens.clamp(min=1) * counts
    k = add_up(counts)  # responses of each prompt
    R, num_prompts = k.sum(), (k > 0).sum()
    means, mean = add_up(x) / k.clamp(min=1), x.sum() / R
    within = ((x - means[group]).square() * counts).sum() / (R - num_prompts)
    outside = (k * (means - mean).square()).sum() / (num_prompts - 1)
    k0 = (R - k.square().sum() / R) / (num_prompts - 1)
    between = ((outside - within) / k0).clamp(min=0)
    return add_up(losses), within, between
