"""cross_entropy as an operator: autograd, in place, compilation, details, refusals, choices."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from mrtkern import _device, _dispatch
from mrtkern.ops.cross_entropy import reference
from mrtkern.ops.cross_entropy.details import LossDetails
from mrtkern.ops.cross_entropy.op import cross_entropy
from mrtkern.ops.cross_entropy.problem import Case, Options, Problem
from tests.tools import bounds, on_device, oracle
from tests.tools.losses import (
    NARROW,
    SOME_CASES,
    details_of,
    every,
    every_backend,
    needs_cpu_backend,
    rows,
    truth_of,
    with_gradient,
)

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
    loss = cross_entropy(leaf * 1, inputs["targets"], inplace=inplace, backend=backend)
    assert torch.equal(torch.autograd.grad(loss * 2, leaf, retain_graph=True)[0], gradient * 2)
    with pytest.raises(RuntimeError, match="cross_entropy: backward must run once when the loss is scaled"):
        torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize("change", ["zero", "add"])
def test_a_second_backward_never_counts_what_was_done_to_the_first_gradient(change: str) -> None:
    leaf = rows(6, 40)["logits"].requires_grad_()
    loss = cross_entropy(leaf, rows(6, 40)["targets"])
    loss.backward(retain_graph=True)
    assert leaf.grad is not None
    leaf.grad.zero_() if change == "zero" else leaf.grad.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_loss_scale_beyond_float16_scales_the_gradient(is_compiled: bool, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    inputs = rows(6, 40, dtype)
    weight, scale = torch.full((6,), 0.01), 2.0**17 * (1 + 2.0**-9)  # neither float16 nor bfloat16
    leaf = inputs["logits"].clone().requires_grad_()

    def function(z: torch.Tensor) -> torch.Tensor:
        return cross_entropy(z, inputs["targets"], token_weight=weight) * scale

    found = (torch.compile(function, fullgraph=True, backend="aot_eager") if is_compiled else function)(leaf)
    (gradient,) = torch.autograd.grad(found, leaf)
    once = truth_of({**inputs, "token_weight": weight}).gradient.rounded(dtype)  # and once more when it is scaled
    bounds.assert_bounded(gradient, once * scale)


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
    for view in (inputs["logits"][:1].expand(4, 6), torch.randn(6, 4).T, torch._neg_view(inputs["logits"])):
        with pytest.raises(ValueError, match="logits must have adjacent columns and rows that do not overlap"):
            cross_entropy(view, inputs["targets"], inplace=True)
    padded = torch.randn(2, 3, 6)[:, :2]  # one after the other only in a copy
    with pytest.raises(ValueError, match="logits must have adjacent columns and rows that do not overlap"):
        cross_entropy(padded, inputs["targets"].view(2, 2), inplace=True)


def test_in_place_never_overwrites_a_leaf() -> None:
    """Neither itself nor a view of it, padded or not; without gradients it is nobody's parameter."""
    targets = rows(4, 6)["targets"]
    leaf, padded = torch.randn(4, 9, requires_grad=True), torch.randn(2, 2, 6, requires_grad=True)
    before, before_padded = leaf.detach().clone(), padded.detach().clone()
    for logits, y in ((leaf, targets), (leaf[:, 3:], targets), (padded, targets.view(2, 2)), (padded[0], targets[:2])):
        with pytest.raises(ValueError, match="inplace must be False for logits that are a leaf or its view"):
            cross_entropy(logits, y, inplace=True)
    assert torch.equal(leaf, before) and torch.equal(padded, before_padded)
    with torch.no_grad():
        cross_entropy(leaf[:, 3:], targets, inplace=True)
    assert not torch.equal(leaf, before)


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
    assert torch.equal(got, eager)


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
    with pytest.raises(IndexError, match=r"got 6 at position 2(\n|$)"):  # torch 2.6 adds a page
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
def test_the_order_of_responses_changes_nothing_but_rounding(backend: str) -> None:
    inputs, offsets, prompt = rows(12, 30), torch.tensor([0, 3, 4, 4, 9, 12]), torch.tensor([7, 3, 3, 7, 3])
    inputs["targets"][5] = -100
    order = torch.tensor([3, 0, 4, 2, 1])
    tokens = torch.cat([torch.arange(offsets[r], offsets[r + 1]) for r in order])
    given = {"offsets": torch.nn.functional.pad(offsets.diff()[order].cumsum(0), (1, 0)), "prompt": prompt[order]}
    other = {name: value[tokens] for name, value in inputs.items()}
    found = cross_entropy(**inputs, offsets=offsets, prompt=prompt, return_details=True, backend=backend)
    moved = cross_entropy(**other, **given, return_details=True, backend=backend)
    assert isinstance(found, LossDetails) and isinstance(moved, LossDetails)
    assert torch.equal(moved.response_nll, found.response_nll[order])
    assert torch.equal(moved.response_tokens, found.response_tokens[order])
    for name in ("loss", "prompt_loss", "within_variance", "between_variance", "accuracy", "entropy"):
        oracle.assert_summed(getattr(moved, name), getattr(found, name).double(), 1, 10.0)


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


BAD_ENDS = [[0, 3, 9], [-4, 2, 4], [0, 3, 2], [1, 2, 4], [0, 2, 3], [2**40, 2**41, 4]]


@every_backend
@pytest.mark.parametrize("ends", BAD_ENDS)
def test_details_of_offsets_that_do_not_fit_are_nan_on_a_device(
    ends: list[int], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There nobody reads them before they are used; nothing outside the targets may be."""
    monkeypatch.setattr(_device, "may_wait", lambda device, check=None: bool(check))
    inputs, given = rows(4, 6), {"return_details": True, "prompt": torch.tensor([3, 3]), "backend": backend}
    found = cross_entropy(**inputs, offsets=torch.tensor(ends), **given)
    assert isinstance(found, LossDetails) and bool(found.loss.isfinite())
    assert bool(
        torch.cat([found.response_nll, found.prompt_loss, found.accuracy[None], found.entropy[None]]).isnan().all()
    )


@pytest.mark.gpu
def test_details_have_the_same_bits_on_every_run() -> None:
    """10,000 responses of three prompts: atomic additions would come in another order every time."""
    count = 20 if on_device.IS_IMITATED else 10_000
    inputs = {name: value.cuda() for name, value in rows(count, 30).items()}
    given = {"offsets": torch.arange(count + 1).cuda(), "prompt": torch.arange(count).cuda() % 3}
    found = [cross_entropy(**inputs, **given, return_details=True) for _ in range(5)]
    assert all(
        torch.equal(getattr(one, name), getattr(found[0], name))
        for one in found for name in ("prompt_loss", "within_variance", "between_variance")
    )  # fmt: skip


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
        ({"z_loss": float("nan")}, "z_loss must be finite and not negative, got nan"),
        ({"z_loss": -0.1}, "z_loss must be finite and not negative, got -0.1"),
        ({"softcap": 0.0}, "softcap must be None or positive and finite, got 0.0"),
        ({"return_details": True}, "offsets must be given with return_details, unless targets are padded, got None"),
        ({"logits": torch.ones(3, 4).to_sparse()}, "logits must be dense, got torch.sparse_coo"),
        (
            {"logits": torch.ones(1, 3, 4), "targets": torch.ones(1, 3).long(), "token_weight": torch.ones(3, 1)},
            r"token_weight must have the shape \[1, 3\] of targets, got \[3, 1\]",
        ),
        ({"backend": "cuda"}, "backend 'cuda' cannot run this: is not written in CUDA .*; it has .*reference"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^cross_entropy: {sentence}$"):
        cross_entropy(**{**rows(3, 4), **changes})


def test_what_is_no_tensor_is_named() -> None:
    for name in ("logits", "targets"):
        with pytest.raises(TypeError, match=f"^cross_entropy: {name} must be a tensor, .*, got str$"):
            cross_entropy(**{**rows(3, 4), name: "123"})


@needs_cpu_backend
def test_the_choice_is_made_without_data() -> None:
    problem = Problem(8, 100, torch.float32)
    assert _dispatch.choose("cross_entropy", None, problem) == "cpu"
    on_cuda = "reference" if isinstance(_dispatch.load("cross_entropy", "triton"), str) else "triton"
    for changes, chosen in (
        ({"dtype": torch.float64}, "reference"),
        ({"device": "cuda"}, on_cuda),
        ({"device": "cuda", "dtype": torch.float64}, "reference"),
    ):
        assert _dispatch.choose("cross_entropy", None, replace(problem, **changes)) == chosen
    with pytest.raises(ValueError, match=r"cannot run this: needs float32, bfloat16 or float16, got torch\.float64"):
        _dispatch.choose("cross_entropy", "cpu", replace(problem, dtype=torch.float64))


def test_what_cannot_fit_is_refused_before_it_is_allocated() -> None:
    logits = torch.ones(1, 1).expand(2**22, 2**22)
    with pytest.raises(MemoryError, match=r"^cross_entropy: logits must leave room for \d{14,15} bytes"):
        cross_entropy(logits.requires_grad_(), torch.zeros(2**22, dtype=torch.int64))
    with pytest.raises(MemoryError, match=r"^cross_entropy: logits must leave room for \d{14,15} bytes"):
        cross_entropy(logits.detach(), torch.zeros(2**22, dtype=torch.int64))  # a copy with adjacent columns


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [Options(), Options(label_smoothing=0.1, z_loss=0.1, softcap=9.0)])
def test_memory_of_the_reference_stays_within_the_formula(options: Options, dtype: torch.dtype) -> None:
    problem = Problem(50, 2000, dtype, options=options, wants_grad=True)
    inputs = problem.make_inputs()
    gradient = torch.empty_like(inputs["logits"])
    arguments = (inputs["logits"].detach(), inputs["targets"], None, None, options, gradient, True)
    peak, _ = oracle.peak_bytes(lambda: reference.forward(*arguments))
    assert 0 < peak <= reference.memory(problem)
