"""Products of linear heads on the CPU: right, and bits that depend on nothing but the numbers multiplied."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from mrtkern import _dispatch, linear_cross_entropy, linear_log_prob
from mrtkern.ops.linear_cross_entropy.problem import Problem
from tests.tools import oracle, process

tiles = _dispatch.load("linear_cross_entropy", "tiles")
pytestmark = pytest.mark.skipif(isinstance(tiles, str), reason=f"compiled kernels: {tiles}")

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Rows, columns, terms: one, around a tile of 12 to 16 rows and 32 columns, around a chunk of 256 units, several.
SIZES = [(1, 1, 1), (13, 31, 15), (16, 32, 256), (17, 33, 257), (45, 65, 513), (3, 70, 1100), (600, 40, 30)]
every_size = pytest.mark.parametrize(("M", "N", "K"), SIZES)
every_product = pytest.mark.parametrize("product", [F32, BF16], ids=["float32", "bfloat16"])


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F32).to(dtype)


def multiply(a: Tensor, b: Tensor, product: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """a [M, K] b [N, K]^T + bias."""
    out = torch.full((len(a), len(b)), torch.nan, dtype=F32)
    tiles.Products(b, bias, product).logits(out, a)
    return out


@every_size
@every_product
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_products_are_those_of_float64_within_their_sums(
    M: int, N: int, K: int, product: torch.dtype, dtype: torch.dtype
) -> None:
    bias = normal(N, seed=2)
    for a_turned, b_turned in itertools.product((False, True), repeat=2):
        a, b = normal(M, K, dtype=dtype), normal(N, K, dtype=dtype, seed=1)
        a = a.T.contiguous().T if a_turned else a
        b = b.T.contiguous().T if b_turned else b
        x, y = (value.to(product).double() for value in (a, b))
        size = float((x.abs() @ y.abs().T + bias.abs()).max())
        oracle.assert_summed(multiply(a, b, product, bias), x @ y.T + bias, K + 1, size)


@every_product
def test_sums_are_added_to_what_is_there(product: torch.dtype) -> None:
    dz, h = normal(300, 50), normal(300, 20, seed=1)
    total = normal(50, 20, seed=2)
    before, (x, y) = total.double(), (value.to(product).double() for value in (dz, h))
    tiles.Products(total, None, product).add_weight_gradient(total, dz, h, is_first=False)
    oracle.assert_summed(total, before + x.T @ y, 301, float((before.abs() + x.abs().T @ y.abs()).max()))
    db, sums = normal(50, seed=3), dz.double().sum(0)
    expected = db + sums.float()
    tiles.Products(total, None, product).add_bias_gradient(db, dz)
    assert torch.equal(db, expected)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@every_size
@every_product
def test_bits_do_not_depend_on_threads_strides_or_other_rows(M: int, N: int, K: int, product: torch.dtype) -> None:
    a, b, bias = normal(M, K), normal(N, K, seed=1), normal(N, seed=2)
    expected = multiply(a, b, product, bias)
    for count in range(1, 9):
        with threads(count):
            assert torch.equal(multiply(a, b, product, bias), expected)
    spread = torch.full((2 * M, K + 3), torch.nan)[::2, 1 : K + 1].copy_(a)
    assert torch.equal(multiply(spread, b.T.contiguous().T, product, bias), expected)
    for rows in (slice(0, 1), slice(M // 2, M), slice(M - 1, M)):
        assert torch.equal(multiply(a[rows], b, product, bias), expected[rows])
    order = torch.randperm(M, generator=torch.Generator().manual_seed(0))
    assert torch.equal(multiply(a[order], b, product, bias), expected[order])


@contextmanager
def flushing(is_on: bool) -> Iterator[None]:
    """torch's mode of subnormal numbers, and whether it is still the same afterwards."""
    torch.set_flush_denormal(is_on)
    try:
        yield
        halved = torch.tensor([1.5e-38], dtype=F32) / 2
        assert bool(halved == 0) == is_on
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush subnormal numbers")
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_torchs_mode_of_subnormal_numbers_changes_no_bit_and_stays(dtype: torch.dtype) -> None:
    """Products near the smallest normal number, gradients below it."""
    problem = Problem(40, 33, 129, dtype, dtype, dtype, needs=(True, True, True), has_bias=True)
    inputs = problem.make_inputs()
    scale = {"hidden": 2.0**-60, "weight": 2.0**-66, "bias": 2.0**-128, "token_weight": 2.0**-70}
    with torch.no_grad():
        for name, factor in scale.items():
            inputs[name] = (inputs[name].float() * factor).to(inputs[name].dtype).requires_grad_(name != "token_weight")
    leaves = [inputs[name] for name in ("hidden", "weight", "bias")]

    def bits() -> list[Tensor]:
        loss = linear_cross_entropy(**inputs, backend="cpu")
        return [value.view(torch.int16) for value in torch.autograd.grad(loss, leaves)]

    z = multiply(inputs["hidden"].detach(), inputs["weight"].detach(), dtype)
    assert (z.abs() < torch.finfo(F32).tiny).any()  # the case is what it says
    expected = bits()
    assert any((value != 0).any() for value in expected)
    for is_on, count in itertools.product((True, False), (1, 2, 3, 8)):
        with threads(count), flushing(is_on):
            found = bits()
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def reference_dot(a: list[float], b: list[float]) -> float:
    """One unit after the other, the odd element first, as `vdpbf16ps` adds them; exact in float64, rounded by torch."""
    total = torch.zeros((), dtype=torch.float64)
    for k in range(0, len(a), 2):
        for j in (k + 1, k):
            exact = torch.tensor(a[j], dtype=torch.float64) * b[j] + total  # of few bits, so exact
            single = exact.float()
            total = torch.where(single.abs() < torch.finfo(F32).tiny, torch.zeros_like(single), single).double()
    return float(total)


def test_bfloat16_units_are_two_fused_steps_odd_element_first() -> None:
    """Numbers for which the order, a rounding in between or a subnormal number shows."""
    cases = [
        ([1.0, 2.0**24], [1.0, 1.0]),  # 2**24 first: 1 is lost
        ([2.0**24, 1.0], [1.0, 1.0]),
        ([-(2.0**24), 2.0**24], [1.0, 1.0]),
        ([2.0**-24, 1.0, -1.0, 0.0], [1.0, 1.0, 1.0, 0.0]),
        ([2.0**-64, 0.0], [2.0**-63, 0.0]),  # subnormal result
        ([2.0**-63, 0.0], [2.0**-63, 0.0]),  # the smallest normal one
        ([2.0**-130, 0.0], [2.0**20, 0.0]),  # subnormal input
        ([1.0 + 2.0**-7, 2.0**-120], [2.0**-126, 2.0**-9]),
    ]
    for a, b in cases:
        x, y = (torch.tensor([value], dtype=BF16) for value in (a, b))
        flushed = [[v if abs(v) >= torch.finfo(F32).tiny else 0.0 for v in value[0].tolist()] for value in (x, y)]
        assert float(multiply(x, y, BF16)) == reference_dot(*flushed), (a, b)


# Errors of whole heads: with logits in float32 those of the sums, with logits of 8 bits a thousand times as much.
LOGITS = [(256, 256, 8192), (256, 1024, 8192), (128, 896, 32_000)]


@pytest.mark.parametrize(("T", "D", "V"), LOGITS)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_log_probs_err_by_less_than_1e_5(T: int, D: int, V: int, dtype: torch.dtype) -> None:
    inputs = Problem(T, D, V, dtype, dtype, dtype, needs=(False,) * 3).make_inputs()
    hidden, weight, targets = (inputs[name] for name in ("hidden", "weight", "targets"))
    z = hidden.double() @ weight.double().T
    exact = z.log_softmax(1)
    logp, entropy = linear_log_prob(hidden, weight, targets, backend="cpu")
    assert (logp - exact.gather(1, targets[:, None])[:, 0]).abs().max() <= 1e-5
    assert (entropy + (exact.exp() * exact).sum(1)).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_autocast_rounds_factors_and_never_logits(dtype: torch.dtype) -> None:
    inputs = Problem(64, 128, 2000, dtype, dtype, dtype, needs=(False,) * 3).make_inputs()
    hidden, weight, targets = (inputs[name] for name in ("hidden", "weight", "targets"))
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_log_prob(hidden, weight, targets, backend="cpu")
    rounded = linear_log_prob(hidden.bfloat16(), weight.bfloat16(), targets, backend="cpu")
    assert all(torch.equal(one, other) for one, other in zip(found, rounded, strict=True))


Rows = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def per_row(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """What each row has of its own: logp, entropy, the gradient of its hidden state."""
    h = hidden.detach().requires_grad_()
    logp, entropy = linear_log_prob(h, weight, targets, **options)
    (dh,) = torch.autograd.grad((logp - 0.1 * entropy).sum(), h)
    return logp.detach(), entropy.detach(), dh


def per_row_of_a_loss(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, ...]:
    h, w = hidden.detach().requires_grad_(), torch.full(targets.shape, 0.25)
    offsets = torch.arange(len(targets) + 1)
    given = {"token_weight": w, "return_details": True, "offsets": offsets, **options}
    details = linear_cross_entropy(h, weight, targets, **given)
    (dh,) = torch.autograd.grad(details.loss, h)
    return details.response_nll, dh


@pytest.mark.parametrize("rows", [per_row, per_row_of_a_loss])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_row_has_the_same_bits_in_every_batch(
    rows: Rows, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the other rows, their number, the padding between them, its place, the chunks, the threads."""
    T = 70
    inputs = Problem(T, 48, 300, dtype, dtype, dtype).make_inputs()
    hidden, weight, targets = (inputs[name].detach() for name in ("hidden", "weight", "targets"))
    expected = rows(hidden, weight, targets)
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 15, 16, 17, 69, 70):
        some = torch.randperm(T, generator=generator)[:count]
        found = rows(hidden[some], weight, targets[some])
        assert all(torch.equal(one, other[some]) for one, other in zip(found, expected, strict=True))
    padded, labels = normal(3 * T, 48, dtype=dtype, seed=4), torch.full((3 * T,), -100)
    padded[1::3], labels[1::3] = hidden, targets
    found = rows(padded, weight, labels)
    nll_or_logp = [one[1::3] for one in found]
    assert all(torch.equal(one, other) for one, other in zip(nll_or_logp, expected, strict=True))
    cpu = _dispatch.load("linear_cross_entropy", "cpu")
    for size, count in ((1, 1), (13, 2), (64, 3)):
        monkeypatch.setattr(cpu, "chunk_size", lambda problem, size=size: size)
        with threads(count):
            found = rows(hidden, weight, targets)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def bits_of_products(isa: str) -> list[bytes]:
    """Products of every kind on one instruction set."""
    os.environ["MRTKERN_ISA"] = isa
    found = []
    for (M, N, K), product, dtype in itertools.product(SIZES[:-1], (F32, BF16), (F32, BF16, F16)):
        a, b = (normal(rows, K, dtype=dtype, seed=rows) for rows in (M, N))
        a[:, ::3] *= 2.0**-66  # the sums of some pass through subnormal numbers
        b[:, ::3] *= 2.0**-62
        made = tiles.Products(b, normal(N), product)
        z, dh, dW = (torch.full(shape, torch.nan, dtype=F32) for shape in ((M, N), (M, K), (N, K)))
        made.logits(z, a)
        made.hidden_gradient(dh, z)
        made.add_weight_gradient(dW, z, a, is_first=True)
        made.add_weight_gradient(dW, z, a, is_first=False)
        found += [value.numpy().tobytes() for value in (z, dh, dW)]
    return found


@pytest.mark.parametrize("isa", [] if isinstance(tiles, str) else tiles._C.isas())
def test_every_instruction_set_gives_the_same_bits(isa: str) -> None:
    """With the instruction for bfloat16, with float32 instructions that stand for it, and in plain C++."""
    assert process.in_child(bits_of_products, isa) == process.in_child(bits_of_products, "portable")
