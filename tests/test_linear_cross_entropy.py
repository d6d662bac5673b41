"""linear_cross_entropy: values, gradients, memory, work, limits. Cases from problem.CASES, tolerances from oracle."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import Competitor, Spread, interleave
from mrtkern import _dispatch
from mrtkern.ops.linear_cross_entropy import chunks
from mrtkern.ops.linear_cross_entropy.op import linear_cross_entropy
from mrtkern.ops.linear_cross_entropy.problem import CASES, LOGITS_BYTES, Case, Problem, chunk_rows, memory
from tests import oracle

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
every_backend = pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_cpu_backend), "reference"])
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


# Values


@every_option
@every_case
def test_loss_and_gradients_are_those_of_the_definition(case: Case, options: dict[str, Any]) -> None:
    inputs = case.make_inputs()
    found = with_gradients(inputs, **options, backend="reference")
    assert_all_summed(found, truth(inputs, **options), inputs)
    assert [value.dtype for value in found[1:]] == [value.dtype for value in leaves(inputs)]


@needs_cpu_backend
@every_option
@pytest.mark.parametrize("case", NARROW_CASES, ids=lambda case: case.name)
def test_cpu_backend_errs_like_the_definition(case: Case, options: dict[str, Any]) -> None:
    inputs = case.make_inputs()
    found = with_gradients(inputs, **options, backend="cpu")
    assert_all_summed(found, truth(inputs, **options), inputs)


@needs_cpu_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_backend_errs_at_most_twice_as_much_as_the_reference(dtype: torch.dtype) -> None:
    inputs = Problem(200, 64, 1000, dtype, dtype, dtype, ignored=0.2).make_inputs()
    same = with_gradients(inputs, backend="reference")
    for got, value, reference in zip(with_gradients(inputs, backend="cpu"), truth(inputs), same, strict=True):
        oracle.assert_close(got.detach(), value, reference.detach())


@every_backend
def test_without_weights_it_is_the_mean_of_torch(backend: str) -> None:
    inputs = case_named("float32 with bias, some ignored").make_inputs()
    weight = inputs.pop("token_weight")
    found = with_gradients(inputs, backend=backend)
    z = F.linear(inputs["hidden"].double(), inputs["weight"].double(), inputs["bias"].double())
    mean = F.cross_entropy(z, inputs["targets"])
    expected = (mean.detach(), *torch.autograd.grad(mean, leaves(inputs)))
    count = (inputs["targets"] != -100).sum()
    assert_all_summed(found, expected, {**inputs, "token_weight": torch.full_like(weight, 1 / count)})


@every_backend
@pytest.mark.parametrize("size", CHUNKS)
def test_chunk_size_changes_nothing_but_rounding(size: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("float32 with bias, some ignored", "float32, several targets per row"):
        inputs = case_named(name).make_inputs()
        module = _dispatch.load("linear_cross_entropy", backend)
        monkeypatch.setattr(module, "chunk_size", lambda problem: size)
        assert_all_summed(with_gradients(inputs, backend=backend), truth(inputs), inputs)


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
    program = naive(**inputs)
    theirs = (program, *torch.autograd.grad(program, leaves(inputs)))
    found, expected = with_gradients(inputs, backend="cpu"), truth(inputs)
    # A rounded logit moves its row's lse and its target by as much as the logit is rounded.
    largest = float(F.linear(*(inputs[name].detach().double().abs() for name in ("hidden", "weight", "bias"))).max())
    steps = 2 * int(oracle.roundoff(dtype) / oracle.roundoff(torch.float32))
    oracle.assert_summed(found[0].detach(), expected[0], steps, largest * float(inputs["token_weight"].sum()))
    for got, value, narrow in zip(found[1:], expected[1:], theirs[1:], strict=True):
        oracle.assert_close(got.detach(), value, narrow.detach().to(got.dtype))


def test_float16_gradients_survive_a_loss_scale() -> None:
    inputs = Problem(32, 8, 20, *(torch.float16,) * 3).make_inputs()
    inputs["token_weight"] *= 1e-7  # below the smallest float16
    scale = 2.0**16
    loss = linear_cross_entropy(**inputs) * scale
    expected = truth({**inputs, "token_weight": inputs["token_weight"] * scale})[1:]
    found = torch.autograd.grad(loss, leaves(inputs))
    assert_all_summed((loss / scale, *found), (truth(inputs)[0], *expected), inputs)


# Work and memory


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


@needs_cpu_backend
@pytest.mark.parametrize("ignored", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("needs", [(True, True, False), (True, False, False), (False, True, False), (False,) * 3])
def test_three_products_at_most_and_only_of_rows_that_count(needs: tuple[bool, bool, bool], ignored: float) -> None:
    problem = Problem(64, 24, 100, *(torch.float32,) * 3, needs=needs, ignored=ignored)
    inputs = problem.make_inputs()
    assert product_flops(lambda: linear_cross_entropy(**inputs, backend="cpu")) == problem.flops
    zero = {**inputs, "token_weight": inputs["token_weight"] * (torch.arange(64) < 16)}
    kept = int(((inputs["targets"] != -100) & (torch.arange(64) < 16)).sum())
    if kept >= chunks.LEAST_ROWS or not kept:
        found = product_flops(lambda: linear_cross_entropy(**zero, backend="cpu"))
        assert found == replace(problem, T=kept, ignored=0.0).flops


@needs_cpu_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False), (False,) * 3])
@pytest.mark.parametrize(("T", "D", "V"), [(3000, 16, 9000), (500, 300, 20000)])  # logits weigh, dW weighs
def test_memory_stays_within_the_formula(
    T: int, D: int, V: int, needs: tuple[bool, bool, bool], dtype: torch.dtype
) -> None:
    problem = Problem(T, D, V, dtype, dtype, dtype, needs=needs, has_bias=needs[2])
    inputs = problem.make_inputs()
    size, product = CPU.chunk_size(problem), CPU.multiplies(problem)
    peak, _ = oracle.peak_bytes(lambda: linear_cross_entropy(**inputs, backend="cpu"))
    gradients = sum(value.nbytes for value in leaves(inputs)) if dtype == torch.float32 else 0
    assert peak - gradients <= memory(problem, size, product, T)
    assert size * V * product.itemsize <= LOGITS_BYTES
    assert size < T


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", ["2,048 x 1,024 x 32,000", "2,048 x 896 x 151,936"])
def test_large_heads_need_at_most_256_mib_beyond_gradients_and_one_accumulator(size: str, name: str) -> None:
    problem = case_named(f"{size} {name}").problem
    for product in {torch.float32, problem.product}:
        accumulator = 4 * problem.V * problem.D if problem.weight != torch.float32 else 0
        assert memory(problem, chunk_rows(problem, product.itemsize), product, problem.T) - accumulator <= 256 << 20


def test_chunks_are_equal_and_within_their_bounds() -> None:
    for T in (1, 15, 16, 17, 1000, 2048, 100_000):
        for V in (10, 32_000, 10_000_000):
            problem = Problem(T, 64, V, *(torch.float32,) * 3)
            size = chunk_rows(problem, 4)
            assert 1 <= size <= T
            assert size <= chunks.LEAST_ROWS or size * V * 4 <= LOGITS_BYTES
            assert T - size * (-(-T // size) - 1) > size - -(-T // size)  # the last is smaller by less than a row each


@pytest.mark.full
@needs_cpu_backend
def test_the_chosen_chunk_is_near_the_best_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(2048, 1024, 16_000, *(torch.float32,) * 3)
    inputs, chosen = problem.make_inputs(), CPU.chunk_size(problem)

    def run(size: int) -> None:
        monkeypatch.setattr(CPU, "chunk_size", lambda problem: size)
        with_gradients(inputs, backend="cpu")

    sizes = {64, 128, 256, 512, 1024, 2048, chosen}
    seconds = interleave([Competitor(str(size), partial(run, size)) for size in sorted(sizes)], 5)
    medians = {int(name): Spread.of(times).median for name, times in seconds.items()}
    assert medians[chosen] <= 1.1 * min(medians.values()), medians


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
    assert_all_summed((found, *gradients), truth(inputs), inputs)


@every_backend
def test_several_targets_of_a_row_are_as_many_rows(backend: str) -> None:
    inputs = case_named("float32, several targets per row").make_inputs()
    inputs["target_offsets"] = torch.tensor([0, 0, 5, 5, 6, 10, 20, 26, 26, 27])  # none, one and many
    assert_all_summed(with_gradients(inputs, backend=backend), truth(inputs), inputs)


@every_backend
def test_rows_that_do_not_count_are_not_read(backend: str) -> None:
    inputs = case_named("float32 with bias, some ignored").make_inputs()
    expected = with_gradients(inputs, backend=backend)
    inputs["token_weight"][0] = 0
    inputs["targets"][0] = 1
    expected = with_gradients(inputs, backend=backend)
    out = (inputs["targets"] == -100) | (inputs["token_weight"] == 0)
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
    assert_all_summed(
        with_gradients(inputs, backend=backend), truth(inputs), {**inputs, "token_weight": inputs["token_weight"].abs()}
    )


@every_backend
@pytest.mark.parametrize("name", ["all ignored", "no rows"])
def test_nothing_valid_is_zero_with_zero_gradients(name: str, backend: str) -> None:
    inputs = case_named(name).make_inputs()
    for weights in (inputs["token_weight"], None):
        loss, *gradients = with_gradients({**inputs, "token_weight": weights}, backend=backend)
        assert float(loss.detach()) == 0
        assert not any(bool(d.any()) for d in gradients)


@every_backend
@pytest.mark.parametrize("target", [9, 10, -1, 2**40])
def test_a_label_outside_the_vocabulary_is_named(target: int, backend: str) -> None:
    inputs = Problem(6, 3, 9, *(torch.float32,) * 3).make_inputs()
    inputs["targets"][4] = target
    sentence = rf"targets must be from 0 to 8 or ignore_index -100, got {target} at position 4$"
    with pytest.raises(IndexError, match=f"^linear_cross_entropy: {sentence}"):
        linear_cross_entropy(**inputs, backend=backend)


@every_backend
def test_huge_logits_and_one_hot_rows_are_finite(backend: str) -> None:
    hidden = (torch.eye(4) * 1e4).requires_grad_()
    weight = torch.eye(5, 4).requires_grad_()
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 0, 3]), backend=backend)
    assert float(loss.detach()) == 1e4 / 4  # only the third row is wrong, by 10,000
    loss.backward()
    assert torch.equal(weight.grad, torch.tensor([[0, 0, -2500, 0], *[[0] * 4] * 1, [0, 0, 2500, 0], *[[0] * 4] * 2]))


@every_backend
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
    assert_all_summed(
        (loss, dh),
        truth({**shorter, "weight": shorter["weight"].detach(), "bias": shorter["bias"].detach()})[:2],
        {**shorter, "weight": shorter["weight"].detach(), "bias": shorter["bias"].detach()},
    )


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
        program = naive(**inputs)
    assert loss.dtype == torch.float32
    found, narrow = torch.autograd.grad(loss, leaves(inputs)), torch.autograd.grad(program, leaves(inputs))
    for got, value, theirs in zip((loss, *found), truth(inputs), (program, *narrow), strict=True):
        oracle.assert_close(got.detach(), value, theirs.detach().to(got.dtype))


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
    refused("z_loss must be finite, got inf", z_loss=float("inf"))
    refused("hidden must be a torch.Tensor, got int", hidden=3)
    offsets = torch.full((41,), 40)
    refused("target_offsets must begin with 0, got 40", target_offsets=offsets)
    refused("backend 'cuda' cannot run this", backend="cuda")


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
    assert _dispatch.choose("linear_cross_entropy", None, replace(narrow, device="cuda")) == "reference"
