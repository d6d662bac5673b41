"""The weights of an optimizer step, from the numbers of its responses alone."""

from __future__ import annotations

import torch
from torch import Tensor

import mrtkern as mk
from mrtkern.integrations.step import IGNORE


def step_weights(
    normalize: str, tokens: Tensor, prompt: Tensor, *, response_weight: Tensor | None = None, constant: float = 1.0
) -> Tensor:
    """The weight of a token of each response [R], as in `mrtkern.response_weights`; tokens [R], prompt [R] int64."""
    targets = torch.where(tokens > 0, 0, IGNORE)[:, None]
    weights = mk.response_weights(
        targets, normalize, prompt=prompt, response_weight=response_weight, tokens_per_response=tokens,
        constant=constant,
    )  # fmt: skip
    return weights[:, 0]


def shares_here(share: Tensor, tokens: Tensor, prompt: Tensor) -> Tensor:
    """Weights of the responses of a prompt that sum to 1 over those of it that are here and have tokens, float64."""
    share = torch.where(tokens > 0, share, 0).double()
    number = prompt.unique(return_inverse=True)[1]
    total = share.new_zeros(int(number.max()) + 1 if len(number) else 0).index_add_(0, number, share)[number]
    return torch.where(total > 0, share / total, 0)
