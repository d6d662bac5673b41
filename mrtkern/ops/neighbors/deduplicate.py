"""Public `deduplicate`: one row of every chain of near-duplicates, on the scores of `neighbors`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from mrtkern import _check, _device, _dispatch, _operators, _progress
from mrtkern._check import Array
from mrtkern.ops.neighbors import linkage
from mrtkern.ops.neighbors.problem import Problem

OP = "deduplicate"


class Duplicates(NamedTuple):
    """What is kept, and what it stands for.

    ids int64, ascending: the first row of every chain.
    representative [N] int64: the kept row of the chain of every row.
    sizes int64, as many as ids: the rows of each chain.
    """

    ids: Tensor
    representative: Tensor
    sizes: Tensor


def _run(x: Tensor, offsets: Tensor | None, threshold: float, backend: str | None) -> Tensor:
    """Every check that reads values, the choice of the backend and the call, below torch.compile."""
    if offsets is not None:
        _check.offsets_values(OP, offsets, x.shape[0])
    kind, capability = "components" if offsets is None else "components of groups", _device.capability(x.device)
    problem = Problem(x.shape[0], None, 0, x.shape[1], x.dtype, x.device.type, kind=kind, capability=capability)
    kernels = _dispatch.run("neighbors", backend, problem, OP)
    _device.fits(f"{OP}: x", kernels.memory(problem), x.device)
    with torch.autocast(x.device.type, enabled=False):
        labels: Tensor = kernels.components(x, offsets, threshold)
    return labels


def _fake(x: Tensor, offsets: Tensor | None, threshold: float, backend: str | None) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.int64)


_operators.define("components", "(Tensor x, Tensor? offsets, float threshold, str? backend) -> Tensor", _run, _fake)


@overload
def deduplicate(
    x: Array, threshold: float | None = None, *, offsets: Array | None = None, num_rows: int | None = None,
    return_groups: Literal[False] = False, progress: bool | Callable[[float], Any] = False, backend: str | None = None,
) -> Tensor: ...  # fmt: skip


@overload
def deduplicate(
    x: Array, threshold: float | None = None, *, offsets: Array | None = None, num_rows: int | None = None,
    return_groups: Literal[True], progress: bool | Callable[[float], Any] = False, backend: str | None = None,
) -> Duplicates: ...  # fmt: skip


def deduplicate(
    x: Array,
    threshold: float | None = None,
    *,
    offsets: Array | None = None,
    num_rows: int | None = None,
    return_groups: bool = False,
    progress: bool | Callable[[float], Any] = False,
    backend: str | None = None,
) -> Tensor | Duplicates:
    """Row numbers to keep so that no chain of near-duplicates is kept twice: the first row of each chain.

        links = cosine(x, x) >= threshold                 # float64, as in `neighbors`
        kept = [min(component) for component in connected_components(links)]

    Rows i and j belong to one chain when rows between them, in any order, lead from i to j by cosines of at least the
    threshold; so two rows of a chain may themselves be further apart.

    Arguments
    ---------
    x : [N, D], float32, float64, bfloat16 or float16
        Only directions count, a zero row has cosine 0 with all.
    threshold : float, -1 … 1, optional
        At 1 copies are linked, also those times a power of two.
    offsets : int64 [B + 1], optional
        Rows of different groups are not linked: group b owns rows offsets[b]:offsets[b + 1].
    num_rows : int, optional
        Instead of a threshold: keep exactly so many rows. The links with the largest cosines are made until that many
        chains are left, equal cosines in the order of their rows.
    return_groups : bool
        Return `Duplicates` (ids, representative [N], sizes): the kept row that stands for every row, and the rows that
        each kept row stands for, as weights.
    progress, backend
        As in `neighbors`.

    Returns
    -------
    ids : int64, ascending
        Or Duplicates. No gradient.

    Raises
    ------
    ValueError
        For NaN or infinity (naming the row), threshold and num_rows together or neither.

    Memory
    ------
    Streams over tiles: no pair is stored. Reference 80 bytes per feature of 544 rows and 16 per row; cpu and triton as
    `memory` of `mrtkern.ops.neighbors.cpu` and `.triton` says. With num_rows as `neighbors` of k = 1, and 200 bytes a
    row.

    Devices
    -------
    On a GPU the call waits for the device: how many pairs may be linked is read, some thousand rows at a time; groups
    are taken one by one, by tensor operations.
    torch.compile: fullgraph with torch 2.13 as it comes, although the number of ids depends on the data (an older one
    may ask for torch._dynamo.config.capture_dynamic_output_shape_ops = True); not with num_rows.

    Determinism
    -----------
    The same ids on every run, backend and number of threads.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.1, 1.0]])
    >>> mk.deduplicate(x, 0.99)
    tensor([0, 1])
    >>> mk.deduplicate(x, num_rows=3, return_groups=True).sizes
    tensor([2, 1, 1])

    Source
    ------
    `mrtkern.ops.neighbors` has the arithmetic; num_rows: Boruvka, 1926, `mrtkern.ops.neighbors.linkage`.
    """
    x = _check.floating(OP, "x", x)
    if x.ndim != 2:
        _check.fail(OP, "x", "be [N, D]", _check.shape(x))
    if (threshold is None) == (num_rows is None):
        got = "none of them" if threshold is None else "both"
        raise ValueError(f"{OP}: exactly one of threshold and num_rows must be given, got {got}")
    _check.flag(OP, "return_groups", return_groups)
    _progress.check(OP, progress)
    _dispatch.check(OP, backend)
    x = x.detach().resolve_neg()
    offsets = None if offsets is None else _check.offsets(OP, offsets, x.device)
    with contextlib.nullcontext() if progress is False else _progress.shown(OP, progress):
        labels = _labels(x, offsets, threshold, num_rows, backend)
    ids = (labels == torch.arange(len(labels), dtype=torch.int64, device=labels.device)).nonzero()[:, 0]
    if not return_groups:
        return ids
    return Duplicates(ids, labels, torch.bincount(labels, minlength=len(labels))[ids])


def _labels(
    x: Tensor, offsets: Tensor | None, threshold: float | None, num_rows: int | None, backend: str | None
) -> Tensor:
    """The lowest row of the chain of every row."""
    if threshold is not None:
        _check.number(OP, "threshold", threshold)
        if not -1 <= threshold <= 1:
            _check.fail(OP, "threshold", "be from -1 to 1", threshold)
        labels: Tensor = torch.ops.mrtkern.components(x, offsets, float(threshold), backend)
        return labels
    if offsets is not None:
        raise ValueError(f"{OP}: num_rows must come without offsets, got both")
    wanted, least = _check.integer(OP, "num_rows", num_rows), min(1, x.shape[0])
    if not least <= wanted <= x.shape[0]:
        _check.fail(OP, "num_rows", f"be from {least} to the {x.shape[0]} rows of x", wanted)
    _check.finite_rows(f"{OP}: x", x)
    return linkage.joined(x, wanted, backend)
