"""The losses in a process that has set other defaults of torch: the same bits as in one that has not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import mrtkern
from mrtkern.ops.linear_cross_entropy.problem import Problem
from tests.tools.linear_heads import every_backend_and_triton

R, L, D, V = 3, 4, 5, 7
PROMPT = torch.tensor([8, 2, 8])
DTYPES = (torch.float64, torch.bfloat16, torch.float16)


@contextmanager
def defaults(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[None]:
    """Of the process, inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


def flat(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found if isinstance(found, tuple) else vars(found).values())


def results(call: Callable[..., Any], leaves: list[Tensor], **given: Any) -> list[Tensor]:
    """What a call returns, and the gradients of the sum of all that has one."""
    found = flat(call(**given))
    total = sum(value.sum() for value in found if value.requires_grad)
    return [value.detach() for value in found] + list(torch.autograd.grad(total, leaves) if leaves else [])


def inputs(dtype: torch.dtype) -> dict[str, Any]:
    given = Problem(
        R * L, D, V, dtype, dtype, dtype, ignored=0.3, has_bias=True, needs=(True, True, True)
    ).make_inputs()
    return {**given, "offsets": torch.arange(0, R * L + 1, L)}


@every_backend_and_triton
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.full)], ids=str)
def test_losses_are_those_of_a_process_without_defaults(dtype: torch.dtype, backend: str) -> None:
    given = inputs(dtype)
    hidden, weight, bias, targets = (given[name] for name in ("hidden", "weight", "bias", "targets"))
    logits = torch.nn.functional.linear(hidden, weight, bias).detach().requires_grad_()
    details = {"return_details": True, "offsets": given["offsets"], "prompt": PROMPT, "backend": backend}
    head = {"hidden": hidden, "weight": weight, "bias": bias, "targets": targets}
    padded = (logits.detach().unflatten(0, (R, L)), targets.unflatten(0, (R, L)))

    def all_of_them() -> list[Tensor]:
        options = {"label_smoothing": 0.1, "softcap": 3.0, "z_loss": 0.01}
        several = torch.arange(0, R * L + 1, 2, dtype=torch.int64, device="cpu")
        return [
            *results(mrtkern.cross_entropy, [logits], logits=logits, targets=targets, **details, **options),
            *results(mrtkern.cross_entropy, [], logits=logits[:6], targets=targets, target_offsets=several, **details),
            *results(mrtkern.linear_cross_entropy, [hidden, weight, bias], **head, **details, **options),
            *results(mrtkern.linear_log_prob, [hidden, weight, bias], **head, softcap=2.0, backend=backend),
            *results(lambda: mrtkern.MultiResponseCrossEntropyLoss("prompt", backend=backend)(*padded), []),
        ]

    expected = all_of_them()
    for other in ({"dtype": DTYPES[0]}, {"dtype": DTYPES[1]}, {"dtype": DTYPES[2]}, {"device": "meta"}):
        with defaults(**other):
            found = all_of_them()
        for got, value in zip(found, expected, strict=True):
            assert got.dtype == value.dtype
            assert torch.equal(got, value) or torch.equal(got.isnan(), value.isnan())


@pytest.mark.parametrize("other", [*({"dtype": dtype} for dtype in DTYPES), {"device": "meta"}], ids=str)
def test_responses_are_weighed_and_dealt_out_as_without_defaults(other: dict[str, Any]) -> None:
    score, targets = torch.tensor([4.0, 1.0, 9.0]), inputs(torch.float32)["targets"].unflatten(0, (R, L))

    def all_of_them() -> tuple[Tensor, ...]:
        weights = mrtkern.response_weights(targets, "prompt", prompt=PROMPT, num_prompts=5)
        return weights, mrtkern.allocate_k(score, 12, max_k=6)

    expected = all_of_them()
    with defaults(**other):
        found = all_of_them()
    assert all(torch.equal(got, value) and got.dtype == value.dtype for got, value in zip(found, expected, strict=True))
