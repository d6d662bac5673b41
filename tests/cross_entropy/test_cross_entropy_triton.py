"""cross_entropy on Triton's kernels: against the reference, in every tile and tail, without waiting for a device."""

from __future__ import annotations

import mmap
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mrtkern import _device
from mrtkern.ops.cross_entropy.details import LossDetails
from mrtkern.ops.cross_entropy.op import cross_entropy
from mrtkern.ops.cross_entropy.problem import Case, Problem
from tests.tools import bounds
from tests.tools.losses import (
    KERNEL_CASES,
    NARROW,
    TEST_CASES,
    assert_bounded,
    details_of,
    every,
    rows,
    truth_of,
    with_gradient,
)

triton = pytest.importorskip("mrtkern.ops.cross_entropy.triton", exc_type=ImportError)
waiting = pytest.importorskip("tests.tools.waiting")
every_device = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
# By name: all options; no option in the widest case; 16 bits with an odd tail; several targets of one class.
DEVICE_CASES = ["everything", "everything float16", "an odd tail, bfloat16", "several targets a row, bfloat16"]


def moved(inputs: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: value.detach().to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def small_tiles(patch: pytest.MonkeyPatch) -> None:
    """Rows of 8 vectors are read in tiles of 8, so that longer ones take several and are read twice."""
    tile_of = triton.tile_of

    def of(V: int, itemsize: int, *rest: Any) -> Any:
        vector = 16 // itemsize
        return replace(tile_of(V, itemsize, *rest), is_row=8 * vector >= V, repeat=2, threads=4, vector=vector)

    patch.setattr(triton, "tile_of", of)


@every_device
@every(KERNEL_CASES)
def test_kernel_is_within_the_bound_of_its_sums(case: Case, device: str) -> None:
    inputs = case.make_inputs()
    found = cross_entropy(
        **moved(inputs, device), return_details=True, backend="triton",
        offsets=torch.arange(len(inputs["targets"]) + 1, device=device),
    )  # fmt: skip
    assert isinstance(found, LossDetails)
    assert found.accuracy.cpu() == details_of(inputs, backend="reference").accuracy
    assert_bounded(found, with_gradient(moved(inputs, device), backend="triton")[1], inputs)


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", ["everything", "weighted"])
def test_rows_that_are_read_twice_are_the_same(name: str, dtype: torch.dtype) -> None:
    """Around one tile and several: the last column of a tile, the first of the next, nothing beyond the row."""
    case = next(case for case in TEST_CASES if case.name == name)
    for V in (63, 65, 130):
        inputs = replace(case.problem, T=3, V=V, dtype=dtype, num_targets=case.problem.num_targets and 5).make_inputs()
        padded = torch.full((3, V + 70), torch.nan, dtype=dtype)
        padded[:, :V] = inputs["logits"]
        with pytest.MonkeyPatch.context() as patch:
            small_tiles(patch)
            found = details_of({**inputs, "logits": padded[:, :V]}, backend="triton")
            cross_entropy(**{**inputs, "logits": padded[:, :V]}, inplace=True, backend="triton")
        assert found.accuracy == details_of(inputs, backend="reference").accuracy
        assert_bounded(found, padded[:, :V].clone(), inputs)
        assert bool(padded[:, V:].isnan().all())


@every_device
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("label", [7, -1, 2**40])
def test_a_label_out_of_range_makes_its_row_nan_and_no_other(
    label: int, inplace: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_device, "may_wait", lambda device, check=None: bool(check))
    inputs = rows(5, 7)
    others = [0, 1, 2, 4]
    truth = truth_of(inputs).gradient[others]
    inputs["targets"][3] = label
    inputs = moved(inputs, device)
    around = torch.full((7, 7), 5.0, device=device)
    around[1:6] = inputs["logits"]
    logits = around[1:6]
    if not inplace:
        logits = logits.clone().requires_grad_()
    loss = cross_entropy(logits, inputs["targets"], inplace=inplace, backend="triton")
    gradient = logits if inplace else torch.autograd.grad(loss, logits)[0]
    assert bool(loss.isnan())
    assert bool(gradient[3].isnan().all())
    bounds.assert_bounded(gradient[others].cpu(), truth)
    assert bool((around[[0, 6]] == 5).all())
    with pytest.raises(IndexError, match=rf"got {label} at position 3$"):
        cross_entropy(inputs["logits"], inputs["targets"], check=True, backend="triton")


@every_device
@pytest.mark.parametrize("ends", [[0, 2, 9], [-4, 2, 4], [0, 3, 2], [1, 2, 4], [0, 2, 3], [2**40, 2**41, 4]])
def test_offsets_that_do_not_fit_make_the_loss_nan(
    ends: list[int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_device, "may_wait", lambda device, check=None: bool(check))
    logits, targets = torch.randn(2, 6, device=device), torch.tensor([1, 2, 3, 4], device=device)
    loss = cross_entropy(logits, targets, target_offsets=torch.tensor(ends, device=device), backend="triton")
    assert bool(loss.isnan())


@every_device
def test_loss_is_summed_in_float64_over_rows(device: str) -> None:
    """More rows than the sum has lanes; in float32 the ones would vanish beside 2**24."""
    losses = torch.ones(2049, device=device)
    losses[::2] = 2.0**24
    exact = losses.double().sum()
    assert triton.total(losses) == exact.float()
    losses[::2] *= torch.tensor([1.0, -1.0], device=device).repeat(513)[:1025]
    assert float(triton.total(losses)) == float(losses.double().sum())


@every_device
@pytest.mark.parametrize("dtype", NARROW)
def test_gradient_is_rounded_once_like_torch(dtype: torch.dtype, device: str) -> None:
    """With one class beside the target the gradient is w p: all magnitudes, subnormals and infinity."""
    weight = torch.logspace(-30, 38, 60) * torch.tensor([1.0, -1.0]).repeat(30)
    inputs = {"logits": torch.zeros(60, 2, dtype=dtype), "targets": torch.zeros(60, dtype=torch.int64)}
    _, gradient = with_gradient(moved({**inputs, "token_weight": weight}, device), backend="triton")
    assert torch.equal(gradient.cpu(), torch.stack([-weight / 2, weight / 2], 1).to(dtype))


@every_device
def test_a_factor_of_one_leaves_the_gradient_alone(device: str) -> None:
    gradient = torch.randn(3, 5000, device=device).bfloat16()
    for factor in (1.0, 0.3, float("nan")):
        given = gradient.clone()
        triton.scale(given, torch.tensor(factor, device=device))
        assert torch.equal(given.nan_to_num(), (gradient.float() * factor).bfloat16().nan_to_num())


@pytest.mark.interpret
def test_rows_more_than_two_to_the_31_logits_apart() -> None:
    """In place by a large stride, in pages that nobody touches."""
    V = 1000
    inputs = rows(1, V, torch.bfloat16)
    targets = torch.tensor([3, 999, 500])
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (2**32 + 2 * V)), dtype=torch.bfloat16)
    logits = memory.as_strided((3, V), (2**31, 1))
    logits.copy_(inputs["logits"])
    _, expected = with_gradient({"logits": inputs["logits"].repeat(3, 1), "targets": targets}, backend="triton")
    cross_entropy(logits, targets, inplace=True, backend="triton")
    assert torch.equal(logits, expected)


@every_device
def test_same_bits_on_every_run(device: str) -> None:
    case = next(case for case in TEST_CASES if case.name == "everything float16")
    inputs = moved(case.make_inputs(), device)
    first, second = (with_gradient(inputs, backend="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.interpret
@pytest.mark.parametrize("backend", ["triton", "reference"])
@every([case for case in TEST_CASES if case.name in DEVICE_CASES])
def test_a_step_never_waits_for_the_device(case: Case, backend: str) -> None:
    inputs = replace(case.problem, T=3, V=40, num_targets=case.problem.num_targets and 5).make_inputs()
    inputs["logits"] = inputs["logits"].detach().requires_grad_()
    E = len(inputs["targets"])
    expected = with_gradient(inputs, backend=backend)
    with waiting.refused():
        found = cross_entropy(**inputs, backend=backend, return_details=True, offsets=torch.arange(E + 1))
        (gradient,) = torch.autograd.grad(found.loss * 2, inputs["logits"])
    assert torch.equal(found.loss, expected[0])
    assert torch.equal(gradient, 2 * expected[1])


@pytest.mark.interpret
def test_what_waits_is_noticed() -> None:
    y = torch.tensor([1, 2])
    for call in (lambda: int(y[0]), lambda: y.nonzero(), lambda: y[y > 1], lambda: bool((y > 1).any())):
        with pytest.raises(AssertionError, match="waits for the device"), waiting.refused():
            call()


@pytest.mark.gpu
@pytest.mark.hardware
@pytest.mark.parametrize("dtype", NARROW)
def test_a_graph_is_replayed_on_other_rows(dtype: torch.dtype) -> None:
    inputs, others = (moved(rows(64, 5000, dtype, seed), "cuda") for seed in (0, 1))
    expected = with_gradient(others, backend="triton")
    logits = inputs["logits"].requires_grad_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = cross_entropy(logits, inputs["targets"], backend="triton")
        (gradient,) = torch.autograd.grad(loss, logits)
    with torch.no_grad():
        logits.copy_(others["logits"])
    inputs["targets"].copy_(others["targets"])
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])


@pytest.mark.interpret
def test_what_it_cannot_run_is_said_in_a_sentence() -> None:
    sentence = r"'triton' cannot run this: needs float32, bfloat16 or float16, got torch\.float64$"
    with pytest.raises(ValueError, match=sentence):
        cross_entropy(torch.randn(2, 3).double(), torch.tensor([0, 1]), backend="triton")
    wide = Problem(1, 2**31, torch.float32)
    assert triton.why_not(wide) == f"needs at most {triton.MOST_COLUMNS} columns, got {2**31}"
