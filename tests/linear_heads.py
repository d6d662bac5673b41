"""What the tests of linear heads share: the program that a user would write, exact gradients, their rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrtkern import _dispatch
from mrtkern.ops.linear_cross_entropy import chunks
from mrtkern.ops.linear_cross_entropy.op import linear_cross_entropy
from mrtkern.ops.linear_cross_entropy.problem import CASES, Case
from tests import oracle
from tests.losses import BACKENDS, TRITON

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
CHUNKS = (1, chunks.LEAST_ROWS - 1, chunks.LEAST_ROWS + 1, 1000)


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


def truth(inputs: dict[str, Any], **options: Any) -> tuple[Tensor, ...]:
    exact = double(inputs)
    loss = naive(**exact, **options)
    return loss.detach(), *torch.autograd.grad(loss, leaves(exact))


def assert_all_summed(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], inputs: dict[str, Any]) -> None:
    """Within the rounding of sums over features, classes and rows, at the size of what was summed.

    A logit errs by its own sum, so dz errs relatively by as many roundings as the largest logit is large.
    """
    exact = double(inputs)
    h, W, w = (exact[name].detach().abs() for name in ("hidden", "weight", "token_weight"))
    b = exact["bias"].detach().abs() if "bias" in exact else torch.zeros(len(W))
    largest = 1 + float((h @ W.T + b).max()) if len(h) else 1.0
    per_row = w.sum() * 2  # |dz| of a row sums to at most twice its weight
    steps = (len(h) + len(W) + W.shape[1] + 32) * largest
    sizes = {"hidden": W.max() * per_row, "weight": h.max() * per_row if len(h) else 0.0, "bias": per_row}
    oracle.assert_summed(found[0].detach(), expected[0], int(steps), (w.sum() * (largest + len(W) ** 0.5)).item())
    names = [name for name in inputs if isinstance(inputs[name], Tensor) and inputs[name].requires_grad]
    for name, got, value in zip(names, found[1:], expected[1:], strict=True):
        oracle.assert_summed(got, value, int(steps), sizes[name])


def product_flops(call: Any) -> int:
    """Operations of all matrix products of a call."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        call()
    total = 0
    for event in profiler.key_averages(group_by_input_shape=True):
        if event.key == "aten::addmm_":
            (M, K), (_, N) = event.input_shapes[1:3]
            total += 2 * M * K * N * event.count
    return total
