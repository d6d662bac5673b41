"""facility_location in CUDA C++: the same bits as the CPU kernels and the reference, emulated and on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from mrtkern import _dispatch
from mrtkern.ops.facility_location.ground import Groups
from mrtkern.ops.facility_location.op import facility_location
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import FILLS
from mrtkern.ops.facility_location.selection import Selection
from mrtkern.select import METHODS, select_responses
from tests.tools import emulated, selections

pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
SM_120, SM_90 = 0, 2  # emulated devices: 99 and 227 KiB of shared memory for a block
DEVICES = [pytest.param("cpu", marks=pytest.mark.emulator), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Where backend="cuda" takes tensors: on a GPU, or on the CPU while the kernels are emulated."""
    if request.param == "cpu":
        request.getfixturevalue("emulated_cuda")
    return str(request.param)


def moved(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def assert_same(found: Selection, expected: Selection, what: str = "") -> None:
    """All fields, all bits."""
    for field in fields(expected):
        left, right = getattr(found, field.name), getattr(expected, field.name)
        assert (left is None) == (right is None), f"{field.name} {what}"
        assert left is None or torch.equal(left.cpu(), right), f"{field.name} {what}"


def assert_equal(device: str, x: Tensor, k: int | Tensor, sizes: list[int], **options: Any) -> Selection:
    """The selection by backend="cuda" on `device`, which is that of the CPU kernels."""
    options |= {"offsets": torch.tensor([0, *sizes]).cumsum(0), "seed": 5}
    expected = facility_location(x, k, backend="cpu", **options)
    there = {name: moved(value, device) for name, value in options.items()}
    found = facility_location(moved(x, device), moved(k, device), backend="cuda", **there)
    assert_same(found, expected, f"sizes {sizes}, k {k}, {sorted(options)}")
    return expected


def hard_rows(T: int, D: int, seed: int = 0) -> Tensor:
    """Few directions, so that gains are equal; duplicates, a zero row and a row with one dominant component."""
    x = torch.randn(T, D, generator=torch.Generator().manual_seed(seed)).mul(1.5).round()
    x[5::5] = x[:1]
    x[3:4] = 0
    x[7:8, :1] = 1e4
    return x


def values(T: int) -> dict[str, Tensor]:
    """Weights, qualities with zeros among them, and bonuses."""
    weight, quality, bonus = torch.rand(3, T, generator=torch.Generator().manual_seed(1))
    return {"weight": weight, "quality": quality.where(quality >= 0.2, 0), "bonus": bonus * 0.1}


@pytest.mark.emulator
@pytest.mark.parametrize("order", emulated.ORDERS)
@pytest.mark.parametrize("case", selections.SMALL, ids=lambda case: case.name)
def test_every_case_equals_the_cpu_in_every_order(case: Any, order: str, emulated_cuda: Callable[[str], None]) -> None:
    """All calls forward, a part of them in the other orders: what an order can change is the same in all."""
    emulated_cuda(order)
    part = 1 if order == "forward" else 5
    for name, options in list(selections.calls(case))[::part]:
        assert_same(selections.select(case, "cuda", **options), selections.select(case, "cpu", **options), name)


@pytest.mark.gpu
@pytest.mark.parametrize("case", selections.SMALL, ids=lambda case: case.name)
def test_every_case_equals_the_cpu_on_a_device(case: Any) -> None:
    x, offsets, _ = selections.inputs(case)
    for _, options in selections.calls(case):
        assert_equal("cuda", x, case.problem.K, offsets.diff().tolist(), **options)


# 0, 1, 2; a warp less one, whole, and a row more, which takes a block; the largest table that fits the shared memory of
# sm_90 and its neighbours, the last of which lie in device memory; and one far beyond
@pytest.mark.parametrize("N", [0, 1, 2, 31, 32, 33, 255, 256, 257, 600])
def test_every_size_class_equals_the_cpu_and_the_reference(device: str, N: int) -> None:
    from mrtkern.ops.facility_location import cuda

    sizes, D, k = [2, N, 0, 3], 9, min(N, 7)
    x = hard_rows(sum(sizes), D, N)
    for number in (SM_120, SM_90) if device == "cpu" and N in (255, 256) else (0,):
        cuda.HOST = (number, 0)
        expected = assert_equal(device, x, k, sizes)
    cuda.HOST = (0, 0)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    assert_same(facility_location(x, k, offsets=offsets, seed=5, backend="reference"), expected)


@pytest.mark.parametrize(
    ("N", "D"),
    [(12, 40), (40, 40), (40, 1500), (300, 8)],
    ids=["a warp", "a block", "rows in device memory", "all in device memory"],
)
def test_every_place_takes_every_option(device: str, N: int, D: int) -> None:
    from mrtkern.ops.facility_location import cuda

    problem = Problem(Groups, 2 * N + 5, D, 3, torch.float32, "cuda", N)
    per_team = 2 * (N + 16) * (D + 16) + 2 * (N + 16) ** 2 + 47 * (N + 16) + 8192
    needed, is_outside = cuda.memory(problem, 0), D == 1500 or N == 300
    assert 16 * 3 <= needed <= 16 * 3 + 8 + 3 * per_team * is_outside
    assert (needed > 1000) == is_outside
    sizes = [N, 5, N]
    x, weighed = hard_rows(sum(sizes), D), values(sum(sizes))
    for fill in FILLS:
        assert_equal(device, x, 4, sizes, fill=fill, metric="clamped_cosine", **weighed)
        assert_equal(device, x, 6, sizes, fill=fill, quality=weighed["quality"])
    kept = assert_equal(device, x, torch.tensor([5, 0, 3]), sizes, **weighed)
    assert kept.offsets is not None
    assert_equal(device, x, kept.offsets.diff(), sizes, picks=kept.ids.flip(0)[[3, 4, 5, 6, 7, 0, 1, 2]], **weighed)
    assert_equal(device, x, min(N, 40), sizes, group_key=torch.tensor([7, -1, 7]))


def test_shared_memory_is_asked_for_where_declared_arrays_no_longer_fit(device: str) -> None:
    """49,104 bytes of it: 48 KiB hold these, but not with the arrays that a block declares."""
    assert_equal(device, hard_rows(40, 512), 3, [40])


def test_equal_rows_zero_rows_and_nothing_to_gain(device: str) -> None:
    same, zero = torch.ones(40, 5), torch.zeros(40, 5)
    for x in (same, zero, torch.cat([same[:20], -same[:20]])):
        for fill in FILLS:
            for sizes in ([8, 8, 24], [40]):
                assert_equal(device, x, 6, sizes, fill=fill, metric="clamped_cosine")
    weightless = {"weight": torch.zeros(40), "quality": torch.zeros(40)}
    assert_equal(device, same, 6, [8, 32], fill="coverage", **weightless)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_types_strides_and_alignment_do_not_matter(device: str, dtype: torch.dtype) -> None:
    """D is a multiple of a vector, of half of one, and of none; a last step of 16 components is full and is not."""
    for D in (1, 4, 24, 32, 33):
        x = hard_rows(30, D).to(dtype)
        wide, every = torch.zeros(2, 30, 2 * D + 1, dtype=dtype, device=device)
        layouts = {
            "contiguous": moved(x, device),
            "transposed": moved(x, device).T.contiguous().T,
            "every second column": every[:, 1::2].copy_(x),
            "wide rows": wide[:, :D].copy_(x),
            "unaligned": torch.zeros(x.numel() + 1, dtype=dtype, device=device)[1:].view_as(x).copy_(x),
        }
        offsets = torch.tensor([0, 12, 30])
        expected = facility_location(x, 4, offsets=offsets, backend="cpu")
        for name, layout in layouts.items():
            found = facility_location(layout, 4, offsets=moved(offsets, device), backend="cuda")
            assert_same(found, expected, f"{name}, D = {D}")


@pytest.mark.parametrize("sizes", [[20] * 3, [60], [300]], ids=["warps", "a block", "device memory"])
def test_the_first_row_that_is_not_finite_is_named(device: str, sizes: list[int]) -> None:
    x = hard_rows(sum(sizes), 8)
    x[57, 7], x[58, 0] = torch.inf, torch.nan
    offsets = moved(torch.tensor([0, *sizes]).cumsum(0), device)
    with pytest.raises(ValueError, match=r"^facility_location: x must be finite, got inf in row 57$"):
        facility_location(moved(x, device), 2, offsets=offsets, backend="cuda")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:select_responses. the largest rewards alone")
def test_select_responses_keeps_the_same_by_every_method(device: str, method: str) -> None:
    sizes = torch.tensor([16, 0, 7, 1, 30])
    offsets, T = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), int(sizes.sum())
    x, reward = hard_rows(T, 24), torch.rand(T, generator=torch.Generator().manual_seed(2))
    expected = select_responses(x, offsets, 4, method=method, reward=reward, backend="cpu")
    x, offsets, reward = (moved(value, device) for value in (x, offsets, reward))
    found = select_responses(x, offsets, 4, method=method, reward=reward, backend="cuda")
    assert_same(found, expected)


@pytest.mark.emulator
def test_a_gpu_takes_groups_and_its_limits_are_sentences(emulated_cuda: Callable[[str], None]) -> None:
    groups = Problem(Groups, 64_000, 384, 4000, torch.bfloat16, "cuda", 16)
    assert _dispatch.choose("facility_location", None, groups) == "cuda"
    for change, sentence in (
        ({"largest": 5000}, "takes groups of up to 4096 rows, got 5000"),
        ({"options": ("mask",)}, "takes no mask"),
        ({"dtype": torch.float64}, "needs float32, bfloat16 or float16, got torch.float64"),
        ({"device": "xpu"}, "needs a CUDA tensor, got one on xpu"),
        ({"capability": (7, 5)}, "needs compute capability 8.0 or later, got 7.5"),
    ):
        problem = Problem(**{**vars(groups), **change})
        assert _dispatch.why_not("facility_location", "cuda", problem) == sentence
        assert _dispatch.choose("facility_location", None, problem) == "reference"


# Of both size classes and of both memories, small: a block of emulated threads takes up to 0.4 s under ThreadSanitizer
@pytest.mark.emulator
@pytest.mark.parametrize("order", emulated.ORDERS)
@pytest.mark.parametrize(
    ("sizes", "D"), [([5, 0, 11], 24), ([35, 4], 12), ([230], 3)], ids=["warps", "block", "outside"]
)
def test_small_selections(sizes: list[int], D: int, order: str, emulated_cuda: Callable[[str], None]) -> None:
    emulated_cuda(order)
    x = hard_rows(sum(sizes), D)
    assert_equal("cpu", x, 3, sizes, fill="coverage", **values(sum(sizes)))


@pytest.mark.sanitize
@pytest.mark.parametrize("sanitizer", [pytest.param("address", marks=pytest.mark.full), "thread"])
def test_small_selections_are_clean(workshop: emulated.Workshop, sanitizer: str) -> None:
    emulated.passes(
        workshop, sanitizer, "small_selections and not clean", "tests/facility_location/test_facility_location_cuda.py"
    )
