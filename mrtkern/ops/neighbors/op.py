"""Public `neighbors`: checks that need no data, dispatch, torch.library registration."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from mrtkern import _check, _device, _dispatch, _operators, _progress
from mrtkern._check import Array
from mrtkern.ops.neighbors import approximate as approximation
from mrtkern.ops.neighbors.lists import Neighbors
from mrtkern.ops.neighbors.problem import ENTRY_BYTES, METRICS, PRECISIONS, Inputs, Problem

OP = "neighbors"


def _run(
    x: Tensor, y: Tensor | None, k: int, metric: str, gamma: float, precision: str, exclude_self: bool,
    group_x: Tensor | None, group_y: Tensor | None, backend: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Every check that reads values, the choice of the backend and the call, below torch.compile."""
    inputs = Inputs(x, y, k, metric, gamma, precision, exclude_self, group_x=group_x, group_y=group_y)
    problem = Problem.of(inputs)
    kernels = _dispatch.run(OP, backend, problem)
    _device.fits(f"{OP}: x and k", problem.M * k * ENTRY_BYTES + kernels.memory(problem), x.device)
    if metric == "dot" and x.dtype == torch.float64:
        _finite_products(x, x if y is None else y)
    with torch.autocast(x.device.type, enabled=False):  # an operator's products would be lowered like the caller's
        ids, scores = kernels.forward(inputs)
    return ids, scores


def _fake(
    x: Tensor, y: Tensor | None, k: int, metric: str, gamma: float, precision: str, exclude_self: bool,
    group_x: Tensor | None, group_y: Tensor | None, backend: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = (x.shape[0], k)
    return x.new_empty(shape, dtype=torch.int64), x.new_empty(shape, dtype=torch.float32)


_operators.define(
    "neighbors",
    "(Tensor x, Tensor? y, SymInt k, str metric, float gamma, str precision, bool exclude_self, Tensor? group_x, "
    "Tensor? group_y, str? backend) -> (Tensor ids, Tensor scores)",
    _run,
    _fake,
)


def _finite_products(x: Tensor, y: Tensor) -> None:
    """Refuse float64 rows whose products could overflow: infinities of both signs have no sum."""
    if not x.numel() or not y.numel():
        return
    largest = float(x.abs().max()) * float(y.abs().max()) * x.shape[1]
    if math.isinf(largest):
        rule = "have products of rows below 1.8e308 for metric 'dot'"
        _check.fail(OP, "x and y", rule, f"features up to {float(x.abs().max()):.3g} and {float(y.abs().max()):.3g}")


def neighbors(
    x: Array,
    k: int,
    *,
    y: Array | None = None,
    metric: str = "cosine",
    gamma: float = 1.0,
    exclude_self: bool | None = None,
    exclude_group: Array | tuple[Array, Array] | None = None,
    precision: str = "exact",
    approximate: int | None = None,
    seed: int = 0,
    progress: bool | Callable[[float], Any] = False,
    backend: str | None = None,
) -> Neighbors:
    """The k nearest rows of every row of x, among the rows of y or of x itself.

        x, y = x / |x|, y / |y|
        scores, ids = (x @ y.mT).topk(k)                  # metric "cosine", in float64, ties to the lower row number

    Arguments
    ---------
    x : [M, D], float32, float64, bfloat16 or float16
    k : int
        Neighbours per row; where fewer are left, lists end with id -1 and score -inf.
    y : [N, D] of the type of x, optional
        None: x with itself.
    metric : str
        "cosine", "dot", "shifted_cosine" (1 + cos) / 2, "clamped_cosine" max(cos, 0), "rbf" exp(-gamma |x - y|^2).
    gamma : float, > 0
        For "rbf", in 1 / (unit of x)^2.
    exclude_self : bool, optional
        Whether a row is kept out of its own list; None: yes without y. With y rows have no self.
    exclude_group : int64 [M], with y a pair ([M], [N]), optional
        Rows with equal labels are no neighbours.
    precision : str
        "exact", the k largest float64 scores of the given numbers; "int16", the k largest products on the lattice, the
        same bits on every machine, a cosine off by at most sqrt(D) / 32700 (rms 1e-5); "float32", that backend's own
        float32 sums.
    approximate : int, optional
        None: every pair of rows. P: rows of y are clustered into ceil(sqrt(N)) cells, and a row meets only the members
        of the P cells nearest to it; with as many probes as cells the answer is the exact one. `recall` of the result
        says what that missed. Takes faiss or scikit-learn, which cluster. Not under torch.compile.
    seed : int
        Of approximate: which rows are clustered and which are measured.
    progress : bool or callable
        True draws a bar on stderr, on a terminal, after two seconds; a callable gets fractions from 0 to 1. Not under
        torch.compile.
    backend : str, optional
        None chooses; a name is obeyed or refused.

    Returns
    -------
    Neighbors
        ids [M, k] int64 and scores [M, k] float32, larger first, equal ones by the lower id; `.csr()` makes a sparse
        matrix of them. A zero row has cosine 0 with all. No gradient. With approximate `recall` and
        `recall_worst_tenth`, estimates from 256 random rows and their exact lists: the mean, and that of the tenth of
        them that fared worst. Scores are exact, as are their order and the order of equal ones.

    Raises
    ------
    ValueError
        For NaN or infinity (naming the row) and for shapes and types that do not match.
    MemoryError
        When it cannot fit.

    Memory
    ------
    Beyond inputs and lists: reference 80 bytes per feature of 544 rows, 256 (512 + k) 32 and 16 per row; cpu and triton
    as `memory` of `mrtkern.ops.neighbors.cpu` and `.triton` says. With approximate as that of cpu says, and 8 P + 8
    bytes per row of x; before it 40 bytes per feature of 32 ceil(sqrt(N)) rows, after it an exact search of 256 rows.

    Devices
    -------
    On a GPU the call waits for the device: values are checked, and rows with many near-duplicates are decided last.
    approximate is compiled for the CPU only.

    Determinism
    -----------
    The same bits on every run and for every number of threads; "exact" and "int16" also on every backend,
    but for the last bit of the scores of "rbf". With approximate and one seed, too, given the same centroids: those are
    the same on one machine with one version of the library that clusters.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> mk.neighbors(x, 1).ids
    tensor([[1],
            [0],
            [1]])
    >>> rows = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    >>> nb = mk.neighbors(rows, 5, approximate=8)         # 8 of the 32 cells
    >>> nb.recall > 0.8
    True

    Source
    ------
    `mrtkern.ops.neighbors` has the arithmetic.
    """
    x, y = _checked_rows(x, y, metric, gamma)
    k = _check.integer(OP, "k", k)
    _check_options(x, k, metric, precision)
    _check.flag(OP, "exclude_self", exclude_self, or_none=True)
    _progress.check(OP, progress)
    _dispatch.check(OP, backend)
    if y is not None and exclude_self:
        _check.fail(OP, "exclude_self", "be None or False with y, whose rows are others", exclude_self)
    group_x, group_y = _groups(x, y, exclude_group)
    x, y = x.detach().resolve_neg(), None if y is None else y.detach().resolve_neg()  # kernels read the memory
    is_self = y is None and exclude_self is not False
    arguments = (x, y, k, metric, float(gamma), precision, is_self, group_x, group_y)
    N = (x if y is None else y).shape[0]
    num_probes, seed = _approximate(x, approximate, seed, metric, precision)
    if num_probes is not None:
        with nullcontext() if progress is False else _progress.shown(OP, progress):
            found = approximation.search(Inputs(*arguments), num_probes, seed, backend)
        return Neighbors(found.ids, found.scores, N, found.recall, found.recall_worst_tenth)
    if progress is False:
        ids, scores = torch.ops.mrtkern.neighbors(*arguments, backend)
    else:
        with _progress.shown(OP, progress):
            ids, scores = torch.ops.mrtkern.neighbors(*arguments, backend)
    return Neighbors(ids, scores, N)


def _checked_rows(x: Array, y: Array | None, metric: str, gamma: float) -> tuple[Tensor, Tensor | None]:
    """Shapes, types and devices of the rows, and how they are compared."""
    x = _check.floating(OP, "x", x)
    _check.one_of(OP, "metric", metric, METRICS)
    _check.number(OP, "gamma", gamma)
    if not 0 < gamma < math.inf:
        _check.fail(OP, "gamma", "be positive and finite", gamma)
    if x.ndim != 2:
        _check.fail(OP, "x", "be [M, D]", _check.shape(x))
    if y is None:
        return x, y
    y = _check.floating(OP, "y", y)
    _check.same_device(OP, x=x, y=y)
    if y.dtype != x.dtype:
        _check.fail(OP, "y", f"have the type of x, {x.dtype}", y.dtype)
    if y.ndim != 2 or y.shape[1] != x.shape[1]:
        shapes = f"x {_check.shape(x)} and y {_check.shape(y)}"
        _check.fail(OP, "x and y", "be [M, D] and [N, D] with the same number of features D", shapes)
    return x, y


def _check_options(x: Tensor, k: int, metric: str, precision: str) -> None:
    """How many and how exactly."""
    if k < 0:
        _check.fail(OP, "k", "be at least 0", k)
    _check.one_of(OP, "precision", precision, PRECISIONS)
    if precision != "exact" and (metric == "rbf" or (metric == "dot" and x.dtype == torch.float64)):
        rule = f"be 'exact' for metric {metric!r}" + (f" of {x.dtype}" if metric == "dot" else "")
        _check.fail(OP, "precision", rule, repr(precision))


def _approximate(x: Tensor, num_probes: Any, seed: Any, metric: str, precision: str) -> tuple[int | None, int]:
    """Cells that a row meets, None: all rows; and the seed."""
    seed = _check.integer(OP, "seed", seed)
    if not 0 <= seed < 2**63:
        _check.fail(OP, "seed", "be from 0 to 2**63 - 1", seed)
    if num_probes is None:
        return None, seed
    num_probes = _check.integer(OP, "approximate", num_probes, "be an int or None")
    if num_probes < 1:
        _check.fail(OP, "approximate", "be at least 1", num_probes)
    if _check.is_traced(x):
        _check.fail(OP, "approximate", "be None where the call is traced, because a library clusters", num_probes)
    if metric == "dot" and precision != "exact":
        _check.fail(OP, "precision", "be 'exact' for metric 'dot' with approximate", repr(precision))
    return num_probes, seed


def _groups(x: Tensor, y: Tensor | None, given: Any) -> tuple[Tensor | None, Tensor | None]:
    """Group labels of the rows of x and of y."""
    if given is None:
        return None, None
    if y is None:
        labels = _labels(given, x, "x")
        return labels, labels
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise TypeError(f"{OP}: exclude_group must be a pair of tensors with y, got {type(given).__name__}")
    return _labels(given[0], x, "x"), _labels(given[1], y, "y")


def _labels(given: Any, rows: Tensor, name: str) -> Tensor:
    """Group labels of some rows."""
    labels = _check.int64(OP, "exclude_group", given)
    _check.vector(OP, "exclude_group", labels, rows.shape[0], f"row of {name}")
    _check.same_device(OP, x=rows, exclude_group=labels)
    return labels
