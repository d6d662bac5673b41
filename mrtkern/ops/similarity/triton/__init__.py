"""similarity for Triton: rows are scaled and copied once, then tiles of scores are stored from registers.

    s[b, m, n] = metric(x[b, m], y[b, n])

Reads  x and y, float32, bfloat16 or float16 with any strides; offsets [B + 1].
Writes s, dx, dy in the type of x.
Idea   the copy is aligned, padded and near 1, so that any input meets one fast tile loop; groups and matrices of up to
       32 rows skip it and are multiplied where they lie (small.py).
Sums   float32 in one fixed order per number: the same bits on every run. 16-bit products on tensor cores, in gradients
       with weights in three parts of bfloat16 or two of tf32; float32 products as float32, or of many rows and features
       from parts of bfloat16 that err no more (split.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mrtkern import _device, _triton
from mrtkern.ops.similarity.problem import COSINES, Packed, Problem
from mrtkern.ops.similarity.triton import split
from mrtkern.ops.similarity.triton.kernels import project_rows, pull_rows, scale_rows, score_tiles
from mrtkern.ops.similarity.triton.signatures import ROWS, SIGNATURES, group_launch, has_parts, pull_launch, row_launch
from mrtkern.ops.similarity.triton.small import pull_groups, score_groups

__all__ = ["SIGNATURES", "backward", "forward", "memory", "why_not"]

PAD = 16  # features of a copy are a multiple of this, so that its rows begin at multiples of 16 bytes
SMALL = 32  # rows of the largest group whose products one program keeps in registers
IN_FLIGHT = 16  # programs of small groups per multiprocessor: their loads hide one another
READ_TWICE = 8  # of those that read rows a second time: 132 times 8 groups of 16 x 384 float32 are half an H100's L2
LIMITS = f"{_device.NARROW_NAMES}, rows that begin at a multiple of the size of their type"


def why_not(problem: Problem) -> str | None:
    """None when the kernels can run `problem`, otherwise the reason."""
    if reason := _triton.why_not(problem.device, problem.capability) or _device.not_narrow(problem.dtype):
        return reason
    if not problem.is_aligned:
        return "needs rows that begin at a multiple of the size of their type, got x or y at an odd address"
    return None


def memory(problem: Problem, pairs: int, largest: int) -> int:
    """Bytes beyond inputs and results, at most: copies of the rows, their lengths, tables of the groups; backward sums
    of the rows in float32, a copy of the scores' gradient, and that in float32 where the metric bends it."""
    E = -(-problem.D // PAD) * PAD or PAD
    rows = problem.rows * (E * problem.dtype.itemsize + 12) + 64 * (problem.B + 1)
    rows += split.memory(problem.rows, E) if problem.dtype == torch.float32 else 0
    bent = 4 if problem.metric in ("clamped_cosine", "rbf") else 0
    return rows + (problem.rows * E * 4 + pairs * (problem.dtype.itemsize + bent) if problem.wants_grad else 0)


@dataclass(frozen=True)
class Rows:
    """Rows [T, E] ready to be multiplied; for rbf they lie feature by feature."""

    values: Tensor  # [T, E]
    inverse: Tensor  # [2, T] float32 that add up to 1 / length; 1 where the metric wants none; NaN where not finite
    exponent: Tensor  # [T] int32: values are the input times 2**-exponent

    @classmethod
    def of(cls, x: Tensor, metric: str) -> Rows:
        """Rows of x [B, M, D]."""
        B, M, D = x.shape
        T, E = B * M, triton.cdiv(max(D, 1), PAD) * PAD
        values = x.new_empty((E, T)).T if metric == "rbf" else x.new_empty((T, E))
        inverse, exponent = x.new_empty((2, T), dtype=torch.float32), x.new_empty(T, dtype=torch.int32)
        scale_rows[(triton.cdiv(T, ROWS["BLOCK_T"]),)](
            x, values, inverse, exponent, T, max(M, 1), D, E, *x.stride(), *values.stride(),
            IS_COSINE=metric in COSINES, **ROWS, **row_launch(_triton.arch(x.device)).options,
        )  # fmt: skip
        return cls(values, inverse, exponent)


@dataclass(frozen=True)
class Groups:
    """Which rows meet which: B entries of M x N, or the groups of a packed call each with itself."""

    B: int
    M: int
    N: int
    pairs: int
    packed: Packed | None = None

    @classmethod
    def of(cls, x: Tensor, y: Tensor | None, packed: Packed | None) -> Groups:
        """Of a call. Reads the sizes of packed groups back to the host: the size of the result depends on them."""
        if packed is not None:
            return cls(packed.B, packed.largest, packed.largest, packed.pairs, packed)
        B, M, N = 1 if x.ndim == 2 else x.shape[0], x.shape[-2], (x if y is None else y).shape[-2]
        return cls(B, M, N, B * M * N)

    @property
    def largest(self) -> int:
        """Rows of the largest matrix."""
        return max(self.M, self.N)

    def are_small(self, metric: str) -> bool:
        """Whether one program makes all products of a group."""
        return self.largest <= SMALL and metric != "rbf"

    def tables(self, block_m: int, block_n: int | None) -> tuple[Tensor | None, ...]:
        """By which a program finds the group of its tile (block_n None: of rows alone); none where all are alike."""
        if self.packed is None:
            return None, None, None
        sizes = self.packed.sizes
        count = (sizes + block_m - 1) // block_m
        if block_n is not None:
            count = count * ((sizes + block_n - 1) // block_n)
        return self.packed.offsets, torch.nn.functional.pad(count.cumsum(0), (1, 0)), self.packed.cells


def forward(x: Tensor, y: Tensor | None, packed: Packed | None, metric: str, gamma: float) -> Tensor:
    """Scores in the type of x: [M, N], [B, M, N], or packed."""
    with _triton.on(x.device):
        groups = Groups.of(x, y, packed)
        s = x.new_empty(groups.pairs if packed is not None else (*x.shape[:-1], groups.N))
        if not s.numel():
            return s
        if groups.are_small(metric):
            _score_groups(x, y, groups, metric, s)
        else:
            a = Rows.of(_batched(x), metric)
            _score_tiles(a, a if y is None else Rows.of(_batched(y), metric), groups, metric, gamma, s, None)
    return s


def backward(
    grad: Tensor, x: Tensor, y: Tensor | None, packed: Packed | None, metric: str, gamma: float,
    need_x: bool, need_y: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """dL/dx and dL/dy, of the shapes and types of x and y, where they are needed."""
    with _triton.on(x.device):
        groups = Groups.of(x, y, packed)
        if not groups.pairs:
            return torch.zeros_like(x), None if y is None else torch.zeros_like(y)
        if groups.are_small(metric):
            return _pull_groups(grad, x, y, groups, metric, need_x, need_y)
        a = Rows.of(_batched(x), metric)
        b = a if y is None else Rows.of(_batched(y), metric)
        w = grad.resolve_neg().contiguous()
        if metric in ("clamped_cosine", "rbf"):
            bent = torch.empty(w.shape, dtype=torch.float32, device=w.device)
            _score_tiles(a, b, groups, metric, gamma, bent, w)
            w = bent
        dx = _pull(w, a, b, groups, metric, x, is_self=y is None) if need_x or y is None else None
        if y is None or not need_y:
            return dx, None
        turned = Groups(groups.B, groups.N, groups.M, groups.pairs)
        return dx, _pull(w, b, a, turned, metric, y, is_turned=True)


def _batched(x: Tensor) -> Tensor:
    """[B, M, D] with a lazy minus sign written to memory."""
    x = x.resolve_neg()
    return x if x.ndim == 3 else x[None]


def _by_groups(
    x: Tensor, y: Tensor | None, groups: Groups, in_flight: int, is_pull: bool
) -> tuple[int, list[Any], dict[str, Any]]:
    """Programs, arguments after the matrices and options of the kernels of small groups."""
    sides = [side if side.ndim == 3 else side[None] for side in (x, x if y is None else y)]
    block = 16 if groups.largest <= 16 else SMALL
    programs = min(groups.B, in_flight * _triton.multiprocessors(x.device))
    tables = (None, None) if groups.packed is None else (groups.packed.offsets, groups.packed.cells)
    sizes = (*tables, groups.B, groups.M, groups.N, x.shape[-1])
    launch = group_launch(block, x.element_size(), y is not None, is_pull)(_triton.arch(x.device))
    options = {"HAS_Y": y is not None, "BLOCK": block, "BLOCK_D": launch.BLOCK_D, **launch.options}
    return programs, [*sizes, *sides[0].stride(), *sides[1].stride()], options


def _score_groups(x: Tensor, y: Tensor | None, groups: Groups, metric: str, s: Tensor) -> None:
    x, y = x.resolve_neg(), None if y is None else y.resolve_neg()
    programs, given, options = _by_groups(x, y, groups, IN_FLIGHT, is_pull=False)
    score_groups[(programs,)](x, x if y is None else y, s, *given, METRIC=metric, **options)


def _pull_groups(
    grad: Tensor, x: Tensor, y: Tensor | None, groups: Groups, metric: str, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dL/dx and dL/dy of small groups."""
    x, y = x.resolve_neg(), None if y is None else y.resolve_neg()
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if need_x else None
    dy = torch.empty(y.shape, dtype=y.dtype, device=y.device) if y is not None and need_y else None
    programs, given, options = _by_groups(x, y, groups, READ_TWICE, is_pull=True)
    pull_groups[(programs,)](
        grad.resolve_neg().contiguous(), x, x if y is None else y, dx, dy, *given,
        METRIC=metric, HAS_PARTS=has_parts(x.dtype, _triton.arch(x.device)), **options,
    )  # fmt: skip
    return dx, dy


def _score_tiles(a: Rows, b: Rows, groups: Groups, metric: str, gamma: float, s: Tensor, grad: Tensor | None) -> None:
    """Scores, or with `grad` its product with the slope of the metric."""
    x, y, T_X, T_Y = a.values, b.values, len(a.values), len(b.values)
    is_rbf, arch, programs = metric == "rbf", _triton.arch(x.device), _triton.multiprocessors(x.device)
    launch = _triton.product_launch(arch, x.dtype, groups.M, groups.N, groups.B, programs, is_stored=grad is None)
    is_split = metric in COSINES and grad is None and split.pays(arch, x.dtype, groups.M, groups.N, x.shape[1])
    if is_split:
        launch = split.launch(arch, groups.M, groups.N, groups.B, programs)
        parts = split.split(x)
        x, y = parts, parts if b is a else split.split(y)
    # Float32 tiles are summed from registers, where descriptors only add to the pressure.
    is_described = not is_rbf and x.element_size() == 2 and _triton.can_describe(x) and _triton.can_describe(y)
    if is_rbf or (x.element_size() == 2 and arch in _triton.DESCRIPTORS and not is_described):
        launch = split.SMALL if is_split else _triton.SMALL[4 if is_rbf else x.element_size()]
    given: tuple[Any, Any] = (x, y)
    if is_described:
        sizes = launch.BLOCK_M, launch.BLOCK_N
        given = tuple(_triton.describe(rows, size, launch.BLOCK_D) for rows, size in zip(given, sizes, strict=True))
    tiles = groups.B * launch.tiles(groups.M, groups.N)  # packed: at most
    column = 1 if is_rbf else 0  # the stride from step to step of the sum, or from row to row
    score_tiles[(min(tiles, programs),)](
        *given, a.inverse, b.inverse, s, grad, *groups.tables(launch.BLOCK_M, launch.BLOCK_N),
        groups.B, groups.M, groups.N, x.shape[1], T_X, T_Y, x.stride(column), y.stride(column), tiles, gamma,
        METRIC=metric, IS_PACKED=groups.packed is not None, IS_DESCRIBED=is_described, IS_SPLIT=is_split,
        HAS_GRAD=grad is not None, BAND=8, **launch.blocks, **launch.options,
    )  # fmt: skip


def _pull(
    w: Tensor, a: Rows, b: Rows, groups: Groups, metric: str, x: Tensor, is_self: bool = False, is_turned: bool = False
) -> Tensor:
    """Gradient of the rows x behind a, which met b with weights w."""
    T, E = a.values.shape
    D = x.shape[-1]
    arch = _triton.arch(x.device)
    launch = pull_launch(x.dtype, is_self)(arch)
    if groups.packed is None:
        tiles = groups.B * triton.cdiv(groups.M, launch.BLOCK_M)
    else:
        tiles = T // launch.BLOCK_M + groups.B  # at most: counting them would make the host wait
    strides = (1, groups.M) if is_turned else (groups.N, 1)
    g = w.new_empty((T, E), dtype=torch.float32)
    pull_rows[(tiles, triton.cdiv(E, launch.BLOCK_D))](
        w, a.values, b.values, b.inverse, g, *groups.tables(launch.BLOCK_M, None),
        groups.B, groups.M, groups.N, E, b.values.shape[0], *strides, *a.values.stride(), *b.values.stride(),
        0.5 if metric == "shifted_cosine" else 1.0,
        IS_PACKED=groups.packed is not None, IS_SELF=is_self, IS_RBF=metric == "rbf",
        HAS_PARTS=has_parts(x.dtype, arch), **launch.blocks, **launch.options,
    )  # fmt: skip
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    project_rows[(triton.cdiv(T, ROWS["BLOCK_T"]),)](
        g, a.values, a.inverse, a.exponent, dx, T, D, E,
        IS_COSINE=metric in COSINES, **ROWS, **row_launch(arch).options,
    )  # fmt: skip
    return dx
