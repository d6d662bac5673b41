"""linear_cross_entropy: values, gradients, memory, work, limits. Cases from problem.CASES, tolerances from oracle."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrtkern import LossDetails, MultiResponseCrossEntropyLoss, _dispatch, cross_entropy, response_weights
from mrtkern.ops.linear_cross_entropy.op import linear_cross_entropy
from mrtkern.ops.linear_cross_entropy.problem import Case, Problem
from tests.tools import oracle
from tests.tools.linear_heads import (
    CHUNKS,
    CPU,
    NARROW_CASES,
    assert_all_bounded,
    case_named,
    double,
    every_backend,
    every_backend_and_triton,
    every_case,
    every_option,
    leaves,
    naive,
    needs_cpu_backend,
    truth,
    with_gradients,
)

# Values


@every_option
@every_case
def test_loss_and_gradients_are_those_of_the_definition(case: Case, options: dict[str, Any]) -> None:
    inputs = case.make_inputs()
    found = with_gradients(inputs, **options, backend="reference")
    assert_all_bounded(found, truth(inputs, **options))
    assert [value.dtype for value in found[1:]] == [value.dtype for value in leaves(inputs)]


@needs_cpu_backend
@every_option
@pytest.mark.parametrize("case", NARROW_CASES, ids=lambda case: case.name)
def test_cpu_backend_errs_like_the_definition(case: Case, options: dict[str, Any]) -> None:
    inputs = case.make_inputs()
    found = with_gradients(inputs, **options, backend="cpu")
    assert_all_bounded(found, truth(inputs, **options))


@needs_cpu_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_backend_is_within_the_bound_of_its_sums(dtype: torch.dtype) -> None:
    inputs = Problem(200, 64, 1000, dtype, dtype, dtype, ignored=0.2).make_inputs()
    assert_all_bounded(with_gradients(inputs, backend="cpu"), truth(inputs))


@every_backend
def test_without_weights_it_is_the_mean_of_torch(backend: str) -> None:
    inputs = case_named("float32 with bias, some ignored").make_inputs()
    weight = inputs.pop("token_weight")
    found = with_gradients(inputs, backend=backend)
    z = F.linear(inputs["hidden"].double(), inputs["weight"].double(), inputs["bias"].double())
    mean = F.cross_entropy(z, inputs["targets"])
    expected = (mean.detach(), *torch.autograd.grad(mean, leaves(inputs)))
    bound = truth({**inputs, "token_weight": torch.full_like(weight, 1 / (inputs["targets"] != -100).sum())})
    assert_all_bounded(found, tuple(replace(b, value=value) for b, value in zip(bound, expected, strict=True)))


@every_backend
@pytest.mark.parametrize("size", CHUNKS)
def test_chunk_size_changes_nothing_but_rounding(size: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("float32 with bias, some ignored", "float32, several targets per row", "bfloat16"):
        inputs = case_named(name).make_inputs()
        module = _dispatch.load("linear_cross_entropy", backend)
        monkeypatch.setattr(module, "chunk_size", lambda problem: size)
        assert_all_bounded(with_gradients(inputs, backend=backend), truth(inputs))


@needs_cpu_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# Odd, more terms than one product may have, more rows than a chunk of a small dW; few rows of many classes.
@pytest.mark.parametrize(("T", "D", "V"), [(7, 33, 300), (601, 72, 2100), (37, 896, 5000)])
def test_same_bits_for_every_number_of_threads(T: int, D: int, V: int, dtype: torch.dtype, threads: Any) -> None:
    inputs = Problem(T, D, V, dtype, dtype, dtype, ignored=0.1, has_bias=True, needs=(True, True, True)).make_inputs()
    results = []
    for count in (1, 2, 4):
        threads(count)
        results.append(with_gradients(inputs, backend="cpu"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpu_backend
def test_a_narrow_product_is_rounded_no_worse_than_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CPU, "multiplies", lambda problem: torch.bfloat16)  # as on a machine with its instruction
    dtype = torch.bfloat16
    inputs = Problem(64, 48, 600, dtype, dtype, dtype, has_bias=True, needs=(True, True, True)).make_inputs()
    assert_all_bounded(with_gradients(inputs, backend="cpu"), truth(inputs, is_narrow=True))


def test_float16_gradients_survive_a_loss_scale() -> None:
    inputs = Problem(32, 8, 20, *(torch.float16,) * 3).make_inputs()
    inputs["token_weight"] *= 1e-7  # below the smallest float16
    scale = 2.0**16
    loss = linear_cross_entropy(**inputs) * scale
    found = torch.autograd.grad(loss, leaves(inputs))
    assert_all_bounded((loss, *found), truth({**inputs, "token_weight": inputs["token_weight"] * scale}))


# Gradients


@every_option
@pytest.mark.parametrize("targets_per_row", [None, 3])
def test_gradient_is_the_derivative(targets_per_row: int | None, options: dict[str, Any]) -> None:
    problem = replace(case_named("float64 with bias").problem, targets_per_row=targets_per_row, ignored=0.3)
    inputs = problem.make_inputs()
    names = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.requires_grad]

    def function(*values: Tensor) -> Tensor:
        return linear_cross_entropy(**{**inputs, **dict(zip(names, values, strict=True))}, **options)

    assert torch.autograd.gradcheck(function, leaves(inputs))


@every_backend
def test_gradient_only_where_asked(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _dispatch.load("linear_cross_entropy", backend)  # the same chunks for all, hence the same bits
    monkeypatch.setattr(module, "chunk_size", lambda problem: 40)
    case = case_named("float32 with bias, some ignored")
    _, *all_three = with_gradients(case.make_inputs(), backend=backend)
    everything = dict(zip(("hidden", "weight", "bias"), all_three, strict=True))
    for names in (["hidden"], ["weight"], ["bias"], ["hidden", "bias"]):
        inputs = {
            name: value.detach().requires_grad_(name in names) if isinstance(value, Tensor) and value.requires_grad
            else value for name, value in case.make_inputs().items()
        }  # fmt: skip
        linear_cross_entropy(**inputs, backend=backend).backward()
        for name in everything:
            assert (inputs[name].grad is not None) == (name in names)
            assert name not in names or torch.equal(inputs[name].grad, everything[name])
    with torch.no_grad():
        assert not linear_cross_entropy(**case.make_inputs(), backend=backend).requires_grad


@every_backend
def test_gradient_of_the_loss_multiplies_and_a_second_backward_is_the_first(backend: str) -> None:
    for name in ("float32 with bias, some ignored", "bfloat16"):
        inputs = case_named(name).make_inputs()
        once = with_gradients(inputs, backend=backend)[1:]
        loss = linear_cross_entropy(**inputs, backend=backend)
        loss *= 4  # in place, as trainers do
        first = torch.autograd.grad(loss, leaves(inputs), retain_graph=True)
        second = torch.autograd.grad(loss, leaves(inputs))
        for d, a, b in zip(once, first, second, strict=True):
            assert torch.equal(4 * d, a)
            assert torch.equal(a, b)


def test_gradients_accumulate_and_are_the_callers_to_change() -> None:
    inputs = case_named("float32 with bias, some ignored").make_inputs()
    once = with_gradients(inputs)[1:]
    loss = linear_cross_entropy(**inputs)
    loss.backward(retain_graph=True)
    for value in leaves(inputs):
        assert value.grad is not None
        value.grad.zero_()
    loss.backward()
    assert all(torch.equal(value.grad, d) for value, d in zip(leaves(inputs), once, strict=True))


def test_double_backward_is_refused_in_one_sentence() -> None:
    inputs = case_named("float64 with bias").make_inputs()
    loss = linear_cross_entropy(**inputs)
    (gradient, *_) = torch.autograd.grad(loss, leaves(inputs), create_graph=True)
    with pytest.raises(RuntimeError, match=r"^linear_cross_entropy: the loss must be differentiated once at most"):
        gradient.sum().backward()


def test_tied_weights_and_an_auxiliary_loss_add_up() -> None:
    inputs = double(case_named("float32 with bias, some ignored").make_inputs())
    inputs["hidden"] = inputs["hidden"].detach()
    tied, tokens = inputs["weight"], torch.arange(40)

    def gradient(loss: Any) -> Tensor:
        hidden = inputs["hidden"] + F.embedding(tokens, tied)
        total = loss(**{**inputs, "hidden": hidden}) + hidden.square().mean() + F.linear(hidden, tied).mean()
        return torch.autograd.grad(total, tied)[0]

    oracle.assert_summed(gradient(linear_cross_entropy), gradient(naive), 400, 40.0)


# Rows, targets, weights


@every_backend
def test_copies_at_a_kth_of_the_weight_are_one(backend: str) -> None:
    inputs = case_named("float32 with bias, some ignored").make_inputs()
    copies = {**inputs, "hidden": inputs["hidden"].repeat(3, 1), "targets": inputs["targets"].repeat(3)}
    copies["token_weight"] = inputs["token_weight"].repeat(3) / 3
    found = linear_cross_entropy(**copies, backend=backend)
    gradients = torch.autograd.grad(found, leaves(inputs))
    assert_all_bounded((found, *gradients), truth(inputs))


@every_backend_and_triton
def test_several_targets_of_a_row_are_as_many_rows(backend: str) -> None:
    inputs = case_named("float32, several targets per row").make_inputs()
    inputs["target_offsets"] = torch.tensor([0, 0, 5, 5, 6, 10, 20, 26, 26, 27])  # none, one and many
    assert_all_bounded(with_gradients(inputs, backend=backend), truth(inputs))


@every_backend_and_triton
@pytest.mark.parametrize("targets_per_row", [None, 2])
def test_rows_that_do_not_count_are_not_read(targets_per_row: int | None, backend: str) -> None:
    inputs = Problem(9, 6, 20, *(torch.float32,) * 3, ignored=0.4, targets_per_row=targets_per_row).make_inputs()
    each = targets_per_row or 1
    inputs["token_weight"].view(9, each)[0] = 0
    expected = with_gradients(inputs, backend=backend)
    out = ((inputs["targets"] == -100) | (inputs["token_weight"] == 0)).view(9, each).all(1)
    with torch.no_grad():
        inputs["hidden"][out] = torch.nan
    found = with_gradients(inputs, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not found[1][out].any()


@every_backend
@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_weights_may_be_negative_or_zero(sign: float, backend: str) -> None:
    inputs = case_named("float32 with bias, some ignored").make_inputs()
    inputs["token_weight"][::2] *= sign
    assert_all_bounded(with_gradients(inputs, backend=backend), truth(inputs))


@every_backend_and_triton
@pytest.mark.parametrize("name", ["all ignored", "no rows"])
def test_nothing_valid_is_zero_with_zero_gradients(name: str, backend: str) -> None:
    inputs = case_named(name).make_inputs()
    for weights in (inputs["token_weight"], None):
        loss, *gradients = with_gradients({**inputs, "token_weight": weights}, backend=backend)
        assert float(loss.detach()) == 0
        assert not any(bool(d.any()) for d in gradients)


@every_backend_and_triton
@pytest.mark.parametrize("target", [9, 10, -1, 2**40])
def test_a_label_outside_the_vocabulary_is_named(target: int, backend: str) -> None:
    inputs = Problem(6, 3, 9, *(torch.float32,) * 3).make_inputs()
    inputs["targets"][4] = target
    sentence = rf"targets must be from 0 to 8 or ignore_index -100, got {target} at position 4$"
    with pytest.raises(IndexError, match=f"^linear_cross_entropy: {sentence}"):
        linear_cross_entropy(**inputs, backend=backend)


@every_backend_and_triton
def test_huge_logits_and_one_hot_rows_are_finite(backend: str) -> None:
    hidden = (torch.eye(4) * 1e4).requires_grad_()
    weight = torch.eye(5, 4).requires_grad_()
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 0, 3]), backend=backend)
    assert float(loss.detach()) == 1e4 / 4  # only the third row is wrong, by 10,000
    loss.backward()
    assert torch.equal(weight.grad, torch.tensor([[0, 0, -2500, 0], *[[0] * 4] * 1, [0, 0, 2500, 0], *[[0] * 4] * 2]))


@every_backend_and_triton
def test_a_class_of_minus_infinity_is_impossible(backend: str) -> None:
    inputs = case_named("float32 with bias, some ignored").make_inputs()
    free = (inputs["targets"] != 128).nonzero()[:, 0]
    inputs["targets"][inputs["targets"] == 128] = 0
    shorter = {**inputs, "weight": inputs["weight"][:128], "bias": inputs["bias"][:128]}
    with torch.no_grad():
        inputs["bias"][128] = -torch.inf
    loss = linear_cross_entropy(**inputs, backend=backend)
    (dh,) = torch.autograd.grad(loss, inputs["hidden"])
    assert len(free)
    constant = {name: shorter[name].detach() for name in ("weight", "bias")}
    assert_all_bounded((loss, dh), truth({**shorter, **constant}))


@every_backend
def test_strides_and_alignment_do_not_matter(backend: str) -> None:
    inputs = case_named("float32 with bias, some ignored").make_inputs()
    expected = with_gradients(inputs, backend=backend)
    views = {
        "hidden": inputs["hidden"].detach().T.contiguous().T,
        "weight": torch.cat([inputs["weight"].detach()] * 2, 1)[:, :33],
        "targets": torch.cat([torch.tensor([7]), inputs["targets"]])[1:],
        "token_weight": torch.stack([inputs["token_weight"]] * 2, 1)[:, 0],
    }
    views = {
        name: value.requires_grad_(value.is_floating_point() and name != "token_weight")
        for name, value in views.items()
    }
    found = with_gradients({**inputs, **views}, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    one = inputs["hidden"].detach()[:1]
    repeated = {**inputs, "hidden": one.expand(40, 33)}
    assert torch.equal(
        linear_cross_entropy(**repeated, backend=backend),
        linear_cross_entropy(**{**inputs, "hidden": one.repeat(40, 1)}, backend=backend),
    )


@every_backend
def test_nothing_of_the_callers_is_overwritten(backend: str) -> None:
    for case in NARROW_CASES:
        inputs = case.make_inputs()
        before = {name: value.detach().clone() for name, value in inputs.items() if isinstance(value, Tensor)}
        with_gradients(inputs, backend=backend)
        assert all(torch.equal(inputs[name], value) for name, value in before.items())


# Types


def test_autocast_may_lower_the_product_and_nothing_else() -> None:
    inputs = case_named("float32 with bias, some ignored").make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(**inputs)
    assert loss.dtype == torch.float32
    found = torch.autograd.grad(loss, leaves(inputs))
    assert_all_bounded((loss, *found), truth(inputs, product=torch.bfloat16))


def test_gradients_have_the_types_of_their_tensors() -> None:
    inputs = case_named("bfloat16 hidden, float32 weight").make_inputs()
    _, dh, dW = with_gradients(inputs)
    assert (dh.dtype, dW.dtype) == (torch.bfloat16, torch.float32)


# torch.library, torch.compile


def operator_arguments(inputs: dict[str, Any], needs: list[bool], wants_details: bool) -> tuple[Any, ...]:
    names = ("hidden", "weight", "bias", "targets", "token_weight", "target_offsets")
    product = torch.promote_types(inputs["hidden"].dtype, inputs["weight"].dtype)
    tensors = (None if inputs.get(name) is None else inputs[name].detach() for name in names)
    return *tensors, -100, 0.1, 0.01, 2.0, product, None, None, wants_details, needs


@every_case
def test_operators_pass_opcheck(case: Case) -> None:
    inputs = case.make_inputs()
    needs = list(case.problem.needs)
    for wants_details in (False, True):
        arguments = operator_arguments(inputs, needs, wants_details)
        torch.library.opcheck(torch.ops.mrtkern.linear_cross_entropy.default, arguments)
    made = torch.ops.mrtkern.linear_cross_entropy(*arguments)[5:]
    backward = (torch.tensor(2.0, dtype=made[0].dtype), *made, *arguments[:3], needs)
    torch.library.opcheck(torch.ops.mrtkern.linear_cross_entropy_backward.default, backward)


@pytest.mark.parametrize("name", ["float32 with bias, some ignored", "bfloat16", "float32, several targets per row"])
def test_compiles_as_one_graph_with_its_gradient(name: str) -> None:
    torch._dynamo.reset()
    inputs = case_named(name).make_inputs()

    def function() -> Tensor:
        return linear_cross_entropy(**inputs, label_smoothing=0.1) * 3

    expected = torch.autograd.grad(function(), leaves(inputs))
    loss = torch.compile(function, fullgraph=True, backend="aot_eager")()
    for _ in range(2):
        found = torch.autograd.grad(loss, leaves(inputs), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# Refusals


def refused(match: str, **changes: Any) -> None:
    inputs = {**case_named("float32 with bias, some ignored").make_inputs(), **changes}
    with pytest.raises((ValueError, TypeError), match=f"^linear_cross_entropy: {match}"):
        linear_cross_entropy(**inputs)


def test_bad_arguments_are_named_in_one_sentence() -> None:
    refused(r"hidden must be \[T, D\], got \[40\]", hidden=torch.ones(40))
    refused(r"weight must be \[V, D\] with the features D of hidden, got \[9, 3\] with hidden", weight=torch.ones(9, 3))
    refused("weight must have at least one row", weight=torch.ones(0, 33))
    refused("targets must be int64, got torch.int32", targets=torch.zeros(40, dtype=torch.int32))
    refused("targets must have one entry per row", targets=torch.zeros(41, dtype=torch.int64))
    refused("token_weight must have one entry per target", token_weight=torch.ones(3))
    refused("token_weight must not require a gradient", token_weight=torch.ones(40, requires_grad=True))
    refused("bias must have one entry per row of weight", bias=torch.ones(3))
    refused("softcap must be None or positive and finite, got 0", softcap=0.0)
    refused("label_smoothing must be from 0 to 1, got 2", label_smoothing=2.0)
    refused("z_loss must be finite and not negative, got inf", z_loss=float("inf"))
    refused("hidden must be a tensor, an array or a list of numbers, got int", hidden=3)
    offsets = torch.full((41,), 40)
    refused("target_offsets must begin with 0, got 40", target_offsets=offsets)
    refused("backend 'cuda' cannot run this: is not written in CUDA .*; it has .*reference", backend="cuda")
    flat = case_named("float32 with bias, some ignored").make_inputs()["weight"].detach().flatten()
    refused(r"weight must be \[V, D\], which FSDP1 flattens outside its forward: call inside .*, got \[", weight=flat)


def test_heads_that_are_not_one_matrix_are_refused_with_the_mend() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = torch.nn.Linear(33, 129)

    refused("weight must be a torch.Tensor such as lm_head.weight, got Linear", weight=torch.nn.Linear(33, 129))
    refused("weight must be one matrix, so merge the adapter or leave lm_head out of target_modules", weight=Wrapped())


def test_what_cannot_fit_is_refused_before_it_is_allocated() -> None:
    hidden, weight = torch.ones(1, 1).expand(2, 2**20), torch.ones(1, 1, requires_grad=True).expand(2**30, 2**20)
    with pytest.raises(MemoryError, match=r"^linear_cross_entropy: hidden and weight must leave room for \d+ bytes"):
        linear_cross_entropy(hidden, weight, torch.zeros(2, dtype=torch.int64))


@needs_cpu_backend
def test_float64_runs_on_the_reference() -> None:
    problem = case_named("float64 with bias").problem
    assert _dispatch.choose("linear_cross_entropy", None, problem) == "reference"
    narrow = replace(problem, hidden=torch.float32, weight=torch.float32, product=torch.float32)
    assert _dispatch.choose("linear_cross_entropy", None, narrow) == "cpu"
    has_triton = not isinstance(_dispatch.load("linear_cross_entropy", "triton"), str)
    on_cuda = _dispatch.choose("linear_cross_entropy", None, replace(narrow, device="cuda"))
    assert on_cuda == ("triton" if has_triton else "reference")


# Details


@every_backend
@pytest.mark.parametrize("targets_per_row", [None, 3])
def test_details_are_those_of_the_logits(targets_per_row: int | None, backend: str) -> None:
    problem = Problem(40, 33, 129, *(torch.float32,) * 3, ignored=0.4, targets_per_row=targets_per_row)
    inputs = problem.make_inputs()
    E = len(inputs["targets"])
    inputs["token_weight"][::4] = 0  # they count in the details all the same
    groups = {"offsets": torch.tensor([0, 7, 7, 15, E]), "prompt": torch.tensor([5, 5, 2, 2]), "return_details": True}
    found = linear_cross_entropy(**inputs, **groups, backend=backend)
    z = inputs["hidden"].double() @ inputs["weight"].double().T
    rest = {name: inputs[name] for name in ("targets", "token_weight", "target_offsets") if name in inputs}
    expected = cross_entropy(z, **rest, **groups)
    assert isinstance(found, LossDetails)
    assert isinstance(expected, LossDetails)
    for field in fields(LossDetails):
        got, value = getattr(found, field.name).detach(), getattr(expected, field.name).detach()
        if got.is_floating_point():
            oracle.assert_summed(got, value, E + 129 + 33, float(value.abs().max()) + 10.0)
        else:
            assert torch.equal(got, value)
    assert_all_bounded(torch.autograd.grad(found.loss, leaves(inputs)), truth(inputs)[1:])


def test_padded_responses_are_packed_ones() -> None:
    inputs = case_named("float32 with bias, some ignored").make_inputs()
    packed = linear_cross_entropy(**inputs, return_details=True, offsets=torch.arange(0, 41, 8))
    padded = {name: inputs[name].view(5, 8) for name in ("targets", "token_weight")}
    padded["hidden"] = inputs["hidden"].view(5, 8, 33)
    found = linear_cross_entropy(**{**inputs, **padded}, return_details=True)
    for field in fields(LossDetails):
        assert torch.equal(getattr(found, field.name), getattr(packed, field.name)) or field.name.endswith("variance")
    for got, value in zip(
        torch.autograd.grad(found.loss, leaves(inputs)), torch.autograd.grad(packed.loss, leaves(inputs)), strict=True
    ):
        assert torch.equal(got, value)


def test_the_module_runs_on_hidden_states() -> None:
    inputs = case_named("float32 with bias, some ignored").make_inputs()
    groups = {"offsets": torch.tensor([0, 7, 7, 15, 40]), "prompt": torch.tensor([5, 5, 2, 2])}
    crit = MultiResponseCrossEntropyLoss("prompt", label_smoothing=0.1)
    w = response_weights(inputs["targets"], "prompt", **groups)
    found = crit(inputs["hidden"], inputs["targets"], weight=inputs["weight"], bias=inputs["bias"], **groups)
    assert torch.equal(found, linear_cross_entropy(**{**inputs, "token_weight": w}, label_smoothing=0.1))
