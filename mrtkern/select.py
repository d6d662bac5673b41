"""Keep K of the N responses of every prompt: seven strategies, built on facility_location.

    random             uniform without replacement: unbiased for the generator's pool (the default)
    stratified         one uniform member of each stratum round a facility-location centre, weight = share: unbiased too
    coverage           facility location on the embeddings alone
    quality_diversity  facility location with weights and qualities max(q, 1e-4)**alpha
    additive           (1 - lam) facility location + lam * sum of q
    reward             the K largest rewards: mode collapse, for comparison
    max_variance       the K whose rewards vary most: some of the largest and some of the smallest

with q the reward scaled to 0 … 1 inside its prompt (all ones when it does not vary).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrtkern import _check, _dispatch, _random, lattice
from mrtkern._check import Array
from mrtkern.ops.facility_location.ground import METRICS, Caller, Groups
from mrtkern.ops.facility_location.op import solve
from mrtkern.ops.facility_location.rule import FILLS, Rule
from mrtkern.ops.facility_location.selection import Selection

OP = "select_responses"
METHODS = ("random", "stratified", "coverage", "quality_diversity", "additive", "reward", "max_variance")
NEED_REWARD = ("quality_diversity", "additive", "reward", "max_variance")
FLOOR = 1e-4  # smallest quality and weight, so that no response is invisible
ROWS_PER_CHUNK = 2**17  # bounds the temporary vectors (about 200 bytes a row) whatever the number of prompts
SAMPLED_PROMPTS = 1000  # on which quality_diversity is compared with reward alone
SUFFICES = 0.98  # share of the objective from which reward alone is as good


def select_responses(
    embeddings: Array,
    offsets: Array,
    k: int | Array,
    *,
    method: str = "random",
    reward: Array | None = None,
    alpha: float = 0.75,
    lam: float = 0.5,
    fill: str = "coverage",
    group_key: Array | None = None,
    seed: int = 0,
    metric: str = "shifted_cosine",
    backend: str | None = None,
) -> Selection:
    """Keep k responses of every prompt, by one of the methods that the head of this module lists.

    Arguments
    ---------
    embeddings : [T, D], float32, float64, bfloat16 or float16
        Packed.
    offsets : int64 [B + 1]
        Prompt b owns rows offsets[b]:offsets[b + 1].
    k : int, or int64 [B]
        With an int prompts with fewer responses keep them all.
    method : str
        "random", "stratified", "coverage", "quality_diversity", "additive", "reward" or "max_variance".
    reward : [T], any finite scale, optional
        Mapped to 0 … 1 inside each prompt, and taken for equal where their range is below 1e-8; needed by
        quality_diversity, additive, reward and max_variance.
    alpha : float
        The exponent of the reward in quality_diversity.
    lam : float, 0 … 1
        The share of the reward in additive.
    fill : str
        What follows once no response improves the objective: "coverage", "random" or "none" (fewer ids);
        quality_diversity often runs dry after two picks, see effective_k.
    group_key : int64 [B], optional
        With seed it names the prompts to the random numbers (None: 0 … B - 1 of this call): with a key of your own the
        picks depend on neither batching nor sharding.
    seed : int
    metric, backend
        As in `facility_location`.

    Returns
    -------
    Selection
        value, upper_bound and skill: of their own objective for quality_diversity and additive, of the coverage
        objective for the others. With share as weights stratified is unbiased; weigh random equally.
        reward_overlap [B]: part of the picks among the k largest rewards. No gradient.

    Raises
    ------
    ValueError
        Naming the row, for NaN or infinite embeddings and rewards.

    A warning says when reward alone attains 98 % of the quality_diversity objective.

    Memory
    ------
    As `facility_location`, and 32 MiB.

    Devices
    -------
    torch.compile breaks its graph here (fullgraph is refused), because values of offsets are read.

    Determinism
    -----------
    The same bits for every thread count and backend.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 1.0], [-1.0, 1.0]])
    >>> mk.select_responses(embeddings, torch.tensor([0, 3, 5]), 2, method="coverage").ids
    tensor([1, 2, 3, 4])

    Source
    ------
    arXiv 2606.00544; stratified: stratified sampling (Cochran, 1977); max_variance: PODS (arXiv 2504.13818).
    """
    embeddings = _check.floating(OP, "embeddings", embeddings)
    if embeddings.ndim != 2:
        _check.fail(OP, "embeddings", "be a matrix [T, D]", _check.shape(embeddings))
    offsets = _check.offsets(OP, offsets, embeddings.device, "embeddings").contiguous()
    _check.offsets_values(OP, offsets, embeddings.shape[0])
    _check.one_of(OP, "method", method, METHODS)
    _check.one_of(OP, "fill", fill, tuple(name for name in FILLS if name != "index"))
    _check.one_of(OP, "metric", metric, METRICS)
    _dispatch.check(OP, backend)
    seed = _check.integer(OP, "seed", seed)
    _ranges(alpha, lam)
    k = _checked_k(k, offsets, embeddings)
    reward = _rewards(reward, method, embeddings)
    B = offsets.shape[0] - 1
    group_key = _checked_key(group_key, B, embeddings)
    spans = [_Span.of(k, offsets, first, last) for first, last in _runs(offsets)]
    if method == "additive":
        _additive_range(lam, max(span.largest for span in spans))
    joined = _Joined(embeddings.shape[0], B, sum(span.total for span in spans), embeddings.device)
    for span in spans:
        values = None if reward is None else reward[span.first_row : span.last_row].double()
        ground = span.ground(embeddings, offsets, metric)
        rule = span.rule(k, offsets, group_key, fill, seed)
        chunk = _Chunk(ground, rule, values, alpha, lam, backend)
        if method == "quality_diversity" and span.first == 0:
            chunk.warn_if_reward_suffices()
        joined.append(chunk.selection(method))
    return joined.result()


def asked_of_one_set(
    embeddings: Tensor, k: int, method: str, *, reward: Tensor | None, alpha: float, lam: float, seed: int
) -> dict[str, Any]:
    """What a method other than stratified asks of facility_location where all rows are one prompt: its arguments."""
    span = _Span(first=0, last=1, first_row=0, last_row=len(embeddings), total=k, largest=len(embeddings))
    offsets = torch.tensor([0, len(embeddings)], dtype=torch.int64, device=embeddings.device)
    rule = span.rule(k, offsets, None, "none", seed)
    values = None if reward is None else reward.double()
    return _Chunk(span.ground(embeddings, offsets, METRICS[0]), rule, values, alpha, lam, None).asked(method)


class _Span(NamedTuple):
    """Prompts first … last - 1; every number of them that is read is read at once."""

    first: int
    last: int
    first_row: int
    last_row: int
    total: int  # responses to keep
    largest: int  # responses of the largest prompt

    @classmethod
    def of(cls, k: int | Tensor, offsets: Tensor, first: int, last: int) -> _Span:
        ends = offsets[first : last + 1]
        largest = torch.cat([ends.new_zeros(1), ends.diff()]).max()
        facts = (ends[0], ends[-1], _counts(k, offsets, first, last).sum(), largest)
        return cls(first, last, *torch.stack(facts).tolist())

    def ground(self, embeddings: Tensor, offsets: Tensor, metric: str) -> Groups:
        """The rows; ids and errors count from the caller's row 0."""
        rows = embeddings[self.first_row : self.last_row].detach().resolve_neg()
        return Groups(
            x=lattice.to_float32(rows),
            metric=metric,
            caller=Caller(OP, "embeddings"),
            first_row=self.first_row,
            offsets=offsets[self.first : self.last + 1] - self.first_row,
            largest=self.largest,
        )

    def rule(self, k: int | Tensor, offsets: Tensor, group_key: Tensor | None, fill: str, seed: int) -> Rule:
        """How they are picked, before a method adds values to it."""
        numbers = torch.arange(self.first, self.last, dtype=torch.int64, device=offsets.device)
        return Rule(
            k=_counts(k, offsets, self.first, self.last),
            total=self.total,
            group_key=numbers if group_key is None else group_key[self.first : self.last],
            fill=fill,
            seed=seed,
        )


class _Chunk:
    """The prompts of a span, with the seven methods."""

    def __init__(
        self, ground: Groups, rule: Rule, reward: Tensor | None, alpha: float, lam: float, backend: str | None
    ) -> None:
        self.ground, self.rule, self.q = ground, rule, reward
        self.alpha, self.lam, self.backend = alpha, lam, backend
        self.first_row, self.k, self.device = ground.first_row, rule.k, rule.k.device
        self.offsets, self.num_rows = ground.offsets, ground.x.shape[0]
        prompts = torch.arange(len(rule.k), dtype=torch.int64, device=self.device)
        self.prompt = torch.repeat_interleave(prompts, self.offsets.diff(), output_size=self.num_rows)

    def selection(self, method: str) -> Selection:
        """What a method keeps."""
        if method == "stratified":
            return self.stratified()
        found = self._solve(**self.asked(method))
        return self._with_overlap(found) if method in ("quality_diversity", "additive") else found

    def asked(self, method: str) -> dict[str, Any]:
        """What a method asks of facility_location: the picks, or the values that the objective has."""
        if method == "random":
            return {"picks": self._first(self._hash(_random.KEPT))}
        if method == "reward":
            return {"picks": self._best_rewards()}
        if method == "max_variance":
            return {"picks": self._extreme_rewards()}
        if method == "quality_diversity":
            a = self._scaled().clamp(FLOOR, 1.0).pow(self.alpha)
            return {"weight": a.clamp(min=FLOOR).float(), "quality": a.float()}
        if method == "additive":
            q = self._scaled()
            return {"quality": torch.full_like(q, 1.0 - self.lam).float(), "bonus": (self.lam * q).float()}
        return {}

    def stratified(self) -> Selection:
        """Centres by coverage; each owns a stratum, whose member with the smallest hash represents it."""
        centres = self._solve(fill="random" if self.rule.fill == "none" else self.rule.fill)
        assert centres.offsets is not None
        local = centres.ids - self.first_row
        number = local.new_empty(self.num_rows)
        number[local] = torch.arange(len(local), dtype=torch.int64, device=self.device)
        rows = (self.k[self.prompt] > 0).nonzero()[:, 0]
        centre, first = centres.owner[rows] - self.first_row, centres.offsets[self.prompt[rows]]
        is_owned = centres.owner[rows] >= 0
        stratum = torch.where(is_owned, number[centre.clamp(min=0)], first)  # what nothing covers joins the first
        order = rows[_segmented(self._hash(_random.STRATUM)[rows], stratum)]
        shares = torch.bincount(stratum, minlength=len(local))
        drawn = order[shares.cumsum(0) - shares] + self.first_row
        picks = self._solve(picks=drawn)
        owner = torch.full_like(centres.owner, -1)
        owner[rows] = drawn[stratum]
        sizes = (self.offsets[1:] - self.offsets[:-1])[self.prompt[local]]
        return replace(picks, owner=owner, share=(shares / sizes).float())

    def warn_if_reward_suffices(self) -> None:
        """Compare reward alone with greedy under the quality_diversity objective, on the first prompts."""
        few = min(len(self.k), SAMPLED_PROMPTS)
        end, total = torch.stack([self.offsets[few], self.k[:few].sum()]).tolist()
        values = {name: value[:end] for name, value in self.asked("quality_diversity").items()}
        ground = replace(self.ground, x=self.ground.x[:end], offsets=self.offsets[: few + 1])
        kept = {"k": self.k[:few], "total": total, "group_key": self.rule.group_key[:few], "fill": "none"}
        rule = replace(self.rule, **kept, **values)
        rules = (rule, replace(rule, picks=self._best_rewards()[:total]))
        greedy, reward = (float(solve(ground, each, self.backend).value.sum()) for each in rules)
        if greedy > 0 and reward > SUFFICES * greedy:
            warnings.warn(
                f"{OP}: the largest rewards alone attain {100 * reward / greedy:.1f} % of the quality_diversity "
                f"objective ({few} prompt{'s' * (few != 1)} looked at): the quality outweighs the diversity, "
                "consider method='coverage' or a smaller alpha",
                stacklevel=3,
            )

    def _solve(self, **changes: Any) -> Selection:
        return solve(self.ground, replace(self.rule, **changes), self.backend)

    def _with_overlap(self, picks: Selection) -> Selection:
        """The part of each prompt's picks that are among its k largest rewards."""
        assert picks.offsets is not None
        is_best = torch.zeros(self.num_rows, dtype=torch.float64, device=self.device)
        is_best[self._best_rewards() - self.first_row] = 1.0
        kept = picks.offsets[1:] - picks.offsets[:-1]
        prompts = torch.arange(len(kept), dtype=torch.int64, device=self.device)
        prompt = torch.repeat_interleave(prompts, kept, output_size=len(picks.ids))
        hits = is_best.new_zeros(len(kept)).index_add(0, prompt, is_best[picks.ids - self.first_row])
        return replace(picks, reward_overlap=hits / kept.clamp(min=1))

    def _scaled(self) -> Tensor:
        """Rewards scaled to 0 … 1 inside their prompt, float64; ones where the range is below 1e-8."""
        assert self.q is not None
        empty = self.q.new_zeros(len(self.k))
        low, high = (
            empty.scatter_reduce(0, self.prompt, self.q, f"a{end}", include_self=False) for end in ("min", "max")
        )
        half_span = (high / 2 - low / 2)[self.prompt]  # halves, because the span itself can overflow
        return torch.where(half_span < 0.5e-8, 1.0, (self.q / 2 - low[self.prompt] / 2) / half_span)

    def _hash(self, draw: int) -> Tensor:
        position = torch.arange(self.num_rows, dtype=torch.int64, device=self.device) - self.offsets[self.prompt]
        return _random.keys(self.rule.seed, draw, self.rule.group_key[self.prompt], position)

    def _best_rewards(self) -> Tensor:
        assert self.q is not None
        return self._first(-self.q)

    def _extreme_rewards(self) -> Tensor:
        """The k rewards of largest variance, which are some of the largest, who come first, and some of the smallest.

        With i of the smallest it is (k sum q^2 - (sum q)^2) / k^2: integers, as q is the scaled reward in steps of at
        most 2^-19 for k below 4,096. Where several i are best, the smallest. Sums may wrap, their differences do not.
        """
        order = _segmented(self._scaled().flip(0), self.prompt.flip(0))  # ascending; of equals the lower row last
        order = self.num_rows - 1 - order
        bits = (62 - 2 * int(self.k.max()).bit_length()) // 2 if len(self.k) else 0
        q = torch.zeros(self.num_rows + 1, dtype=torch.int64, device=self.device)
        q[1:] = (self._scaled()[order] * 2.0 ** min(bits, 30)).round().long()
        sums = torch.stack([q, q * q]).cumsum(1)  # [2, T + 1]
        prompt = torch.repeat_interleave(self.k + 1)  # each prompt with every i from 0 to k
        k, first, last = self.k[prompt], self.offsets[prompt], self.offsets[1:][prompt]
        begin = (self.k + 1).cumsum(0) - self.k - 1
        i = torch.arange(len(prompt), dtype=torch.int64, device=self.device) - begin[prompt]
        sum_q, sum_qq = sums[:, first + i] - sums[:, first] + sums[:, last] - sums[:, last - k + i]
        variance = k * sum_qq - sum_q * sum_q
        empty = torch.zeros_like(self.k)
        is_best = variance == empty.scatter_reduce(0, prompt, variance, "amax", include_self=False)[prompt]
        smallest = empty.scatter_reduce(0, prompt[is_best], i[is_best], "amin", include_self=False)
        rank = torch.arange(self.num_rows, dtype=torch.int64, device=self.device)
        from_end, largest = self.offsets[1:][self.prompt] - 1 - rank, (self.k - smallest)[self.prompt]
        place = torch.where(from_end < largest, from_end, largest + rank - self.offsets[self.prompt])
        return self._first(torch.empty_like(place).index_copy_(0, order, place))

    def _first(self, value: Tensor) -> Tensor:
        """Row numbers of the k smallest values of each prompt, packed in ascending order; equal values by row."""
        order = _segmented(value, self.prompt)
        position = torch.arange(len(order), dtype=torch.int64, device=self.device) - self.offsets[self.prompt]
        return order[position < self.k[self.prompt]] + self.first_row


def _segmented(value: Tensor, segment: Tensor) -> Tensor:
    """Indices that sort by (segment, value, index)."""
    order = value.argsort(stable=True)
    return order[segment[order].argsort(stable=True)]


def _ranges(alpha: float, lam: float) -> None:
    _check.number(OP, "alpha", alpha)
    _check.number(OP, "lam", lam)
    if not 0 <= alpha < float("inf"):
        _check.fail(OP, "alpha", "be finite and not negative", alpha)
    if not 0 <= lam <= 1:
        _check.fail(OP, "lam", "be from 0 to 1", lam)


def _additive_range(lam: float, largest: int) -> None:
    """Refuse a share beside which the similarities vanish: sums of steps would leave float64's integers."""
    most = 1 - largest * 2.0**-37
    if most < lam < 1:
        _check.fail(OP, "lam", f"be 1 or at most {most!r} for prompts of {largest} responses", lam)


def _checked_k(k: int | Array, offsets: Tensor, embeddings: Tensor) -> int | Tensor:
    """The number of responses, of all prompts or of each; refuses what counts none or more than there are."""
    if _check.is_array(k):
        k = _check.int64(OP, "k", k)
        _check.same_device(OP, embeddings=embeddings, k=k)
        _check.vector(OP, "k", k, len(offsets) - 1, "prompt")
        sizes = offsets.diff()
        bad = (k < 0) | (k > sizes)
        if bool(bad.any()):
            b = _check.first(bad)
            _check.fail(OP, "k", f"be from 0 to the {int(sizes[b])} responses of prompt {b}", int(k[b]))
        return k
    k = _check.integer(OP, "k", k, "be an int of at least 0 or an int64 tensor [B]")
    if k < 0:
        _check.fail(OP, "k", "be an int of at least 0 or an int64 tensor [B]", k)
    return k


def _checked_key(group_key: Array | None, B: int, embeddings: Tensor) -> Tensor | None:
    """Refuse what does not name the prompts."""
    if group_key is None:
        return None
    group_key = _check.vector(OP, "group_key", _check.int64(OP, "group_key", group_key), B, "prompt")
    _check.same_device(OP, embeddings=embeddings, group_key=group_key)
    return group_key


def _rewards(reward: Array | None, method: str, embeddings: Tensor) -> Tensor | None:
    """The rewards if the method reads them; refuses missing ones, NaN and infinity."""
    if reward is None:
        if method in NEED_REWARD:
            raise ValueError(f"{OP}: reward must be given for method {method!r}, got None")
        return None
    reward = _check.vector(OP, "reward", reward, embeddings.shape[0], "response")
    _check.same_device(OP, embeddings=embeddings, reward=reward)
    if reward.is_complex():
        _check.fail(OP, "reward", "be real", reward.dtype)
    _check.finite_rows(f"{OP}: reward", reward)
    return reward.detach()


def _counts(k: int | Tensor, offsets: Tensor, first: int, last: int) -> Tensor:
    """k of prompts first … last - 1: an int keeps the whole of a smaller prompt, a tensor is exact."""
    return k[first:last] if isinstance(k, Tensor) else offsets[first : last + 1].diff().clamp(max=k)


def _runs(offsets: Tensor) -> Iterator[tuple[int, int]]:
    """Runs of prompts first … last - 1 of about ROWS_PER_CHUNK rows; one empty run when there is no prompt."""
    B, first = len(offsets) - 1, 0
    while first < B or first == B == 0:
        last = int(torch.searchsorted(offsets, offsets[first] + ROWS_PER_CHUNK, right=True)) - 1
        last = min(B, max(last, first + 1))
        yield first, last
        first = last if last else 1


class _Joined:
    """The Selections of consecutive runs of prompts, written into one as they come.

    Parts kept for a final copy would double the memory.
    """

    PER_PICK, PER_PROMPT = ("ids", "gains", "share"), ("value", "upper_bound", "skill", "effective_k", "reward_overlap")

    def __init__(self, T: int, B: int, total: int, device: torch.device) -> None:
        self.sizes = {"owner": T, **dict.fromkeys(self.PER_PICK, total), **dict.fromkeys(self.PER_PROMPT, B)}
        self.fields: dict[str, Tensor] = {}
        self.written = dict.fromkeys(self.sizes, 0)
        self.offsets = torch.zeros(B + 1, dtype=torch.int64, device=device)

    def append(self, part: Selection) -> None:
        assert part.offsets is not None
        prompts = self.written["value"]
        self.offsets[prompts + 1 : prompts + len(part.offsets)] = part.offsets[1:] + self.written["ids"]
        for name, size in self.sizes.items():
            values = getattr(part, name)
            if values is None:
                continue
            if name not in self.fields:
                self.fields[name] = values.new_empty(size)
            start = self.written[name]
            self.fields[name][start : start + len(values)] = values
            self.written[name] += len(values)

    def result(self) -> Selection:
        fields = {name: values[: self.written[name]] for name, values in self.fields.items()}
        return Selection(offsets=self.offsets, **fields)
