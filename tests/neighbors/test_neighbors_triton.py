"""neighbors on Triton: the ids and scores of the reference, whatever the rows; in the interpreter and on a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mrtkern import lattice
from mrtkern.ops.neighbors.deduplicate import deduplicate
from mrtkern.ops.neighbors.lists import Neighbors
from mrtkern.ops.neighbors.op import neighbors
from mrtkern.ops.neighbors.problem import CASES, METRICS, Inputs, Problem
from tests.tools import lists, oracle

pytest.importorskip("mrtkern._triton", reason="needs Triton 3.4 or later")
from mrtkern.ops.neighbors import triton as backend
from mrtkern.ops.neighbors.triton import launch, search

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
MOST_PAIRS, MOST_FEATURES = 40 * 513, 64  # of a case in the interpreter: about a second

every_device = pytest.mark.parametrize("device", DEVICES)


def moved(arguments: dict[str, Any], device: str) -> dict[str, Any]:
    """Arguments with every tensor on a device."""

    def to(value: Any) -> Any:
        return (
            tuple(map(to, value))
            if isinstance(value, tuple)
            else value.to(device)
            if isinstance(value, Tensor)
            else value
        )

    return {name: to(value) for name, value in arguments.items()}


def found(device: str, **arguments: Any) -> Neighbors:
    got = neighbors(**moved(arguments, device), backend="triton")
    return Neighbors(got.ids.cpu(), got.scores.cpu(), got.num_columns)


def assert_bits_of_the_reference(device: str, **arguments: Any) -> None:
    got, same = found(device, **arguments), neighbors(**arguments, backend="reference")
    assert torch.equal(got.ids, same.ids)
    assert torch.equal(got.scores, same.scores)


def calls() -> Iterator[Any]:
    """Every case in a fifth of its metrics and precisions in the interpreter, with all of them on a device."""
    turn = 0
    for case in CASES:
        for metric in (metric for metric in METRICS if metric != "rbf"):
            for precision in lists.PRECISIONS:
                problem = replace(case.problem, metric=metric, precision=precision)
                if "test" not in case.tags or (metric == "dot" and problem.dtype == torch.float64):
                    continue
                is_small = problem.M * problem.columns <= MOST_PAIRS and problem.D <= MOST_FEATURES
                turn += is_small
                for device in ("cpu", "cuda") if is_small and turn % 5 == 0 else ("cuda",):
                    mark = pytest.mark.interpret if device == "cpu" else pytest.mark.gpu
                    yield pytest.param(problem, device, marks=mark, id=f"{case.name}, {metric}, {precision}, {device}")


@pytest.mark.parametrize(("problem", "device"), list(calls()))
def test_answers_have_the_bits_of_the_reference(problem: Problem, device: str) -> None:
    assert_bits_of_the_reference(device, **problem.make_inputs(5))


HARD = [("cosine", "exact"), ("clamped_cosine", "int16"), ("dot", "exact")]


@every_device
@pytest.mark.parametrize(("metric", "precision"), HARD)
@pytest.mark.parametrize("name", lists.HARD)
def test_hard_rows_have_the_bits_of_the_reference(name: str, metric: str, precision: str, device: str) -> None:
    """Near-duplicates, ties, ascending order: lists overflow, thresholds rise with every column, strips are equal."""
    y = lists.HARD[name]()
    x = y[:: len(y) // 11].clone()
    assert_bits_of_the_reference(device, x=x, y=y, k=9, metric=metric, precision=precision)


@every_device
def test_hard_rows_among_themselves(device: str) -> None:
    """Self graphs of which some rows fit into their lists and others do not."""
    x = torch.cat([lists.normal(8, 24), lists.one_cluster()[:210], torch.zeros(3, 24)])
    assert_bits_of_the_reference(device, x=x, k=3)


@every_device
def test_products_that_do_not_fit_into_a_block(device: str) -> None:
    """2,300 columns: 16 to a strip, more products of listed strips than the interpreter's block of 1,024."""
    assert_bits_of_the_reference(device, x=lists.normal(3, 8), y=lists.normal(2300, 8, 1), k=2)


@every_device
def test_rows_in_several_turns_have_the_same_answer(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little scratch: one tile of rows under way, and one row with all columns."""
    x, y = lists.normal(search.TILE + 9, 5), lists.normal(30, 5, 1)
    x[3] = x[-1] = 0
    monkeypatch.setattr(search, "SCRATCH", 1)
    assert_bits_of_the_reference(device, x=x, y=y, k=2, metric="clamped_cosine")


@every_device
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, "exact"), (torch.bfloat16, "int16")])
def test_strides_and_alignment_do_not_matter(dtype: torch.dtype, precision: str, device: str) -> None:
    base = lists.normal(60, 64).to(device, dtype)
    for view in (base[::3, ::3], base.flatten()[1:401].view(20, 20)):
        got = neighbors(view, 3, precision=precision, backend="triton")
        same = neighbors(view.contiguous().cpu(), 3, precision=precision, backend="reference")
        assert torch.equal(got.ids.cpu(), same.ids) and torch.equal(got.scores.cpu(), same.scores)


@every_device
@pytest.mark.parametrize("metric", ["cosine", "dot", "shifted_cosine"])
def test_float32_is_the_exact_answer_within_its_roundings(metric: str, device: str) -> None:
    x, y = lists.normal(20, 40), lists.normal(90, 40, 1)
    got = found(device, x=x, y=y, k=7, metric=metric, precision="float32")
    scores = torch.from_numpy(oracle.neighbor_scores(x, y, metric))
    best = scores.topk(7, dim=1).values
    size = x.double().norm(dim=1, keepdim=True) * y.double().norm(dim=1).max() if metric == "dot" else 1.0
    magnitude = torch.as_tensor(size, dtype=torch.float64).expand(best.shape)
    for truth in (scores.gather(1, got.ids), best):
        oracle.assert_summed(got.scores, truth, oracle.similarity_steps(40), magnitude)


# Products


def products(q: Tensor, p: Tensor) -> Tensor:
    """All products of float16 rows as the kernel leaves them: strips of a single column."""
    x, y = (
        search.Side(rows, none, none, rows, none) for rows, none in ((v, v.new_zeros(len(v)).double()) for v in (q, p))
    )
    inputs = Inputs(q, p, k=1, exclude_self=False)
    sizes = search.Sizes(STRIP=1, num_strips=search.TILE, strips=1, places=1, rows=search.TILE)
    return launch.Launch(inputs, x, y).strip_maxima(sizes, 0, len(q))[: len(q), : len(p)]


def worst(D: int) -> Tensor:
    """Rows of length 4096 at most whose partial sums are as large, and whose terms differ as much, as they can."""
    flat = torch.full((D,), 4096 // int(D**0.5), dtype=torch.float64)
    signs = torch.ones(D, dtype=torch.float64)
    signs[1::2] = -1
    rows = [flat, -flat, flat * signs]
    for place in (0, 7, 15, 16, 31, D - 1):  # a product of nearly 2**24 beside small ones: no bit may be dropped
        for sign in (1, -1):
            row = torch.ones(D, dtype=torch.float64)
            row[(place + 1) % D] = 3
            row[place] = sign * 4092
            rows.append(row)
    return torch.stack(rows)


@every_device
@pytest.mark.parametrize("D", [64, 256, 1024])
def test_products_of_lattice_rows_are_exact(D: int, device: str) -> None:
    """What selection on tensor cores rests on: float16 products and float32 sums that lose no bit up to 2**24."""
    x = worst(D)
    assert float(x.square().sum(dim=1).max()) <= 2**24
    got = products(x.half().to(device), x.half().to(device))
    assert torch.equal(got.cpu().double(), x @ x.T)


@every_device
def test_rounded_rows_are_those_of_the_lattice(device: str) -> None:
    rounding = pytest.importorskip("mrtkern._triton.rows")
    for rows in (lists.mixed(), lists.mixed().bfloat16(), lists.normal(9, 70).half(), lists.normal(3, 0)):
        x = rows.to(device)
        square = rounding.squares(x)
        length = lattice.square_root(square)
        q, error = rounding.on_lattice(x, length)
        D = rows.shape[1]
        assert torch.equal(square.cpu(), lattice.squared_norms(rows))
        assert torch.equal(q[:, :D].to(torch.int16).cpu(), lattice.quantise(rows))
        assert not q[:, D:].any()
        assert bool((error <= (D + 9) ** 0.5 / 2 + 1e-5).all())
        assert torch.equal(rounding.on_fine_lattice(x, length)[:, :D].cpu(), lattice.quantise_fine(rows, length.cpu()))


# Chains


@every_device
@pytest.mark.parametrize(
    ("rows", "threshold"),
    [
        (lists.one_cluster()[:24], 1.0),  # every pair may be linked, none is: a row or two a turn
        (torch.full((300, 5), 0.3), 0.9),  # joined by the first turn
        (lists.normal(300, 3), 0.98),
    ],
)
def test_chains_grow_turn_by_turn(rows: Tensor, threshold: float, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little scratch: room for the pairs of one row."""
    monkeypatch.setattr(search, "SCRATCH", 1)
    kept = deduplicate(rows.to(device), threshold, backend="triton")
    assert kept.tolist() == deduplicate(rows, threshold, backend="reference").tolist()


@pytest.mark.interpret
@pytest.mark.parametrize("scratch", [1, search.SCRATCH])
@pytest.mark.parametrize("name", ["constant", "copies", "mixed"])
def test_memory_of_chains_stays_within_its_formula(name: str, scratch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all rows are equal, and every pair is a link."""
    monkeypatch.setattr(search, "SCRATCH", scratch)
    x = lists.HARD[name]()
    problem = Problem(len(x), None, 0, x.shape[1], torch.float32, kind="components")
    peak, kept = oracle.peak_bytes(lambda: deduplicate(x, 0.9, backend="triton"))
    assert 0 <= peak - kept.nbytes <= backend.memory(problem)


def test_a_million_rows_need_little_memory() -> None:
    assert backend.memory(Problem(10**6, None, 0, 384, torch.float32, "cuda", kind="components")) <= 2 << 30


# Limits


def test_what_does_not_run_is_refused_with_a_sentence() -> None:
    problem = Problem(100, None, 5, 8, torch.float32, "cuda")
    assert backend.why_not(problem) is None
    assert backend.why_not(replace(problem, device="cpu")) == "needs a CUDA tensor, got one on cpu"
    assert "rbf" in str(backend.why_not(replace(problem, metric="rbf")))
    assert "float64" in str(backend.why_not(replace(problem, metric="dot", dtype=torch.float64)))
    assert backend.why_not(replace(problem, kind="components")) is None


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("M", "N", "k", "precision"), [(40, None, 3, "exact"), (20, 300, 8, "int16"), (30, 40, 20, "float32")]
)
def test_memory_stays_within_its_formula(M: int, N: int | None, k: int, precision: str) -> None:
    problem = Problem(M, N, k, 20, torch.float32, precision=precision, exclude_self=N is None)
    inputs = problem.make_inputs()
    peak, got = oracle.peak_bytes(lambda: neighbors(**inputs, backend="triton"))
    assert 0 <= peak - got.ids.nbytes - got.scores.nbytes <= backend.memory(problem)
