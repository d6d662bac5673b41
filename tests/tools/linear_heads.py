"""What the tests of linear heads share: the program that a user would write, exact gradients, their rounding."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrtkern import _dispatch
from mrtkern.ops.linear_cross_entropy import tiles
from mrtkern.ops.linear_cross_entropy.op import linear_cross_entropy
from mrtkern.ops.linear_cross_entropy.problem import CASES, LEAST_ROWS, Case
from tests.tools import bounds
from tests.tools.bounds import Bounded
from tests.tools.losses import BACKENDS, TRITON

CPU = _dispatch.load("linear_cross_entropy", "cpu")
needs_cpu_backend = pytest.mark.skipif(isinstance(CPU, str), reason=f"compiled kernels: {CPU}")

TEST_CASES = [case for case in CASES if "test" in case.tags]
NARROW_CASES = [case for case in TEST_CASES if case.problem.product != torch.float64]
OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "all": {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 3.0},
}
every_case = pytest.mark.parametrize("case", TEST_CASES, ids=lambda case: case.name)
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_backend_and_triton = pytest.mark.parametrize("backend", [*BACKENDS, TRITON])  # of what the kernels may get wrong
# One row per chunk, fewer and more than the least number of rows of a product, all at once.
CHUNKS = (1, LEAST_ROWS - 1, LEAST_ROWS + 1, 1000)


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def double(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs in float64, as leaves."""
    return {
        name: value.detach().double().requires_grad_(value.requires_grad)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }


def needs_gradient(inputs: dict[str, Any], name: str) -> bool:
    return isinstance(inputs.get(name), Tensor) and inputs[name].requires_grad


def leaves(inputs: dict[str, Any]) -> list[Tensor]:
    return [value for value in inputs.values() if isinstance(value, Tensor) and value.requires_grad]


def with_gradients(inputs: dict[str, Any], **options: Any) -> tuple[Tensor, ...]:
    loss = linear_cross_entropy(**inputs, **options)
    return loss, *torch.autograd.grad(loss, leaves(inputs))


def naive(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, token_weight: Tensor | None = None,
    target_offsets: Tensor | None = None, label_smoothing: float = 0.0, z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """The program that a user would write, for autograd to differentiate."""
    z = F.linear(hidden, weight, bias)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    if target_offsets is not None:
        z = z[torch.repeat_interleave(torch.arange(len(z)), target_offsets.diff())]
    each = F.cross_entropy(z, targets, reduction="none", label_smoothing=label_smoothing)
    each = (each + z_loss * z.logsumexp(1) ** 2) * (targets != -100)
    if token_weight is None:
        return each.sum() / (targets != -100).sum().clamp(min=1)
    return (each * token_weight).sum()


def truth(
    inputs: dict[str, Any], product: torch.dtype | None = None, is_narrow: bool = False, **options: Any
) -> tuple[Bounded, ...]:
    """Loss and gradients by autograd through the program in float64, with the bounds of the sums on the way to them."""
    exact = double(inputs)
    loss = naive(**exact, **options)
    values = (loss.detach(), *torch.autograd.grad(loss, leaves(exact)))
    given = {name: value.detach() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    head = bounds.Head(given.pop("hidden"), given.pop("weight"), given.pop("bias", None), product, is_narrow)
    found = bounds.cross_entropy(head.logits(), **given, **options)
    made = head.gradients(found.gradient)
    bound = (found.loss, *(made[name] for name in ("hidden", "weight", "bias") if needs_gradient(inputs, name)))
    return tuple(replace(b, value=value) for b, value in zip(bound, values, strict=True))


def assert_all_bounded(found: tuple[Tensor, ...], expected: tuple[Bounded, ...]) -> None:
    """Within the rounding of sums over features, classes and rows."""
    for got, value in zip(found, expected, strict=True):
        bounds.assert_bounded(got.detach(), value)


def product_flops(call: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Operations of all matrix products of a call."""
    total, multiply = 0, tiles._C.matmul

    def counted(a: Any, b: Any, sizes: tuple[int, int, int], **options: Any) -> None:
        nonlocal total
        total += 2 * math.prod(sizes)
        multiply(a, b, sizes, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tiles, "_C", SimpleNamespace(**{**vars(tiles._C), "matmul": counted}))
        call()
    return total
