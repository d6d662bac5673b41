"""cross_entropy: its definition, and the traps of targets, weights, logits and layouts. Tolerances come from oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrtkern.ops.cross_entropy import reference
from mrtkern.ops.cross_entropy.op import cross_entropy
from mrtkern.ops.cross_entropy.problem import Case
from tests.tools import bounds, oracle
from tests.tools.losses import (
    BACKENDS,
    NARROW,
    SOME_CASES,
    TEST_CASES,
    assert_bounded,
    details_of,
    every,
    every_backend,
    rows,
    truth_of,
    with_gradient,
)

# The definition


@every(TEST_CASES)
def test_reference_is_the_formula(case: Case) -> None:
    inputs = case.make_inputs()
    _, gradient = with_gradient(inputs, backend="reference")
    assert_bounded(details_of(inputs, backend="reference"), gradient, inputs)
    truth, same = oracle.cross_entropy(**inputs), truth_of({**inputs, "logits": inputs["logits"].double()})
    for name in ("loss", "nll", "gradient"):  # written twice: by autograd, and with its bounds
        bounds.assert_bounded(getattr(truth, name), getattr(same, name))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_without_weights_it_is_torchs(label_smoothing: float) -> None:
    case = next(case for case in TEST_CASES if case.name == "mean")
    inputs = {**replace(case.problem, dtype=torch.float64).make_inputs(), "label_smoothing": label_smoothing}
    expected = F.cross_entropy(inputs["logits"], inputs["targets"], label_smoothing=label_smoothing)
    loss = cross_entropy(**inputs)
    assert loss.dtype == torch.float64
    oracle.assert_summed(loss, expected, inputs["logits"].shape[1], expected)


@every(SOME_CASES)
def test_gradient_is_the_derivative(case: Case) -> None:
    inputs = replace(case.problem, dtype=torch.float64, V=min(case.problem.V, 5)).make_inputs()
    logits = inputs.pop("logits").requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, **inputs), logits)


# Several targets on one row


@every_backend
@pytest.mark.parametrize("dtype", NARROW)
def test_several_targets_equal_repeated_rows(dtype: torch.dtype, backend: str) -> None:
    case = replace(next(case for case in TEST_CASES if case.name == "everything").problem, dtype=dtype)
    inputs = case.make_inputs()
    row = torch.repeat_interleave(inputs["target_offsets"].diff())
    repeated = {**inputs, "logits": inputs["logits"][row], "target_offsets": None}
    truth = truth_of(inputs)
    loss, gradient = with_gradient(inputs, backend=backend)
    other, each = with_gradient(repeated, backend=backend)
    for found in (loss, other):
        bounds.assert_bounded(found, truth.loss)
    bounds.assert_bounded(gradient, truth.gradient)
    parts = truth_of(repeated).gradient
    bounds.assert_bounded(each, parts)
    summed = torch.zeros_like(truth.gradient.value).index_add_(0, row, parts.value)
    bounds.assert_bounded(summed, truth_of({**inputs, "logits": inputs["logits"].double()}).gradient)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_targets_of_a_row_add_up_in_one_order(backend: str, threads: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    E = 3 * 2**16  # torch adds up so many on several threads
    z, targets, w = torch.randn(5, 4, generator=generator), torch.randint(0, 4, (E,)), torch.rand(E)
    offsets = torch.tensor([0, 3, 3, E - 1, E, E])
    found = []
    for number in (1, 2, 4):
        threads(number)
        logits = z.clone().requires_grad_()
        loss = cross_entropy(logits, targets, token_weight=w, target_offsets=offsets, backend=backend)
        assert isinstance(loss, Tensor)
        found.append((loss.detach(), *torch.autograd.grad(loss, logits)))
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))


@every_backend
def test_copies_at_weight_one_over_k_equal_one(backend: str) -> None:
    one = {**rows(6, 50), "token_weight": torch.linspace(0.5, 1.5, 6)}
    offsets = torch.arange(0, 25, 4)
    four = {
        "logits": one["logits"],
        "targets": one["targets"].repeat_interleave(4),
        "token_weight": (one["token_weight"] / 4).repeat_interleave(4),
        "target_offsets": offsets,
    }
    truth = truth_of(one)
    for given in (one, four):
        loss, gradient = with_gradient(given, backend=backend)
        bounds.assert_bounded(loss, truth.loss)
        bounds.assert_bounded(gradient, truth.gradient)


# Weights


@every_backend
def test_a_row_of_weight_zero_is_not_read(backend: str) -> None:
    inputs = {**rows(4, 40), "token_weight": torch.tensor([1.0, 0.0, -2.0, 0.0])}
    inputs["logits"][1] = torch.nan
    inputs["logits"][3] = torch.inf
    loss, gradient = with_gradient(inputs, backend=backend)
    assert bool(loss.isfinite())
    assert not gradient[1].any()
    assert not gradient[3].any()
    assert bool(gradient[0].any())


@every_backend
def test_negative_weights_turn_the_gradient_around(backend: str) -> None:
    inputs = rows(5, 33)
    weight = torch.rand(5)
    loss, gradient = with_gradient({**inputs, "token_weight": weight}, backend=backend)
    other, opposite = with_gradient({**inputs, "token_weight": -weight}, backend=backend)
    assert torch.equal(loss, -other)
    assert torch.equal(gradient, -opposite)


def test_weights_that_want_a_gradient_are_refused() -> None:
    with pytest.raises(ValueError, match="token_weight must not require a gradient"):
        cross_entropy(**rows(2, 3), token_weight=torch.ones(2, requires_grad=True))


# Labels


@every_backend
@pytest.mark.parametrize("label", [7, -1, -101, 2**40])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_label_out_of_range_is_named_and_nothing_is_touched(label: int, inplace: bool, backend: str) -> None:
    inputs = rows(5, 7)
    inputs["targets"][[3, 4]] = label
    before = inputs["logits"].clone()
    sentence = rf"^cross_entropy: targets must be from 0 to 6 or ignore_index -100, got {label} at position 3$"
    with pytest.raises(IndexError, match=sentence):
        cross_entropy(**inputs, inplace=inplace, backend=backend)
    assert torch.equal(inputs["logits"], before)


@every_backend
def test_ignore_index_may_be_a_class(backend: str) -> None:
    inputs = {**rows(6, 5), "ignore_index": 2}
    inputs["targets"][:] = torch.tensor([2, 0, 2, 4, 1, 3])
    expected = F.cross_entropy(inputs["logits"].double(), inputs["targets"], ignore_index=2)
    truth = truth_of(inputs).loss
    bounds.assert_bounded(cross_entropy(**inputs, backend=backend), replace(truth, value=expected))


@every_backend
def test_labels_may_be_an_unaligned_slice(backend: str) -> None:
    inputs = rows(7, 20)
    for targets in (torch.cat([torch.tensor([9]), inputs["targets"]])[1:], inputs["targets"].repeat_interleave(2)[::2]):
        assert torch.equal(
            cross_entropy(inputs["logits"], targets, backend=backend), cross_entropy(**inputs, backend=backend)
        )


@every_backend
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0}])
def test_nothing_valid_is_zero_with_zero_gradient(options: dict[str, float], backend: str) -> None:
    for T in (0, 4):
        inputs = {"logits": torch.randn(T, 9), "targets": torch.full((T,), -100), **options}
        loss, gradient = with_gradient(inputs, backend=backend)
        assert float(loss) == 0
        assert gradient.shape == (T, 9)
        assert not gradient.any()


# Extreme logits


@every_backend
def test_minus_infinity_is_probability_zero(backend: str) -> None:
    inputs = rows(3, 70)
    inputs["logits"][:, ::2] = -torch.inf
    inputs["targets"][:] = 1
    loss, gradient = with_gradient(inputs, backend=backend)
    truth = truth_of({"logits": inputs["logits"][:, 1::2], "targets": torch.zeros(3, dtype=torch.int64)})
    bounds.assert_bounded(loss, truth.loss)
    assert not gradient[:, ::2].any()
    bounds.assert_bounded(gradient[:, 1::2], truth.gradient)
    found = details_of(inputs, backend=backend)
    assert bool(found.entropy.isfinite())


@every_backend
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_target_of_minus_infinity_is_lost_without_spoiling_its_gradient(softcap: float | None, backend: str) -> None:
    inputs = {**rows(2, 70), "token_weight": torch.tensor([0.5, -2.0]), "softcap": softcap}
    inputs["logits"][[0, 1], inputs["targets"]] = -torch.inf
    loss, gradient = with_gradient(inputs, backend=backend)
    assert bool(loss.isnan()) == (softcap is None)  # infinity - infinity
    far = {**inputs, "logits": inputs["logits"].clamp(min=-1e4)}  # as impossible, and finite
    bounds.assert_bounded(gradient, truth_of(far).gradient)


@every_backend
def test_blocks_of_minus_infinity_come_before_everything_else(backend: str) -> None:
    logits = torch.full((1, 5000), -torch.inf)
    logits[0, 4500:] = -1000.0
    loss, gradient = with_gradient({"logits": logits, "targets": torch.tensor([4999])}, backend=backend)
    oracle.assert_summed(loss, torch.tensor(500.0).double().log(), oracle.cross_entropy_steps(), 1.0)
    assert not gradient[0, :4500].any()


@every_backend
@pytest.mark.parametrize("dtype", NARROW)
def test_columns_of_the_least_number_have_no_part_in_the_entropy(dtype: torch.dtype, backend: str) -> None:
    """Masked columns that programs fill with finfo.min; 2,500 side by side are all that some threads see of a row."""
    inputs = rows(2, 500, dtype)
    masked = torch.full((2, 2500), torch.finfo(dtype).min, dtype=dtype)
    found = details_of(
        {"logits": torch.cat([masked, inputs["logits"]], 1), "targets": inputs["targets"] + 2500}, backend=backend
    )
    assert_bounded(found, None, inputs)


@every_backend
@pytest.mark.parametrize("dtype", NARROW)
def test_large_logits_neither_overflow_nor_vanish(dtype: torch.dtype, backend: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4]]).to(dtype)
    targets = torch.tensor([0, 0, 1])
    inputs = {"logits": logits, "targets": targets}
    assert_bounded(details_of(inputs, backend=backend), with_gradient(inputs, backend=backend)[1], inputs)


@every_backend
def test_a_row_that_is_certain_has_loss_and_gradient_zero(backend: str) -> None:
    logits = torch.full((2, 100), -1e4)
    logits[:, 7] = 1e4
    loss, gradient = with_gradient({"logits": logits, "targets": torch.tensor([7, 7])}, backend=backend)
    assert float(loss) == 0
    assert not gradient.any()


@every_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [0, 3000, 4001])
def test_a_logit_that_is_no_number_makes_its_row_none_and_no_other(value: float, column: int, backend: str) -> None:
    inputs = rows(3, 4002)
    inputs["logits"][1, column] = value
    loss, gradient = with_gradient(inputs, backend=backend)
    assert bool(loss.isnan())
    assert bool(gradient[1].isnan().all())
    assert bool(gradient[[0, 2]].isfinite().all())


# Layout


@every_backend
def test_strides_do_not_matter(backend: str) -> None:
    base = torch.randn(80, 90)
    targets = torch.randint(0, 30, (8,))
    for view in (
        base[::10, :30],
        base.T[:8, :30],
        base[:8, ::3],
        base[:1, :30].expand(8, 30),
        base[:8, :1].expand(8, 30),
    ):
        logits = view.detach().requires_grad_()
        loss = cross_entropy(logits, targets, backend=backend)
        (gradient,) = torch.autograd.grad(loss, logits)
        inputs = {"logits": view.contiguous(), "targets": targets}
        if backend == "cpu":  # torch may sum columns in another order
            expected = with_gradient(inputs, backend="cpu")
            assert torch.equal(loss, expected[0]) and torch.equal(gradient, expected[1])
        truth = truth_of(inputs)
        bounds.assert_bounded(loss.detach(), truth.loss)
        bounds.assert_bounded(gradient, truth.gradient)


@every_backend
def test_padded_rows_are_the_flat_ones(backend: str) -> None:
    inputs = rows(12, 10)
    padded = cross_entropy(inputs["logits"].view(3, 4, 10), inputs["targets"].view(3, 4), backend=backend)
    assert torch.equal(padded, cross_entropy(**inputs, backend=backend))


@pytest.mark.gpu
@every(TEST_CASES)
def test_reference_on_a_gpu_errs_like_the_reference_on_the_cpu(case: Case) -> None:
    inputs = case.make_inputs()
    on_gpu = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    loss, gradient = with_gradient(on_gpu, backend="reference")
    truth = truth_of(inputs)
    bounds.assert_bounded(loss.cpu(), truth.loss)
    bounds.assert_bounded(gradient.cpu(), truth.gradient)


@pytest.mark.gpu
def test_reference_on_a_gpu_scales_float16_by_more_than_float16_holds() -> None:
    gradient = rows(5, 40, torch.float16)["logits"].mul_(2.0**-10)
    found, factor = gradient.cuda(), torch.tensor(2.0**17)
    reference.scale(found, factor.cuda())
    assert torch.equal(found.cpu(), (gradient.float() * factor).half())
