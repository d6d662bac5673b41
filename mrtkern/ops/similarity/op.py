"""Public `similarity`: checks that need no data, dispatch, torch.library registration, gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mrtkern import _check, _device, _dispatch, _operators
from mrtkern._check import Array
from mrtkern.ops.similarity.problem import METRICS, Packed, Problem

OP = "similarity"


def _run(
    x: Tensor, y: Tensor | None, offsets: Tensor | None, metric: str, gamma: float, backend: str | None,
    wants_grad: bool,
) -> Tensor:  # fmt: skip
    """Every check that reads values, the choice of the backend and the call, below torch.compile."""
    problem = Problem.of(x, y, offsets, metric, gamma, wants_grad)
    groups = None if offsets is None else Packed(offsets)
    if groups is not None:
        groups.check(x.shape[0])
    pairs, largest = (problem.pairs, problem.M) if groups is None else (groups.pairs, groups.largest)
    kernels = _dispatch.run(OP, backend, problem)
    rows = "x" if y is None else "x and y"
    _device.fits(f"{OP}: {rows}", pairs * x.element_size() + kernels.memory(problem, pairs, largest), x.device)
    with torch.autocast(x.device.type, enabled=False):  # an operator's products would be lowered like the caller's
        s: Tensor = kernels.forward(x, y, groups, metric, gamma)
    return s


def _run_backward(
    grad: Tensor, x: Tensor, y: Tensor | None, offsets: Tensor | None, metric: str, gamma: float, backend: str | None,
    need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dL/dx and dL/dy; an empty tensor stands for the one that nobody needs."""
    kernels = _dispatch.run(OP, backend, Problem.of(x, y, offsets, metric, gamma, True))
    groups = None if offsets is None else Packed(offsets)
    with torch.autocast(x.device.type, enabled=False):
        dx, dy = kernels.backward(grad, x, y, groups, metric, gamma, need_x, need_y)
    return x.new_empty(0) if dx is None else dx, x.new_empty(0) if dy is None else dy


def _fake(
    x: Tensor, y: Tensor | None, offsets: Tensor | None, metric: str, gamma: float, backend: str | None,
    wants_grad: bool,
) -> Tensor:  # fmt: skip
    if offsets is None:
        return x.new_empty((*x.shape[:-1], x.shape[-2] if y is None else y.shape[-2]))
    return x.new_empty(torch.library.get_ctx().new_dynamic_size())  # how many scores there are depends on the offsets


def _fake_backward(
    grad: Tensor, x: Tensor, y: Tensor | None, offsets: Tensor | None, metric: str, gamma: float, backend: str | None,
    need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape if need_x else 0), x.new_empty(y.shape if need_y and y is not None else 0)


_operators.define(
    "similarity",
    "(Tensor x, Tensor? y, Tensor? offsets, str metric, float gamma, str? backend, bool wants_grad) -> Tensor",
    _run,
    _fake,
)
_operators.define(
    "similarity_backward",
    "(Tensor grad, Tensor x, Tensor? y, Tensor? offsets, str metric, float gamma, str? backend, bool need_x, "
    "bool need_y) -> (Tensor dx, Tensor dy)",
    _run_backward,
    _fake_backward,
)
_operators.no_second_derivative("similarity_backward", OP, "x and y")


class _Similarity(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, offsets: Tensor | None, metric: str, gamma: float, backend: str | None
    ) -> Tensor:
        ctx.save_for_backward(x, y, offsets)
        ctx.options = (metric, gamma, backend)
        s: Tensor = torch.ops.mrtkern.similarity(x, y, offsets, metric, gamma, backend, True)
        return s

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, offsets = ctx.saved_tensors
        need_x, need_y = ctx.needs_input_grad[:2]
        dx, dy = torch.ops.mrtkern.similarity_backward(grad, x, y, offsets, *ctx.options, need_x, need_y)
        return dx if need_x else None, dy if need_y else None, None, None, None, None


def similarity(
    x: Array,
    y: Array | None = None,
    *,
    metric: str = "cosine",
    offsets: Array | None = None,
    gamma: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Similarity of every row of x with every row of y, or with the rows of its own group.

        x, y = x / |x|, y / |y|
        s = x @ y.mT                                      # metric "cosine"

    Arguments
    ---------
    x : [M, D] or [B, M, D], or packed [T, D] with offsets; float32, float64, bfloat16 or float16
    y : [N, D] or [B, N, D] of the type of x, optional
        None: x with itself.
    metric : str
        "cosine", "dot", "shifted_cosine" (1 + cos) / 2, "clamped_cosine" max(cos, 0), "rbf" exp(-gamma |x - y|^2).
    offsets : int64 [B + 1], optional
        Group b owns rows offsets[b]:offsets[b + 1]; only without y.
    gamma : float, > 0
        For "rbf", in 1 / (unit of x)^2.
    backend : str, optional
        None chooses; a name is obeyed or refused.

    Returns
    -------
    s : [M, N], [B, M, N], or packed, of the type of x
        Packed are the n_b^2 scores of each group row by row, one group after the other. A zero row has cosine 0 with
        all.

    Gradient
    --------
    x and y, once; 0 for a zero row.

    Precision
    ---------
    Lengths are float64 (float32 in small groups, on Triton in small matrices too, whose squares fit its range), sums
    float32 (float64 for float64), rounded once. On NVIDIA GPUs that are made for it (sm_80, sm_90, sm_100)
    float32 cosines of at least 128 rows on either side and more than 80 features are made on matrix units from three
    parts of bfloat16 for each number, which err by no more than float32 sums may: (77 + D / 32) 2**-24 times the sum of
    the products' sizes.

    Raises
    ------
    ValueError
        For NaN or infinity (naming the row, counted through the batch), offsets that do not cover x, and shapes and
        types that do not match.
    MemoryError
        When it cannot fit.
    RuntimeError
        For a double backward and for forward-mode differentiation.

    Memory
    ------
    Beyond inputs and result:

    reference
        20 bytes per feature and 20 per score (with gradient 44 and 36).
    cpu
        With E = D + 16 and R = 2 n + 32 for n rows of the largest group (with y 3 max(M, N) + 64), 4 E R bytes once, as
        much and 800 E + 140,000 more per thread, and with gradient a copy of it where it is not contiguous.
    triton
        With E the next multiple of 16 from D, a copy of E features and 12 bytes per row, of float32 6 E bytes per row
        more, 64 bytes per group (with gradient 4 E bytes per row more, a copy of that of the result, for clamped_cosine
        and rbf 4 bytes per score).

    Devices
    -------
    On a GPU the Triton kernels make what meets a row that is not finite NaN instead of raising, its scores and the
    gradients of all rows that met it; the host waits for the device only where offsets are given, whose sizes the
    result depends on. torch.compile: fullgraph with torch 2.13 as it comes; with offsets, on which the size of the
    result depends, an older one may ask for torch._dynamo.config.capture_dynamic_output_shape_ops = True.

    Determinism
    -----------
    The same bits on every run; on the compiled kernels for every number of threads, too.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> mk.similarity(torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]), metric="shifted_cosine")
    tensor([[1.0000, 0.5000, 0.0000],
            [0.5000, 1.0000, 0.5000],
            [0.0000, 0.5000, 1.0000]])

    Source
    ------
    `mrtkern.ops.similarity` has the equations.
    """
    x, y, offsets = _checked(x, y, offsets, metric, gamma)
    _dispatch.check(OP, backend)
    _check.no_tangent(OP, x=x, y=y)
    wants_grad = torch.is_grad_enabled() and (x.requires_grad or (y is not None and y.requires_grad))
    if wants_grad:
        s: Tensor = _Similarity.apply(x, y, offsets, metric, float(gamma), backend)  # type: ignore[no-untyped-call]
    else:
        s = torch.ops.mrtkern.similarity(x, y, offsets, metric, float(gamma), backend, False)
    return s


def _checked(
    x: Array, y: Array | None, offsets: Array | None, metric: str, gamma: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Shapes, types, devices and options; nothing that reads a tensor."""
    x = _check.floating(OP, "x", x)
    _check.one_of(OP, "metric", metric, METRICS)
    _check.number(OP, "gamma", gamma)
    if not 0 < gamma < math.inf:
        _check.fail(OP, "gamma", "be positive and finite", gamma)
    if x.dtype != torch.float64 and gamma > torch.finfo(torch.float32).max:
        _check.fail(OP, "gamma", f"be a float32 for x of {x.dtype}", gamma)
    if x.ndim not in (2, 3):
        _check.fail(OP, "x", "be [M, D] or [B, M, D]", _check.shape(x))
    if offsets is not None:
        if x.ndim != 2:
            _check.fail(OP, "x", "be [T, D] with offsets", _check.shape(x))
        if y is not None:
            _check.fail(OP, "y", "be None with offsets", _check.shape(y))
        offsets = _check.offsets(OP, offsets, x.device)
    if y is None:
        return x, y, offsets
    y = _check.floating(OP, "y", y)
    _check.same_device(OP, x=x, y=y)
    if y.dtype != x.dtype:
        _check.fail(OP, "y", f"have the type of x, {x.dtype}", y.dtype)
    shapes = f"x {_check.shape(x)} and y {_check.shape(y)}"
    if y.ndim != x.ndim or x.shape[:-2] != y.shape[:-2]:
        _check.fail(OP, "x and y", "be [M, D] and [N, D], or [B, M, D] and [B, N, D]", shapes)
    if x.shape[-1] != y.shape[-1]:
        _check.fail(OP, "x and y", "have the same number of features D", shapes)
    return x, y, offsets
