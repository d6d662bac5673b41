"""similarity: values, gradients, limits, choices. Cases come from problem.CASES, tolerances from oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from mrtkern import _dispatch
from mrtkern.ops.similarity import reference
from mrtkern.ops.similarity.op import similarity
from mrtkern.ops.similarity.problem import CASES, METRICS, Case, Packed, Problem
from tests.tools import oracle

CPU = _dispatch.load("similarity", "cpu")
needs_cpu_backend = pytest.mark.skipif(isinstance(CPU, str), reason=f"compiled kernels: {CPU}")
COSINES = ("cosine", "shifted_cosine", "clamped_cosine")

TEST_CASES = [case for case in CASES if "test" in case.tags]
SMALL_CASES = [case for case in TEST_CASES if case.problem.pairs < 2000]
# One of each layout, and each layout without y: what differentiation and compilation tell apart.
LAYOUTS = ["dense", "dense with itself", "batched", "batched with itself float16", "packed with an empty group"]
LAYOUT_CASES = [case for case in TEST_CASES if case.name in LAYOUTS]

every_metric = pytest.mark.parametrize("metric", METRICS)
every_layout = pytest.mark.parametrize("case", LAYOUT_CASES, ids=lambda case: case.name)


def double(case: Case, metric: str) -> dict[str, Any]:
    """Inputs of a case in float64."""
    return replace(case.problem, dtype=torch.float64, metric=metric).make_inputs()


def differentiable(inputs: dict[str, Any]) -> list[torch.Tensor]:
    return [inputs[name].requires_grad_() for name in ("x", "y") if name in inputs]


@every_metric
@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_scores_are_the_definition_rounded_once(case: Case, metric: str) -> None:
    inputs = replace(case.problem, metric=metric, gamma=0.3).make_inputs()
    truth = oracle.similarity(**inputs)
    got = similarity(**inputs, backend="reference")
    assert got.dtype == case.problem.dtype
    oracle.assert_summed(got, truth.value, oracle.similarity_steps(case.problem.D), truth.magnitude)


def test_packed_groups_are_the_dense_results_one_after_the_other() -> None:
    case = next(case for case in TEST_CASES if case.name == "packed float64")
    inputs = case.make_inputs()
    assert case.problem.sizes is not None
    dense = [similarity(x, backend="reference").flatten() for x in inputs["x"].split(case.problem.sizes)]
    steps = 2 * oracle.similarity_steps(case.problem.D)  # both may err
    oracle.assert_summed(similarity(**inputs), torch.cat(dense), steps, 1.0)


def backends() -> list[Any]:
    return [pytest.param("cpu", marks=needs_cpu_backend), "reference"]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cosines_stay_in_their_range(dtype: torch.dtype, backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 7, generator=generator).to(dtype)
    x = torch.cat([x, -x, x])  # cosines of exactly 1 and -1, where rounding would leave the range
    offsets = torch.tensor([0, 120])
    cos, shifted, clamped = (similarity(x, metric=metric, offsets=offsets, backend=backend) for metric in COSINES)
    assert cos.min() >= -1
    assert cos.max() <= 1
    assert shifted.min() >= 0
    assert shifted.max() <= 1
    assert clamped.min() == 0
    assert clamped.max() <= 1


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(("metric", "value"), [("cosine", 0.0), ("shifted_cosine", 0.5), ("clamped_cosine", 0.0)])
def test_a_zero_row_has_cosine_zero_with_everything(metric: str, value: float, backend: str) -> None:
    x = torch.randn(5, 20)
    x[2] = 0
    s = similarity(x, metric=metric, offsets=torch.tensor([0, 5]), backend=backend).view(5, 5)
    assert bool((s[2] == value).all())
    assert bool((s[:, 2] == value).all())


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float16, 6e4),  # squares beyond the largest float16
        (torch.float16, 6e-8),  # the smallest float16: squares below it
        (torch.float32, 3e38),
        (torch.float32, 1e-44),
        (torch.bfloat16, 3e38),
        (torch.bfloat16, 1e-39),
    ],
)
def test_lengths_neither_overflow_nor_vanish(dtype: torch.dtype, size: float, backend: str) -> None:
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0]]).mul(size).to(dtype)
    s = similarity(x, offsets=torch.tensor([0, 3]), backend=backend)
    truth = torch.tensor([1, 0.5, 0, 0.5, 1, 0.5, 0, 0.5, 1], dtype=torch.float64)
    oracle.assert_summed(s, truth, oracle.similarity_steps(4), 1.0)


@pytest.mark.parametrize("size", [torch.finfo(torch.float64).max, 1e306, 1e300, 1e-300, 5e-324])
def test_lengths_of_float64_neither_overflow_nor_vanish(size: float) -> None:
    s = similarity(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) * size)
    oracle.assert_summed(s, torch.eye(2, dtype=torch.float64), oracle.similarity_steps(2), 1.0)


def test_rbf_keeps_its_digits_far_from_the_origin() -> None:
    x = torch.randint(0, 4, (6, 5)).float() + 2.0**20  # differences are exact, squares of rows are not
    truth = oracle.similarity(x, metric="rbf")
    oracle.assert_summed(similarity(x, metric="rbf"), truth.value, oracle.similarity_steps(5), truth.magnitude)


@every_metric
@pytest.mark.parametrize(
    ("x", "y", "shape"),
    [
        ((0, 4), (3, 4), (0, 3)),
        ((3, 4), (0, 4), (3, 0)),
        ((0, 4), None, (0, 0)),
        ((3, 0), (2, 0), (3, 2)),
        ((0, 3, 4), (0, 2, 4), (0, 3, 2)),
        ((2, 0, 4), None, (2, 0, 0)),
    ],
)
def test_empty_sizes_work(x: tuple[int, ...], y: tuple[int, ...] | None, shape: tuple[int, ...], metric: str) -> None:
    a = torch.zeros(x, requires_grad=True)
    s = similarity(a, None if y is None else torch.zeros(y), metric=metric)
    assert s.shape == shape
    s.sum().backward()
    assert a.grad is not None
    assert not a.grad.any()


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(("rows", "offsets", "size"), [(0, [0], 0), (0, [0, 0, 0], 0), (2, [0, 0, 2, 2], 4)])
def test_empty_groups_work(rows: int, offsets: list[int], size: int, backend: str) -> None:
    assert similarity(torch.ones(rows, 3), offsets=torch.tensor(offsets), backend=backend).shape == (size,)


@pytest.mark.parametrize("backend", backends())
def test_groups_without_features_have_cosine_zero(backend: str) -> None:
    s = similarity(torch.ones(3, 0), offsets=torch.tensor([0, 2, 3]), backend=backend)
    assert torch.equal(s, torch.zeros(5))


@pytest.mark.parametrize("backend", backends())
def test_strides_do_not_matter(backend: str) -> None:
    offsets = torch.tensor([0, 4, 4, 9])
    base = torch.randn(18, 26)
    views = [base[::2, ::2], base.T[:9, 5:], base[:1].expand(9, 26), base[:9, :1].expand(9, 7)]
    for view in views:
        expected = similarity(view.contiguous(), offsets=offsets, backend=backend)
        assert torch.equal(similarity(view, offsets=offsets, backend=backend), expected)


def test_strides_do_not_matter_with_two_matrices() -> None:
    base = torch.randn(8, 10)
    x, y = base.T, base[:1].expand(3, 10)[:, :8]
    expected = similarity(x.contiguous(), y.contiguous())
    oracle.assert_summed(similarity(x, y), expected, 2 * oracle.similarity_steps(8), 1.0)  # both may err


def test_nothing_of_the_callers_is_overwritten() -> None:
    for case in SMALL_CASES:
        for metric in METRICS:
            inputs = replace(case.problem, metric=metric, wants_grad=True).make_inputs()
            before = {name: inputs[name].detach().clone() for name in ("x", "y") if name in inputs}
            similarity(**inputs).sum().backward()
            assert all(torch.equal(inputs[name], value) for name, value in before.items())


def test_autocast_does_not_lower_the_products() -> None:
    x = torch.randn(6, 8, requires_grad=True)
    expected = similarity(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        s = similarity(x)
        assert torch.equal(s, expected)
        assert torch.equal(torch.autograd.grad(s.square().sum(), x)[0], gradient)


@every_metric
@every_layout
def test_gradient_is_the_derivative(case: Case, metric: str) -> None:
    problem = replace(case.problem, D=min(case.problem.D, 6))  # every entry is moved
    inputs = double(replace(case, problem=problem), metric)
    names = [name for name in ("x", "y") if name in inputs]

    def function(*rows: torch.Tensor) -> torch.Tensor:
        return similarity(**{**inputs, **dict(zip(names, rows, strict=True))})

    assert torch.autograd.gradcheck(function, differentiable(inputs))


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradient_in_narrow_types_is_summed_wide_and_rounded_once(dtype: torch.dtype, metric: str) -> None:
    x, y = torch.randn(7, 9).to(dtype), torch.randn(5, 9).to(dtype)
    grad = torch.randn(7, 5).to(dtype)
    dx, dy = reference.backward(grad, x, y, None, metric, 0.1, True, True)
    wide = reference.backward(grad.double(), x.double(), y.double(), None, metric, 0.1, True, True)
    # Sums over rows and features, each term at most |grad| times the longest row, or over the shortest length.
    longest, shortest = float(torch.cat([x, y]).double().norm(dim=1).max()), float(torch.cat([x, y]).norm(dim=1).min())
    magnitude = float(grad.double().abs().sum()) * (longest if metric in ("dot", "rbf") else 1 / shortest)
    for got, truth in zip((dx, dy), wide, strict=True):
        assert got is not None
        assert truth is not None
        assert got.dtype == dtype
        oracle.assert_summed(got, truth, oracle.similarity_steps(9), magnitude)


@pytest.mark.parametrize("metric", COSINES)
def test_gradient_of_a_zero_row_is_zero(metric: str) -> None:
    x = torch.rand(5, 4) + 0.1  # no negative cosine: a clamped one would have no gradient either
    x[1] = 0
    x.requires_grad_()
    (similarity(x, metric=metric) * torch.randn(5, 5)).sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
    assert not x.grad[1].any()
    assert bool(x.grad[0].any())


def test_gradient_of_tiny_and_huge_rows_is_finite_or_honestly_infinite() -> None:
    x = torch.tensor([[1e-44, 0.0], [3e38, 3e38], [1.0, 2.0]], requires_grad=True)
    similarity(x).sum().backward()
    assert x.grad is not None
    assert not x.grad.isnan().any()
    assert x.grad[0, 1] == torch.inf  # 1 / |x| times a number of order 1, beyond float32
    assert bool(torch.isfinite(x.grad[1:]).all())


def test_gradient_only_where_asked() -> None:
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)
    similarity(x, y).sum().backward()
    assert x.grad is not None
    assert y.grad is None
    similarity(y, x).sum().backward()
    assert y.grad is None
    assert not similarity(y).requires_grad
    with torch.no_grad():
        assert not similarity(x).requires_grad


@every_metric
@pytest.mark.parametrize("name", ["x", "y"])
def test_forward_mode_is_refused_not_taken_for_a_derivative_of_zero(name: str, metric: str) -> None:
    inputs = Problem("dense", 1, 5, 4, 3, torch.float32, metric=metric).make_inputs()
    rows = inputs.pop(name)
    sentence = f"^similarity: {name} must be differentiated by backward, got a tangent of forward mode$"
    with pytest.raises(RuntimeError, match=sentence):
        torch.func.jvp(lambda value: similarity(**inputs, **{name: value}), (rows,), (rows,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=sentence):
        similarity(**inputs, **{name: forward_ad.make_dual(rows, rows)})


@every_layout
def test_double_backward_is_refused_in_one_sentence(case: Case) -> None:
    inputs = double(case, "cosine")
    rows = differentiable(inputs)
    (gradient, *_) = torch.autograd.grad(similarity(**inputs).square().sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="similarity: x and y must be differentiated once at most, got a double"):
        gradient.sum().backward()


def operator_arguments(inputs: dict[str, Any]) -> tuple[Any, ...]:
    return (inputs["x"], inputs.get("y"), inputs.get("offsets"), inputs["metric"], inputs["gamma"])


@every_metric
@every_layout
def test_operators_pass_opcheck(case: Case, metric: str) -> None:
    inputs = replace(case.problem, metric=metric).make_inputs()
    arguments = operator_arguments(inputs)
    torch.library.opcheck(torch.ops.mrtkern.similarity.default, (*arguments, None, False))
    grad = torch.ones_like(similarity(**inputs))
    backward = (grad, *arguments, None, True, "y" in inputs)
    torch.library.opcheck(torch.ops.mrtkern.similarity_backward.default, backward)


def test_fake_tensors_have_the_shapes_of_real_ones() -> None:
    for case in TEST_CASES:
        if case.problem.kind != "packed":
            inputs = case.make_inputs()
            real = similarity(**inputs)
            with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
                fake = similarity(**inputs)
            assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)  # without it torch 2.6 breaks the graph
@every_layout
def test_compiles_as_one_graph_with_its_gradient(case: Case) -> None:
    torch._dynamo.reset()
    inputs = double(case, "shifted_cosine")
    rows = differentiable(inputs)

    def function() -> torch.Tensor:
        return similarity(**inputs).square().sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(function(), rows)
    loss = compiled()
    for got, eager in zip(torch.autograd.grad(loss, rows), expected, strict=True):
        assert torch.equal(got, eager)


def test_a_parameter_stays_in_the_graph() -> None:
    x = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    compiled = torch.compile(lambda x: similarity(x).sum(), fullgraph=True, backend="aot_eager")
    (found,), (expected,) = (
        torch.autograd.grad(function(x), x) for function in (compiled, lambda x: similarity(x).sum())
    )
    assert torch.equal(found, expected)


def test_compiled_call_refuses_bad_values_too() -> None:
    torch._dynamo.reset()
    x = torch.ones(3, 2)
    x[1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"got nan in row 1(\n|$)"):
        torch.compile(similarity, fullgraph=True, backend="aot_eager")(x)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_the_first_row_that_is_not_finite_is_named(metric: str, value: float, dtype: torch.dtype, backend: str) -> None:
    x = torch.ones(40, 19, dtype=dtype)
    x[30, 2] = torch.nan
    x[17, 18] = value
    with pytest.raises(ValueError, match=f"^similarity: x must be finite, got {value} in row 17$"):
        similarity(x, metric=metric, offsets=torch.tensor([0, 9, 9, 25, 40]), backend=backend)


def test_a_bad_row_of_y_is_named_and_rows_count_through_the_batch() -> None:
    x, y = torch.ones(2, 3, 4), torch.ones(2, 5, 4)
    y[1, 2, 0] = torch.inf
    with pytest.raises(ValueError, match=r"^similarity: y must be finite, got inf in row 7$"):
        similarity(x, y)


@pytest.mark.parametrize(
    ("x", "arguments", "sentence"),
    [
        ((4, 3), {"y": (4, 2)}, r"x and y must have the same number of features D, got x \[4, 3\] and y \[4, 2\]"),
        ((4, 3), {"y": (1, 4, 3)}, r"x and y must be \[M, D\] and \[N, D\], or .*, got x \[4, 3\] and y \[1, 4, 3\]"),
        ((2, 4, 3), {"y": (3, 4, 3)}, r"x and y must be .*, got x \[2, 4, 3\] and y \[3, 4, 3\]"),
        ((4,), {}, r"x must be \[M, D\] or \[B, M, D\], got \[4\]"),
        ((4, 3), {"y": (4, 3), "offsets": [0, 4]}, r"y must be None with offsets, got \[4, 3\]"),
        ((1, 4, 3), {"offsets": [0, 4]}, r"x must be \[T, D\] with offsets, got \[1, 4, 3\]"),
        ((4, 3), {"offsets": [1, 4]}, "offsets must begin with 0, got 1"),
        ((4, 3), {"offsets": [0, 3]}, "offsets must end with the number of rows 4, got 3"),
        ((4, 3), {"offsets": [0, 3, 2, 4]}, "offsets must never descend, got 3 then 2 at group 1"),
        ((4, 3), {"metric": "cos"}, "metric must be one of cosine, dot, .*, got 'cos'"),
        ((4, 3), {"gamma": 0.0}, "gamma must be positive and finite, got 0.0"),
        ((4, 3), {"gamma": float("nan")}, "gamma must be positive and finite, got nan"),
        ((4, 3), {"gamma": 1e39}, r"gamma must be a float32 for x of torch\.float32, got 1e\+39"),
        ((4, 3), {"backend": "numpy"}, "backend must be one of cuda, triton, cpu, reference, got 'numpy'"),
    ],
)
def test_bad_arguments_are_named(x: tuple[int, ...], arguments: dict[str, Any], sentence: str) -> None:
    if "y" in arguments:
        arguments = {**arguments, "y": torch.ones(arguments["y"])}
    if "offsets" in arguments:
        arguments = {**arguments, "offsets": torch.tensor(arguments["offsets"])}
    with pytest.raises(ValueError, match=f"^similarity: {sentence}$"):
        similarity(torch.ones(x), **arguments)


def test_types_must_match() -> None:
    with pytest.raises(TypeError, match=r"^similarity: x must be a tensor, an array or a list of numbers, got str$"):
        similarity("1.0")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^similarity: gamma must be a number, got str$"):
        similarity(torch.ones(2, 2), gamma="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x must be float32, float64, bfloat16 or float16, got torch\.int64"):
        similarity(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"y must have the type of x, torch\.float32, got torch\.float64"):
        similarity(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.float64))


def test_what_cannot_fit_is_refused_before_it_is_allocated() -> None:
    x = torch.ones(1, 1).expand(2**24, 1)  # scores of 2**50 bytes
    with pytest.raises(MemoryError, match=r"^similarity: x must leave room for \d{16} bytes"):
        similarity(x)
    with pytest.raises(MemoryError, match=r"^similarity: x and y must leave room for \d{16} bytes"):
        similarity(x, x)


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("T", "N", "D"), [(2000, 10, 200), (600, 300, 4)])  # features weigh, scores weigh
@pytest.mark.parametrize("kind", ["dense", "packed"])
@pytest.mark.parametrize("wants_grad", [False, True])
def test_memory_stays_within_the_formula(
    T: int, N: int, D: int, kind: str, dtype: torch.dtype, metric: str, wants_grad: bool
) -> None:
    problem = Problem("dense", 1, T, N, D, dtype, metric=metric, wants_grad=wants_grad)
    if kind == "packed":
        problem = replace(problem, kind=kind, B=T // N, N=None, sizes=(N,) * (T // N))
    inputs = problem.make_inputs()
    x, y, offsets, *options = operator_arguments(inputs)
    y = None if y is None else y.detach()
    arguments = (x.detach(), y, None if offsets is None else Packed(offsets), *options)
    if wants_grad:
        grad = torch.ones_like(reference.forward(*arguments))
        peak, results = oracle.peak_bytes(lambda: reference.backward(grad, *arguments, True, "y" in inputs))
    else:
        peak, results = oracle.peak_bytes(lambda: (reference.forward(*arguments),))
    beyond = peak - sum(result.nbytes for result in results if result is not None)
    vectors = 64 * (problem.rows + problem.B + N * N)  # a few numbers per row, per group and per pair of one group
    assert 0 <= beyond <= reference.memory(problem, problem.pairs, N) + vectors


def example(**changes: Any) -> Problem:
    case = next(case for case in CASES if "bench" in case.tags)
    return replace(case.problem, **changes)


def test_the_choice_for_a_gpu_is_made_without_one() -> None:
    has_triton = not isinstance(_dispatch.load("similarity", "triton"), str)
    assert _dispatch.choose("similarity", None, example(device="cuda")) == ("triton" if has_triton else "reference")
    sentence = "similarity: backend 'cuda' cannot run this: is not written in CUDA .*; it has [a-z, ]*reference"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        _dispatch.choose("similarity", "cuda", example(device="cuda"))


@needs_cpu_backend
@pytest.mark.parametrize("kind", ["dense", "batched", "packed"])
@pytest.mark.parametrize("wants_grad", [False, True])
def test_every_layout_runs_on_the_compiled_kernel(kind: str, wants_grad: bool) -> None:
    assert _dispatch.choose("similarity", None, example(kind=kind, wants_grad=wants_grad)) == "cpu"
    assert _dispatch.choose("similarity", "reference", example()) == "reference"


@needs_cpu_backend
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"device": "mps"}, "needs a CPU tensor, got one on mps"),
        ({"dtype": torch.float64}, "needs float32, bfloat16 or float16, got torch.float64"),
        ({"is_aligned": False}, "needs rows that begin at a multiple of the size of their type"),
    ],
)
def test_what_the_compiled_kernel_cannot_run_is_refused_when_asked_for(changes: dict[str, Any], sentence: str) -> None:
    problem = example(**changes)
    assert _dispatch.choose("similarity", None, problem) == "reference"
    with pytest.raises(ValueError, match=f"similarity: backend 'cpu' cannot run this: {sentence}"):
        _dispatch.choose("similarity", "cpu", problem)


@needs_cpu_backend
def test_an_explicit_backend_is_refused_by_the_public_function_too() -> None:
    with pytest.raises(ValueError, match="similarity: backend 'cpu' cannot run this: needs float32"):
        similarity(torch.ones(2, 2, dtype=torch.float64), backend="cpu")


def test_cases_know_their_size() -> None:
    for case in SMALL_CASES:
        result = similarity(**case.make_inputs())
        assert result.numel() == case.problem.pairs
        assert case.problem.flops == 2 * result.numel() * case.problem.D
        gradient = replace(case.problem, wants_grad=True)
        assert gradient.flops > case.problem.flops
        assert gradient.bytes > case.problem.bytes


@pytest.mark.gpu
@every_metric
@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_reference_on_a_gpu_errs_like_the_reference_on_the_cpu(case: Case, metric: str) -> None:
    inputs = replace(case.problem, metric=metric).make_inputs()
    on_gpu = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    truth = oracle.similarity(**inputs)
    got = similarity(**on_gpu, backend="reference").cpu()
    oracle.assert_summed(got, truth.value, oracle.similarity_steps(case.problem.D), truth.magnitude)
