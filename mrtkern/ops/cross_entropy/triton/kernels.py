"""cross_entropy for Triton: one program computes the loss, the details and the gradient of one row of logits.

    loss[t] = sum_e w_e l_e,   gradient[t] = dL/dz_t        with u = scale * cap(z), see `mrtkern.ops.cross_entropy`

Reads  logits [T, V], targets, weights.   Writes gradient [T, V], which may be the logits; numbers per row and target.
Idea   a row stays in registers where it fits: one read and one write per logit. A longer row is read a second time
       while it lies in the L2 cache. Maxima and sums belong to a thread until the row ends: its loop has no barrier.
Sums   float32 per thread over what it reads, then over threads by halves; rows in float64, ascending by lanes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

PLAIN, SCALED, CAPPED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
NO_COLUMN = tl.constexpr(2**31 - 1)
LOWEST = tl.constexpr(-256.0)  # of d = u - m in e d: e = exp(d) is 0 there, and so is e d, however large its factors
LOG2_E = tl.constexpr(1.4426950408889634)
IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # the interpreter has no libdevice
TANH_NEAR = tl.constexpr(0.35)  # below it the series to x^11 errs by 2e-8, beyond it 1 - exp(-2x) keeps 23 bits


@triton.jit
def _exp(x):
    """exp(x), subnormals flushed on a device: tl.exp handles them with three more instructions, of 11 per logit."""
    if IS_INTERPRETED:
        e = tl.exp2(x * LOG2_E)
    else:
        e = libdevice.exp2(x * LOG2_E)
    return e


@triton.jit
def _cap(z, cap_in, cap_out, CAP: tl.constexpr):
    """t and du/dz: u = cap_out t and t = tanh(cap_in z) or z, or u = t = z.

    Only differences of t are multiplied: whatever a compiler fuses, that of a logit to itself is 0, so no probability
    exceeds 1 and no loss is negative.
    """
    if CAP == CAPPED:
        x = cap_in * z
        e = _exp(-2.0 * tl.abs(x))
        far = 1.0 - 2.0 * e / (1.0 + e)
        y = x * x
        series = -1.0 / 3 + y * (2.0 / 15 + y * (-17.0 / 315 + y * (62.0 / 2835 - y * (1382.0 / 155925))))
        t = tl.where(tl.abs(x) < TANH_NEAR, x + x * y * series, tl.where(x < 0, -far, far))
        slope = cap_in * cap_out * (4.0 * e / ((1.0 + e) * (1.0 + e)))
    elif CAP == SCALED:
        t, slope = z, cap_out
    else:
        t, slope = z, 1.0
    return t, slope


@triton.jit
def _times(t, cap_out, CAP: tl.constexpr):
    """u, or a difference of two, from t."""
    if CAP != PLAIN:
        t = cap_out * t
    return t


@triton.jit
def _columns(v, REPEAT: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr):
    """Columns of a tile [REPEAT, THREADS, VECTOR]: what one thread holds lies in the first and the last axis."""
    i = tl.arange(0, REPEAT)[:, None, None] * (THREADS * VECTOR)
    return v + i + tl.arange(0, THREADS)[None, :, None] * VECTOR + tl.arange(0, VECTOR)[None, None, :]


@triton.jit
def _per_thread(x):
    return tl.sum(tl.sum(x, 2), 0)


@triton.jit
def _add(
    z, columns, V, top, shift, total, weighted, plain, count, best, cap_in, cap_out,
    CAP: tl.constexpr, HAS_ENTROPY: tl.constexpr, HAS_SMOOTHING: tl.constexpr, HAS_BEST: tl.constexpr,
):  # fmt: skip
    """Adds a tile to what every thread knows of its columns [THREADS].

    top: the largest z; best: its lowest column; shift: t of top, 0 while that is -infinity; with d = u - cap_out shift,
    total, weighted, plain: sums of exp(d), of exp(d) d, of d over `count` columns.
    """
    largest = tl.max(tl.max(z, 2), 0)
    if HAS_BEST:
        found = tl.where((z == largest[None, :, None]) & (columns < V), columns, NO_COLUMN)
        found = tl.min(tl.min(found, 2), 0)
        best = tl.where((largest > top) | (best == NO_COLUMN), found, best)
    top = tl.maximum(top, largest)
    t_top, _ = _cap(top, cap_in, cap_out, CAP)
    new = tl.where(t_top == -float("inf"), 0.0, t_top)
    less = tl.where(total == 0.0, 0.0, _times(shift - new, cap_out, CAP))
    back = _exp(less)
    t, _ = _cap(z, cap_in, cap_out, CAP)
    d = _times(t - new[None, :, None], cap_out, CAP)
    e = _exp(d)
    if CAP == CAPPED:  # the cap makes -infinity, which fills the last tile, finite
        e = tl.where(columns < V, e, 0.0)
    if HAS_ENTROPY:
        weighted = (weighted + tl.maximum(less, LOWEST) * total) * back + _per_thread(e * tl.maximum(d, LOWEST))
    if HAS_SMOOTHING:
        plain += less * count + _per_thread(tl.where(columns < V, d, 0.0))
        count += _per_thread((columns < V).to(tl.float32))
    total = total * back + _per_thread(e)
    return top, new, total, weighted, plain, count, best


@triton.jit
def _finish(top, shift, total, weighted, plain, count, best, cap_out, V, CAP: tl.constexpr):
    """Of the row, from what its threads know: m, the largest t; sum exp(d), sum exp(d) d and mean d, d = u - cap_out m;
    lowest best column."""
    m = tl.max(tl.where(total == 0.0, -float("inf"), shift), 0)
    m = tl.where(m == -float("inf"), 0.0, m)
    less = tl.where(total == 0.0, 0.0, _times(shift - m, cap_out, CAP))
    back = _exp(less)
    found = tl.min(tl.where(top == tl.max(top, 0), best, NO_COLUMN), 0)
    tilted = tl.sum((weighted + tl.maximum(less, LOWEST) * total) * back, 0)
    mean = tl.sum(plain + less * count, 0) / V
    return m, tl.sum(total * back, 0), tilted, mean, tl.where(found == NO_COLUMN, -1, found)


@triton.jit
def _load(Z, columns, V, POLICY: tl.constexpr):
    return tl.load(Z + columns, mask=columns < V, other=-float("inf"), eviction_policy=POLICY)


@triton.jit
def _statistics(
    Z, V, GIVEN_LSE, t, cap_in, cap_out, CAP: tl.constexpr, HAS_ENTROPY: tl.constexpr, HAS_SMOOTHING: tl.constexpr,
    HAS_BEST: tl.constexpr, IS_ONE_TILE: tl.constexpr, REPEAT: tl.constexpr, THREADS: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """The row if it is one tile, and what `_finish` says of all tiles; with a given lse only what gives that."""
    TILE: tl.constexpr = REPEAT * THREADS * VECTOR
    top = tl.full((THREADS,), -float("inf"), tl.float32)
    zeros = tl.zeros((THREADS,), tl.float32)
    shift, total, weighted, plain, count = zeros, zeros, zeros, zeros, zeros
    best = tl.full((THREADS,), NO_COLUMN, tl.int32)
    columns = _columns(0, REPEAT, THREADS, VECTOR)
    if IS_ONE_TILE:
        narrow = _load(Z, columns, V, "evict_first")
    else:
        narrow = zeros
    if GIVEN_LSE is not None:
        lse = tl.load(GIVEN_LSE + t)
        if CAP == PLAIN:
            m = lse.to(tl.float32)
            s = _exp((lse - m.to(tl.float64)).to(tl.float32))
        else:
            m = (lse / cap_out).to(tl.float32)
            s = _exp((lse - m.to(tl.float64) * cap_out).to(tl.float32))
        tilted, mean, found = 0.0, 0.0, 0
    elif IS_ONE_TILE:
        top, shift, total, weighted, plain, count, best = _add(
            narrow.to(tl.float32), columns, V, top, shift, total, weighted, plain, count, best, cap_in, cap_out,
            CAP, HAS_ENTROPY, HAS_SMOOTHING, HAS_BEST,
        )  # fmt: skip
        m, s, tilted, mean, found = _finish(top, shift, total, weighted, plain, count, best, cap_out, V, CAP)
    else:
        for v in range(0, V, TILE):
            z = _load(Z, v + columns, V, "evict_last").to(tl.float32)
            top, shift, total, weighted, plain, count, best = _add(
                z, v + columns, V, top, shift, total, weighted, plain, count, best, cap_in, cap_out,
                CAP, HAS_ENTROPY, HAS_SMOOTHING, HAS_BEST,
            )  # fmt: skip
        m, s, tilted, mean, found = _finish(top, shift, total, weighted, plain, count, best, cap_out, V, CAP)
    return narrow, m, s, tilted, mean, found


@triton.jit
def _span(OFFSETS, t, num_targets):
    """First and last entry of row t, inside the targets, and whether the offsets say so themselves."""
    if OFFSETS is None:
        begin, end, is_right = t, t + 1, t >= 0
    else:
        begin, end = tl.load(OFFSETS + t), tl.load(OFFSETS + t + 1)
        is_right = (begin >= 0) & (begin <= end) & (end <= num_targets)
        begin, end = tl.minimum(tl.maximum(begin, 0), num_targets), tl.minimum(tl.maximum(end, 0), num_targets)
    return begin, end, is_right


@triton.jit
def _entries(
    i, end, V, TARGETS, WEIGHT, weight_stride, ignore_index, HAS_PART: tl.constexpr
):  # fmt: skip
    """Targets, weights (NaN for a target that is none, 0 for an ignored one), which are valid, which are columns."""
    y = tl.load(TARGETS + i, mask=i < end, other=ignore_index)
    is_valid = (i < end) & (y != ignore_index)
    is_column = is_valid & (y >= 0) & (y < V)
    w = tl.load(WEIGHT + i * weight_stride, mask=is_valid, other=0.0)
    if HAS_PART:  # of the classes: negative targets are among the others
        is_bad = is_valid & (y >= V)
    else:
        is_bad = is_valid & (is_column == 0)
    return y, tl.where(is_bad, float("nan"), w), is_valid, is_column


@triton.jit
def _weights(
    begin, end, V, TARGETS, WEIGHT, weight_stride, ignore_index, HAS_PART: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    """Sum of the weights of a row, whether one is not 0, whether a target is valid."""
    mass, has_weight, has_target = 0.0, 0, 0
    for e in range(begin, end, BLOCK_E):
        _, w, is_valid, _ = _entries(
            e + tl.arange(0, BLOCK_E), end, V, TARGETS, WEIGHT, weight_stride, ignore_index, HAS_PART
        )
        mass += tl.sum(w, 0)
        has_weight = has_weight | tl.max((w != 0.0).to(tl.int32), 0)
        has_target = has_target | tl.max(is_valid.to(tl.int32), 0)
    return mass, has_weight, has_target


@triton.jit
def _weight_of_column(
    y, w, begin, end, V, TARGETS, WEIGHT, weight_stride, ignore_index, HAS_PART: tl.constexpr,
    HAS_OFFSETS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """For each of some targets, the weights of all targets of the row that are equal to it."""
    if HAS_OFFSETS:
        w = tl.zeros((BLOCK_E,), tl.float32)
        for e in range(begin, end, BLOCK_E):
            other, more, _, _ = _entries(
                e + tl.arange(0, BLOCK_E), end, V, TARGETS, WEIGHT, weight_stride, ignore_index, HAS_PART
            )
            w += tl.sum(tl.where(y[:, None] == other[None, :], more[None, :], 0.0), 1)
    return w


@triton.jit
def _targets(
    Z, V, begin, end, TARGETS, WEIGHT, weight_stride, ignore_index, NLL, WEIGHTED, SLOPE, m, log_s, mean, smoothing,
    z_loss, factor, tilt, constant, cap_in, cap_out, CAP: tl.constexpr, HAS_TILT: tl.constexpr,
    HAS_PART: tl.constexpr, HAS_OFFSETS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The loss of a row; per target its details and, in SLOPE, the gradient of its column."""
    loss = 0.0
    lse = _times(m, cap_out, CAP) + log_s
    for e in range(begin, end, BLOCK_E):
        i = e + tl.arange(0, BLOCK_E)
        y, w, is_valid, is_column = _entries(i, end, V, TARGETS, WEIGHT, weight_stride, ignore_index, HAS_PART)
        z = tl.load(Z + y, mask=is_column, other=float("nan")).to(tl.float32)
        found, slope = _cap(z, cap_in, cap_out, CAP)
        nll = _times(m - found, cap_out, CAP) + log_s
        each = (1.0 - smoothing) * nll + smoothing * (log_s - mean) + z_loss * lse * lse
        weighted = tl.where(w == 0.0, 0.0, w * each)
        loss += tl.sum(weighted, 0)
        if NLL is not None:
            tl.store(NLL + i, tl.where(is_valid, nll, 0.0), mask=i < end)
        if WEIGHTED is not None:
            tl.store(WEIGHTED + i, weighted, mask=i < end)
        if SLOPE is not None:
            of_column = _weight_of_column(
                y, w, begin, end, V, TARGETS, WEIGHT, weight_stride, ignore_index, HAS_PART, HAS_OFFSETS, BLOCK_E
            )
            du = (
                _slope(_times(found - m, cap_out, CAP), factor, tilt, constant, HAS_TILT)
                - (1.0 - smoothing) * of_column
            )
            tl.store(SLOPE + i, du * slope, mask=i < end)
    return loss


@triton.jit
def _slope(d, factor, tilt, constant, HAS_TILT: tl.constexpr):
    """dL/du of a column that is no target, d = u - m."""
    if HAS_TILT:
        factor += tilt * tl.maximum(d, LOWEST)
    return _exp(d) * factor - constant


@triton.jit
def _write(G, z, columns, V, m, factor, tilt, constant, cap_in, cap_out, CAP: tl.constexpr, HAS_TILT: tl.constexpr):
    """The gradient of a tile without its targets."""
    t, slope = _cap(z.to(tl.float32), cap_in, cap_out, CAP)
    g = _slope(_times(t - m, cap_out, CAP), factor, tilt, constant, HAS_TILT) * slope
    tl.store(G + columns, g.to(G.dtype.element_ty), mask=columns < V, eviction_policy="evict_first")


@triton.jit
def _write_targets(
    G, V, begin, end, TARGETS, SLOPE, ignore_index, HAS_PART: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    """Equal targets write equal numbers."""
    for e in range(begin, end, BLOCK_E):
        i = e + tl.arange(0, BLOCK_E)
        y = tl.load(TARGETS + i, mask=i < end, other=ignore_index)
        is_column = (y != ignore_index) & (y >= 0) & (y < V)
        slope = tl.load(SLOPE + i, mask=is_column, other=0.0)
        tl.store(G + y, slope.to(G.dtype.element_ty), mask=is_column)


@triton.jit
def _clear(G, V, TILE: tl.constexpr):
    """Zeros where nothing is read."""
    for v in range(0, V, TILE):
        columns = v + tl.arange(0, TILE)
        tl.store(G + columns, tl.zeros((TILE,), G.dtype.element_ty), mask=columns < V)


@triton.jit
def _write_row(t, LOSS, ENTROPY, BEST, LSE, loss, entropy, best, lse):
    tl.store(LOSS + t, loss)
    if ENTROPY is not None:
        tl.store(ENTROPY + t, entropy)
    if BEST is not None:
        tl.store(BEST + t, best)
    if LSE is not None:
        tl.store(LSE + t, lse)


@triton.jit
def _skip(begin, end, NLL, WEIGHTED, BLOCK_E: tl.constexpr):
    """Zeros for ignored targets."""
    for e in range(begin, end, BLOCK_E):
        i = e + tl.arange(0, BLOCK_E)
        if NLL is not None:
            tl.store(NLL + i, tl.zeros((BLOCK_E,), tl.float32), mask=i < end)
        if WEIGHTED is not None:
            tl.store(WEIGHTED + i, tl.zeros((BLOCK_E,), tl.float32), mask=i < end)


@triton.jit
def _gradient(
    Z, G, V, narrow, has_weight, begin, end, TARGETS, SLOPE, ignore_index, m, factor, tilt, constant, cap_in, cap_out,
    CAP: tl.constexpr, HAS_TILT: tl.constexpr, HAS_PART: tl.constexpr, IS_ONE_TILE: tl.constexpr,
    REPEAT: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The gradient of a row, which may replace its logits."""
    TILE: tl.constexpr = REPEAT * THREADS * VECTOR
    tl.debug_barrier()  # every thread has read what it wants to know of the row
    if has_weight == 0:
        _clear(G, V, TILE)
    else:
        columns = _columns(0, REPEAT, THREADS, VECTOR)
        if IS_ONE_TILE:
            _write(G, narrow, columns, V, m, factor, tilt, constant, cap_in, cap_out, CAP, HAS_TILT)
        else:
            # From the end: what was read last still lies in the L2 cache, of rows that it does not hold as well.
            last = (tl.cdiv(V, TILE) - 1) * TILE
            for v in range(0, V, TILE):
                z = _load(Z, last - v + columns, V, "evict_first")
                _write(G, z, last - v + columns, V, m, factor, tilt, constant, cap_in, cap_out, CAP, HAS_TILT)
        tl.debug_barrier()  # before other threads correct the targets
        _write_targets(G, V, begin, end, TARGETS, SLOPE, ignore_index, HAS_PART, BLOCK_E)


@triton.jit
def rows_kernel(
    Z, G, TARGETS, OFFSETS, WEIGHT, ENTROPY_WEIGHT, GIVEN_LSE, LOSS, NLL, WEIGHTED, ENTROPY, BEST, LSE, SLOPE,
    CLASSES, V, num_targets, z_stride, g_stride, weight_stride, ignore_index, smoothing, z_loss, cap_in, cap_out,
    CAP: tl.constexpr, HAS_SMOOTHING: tl.constexpr, IS_ONE_TILE: tl.constexpr,
    REPEAT: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Row t. Pointers that are None are not wanted, or not given. CLASSES: how many, where a row has a part."""
    HAS_PART: tl.constexpr = GIVEN_LSE is not None
    HAS_TILT: tl.constexpr = ENTROPY_WEIGHT is not None
    WANTS_ROW: tl.constexpr = NLL is not None
    t = tl.program_id(0).to(tl.int64)
    Z += t * z_stride
    begin, end, is_right = _span(OFFSETS, t, num_targets)
    mass, has_weight, has_target = _weights(
        begin, end, V, TARGETS, WEIGHT, weight_stride, ignore_index, HAS_PART, BLOCK_E
    )
    mass, has_weight = tl.where(is_right, mass, float("nan")), has_weight | (is_right == 0).to(tl.int32)
    h = 0.0
    if HAS_TILT:
        h = tl.where(has_target != 0, tl.load(ENTROPY_WEIGHT + t), 0.0)
        has_weight = has_weight | (h != 0.0).to(tl.int32)
    if (has_weight != 0) | ((has_target != 0) & WANTS_ROW):
        narrow, m, s, tilted, mean, best = _statistics(
            Z, V, GIVEN_LSE, t, cap_in, cap_out, CAP, HAS_TILT or ENTROPY is not None, HAS_SMOOTHING,
            BEST is not None, IS_ONE_TILE, REPEAT, THREADS, VECTOR,
        )  # fmt: skip
        log_s = tl.log(s)
        u_max = _times(m, cap_out, CAP)
        factor = (mass * (1.0 + 2.0 * z_loss * (u_max + log_s)) + h * tilted / s) / s
        classes = V if CLASSES is None else tl.load(CLASSES).to(tl.float32)
        tilt, constant = -h / s, mass * smoothing / classes
        loss = _targets(
            Z, V, begin, end, TARGETS, WEIGHT, weight_stride, ignore_index, NLL, WEIGHTED, SLOPE, m, log_s, mean,
            smoothing, z_loss, factor, tilt, constant, cap_in, cap_out, CAP, HAS_TILT, HAS_PART, OFFSETS is not None,
            BLOCK_E,
        )  # fmt: skip
        loss = tl.where(is_right, loss, float("nan"))
        lse = _times(m.to(tl.float64), cap_out, CAP) + log_s.to(tl.float64)
        _write_row(t, LOSS, ENTROPY, BEST, LSE, loss, log_s - tilted / s, best, lse)
        if G is not None:
            _gradient(
                Z, G + t * g_stride, V, narrow, has_weight, begin, end, TARGETS, SLOPE, ignore_index, m, factor, tilt,
                constant, cap_in, cap_out, CAP, HAS_TILT, HAS_PART, IS_ONE_TILE, REPEAT, THREADS, VECTOR, BLOCK_E,
            )  # fmt: skip
    else:
        _skip(begin, end, NLL, WEIGHTED, BLOCK_E)
        _write_row(t, LOSS, ENTROPY, BEST, LSE, 0.0, 0.0, -1, 0.0)
        if G is not None:
            _clear(G + t * g_stride, V, REPEAT * THREADS * VECTOR)


@triton.jit
def total_kernel(LOSS, TOTAL, T, BLOCK_T: tl.constexpr):
    """The one sum over rows: one program, float64, BLOCK_T sums of every BLOCK_T-th row, which are then halved."""
    total = tl.zeros((BLOCK_T,), tl.float64)
    for t in range(0, T, BLOCK_T):
        i = t + tl.arange(0, BLOCK_T)
        total += tl.load(LOSS + i, mask=i < T, other=0.0).to(tl.float64)
    tl.store(TOTAL, tl.sum(total, 0).to(TOTAL.dtype.element_ty))


@triton.jit
def scale_kernel(G, FACTOR, V, g_stride, BLOCK_V: tl.constexpr):
    """Row t of a gradient times a number; one, the gradient of a loss that is used as it is, moves nothing."""
    factor = tl.load(FACTOR).to(tl.float32)
    if factor != 1.0:
        G += tl.program_id(0).to(tl.int64) * g_stride
        for v in range(0, V, BLOCK_V):
            columns = v + tl.arange(0, BLOCK_V)
            g = tl.load(G + columns, mask=columns < V).to(tl.float32)
            tl.store(G + columns, (g * factor).to(G.dtype.element_ty), mask=columns < V)
