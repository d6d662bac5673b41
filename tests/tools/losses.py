"""What the tests of losses share: cases, fresh inputs, a loss with its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mrtkern import _dispatch
from mrtkern.ops.cross_entropy.details import LossDetails
from mrtkern.ops.cross_entropy.op import cross_entropy
from mrtkern.ops.cross_entropy.problem import CASES, Case
from tests.tools import bounds

CPU = _dispatch.load("cross_entropy", "cpu")
needs_cpu_backend = pytest.mark.skipif(isinstance(CPU, str), reason=f"compiled kernels: {CPU}")
TEST_CASES = [case for case in CASES if "test" in case.tags]
KERNEL_CASES = [case for case in TEST_CASES if case.problem.dtype != torch.float64]
# What differentiation and compilation tell apart: with and without weights and several targets, and all options.
SOME = ["mean", "weighted", "everything", "several targets a row", "an odd tail, bfloat16"]
SOME_CASES = [case for case in TEST_CASES if case.name in SOME]
NARROW = [torch.float32, torch.bfloat16, torch.float16]

BACKENDS = [pytest.param("cpu", marks=needs_cpu_backend), "reference"]
TRITON = pytest.param("triton", marks=pytest.mark.interpret)
every_backend = pytest.mark.parametrize("backend", [*BACKENDS, TRITON])


def every(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def with_gradient(inputs: dict[str, Any], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of fresh logits."""
    logits = inputs["logits"].detach().clone().requires_grad_()
    loss = cross_entropy(**{**inputs, "logits": logits}, **options)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


def truth_of(inputs: dict[str, Any]) -> bounds.Losses:
    """What a loss of logits is, and how far the sums on the way to it may be off."""
    logits = bounds.exact(inputs["logits"], bounds.unit_of(inputs["logits"].dtype))
    return bounds.cross_entropy(**{**inputs, "logits": logits})


def assert_bounded(found: LossDetails, gradient: torch.Tensor | None, inputs: dict[str, Any]) -> None:
    """Details of one response per target, and the gradient, are within the bounds of their sums."""
    truth = truth_of(inputs)
    names = {"loss": "loss", "response_nll": "nll", "prompt_loss": "weighted", "entropy": "entropy"}
    for name, field in names.items():
        bounds.assert_bounded(getattr(found, name).cpu(), getattr(truth, field))
    if gradient is not None:
        bounds.assert_bounded(gradient.cpu(), truth.gradient)


def details_of(inputs: dict[str, Any], **options: Any) -> LossDetails:
    count = len(inputs["targets"])
    found = cross_entropy(
        **inputs, **options, return_details=True, offsets=torch.arange(count + 1, device=inputs["targets"].device)
    )
    assert isinstance(found, LossDetails)
    return found


def rows(T: int, V: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
    """Normal logits and targets without anything ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(T, V, generator=generator).mul_(3).to(dtype)
    return {"logits": logits, "targets": torch.randint(0, V, (T,), generator=generator)}
