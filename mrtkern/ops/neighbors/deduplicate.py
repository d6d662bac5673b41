"""Public `deduplicate`: one row of every chain of near-duplicates, on the scores of `neighbors`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mrtkern import _check, _device, _dispatch, _operators, _progress
from mrtkern._check import Array
from mrtkern.ops.neighbors.problem import Problem

OP = "deduplicate"


def _run(x: Tensor, threshold: float, backend: str | None) -> Tensor:
    """Every check that reads values, the choice of the backend and the call, below torch.compile."""
    capability = _device.capability(x.device)
    problem = Problem(x.shape[0], None, 0, x.shape[1], x.dtype, x.device.type, kind="components", capability=capability)
    kernels = _dispatch.run("neighbors", backend, problem, OP)
    _device.fits(f"{OP}: x", kernels.memory(problem), x.device)
    with torch.autocast(x.device.type, enabled=False):
        labels: Tensor = kernels.components(x, threshold)
    return labels


def _fake(x: Tensor, threshold: float, backend: str | None) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.int64)


_operators.define("components", "(Tensor x, float threshold, str? backend) -> Tensor", _run, _fake)


def deduplicate(
    x: Array,
    threshold: float,
    *,
    progress: bool | Callable[[float], Any] = False,
    backend: str | None = None,
) -> Tensor:
    """Row numbers to keep so that no chain of near-duplicates is kept twice: the first row of each chain.

        links = cosine(x, x) >= threshold                 # float64, as in `neighbors`
        kept = [min(component) for component in connected_components(links)]

    Rows i and j belong to one chain when rows between them, in any order, lead from i to j by cosines of at least the
    threshold; so two rows of a chain may themselves be further apart.

    Arguments
    ---------
    x : [N, D], float32, float64, bfloat16 or float16
        Only directions count, a zero row has cosine 0 with all.
    threshold : float, -1 … 1
        At 1 copies are linked, also those times a power of two.
    progress, backend
        As in `neighbors`.

    Returns
    -------
    ids : int64, ascending
        No gradient.

    Raises
    ------
    ValueError
        For NaN or infinity (naming the row).

    Memory
    ------
    Streams over tiles: no pair is stored. Reference 80 bytes per feature of 544 rows and 16 per row; cpu and triton as
    `memory` of `mrtkern.ops.neighbors.cpu` and `.triton` says.

    Devices
    -------
    On a GPU the call waits for the device: how many pairs may be linked is read, some thousand rows at a time.
    torch.compile: fullgraph with torch 2.13 as it comes, although the number of ids depends on the data (an older one
    may ask for torch._dynamo.config.capture_dynamic_output_shape_ops = True).

    Determinism
    -----------
    The same ids on every run, backend and number of threads.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.1, 1.0]])
    >>> mk.deduplicate(x, 0.99)
    tensor([0, 1])

    Source
    ------
    `mrtkern.ops.neighbors` has the arithmetic.
    """
    x = _check.floating(OP, "x", x)
    if x.ndim != 2:
        _check.fail(OP, "x", "be [N, D]", _check.shape(x))
    _check.number(OP, "threshold", threshold)
    if not -1 <= threshold <= 1:
        _check.fail(OP, "threshold", "be from -1 to 1", threshold)
    _progress.check(OP, progress)
    _dispatch.check(OP, backend)
    arguments = (x.detach().resolve_neg(), float(threshold), backend)
    if progress is False:
        labels: Tensor = torch.ops.mrtkern.components(*arguments)
    else:
        with _progress.shown(OP, progress):
            labels = torch.ops.mrtkern.components(*arguments)
    return (labels == torch.arange(len(labels), dtype=torch.int64, device=labels.device)).nonzero()[:, 0]
