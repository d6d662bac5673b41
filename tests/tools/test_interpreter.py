"""The strict interpreter: every fault it is there for is planted here and caught; what a device does is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
tl = triton.language
TensorDescriptor = pytest.importorskip("triton.tools.tensor_descriptor").TensorDescriptor
Error = triton.runtime.errors.InterpreterError

import mrtkern  # noqa: E402
from mrtkern import _device, _triton  # noqa: E402

pytestmark = pytest.mark.interpret
BLOCK = 16


# Bounds: N is one less than a block, or the tensor is a part of a larger one


@triton.jit
def load_without_mask(X, S, N, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(S + n, tl.load(X + n), mask=n < N)


@triton.jit
def store_without_mask(X, S, N, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(S + n, tl.load(X + n, mask=n < N))


@triton.jit
def atomic_without_mask(X, S, N, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.atomic_add(S + n, tl.load(X + n, mask=n < N, other=0.0))


@triton.jit
def compare_and_swap_outside(X, S, N, BLOCK: tl.constexpr):
    tl.atomic_cas(S.to(tl.pointer_type(tl.int32)) + N, 0, 1)


@triton.jit
def descriptor_too_large(X, S, N, BLOCK: tl.constexpr):
    rows = tl.make_tensor_descriptor(X, shape=[1, BLOCK], strides=[BLOCK, 1], block_shape=[1, BLOCK])
    tl.store(S + tl.arange(0, BLOCK), rows.load([0, 0]).reshape(BLOCK), mask=tl.arange(0, BLOCK) < N)


@triton.jit
def narrow_index(X, S, N, BLOCK: tl.constexpr):
    row = tl.program_id(0) + 1
    tl.store(S, tl.load(X + row * N))  # an int32 product


@pytest.mark.parametrize(
    "kernel",
    [load_without_mask, store_without_mask, atomic_without_mask, compare_and_swap_outside, descriptor_too_large],
)
def test_an_access_outside_its_tensor_is_caught(kernel: Any) -> None:
    x, s = torch.zeros(2 * BLOCK)[: BLOCK - 1], torch.zeros(2 * BLOCK)[: BLOCK - 1]
    with pytest.raises(Error, match="leaves its tensor"):
        kernel[(1,)](x, s, BLOCK - 1, BLOCK)


def test_an_index_that_overflows_is_caught() -> None:
    with pytest.raises(Error, match="a load leaves its tensor"):
        narrow_index[(2,)](torch.zeros(4), torch.zeros(1), 2**30, BLOCK)


@triton.jit
def load_without_other(X, S, N, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(S + n, tl.load(X + n, mask=n < N))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_a_masked_load_leaves_undefined_is_nan(dtype: torch.dtype) -> None:
    s = torch.zeros(BLOCK, dtype=dtype)
    load_without_other[(1,)](torch.ones(BLOCK, dtype=dtype), s, 3, BLOCK)
    assert s[:3].tolist() == [1.0] * 3 and bool(s[3:].isnan().all())


def test_what_a_masked_load_of_integers_leaves_undefined_is_the_largest() -> None:
    s = torch.zeros(BLOCK, dtype=torch.int16)
    load_without_other[(1,)](torch.ones(BLOCK, dtype=torch.int16), s, 3, BLOCK)
    assert s[3:].tolist() == [2**15 - 1] * (BLOCK - 3)


# bfloat16


@triton.jit
def add(X, S, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(S + n, tl.load(X + n) + tl.load(X + n))


@triton.jit
def negate(X, S, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(S + n, -tl.load(X + n))


@triton.jit
def compare(X, S, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(S + n, tl.where(tl.load(X + n) > tl.load(X), 1.0, 0.0))


@triton.jit
def total(X, S, BLOCK: tl.constexpr):
    tl.store(S, tl.reduce(tl.load(X + tl.arange(0, BLOCK)), 0, tl.standard._sum_combine))


@triton.jit
def largest(X, S, BLOCK: tl.constexpr):
    tl.store(S, tl.reduce(tl.load(X + tl.arange(0, BLOCK)), 0, tl.standard._elementwise_max))


@triton.jit
def scan(X, S, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(S + n, tl.associative_scan(tl.load(X + n), 0, tl.standard._sum_combine))


@triton.jit
def count_up(X, S, BLOCK: tl.constexpr):
    tl.atomic_add(S, tl.load(X))


@triton.jit
def fused(X, S, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(S + n, tl.math.fma(tl.load(X + n), tl.load(X + n), tl.load(X + n)))


@pytest.mark.parametrize("kernel", [add, negate, compare, total, largest, scan, count_up, fused])
def test_arithmetic_reductions_and_scans_of_bfloat16_are_refused(kernel: Any) -> None:
    x = torch.ones(BLOCK, dtype=torch.bfloat16)
    with pytest.raises(Error, match=r"of bfloat16 is not what a device computes here: take \.to\(tl\.float32\) first"):
        kernel[(1,)](x, torch.zeros_like(x), BLOCK)


@triton.jit
def narrowed(X, S, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(S + n, tl.load(X + n).to(tl.bfloat16))


@triton.jit
def widened(X, S, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(S + n, tl.load(X + n).to(tl.float32))


def bits(dtype: torch.dtype) -> torch.Tensor:
    """Random bits: numbers of every size, subnormals, infinities, NaN."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**31), 2**31, (BLOCK * 64,), generator=generator).int().view(torch.float32).to(dtype)


@pytest.mark.parametrize(("kernel", "source"), [(narrowed, torch.float32), (widened, torch.bfloat16)])
def test_casts_of_bfloat16_are_torchs(kernel: Any, source: torch.dtype) -> None:
    x = torch.cat([bits(source), torch.tensor([torch.inf, -torch.inf, torch.nan, 1e-39, 3.4e38, 1 + 2**-8]).to(source)])
    x = x[-BLOCK * 64 :].contiguous()
    to = torch.bfloat16 if source == torch.float32 else torch.float32
    s = torch.zeros(len(x), dtype=to)
    kernel[(1,)](x, s, len(x))
    assert torch.equal(s.isnan(), x.isnan())
    assert torch.equal(s.nan_to_num(nan=0.0), x.to(to).nan_to_num(nan=0.0))


@pytest.mark.parametrize("source", [torch.float64, torch.int32])
def test_casts_to_bfloat16_from_anything_but_float32_are_refused(source: torch.dtype) -> None:
    with pytest.raises(Error, match="is wrong here: go through float32"):
        narrowed[(1,)](torch.ones(BLOCK, dtype=source), torch.zeros(BLOCK, dtype=torch.bfloat16), BLOCK)


# Products


@triton.jit
def multiplied(X, Y, S, K: tl.constexpr, PRECISION: tl.constexpr):
    k = tl.arange(0, K)
    x, y = tl.load(X + k[:, None] * K + k[None, :]), tl.load(Y + k[:, None] * K + k[None, :])
    tl.store(S + k[:, None] * K + k[None, :], tl.dot(x, y, input_precision=PRECISION))


def product_of(x: torch.Tensor, precision: str) -> torch.Tensor:
    s = torch.zeros(x.shape)
    multiplied[(1,)](x, x, s, len(x), precision)
    return s


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_are_exact_where_their_sums_are(dtype: torch.dtype) -> None:
    x = torch.randint(-8, 9, (BLOCK, BLOCK), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(product_of(x, "ieee"), x.float() @ x.float())


def test_tf32_loses_the_bits_that_a_tensor_core_does_not_read() -> None:
    x = torch.eye(BLOCK) * (1 + 2**-11)
    assert torch.equal(product_of(x, "tf32"), torch.eye(BLOCK))
    assert torch.equal(product_of(x, "ieee"), torch.eye(BLOCK) * (1 + 2**-11) ** 2)


def test_a_product_that_no_device_compiles_is_refused() -> None:
    with pytest.raises(Error, match="K >= 16"):
        product_of(torch.ones(8, 8, dtype=torch.float16), "ieee")


# The tile engine, and where kernels may run


@triton.jit
def scores(
    X, Y, S, M, N, D, stride_x, stride_y, IS_DESCRIBED: tl.constexpr, BAND: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        tile_m, tile_n = _triton.banded(tile, tiles_m, tiles_n, BAND)
        m, n = tile_m * BLOCK_M, tile_n * BLOCK_N
        if IS_DESCRIBED:
            s = _triton.described_product(X, Y, m, n, D, BLOCK_M, BLOCK_N, BLOCK_D)
        else:
            s = _triton.product(X, Y, m, n, M, N, D, stride_x, stride_y, BLOCK_M, BLOCK_N, BLOCK_D)
        rows, columns = m + tl.arange(0, BLOCK_M), n + tl.arange(0, BLOCK_N)
        out = S + rows.to(tl.int64)[:, None] * N + columns[None, :]
        tl.store(out, s, mask=(rows < M)[:, None] & (columns < N)[None, :])


@pytest.mark.parametrize("is_described", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("M", "N", "D"), [(1, 1, 8), (32, 64, 32), (33, 65, 40), (100, 31, 16)])  # around the tile
def test_the_tile_engine_multiplies_integers_exactly(
    M: int, N: int, D: int, dtype: torch.dtype, is_described: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(-9, 10, (rows, D), generator=generator).to(dtype) for rows in (M, N))
    launch = _triton.Launch(32, 64, 32, 4, 2)
    given: Callable[..., Any] = _triton.describe if is_described else (lambda x, *_: x)
    s = torch.empty(M, N)
    operands = given(x, launch.BLOCK_M, launch.BLOCK_D), given(y, launch.BLOCK_N, launch.BLOCK_D)
    assert not is_described or (_triton.can_describe(x) and _triton.can_describe(y))
    scores[(2,)](*operands, s, M, N, D, D, D, is_described, 2, **launch.blocks)
    assert torch.equal(s, x.float() @ y.float().T)


@pytest.mark.parametrize("band", [1, 3, 8])
def test_bands_visit_every_tile_once(band: int) -> None:
    found = [_triton.banded.fn(tile, 5, 4, band) for tile in range(20)]
    assert sorted(found) == [(m, n) for m in range(5) for n in range(4)]


def test_interpreted_tests_may_run_kernels_on_the_cpu() -> None:
    assert _triton.why_not("cpu", None) is None


ROWS, TARGETS = torch.ones(4, 3), torch.tensor([0, 1, 2, 0])
CALLS: dict[str, Callable[[], Any]] = {
    "similarity": lambda: mrtkern.similarity(ROWS, backend="triton"),
    "neighbors": lambda: mrtkern.neighbors(ROWS, 1, backend="triton"),
    "deduplicate": lambda: mrtkern.deduplicate(ROWS, 0.9, backend="triton"),
    "cross_entropy": lambda: mrtkern.cross_entropy(ROWS, TARGETS, backend="triton"),
    "linear_cross_entropy": lambda: mrtkern.linear_cross_entropy(ROWS, ROWS, TARGETS, backend="triton"),
    "linear_log_prob": lambda: mrtkern.linear_log_prob(ROWS, ROWS, TARGETS, backend="triton"),
}


@pytest.mark.parametrize("name", CALLS)
def test_devices_that_are_too_old_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS[name]()
    monkeypatch.setattr(_device, "capability", lambda device: (7, 5))
    with pytest.raises(
        ValueError, match=r"'triton' cannot run this: needs compute capability 8\.0 or later, got 7\.5$"
    ):
        CALLS[name]()


@pytest.mark.parametrize("arch", _triton.SHARED)
@pytest.mark.parametrize("width", [2, 4])
def test_operands_in_flight_fit_the_shared_memory(width: int, arch: str) -> None:
    for launch in (_triton.LARGE[width][arch], _triton.SMALL[width]):
        step = (launch.BLOCK_M + launch.BLOCK_N) * launch.BLOCK_D * width
        assert step * (launch.num_stages - arch.startswith("gfx")) <= _triton.SHARED[arch]  # AMD keeps one in registers
