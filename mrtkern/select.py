"""Keep K of the N responses of every prompt: six strategies, built on facility_location.

    random             uniform without replacement: unbiased for the generator's pool (the default)
    stratified         one uniform member of each stratum round a facility-location centre, weight = share: unbiased too
    coverage           facility location on the embeddings alone
    quality_diversity  facility location with weights and qualities max(q, 1e-4)**alpha
    additive           (1 - lam) facility location + lam * sum of q
    reward             the K largest rewards: mode collapse, for comparison

with q the reward scaled to 0 … 1 inside its prompt (all ones when it does not vary).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from mrtkern import _check, _random
from mrtkern.ops.facility_location.op import solve
from mrtkern.ops.facility_location.problem import FILLS
from mrtkern.ops.facility_location.selection import Selection

OP = "select_responses"
METHODS = ("random", "stratified", "coverage", "quality_diversity", "additive", "reward")
FLOOR = 1e-4  # smallest quality and weight, so that no response is invisible
ROWS_PER_CHUNK = 2**17  # bounds the temporary vectors (about 200 bytes a row) whatever the number of prompts
SAMPLED_PROMPTS = 1000  # on which quality_diversity is compared with reward alone
SUFFICES = 0.98  # share of the objective from which reward alone is as good


def select_responses(
    embeddings: Tensor,
    offsets: Tensor,
    k: int | Tensor,
    *,
    method: str = "random",
    reward: Tensor | None = None,
    alpha: float = 0.75,
    lam: float = 0.5,
    fill: str = "coverage",
    group_key: Tensor | None = None,
    seed: int = 0,
    metric: str = "shifted_cosine",
    backend: str | None = None,
) -> Selection:
    """Keep k responses of every prompt, by one of the methods that the head of this module lists.

    embeddings [T, D] float32, float64, bfloat16, float16, packed; offsets [B + 1] int64: prompt b owns rows
    offsets[b]:offsets[b + 1]. k: an int (prompts with fewer responses keep them all) or int64 [B].
    reward [T], any finite scale (mapped to 0 … 1 inside each prompt): needed by quality_diversity (exponent alpha),
    additive (share lam of the reward, 0 … 1) and reward. metric, backend: as in facility_location.
    fill: what follows once no response improves the objective: "coverage", "random" or "none" (fewer ids);
    quality_diversity often runs dry after two picks, see effective_k.
    group_key [B] int64 (None: 0 … B - 1 of this call) and seed name the prompts to the random numbers: with a key of
    your own the picks depend on neither batching nor sharding.

    Returns a Selection. value, upper_bound and skill: of the coverage objective for random, stratified, coverage and
    reward, of their own for quality_diversity and additive. With share as weights stratified is unbiased; weigh random
    equally. reward_overlap [B]: part of the picks among the k largest rewards.
    No gradient. Deterministic: the same bits for every thread count and backend. Memory: as facility_location, and
    32 MiB. torch.compile breaks its graph here (fullgraph is refused), because values of offsets are read.
    Raises ValueError naming the row for NaN or infinite embeddings and rewards. Warns when reward alone attains
    98 % of the quality_diversity objective. Source: arXiv 2606.00544; stratified: stratified sampling (Cochran, 1977).
    """
    _check.floating(OP, "embeddings", embeddings)
    if embeddings.ndim != 2:
        _check.fail(OP, "embeddings", "be a matrix [T, D]", _check.shape(embeddings))
    _check.offsets(OP, offsets, embeddings.device, "embeddings")
    offsets = offsets.contiguous()
    _check.offsets_values(OP, offsets, embeddings.shape[0])
    _check.one_of(OP, "method", method, METHODS)
    _check.one_of(OP, "fill", fill, tuple(name for name in FILLS if name != "index"))
    seed = _check.integer(OP, "seed", seed)
    _ranges(alpha, lam)
    k = _checked_k(k, embeddings)
    reward = _rewards(reward, method, embeddings)
    B = offsets.shape[0] - 1
    _check_key(group_key, B, embeddings)
    spans = list(_spans(offsets))
    total = sum(int(_counts(k, offsets, *span).sum()) for span in spans)
    joined = _Joined(embeddings.shape[0], B, total, embeddings.device)
    for first, last in spans:
        counts = _counts(k, offsets, first, last)
        numbers = torch.arange(first, last, dtype=torch.int64, device=offsets.device)
        key = numbers if group_key is None else group_key[first:last]
        chunk = _Chunk(embeddings, offsets, counts, reward, key, first, last, alpha, lam, fill, seed, metric, backend)
        if method == "quality_diversity" and first == 0:
            chunk.warn_if_reward_suffices()
        joined.append(getattr(chunk, method)())
    return joined.result()


class _Chunk:
    """Prompts first … last - 1, with the six methods; row numbers and errors count from the caller's row 0."""

    def __init__(
        self, embeddings: Tensor, offsets: Tensor, k: Tensor, reward: Tensor | None, key: Tensor, first: int, last: int,
        alpha: float, lam: float, fill: str, seed: int, metric: str, backend: str | None,
    ) -> None:  # fmt: skip
        self.first_row, end = int(offsets[first]), int(offsets[last])
        self.x = embeddings[self.first_row : end]
        self.offsets = offsets[first : last + 1] - self.first_row
        self.k, self.key = k, key
        self.q = None if reward is None else reward[self.first_row : end].double()
        self.alpha, self.lam, self.fill, self.seed, self.metric, self.backend = alpha, lam, fill, seed, metric, backend
        sizes = self.offsets[1:] - self.offsets[:-1]
        self.device = embeddings.device
        prompts = torch.arange(last - first, dtype=torch.int64, device=self.device)
        self.prompt = torch.repeat_interleave(prompts, sizes, output_size=end - self.first_row)

    def coverage(self) -> Selection:
        return self._solve()

    def random(self) -> Selection:
        return self._solve(given=self._first(self._hash(_random.KEPT)))

    def reward(self) -> Selection:
        return self._solve(given=self._best_rewards())

    def quality_diversity(self) -> Selection:
        a = self._scaled().clamp(FLOOR, 1.0).pow(self.alpha)
        picks = self._solve(weight=a.clamp(min=FLOOR).float(), quality=a.float())
        return self._with_overlap(picks)

    def additive(self) -> Selection:
        q = self._scaled()
        picks = self._solve(quality=torch.full_like(q, 1.0 - self.lam).float(), bonus=(self.lam * q).float())
        return self._with_overlap(picks)

    def stratified(self) -> Selection:
        """Centres by coverage; each owns a stratum, whose member with the smallest hash represents it."""
        centres = self._solve(fill="random" if self.fill == "none" else self.fill)
        assert centres.offsets is not None
        local = centres.ids - self.first_row
        number = local.new_empty(len(self.x))
        number[local] = torch.arange(len(local), dtype=torch.int64, device=self.device)
        rows = (self.k[self.prompt] > 0).nonzero()[:, 0]
        centre, first = centres.owner[rows] - self.first_row, centres.offsets[self.prompt[rows]]
        is_owned = centres.owner[rows] >= 0
        stratum = torch.where(is_owned, number[centre.clamp(min=0)], first)  # what nothing covers joins the first
        order = rows[_segmented(self._hash(_random.STRATUM)[rows], stratum)]
        shares = torch.bincount(stratum, minlength=len(local))
        drawn = order[shares.cumsum(0) - shares] + self.first_row
        picks = self._solve(given=drawn)
        owner = torch.full_like(centres.owner, -1)
        owner[rows] = drawn[stratum]
        sizes = (self.offsets[1:] - self.offsets[:-1])[self.prompt[local]]
        return replace(picks, owner=owner, share=(shares / sizes).float())

    def warn_if_reward_suffices(self) -> None:
        """Compare reward alone with greedy under the quality_diversity objective, on the first prompts."""
        few = min(len(self.k), SAMPLED_PROMPTS)
        end = int(self.offsets[few])
        a = self._scaled().clamp(FLOOR, 1.0).pow(self.alpha).float()[:end]
        given = self._best_rewards()[: int(self.k[:few].sum())]
        kept = (
            self.x[:end],
            self.k[:few],
            None,
            None,
            None,
            self.offsets[: few + 1],
            self.metric,
            a.clamp(min=FLOOR),
            a,
            None,
            None,
        )
        rest = (None, "none", self.key[:few], self.seed, self.backend, self.first_row, f"{OP}: embeddings")
        greedy, reward = (float(solve(*kept, picks, *rest).value.sum()) for picks in (None, given))
        if greedy > 0 and reward > SUFFICES * greedy:
            warnings.warn(
                f"{OP}: the largest rewards alone attain {100 * reward / greedy:.1f} % of the quality_diversity "
                f"objective ({few} prompt{'s' * (few != 1)} looked at): the quality outweighs the diversity, "
                "consider method='coverage' or a smaller alpha",
                stacklevel=3,
            )

    def _solve(self, fill: str | None = None, given: Tensor | None = None, **values: Tensor) -> Selection:
        return solve(
            self.x, self.k, None, None, None, self.offsets, self.metric, values.get("weight"), values.get("quality"),
            values.get("bonus"), None, given, None, fill or self.fill, self.key, self.seed, self.backend,
            self.first_row, f"{OP}: embeddings",
        )  # fmt: skip

    def _with_overlap(self, picks: Selection) -> Selection:
        """The part of each prompt's picks that are among its k largest rewards."""
        assert picks.offsets is not None
        is_best = torch.zeros(len(self.x), dtype=torch.float64, device=self.device)
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
        position = torch.arange(len(self.x), dtype=torch.int64, device=self.device) - self.offsets[self.prompt]
        return _random.keys(self.seed, draw, self.key[self.prompt], position)

    def _best_rewards(self) -> Tensor:
        assert self.q is not None
        return self._first(-self.q)

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


def _checked_k(k: int | Tensor, embeddings: Tensor) -> int | Tensor:
    """The number of responses, of all prompts or of each; refuses what counts none."""
    if isinstance(k, Tensor):
        _check.same_device(OP, embeddings=embeddings, k=k)
        return k
    k = _check.integer(OP, "k", k, "be an int of at least 0 or an int64 tensor [B]")
    if k < 0:
        _check.fail(OP, "k", "be an int of at least 0 or an int64 tensor [B]", k)
    return k


def _check_key(group_key: Tensor | None, B: int, embeddings: Tensor) -> None:
    """Refuse what does not name the prompts."""
    if group_key is not None:
        _check.int64(OP, "group_key", group_key)
        _check.vector(OP, "group_key", group_key, B, "prompt")
        _check.same_device(OP, embeddings=embeddings, group_key=group_key)


def _rewards(reward: Tensor | None, method: str, embeddings: Tensor) -> Tensor | None:
    """The rewards if the method reads them; refuses missing ones, NaN and infinity."""
    if reward is None:
        if method in ("quality_diversity", "additive", "reward"):
            raise ValueError(f"{OP}: reward must be given for method {method!r}, got None")
        return None
    _check.vector(OP, "reward", reward, embeddings.shape[0], "response")
    _check.same_device(OP, embeddings=embeddings, reward=reward)
    if reward.is_complex():
        _check.fail(OP, "reward", "be real", reward.dtype)
    _check.finite_rows(f"{OP}: reward", reward)
    return reward.detach()


def _counts(k: int | Tensor, offsets: Tensor, first: int, last: int) -> Tensor:
    """k of prompts first … last - 1: an int keeps the whole of a smaller prompt, a tensor is exact."""
    sizes = offsets[first + 1 : last + 1] - offsets[first:last]
    if isinstance(k, Tensor):
        _check.int64(OP, "k", k)
        _check.vector(OP, "k", k, len(offsets) - 1, "prompt")
        counts = k[first:last]
        bad = (counts < 0) | (counts > sizes)
        if bool(bad.any()):
            b = int(bad.int().argmax())
            _check.fail(OP, "k", f"be from 0 to the {int(sizes[b])} responses of prompt {first + b}", int(counts[b]))
        return counts
    return sizes.clamp(max=k)


def _spans(offsets: Tensor) -> Iterator[tuple[int, int]]:
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
