"""Losses of linear heads as on a device: no size depends on a value, nothing waits, no row is dropped."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from mrtkern import (
    _device,
    cross_entropy,
    linear_log_prob,
    vocabulary_parallel_cross_entropy,
    vocabulary_parallel_linear_cross_entropy,
)
from mrtkern.loss import NORMALIZATIONS, response_weights
from mrtkern.ops.cross_entropy.details import LossDetails
from mrtkern.ops.linear_cross_entropy import chunks, library, reference, tiles, traffic
from mrtkern.ops.linear_cross_entropy import problem as sizes
from mrtkern.ops.linear_cross_entropy.op import linear_cross_entropy
from mrtkern.ops.linear_cross_entropy.problem import Case, Problem
from mrtkern.ops.linear_cross_entropy.traffic import device_rows
from tests.linear_cross_entropy import test_linear_log_prob
from tests.tools import oracle
from tests.tools.linear_heads import NARROW_CASES, OPTIONS, assert_all_bounded, leaves, truth, with_gradients

triton = pytest.importorskip("mrtkern.ops.linear_cross_entropy.triton", exc_type=ImportError)
waiting = pytest.importorskip("tests.tools.waiting")
pytestmark = pytest.mark.interpret
every_device_backend = pytest.mark.parametrize("backend", ["triton", "reference"])
F32 = (torch.float32,) * 3


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may ask for a value, and chunks are small."""
    monkeypatch.setattr(_device, "may_wait", lambda device, check=None: bool(check))
    monkeypatch.setattr(triton, "chunk_size", lambda problem: 5)


@pytest.mark.parametrize("case", NARROW_CASES, ids=lambda case: case.name)
def test_losses_and_gradients_err_like_the_definition(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "multiplies", lambda problem: torch.float32)
    inputs = replace(case.problem, T=min(case.problem.T, 12)).make_inputs()
    for options in (OPTIONS["plain"], OPTIONS["all"]):
        found = with_gradients(inputs, **options, backend="triton")
        assert_all_bounded(found, truth(inputs, **options))


def test_bfloat16_is_within_the_bound_of_its_roundings() -> None:
    dtype = torch.bfloat16
    inputs = Problem(12, 24, 200, dtype, dtype, dtype, has_bias=True, needs=(True, True, True)).make_inputs()
    assert_all_bounded(with_gradients(inputs, backend="triton"), truth(inputs, is_narrow=True))


@pytest.mark.parametrize("dtype", test_linear_log_prob.DTYPES)
def test_log_probs_err_by_the_rounding_of_their_sums(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "multiplies", lambda problem: torch.float32)
    inputs, (a, c) = test_linear_log_prob.make_inputs(12, 9, 70, dtype), test_linear_log_prob.upstream(12)
    options = {"temperature": 1.3, "softcap": 2.0}
    found = test_linear_log_prob.with_gradients(linear_log_prob, inputs, a, c, **options, backend="triton")
    assert_all_bounded(found, test_linear_log_prob.truth(inputs, a, c, **options))


@every_device_backend
@pytest.mark.parametrize("target", [9, -1, 2**40])
def test_a_label_outside_the_vocabulary_makes_the_result_nan(target: int, backend: str) -> None:
    inputs = Problem(6, 3, 9, *F32).make_inputs()
    inputs["targets"][4] = target
    assert bool(linear_cross_entropy(**inputs, backend=backend).isnan())
    del inputs["token_weight"]
    logp, _ = linear_log_prob(**inputs, backend=backend)
    assert bool(logp[4].isnan())
    assert bool(logp[[0, 1, 2, 3, 5]].isfinite().all())
    with pytest.raises(IndexError, match=rf"got {target} at position 4$"):
        linear_log_prob(**inputs, backend=backend, check=True)


@every_device_backend
@pytest.mark.parametrize("targets_per_row", [None, 3])
def test_details_are_those_of_the_logits(targets_per_row: int | None, backend: str) -> None:
    inputs = Problem(9, 6, 20, *F32, ignored=0.4, targets_per_row=targets_per_row).make_inputs()
    offsets = torch.arange(len(inputs["targets"]) + 1)
    found = linear_cross_entropy(**inputs, return_details=True, offsets=offsets, backend=backend)
    z = (inputs["hidden"].double() @ inputs["weight"].double().T).detach()
    rest = {name: value for name, value in inputs.items() if name not in ("hidden", "weight")}
    expected = cross_entropy(z, **rest, return_details=True, offsets=offsets, backend="reference")
    assert isinstance(found, LossDetails)
    assert isinstance(expected, LossDetails)
    for name in ("loss", "response_nll", "prompt_loss", "entropy"):
        oracle.assert_summed(getattr(found, name).detach(), getattr(expected, name).detach(), 60, 10.0)
    assert found.accuracy == expected.accuracy.float()


@every_device_backend
@pytest.mark.parametrize("targets_per_row", [None, 3])
def test_a_step_never_waits_for_the_device(targets_per_row: int | None, backend: str) -> None:
    problem = Problem(9, 6, 20, *F32, ignored=0.4, targets_per_row=targets_per_row, has_bias=True, needs=(True,) * 3)
    inputs = problem.make_inputs()
    expected = with_gradients(inputs, **OPTIONS["all"], backend=backend)
    offsets = torch.arange(len(inputs["targets"]) + 1)
    with waiting.refused():
        details = {"return_details": True, "offsets": offsets}
        found = linear_cross_entropy(**inputs, **OPTIONS["all"], **details, backend=backend)
        gradients = torch.autograd.grad(found.loss, leaves(inputs))
    assert all(torch.equal(a, b) for a, b in zip((found.loss, *gradients), expected, strict=True))


@every_device_backend
def test_log_probs_never_wait_for_the_device(backend: str) -> None:
    inputs, (a, c) = test_linear_log_prob.make_inputs(9, 6, 20, torch.float32), test_linear_log_prob.upstream(9)
    expected = test_linear_log_prob.with_gradients(linear_log_prob, inputs, a, c, backend=backend)
    with waiting.refused():
        found = test_linear_log_prob.with_gradients(linear_log_prob, inputs, a, c, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@every_device_backend
def test_losses_of_a_split_vocabulary_never_wait_for_the_device(backend: str, tmp_path: Path) -> None:
    inputs = Problem(9, 6, 20, *F32, ignored=0.4, needs=(True, True, False)).make_inputs()
    z = torch.randn(9, 20, requires_grad=True, generator=torch.Generator().manual_seed(0))

    def step() -> list[torch.Tensor]:
        options: dict[str, Any] = {
            "first_class": 0,
            "process_group": dist.group.WORLD,
            "backend": backend,
            **OPTIONS["all"],
        }
        head = vocabulary_parallel_linear_cross_entropy(**inputs, **options)
        logits = vocabulary_parallel_cross_entropy(z, inputs["targets"], **options)
        return [head, *torch.autograd.grad(head, leaves(inputs)), logits, *torch.autograd.grad(logits, z)]

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        expected = step()
        with waiting.refused():
            found = step()
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_weights_never_wait_for_the_device(normalize: str) -> None:
    targets, offsets, prompt = torch.randint(0, 9, (12,)), torch.tensor([0, 3, 3, 8, 12]), torch.tensor([2, 2, 0, 2])
    targets[::5] = -100
    expected = response_weights(targets, normalize, offsets=offsets, prompt=prompt)
    with waiting.refused():
        found = response_weights(targets, normalize, offsets=offsets, prompt=prompt)
    assert torch.equal(found, expected)


def test_with_check_rows_are_dropped_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = triton.forward
    monkeypatch.setattr(triton, "forward", lambda z, *rest: (seen.append(len(z)), forward(z, *rest))[1])
    inputs = Problem(10, 4, 9, *F32, ignored=0.4).make_inputs()
    dropped = with_gradients(inputs, backend="triton", check=True)
    assert sum(seen) == 6
    seen.clear()
    kept = with_gradients(inputs, backend="triton")
    assert sum(seen) == 10
    expected = truth(inputs)
    for found in (dropped, kept):
        assert_all_bounded(found, expected)


def test_chunks_of_a_device_fill_tiles_and_take_no_more_than_the_sum_of_the_weights_gradient() -> None:
    BF16 = torch.bfloat16
    problem = Problem(100_000, 4096, 128_256, *(BF16,) * 3, device="cuda")
    for V, D in itertools.product((32_000, 128_256, 256_000), (1024, 4096, 16384)):
        size = device_rows(replace(problem, V=V, D=D), BF16)
        assert size % traffic.TILE == 0
        assert traffic.DEVICE_ROWS[0] * 0.9 <= size <= traffic.DEVICE_ROWS[1]
        room = max(4 * V * D, traffic.DEVICE_BYTES)
        assert size <= traffic.DEVICE_ROWS[0] or (size - traffic.TILE) * V * 6 < room
    assert device_rows(replace(problem, T=8192), BF16) == 2816  # three chunks, where 1 GiB of logits alone made four
    assert device_rows(replace(problem, T=7), BF16) == 7
    assert device_rows(replace(problem, T=0), BF16) == 0


@pytest.mark.parametrize("needs", [(True, True, False), (True, False, False), (False,) * 3])
def test_counted_bytes_are_those_that_the_products_move(needs: tuple[bool, bool, bool]) -> None:
    """Each operand of every product read once, its result written once, a sum read as well; float32 in four chunks."""
    problem, moved = Problem(7, 6, 20, *F32, needs=needs), 0

    class Meter(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.addmm_.default:
                nonlocal moved
                total, a, b = args
                moved += a.nbytes + b.nbytes + total.nbytes * (1 if kwargs.get("beta", 1) == 0 else 2)
            return func(*args, **(kwargs or {}))

    inputs = problem.make_inputs()
    hidden, weight = inputs["hidden"].detach(), inputs["weight"].detach()
    products = library.Products(weight, None, torch.float32)
    with Meter():
        chunks.run(products, hidden, 20, None, lambda z, dz, _: None, size=2, wide=torch.float32, needs=needs)
    found = traffic.traffic(problem, 2, torch.float32)
    assert moved == found.logits + found.hidden_gradient + found.weight_gradient


def test_what_is_alone_is_a_fifth_of_the_products_of_a_large_head() -> None:
    """The head of Llama 3 8B by the rates of an H100: 14.2 GB beside 25.8 Tflop."""
    problem = Problem(8192, 4096, 128_256, *(torch.bfloat16,) * 3)
    found = traffic.traffic(problem, 2816, torch.bfloat16)
    assert found.loss == 10 * 8192 * 128_256  # logits twice, dz in 16 bits once
    assert found.factor == 6 * 4096 * (128_256 + 8192)
    assert traffic.BALANCE * found.alone < 0.2 * problem.flops


class Narrow(tiles.Products):
    """Takes dz rounded to bfloat16, as a device's library does, and not as it rounds itself."""

    gradient_type = torch.bfloat16  # type: ignore[assignment]


@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_dz_in_the_type_of_the_factors_has_the_bits_of_dz_rounded_afterwards(
    ignored: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = torch.bfloat16
    inputs = Problem(12, 24, 200, dtype, dtype, dtype, ignored=ignored).make_inputs()
    assert triton.products(inputs["weight"], None, dtype).gradient_type == torch.float32  # as it is interpreted
    upstream = test_linear_log_prob.upstream(12)

    def gradients() -> tuple[torch.Tensor, ...]:
        rows = {name: inputs[name] for name in ("hidden", "weight", "targets")}
        of_rows = test_linear_log_prob.with_gradients(linear_log_prob, rows, *upstream, backend="triton")
        return *with_gradients(inputs, backend="triton"), *of_rows

    expected = gradients()
    monkeypatch.setattr(triton, "products", Narrow)
    assert all(torch.equal(got, value) for got, value in zip(gradients(), expected, strict=True))


def test_a_second_buffer_stays_within_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = torch.bfloat16
    problem = Problem(12, 16, 9000, dtype, dtype, dtype)
    inputs = problem.make_inputs()
    monkeypatch.setattr(triton, "products", Narrow)
    peak, _ = oracle.peak_bytes(lambda: linear_cross_entropy(**inputs, backend="triton"))
    assert peak <= sizes.memory(problem, 5, dtype, 12) + triton.memory(problem) + tiles.WORKSPACE


@pytest.mark.parametrize("count", [0, 1, triton.SCALED_BLOCK - 1, triton.SCALED_BLOCK, triton.SCALED_BLOCK + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gradient_is_scaled_and_rounded_once_in_one_pass(count: int, dtype: torch.dtype) -> None:
    given = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    for factor in (None, torch.tensor(0.3), torch.tensor(1.0)):
        expected = (given if factor is None else given * factor).to(dtype)
        for in_place in (False, True):
            copy = given.clone()
            found = triton.scaled(copy, factor, dtype, in_place)
            assert torch.equal(found, expected)
            assert torch.equal(copy, given) or (in_place and dtype == torch.float32)


def test_what_it_cannot_run_is_said_in_a_sentence() -> None:
    inputs = Problem(2, 3, 4, *(torch.float64,) * 3).make_inputs()
    sentence = r"'triton' cannot run this: needs float32, bfloat16 or float16, got torch\.float64"
    with pytest.raises(ValueError, match=sentence):
        linear_cross_entropy(**inputs, backend="triton")


@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_parts_of_the_classes_are_those_of_the_reference(softcap: float) -> None:
    z, cap = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).mul_(3), sizes.Cap(softcap)
    targets = torch.tensor([-1, 3, sizes.NO_TARGET, 39, 0, -1])  # -1: among the other classes
    own = torch.where(targets == -1, 0, targets)
    found, expected = (module.log_probs(z, own, cap, True) for module in (triton, reference))
    steps = oracle.cross_entropy_steps()
    counts = targets != sizes.NO_TARGET
    for got, value in zip(found, expected, strict=True):
        assert got is not None
        assert value is not None
        oracle.assert_summed(got[counts].float(), value[counts].double(), 2 * steps, 10.0)  # lse is a float32, widened
    w, lse = torch.tensor([1.0, -2.0, 3.0, 0.5, 0.0, 2.0]), expected.lse + 1  # the others weigh e - 1 times as much
    gradients = []
    for module in (triton, reference):
        dz = z.clone()
        rest = {"z_loss": 1e-2, "lse": lse, "label_smoothing": 0.1, "classes": torch.tensor(90.0).double()}
        module.log_probs_backward(dz, targets, cap, w, None, **rest)
        gradients.append(dz)
    oracle.assert_summed(gradients[0], gradients[1].double(), 4 * steps, 3.0)
    assert not gradients[0][[2, 4]].any()


@pytest.mark.parametrize("takes", ["sums", "products", "nothing"])
def test_narrow_products_are_added_to_a_wide_sum_as_torch_can(takes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def addmm(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **options: Any) -> torch.Tensor:
        if takes != "sums":
            raise RuntimeError("self and mat2 must have the same dtype")
        return total.copy_((total if options.get("beta", 1) else 0) + a.float() @ b.float())

    def mm(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        if takes == "nothing":
            raise NotImplementedError("Could not run 'aten::mm.dtype'")
        wide = a.float() @ b.float()
        return wide if out is None else out.copy_(wide)

    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(library, "ADDED_ROWS", 5)  # 16 rows in four parts
    asked = (library.adds_wide, library.multiplies_wide)
    for function in asked:
        function.cache_clear()
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    total = torch.full((16, 16), torch.nan, dtype=torch.float32)
    logits_type = library.Products(b, None, torch.bfloat16).logits_type
    for is_first in (True, False):
        library.Products._multiply(total, a, b, is_first)
    for function in asked:
        function.cache_clear()
    exact = a.float() @ b.float()
    assert torch.equal(total, 2 * exact.bfloat16().float() if takes == "nothing" else exact + exact)
    assert logits_type == (torch.bfloat16 if takes == "nothing" else torch.float32)
