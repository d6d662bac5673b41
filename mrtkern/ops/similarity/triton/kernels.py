"""Kernels of similarity for Triton. Shapes: x [B, M, D] as rows [T, D], scores S of group b at its own begin.

`scale_rows`     x -> A = x 2**-e, |A| about 1 in the largest component, features side by side and padded; 1 / |A|; e
`score_tiles`    S = metric(A B^T), or the gradient of S carried back to the product
`pull_rows`      G = W B, the gradient of rows before it is projected
`project_rows`   dx = (G - a <a, G>) / |x|

Groups of few rows are in small.py.

Sums   float32; lengths float64. One fixed order per score and per gradient: the same bits on every run.
A row that is not finite has inverse length NaN, so that whatever it meets becomes NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mrtkern._triton import banded, described_product, product
from mrtkern.ops.similarity.triton.split import parts as products_of_parts

LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32: what exceeds it is infinite
TINY, UP = tl.constexpr(2.0**-100), tl.constexpr(2.0**100)  # lift subnormals before their exponent is read


@triton.jit
def power(e):
    """2.0**e for e from -126 to 127."""
    return ((e + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exponent(largest):
    """e with largest 2**-e in [1/2, 1); 0 for 0. Subnormal numbers included."""
    is_tiny = largest < TINY
    bits = tl.where(is_tiny, largest * UP, largest).to(tl.int32, bitcast=True)
    e = ((bits >> 23) & 255) - 126 - tl.where(is_tiny, 100, 0)
    return tl.where(largest > 0, e, 0)


@triton.jit
def scaled(v, e):
    """v 2**-e, in two steps because 2**-e alone may overflow."""
    half = e >> 1
    return v * power(-half) * power(half - e)


@triton.jit
def inverse_length(square, is_bad):
    """1 / sqrt(square), 0 for 0, NaN where a row is not finite; in the type of square."""
    square_or_one = tl.where(square > 0, square, 1.0)
    if square.dtype == tl.float32:  # NVIDIA's float32 roots and quotients are off by some units: one step of Newton's
        near = tl.rsqrt(square_or_one)
        inverse = tl.fma(near * 0.5, tl.fma(-square_or_one * near, near, tl.full(near.shape, 1.0, tl.float32)), near)
    else:
        inverse = 1.0 / tl.sqrt(square_or_one)
    return tl.where(is_bad, float("nan"), tl.where(square > 0, inverse, 0.0))


@triton.jit
def parts(inverse):
    """float64 as two float32 that add up to it."""
    high = inverse.to(tl.float32)
    return high, (inverse - high.to(tl.float64)).to(tl.float32)


@triton.jit
def times(v, high, low):
    """v (high + low), rounded about once."""
    return tl.fma(v, tl.broadcast_to(high, v.shape), v * low)


@triton.jit
def relative(high, low):
    """low / high, 0 where both are."""
    return tl.where(high == 0, 0.0, low / high)


@triton.constexpr_function
def is_wide(metric, scores):
    """Whether scores behind this pointer are cosines in float32; 16 bits hide roundings, others have no lengths."""
    return metric not in ("dot", "rbf") and scores.dtype.element_ty == tl.float32


@triton.jit
def between(c, high_x, low_x, high_y, low_y, IS_WIDE: tl.constexpr):
    """c / (|x| |y|), the same bits when x and y change places; with IS_WIDE rounded about once."""
    both = high_x * high_y
    if not IS_WIDE:
        return c * both
    x, y = tl.broadcast_to(high_x, c.shape), tl.broadcast_to(high_y, c.shape)
    return times(c, both, tl.fma(both, relative(high_x, low_x) + relative(high_y, low_y), tl.fma(x, y, -both)))


@triton.jit
def lengths(INVERSE, t, T, mask):
    """The inverse lengths of rows t, which are kept as two float32."""
    return tl.load(INVERSE + t, mask=mask, other=0.0), tl.load(INVERSE + T + t, mask=mask, other=0.0)


@triton.jit
def scale_rows(
    X, A, INVERSE, EXPONENT, T, M, D, E, stride_b, stride_m, stride_d, stride_at, stride_ad,
    IS_COSINE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A [T, E], INVERSE [2, T], EXPONENT [T] of x [B, M, D]; without IS_COSINE a copy, with inverse 1."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    steps = tl.arange(0, BLOCK_D)
    is_t = t < T
    x = X + ((t // M) * stride_b + (t % M) * stride_m)[:, None]
    largest, bad = tl.zeros((BLOCK_T,), tl.float32), tl.zeros((BLOCK_T,), tl.int32)
    for d in tl.range(0, D, BLOCK_D):
        column = (d + steps).to(tl.int64)
        v = tl.load(x + column[None, :] * stride_d, mask=is_t[:, None] & (column < D)[None, :], other=0.0)
        size = tl.abs(v.to(tl.float32))
        largest = tl.maximum(largest, tl.max(size, 1))
        bad = tl.maximum(bad, tl.max(tl.where(size <= LARGEST, 0, 1), 1))
    e = exponent(tl.where(bad > 0, 1.0, largest)) if IS_COSINE else tl.zeros((BLOCK_T,), tl.int32)
    square = tl.zeros((BLOCK_T,), tl.float64)
    for d in tl.range(0, E, BLOCK_D):
        column = (d + steps).to(tl.int64)
        v = tl.load(x + column[None, :] * stride_d, mask=is_t[:, None] & (column < D)[None, :], other=0.0)
        a = scaled(v.to(tl.float32), e[:, None])
        square += tl.sum(a.to(tl.float64) * a.to(tl.float64), 1)
        out = A + t[:, None] * stride_at + column[None, :] * stride_ad
        tl.store(out, a.to(A.dtype.element_ty), mask=is_t[:, None] & (column < E)[None, :])
    if IS_COSINE:
        inverse = inverse_length(square, bad > 0)
    else:
        inverse = tl.where(bad > 0, float("nan"), 1.0).to(tl.float64)
    high, low = parts(inverse)
    tl.store(INVERSE + t, high, mask=is_t)
    tl.store(INVERSE + T + t, low, mask=is_t)
    tl.store(EXPONENT + t, e, mask=is_t)


@triton.jit
def find(tile, TILES, B):
    """The group that owns a tile: the last b with TILES[b] <= tile."""
    low = tile * 0
    high = low + B
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(TILES + middle) <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def distances(X, Y, m, n, M, N, D, stride_x, stride_y, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Squared distances [BLOCK_M, BLOCK_N], differences first; X and Y lie feature by feature."""
    rows_x, rows_y = m + tl.arange(0, BLOCK_M), n + tl.arange(0, BLOCK_N)
    x, y = X + rows_x, Y + rows_y
    square = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in tl.range(0, D):
        a = tl.load(x, mask=rows_x < M, other=0.0).to(tl.float32)
        b = tl.load(y, mask=rows_y < N, other=0.0).to(tl.float32)
        difference = a[:, None] - b[None, :]
        square += difference * difference
        x += stride_x
        y += stride_y
    return square


@triton.jit
def measured(c, gamma, METRIC: tl.constexpr):
    """The metric of products of unit rows ("dot": of rows; "rbf": of squared distances). NaN stays NaN."""
    if METRIC == "rbf":
        c = tl.exp(-gamma * c)
    elif METRIC != "dot":
        c = tl.where(c > 1, 1.0, c)
        c = tl.where(c < -1, -1.0, c)
        if METRIC == "shifted_cosine":
            c = (1 + c) * 0.5
        elif METRIC == "clamped_cosine":
            c = tl.where(c < 0, 0.0, c)
    return c


@triton.jit
def score_tiles(
    X, Y, INVERSE_X, INVERSE_Y, S, GRAD, OFFSETS, TILES, CELLS, B, M, N, D, T_X, T_Y, stride_x, stride_y, tiles, gamma,
    METRIC: tl.constexpr, IS_PACKED: tl.constexpr, IS_DESCRIBED: tl.constexpr, IS_SPLIT: tl.constexpr,
    HAS_GRAD: tl.constexpr, BAND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Tiles of S: M x N scores of each of B entries, or n x n of each group; with HAS_GRAD of W instead."""
    each = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    if IS_PACKED:
        tiles = tl.load(TILES + B)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        if IS_PACKED:
            b = find(tile, TILES, B)
            first_x = tl.load(OFFSETS + b)
            first_y, cell, inside = first_x, tl.load(CELLS + b), (tile - tl.load(TILES + b)).to(tl.int32)
            rows = (tl.load(OFFSETS + b + 1) - first_x).to(tl.int32)
            columns = rows
        else:
            b = (tile // each).to(tl.int64)
            first_x, first_y, cell, inside = b * M, b * N, b * M * N, tile % each
            rows, columns = M, N
        tile_m, tile_n = banded(inside, tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N), BAND)
        m, n = tile_m * BLOCK_M, tile_n * BLOCK_N
        if METRIC == "rbf":
            c = distances(X + first_x, Y + first_y, m, n, rows, columns, D, stride_x, stride_y, BLOCK_M, BLOCK_N)
        elif IS_SPLIT:
            c = products_of_parts(
                X, Y, first_x, first_y, m, n, rows, columns, T_X, T_Y, D, stride_x, stride_y, IS_DESCRIBED,
                BLOCK_M, BLOCK_N, BLOCK_D,
            )  # fmt: skip
        elif IS_DESCRIBED:
            c = described_product(
                X, Y, (first_x + m).to(tl.int32), (first_y + n).to(tl.int32), D, BLOCK_M, BLOCK_N, BLOCK_D
            )
        else:
            x, y = X + first_x * stride_x, Y + first_y * stride_y
            c = product(x, y, m, n, rows, columns, D, stride_x, stride_y, BLOCK_M, BLOCK_N, BLOCK_D)
        is_m, is_n = m + tl.arange(0, BLOCK_M) < rows, n + tl.arange(0, BLOCK_N) < columns
        high_x, low_x = lengths(INVERSE_X, first_x + m + tl.arange(0, BLOCK_M), T_X, is_m)
        high_y, low_y = lengths(INVERSE_Y, first_y + n + tl.arange(0, BLOCK_N), T_Y, is_n)
        IS_WIDE: tl.constexpr = is_wide(METRIC, S) and not HAS_GRAD
        c = between(c, high_x[:, None], low_x[:, None], high_y[None, :], low_y[None, :], IS_WIDE)
        c = measured(c, gamma, METRIC)
        at = cell + (m + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None] * columns + (n + tl.arange(0, BLOCK_N))[None, :]
        is_inside = is_m[:, None] & is_n[None, :]
        if HAS_GRAD:
            grad = tl.load(GRAD + at, mask=is_inside, other=0.0).to(tl.float32)
            c = -2 * gamma * c * grad if METRIC == "rbf" else tl.where(c > 0, grad, 0.0)
        tl.store(S + at, c.to(S.dtype.element_ty), mask=is_inside)


@triton.jit
def add_product(g, w, v):
    """g + w v for 16-bit v. w is cut into parts that matrix units hold: three of bfloat16, or two of tf32."""
    IS_BF16: tl.constexpr = v.dtype == tl.bfloat16
    KEPT: tl.constexpr = -65536 if IS_BF16 else -8192  # the bits of a float32 that such a part has
    for _ in tl.static_range(3 if IS_BF16 else 2):
        part = (w.to(tl.int32, bitcast=True) & KEPT).to(tl.float32, bitcast=True)
        if IS_BF16:
            g = tl.dot(part.to(tl.bfloat16), v, g)
        else:
            g = tl.dot(part, v.to(tl.float32), g, input_precision="tf32")
        w -= part
    return g


@triton.jit
def pull_rows(
    W, X, Y, INVERSE_Y, G, OFFSETS, TILES, CELLS, B, M, N, E, T, stride_wm, stride_wn,
    stride_xt, stride_xd, stride_yt, stride_yd, factor,
    IS_PACKED: tl.constexpr, IS_SELF: tl.constexpr, IS_RBF: tl.constexpr, HAS_PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """G [T, E] = factor sum_n w_mn y_n / |y_n|, w with its transpose where rows meet themselves; rbf: of x_m - y_n."""
    tile = tl.program_id(0)
    if IS_PACKED:
        if tile >= tl.load(TILES + B):
            return
        b = find(tile, TILES, B)
        first_x = tl.load(OFFSETS + b)
        first_y, cell, m = first_x, tl.load(CELLS + b), (tile - tl.load(TILES + b)).to(tl.int32) * BLOCK_M
        rows = (tl.load(OFFSETS + b + 1) - first_x).to(tl.int32)
        columns, stride_wm = rows, rows
    else:
        each = tl.cdiv(M, BLOCK_M)
        b = (tile // each).to(tl.int64)
        first_x, first_y, cell, m = b * M, b * N, b * M * N, (tile % each) * BLOCK_M
        rows, columns = M, N
    at_m, at_d = (m + tl.arange(0, BLOCK_M)).to(tl.int64), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_m, is_d = at_m < rows, (at_d < E)[None, :]
    y = Y + first_y * stride_yt + at_d.to(tl.int64)[None, :] * stride_yd
    g = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for n in tl.range(0, columns, BLOCK_N):
        at_n = (n + tl.arange(0, BLOCK_N)).to(tl.int64)
        is_n = at_n < columns
        mask = is_m[:, None] & is_n[None, :]
        w = tl.load(W + cell + at_m[:, None] * stride_wm + at_n[None, :] * stride_wn, mask=mask, other=0.0)
        w = w.to(tl.float32)
        if IS_SELF:
            turned = tl.load(W + cell + at_n[None, :] * stride_wm + at_m[:, None] * stride_wn, mask=mask, other=0.0)
            w += turned.to(tl.float32)
        total += tl.sum(w, 1)
        v = tl.load(y + at_n[:, None] * stride_yt, mask=is_n[:, None] & is_d, other=0.0)
        if HAS_PARTS:
            w *= tl.load(INVERSE_Y + first_y + at_n, mask=is_n, other=0.0)[None, :]
            g = add_product(g, w, v)
        else:
            high, low = lengths(INVERSE_Y, first_y + at_n, T, is_n)
            v = times(v.to(tl.float32), high[:, None], low[:, None])
            g = tl.dot(w, v, g, input_precision="ieee")
    t = (first_x + at_m)[:, None]
    if IS_RBF:
        x = tl.load(X + t * stride_xt + at_d.to(tl.int64)[None, :] * stride_xd, mask=is_m[:, None] & is_d, other=0.0)
        g = total[:, None] * x.to(tl.float32) - g
    tl.store(G + t * E + at_d[None, :], g * factor, mask=is_m[:, None] & is_d)


@triton.jit
def project_rows(
    G, A, INVERSE, EXPONENT, DX, T, D, E,
    IS_COSINE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx [T, D] from G [T, E]; without IS_COSINE G itself, NaN where a row is not finite."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    steps = tl.arange(0, BLOCK_D)
    is_t = t < T
    e = tl.load(EXPONENT + t, mask=is_t, other=0)[:, None]
    high, low = lengths(INVERSE, t[:, None], T, is_t[:, None])
    along = tl.zeros((BLOCK_T,), tl.float32)
    if IS_COSINE:
        for d in tl.range(0, D, BLOCK_D):
            mask = is_t[:, None] & (d + steps < E)[None, :]  # beyond D there are zeros
            at = t[:, None] * E + (d + steps)[None, :]
            a = times(tl.load(A + at, mask=mask, other=0.0).to(tl.float32), high, low)
            along += tl.sum(a * tl.load(G + at, mask=mask, other=0.0), 1)
    for d in tl.range(0, D, BLOCK_D):
        mask = is_t[:, None] & (d + steps < E)[None, :]
        at = t[:, None] * E + (d + steps)[None, :]
        g = tl.load(G + at, mask=mask, other=0.0)
        if IS_COSINE:
            a = times(tl.load(A + at, mask=mask, other=0.0).to(tl.float32), high, low)
            g -= a * along[:, None]
            g = scaled(times(g, high, low), e)
        else:
            g *= high  # 1 or NaN; times 0, the low part, an infinite gradient would be NaN
        out = DX + t[:, None] * D + (d + steps)[None, :]
        tl.store(out, g.to(DX.dtype.element_ty), mask=is_t[:, None] & (d + steps < D)[None, :])
