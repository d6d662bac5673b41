"""Every selection of the shared cases as a digest, for comparing backends and numbers of threads bit by bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from mrtkern.ops.facility_location.ground import METRICS
from mrtkern.ops.facility_location.op import facility_location
from mrtkern.ops.facility_location.problem import CASES, Case
from mrtkern.ops.facility_location.rule import FILLS
from mrtkern.ops.facility_location.selection import Selection

SMALL = [case for case in CASES if "test" in case.tags]


def inputs(case: Case) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A case made harder: duplicates, zero rows, rows with one dominant component; and values per row of each kind."""
    made = case.make_inputs(seed=7)
    x, offsets = made["x"], made["offsets"]
    x[::5] = x[0]
    x[3] = 0
    x[11, 0] = 1e4
    generator = torch.Generator().manual_seed(8)
    weight, quality, bonus = (torch.rand(len(x), generator=generator) for _ in range(3))
    quality[quality < 0.2] = 0
    return x, offsets, {"weight": weight, "quality": quality, "bonus": bonus * 0.1}


def calls(case: Case) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and arguments of the calls that one case stands for: all fills without values and with all of them."""
    _, _, values = inputs(case)
    for metric in METRICS:
        for names in ((), ("weight",), ("quality",), tuple(values)):
            for fill in FILLS if len(names) != 1 else FILLS[:1]:
                chosen = {name: values[name] for name in names}
                yield (
                    f"{case.name}, {metric}, {'+'.join(names) or 'plain'}, {fill}",
                    {"metric": metric, "fill": fill, **chosen},
                )


def select(case: Case, backend: str, **options: Any) -> Selection:
    x, offsets, _ = inputs(case)
    return facility_location(x, case.problem.K, offsets=offsets, backend=backend, seed=5, **options)


def digest(selection: Selection) -> str:
    """All fields, all bits."""
    parts = (getattr(selection, field.name) for field in fields(selection))
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts if part is not None)).hexdigest()[:16]
