"""select_responses: seven strategies, uniform draws, objectives that run dry, and chunks that change nothing."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from mrtkern import _dispatch, select
from mrtkern.ops.facility_location.selection import Selection
from mrtkern.ops.facility_location.units import feature_error
from mrtkern.select import METHODS, select_responses
from tests.tools import oracle, selections

HAS_C = not isinstance(_dispatch.load("facility_location", "cpu"), str)
BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(not HAS_C, reason="mrtkern._C is not installed"))]
every_method = pytest.mark.parametrize("method", METHODS)

# Normal deviate that one draw in a million exceeds; Wilson and Hilferty (1931) turn it into a chi-square, for 1 … 5
# hundred degrees of freedom.
ONE_IN_A_MILLION = 4.7534


def largest_chi_square(degrees: int) -> float:
    return degrees * (1 - 2 / (9 * degrees) + ONE_IN_A_MILLION * math.sqrt(2 / (9 * degrees))) ** 3


def pool(sizes: list[int], D: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, offsets and rewards of prompts with these numbers of responses."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    T = int(offsets[-1])
    return torch.randn(T, D, generator=generator), offsets, torch.rand(T, generator=generator)


def lists(selection: Selection) -> list[list[int]]:
    """Kept row numbers per prompt."""
    assert selection.offsets is not None
    return [part.tolist() for part in selection.ids.tensor_split(selection.offsets[1:-1])]


def quiet(call: Callable[[], Selection]) -> Selection:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call()


# Uniform draws


def test_random_is_exactly_uniform_over_subsets():
    """Every one of the 10 pairs out of 5 responses equally often over 20,000 prompts (chi-square)."""
    B = 20_000
    offsets = torch.arange(B + 1) * 5
    x = torch.ones(5 * B, 1)
    kept = select_responses(x, offsets, 2, method="random").ids.view(B, 2) % 5
    pairs = kept.sort(1).values @ torch.tensor([5, 1])
    counts = torch.bincount(pairs, minlength=25)
    counts = counts[counts > 0].double()
    assert len(counts) == 10
    assert float(((counts - B / 10) ** 2 / (B / 10)).sum()) < largest_chi_square(9)


def test_random_order_is_uniform_too():
    B = 20_000
    first = select_responses(torch.ones(7 * B, 1), torch.arange(B + 1) * 7, 3, method="random").ids.view(B, 3)[:, 0] % 7
    counts = torch.bincount(first, minlength=7).double()
    assert float(((counts - B / 7) ** 2 / (B / 7)).sum()) < largest_chi_square(6)


def test_seeds_and_keys_give_other_draws():
    x, offsets, _ = pool([30] * 20)
    one, other = (lists(select_responses(x, offsets, 4, seed=seed)) for seed in (0, 1))
    assert one != other
    keyed = lists(select_responses(x, offsets, 4, group_key=torch.arange(20) + 100))
    assert keyed != one


@every_method
def test_picks_do_not_depend_on_batch_order_or_shards(method):
    x, offsets, reward = pool([9, 0, 4, 12, 1, 7, 3], seed=2)
    key = torch.tensor([5, 17, 2, 99, 41, 8, -3])
    whole = lists(quiet(lambda: select_responses(x, offsets, 3, method=method, reward=reward, group_key=key, seed=4)))
    for b in range(7):
        first, last = offsets[b : b + 2].tolist()
        rows = slice(first, last)
        alone = quiet(
            lambda rows=rows, b=b: select_responses(
                x[rows], torch.tensor([0, rows.stop - rows.start]), 3, method=method, reward=reward[rows],
                group_key=key[b : b + 1], seed=4,
            )
        )  # fmt: skip
        assert [first + j for j in alone.ids.tolist()] == whole[b]


@every_method
@pytest.mark.parametrize("fill", ["coverage", "none"])
def test_chunks_change_nothing(method, fill, monkeypatch):
    x, offsets, reward = pool([9, 0, 4, 12, 1, 7, 3, 0, 30], seed=3)

    def run() -> Selection:
        return quiet(lambda: select_responses(x, offsets, 4, method=method, reward=reward, fill=fill))

    whole = selections.digest(run())
    for rows in (1, 10, 13):
        monkeypatch.setattr(select, "ROWS_PER_CHUNK", rows)
        assert selections.digest(run()) == whole


def test_errors_in_a_later_chunk_name_the_callers_row(monkeypatch):
    monkeypatch.setattr(select, "ROWS_PER_CHUNK", 10)
    x, offsets, _ = pool([10] * 5)
    x[37, 2] = math.nan
    with pytest.raises(ValueError, match=r"select_responses: embeddings must be finite, got nan in row 37$"):
        select_responses(x, offsets, 2, method="coverage")


# The methods


@pytest.mark.parametrize("backend", BACKENDS)
@every_method
def test_backends_agree_bit_for_bit(method, backend):
    x, offsets, reward = pool([9, 0, 4, 12, 1, 7, 3], seed=5)
    x[2] = x[1]
    for fill in ("coverage", "random", "none"):
        options = {"method": method, "reward": reward, "fill": fill}
        found, expected = (
            quiet(partial(select_responses, x, offsets, 3, backend=b, **options)) for b in (backend, "reference")
        )
        assert selections.digest(found) == selections.digest(expected)


@every_method
def test_every_prompt_keeps_k_or_all_of_its_responses(method):
    sizes = [9, 0, 4, 12, 1, 7, 3]
    x, offsets, reward = pool(sizes, seed=6)
    found = lists(quiet(lambda: select_responses(x, offsets, 4, method=method, reward=reward)))
    for b, ids in enumerate(found):
        assert len(ids) == len(set(ids)) == min(4, sizes[b])
        assert all(int(offsets[b]) <= j < int(offsets[b + 1]) for j in ids)
    exact = torch.tensor([2, 0, 4, 1, 1, 0, 3])
    found = lists(quiet(lambda: select_responses(x, offsets, exact, method=method, reward=reward)))
    assert [len(ids) for ids in found] == exact.tolist()


def test_reward_keeps_the_largest_and_ties_go_to_the_lower_row():
    x, offsets, _ = pool([5, 4])
    reward = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0, 0.0, -1.0, 0.0, 5.0])
    assert lists(select_responses(x, offsets, 2, method="reward", reward=reward)) == [[1, 2], [8, 5]]


def test_max_variance_keeps_the_subset_whose_rewards_vary_most():
    """Among all subsets; rewards are multiples of 2^-8 of their range, so that integers say it exactly."""
    generator = torch.Generator().manual_seed(20)
    sizes = [8, 3, 0, 6, 1, 9, 7, 8, 8]
    x, offsets, _ = pool(sizes)
    reward = torch.randint(0, 257, (len(x),), generator=generator)
    for b, size in enumerate(sizes):
        if size > 1:
            reward[offsets[b] : offsets[b] + 2] = torch.tensor([256, 0])
    reward[offsets[-3] :] = torch.tensor([0, 256]).repeat(8)[torch.randperm(16, generator=generator)]  # many ties
    variance = lambda ids: len(ids) * sum(int(reward[j]) ** 2 for j in ids) - sum(int(reward[j]) for j in ids) ** 2  # noqa: E731
    for k in range(1, 7):
        found = lists(select_responses(x, offsets, k, method="max_variance", reward=reward))
        for b, ids in enumerate(found):
            rows = range(int(offsets[b]), int(offsets[b + 1]))
            assert len(set(ids)) == min(k, sizes[b])
            assert variance(ids) == max(map(variance, itertools.combinations(rows, len(ids))))
        moved = select_responses(x, offsets, k, method="max_variance", reward=2.0 * reward - 300)
        assert lists(moved) == found


def test_max_variance_takes_the_largest_first_and_of_equal_rewards_the_lower_row():
    x, offsets, _ = pool([6, 4])
    reward = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.5, 2.0, 2.0, 2.0, 2.0])
    assert lists(select_responses(x, offsets, 3, method="max_variance", reward=reward)) == [[0, 3, 2], [6, 7, 8]]
    large = torch.arange(3000).flip(0)
    found = select_responses(torch.ones(3000, 1), torch.tensor([0, 3000]), 1000, method="max_variance", reward=large)
    assert found.ids.tolist() == [*range(500), *range(2999, 2499, -1)]


def test_quality_diversity_is_the_stated_objective():
    """Greedy on w_i a_j (1 + cos_ij) / 2 computed here in float64, where no two gains are close."""
    x, offsets, reward = pool([12] * 10, seed=7)
    found = quiet(lambda: select_responses(x, offsets, 3, method="quality_diversity", reward=reward, fill="none"))
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    # The best response of a prompt has weight and quality 1: the unit of the error.
    allowed = oracle.coverage_error(12, feature_error(12, "shifted_cosine"))
    for b, ids in enumerate(lists(found)):
        rows = slice(12 * b, 12 * b + 12)
        r = reward[rows].double()
        a = ((r - r.min()) / (r.max() - r.min())).clamp(1e-4, 1) ** 0.75
        c = a.clamp(min=1e-4)[:, None] * a[None, :] * (1 + unit[rows] @ unit[rows].T) / 2
        expected, gains = oracle.greedy(c.numpy(), len(ids))
        assert [j - 12 * b for j in ids] == expected
        assert float(found.value[b]) == pytest.approx(sum(gains), abs=allowed)


def test_additive_goes_from_coverage_to_reward():
    x, offsets, reward = pool([12] * 20, seed=8)
    run = lambda **options: lists(quiet(lambda: select_responses(x, offsets, 4, reward=reward, **options)))  # noqa: E731
    assert run(method="additive", lam=0.0) == run(method="coverage")
    assert [set(ids) for ids in run(method="additive", lam=1.0)] == [set(ids) for ids in run(method="reward")]


def test_equal_rewards_count_as_ones():
    x, offsets, _ = pool([12] * 20, seed=9)
    same = torch.full((240,), 0.3)
    by_quality = quiet(lambda: select_responses(x, offsets, 4, method="quality_diversity", reward=same))
    assert lists(by_quality) == lists(select_responses(x, offsets, 4, method="coverage"))


def test_quality_diversity_runs_dry_and_says_so():
    """One good response among bad ones: nothing else gains; the rest is filled by the rule, never by index."""
    x, offsets, _ = pool([20] * 30, seed=10)
    reward = torch.zeros(600)
    reward[5::20] = 1.0
    filled = {}
    for fill in ("coverage", "random", "none"):
        found = quiet(
            lambda fill=fill: select_responses(x, offsets, 6, method="quality_diversity", reward=reward, fill=fill)
        )
        assert int(found.effective_k.max()) < 6
        kept = found.offsets.diff()
        assert torch.equal(kept, found.effective_k if fill == "none" else torch.full((30,), 6))
        filled[fill] = lists(found)
        assert all(ids[0] == 20 * b + 5 for b, ids in enumerate(filled[fill]))
    assert filled["coverage"] != filled["random"]
    assert any(sorted(ids[1:]) != list(range(20 * b, 20 * b + 5)) for b, ids in enumerate(filled["random"]))


def test_reward_overlap_and_the_warning_that_reward_alone_suffices():
    x, offsets, reward = pool([20] * 30, seed=11)
    with pytest.warns(
        UserWarning, match=r"the largest rewards alone attain 9\d\.\d % of the quality_diversity objective"
    ):
        found = select_responses(x, offsets, 8, method="quality_diversity", reward=reward)
    best = quiet(lambda: select_responses(x, offsets, 8, method="reward", reward=reward))
    expected = [len(set(a) & set(b)) / 8 for a, b in zip(lists(found), lists(best), strict=True)]
    assert found.reward_overlap is not None and found.reward_overlap.tolist() == expected
    assert select_responses(x, offsets, 8, method="coverage").reward_overlap is None


def test_stratified_draws_one_member_of_each_stratum_with_its_share():
    x, offsets, _ = pool([15] * 40, seed=12)
    centres = select_responses(x, offsets, 4, method="coverage")
    drawn = select_responses(x, offsets, 4, method="stratified")
    assert torch.equal(drawn.share, centres.share)
    for b, (ids, hearts) in enumerate(zip(lists(drawn), lists(centres), strict=True)):
        for heart, one in zip(hearts, ids, strict=True):
            members = (centres.owner == heart).nonzero()[:, 0]
            assert one in members.tolist() and bool((drawn.owner[members] == one).all()), b


def test_stratified_is_unbiased():
    """The share-weighted mean of 4,000 keys is the pool's mean within five standard errors; coverage's is not."""
    modes = torch.tensor([[4.0, 0, 1], [0, 4, 1], [0, 0, 1]])
    generator = torch.Generator().manual_seed(13)
    one = torch.cat([modes[0].expand(6, 3), modes[1].expand(4, 3), modes[2].expand(5, 3)])
    one = one + 0.3 * torch.randn(15, 3, generator=generator)
    value = one[:, 0] + torch.rand(15, generator=generator)
    B = 4000
    x, offsets = one.repeat(B, 1), torch.arange(B + 1) * 15

    def estimates(method: str) -> Tensor:
        found = select_responses(x, offsets, 4, method=method)
        return (found.share * value[found.ids % 15]).view(B, 4).sum(1).double()

    drawn = estimates("stratified")
    truth = float(value.double().mean())
    assert abs(float(drawn.mean()) - truth) < 5 * float(drawn.std()) / math.sqrt(B)
    assert abs(float(estimates("coverage").mean()) - truth) > 5 * float(drawn.std()) / math.sqrt(B)
    random = select_responses(x, offsets, 4, method="random")
    plain = value[random.ids % 15].view(B, 4).mean(1).double()
    assert float(drawn.var()) < float(plain.var()), "lower variance than random on separated modes"


def test_stratified_has_no_favourite_among_duplicates():
    """Sixteen equal rows: centres are filled in at random, and every row is drawn equally often (chi-square)."""
    B = 4000
    found = select_responses(torch.ones(16 * B, 3), torch.arange(B + 1) * 16, 4, method="stratified")
    weight = torch.zeros(16, dtype=torch.float64).index_add(0, found.ids % 16, found.share.double()) * 16 / B
    spread = (found.share.double() * 16).square().sum() / B / 16
    assert float(((weight - 1) ** 2).sum() / (spread / B)) < largest_chi_square(15)


def test_stratified_can_draw_rows_that_nothing_covers():
    """Opposite directions under the clamped cosine: what no centre covers joins a stratum, and shares still add up."""
    x = torch.eye(4).repeat(2, 1) * torch.tensor([1.0, -1.0]).repeat_interleave(4)[:, None]
    B = 500
    found = select_responses(x.repeat(B, 1), torch.arange(B + 1) * 8, 2, method="stratified", metric="clamped_cosine")
    assert len((found.ids % 8).unique()) == 8
    assert float((found.share.view(B, 2).sum(1) - 1).abs().max()) <= oracle.roundoff(torch.float32)


def test_rewards_of_any_size_are_scaled():
    x, offsets, reward = pool([8] * 5, seed=14)
    huge = (2 * reward.double() - 1) * 1.5e308
    for method in ("quality_diversity", "additive"):
        found, expected = (
            lists(quiet(lambda r=r, m=method: select_responses(x, offsets, 3, method=m, reward=r)))
            for r in (huge, reward.double())
        )
        assert found == expected


def test_float64_and_empty_inputs():
    x, offsets, reward = pool([5, 6])
    for method in METHODS:
        wide = quiet(lambda m=method: select_responses(x.double(), offsets, 2, method=m, reward=reward))
        assert lists(wide) == lists(quiet(lambda m=method: select_responses(x, offsets, 2, method=m, reward=reward)))
        none = quiet(
            lambda m=method: select_responses(x[:0], torch.zeros(1, dtype=torch.int64), 2, method=m, reward=reward[:0])
        )
        assert len(none.ids) == 0 and len(none.value) == 0
        empty = quiet(
            lambda m=method: select_responses(x[:0], torch.zeros(3, dtype=torch.int64), 2, method=m, reward=reward[:0])
        )
        assert empty.offsets.tolist() == [0, 0, 0]


# What callers get wrong

X, ENDS = torch.ones(6, 3), torch.tensor([0, 4, 6])
NAN_IN_ROW_2 = torch.tensor([1, 2, math.nan, 4, 5, 6])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "best"}, "select_responses: method must be one of random, stratified, .*, got 'best'"),
        ({"method": "reward"}, "reward must be given for method 'reward', got None"),
        ({"method": "max_variance"}, "reward must be given for method 'max_variance', got None"),
        ({"method": "reward", "reward": X[:5, 0]}, r"reward must have one entry per response, shape \[6\], got \[5\]"),
        ({"method": "additive", "reward": NAN_IN_ROW_2}, "reward must be finite, got nan in row 2"),
        ({"k": -1}, "k must be an int of at least 0 or an int64 tensor"),
        ({"k": 1.5}, "k must be an int of at least 0 or an int64 tensor"),
        ({"k": torch.tensor([1, 3])}, "k must be from 0 to the 2 responses of prompt 1, got 3"),
        ({"alpha": -1.0}, "alpha must be finite and not negative, got -1.0"),
        ({"lam": 1.5}, "lam must be from 0 to 1, got 1.5"),
        ({"method": "additive", "lam": 1 - 2**-40, "reward": X[:, 0]}, "lam must be 1 or at most .* of 4 responses"),
        ({"metric": "cosine"}, "select_responses: metric must be one of shifted_cosine, clamped_cosine, got 'cosine'"),
        ({"backend": "gpu"}, "select_responses: backend must be one of cuda, triton, cpu, reference, got 'gpu'"),
        ({"alpha": "1"}, "alpha must be a number, got str"),
        ({"lam": None}, "lam must be a number, got NoneType"),
        ({"method": "reward", "reward": X[:, 0] + 1j}, "reward must be real, got torch.complex64"),
        ({"k": torch.tensor([1.0, 1.0])}, "k must be int64, got torch.float32"),
        ({"k": True}, "k must be an int of at least 0 or an int64 tensor"),
        ({"seed": 2**63}, r"seed must be an int from -2\*\*63 to 2\*\*63 - 1, got 9223372036854775808"),
        ({"seed": 1.5}, "seed must be an int"),
        ({"group_key": torch.ones(2)}, "group_key must be int64, got torch.float32"),
        ({"fill": "index"}, "fill must be one of coverage, random, none, got 'index'"),
        ({"group_key": torch.arange(3)}, r"group_key must have one entry per prompt, shape \[2\], got \[3\]"),
        ({"offsets": torch.tensor([0, 5])}, "offsets must end with the number of rows 6, got 5"),
        ({"embeddings": X[0]}, r"embeddings must be a matrix \[T, D\], got \[3\]"),
        ({"embeddings": "x"}, "embeddings must be a tensor, an array or a list of numbers, got str"),
        ({"backend": "cuda"}, "backend 'cuda' cannot run this"),
    ],
)  # fmt: skip
def test_bad_arguments_get_one_sentence(options, sentence):
    arguments = {"embeddings": X, "offsets": ENDS, "k": 2, **options}
    with pytest.raises((ValueError, TypeError), match=sentence) as raised:
        select_responses(arguments.pop("embeddings"), arguments.pop("offsets"), arguments.pop("k"), **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_new_tensors_are_made_on_the_device_of_the_callers(method: str, backend: str) -> None:
    """While the default device has no memory, what is made there mixes with nothing of the caller's."""
    x, offsets, reward = pool([5, 0, 9])
    call = partial(select_responses, x, offsets, 3, method=method, reward=reward, backend=backend)
    expected = quiet(call)
    torch.set_default_device("meta")
    try:
        found = quiet(call)
    finally:
        torch.set_default_device(None)
    assert selections.digest(found) == selections.digest(expected)
