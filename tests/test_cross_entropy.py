"""cross_entropy: values, gradients, traps, limits. Cases come from problem.CASES, tolerances from oracle."""

from __future__ import annotations

import itertools
import mmap
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mrtkern import _dispatch
from mrtkern.details import LossDetails
from mrtkern.ops.cross_entropy import reference
from mrtkern.ops.cross_entropy.op import cross_entropy
from mrtkern.ops.cross_entropy.problem import CASES, Case, Options, Problem
from tests import oracle

ROOT = Path(__file__).parent.parent
CPU = _dispatch.load("cross_entropy", "cpu")
needs_cpu_backend = pytest.mark.skipif(isinstance(CPU, str), reason=f"compiled kernels: {CPU}")
TEST_CASES = [case for case in CASES if "test" in case.tags]
KERNEL_CASES = [case for case in TEST_CASES if case.problem.dtype != torch.float64]
# What differentiation and compilation tell apart: with and without weights and several targets, and all options.
SOME = ["mean", "weighted", "everything", "several targets a row", "an odd tail, bfloat16"]
SOME_CASES = [case for case in TEST_CASES if case.name in SOME]
NARROW = [torch.float32, torch.bfloat16, torch.float16]

every_backend = pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_cpu_backend), "reference"])


def every(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def with_gradient(inputs: dict[str, Any], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of fresh logits."""
    logits = inputs["logits"].detach().clone().requires_grad_()
    loss = cross_entropy(**{**inputs, "logits": logits}, **options)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


def details_of(inputs: dict[str, Any], **options: Any) -> LossDetails:
    count = len(inputs["targets"])
    found = cross_entropy(**inputs, **options, return_details=True, offsets=torch.arange(count + 1))
    assert isinstance(found, LossDetails)
    return found


def rows(T: int, V: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
    """Normal logits and targets without anything ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(T, V, generator=generator).mul_(3).to(dtype)
    return {"logits": logits, "targets": torch.randint(0, V, (T,), generator=generator)}


# The definition


@every(TEST_CASES)
def test_reference_is_the_formula(case: Case) -> None:
    inputs = case.make_inputs()
    truth = oracle.cross_entropy(**inputs)
    loss, gradient = with_gradient(inputs, backend="reference")
    oracle.assert_summed(loss, truth.loss, oracle.cross_entropy_steps(), truth.magnitude)
    largest = 1 if "token_weight" not in inputs else inputs["token_weight"].abs().sum()
    oracle.assert_summed(gradient, truth.gradient, oracle.cross_entropy_steps(), largest * 2)


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
    inputs = replace(case.problem, dtype=torch.float64, V=min(case.problem.V, 13)).make_inputs()
    logits = inputs.pop("logits").requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, **inputs), logits)


# The kernel against the reference


@needs_cpu_backend
@every(KERNEL_CASES)
def test_cpu_kernel_errs_no_more_than_twice_the_reference(case: Case) -> None:
    inputs = case.make_inputs()
    wide = {**inputs, "logits": inputs["logits"].double()}
    truth, same = details_of(wide), details_of(inputs, backend="reference")
    got = details_of(inputs, backend="cpu")
    for name in ("response_nll", "entropy"):
        oracle.assert_close(getattr(got, name), getattr(truth, name), getattr(same, name))
    exact = oracle.cross_entropy(**inputs)
    oracle.assert_summed(got.loss, exact.loss, oracle.cross_entropy_steps(), exact.magnitude)
    oracle.assert_summed(got.prompt_loss, truth.prompt_loss, oracle.cross_entropy_steps(), exact.magnitude)
    assert torch.equal(got.response_tokens, same.response_tokens)
    assert got.accuracy == same.accuracy
    gradients = [
        with_gradient(i, backend=b)[1] for i, b in ((inputs, "cpu"), (wide, "reference"), (inputs, "reference"))
    ]
    oracle.assert_close(*gradients)


@needs_cpu_backend
@pytest.mark.parametrize("dtype", NARROW)
def test_cpu_kernel_of_realistic_rows_keeps_five_digits(dtype: torch.dtype) -> None:
    inputs = rows(64, 32000, dtype)
    weight = torch.randn(64, generator=torch.Generator().manual_seed(1))
    loss = cross_entropy(**inputs, token_weight=weight, backend="cpu")
    truth = cross_entropy(inputs["logits"].double(), inputs["targets"], token_weight=weight)
    assert abs(float(loss) / float(truth) - 1) < oracle.LOSS


@needs_cpu_backend
def test_cpu_kernel_exponential_is_right_over_its_whole_range() -> None:
    """Every 257th float32 from -0 to -90, in rows that also hold 0 twice: the gradient over that of 0 is exp."""
    last = int(torch.tensor(90.0).view(torch.int32))
    x = -torch.arange(0, last, 257, dtype=torch.int32).view(torch.float32)
    for part in x.split(2**20):
        z = torch.cat([torch.zeros(2), part])[None]
        _, gradient = with_gradient(
            {"logits": z, "targets": torch.tensor([0]), "token_weight": torch.tensor([2.0**21])}, backend="cpu"
        )
        got = gradient[0, 2:].double() / gradient[0, 1].double()
        truth = part.double().exp()
        is_normal = truth >= torch.finfo(torch.float32).smallest_normal
        error = (got / truth - 1).abs()[is_normal]
        assert float(error.max(initial=0) if not error.numel() else error.max()) <= (
            oracle.EXPONENTIAL + 1
        ) * oracle.roundoff(torch.float32)
        assert not got[part < -87.34].any()


@needs_cpu_backend
@every(KERNEL_CASES)
def test_cpu_kernel_gives_the_same_bits_for_every_number_of_threads(case: Case, threads: Any) -> None:
    T = 3 * case.problem.T + 2**17 // case.problem.V  # enough for several threads
    count = None if case.problem.num_targets is None else 2 * T
    inputs = replace(case.problem, T=T, num_targets=count).make_inputs()
    results = []
    for number in (1, 2, 4):
        threads(number)
        results.append(with_gradient(inputs, backend="cpu"))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@needs_cpu_backend
@pytest.mark.parametrize("isa", [] if isinstance(CPU, str) else CPU._C.isas()[1:])
def test_tests_of_the_kernel_pass_on_every_other_instruction_set(isa: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-k", "test_cpu_kernel", str(Path(__file__))]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "MRTKERN_ISA": isa}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@needs_cpu_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cpu_kernel_rounds_like_torch(dtype: torch.dtype) -> None:
    """With one class beside the target the gradient is w p, rounded once: all magnitudes, subnormals and infinity."""
    weight = torch.logspace(-30, 38, 4000) * torch.tensor([1.0, -1.0]).repeat(2000)
    z = torch.zeros(4000, 2, dtype=dtype)
    _, gradient = with_gradient(
        {"logits": z, "targets": torch.zeros(4000, dtype=torch.int64), "token_weight": weight}, backend="cpu"
    )
    assert torch.equal(gradient, torch.stack([-weight / 2, weight / 2], 1).to(dtype))


@needs_cpu_backend
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("V", [1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 2047, 2048, 2049, 2080])
def test_cpu_kernel_tails_are_whole(dtype: torch.dtype, V: int) -> None:
    """Around every register and the block; nothing beyond a row is read or written."""
    big = rows(5, V + 64, dtype)["logits"]
    big[:, V:] = torch.nan
    targets = torch.full((5,), V - 1)
    targets[2] = -100
    loss, gradient = with_gradient({"logits": big[:, :V], "targets": targets}, backend="cpu")
    expected, same = with_gradient({"logits": big[:, :V].double(), "targets": targets})
    oracle.assert_summed(loss, expected, oracle.cross_entropy_steps(), 1 + big[:, :V].abs().max())
    oracle.assert_close(
        gradient, same, with_gradient({"logits": big[:, :V], "targets": targets}, backend="reference")[1]
    )
    before = big.clone()
    cross_entropy(big[:, :V], targets, inplace=True, backend="cpu")
    assert torch.equal(big[:, :V], gradient)
    assert torch.equal(big[:, V:].isnan(), before[:, V:].isnan())


# Several targets on one row


@every_backend
@pytest.mark.parametrize("dtype", NARROW)
def test_several_targets_equal_repeated_rows(dtype: torch.dtype, backend: str) -> None:
    case = replace(next(case for case in TEST_CASES if case.name == "everything").problem, dtype=dtype)
    inputs = case.make_inputs()
    row = torch.repeat_interleave(inputs["target_offsets"].diff())
    repeated = {**inputs, "logits": inputs["logits"][row], "target_offsets": None}
    loss, gradient = with_gradient(inputs, backend=backend)
    expected, each = with_gradient(repeated, backend=backend)
    truth = with_gradient({**inputs, "logits": inputs["logits"].double()})
    magnitude = oracle.cross_entropy(**inputs).magnitude
    oracle.assert_summed(loss, expected.double(), 2 * oracle.cross_entropy_steps(), magnitude)
    summed = torch.zeros_like(inputs["logits"], dtype=torch.float64).index_add_(0, row, each.double())
    oracle.assert_close(gradient, truth[1], summed.to(dtype))


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
    for got, expected in zip(with_gradient(four, backend=backend), with_gradient(one, backend=backend), strict=True):
        oracle.assert_summed(got, expected.double(), oracle.cross_entropy_steps(), 10.0)


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
    oracle.assert_summed(cross_entropy(**inputs, backend=backend), expected, oracle.cross_entropy_steps(), 20.0)


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
    dense = {"logits": inputs["logits"][:, 1::2], "targets": torch.zeros(3, dtype=torch.int64)}
    expected, part = with_gradient({**dense, "logits": dense["logits"].double()})
    oracle.assert_summed(loss, expected, oracle.cross_entropy_steps(), 10.0)
    assert not gradient[:, ::2].any()
    oracle.assert_summed(gradient[:, 1::2], part, oracle.cross_entropy_steps(), 1.0)
    found = details_of(inputs, backend=backend)
    assert bool(found.entropy.isfinite())


@every_backend
def test_blocks_of_minus_infinity_come_before_everything_else(backend: str) -> None:
    logits = torch.full((1, 5000), -torch.inf)
    logits[0, 4500:] = -1000.0
    loss, gradient = with_gradient({"logits": logits, "targets": torch.tensor([4999])}, backend=backend)
    oracle.assert_summed(loss, torch.tensor(500.0).double().log(), oracle.cross_entropy_steps(), 1.0)
    assert not gradient[0, :4500].any()


@every_backend
@pytest.mark.parametrize("dtype", NARROW)
def test_large_logits_neither_overflow_nor_vanish(dtype: torch.dtype, backend: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4]]).to(dtype)
    targets = torch.tensor([0, 0, 1])
    loss, gradient = with_gradient({"logits": logits, "targets": targets}, backend=backend)
    expected, truth = with_gradient({"logits": logits.double(), "targets": targets})
    oracle.assert_summed(loss, expected, 4, expected)
    oracle.assert_summed(gradient, truth, 4, 1.0)


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
        expected = with_gradient({"logits": view.contiguous(), "targets": targets}, backend=backend)
        logits = view.detach().requires_grad_()
        loss = cross_entropy(logits, targets, backend=backend)
        (gradient,) = torch.autograd.grad(loss, logits)
        steps = 0 if backend == "cpu" else oracle.cross_entropy_steps()  # torch may sum columns in another order
        oracle.assert_summed(loss, expected[0].double(), steps, 10.0)
        oracle.assert_summed(gradient, expected[1].double(), steps, 1.0)


@needs_cpu_backend
def test_more_than_two_to_the_31_logits() -> None:
    """By a stride of 0: 70,000 rows of one; and in place by a large stride, in pages that nobody touches."""
    V = 32768
    row = rows(1, V, torch.bfloat16)["logits"]
    targets = torch.arange(70_000) % V
    found = cross_entropy(row.expand(70_000, V), targets, backend="cpu")
    truth = row.double().logsumexp(1)[0] - row.double()[0, targets].mean()
    oracle.assert_summed(found, truth, oracle.cross_entropy_steps(), 20.0)
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (2**32 + 4 * V)), dtype=torch.bfloat16)
    logits = memory.as_strided((3, V), (2**31, 1))
    logits.copy_(row)
    _, expected = with_gradient({"logits": row.expand(3, V), "targets": targets[:3]}, backend="cpu")
    cross_entropy(logits, targets[:3], inplace=True, backend="cpu")
    assert torch.equal(logits, expected)


@every_backend
def test_padded_rows_are_the_flat_ones(backend: str) -> None:
    inputs = rows(12, 10)
    padded = cross_entropy(inputs["logits"].view(3, 4, 10), inputs["targets"].view(3, 4), backend=backend)
    assert torch.equal(padded, cross_entropy(**inputs, backend=backend))


# Autograd


@every_backend
def test_nothing_of_the_callers_is_overwritten(backend: str) -> None:
    inputs = {**rows(6, 40), "token_weight": torch.rand(6)}
    before = {name: value.clone() for name, value in inputs.items()}
    logits = inputs["logits"].requires_grad_()
    auxiliary = logits.logsumexp(1).square().mean()
    (cross_entropy(**inputs, backend=backend) + auxiliary).backward()
    assert all(torch.equal(inputs[name], value) for name, value in before.items())
    (expected,) = torch.autograd.grad(logits.logsumexp(1).square().mean(), logits)
    _, own = with_gradient(inputs, backend=backend)
    assert torch.equal(logits.grad, expected + own)


@every_backend
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("inplace", [False, True])
def test_gradient_of_the_loss_is_a_factor(inplace: bool, dtype: torch.dtype, backend: str) -> None:
    inputs = rows(6, 40, dtype)
    _, gradient = with_gradient(inputs, backend=backend)
    leaf = inputs["logits"].requires_grad_()
    loss = cross_entropy(leaf * 1, inputs["targets"], inplace=inplace, backend=backend)
    loss *= 4  # a power of two: exact
    (loss / 16).backward()
    assert torch.equal(leaf.grad, gradient / 4)


@every_backend
@pytest.mark.parametrize("inplace", [False, True])
def test_a_second_backward_is_right_or_refused(inplace: bool, backend: str) -> None:
    inputs = rows(6, 40)
    _, gradient = with_gradient(inputs, backend=backend)
    leaf = inputs["logits"].requires_grad_()
    loss = cross_entropy(leaf * 1, inputs["targets"], inplace=inplace, backend=backend)
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(loss, leaf, retain_graph=True)[0], gradient)
    assert torch.equal(torch.autograd.grad(loss * 2, leaf, retain_graph=True)[0], gradient * 2)
    with pytest.raises(RuntimeError, match="cross_entropy: backward must run once when the loss is scaled"):
        torch.autograd.grad(loss, leaf)


def test_a_second_derivative_is_refused() -> None:
    inputs = rows(3, 4)
    leaf = inputs["logits"].requires_grad_()
    with pytest.raises(RuntimeError, match="cross_entropy: logits must be differentiated once at most"):
        torch.autograd.grad(cross_entropy(**inputs), leaf, create_graph=True)


def test_gradient_only_where_asked() -> None:
    inputs = rows(3, 4)
    assert not cross_entropy(**inputs).requires_grad
    inputs["logits"].requires_grad_()
    with torch.no_grad():
        assert not cross_entropy(**inputs).requires_grad


@every_backend
def test_in_place_the_logits_become_the_gradient_and_say_so(backend: str) -> None:
    inputs = rows(6, 40)
    loss, gradient = with_gradient(inputs, backend=backend)
    leaf = inputs["logits"].clone().requires_grad_()
    logits = leaf * 1
    version, address = logits._version, logits.data_ptr()
    saved = logits.logsumexp(1).sum()  # keeps the logits for its backward
    found = cross_entropy(logits, inputs["targets"], inplace=True, backend=backend)
    assert torch.equal(found, loss)
    assert logits._version > version
    assert torch.equal(logits, gradient)
    (own,) = torch.autograd.grad(found, logits, retain_graph=True)
    assert own.data_ptr() == address
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_in_place_refuses_what_it_cannot_overwrite() -> None:
    inputs = rows(4, 6)
    with pytest.raises(ValueError, match="inplace must be False for logits that are a leaf"):
        cross_entropy(inputs["logits"].clone().requires_grad_(), inputs["targets"], inplace=True)
    for view in (inputs["logits"][:1].expand(4, 6), torch.randn(6, 4).T):
        with pytest.raises(ValueError, match="logits must have adjacent columns and rows that do not overlap"):
            cross_entropy(view, inputs["targets"], inplace=True)


def operator_arguments(case: Case) -> tuple[Any, ...]:
    inputs = case.make_inputs()
    given = (inputs["logits"], inputs["targets"], inputs.get("token_weight"), inputs.get("target_offsets"))
    return (*given, *case.problem.options, True, None, None)


@every(SOME_CASES)
def test_operators_pass_opcheck(case: Case) -> None:
    torch.library.opcheck(torch.ops.mrtkern.cross_entropy.default, (*operator_arguments(case), True))
    torch.library.opcheck(torch.ops.mrtkern.cross_entropy_.default, operator_arguments(case))


@every(SOME_CASES)
@pytest.mark.parametrize("return_details", [False, True])
def test_compiled_as_one_graph_with_its_gradient(case: Case, return_details: bool) -> None:
    torch._dynamo.reset()
    inputs = case.make_inputs()
    logits = inputs.pop("logits").requires_grad_()
    offsets = torch.tensor([0, 3, len(inputs["targets"])])

    def function(z: torch.Tensor) -> torch.Tensor:
        found = cross_entropy(z * 2, **inputs, return_details=return_details, offsets=offsets)
        return 3 * (found.loss if isinstance(found, LossDetails) else found)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    loss, expected = compiled(logits), function(logits)
    assert torch.equal(loss, expected)
    got, eager = torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0]
    oracle.assert_close(got, eager.double(), eager)


def test_compiled_in_place_keeps_the_logits() -> None:
    torch._dynamo.reset()
    inputs = rows(4, 6)
    compiled = torch.compile(lambda z, y: cross_entropy(z, y, inplace=True), fullgraph=True, backend="aot_eager")
    before = inputs["logits"].clone()
    assert torch.equal(compiled(inputs["logits"], inputs["targets"]), cross_entropy(**inputs))
    assert torch.equal(inputs["logits"], before)


def test_compiled_call_refuses_bad_labels_too() -> None:
    torch._dynamo.reset()
    inputs = rows(4, 6)
    inputs["targets"][2] = 6
    with pytest.raises(IndexError, match=r"got 6 at position 2$"):
        torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")(**inputs)


# Details


@every_backend
def test_details_are_what_they_say(backend: str) -> None:
    inputs = {**rows(10, 30), "token_weight": torch.rand(10)}
    inputs["targets"][[0, 4]] = -100
    inputs["logits"][1, inputs["targets"][1]] = 100.0
    offsets, prompt = torch.tensor([0, 3, 4, 5, 8, 10]), torch.tensor([7, 3, 3, 7, 3])
    found = cross_entropy(**inputs, return_details=True, offsets=offsets, prompt=prompt, backend=backend)
    assert isinstance(found, LossDetails)
    exact = oracle.cross_entropy(**inputs)
    steps, magnitude = oracle.cross_entropy_steps(), exact.magnitude
    sums = torch.stack([exact.nll[i:j].sum() for i, j in itertools.pairwise(offsets)])
    oracle.assert_summed(found.response_nll, sums, steps, 50.0)
    assert found.response_tokens.tolist() == [2, 1, 0, 3, 2]
    parts = exact.nll * inputs["token_weight"]
    losses = torch.stack([parts[3:5].sum() + parts[8:].sum(), parts[:3].sum() + parts[5:8].sum()])
    oracle.assert_summed(found.prompt_loss, losses, steps, magnitude)
    oracle.assert_summed(found.prompt_loss.sum(), found.loss.double(), steps, magnitude)
    means = sums / torch.tensor([2, 1, 1, 3, 2])
    groups = [means[[1, 4]], means[[0, 3]]]  # the empty response is none
    within = sum((g - g.mean()).square().sum() for g in groups) / 2
    between = 2 * sum((g.mean() - torch.cat(groups).mean()).square() for g in groups)
    oracle.assert_summed(found.within_variance, within, steps, 1e3)
    oracle.assert_summed(found.between_variance, ((between - within) / 2).clamp(min=0), steps, 1e3)
    is_valid = inputs["targets"] != -100
    hits = (inputs["logits"].argmax(1) == inputs["targets"]) & is_valid
    assert float(found.accuracy) == float(hits.sum()) / 8
    oracle.assert_summed(found.entropy, exact.entropy[is_valid].mean(), steps, 10.0)


@every_backend
def test_equal_logits_count_for_the_lower_index(backend: str) -> None:
    inputs = {"logits": torch.zeros(3, 40), "targets": torch.tensor([0, 1, 0])}
    assert float(details_of(inputs, backend=backend).accuracy) == pytest.approx(2 / 3)


@every_backend
def test_details_of_weightless_rows_are_known_too(backend: str) -> None:
    inputs = {**rows(4, 30), "token_weight": torch.zeros(4)}
    found = details_of(inputs, backend=backend)
    assert bool((found.response_nll > 0).all())
    assert float(found.loss) == 0


# Refusals


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"logits": torch.ones(3)}, r"logits must be \[T, V\] with V at least 1, got \[3\]"),
        ({"logits": torch.ones(3, 0)}, r"logits must be \[T, V\] with V at least 1, got \[3, 0\]"),
        (
            {"logits": torch.ones(3, 4, dtype=torch.int64)},
            "logits must be float32, float64, bfloat16 or float16, got .*",
        ),
        ({"targets": torch.ones(4, dtype=torch.int64)}, r"targets must have one entry per row, shape \[3\], got \[4\]"),
        ({"targets": torch.ones(3)}, "targets must be int64, got torch.float32"),
        ({"token_weight": torch.ones(2)}, r"token_weight must have one entry per target, shape \[3\], got \[2\]"),
        ({"target_offsets": torch.tensor([0, 3])}, r"target_offsets must have one entry per row and one more, .*"),
        ({"target_offsets": torch.tensor([0, 3, 1, 3])}, "target_offsets must never descend, got 3 then 1 at group 1"),
        ({"target_offsets": torch.tensor([0, 1, 2, 2])}, "target_offsets must end with the number of targets 3, got 2"),
        ({"label_smoothing": 1.5}, "label_smoothing must be from 0 to 1, got 1.5"),
        ({"z_loss": float("nan")}, "z_loss must be finite, got nan"),
        ({"softcap": 0.0}, "softcap must be None or positive and finite, got 0.0"),
        ({"return_details": True}, "offsets must be given with return_details, unless targets are padded, got None"),
        ({"backend": "cuda"}, "backend 'cuda' cannot run this: cross_entropy has no cuda backend"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^cross_entropy: {sentence}$"):
        cross_entropy(**{**rows(3, 4), **changes})


@needs_cpu_backend
def test_the_choice_is_made_without_data() -> None:
    problem = Problem(8, 100, torch.float32)
    assert _dispatch.choose("cross_entropy", None, problem) == "cpu"
    for changes in ({"dtype": torch.float64}, {"device": "cuda"}):
        assert _dispatch.choose("cross_entropy", None, replace(problem, **changes)) == "reference"
    with pytest.raises(ValueError, match=r"cannot run this: needs float32, bfloat16 or float16, got torch\.float64"):
        _dispatch.choose("cross_entropy", "cpu", replace(problem, dtype=torch.float64))


def test_what_cannot_fit_is_refused_before_it_is_allocated() -> None:
    logits = torch.ones(1, 1).expand(2**22, 2**22)
    with pytest.raises(MemoryError, match=r"^cross_entropy: logits must leave room for \d{14} bytes"):
        cross_entropy(logits.requires_grad_(), torch.zeros(2**22, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [Options(), Options(label_smoothing=0.1, z_loss=0.1, softcap=9.0)])
def test_memory_of_the_reference_stays_within_the_formula(options: Options, dtype: torch.dtype) -> None:
    problem = Problem(50, 2000, dtype, options=options, wants_grad=True)
    inputs = problem.make_inputs()
    gradient = torch.empty_like(inputs["logits"])
    arguments = (inputs["logits"].detach(), inputs["targets"], None, None, options, gradient, True)
    peak, _ = oracle.peak_bytes(lambda: reference.forward(*arguments))
    assert 0 < peak <= reference.memory(problem)


MEMORY = """
import torch
from mrtkern.ops.cross_entropy.op import cross_entropy
T, V, dtype = 512, 128256, torch.{dtype}
torch.set_num_threads(2)
cross_entropy(torch.randn(64, V).to(dtype).requires_grad_(), torch.zeros(64, dtype=torch.int64)).backward()
z, y = torch.randn(T, V).to(dtype).requires_grad_(), torch.randint(0, V, (T,))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
def high():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
before = high()
if {inplace}:
    cross_entropy(z.detach(), y, inplace=True)
else:
    gradient, = torch.autograd.grad(cross_entropy(z, y), z)
print((high() - before) / (1 if {inplace} else z.nbytes))
"""


@needs_cpu_backend
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory cannot be reset here")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("inplace", "limit"), [(False, 1.05), (True, 2 * 2**20)])
def test_memory_is_one_gradient_or_in_place_a_row_per_thread(inplace: bool, limit: float, dtype: str) -> None:
    program = MEMORY.format(dtype=dtype, inplace=inplace)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= limit


@pytest.mark.gpu
@every(TEST_CASES)
def test_reference_on_a_gpu_errs_like_the_reference_on_the_cpu(case: Case) -> None:
    inputs = case.make_inputs()
    on_gpu = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    exact = oracle.cross_entropy(**inputs)
    loss, _ = with_gradient(on_gpu, backend="reference")
    oracle.assert_summed(loss.cpu(), exact.loss, oracle.cross_entropy_steps(), exact.magnitude)
