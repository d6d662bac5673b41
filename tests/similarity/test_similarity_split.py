"""Float32 scores from parts of bfloat16: what they err by, on whom, and where they are made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mrtkern import similarity
from mrtkern.ops.similarity import triton as backend
from mrtkern.ops.similarity.problem import Problem
from mrtkern.ops.similarity.triton import split
from tests.similarity.test_similarity_triton import assert_bounded
from tests.tools import oracle

U = 2.0**-24
BF16, F64 = torch.bfloat16, torch.float64
INSTRUCTION = 16  # features of one matrix instruction
KEPT = 24  # bits of what an instruction adds, from the highest of the largest on
D = split.FEATURES


def bound(features: int, sizes: Tensor) -> Tensor:
    """As split.py states it."""
    return (77 + features / split.STEP) * U * sizes


def adversaries(features: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Rows that one pair [2, D] of which makes the parts, the products left out or the sums err as they can."""
    generator, ones = torch.Generator().manual_seed(0), torch.ones(features, dtype=torch.float32)
    sign = torch.where(torch.arange(features) % 2 == 0, 1.0, -1.0)
    full = ones * (2 - 2.0**-23)  # every bit of the significand
    half = ones * (1 + 2.0**-8 + 2.0**-16 + 2.0**-23)  # ties of the first part and of the second
    steep = 2.0 ** -(torch.arange(features, dtype=torch.float32) % 40)  # what is cut off lies beside what is large
    late = torch.cat([ones[: features // 2] * 2.0**-20, ones[features // 2 :]])
    normal = torch.randn(4, features, generator=generator)
    return {
        "all bits": (full, full),
        "all bits, cancelling": (full, full * sign),
        "ties": (half, half * sign),
        "steep": (steep * full, full),
        "steep against its opposite": (steep * half, steep.flip(0) * half),
        "small sums first": (late * full, full),
        "large sums first": (late.flip(0) * half, half),
        "normal": (normal[0], normal[1]),
        "nearly orthogonal": (normal[2], normal[3] - normal[2] * (normal[2] @ normal[3]) / (normal[2] @ normal[2])),
        "just above halves": (ones * (1 + 2.0**-9 + 2.0**-23), full),
    }


def truncated_sum(terms: Tensor) -> float:
    """An instruction: terms float64 aligned to the largest of them, cut to KEPT bits, added, cut again."""
    for values in (terms, None):
        values = terms if values is not None else terms.sum()[None]
        largest = float(values.abs().max())
        unit = 2.0 ** (torch.frexp(torch.tensor(largest, dtype=F64)).exponent.item() - KEPT) if largest else 1.0
        terms = torch.trunc(values / unit) * unit
    return float(terms)


def product(x: Tensor, y: Tensor, begin: float = 0.0) -> float:
    """tl.dot of parts of one step, as a pessimistic matrix unit makes it; products of bfloat16 are exact in float64."""
    exact = x.to(F64) * y.to(F64)
    for part in exact.split(INSTRUCTION):
        begin = truncated_sum(torch.cat([part, torch.tensor([begin], dtype=F64)]))
    return begin


def parts_of(x: Tensor) -> list[Tensor]:
    found, left = [], x.clone()
    for _ in range(3):
        found.append(left.to(BF16))
        left = left - found[-1].float()
    return found


def modelled(x: Tensor, y: Tensor) -> float:
    """A score in the order of `split.parts`."""
    score = torch.zeros((), dtype=torch.float32)
    for a, b in zip(x.split(split.STEP), y.split(split.STEP), strict=True):
        (x1, x2, x3), (y1, y2, y3) = parts_of(a), parts_of(b)
        left, right = product(x1, y2, product(x1, y3)), product(x2, y1, product(x3, y1))
        small = float(torch.tensor(left, dtype=torch.float32) + torch.tensor(right, dtype=torch.float32))
        score = score + torch.tensor(product(x1, y1, product(x2, y2, small)), dtype=torch.float32)
    return float(score)


@pytest.mark.parametrize("features", [D, 384])
@pytest.mark.parametrize("name", adversaries(D))
def test_a_matrix_unit_that_cuts_off_keeps_the_bound(name: str, features: int) -> None:
    x, y = (row / 2 for row in adversaries(features)[name])
    terms = x.double() * y.double()
    error = abs(modelled(x, y) - float(terms.sum()))
    assert error <= float(bound(features, terms.abs().sum()))
    assert float(bound(features, terms.abs().sum())) <= features * U * float(terms.abs().sum())


@pytest.mark.parametrize("name", adversaries(D))
def test_three_parts_are_the_number(name: str) -> None:
    for row in adversaries(D)[name]:
        assert torch.equal(sum(part.double() for part in parts_of(row)), row.double())  # type: ignore[arg-type]


@pytest.mark.interpret
def test_the_kernel_cuts_as_the_definition() -> None:
    rows = torch.stack([row for pair in adversaries(D).values() for row in pair])
    assert torch.equal(split.split(rows), torch.cat(parts_of(rows)))


def many(rows: int, features: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))


def is_made_from_parts(monkeypatch: pytest.MonkeyPatch, **inputs: Any) -> bool:
    called: list[Tensor] = []
    original = split.split
    with monkeypatch.context() as patch:
        patch.setattr(split, "split", lambda a: (called.append(a), original(a))[1])
        similarity(**inputs, backend="triton")
    return bool(called)


def assert_adversaries_are_within_the_bound(M: int, N: int | None, features: int, device: str) -> None:
    x = many(M, features)
    worst = torch.stack([row for pair in adversaries(features).values() for row in pair])
    x[: len(worst)] = worst
    y = None if N is None else torch.cat([worst.flip(0), many(N - len(worst), features, 1)])
    there = [None if rows is None else rows.to(device) for rows in (x, y)]
    found = similarity(*there, backend="triton").double().cpu()
    a, b = (row.double() for row in (x, x if y is None else y))
    lengths = a.norm(dim=1)[:, None] * b.norm(dim=1)[None]
    allowed = bound(features, a.abs() @ b.abs().T) / lengths + 3 * U  # lengths and the last roundings
    oracle.assert_within(found.float(), a @ b.T / lengths, allowed)
    back = found if y is None else similarity(*reversed(there), backend="triton").double().cpu()
    assert torch.equal(back.T, found)


SHAPES = [(129, None, D), (130, 140, D + 5)]  # of itself; a last step that is not full


@pytest.mark.interpret
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])  # pointers, descriptors
@pytest.mark.parametrize(("M", "N", "features"), SHAPES)
def test_scores_of_adversaries_are_within_the_bound(
    M: int, N: int | None, features: int, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (backend._triton, backend._triton.tiles):
        monkeypatch.setattr(module, "arch", lambda device: arch)
    assert_adversaries_are_within_the_bound(M, N, features, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize(("M", "N", "features"), [*SHAPES, (1100, 1300, 384)])  # the last in large tiles
def test_a_device_keeps_the_bound(M: int, N: int | None, features: int) -> None:
    assert_adversaries_are_within_the_bound(M, N, features, "cuda")


@pytest.mark.interpret
@pytest.mark.parametrize("metric", ["shifted_cosine", "clamped_cosine"])
def test_groups_and_gradients_are_within_the_bound_of_their_sums(metric: str) -> None:
    problem = Problem("packed", 3, 173, None, D, torch.float32, sizes=(3, 130, 40), metric=metric)
    assert_bounded(problem.make_inputs(), "cpu")


@pytest.mark.interpret
def test_only_cosines_of_many_rows_and_features_are_made_from_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = many(split.ROWS, D)
    assert is_made_from_parts(monkeypatch, x=x)
    assert not is_made_from_parts(monkeypatch, x=x[1:])
    assert not is_made_from_parts(monkeypatch, x=x[:, : D - 16])
    assert not is_made_from_parts(monkeypatch, x=x, metric="dot")  # a part of what is near the largest number overflows
    assert not is_made_from_parts(monkeypatch, x=x.bfloat16())


@pytest.mark.interpret
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_meets_a_row_that_is_not_finite_is_nan_and_nothing_else(value: float) -> None:
    x = many(split.ROWS, D)
    x[3, 5] = value
    found = similarity(x, backend="triton")
    is_bad = torch.arange(split.ROWS) == 3
    assert torch.equal(found.isnan(), is_bad[:, None] | is_bad[None, :])


@pytest.mark.interpret
def test_memory_stays_within_its_formula() -> None:
    problem = replace(Problem("dense", 1, 150, 140, D, torch.float32), wants_grad=False)
    inputs = problem.make_inputs()
    peak, (s,) = oracle.peak_bytes(
        lambda: (backend.forward(inputs["x"].detach(), inputs["y"].detach(), None, "cosine", 1.0),)
    )
    assert 0 <= peak - s.nbytes <= backend.memory(problem, problem.pairs, 150)
