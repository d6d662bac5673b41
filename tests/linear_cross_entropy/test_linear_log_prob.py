"""linear_log_prob: equal to log_softmax, any upstream gradient, each row's part of it, limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrtkern import _dispatch, linear_cross_entropy, linear_log_prob
from mrtkern.ops.linear_cross_entropy import reference as definition
from mrtkern.ops.linear_cross_entropy.problem import LEAST_ROWS, Cap, Problem, memory
from tests.tools import bounds, oracle
from tests.tools.bounds import Bounded
from tests.tools.linear_heads import (
    CHUNKS,
    assert_all_bounded,
    double,
    every_backend,
    every_backend_and_triton,
    leaves,
    needs_cpu_backend,
    product_flops,
)
from tests.tools.linear_heads import truth as loss_and_gradients

CPU = _dispatch.load("linear_cross_entropy", "cpu")
OPTIONS = {"plain": {}, "temperature": {"temperature": 0.7}, "all": {"temperature": 1.3, "softcap": 2.0}}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_inputs(T: int, D: int, V: int, dtype: torch.dtype, ignored: float = 0.2) -> dict[str, Any]:
    problem = Problem(T, D, V, dtype, dtype, dtype, has_bias=True, needs=(True, True, True), ignored=ignored)
    inputs = problem.make_inputs()
    del inputs["token_weight"]
    return inputs


def upstream(T: int) -> tuple[Tensor, Tensor]:
    """Gradients of both signs; some rows have one of the two, some none."""
    generator = torch.Generator().manual_seed(1)
    a, c = torch.randn(2, T, generator=generator)
    a[::3], c[::4] = 0, 0
    return a, c


def program(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What a user would write, for autograd to differentiate."""
    z = F.linear(hidden, weight, bias)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    log_p = (z / temperature).log_softmax(1)
    valid = targets != -100
    logp = log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return logp * valid, -(log_p.exp() * log_p).sum(1) * valid


def with_gradients(function: Any, inputs: dict[str, Any], a: Tensor, c: Tensor, **options: Any) -> tuple[Tensor, ...]:
    logp, entropy = function(**inputs, **options)
    gradients = torch.autograd.grad((a * logp + c * entropy).sum(), leaves(inputs))
    return logp.detach(), entropy.detach(), *gradients


def truth(inputs: dict[str, Any], a: Tensor, c: Tensor, **options: Any) -> tuple[Bounded, ...]:
    """By autograd through the program in float64, with the bounds of the sums on the way."""
    values = with_gradients(program, double(inputs), a.double(), c.double(), **options)
    head = bounds.Head(*(inputs[name].detach() for name in ("hidden", "weight", "bias")))
    logp, entropy, dz = bounds.log_probs(head.logits(), inputs["targets"], a, c, **options)
    bound = (logp, entropy, *head.gradients(dz).values())
    return tuple(replace(b, value=value) for b, value in zip(bound, values, strict=False))


@every_option
def test_it_is_log_softmax_in_float64(options: dict[str, Any]) -> None:
    inputs, (a, c) = make_inputs(12, 5, 9, torch.float64), upstream(12)
    found = with_gradients(linear_log_prob, inputs, a.double(), c.double(), **options)
    assert_all_bounded(found, truth(inputs, a, c, **options))
    assert all(value.dtype == torch.float64 for value in found)


@every_option
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_errs_by_the_rounding_of_its_sums(dtype: torch.dtype, options: dict[str, Any]) -> None:
    inputs, (a, c) = make_inputs(30, 17, 120, dtype), upstream(30)
    found = with_gradients(linear_log_prob, inputs, a, c, **options, backend="reference")
    assert [value.dtype for value in found] == [torch.float32] * 2 + [dtype] * 3
    assert_all_bounded(found, truth(inputs, a, c, **options))


@needs_cpu_backend
@every_option
@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_backend_is_within_the_bound_of_its_sums(dtype: torch.dtype, options: dict[str, Any]) -> None:
    inputs, (a, c) = make_inputs(150, 40, 3000, dtype), upstream(150)
    found = with_gradients(linear_log_prob, inputs, a, c, **options, backend="cpu")
    assert_all_bounded(found, truth(inputs, a, c, **options))


@every_backend_and_triton
def test_classes_of_minus_infinity_leave_the_gradients_of_the_others_alone(backend: str) -> None:
    """Padding of a vocabulary, switched off by its bias, under large gradients of the entropy."""
    inputs, (a, c) = make_inputs(8, 5, 9, torch.float32, ignored=0.0), upstream(8)
    inputs["targets"] %= 6
    c = 100 * c
    inputs["bias"] = inputs["bias"].detach().masked_fill(torch.arange(9) >= 6, -torch.inf).requires_grad_()
    found = with_gradients(linear_log_prob, inputs, a, c, backend=backend)
    part = {**inputs, **{name: inputs[name].detach()[:6].requires_grad_() for name in ("weight", "bias")}}
    assert not any(bool(gradient[6:].any()) for gradient in found[3:])
    assert_all_bounded((*found[:3], *(gradient[:6] for gradient in found[3:])), truth(part, a, c))


@every_option
def test_gradient_is_the_derivative(options: dict[str, Any]) -> None:
    inputs = make_inputs(6, 3, 7, torch.float64)

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return linear_log_prob(hidden, weight, inputs["targets"], bias=bias, **options)

    assert torch.autograd.gradcheck(function, tuple(inputs[name] for name in ("hidden", "weight", "bias")))


@every_backend
@pytest.mark.parametrize("size", CHUNKS)
def test_chunk_size_changes_nothing_but_rounding(size: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, (a, c) = make_inputs(40, 17, 50, torch.float32), upstream(40)
    monkeypatch.setattr(_dispatch.load("linear_cross_entropy", backend), "chunk_size", lambda problem: size)
    assert_all_bounded(with_gradients(linear_log_prob, inputs, a, c, backend=backend), truth(inputs, a, c))


@needs_cpu_backend
def test_same_bits_for_every_number_of_threads(threads: Any) -> None:
    inputs, (a, c) = make_inputs(200, 600, 2100, torch.float32), upstream(200)
    results = []
    for count in (1, 2, 4):
        threads(count)
        results.append(with_gradients(linear_log_prob, inputs, a, c, backend="cpu"))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@every_backend
def test_its_negated_mean_is_the_cross_entropy(backend: str) -> None:
    inputs = make_inputs(40, 17, 50, torch.float32)
    count = (inputs["targets"] != -100).sum()
    mean = -linear_log_prob(**inputs, backend=backend)[0].sum() / count
    loss = linear_cross_entropy(**inputs, backend=backend)
    assert isinstance(loss, Tensor)
    expected = loss_and_gradients({**inputs, "token_weight": torch.full((40,), 1 / int(count))})
    for value in (mean, loss):
        assert_all_bounded((value, *torch.autograd.grad(value, leaves(inputs))), expected)


@every_backend_and_triton
def test_padded_rows_are_the_flat_ones(backend: str) -> None:
    inputs, (a, c) = make_inputs(20, 5, 9, torch.float32), upstream(20)
    expected = with_gradients(linear_log_prob, inputs, a, c, backend=backend)
    rows = {"targets": inputs["targets"].view(4, 5)}
    rows["hidden"] = inputs["hidden"].detach().view(4, 5, 5).requires_grad_()
    found = with_gradients(linear_log_prob, {**inputs, **rows}, a.view(4, 5), c.view(4, 5), backend=backend)
    assert [value.shape for value in found[:3]] == [(4, 5), (4, 5), (4, 5, 5)]
    assert all(torch.equal(x.view_as(y), y) for x, y in zip(found, expected, strict=True))


@every_backend_and_triton
def test_ignored_rows_are_zero_and_not_read(backend: str) -> None:
    inputs, (a, c) = make_inputs(20, 5, 9, torch.float32, ignored=0.4), upstream(20)
    out = inputs["targets"] == -100
    expected = with_gradients(linear_log_prob, inputs, a, c, backend=backend)
    with torch.no_grad():
        inputs["hidden"][out] = torch.nan
    found = with_gradients(linear_log_prob, inputs, a, c, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert not any(bool(value[out].any()) for value in found[:3])


@every_backend
def test_impossible_and_certain_classes_have_no_entropy_and_finite_gradients(backend: str) -> None:
    """Classes at -infinity, at -10,000 and one alone at 10,000, as if they were not there."""
    inputs, (a, c) = make_inputs(20, 5, 9, torch.float32, ignored=0.0), upstream(20)
    inputs["targets"][:] = torch.arange(20) % 6
    kept = {**inputs, "weight": inputs["weight"][:6].detach(), "bias": inputs["bias"][:6].detach()}
    with torch.no_grad():
        inputs["bias"][6:] = torch.tensor([-torch.inf, -1e4, -torch.inf])
    found = with_gradients(linear_log_prob, inputs, a, c, backend=backend)
    assert_all_bounded(found[:3], truth(kept, a, c))
    assert not any(bool(gradient[6:].any()) for gradient in found[3:])
    with torch.no_grad():
        inputs["bias"][0] = 1e4
    logp, entropy, *gradients = with_gradients(linear_log_prob, inputs, a, c, backend=backend)
    assert not entropy.any()
    assert not logp[inputs["targets"] == 0].any()
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@needs_cpu_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_products_and_only_of_rows_with_an_upstream_gradient(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    T, D, V, kept = 64, 24, 100, 32
    inputs = make_inputs(T, D, V, dtype, ignored=0.0)
    product = 2 * V * D
    logp, entropy = linear_log_prob(**inputs, backend="cpu")
    assert product_flops(lambda: linear_log_prob(**inputs, backend="cpu"), monkeypatch) == T * product
    total = (logp * (torch.arange(T) < kept)).sum() + (entropy * (torch.arange(T) < kept - 8)).sum()
    assert product_flops(lambda: torch.autograd.grad(total, leaves(inputs)), monkeypatch) == 3 * kept * product


@needs_cpu_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_stays_within_the_formula(dtype: torch.dtype) -> None:
    T, D, V = 600, 64, 20000
    inputs, (a, c) = make_inputs(T, D, V, dtype), upstream(T)
    for needs in ((False,) * 3, (True,) * 3):
        problem = Problem(T, D, V, dtype, dtype, dtype, needs=needs, has_bias=True, is_log_prob=True)
        allowed = memory(problem, CPU.chunk_size(problem), CPU.multiplies(problem), T) + CPU.memory(problem)
        if any(needs):
            total = sum((x * y).sum() for x, y in zip((a, c), linear_log_prob(**inputs, backend="cpu"), strict=True))
            allowed += sum(value.nbytes for value in leaves(inputs))
            peak, _ = oracle.peak_bytes(lambda total=total: torch.autograd.grad(total, leaves(inputs)))
        else:
            peak, _ = oracle.peak_bytes(lambda: linear_log_prob(**inputs, backend="cpu"))
        assert peak <= allowed
        assert allowed < T * V * 4 + sum(value.nbytes for value in leaves(inputs)) * 3


def test_backward_may_run_often_and_only_once_deep() -> None:
    inputs, (a, c) = make_inputs(20, 5, 9, torch.float64), upstream(20)
    logp, entropy = linear_log_prob(**inputs)
    total = (a * logp + c * entropy).sum()
    first = torch.autograd.grad(total, leaves(inputs), retain_graph=True)
    second = torch.autograd.grad(total, leaves(inputs), create_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match=r"^linear_log_prob: logp and entropy must be differentiated once at most"):
        second[0].sum().backward()


def test_gradient_only_where_asked() -> None:
    inputs = make_inputs(20, 5, 9, torch.float32)
    inputs["weight"] = inputs["weight"].detach()
    logp, entropy = linear_log_prob(**inputs)
    entropy.sum().backward()
    assert inputs["weight"].grad is None
    assert inputs["hidden"].grad is not None
    with torch.no_grad():
        assert not any(value.requires_grad for value in linear_log_prob(**inputs))
    assert logp.requires_grad


def test_operators_pass_opcheck() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        inputs = make_inputs(20, 5, 9, dtype)
        tensors = [inputs[name].detach() for name in ("hidden", "weight", "bias", "targets")]
        options = (-100, 2.0, 0.7, dtype, None, None)
        torch.library.opcheck(torch.ops.mrtkern.linear_log_prob.default, (*tensors, *options))
        for a, c in (upstream(20), (upstream(20)[0], None), (None, upstream(20)[1])):
            arguments = (a, c, *tensors, *options, [True, True, False])
            torch.library.opcheck(torch.ops.mrtkern.linear_log_prob_backward.default, arguments)


def test_compiles_as_one_graph_with_its_gradient() -> None:
    torch._dynamo.reset()
    inputs, (a, c) = make_inputs(20, 5, 9, torch.float32), upstream(20)

    def function() -> Tensor:
        logp, entropy = linear_log_prob(**inputs, temperature=0.7)
        return (a * logp.exp() + c * entropy).sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(function(), leaves(inputs))
    assert all(
        torch.equal(x, y) for x, y in zip(torch.autograd.grad(compiled(), leaves(inputs)), expected, strict=True)
    )


@every_backend_and_triton
def test_bad_arguments_are_named_in_one_sentence(backend: str) -> None:
    inputs = make_inputs(4, 5, 9, torch.float32, ignored=0.0)
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"^linear_log_prob: temperature must be positive and finite, got"):
            linear_log_prob(**inputs, temperature=temperature, backend=backend)
    inputs["targets"][2] = 9
    with pytest.raises(IndexError, match=r"^linear_log_prob: targets must be from 0 to 8 .* got 9 at position 2$"):
        linear_log_prob(**inputs, backend=backend)


@every_backend
def test_few_and_no_rows_work(backend: str) -> None:
    for T in (0, 1, LEAST_ROWS - 1, LEAST_ROWS):
        inputs, (a, c) = make_inputs(T, 5, 9, torch.float32, ignored=0.0), upstream(T)
        found = with_gradients(linear_log_prob, inputs, a, c, backend=backend)
        assert_all_bounded(found, truth(inputs, a, c))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_reference_rounds_narrow_logits_only_at_the_end(dtype: torch.dtype) -> None:
    """A part of split logits comes as it is; the sums over its columns are float32 all the same."""
    z = torch.randn(9, 301, generator=torch.Generator().manual_seed(0)).to(dtype)
    targets, cap, w = torch.arange(9), Cap(softcap=2.0), torch.linspace(-1, 1, 9)
    for given, same in zip(
        definition.log_probs(z, targets, cap, True), definition.log_probs(z.float(), targets, cap, True), strict=True
    ):
        assert torch.equal(given, same)
    narrow, full = z.clone(), z.float()
    for gradient in (narrow, full):
        definition.log_probs_backward(gradient, targets, cap, w, None, lse=z.double().logsumexp(1))
    assert torch.equal(narrow, full.to(dtype))
