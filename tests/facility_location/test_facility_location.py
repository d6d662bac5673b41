"""facility_location: the definition against brute force, every backend against it, and what callers get wrong."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mrtkern import _dispatch, lattice
from mrtkern.ops.facility_location.ground import Groups
from mrtkern.ops.facility_location.op import facility_location
from mrtkern.ops.facility_location.problem import CASES, Problem
from mrtkern.ops.facility_location.reference import fixed_point, similarities
from mrtkern.ops.facility_location.units import feature_error
from tests.tools import oracle, selections

HAS_C = not isinstance(_dispatch.load("facility_location", "cpu"), str)
needs_c = pytest.mark.skipif(not HAS_C, reason="mrtkern._C is not installed")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_c), pytest.param("cuda", marks=pytest.mark.emulator)]


@pytest.fixture(autouse=True)
def emulated(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("emulator"):
        request.getfixturevalue("emulated_cuda")


def shifted(x: Tensor) -> np.ndarray:
    """(1 + cos) / 2 in float64, zero rows with cosine 0."""
    rows = x.double().numpy()
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return (1 + unit @ unit.T) / 2


def random_rows(N: int, D: int, seed: int) -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed))


# The definition


def test_picks_are_naive_greedy_on_the_integers():
    for seed in range(30):
        x = random_rows(14, 9, seed)
        s, scale = similarities(x, None, "shifted_cosine")
        t = fixed_point(s, scale, torch.ones(14), torch.ones(14), 1.0).numpy()
        ids, gains = oracle.greedy(t, 6)
        found = facility_location(x, 6, backend="reference")
        assert found.ids.tolist() == ids
        assert (found.gains * lattice.STEPS).round().long().tolist() == gains


def test_greedy_reaches_its_share_of_the_optimum_and_the_bound_holds():
    """300 cases as SCIENCE has them: N = 11, K = 3; the optimum by trying every subset."""
    for seed in range(300):
        x = random_rows(11, 5, seed)
        found = facility_location(x, 3, backend="reference")
        best = oracle.best_subset(shifted(x), 3)
        reached = oracle.coverage(shifted(x), found.ids.tolist())
        assert reached >= (1 - 1 / math.e) * best
        assert float(found.upper_bound) >= best >= reached
        assert float(found.skill) <= 1


@pytest.mark.parametrize(
    "D", [1, 2, 3, 33, 384, 1024]
)  # the smallest, where three components can exceed 2048, real ones
def test_value_is_within_its_stated_error(D):
    x = random_rows(40, D, D)
    found = facility_location(x, 5, backend="reference")
    truth = oracle.coverage(shifted(x), found.ids.tolist())
    assert abs(float(found.value) - truth) <= oracle.coverage_error(40, feature_error(D, "shifted_cosine"))
    allowed = oracle.sum_error(len(found.gains), torch.float64)
    assert float(found.gains.sum()) == pytest.approx(float(found.value), rel=allowed)


def test_weights_qualities_and_bonus_enter_the_objective():
    x = random_rows(12, 6, 0)
    w, a, b = (torch.rand(12, generator=torch.Generator().manual_seed(s)) for s in range(3))
    found = facility_location(x, 4, weight=w, quality=a, bonus=b, backend="reference")
    ids = found.ids.tolist()
    c = w.double().numpy()[:, None] * a.double().numpy()[None, :] * shifted(x)
    truth = c[:, ids].max(axis=1).sum() + b.double().numpy()[ids].sum()
    roundings = 12 + 4  # of rows and of bonuses; weights and qualities are below 1
    assert abs(float(found.value) - truth) <= oracle.coverage_error(roundings, feature_error(6, "shifted_cosine"))
    best = max(
        c[:, list(s)].max(axis=1).sum() + b.double().numpy()[list(s)].sum()
        for s in itertools.combinations(range(12), 4)
    )
    assert float(found.upper_bound) >= best


def test_lattice_dot_products_never_exceed_24_bits():
    """Also where it is tightest: a few large components that all round outwards."""
    generator = torch.Generator().manual_seed(0)
    for D in (1, 2, 3, 4, 5, 8, 16, 33, 64, 384):
        x = torch.randn(4000, D, generator=generator) ** 3
        q = lattice.quantise(x).long()
        assert int((q * q).sum(1).max()) <= 2**24
        big = q.abs() > 2048
        assert bool((q[big] % 2 == 0).all())
        assert torch.equal(q.half().long(), q), "float16 holds every component"


def test_equal_rows_give_equal_integers_at_any_scale():
    x = random_rows(5, 20, 1)
    assert torch.equal(lattice.quantise(x), lattice.quantise(x * 1024))
    assert torch.equal(lattice.quantise(x), lattice.quantise(lattice.to_float32(x.double() * 1e200)))


def test_gain_never_increases():
    found = facility_location(random_rows(60, 8, 3), 30, backend="reference")
    assert bool((found.gains.diff() <= 0).all())


def test_a_given_matrix_selects_like_its_features():
    x = random_rows(20, 8, 4)
    s = torch.from_numpy(shifted(x))
    by_matrix = facility_location(similarity=s, k=5)
    by_features = facility_location(x, 5, backend="reference")
    a, b = (oracle.coverage(s.numpy(), f.ids.tolist()) for f in (by_matrix, by_features))
    assert abs(a - b) <= 2 * oracle.coverage_error(20, feature_error(8, "shifted_cosine"))
    assert by_matrix.offsets is None and by_matrix.value.ndim == 0


def test_start_rows_come_first_and_are_not_picked_again():
    x = random_rows(20, 8, 5)
    start = torch.tensor([7, 3])
    found = facility_location(x, 4, start=start)
    assert found.ids[:2].tolist() == [7, 3] and len(found.ids) == 6 and found.ids.unique().numel() == 6
    assert float(found.upper_bound) >= float(found.value)


def test_the_bound_includes_the_rounding_of_bonuses_that_start_rows_have():
    """Each bonus is just below half a step above an integer number of steps."""
    bonus = torch.full((5,), 2.49 / lattice.STEPS)
    found = facility_location(similarity=torch.ones(1, 5), k=1, start=torch.arange(4), bonus=bonus)
    assert float(found.upper_bound) >= 1 + float(bonus.double().sum())


def test_a_bonus_counts_in_the_units_of_the_matrix():
    """A matrix whose largest entry is not 1: the pair of value 10 beats 5 + 1, and a bonus of 1 beats pairs of 0.1."""
    bonus = torch.tensor([0.0, 1.0])
    large = facility_location(similarity=torch.tensor([[10.0, 5.0]]), k=1, bonus=bonus)
    small = facility_location(similarity=torch.tensor([[0.1, 0.05]]), k=1, bonus=bonus)
    assert large.ids.tolist() == [0] and float(large.value) == pytest.approx(10)
    assert small.ids.tolist() == [1] and abs(float(small.value) - 1.05) < 0.1 * oracle.steps(2)


@pytest.mark.parametrize("scale", [1e-300, 1e-41, 1e-39, 1e37, 1e39, 1e300])
def test_the_scale_of_a_matrix_does_not_matter(scale):
    s = torch.rand(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, scaled = facility_location(similarity=s, k=2), facility_location(similarity=s * scale, k=2)
    assert torch.equal(plain.ids, scaled.ids)
    assert abs(float(scaled.value) / scale - float(plain.value)) < oracle.steps(6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_default_dtype_does_not_reach_the_kernels(backend, dtype):
    case = selections.SMALL[0]
    expected = selections.digest(selections.select(case, backend))
    torch.set_default_dtype(dtype)
    try:
        x, offsets, _ = selections.inputs(case)
        found = facility_location(x, case.problem.K, offsets=offsets, backend=backend, seed=5)
        assert found.share.dtype == torch.float32 and float(found.share.sum()) > 0
    finally:
        torch.set_default_dtype(torch.float32)
    assert selections.digest(selections.select(case, backend)) == expected


def test_skill_is_one_where_nothing_can_be_chosen():
    x = random_rows(6, 4, 2)
    mask = torch.tensor([True, False, True, False, False, False])
    for found in (
        facility_location(x, 2, mask=mask),
        facility_location(x, 0, start=torch.tensor([1])),
        facility_location(similarity=torch.zeros(0, 5), k=2),
        facility_location(x, 6),
    ):
        assert float(found.skill) == 1


def test_mask_closes_candidates_but_their_rows_are_covered():
    x = random_rows(20, 8, 6)
    mask = torch.arange(20) % 2 == 0
    found = facility_location(x, 5, mask=mask)
    assert bool(mask[found.ids].all()) and len(found.owner) == 20 and int(found.owner.min()) >= 0


def test_targets_are_the_rows_to_cover():
    x, targets = random_rows(20, 8, 7), random_rows(30, 8, 8)
    found = facility_location(x, 3, targets=targets)
    assert len(found.owner) == 30
    assert float(found.share.sum()) == pytest.approx(1, rel=oracle.sum_error(len(found.share), torch.float32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluating_picks_gives_the_numbers_of_the_greedy_that_made_them(backend):
    for case in selections.SMALL:
        x, offsets, _ = selections.inputs(case)
        made = selections.select(case, backend)
        kept = made.offsets.diff()
        again = facility_location(x, kept, offsets=offsets, picks=made.ids, seed=5, backend=backend)
        assert selections.digest(made) == selections.digest(again)


@pytest.mark.parametrize("backend", BACKENDS)
def test_owner_is_the_nearest_kept_row_and_shares_add_up(backend):
    case = selections.SMALL[2]
    x, offsets, _ = selections.inputs(case)
    found = selections.select(case, backend)
    for b in range(case.problem.B):
        first, last = offsets[b : b + 2].tolist()
        kept = found.ids[int(found.offsets[b]) : int(found.offsets[b + 1])]
        s, scale = similarities(x[first:last], None, "shifted_cosine")
        t = fixed_point(s, scale, torch.ones(last - first), torch.ones(last - first), 1.0)
        for i in range(last - first):
            owner = int(found.owner[first + i])
            assert owner in kept.tolist()
            if first + i in kept.tolist():
                assert owner == first + i
            else:
                similar = t[i, kept - first]
                assert owner == int(kept[similar == similar.max()].min())
        share = found.share[int(found.offsets[b]) : int(found.offsets[b + 1])]
        assert not len(kept) or float(share.sum()) == pytest.approx(1, rel=oracle.sum_error(len(kept), torch.float32))


# Every backend, thread count and instruction set


@needs_c
@pytest.mark.parametrize("case", selections.SMALL, ids=lambda case: case.name)
def test_cpu_equals_the_reference_bit_for_bit(case):
    for name, options in selections.calls(case):
        assert selections.digest(selections.select(case, "cpu", **options)) == selections.digest(
            selections.select(case, "reference", **options)
        ), name


@needs_c
def test_every_number_of_threads_gives_the_same_bits(threads):
    found = {}
    for count in (1, 2, 4):
        threads(count)
        calls = [(case, options) for case in selections.SMALL for _, options in selections.calls(case)]
        found[count] = [selections.digest(selections.select(case, "cpu", **options)) for case, options in calls]
    assert found[2] == found[1] and found[4] == found[1]


@needs_c
def test_a_large_group_is_lazy_and_still_equal():
    """More rows than are refreshed at every pick, and more picks than the certificate looks at."""
    x = random_rows(700, 12, 9)
    offsets = torch.tensor([0, 700])
    digests = {
        selections.digest(facility_location(x, 90, offsets=offsets, backend=backend))
        for backend in ("cpu", "reference")
    }
    assert len(digests) == 1


@needs_c
def test_strides_types_and_alignment_do_not_matter():
    case = selections.SMALL[1]
    x, offsets, _ = selections.inputs(case)
    expected = selections.digest(facility_location(x, 3, offsets=offsets, backend="reference"))
    wide, every = torch.empty(2, len(x), 2 * x.shape[1] + 1)
    layouts = {
        "transposed": x.T.contiguous().T,
        "every second column": every[:, 1::2].copy_(x),
        "unaligned": torch.empty(x.numel() + 1)[1:].view_as(x).copy_(x),
        "float64": x.double(),
        "wide rows": wide[:, : x.shape[1]].copy_(x),
    }
    for name, layout in layouts.items():
        assert selections.digest(facility_location(layout, 3, offsets=offsets, backend="cpu")) == expected, name
    negated = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert negated.is_neg() and torch.equal(negated, x)
    assert selections.digest(facility_location(negated, 3, offsets=offsets, backend="cpu")) == expected
    same = x[:1].expand(12, -1)
    kept = facility_location(same, 2, offsets=torch.tensor([0, 12]), backend="cpu")
    assert kept.ids.tolist() == [0, 1] and kept.effective_k.tolist() == [1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_neither_overflow_nor_underflow(backend, dtype):
    x = random_rows(12, 40, 10).sign() * (1 + torch.arange(12)[:, None] % 3)
    top = torch.finfo(dtype).max / 8
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * 4  # subnormal
    offsets = torch.tensor([0, 12])
    expected = facility_location(x, 4, offsets=offsets, backend=backend).ids.tolist()
    for scale in (top, tiny):
        scaled = (x.double() * scale).to(dtype)
        assert facility_location(scaled, 4, offsets=offsets, backend=backend).ids.tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_subnormal_rows_have_a_direction_whatever_the_callers_float_mode(backend, dtype):
    """torch.set_flush_denormal(True) turns them to 0 in torch's own arithmetic."""
    x = (random_rows(12, 8, 4).double() * torch.finfo(dtype).smallest_normal / 8).to(dtype)
    offsets = torch.tensor([0, 12])
    expected = facility_location(x, 4, offsets=offsets, backend=backend)
    assert torch.set_flush_denormal(True)
    try:
        flushed = facility_location(x, 4, offsets=offsets, backend=backend)
    finally:
        torch.set_flush_denormal(False)
    assert flushed.ids.tolist() == expected.ids.tolist() and torch.equal(flushed.value, expected.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_vectors_are_half_similar_to_everything(backend):
    x = torch.zeros(6, 4)
    found = facility_location(x, 2, offsets=torch.tensor([0, 6]), backend=backend)
    assert found.ids.tolist() == [0, 1]
    assert float(found.value[0]) == pytest.approx(3, abs=oracle.coverage_error(len(x), 0))
    clamped = facility_location(x, 2, offsets=torch.tensor([0, 6]), metric="clamped_cosine", backend=backend)
    assert float(clamped.value[0]) == 0 and clamped.owner.tolist() == [0, 1, -1, -1, -1, -1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("T", "ends"), [(0, [0]), (0, [0, 0, 0]), (3, [0, 0, 3, 3]), (1, [0, 1])])
def test_empty_groups_and_inputs(backend, T, ends):
    found = facility_location(torch.ones(T, 5), 2, offsets=torch.tensor(ends), backend=backend)
    sizes = torch.tensor(ends).diff()
    assert torch.equal(found.offsets.diff(), sizes.clamp(max=2)) and len(found.value) == len(sizes)
    assert not bool(found.skill.isnan().any())
    nothing = facility_location(torch.ones(T, 5), 0, offsets=torch.tensor(ends), backend=backend)
    assert len(nothing.ids) == 0 and bool((nothing.owner == -1).all()) and float(nothing.value.sum()) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_features_at_all(backend):
    found = facility_location(torch.ones(4, 0), 2, offsets=torch.tensor([0, 4]), backend=backend)
    assert found.ids.tolist() == [0, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_k_per_group(backend):
    x = random_rows(10, 4, 11)
    found = facility_location(x, torch.tensor([1, 0, 4]), offsets=torch.tensor([0, 3, 5, 10]), backend=backend)
    assert found.offsets.tolist() == [0, 1, 1, 5]


# torch


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("has_values", [False, True])
def test_opcheck(backend, has_values):
    """Of what the operator is called with, whose optional arguments all have names."""
    case = selections.SMALL[0]
    x, offsets, values = selections.inputs(case)
    schema = torch.ops.mrtkern.facility_location.default._schema
    options = {argument.name: None for argument in schema.arguments[2:]} | (values if has_values else {})
    options |= {"is_limit": True, "offsets": offsets, "metric": "shifted_cosine", "fill": "index", "seed": 0}
    options |= {"graph_columns": 0, "on_interrupt": "raise", "method": "lazy", "epsilon": 0.01, "polish": 0}
    counts = torch.full((case.problem.B,), 3)
    operator = torch.ops.mrtkern.facility_location.default
    torch.library.opcheck(operator, (x, counts), options | {"backend": backend})


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break(backend):
    case = selections.SMALL[0]
    x, offsets, _ = selections.inputs(case)

    def program(x, offsets):
        found = facility_location(x * 2, 3, offsets=offsets, backend=backend)
        return found.ids, found.gains, found.value, found.skill

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
        for eager, traced in zip(program(x, offsets), compiled(x, offsets), strict=True):
            assert torch.equal(eager, traced)


def test_nothing_of_the_callers_is_overwritten():
    case = selections.SMALL[3]
    x, offsets, values = selections.inputs(case)
    before = [v.clone() for v in (x, offsets, *values.values())]
    facility_location(x, 3, offsets=offsets, fill="coverage", **values)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, offsets, *values.values()), strict=True))


def test_the_choice_for_a_gpu_is_made_without_one():
    case = next(case for case in CASES if "bench" in case.tags)
    on_gpu = replace(case.problem, device="cuda")
    expected = "reference" if isinstance(_dispatch.load("facility_location", "cuda"), str) else "cuda"
    assert _dispatch.choose("facility_location", None, on_gpu) == expected
    with pytest.raises(ValueError, match="facility_location: backend 'cpu' cannot run this: "):
        _dispatch.choose("facility_location", "cpu", on_gpu)


# What callers get wrong

X = torch.ones(6, 3)
ENDS = torch.tensor([0, 4, 6])
FALLING = torch.tensor([0, 4, 2, 6])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"k": 2}, "facility_location: exactly one of x, similarity and graph must be given, got none of them"),
        ({"x": X, "similarity": X, "k": 2}, "one of x, similarity and graph must be given, got x and similarity"),
        ({"x": X}, "k must be an int or an int64 tensor, got NoneType"),
        ({"x": X, "k": -1}, "k must be at least 0, got -1"),
        ({"x": X, "k": 7}, "k must be from 0 to the number of candidates 6, got 7"),
        ({"x": X, "k": torch.tensor([2, 3]), "offsets": ENDS}, "number of candidates 2 in group 1, got 3"),
        ({"x": X, "k": torch.tensor([2]), "offsets": ENDS}, r"k must have one entry per group, shape \[2\], got \[1\]"),
        ({"x": X.long(), "k": 1}, "x must be float32, float64, bfloat16 or float16, got torch.int64"),
        ({"x": X[0], "k": 1}, r"x must be a matrix, got \[3\]"),
        ({"x": X, "k": 1, "metric": "cosine"}, "metric must be one of shifted_cosine, clamped_cosine, got 'cosine'"),
        ({"x": X, "k": 1, "fill": "more"}, "fill must be one of index, coverage, random, none, got 'more'"),
        ({"x": X, "k": 1, "offsets": torch.tensor([0, 5])}, "offsets must end with the number of rows 6, got 5"),
        ({"x": X, "k": 1, "offsets": torch.tensor([1, 6])}, "offsets must begin with 0, got 1"),
        ({"x": X, "k": 1, "offsets": FALLING}, "offsets must never descend, got 4 then 2 at group 1"),
        ({"x": X, "k": 1, "offsets": ENDS.short()}, "offsets must be int64, got torch.int16"),
        ({"x": X, "k": 1, "weight": -torch.ones(6)}, "weight must be finite and not negative, got -1.0 at row 0"),
        ({"x": X, "k": 1, "quality": X[:5, 0]}, r"quality must have one entry per candidate, shape \[6\], got \[5\]"),
        ({"x": X, "k": 1, "bonus": X[:, 0] * math.nan}, "bonus must be finite and not negative, got nan at row 0"),
        ({"x": X, "k": 1, "quality": torch.full((6,), 1e-42)}, "quality must have its largest value in a group"),
        ({"x": X, "k": 1, "bonus": torch.full((6,), 1e13)}, "bonus must sum to at most 2"),
        ({"x": X, "k": 1, "weight": torch.ones(6, dtype=torch.complex64)}, "weight must be real, got torch.complex64"),
        ({"x": X, "k": 1, "mask": torch.ones(6)}, "mask must be bool, got torch.float32"),
        ({"x": X, "k": 1, "start": "12"}, "start must be a tensor, an array or a list of numbers, got str"),
        ({"x": X, "k": 1, "start": torch.tensor([6])}, "start must hold row numbers from 0 to 5"),
        ({"x": X, "k": 1, "start": torch.tensor([2, 2])}, "start must name each row once"),
        ({"x": X, "k": 1, "start": torch.tensor([2]), "offsets": ENDS}, "start must come without offsets"),
        ({"similarity": -X, "k": 1}, r"similarity must be finite and not negative .*shift it .*got -1.0 at \[0, 0\]"),
        ({"similarity": X, "k": 1, "similarity_scale": 0.5}, "scale must be at least the largest similarity 1.0"),
        ({"x": X, "k": 2, "picks": torch.tensor([0])}, "picks must hold the sum of k = 2 row numbers, got 1"),
        ({"x": X, "k": 1, "picks": torch.tensor([0]).int()}, "picks must be int64, got torch.int32"),
        ({"x": X, "k": 1, "picks": torch.arange(2), "offsets": ENDS}, "picks must stay inside its group 1, got row 1"),
        ({"x": X, "k": 1, "targets": torch.ones(4, 2)}, r"targets must be a matrix with the features of x"),
        ({"x": X, "k": 1, "backend": "gpu"}, "backend must be one of cuda, triton, cpu, reference, got 'gpu'"),
        ({"x": X, "k": 1, "backend": "cuda"}, "backend 'cuda' cannot run this: (mrtkern._cuda is|needs a CUDA)"),
    ],
)  # fmt: skip
def test_bad_arguments_get_one_sentence(arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence) as raised:
        facility_location(**arguments)
    assert "\n" not in str(raised.value) and not str(raised.value).endswith(".")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_first_bad_row_is_named(backend, bad, dtype):
    x = random_rows(200, 33, 12).to(dtype)
    x[57, 32] = bad
    x[120, 0] = bad
    with pytest.raises(ValueError, match=rf"facility_location: x must be finite, got {bad} in row 57$"):
        facility_location(x, 2, offsets=torch.arange(0, 201, 10), backend=backend)


def test_what_the_reference_cannot_hold_is_refused_before_it_is_allocated():
    x = torch.ones(1, 1).expand(2**24, 1)  # pairs of 2**54 bytes
    with pytest.raises(MemoryError, match=r"^facility_location: x must leave room for \d{17} bytes, got \d+ bytes"):
        facility_location(x, 1, backend="reference")


@needs_c
def test_limits_of_the_cpu_backend_are_sentences():
    problem = Problem(Groups, 2**31, 4, 1, torch.float32, "cpu", 2**31)
    reason = _dispatch.why_not("facility_location", "cpu", problem)
    assert reason == "takes up to 2,147,483,584 candidates and rows, got 2147483648"
