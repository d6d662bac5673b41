"""similarity for Triton: the cases of every backend in the interpreter and on a device, and what is its own."""

from __future__ import annotations

import mmap
from dataclasses import replace
from typing import Any

import pytest
import torch

from mrtkern import _dispatch
from mrtkern.ops.similarity.op import similarity
from mrtkern.ops.similarity.problem import CASES, METRICS, Case, Packed, Problem
from tests.tools import bounds, on_device, oracle

pytest.importorskip("mrtkern._triton", reason="needs Triton 3.4 or later")

from mrtkern import _triton
from mrtkern._triton import tiles
from mrtkern.ops.similarity import triton as backend

TEST_CASES = [case for case in CASES if "test" in case.tags and case.problem.dtype != torch.float64]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
every_device = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
every_metric = pytest.mark.parametrize("metric", METRICS)
every_case = pytest.mark.parametrize("case", TEST_CASES, ids=lambda case: case.name)


def run(inputs: dict[str, Any], backend: str, upstreams: list[torch.Tensor]) -> list[torch.Tensor]:
    """Scores, and the gradients of x and y for several upstream gradients each, on the CPU."""
    rows = {name: inputs[name].detach().clone().requires_grad_() for name in ("x", "y") if name in inputs}
    s = similarity(**{**inputs, **rows}, backend=backend)
    found = [torch.autograd.grad(s, list(rows.values()), up.to(s), retain_graph=True) for up in upstreams]
    return [s.detach().cpu(), *(torch.stack(parts).cpu() for parts in zip(*found, strict=True))]


def assert_bounded(inputs: dict[str, Any], device: str) -> None:
    """Scores and gradients are within the bound of their sums."""
    generator, shape = torch.Generator().manual_seed(3), similarity(**inputs, backend="reference").shape
    upstream = torch.randn(shape, generator=generator).to(inputs["x"].dtype)
    placed = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    found = run(placed, "triton", [upstream])
    for got, truth in zip(found, bounds.similarity(upstream, **inputs), strict=True):
        bounds.assert_bounded(got.view(truth.value.shape), truth)


@every_device
@every_metric
@every_case
def test_cases_are_within_the_bound_of_their_sums(case: Case, metric: str, device: str) -> None:
    inputs = replace(case.problem, metric=metric, gamma=0.05).make_inputs()
    assert_bounded(inputs, device)


def on(device: str, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(device) for tensor in tensors]


@every_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, 40])  # multiplied where they lie, copied
@pytest.mark.parametrize("size", ["largest", "smallest"])
def test_lengths_neither_overflow_nor_vanish(size: str, rows: int, dtype: torch.dtype, device: str) -> None:
    info = torch.finfo(dtype)
    unit = info.max / 4 if size == "largest" else info.smallest_normal * info.eps
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0]]).repeat(rows // 3 + 1, 1)
    x, offsets = on(device, (x[:rows] * unit).to(dtype), torch.tensor([0, rows]))
    s = similarity(x, offsets=offsets, backend="triton").cpu()
    truth = oracle.similarity(x.cpu(), offsets=offsets.cpu())
    oracle.assert_summed(s, truth.value, oracle.similarity_steps(4), truth.magnitude)


@every_device
@pytest.mark.parametrize(("metric", "value"), [("cosine", 0.0), ("shifted_cosine", 0.5), ("clamped_cosine", 0.0)])
@pytest.mark.parametrize("rows", [5, 40])
def test_a_zero_row_has_cosine_zero_and_no_gradient(rows: int, metric: str, value: float, device: str) -> None:
    x = torch.rand(rows, 20, generator=torch.Generator().manual_seed(0)) + 0.1
    x[2] = 0
    x = x.to(device).requires_grad_()
    s = similarity(x, metric=metric, offsets=torch.tensor([0, rows], device=device), backend="triton").view(rows, rows)
    assert bool((s[2] == value).all() and (s[:, 2] == value).all())
    (gradient,) = torch.autograd.grad(s.square().sum(), x)
    assert bool(torch.isfinite(gradient).all()) and not gradient[2].any() and bool(gradient[0].any())


@every_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_y", [False, True])
def test_gradients_of_small_matrices_are_those_of_rows_of_other_lengths(
    with_y: bool, dtype: torch.dtype, device: str
) -> None:
    """Squares of lengths about 2**-70 are lost in float32: rows are scaled by powers of two, which rounds nothing."""
    generator, unit = torch.Generator().manual_seed(0), 2.0**70
    x, y = on(device, *(torch.randn(2, rows, 20, generator=generator).to(dtype) for rows in (5, 7)))
    up = torch.randn(2, 5, 7 if with_y else 5, generator=generator)
    given = {"x": x, "y": y} if with_y else {"x": x}
    found = run(given, "triton", [up])
    short = run({name: (value.double() / unit).to(dtype) for name, value in given.items()}, "triton", [up])
    assert torch.equal(found[0], short[0])
    for gradient, other in zip(found[1:], short[1:], strict=True):
        assert torch.equal((gradient.double() * unit).to(dtype), other)


@every_device
@every_metric
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("rows", [5, 40])
def test_what_meets_a_row_that_is_not_finite_is_nan(rows: int, value: float, metric: str, device: str) -> None:
    x = torch.rand(rows, 20, generator=torch.Generator().manual_seed(0))
    x[3, 1] = value
    x, offsets = on(device, x, torch.tensor([0, rows]))
    s = similarity(x, metric=metric, offsets=offsets, backend="triton").view(rows, rows)
    is_bad = torch.arange(rows, device=device) == 3
    assert torch.equal(s.isnan(), is_bad[:, None] | is_bad[None, :])


@every_device
@every_metric
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("rows", [5, 40])
def test_gradients_of_what_met_a_row_that_is_not_finite_are_nan(
    rows: int, value: float, dtype: torch.dtype, metric: str, device: str
) -> None:
    x = torch.rand(rows + 3, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[1, 1] = value
    x, offsets = on(device, x, torch.tensor([0, rows, rows + 3]))
    x.requires_grad_()
    similarity(x, metric=metric, offsets=offsets, backend="triton").sum().backward()
    assert x.grad is not None
    assert bool(x.grad[:rows].isnan().all()) and bool(x.grad[rows:].isfinite().all())


@every_device
@every_metric
def test_gradients_are_nan_where_the_other_matrix_is_not_finite(metric: str, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = on(device, *(torch.rand(2, 6, 5, generator=generator) for _ in range(2)))
    y[1, 0, 2] = torch.nan
    x.requires_grad_()
    y.requires_grad_()
    similarity(x, y, metric=metric, backend="triton").sum().backward()
    assert x.grad is not None and y.grad is not None
    assert bool(x.grad[1].isnan().all()) and bool(x.grad[0].isfinite().all())
    assert (
        bool(y.grad[1, 0].isnan().all()) and bool(y.grad[0].isfinite().all()) and bool(y.grad[1, 1:].isfinite().all())
    )


@every_device
@pytest.mark.parametrize("rows", [12, 40])
def test_strides_do_not_matter(rows: int, device: str) -> None:
    base = torch.randn(rows, 70, generator=torch.Generator().manual_seed(0)).to(device)
    offsets = torch.tensor([0, rows], device=device)
    expected = similarity(base, offsets=offsets, backend="triton")
    layouts = [base.T.contiguous().T, torch.stack([base, base], 2)[..., 1], torch.cat([base, base], 1)[:, 70:]]
    for x in layouts:
        assert torch.equal(similarity(x, offsets=offsets, backend="triton"), expected)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.interpret),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.hardware]),  # 4 GiB
    ],
)
def test_rows_may_lie_further_apart_than_two_to_the_31_elements(device: str) -> None:
    space = torch.empty(2**31 + 40, dtype=torch.float16, device=device) if device == "cuda" else sparse_memory()
    x = space.as_strided((2, 32), (2**31, 1))
    x.copy_(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)))
    expected = similarity(x.contiguous(), backend="triton")
    assert torch.equal(similarity(x, backend="triton"), expected)
    options = {"offsets": torch.tensor([0, 2], device=device), "backend": "triton"}
    assert torch.equal(similarity(x, **options), similarity(x.contiguous(), **options))


def sparse_memory() -> torch.Tensor:
    """4 GiB of which only the pages that are touched exist."""
    return torch.frombuffer(mmap.mmap(-1, 2 * (2**31 + 40)), dtype=torch.float16)


@every_device
def test_a_matrix_with_itself_is_what_it_is_with_a_copy_of_itself(device: str) -> None:
    x = torch.randn(70, 40, generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(similarity(x, backend="triton"), similarity(x, x.clone(), backend="triton"))


@every_device
@every_metric
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(40, 70), (30, 13)])  # tiles of more than one program, groups in registers
def test_two_rows_have_one_score_whichever_comes_first(
    sizes: tuple[int, int], dtype: torch.dtype, metric: str, device: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(sum(sizes), 40, generator=generator) * torch.rand(sum(sizes), 1, generator=generator)).to(dtype)
    x, offsets = on(device, x, torch.tensor([0, sizes[0], sum(sizes)]))
    s = similarity(x, metric=metric, offsets=offsets, backend="triton")
    groups = [part.view(n, n) for part, n in zip(s.split([n * n for n in sizes]), sizes, strict=True)]
    assert all(torch.equal(group, group.T) for group in groups)
    a, b = x.split(sizes)
    there, back = similarity(a, b, metric=metric, backend="triton"), similarity(b, a, metric=metric, backend="triton")
    assert torch.equal(there, back.T)


@every_device
@pytest.mark.parametrize("rows", [5, 40])
def test_products_and_distances_may_overflow(rows: int, device: str) -> None:
    x = torch.full((rows, 3), 1e30)
    x[1] *= -1
    is_one = torch.arange(rows) == 1
    is_other = is_one[:, None] != is_one[None, :]
    x, offsets = on(device, x, torch.tensor([0, rows]))
    products = similarity(x, metric="dot", offsets=offsets, backend="triton").cpu().view(rows, rows)
    assert torch.equal(products, torch.where(is_other, -torch.inf, torch.inf))
    near = similarity(x, metric="rbf", offsets=offsets, backend="triton").cpu().view(rows, rows)
    assert torch.equal(near, torch.where(is_other, 0.0, 1.0))


@every_device
@pytest.mark.parametrize(("x", "y"), [((0, 4), (3, 4)), ((3, 4), (0, 4)), ((3, 0), (2, 0)), ((0, 3, 4), (0, 2, 4))])
def test_empty_sizes_work(x: tuple[int, ...], y: tuple[int, ...], device: str) -> None:
    a, b = torch.ones(x, device=device, requires_grad=True), torch.ones(y, device=device)
    s = similarity(a, b, backend="triton")
    assert torch.equal(s, similarity(a.detach(), b, backend="reference"))
    assert torch.equal(torch.autograd.grad(s.sum(), a)[0], torch.zeros_like(a))


@pytest.mark.interpret
@every_metric
@pytest.mark.parametrize("wants_grad", [False, True])
@pytest.mark.parametrize(
    "problem",
    [
        Problem("dense", 1, 90, 20, 50, torch.float32),  # features weigh
        Problem("batched", 2, 40, 60, 3, torch.bfloat16),  # scores weigh
        Problem("packed", 3, 60, None, 17, torch.float16, sizes=(40, 0, 20)),
        Problem("packed", 9, 45, None, 17, torch.float32, sizes=(5,) * 9),  # multiplied where they lie
    ],
    ids=lambda problem: f"{problem.kind} {problem.dtype}",
)
def test_memory_stays_within_its_formula(problem: Problem, wants_grad: bool, metric: str) -> None:
    problem = replace(problem, metric=metric, wants_grad=wants_grad)
    inputs = problem.make_inputs()
    x, y, offsets = (inputs[name].detach() if name in inputs else None for name in ("x", "y", "offsets"))

    def groups() -> Packed | None:
        return None if offsets is None else Packed(offsets)

    s = backend.forward(x, y, groups(), metric, 1.0)
    if wants_grad:
        grad = torch.stack([s, s], s.ndim)[..., 0]  # every other number of memory: it will be copied
        peak, results = oracle.peak_bytes(lambda: backend.backward(grad, x, y, groups(), metric, 1.0, True, True))
    else:
        peak, results = oracle.peak_bytes(lambda: (backend.forward(x, y, groups(), metric, 1.0),))
    beyond = peak - sum(result.nbytes for result in results if result is not None)
    assert 0 <= beyond <= backend.memory(problem, problem.pairs, max(problem.sizes or (problem.M,)))


@pytest.mark.interpret
@pytest.mark.parametrize("with_y", [False, True])
def test_small_matrices_are_multiplied_where_they_lie(with_y: bool) -> None:
    """Beyond the results nothing is allocated: no copy of the rows, no gradient of their copy."""
    x, y = torch.ones(3, 16, 40), torch.ones(3, 9, 40) if with_y else None
    peak, (s,) = oracle.peak_bytes(lambda: (backend.forward(x, y, None, "cosine", 1.0),))
    assert peak == s.nbytes
    peak, gradients = oracle.peak_bytes(lambda: backend.backward(s, x, y, None, "cosine", 1.0, True, True))
    assert peak == sum(gradient.nbytes for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", _triton.TARGETS)
def test_no_tile_is_much_larger_than_its_matrix(arch: str, dtype: torch.dtype) -> None:
    """Of many matrices of one size: of 40 rows a tile of 128 x 128 would make ten times as many scores as there are."""
    for rows in (33, 40, 64, 65, 100, 128, 129, 200, 300):
        launch = _triton.product_launch(arch, dtype, rows, rows, B=10_000, programs=132)
        small = -(-rows // 64) * 64
        assert launch.padded(rows, rows) <= 1.5 * small**2
    assert _triton.product_launch(arch, dtype, 8192, 8192, programs=132).BLOCK_M == 128


@pytest.mark.interpret
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])  # pointers, descriptors, no tf32
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_target_passes(dtype: torch.dtype, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_triton, tiles):
        monkeypatch.setattr(module, "arch", lambda device: arch)
    assert_bounded(Problem("dense", 1, 250, 250, 40, dtype).make_inputs(), "cpu")
    assert_bounded(Problem("batched", 2, 17, 9, 40, dtype).make_inputs(), "cpu")


@pytest.mark.interpret
def test_lengths_of_small_groups_survive_an_approximate_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's rsqrt.approx errs by 2**-22.9 (PTX ISA), the interpreter's by nothing."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    exact = InterpreterBuilder.create_rsqrt

    def approximate(self: Any, x: Any) -> Any:
        root = exact(self, x)
        return TensorHandle((root.data * (1 + 2**-22.9)).astype(root.data.dtype), root.dtype)

    monkeypatch.setattr(InterpreterBuilder, "create_rsqrt", approximate)
    x, offsets = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 16, 32])
    assert_bounded({"x": x, "offsets": offsets}, "cpu")


@every_device
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_beyond_its_type_is_infinite(dtype: torch.dtype, device: str) -> None:
    largest = torch.finfo(dtype).max
    x, y = torch.ones(2, 3, dtype=dtype), torch.tensor([[largest, 1.0, -largest]] * 2, dtype=dtype)
    inputs = {"x": x.to(device), "y": y.to(device), "metric": "dot"}
    dx = run(inputs, "triton", [torch.ones(2, 2)])[1][0]
    assert dx.tolist() == [[torch.inf, 2.0, -torch.inf]] * 2


def example(**changes: Any) -> Problem:
    return replace(Problem("dense", 1, 8, None, 8, torch.float32, device="cuda"), **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"device": "cpu"}, "needs a CUDA tensor, got one on cpu"),
        ({"dtype": torch.float64}, "needs float32, bfloat16 or float16, got torch.float64"),
        ({"is_aligned": False}, "needs rows that begin at a multiple of the size of their type"),
        ({"capability": (7, 5)}, "needs compute capability 8.0 or later, got 7.5"),
    ],
)
def test_what_the_kernels_cannot_run_is_refused(changes: dict[str, Any], sentence: str) -> None:
    assert _dispatch.choose("similarity", None, example()) == "triton"
    assert _dispatch.choose("similarity", None, example(**changes)) != "triton"
    with pytest.raises(ValueError, match=f"similarity: backend 'triton' cannot run this: {sentence}"):
        _dispatch.choose("similarity", "triton", example(**changes))


@pytest.mark.gpu
@pytest.mark.hardware
@pytest.mark.parametrize("metric", METRICS)
def test_a_step_is_captured_in_a_cuda_graph(metric: str) -> None:
    x = torch.randn(4, 50, 40, device="cuda", requires_grad=True)
    torch.autograd.grad(similarity(x, metric=metric).sum(), x)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        s = similarity(x, metric=metric)
        (gradient,) = torch.autograd.grad(s.sum(), x)
    graph.replay()
    again = similarity(x, metric=metric)
    assert torch.equal(s, again)
    assert torch.equal(gradient, torch.autograd.grad(again.sum(), x)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_y", [False, True])
def test_a_batch_of_many_small_matrices(with_y: bool, dtype: torch.dtype) -> None:
    """Responses of prompts, 16 rows each, as one tensor: far more matrices than multiprocessors."""
    problem = Problem("batched", 6 if on_device.IS_IMITATED else 600, 16, 16 if with_y else None, 96, dtype)
    assert_bounded(problem.make_inputs(), "cuda")


@pytest.mark.gpu
@pytest.mark.hardware
@pytest.mark.parametrize("shape", [(300, 128), (40, 16, 96)])  # tensor descriptors, a batch
def test_a_bfloat16_graph_is_replayed_on_other_rows(shape: tuple[int, ...]) -> None:
    x, other = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().cuda() for seed in (0, 1))
    expected = similarity(other, backend="triton")
    assert not torch.equal(similarity(x, backend="triton"), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        s = similarity(x, backend="triton")
    x.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(s, expected)
