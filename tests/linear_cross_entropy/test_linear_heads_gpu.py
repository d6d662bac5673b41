"""Losses of linear heads on a device: rows by Triton, products by its library, one rank of a split vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import mrtkern
from mrtkern.ops.linear_cross_entropy import library
from mrtkern.ops.linear_cross_entropy.problem import Case, Problem
from tests.linear_cross_entropy import test_linear_log_prob
from tests.tools.linear_heads import NARROW_CASES, OPTIONS, assert_all_bounded, leaves, truth, with_gradients
from tests.tools.losses import truth_of
from tests.tools.on_device import back, one_rank, placed

pytestmark = pytest.mark.gpu
FLOAT32 = [case for case in NARROW_CASES if case.problem.product == torch.float32]
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def bfloat16_inputs(seed: int = 0) -> dict[str, Any]:
    types = (torch.bfloat16,) * 3
    return Problem(12, 24, 200, *types, has_bias=True, needs=(True, True, True)).make_inputs(seed)


@every_option
@pytest.mark.parametrize("case", FLOAT32, ids=lambda case: case.name)
def test_losses_and_gradients_are_within_the_bound_of_their_sums(case: Case, options: dict[str, Any]) -> None:
    inputs = case.make_inputs()
    found = with_gradients(placed(inputs), **options, backend="triton")
    assert_all_bounded(back(found), truth(inputs, **options))


@pytest.mark.parametrize("rows", [12, 1])  # in one chunk; one row a chunk, so that dW is a sum of many products
def test_bfloat16_is_within_the_bound_of_its_roundings(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = pytest.importorskip("mrtkern.ops.linear_cross_entropy.triton", exc_type=ImportError)
    monkeypatch.setattr(backend, "chunk_size", lambda problem: rows)
    inputs = bfloat16_inputs()
    assert_all_bounded(back(with_gradients(placed(inputs), backend="triton")), truth(inputs, is_narrow=True))


@pytest.mark.hardware
def test_a_device_that_multiplies_wide_does_not_round_the_products() -> None:
    """A product of bfloat16 that bfloat16 cannot hold, added to 0 and to itself."""
    if not library.multiplies_wide(torch.device("cuda", 0), torch.bfloat16):
        pytest.skip("torch leaves no products of narrow factors in float32 here")
    a = torch.full((16, 16), 1 + 2.0**-7, dtype=torch.bfloat16, device="cuda")
    total = torch.full((16, 16), torch.nan, dtype=torch.float32, device="cuda")
    for is_first, count in ((True, 1), (False, 2)):
        library.Products._multiply(total, a, a, is_first)
        assert torch.equal(total, count * (a.float() @ a.float()))


@pytest.mark.parametrize("options", test_linear_log_prob.OPTIONS.values(), ids=test_linear_log_prob.OPTIONS)
def test_log_probs_are_within_the_bound_of_their_sums(options: dict[str, Any]) -> None:
    inputs, (a, c) = test_linear_log_prob.make_inputs(12, 9, 70, torch.float32), test_linear_log_prob.upstream(12)
    found = test_linear_log_prob.with_gradients(
        mrtkern.linear_log_prob, placed(inputs), a.cuda(), c.cuda(), **options, backend="triton"
    )
    assert_all_bounded(back(found), test_linear_log_prob.truth(inputs, a, c, **options))


@every_option
def test_one_rank_of_a_split_vocabulary_has_the_whole_head(options: dict[str, Any], tmp_path: Path) -> None:
    inputs = Problem(23, 12, 101, *(torch.float32,) * 3, ignored=0.2, needs=(True, True, False)).make_inputs()
    there = placed(inputs)
    rest = {name: inputs[name] for name in ("targets", "token_weight")}
    logits = F.linear(inputs["hidden"], inputs["weight"]).detach().requires_grad_()
    z = placed({"logits": logits, **rest})
    with one_rank(tmp_path) as group:
        split: dict[str, Any] = {"first_class": 0, "process_group": group, "backend": "triton", **options}
        loss = mrtkern.vocabulary_parallel_linear_cross_entropy(**there, **split)
        found = (loss, *torch.autograd.grad(loss, leaves(there)))
        of_logits = mrtkern.vocabulary_parallel_cross_entropy(**z, **split)
        gradient = torch.autograd.grad(of_logits, z["logits"])
    assert_all_bounded(back(found), truth(inputs, **options))
    expected = truth_of({"logits": logits.detach(), **rest, **options})
    assert_all_bounded(back((of_logits, *gradient)), (expected.loss, expected.gradient))


@pytest.mark.hardware
def test_a_bfloat16_step_of_a_head_is_replayed_on_other_rows() -> None:
    inputs, others = (placed(bfloat16_inputs(seed)) for seed in (0, 1))
    expected = with_gradients(others)
    with_gradients(inputs)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = with_gradients(inputs)
    with torch.no_grad():
        for name, value in others.items():
            inputs[name].copy_(value)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(got, value) for got, value in zip(found, expected, strict=True))
