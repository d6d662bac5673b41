"""What is selected from the problems of a block, as bytes, and the digest of many blocks.

The bytes of a block are 64-bit little-endian integers: how many numbers each problem has, then the numbers of all of
them; rows are numbered inside their problem. Those of heads are float32 numbers. A block's digest is their sha256, a
kind's that of its blocks' digests.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.resources
import itertools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrtkern import _dispatch
from mrtkern.digest import problems
from mrtkern.ops.facility_location.op import facility_location
from mrtkern.ops.neighbors.deduplicate import deduplicate
from mrtkern.ops.neighbors.op import neighbors

FILE = importlib.resources.files("mrtkern") / "data" / "digest.json"


class Where(NamedTuple):
    """Who selects: a backend by name, or None for the first that can; the type of device that holds the rows."""

    backend: str | None = None
    device: str = "cpu"


def picks(block: int, count: int, where: Where) -> bytes:
    """The ids that facility_location keeps of every problem, in pick order."""
    b = problems.make("picks", block, count)
    x, k, offsets, weight, quality, bonus = (
        None if value is None else value.to(where.device)
        for value in (b.x, b.k, b.offsets, b.weight, b.quality, b.bonus)
    )
    found = facility_location(
        x, k, offsets=offsets, metric=b.rule.metric, weight=weight, quality=quality, bonus=bonus, fill=b.rule.fill,
        seed=block, backend=where.backend,
    )  # fmt: skip
    assert found.offsets is not None
    sizes = found.offsets.diff().cpu()
    return _bytes(sizes, found.ids.cpu() - b.offsets[:-1].repeat_interleave(sizes))


def lists(block: int, count: int, where: Where) -> bytes:
    """The ids of the k nearest rows of every row of every problem."""
    b = problems.make("lists", block, count)
    x, rule = b.x.to(where.device), b.rule
    labels = torch.arange(rule.most, dtype=torch.int64, device=where.device) % problems.LABELS
    found = []
    for p, (first, last) in enumerate(_spans(b.offsets)):
        N = last - first
        M = N if rule.is_self else (N + 1) // 2
        groups = (labels[:N] if rule.is_self else (labels[:M], labels[M:N])) if rule.has_groups else None
        other = None if rule.is_self else x[first + M : last]
        nearest = neighbors(
            x[first : first + M], int(b.k[p]), y=other, metric=rule.metric, precision=rule.precision,
            exclude_group=groups, backend=where.backend,
        )  # fmt: skip
        found.append(nearest.ids.flatten())
    return _joined(found)


def kept(block: int, count: int, where: Where) -> bytes:
    """The ids that deduplicate keeps of every problem."""
    b = problems.make("kept", block, count)
    x = b.x.to(where.device)
    return _joined([deduplicate(x[i:j], b.rule.threshold, backend=where.backend) for i, j in _spans(b.offsets)])


def heads(block: int, count: int, where: Where) -> bytes:
    """The bits of the products of a linear head: the first half of a problem's rows are hidden states, the others its
    weight, in float32 and in bfloat16; dL/dlogits are the logits."""
    from mrtkern.ops.linear_cross_entropy import tiles

    b, found = problems.make("lists", block, count), []
    for first, last in _spans(b.offsets):
        hidden, weight = b.x[first:last].tensor_split(2)
        for product in (torch.float32, torch.bfloat16):
            products = tiles.Products(weight, None, product)
            z = hidden.new_empty((len(hidden), len(weight)), dtype=torch.float32)
            dh, dW = (torch.empty_like(value, dtype=torch.float32) for value in (hidden, weight))
            products.logits(z, hidden)
            products.hidden_gradient(dh, z)
            products.add_weight_gradient(dW, z, hidden, is_first=True)
            found += [z.flatten(), dh.flatten(), dW.flatten()]
    return torch.cat(found).numpy().astype("<f4").tobytes()


def _spans(offsets: Tensor) -> list[tuple[int, int]]:
    return list(itertools.pairwise(offsets.tolist()))


def _joined(found: list[Tensor]) -> bytes:
    return _bytes(torch.tensor([len(ids) for ids in found], dtype=torch.int64, device="cpu"), torch.cat(found).cpu())


def _bytes(sizes: Tensor, numbers: Tensor) -> bytes:
    return torch.cat([sizes, numbers]).numpy().astype("<i8").tobytes()


def problem_of(op: str, where: Where) -> Any:
    """A problem of an operation on the device in question."""
    case = importlib.import_module(f"mrtkern.ops.{op}.problem").CASES[0]
    return dataclasses.replace(case.problem, device=where.device)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One line of the digest: an operation, a number of blocks, and what a block's first problems give."""

    op: str  # whose backends run
    blocks: int
    select: Callable[[int, int, Where], bytes]
    problems: int = problems.PROBLEMS  # of a block
    backends: tuple[str, ...] = _dispatch.BACKENDS  # that promise its bits

    def why_not(self, where: Where) -> str | None:
        """Why the backend cannot run here; None: it can."""
        if where.backend is None:
            return (
                None
                if "reference" in self.backends
                else _dispatch.why_not(self.op, "cpu", problem_of(self.op, Where()))
            )
        if where.backend not in self.backends:
            return f"{where.backend} promises no bits of it"
        return _dispatch.why_not(self.op, where.backend, problem_of(self.op, where))

    def digest(self, block: int, where: Where) -> str:
        """The sha256 of a block, in hexadecimal."""
        return hashlib.sha256(self.select(block, self.problems, where)).hexdigest()


KINDS = {
    "picks": Kind("facility_location", 200, picks),
    "lists": Kind("neighbors", 60, lists),
    "kept": Kind("neighbors", 40, kept),
    "heads": Kind("linear_cross_entropy", 20, heads, problems=100, backends=("cpu",)),
}


def joined(blocks: list[str]) -> str:
    """The digest of several blocks."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, blocks))).hexdigest()


def expected() -> dict[str, list[str]]:
    """The digests of all blocks of every kind, as they should be."""
    known: dict[str, list[str]] = json.loads(FILE.read_text(encoding="utf-8"))
    return known
