"""Neighbours of the shared cases and of hard rows: made in one place for tests of backends and threads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mrtkern import _dispatch
from mrtkern.ops.neighbors.lists import Neighbors
from mrtkern.ops.neighbors.problem import CASES, METRICS, Inputs, Problem

SMALL = [case for case in CASES if "test" in case.tags]
PRECISIONS = ("exact", "int16")  # those with one answer


def normal(rows: int, D: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))


def clusters() -> Tensor:
    """Five directions, 80 rows each, closer together than the lattice can see (its steps are 3e-5)."""
    return normal(5, 40).repeat(80, 1) + normal(400, 40, 1) * 1e-7


def one_cluster() -> Tensor:
    """600 rows within 1e-6: every list overflows with rows that only float64 tells apart."""
    return normal(1, 24) + normal(600, 24, 1) * 1e-6


def ascending() -> Tensor:
    """Each row is nearer to the first ones' direction than the row before: every prefilter lets everything pass."""
    angle = torch.linspace(1.5, 0.0, 700, dtype=torch.float64)[:, None]
    pair = torch.linalg.qr(normal(16, 2).double()).Q.T
    return (angle.cos() * pair[0] + angle.sin() * pair[1]).float()


def copies() -> Tensor:
    """Exact duplicates, in random order, some scaled by powers of two."""
    order = torch.randint(0, 12, (500,), generator=torch.Generator().manual_seed(2))
    return normal(12, 33)[order] * torch.exp2((torch.arange(500) % 3).float())[:, None]


def mixed() -> Tensor:
    """Zero rows, opposite rows, negative zeros, one dominant component, subnormal rows, single features."""
    x = normal(150, 17, 3)
    x[::7] = 0
    x[3::7] = -x[4::7][: len(x[3::7])]
    x[5, :4] = -0.0
    x[11, 0] = 1e6
    x[20:24] *= 1e-42
    x[30:40] = 0
    x[30:40, 0] = torch.arange(10).float() - 4
    return x


HARD: dict[str, Callable[[], Tensor]] = {
    "clusters": clusters,
    "one cluster": one_cluster,
    "ascending": ascending,
    "constant": lambda: torch.full((300, 20), 0.3),
    "copies": copies,
    "mixed": mixed,
    "zero": lambda: torch.zeros(70, 5),
}


def calls() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and arguments of calls with one right answer: all cases in all metrics, and the hard rows."""
    for case in SMALL:
        for metric in METRICS:
            for precision in PRECISIONS:
                problem = replace(case.problem, metric=metric, precision=precision)
                if precision == "exact" or (metric != "rbf" and (metric != "dot" or problem.dtype != torch.float64)):
                    yield f"{case.name}, {metric}, {precision}", {**problem.make_inputs(5), "gamma": 0.01}
    for name, rows in HARD.items():
        for metric in METRICS:
            for precision in PRECISIONS if metric != "rbf" else ("exact",):
                yield f"{name}, {metric}, {precision}", {"x": rows(), "k": 9, "metric": metric, "precision": precision}
    yield "ascending for one row", {"x": ascending()[-1:].clone(), "y": ascending(), "k": 20}


def why_not(backend: str, arguments: dict[str, Any]) -> str | None:
    """Why a backend cannot run a call."""
    x, y = arguments["x"], arguments.get("y")
    group = x.new_zeros(0) if "exclude_group" in arguments else None
    metric, precision = arguments.get("metric", "cosine"), arguments.get("precision", "exact")
    inputs = Inputs(x, y, arguments["k"], metric, 1.0, precision, y is None, group_x=group, group_y=group)
    return _dispatch.why_not("neighbors", backend, Problem.of(inputs))


def digest(found: Neighbors | Tensor) -> str:
    """All bits, but for the sign of zeros."""
    parts = (found,) if isinstance(found, Tensor) else (found.ids, found.scores + 0.0)
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]
