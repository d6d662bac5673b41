"""Groups of few rows for Triton: one program makes all scores of a group, or their gradient, from rows where they lie.

    score_groups   S = metric(X Y^T)
    pull_groups    dx = (Q Y - p x) / |x|   with Q = W / |y| and p = sum_n w_mn c_mn / |x|; so dy, from W^T

Reads  x [B, M, D] and y [B, N, D], or x [T, D] with offsets, of any strides: once for scores, for gradients once from
       memory and once more from the L2 cache; no copy. M and N are at most BLOCK.
Idea   products of a group fit the registers of a warp or a few. With them the part of a gradient along its row is a sum
       over the group, not over features; where rows meet themselves it is an entry of Q's diagonal.
Sums   float32. Squared lengths are those of the rows as they are, unless a product overflowed or vanished: then rows
       are read again and scaled. One fixed order per score and per gradient: the same bits on every run.
A row that is not finite has inverse length NaN, so that whatever it meets becomes NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mrtkern.ops.similarity.triton.kernels import LARGEST, add_product, exponent, inverse_length, measured, scaled

LOW, HIGH = tl.constexpr(2.0**-60), tl.constexpr(2.0**100)  # squared lengths between which no product was lost


@triton.jit
def place(b, X, Y, OFFSETS, CELLS, M, N, stride_xb, stride_xm, stride_yb, stride_ym, BLOCK: tl.constexpr):
    """Of group b: where its rows begin [BLOCK, 1], of both sides; its first row of x and of y, and score; sizes."""
    i = tl.arange(0, BLOCK).to(tl.int64)
    if OFFSETS is None:
        number = tl.zeros((), tl.int64) + b
        x, y = X + (number * stride_xb + i * stride_xm)[:, None], Y + (number * stride_yb + i * stride_ym)[:, None]
        first_x, first_y, cell, rows, columns = number * M, number * N, number * M * N, M, N
    else:
        first_x, cell = tl.load(OFFSETS + b), tl.load(CELLS + b)
        rows = (tl.load(OFFSETS + b + 1) - first_x).to(tl.int32)
        x, first_y, columns = X + ((first_x + i) * stride_xm)[:, None], first_x, rows
        y = x
    return x, y, first_x, first_y, cell, rows, columns


@triton.jit
def features(x, d, rows, D, stride_d, e, IS_SCALED: tl.constexpr, BLOCK_D: tl.constexpr):
    """Features d … of the rows that begin at x [BLOCK, 1], with IS_SCALED times 2**-e."""
    column = (d + tl.arange(0, BLOCK_D))[None, :]
    is_real = (tl.arange(0, x.shape[0]) < rows)[:, None] & (column < D)
    v = tl.load(x + column.to(tl.int64) * stride_d, mask=is_real, other=0.0)
    return scaled(v.to(tl.float32), e[:, None]).to(v.dtype) if IS_SCALED else v


@triton.jit
def squares(v, VECTOR: tl.constexpr):
    """Sums of squares of the VECTOR features side by side that one thread loads at once."""
    v = v.to(tl.float32)
    return tl.sum(tl.reshape(v * v, (v.shape[0], v.shape[1] // VECTOR, VECTOR)), 2)


@triton.jit
def products(
    x, y, rows, columns, e_x, e_y, D, stride_xd, stride_yd,
    HAS_Y: tl.constexpr, IS_SCALED: tl.constexpr, STAGES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Products [BLOCK, BLOCK] and squared lengths of both sides [BLOCK]: without y these stand on the diagonal."""
    VECTOR: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    c = tl.zeros((BLOCK, BLOCK), tl.float32)
    square_x, square_y = (
        tl.zeros((BLOCK, BLOCK_D // VECTOR), tl.float32),
        tl.zeros((BLOCK, BLOCK_D // VECTOR), tl.float32),
    )
    for d in tl.range(0, D, BLOCK_D, num_stages=STAGES):
        v = features(x, d, rows, D, stride_xd, e_x, IS_SCALED, BLOCK_D)
        if HAS_Y:
            u = features(y, d, columns, D, stride_yd, e_y, IS_SCALED, BLOCK_D)
            square_x += squares(v, VECTOR)
            square_y += squares(u, VECTOR)
            c = tl.dot(v, u.T, c, input_precision="ieee")
        else:
            c = tl.dot(v, v.T, c, input_precision="ieee")
    if HAS_Y:
        lengths_x, lengths_y = tl.sum(square_x, 1), tl.sum(square_y, 1)
    else:
        i = tl.arange(0, BLOCK)
        lengths_x = tl.sum(tl.where(i[:, None] == i[None, :], c, 0.0), 1)
        lengths_y = lengths_x
    return c, lengths_x, lengths_y


@triton.jit
def extent(x, rows, D, stride_d, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Of rows: the exponent of the largest feature, and whether one is not finite (0 or 1)."""
    largest, bad = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.int32)
    for d in tl.range(0, D, BLOCK_D, num_stages=1):
        size = tl.abs(features(x, d, rows, D, stride_d, bad, False, BLOCK_D).to(tl.float32))
        largest = tl.maximum(largest, tl.max(size, 1))
        bad = tl.maximum(bad, tl.max(tl.where(size <= LARGEST, 0, 1), 1))
    return exponent(tl.where(bad > 0, 1.0, largest)), bad


@triton.jit
def num_lost(square, rows):
    """How many of so many rows have a squared length that tells nothing."""
    is_safe = (square >= LOW) & (square <= HIGH)
    return tl.sum(tl.where(is_safe | (tl.arange(0, square.shape[0]) >= rows), 0, 1), 0)


@triton.jit
def multiplied(
    x, y, rows, columns, D, stride_xd, stride_yd,
    METRIC: tl.constexpr, HAS_Y: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """c, the products over both lengths; the inverse lengths; whether (above 0) these are of rows times 2**-exponent.
    For "dot" all lengths are 1."""
    zero = tl.zeros((BLOCK,), tl.int32)
    c, square_x, square_y = products(
        x, y, rows, columns, zero, zero, D, stride_xd, stride_yd, HAS_Y, False, None, BLOCK, BLOCK_D
    )
    bad_x, bad_y = zero, zero
    lost = num_lost(square_x, rows)
    if HAS_Y:
        lost += num_lost(square_y, columns)
    if lost > 0:
        e_x, bad_x = extent(x, rows, D, stride_xd, BLOCK, BLOCK_D)
        e_y, bad_y = e_x, bad_x
        if HAS_Y:
            e_y, bad_y = extent(y, columns, D, stride_yd, BLOCK, BLOCK_D)
        if METRIC != "dot":
            c, square_x, square_y = products(
                x, y, rows, columns, e_x, e_y, D, stride_xd, stride_yd, HAS_Y, True, 1, BLOCK, BLOCK_D
            )
    if METRIC == "dot":
        inverse_x, inverse_y = tl.where(bad_x > 0, float("nan"), 1.0), tl.where(bad_y > 0, float("nan"), 1.0)
    else:
        inverse_x, inverse_y = inverse_length(square_x, bad_x > 0), inverse_length(square_y, bad_y > 0)
    c *= inverse_x[:, None] * inverse_y[None, :]  # the same bits on both sides of the diagonal
    return c, inverse_x, inverse_y, lost


@triton.jit
def cells(cell, rows, columns, BLOCK: tl.constexpr):
    """Where the scores of a group lie [BLOCK, BLOCK], and which of these are real."""
    i = tl.arange(0, BLOCK)
    return cell + (i[:, None] * columns + i[None, :]), (i < rows)[:, None] & (i < columns)[None, :]


@triton.jit
def score_groups(
    X, Y, S, OFFSETS, CELLS, B, M, N, D, stride_xb, stride_xm, stride_xd, stride_yb, stride_ym, stride_yd,
    METRIC: tl.constexpr, HAS_Y: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """S of groups program, program + programs, ...: M x N scores, or n x n with offsets."""
    for b in tl.range(tl.program_id(0), B, tl.num_programs(0)):
        x, y, _, _, cell, rows, columns = place(
            b, X, Y, OFFSETS, CELLS, M, N, stride_xb, stride_xm, stride_yb, stride_ym, BLOCK
        )
        c, _, _, _ = multiplied(x, y, rows, columns, D, stride_xd, stride_yd, METRIC, HAS_Y, BLOCK, BLOCK_D)
        at, is_inside = cells(cell, rows, columns, BLOCK)
        tl.store(S + at, measured(c, 1.0, METRIC).to(S.dtype.element_ty), mask=is_inside)


@triton.jit
def pulled(
    q, p, x, y, rows, columns, inverse, e_x, e_y, DX, first, D, stride_xd, stride_yd,
    HAS_OWN: tl.constexpr, HAS_PARTS: tl.constexpr, IS_SCALED: tl.constexpr, STAGES: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx = (q y - p x) inverse of rows first … of DX [T, D]; without HAS_OWN p is 0, or in q already."""
    i = tl.arange(0, BLOCK)
    out = DX + first * D + i[:, None] * D
    for d in tl.range(0, D, BLOCK_D, num_stages=STAGES):
        v = features(y, d, columns, D, stride_yd, e_y, IS_SCALED, BLOCK_D)
        if HAS_PARTS:
            g = add_product(tl.zeros((BLOCK, BLOCK_D), tl.float32), q, v)
        else:
            g = tl.dot(q, v.to(tl.float32), input_precision="ieee")
        if HAS_OWN:
            g -= p[:, None] * features(x, d, rows, D, stride_xd, e_x, IS_SCALED, BLOCK_D).to(tl.float32)
        g *= inverse[:, None]
        if IS_SCALED:
            g = scaled(g, e_x[:, None])
        column = (d + tl.arange(0, BLOCK_D))[None, :]
        tl.store(out + column, g.to(DX.dtype.element_ty), mask=(i < rows)[:, None] & (column < D))


@triton.jit
def pulled_as_read(
    q, p, x, y, rows, columns, inverse, lost, DX, first, D, stride_xd, stride_yd,
    METRIC: tl.constexpr, HAS_Y: tl.constexpr, HAS_PARTS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`pulled`, from rows scaled where their products were."""
    HAS_OWN: tl.constexpr = HAS_Y and METRIC != "dot"
    zero = tl.zeros((BLOCK,), tl.int32)
    if METRIC == "dot" or lost == 0:
        pulled(
            q, p, x, y, rows, columns, inverse, zero, zero, DX, first, D, stride_xd, stride_yd,
            HAS_OWN, HAS_PARTS, False, None, BLOCK, BLOCK_D,
        )  # fmt: skip
    else:
        e_x, _ = extent(x, rows, D, stride_xd, BLOCK, BLOCK_D)
        e_y = e_x
        if HAS_Y:
            e_y, _ = extent(y, columns, D, stride_yd, BLOCK, BLOCK_D)
        pulled(
            q, p, x, y, rows, columns, inverse, e_x, e_y, DX, first, D, stride_xd, stride_yd,
            HAS_OWN, HAS_PARTS, True, 1, BLOCK, BLOCK_D,
        )  # fmt: skip


@triton.jit
def pull_groups(
    W, X, Y, DX, DY, OFFSETS, CELLS, B, M, N, D,
    stride_xb, stride_xm, stride_xd, stride_yb, stride_ym, stride_yd,
    METRIC: tl.constexpr, HAS_Y: tl.constexpr, HAS_PARTS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """DX, DY of groups program, program + programs, ... under the gradient W of their scores; None where not needed."""
    i = tl.arange(0, BLOCK)
    for b in tl.range(tl.program_id(0), B, tl.num_programs(0)):
        x, y, first_x, first_y, cell, rows, columns = place(
            b, X, Y, OFFSETS, CELLS, M, N, stride_xb, stride_xm, stride_yb, stride_ym, BLOCK
        )
        c, inverse_x, inverse_y, lost = multiplied(
            x, y, rows, columns, D, stride_xd, stride_yd, METRIC, HAS_Y, BLOCK, BLOCK_D
        )
        at, is_inside = cells(cell, rows, columns, BLOCK)
        w = tl.load(W + at, mask=is_inside, other=0.0).to(tl.float32)
        if METRIC == "clamped_cosine":
            w = tl.where(c > 0, w, 0.0)
        elif METRIC == "shifted_cosine":
            w *= 0.5
        if not HAS_Y:
            w += tl.trans(w)
        along = w * c if METRIC != "dot" else tl.zeros((BLOCK, BLOCK), tl.float32)
        if DX is not None:
            q, p = w * inverse_y[None, :], tl.sum(along, 1) * inverse_x
            if not HAS_Y:
                q = tl.where(i[:, None] == i[None, :], q - p[:, None], q)
            pulled_as_read(
                q, p, x, y, rows, columns, inverse_x, lost, DX, first_x, D, stride_xd, stride_yd,
                METRIC, HAS_Y, HAS_PARTS, BLOCK, BLOCK_D,
            )  # fmt: skip
        if DY is not None:
            q, p = tl.trans(w * inverse_x[:, None]), tl.sum(along, 0) * inverse_y
            pulled_as_read(
                q, p, y, x, columns, rows, inverse_y, lost, DY, first_y, D, stride_yd, stride_xd,
                METRIC, HAS_Y, HAS_PARTS, BLOCK, BLOCK_D,
            )  # fmt: skip
