"""Float32 products on matrix units that hold bfloat16: each number is cut into three, of whose products six are made.

`split_rows`   A [T, E] float32 -> P [3, T, E] bfloat16 with A = P[0] + P[1] + P[2], the exact sum of its parts
`parts`        scores [BLOCK_M, BLOCK_N] float32 of rows of two such, a step of the loop in `score_tiles`

Idea   24 bits are 8 + 8 + 8. x y = sum of x_i y_j, and a product of two bfloat16 is exact in float32. The parts are cut
       once and written beside one another, so that the loop copies and multiplies and does nothing else.
Sums   a step of BLOCK_D features: x1 y3 + x1 y2, as much with x and y changed over, x2 y2, x1 y1, the small ones first;
       then float32 over the steps, ascending. Both orders of x and y give the same bits.

Error, with u = 2**-24 and sizes = sum of |x_d y_d|. Left out are x2 y3, x3 y2, x3 y3: at most 2**-8 2**-16 each of the
first two, together 2.1 u sizes. A matrix unit aligns the 16 products of an instruction and their sum to the largest of
them and cuts off what lies below its 24th bit, as measured on V100 to B200 (Fasi et al., PeerJ CS 7, 2021; later ones
keep a bit or two more): at most 18 times 2 u of the largest, which is no larger than the sizes of the step. Steps have
BLOCK_D = 32 features, two instructions, so x1 y1 costs 72 u, the small products, 2**-8 times as large and twice as
many, 2 u, and adding the steps D / 32 roundings:

    |score - exact| <= (77 + D / 32) u sizes

Float32 sums, one rounding a feature, have D u sizes: no less from 80 features on. Rows are scaled before they are cut:
their largest component is in [1/2, 1), so that what a third part loses below bfloat16's range is 2**-134.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mrtkern._triton import Launch

FEATURES = 96  # from here on the bound is below that of float32 sums, with a sixth to spare
ROWS = 128  # of either side at least: cutting a row costs as much as 100 float32 products with it
STEP = 32  # features between two additions in float32; the bound above is for this number
# Where six products of bfloat16 are faster than one of float32 by the data sheets: 2.7, 2.5 and 4.7 times. On sm_86,
# sm_120 and gfx942 they are not. Three tiles of sums and the parts of two steps or three in flight.
LARGE = {
    "sm_80": Launch(128, 64, STEP, 8, 3),
    "sm_90": Launch(128, 128, STEP, 8, 3),
    "sm_100": Launch(128, 64, STEP, 4, 3),
}
SMALL = Launch(64, 64, STEP, 4, 2)
BLOCK = 2048  # numbers of a program of `split_rows`: sixteen of each thread
WARPS = 4


@triton.jit
def split_rows(A, P, count, BLOCK: tl.constexpr):
    """Of `count` numbers, each part in whole."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    left = tl.load(A + i, mask=i < count, other=0.0)
    for _ in tl.static_range(3):
        part = left.to(tl.bfloat16)
        tl.store(P + i, part, mask=i < count)
        left -= part.to(tl.float32)
        P += count


@triton.jit
def part(X, first, m, rows, d, D, stride, IS_DESCRIBED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """Features d.. of rows first + m.. of one part, zeros beyond `rows` of the group, or rows that nobody stores."""
    if IS_DESCRIBED:
        x = X.load([(first + m).to(tl.int32), d])
    else:
        at, step = m + tl.arange(0, BLOCK_M), d + tl.arange(0, BLOCK_D)
        mask = (at < rows)[:, None] & (step < D)[None, :]
        x = tl.load(X + (first + at).to(tl.int64)[:, None] * stride + step[None, :], mask=mask, other=0.0)
    return x


@triton.jit
def parts(
    X, Y, first_x, first_y, m, n, M, N, T_X, T_Y, D, stride_x, stride_y,
    IS_DESCRIBED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scores of rows m.. of the M from first_x of X [3 T_X, D] with rows n.. of the N from first_y of Y [3 T_Y, D]."""
    s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for d in tl.range(0, D, BLOCK_D):
        x1 = part(X, first_x, m, M, d, D, stride_x, IS_DESCRIBED, BLOCK_M, BLOCK_D)
        y1 = part(Y, first_y, n, N, d, D, stride_y, IS_DESCRIBED, BLOCK_N, BLOCK_D).T
        x2 = part(X, first_x + T_X, m, M, d, D, stride_x, IS_DESCRIBED, BLOCK_M, BLOCK_D)
        y2 = part(Y, first_y + T_Y, n, N, d, D, stride_y, IS_DESCRIBED, BLOCK_N, BLOCK_D).T
        x3 = part(X, first_x + 2 * T_X, m, M, d, D, stride_x, IS_DESCRIBED, BLOCK_M, BLOCK_D)
        y3 = part(Y, first_y + 2 * T_Y, n, N, d, D, stride_y, IS_DESCRIBED, BLOCK_N, BLOCK_D).T
        left = tl.dot(x1, y2, tl.dot(x1, y3))
        right = tl.dot(x2, y1, tl.dot(x3, y1))
        s += tl.dot(x1, y1, tl.dot(x2, y2, left + right))
    return s


def pays(arch: str, dtype: torch.dtype, M: int, N: int, D: int) -> bool:
    """Whether scores of M and N rows of D features are made from parts."""
    return dtype == torch.float32 and arch in LARGE and D >= FEATURES and min(M, N) >= ROWS


def launch(arch: str, M: int, N: int, B: int, programs: int) -> Launch:
    """The large tile where there are enough for `programs` at once."""
    large = LARGE[arch]
    return large if B * large.tiles(M, N) >= programs else SMALL


def memory(T: int, E: int) -> int:
    """Bytes of the parts of T rows."""
    return 6 * T * E


def split(a: Tensor) -> Tensor:
    """The parts [3 T, E] of rows a [T, E] float32, contiguous."""
    T, E = a.shape
    found = torch.empty((3 * T, E), dtype=torch.bfloat16, device=a.device)
    split_rows[(triton.cdiv(a.numel(), BLOCK),)](
        a, found, a.numel(), BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=False
    )
    return found
