"""Grounds of large problems on a device: what their pairs take, and what the greedy loop asks of them.

Features    products when a gain is asked for; once few pairs can still matter, one pass writes them into lists
Table       a matrix in fixed point, read when a gain is asked for
Listed      a graph, turned round
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern import _check, _random, lattice
from mrtkern._triton import rows as lattice_rows
from mrtkern.ops.facility_location import large, owners, units
from mrtkern.ops.facility_location.ground import Features as Rows
from mrtkern.ops.facility_location.ground import Graph, Ground, Matrix
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Rule
from mrtkern.ops.facility_location.triton import costs
from mrtkern.ops.facility_location.triton.launch import BATCH, NOTHING, Lists, Pairs, padded, tiles

PAIR_BYTES = 6  # of a list
ROW_BYTES = 160  # of a row and of a candidate: lengths, sums, ends of lists, the random orders of `skill`
EDGE_BYTES = 80  # of a graph that is turned round: sorted copies of it
AT_ONCE = 256 << 20  # bytes of what is looked at in parts: kept rows, a table, edges
MOST_LIVE = 0.05  # pairs above best, of all pairs, from which on lists are worth their making
MARGIN = 1.08  # the share is of a sample
SAMPLED_CANDIDATES, SAMPLED_ROWS = 128, 16_384


def memory(problem: Problem) -> int:
    """The least bytes of the device beyond inputs and results with which it runs."""
    N, M = problem.largest or 0, problem.M
    needed = AT_ONCE + ROW_BYTES * (N + M)
    if problem.form is Matrix:
        return needed + 2 * N * M
    if problem.form is Graph:
        return needed + EDGE_BYTES * (problem.edges + M)
    return needed + 2 * lattice_rows.columns(problem.D) * (N + (0 if problem.covered is None else M))


class Held(Protocol):
    """A ground as a device holds it: row numbers and gains are int64 tensors there."""

    N: int

    @property
    def is_cheap(self) -> bool: ...  # as csrc/facility_location/oracle.h has these two
    @property
    def refresh_after(self) -> int: ...
    def gains(self, ids: Tensor) -> Tensor: ...
    def all_gains(self) -> Tensor: ...
    def take(self, ids: Tensor, wants_gains: bool) -> Tensor: ...
    def before_pick(self, is_open: Tensor) -> None: ...
    def cover(self, ids: Tensor, rows: Tensor) -> int: ...
    def owners(self, ids: Tensor) -> Tensor: ...


class Asked:
    """What the compiled loop asks, in arrays of the CPU."""

    batch = BATCH

    def __init__(self, held: Held, device: torch.device) -> None:
        self.held, self.device = held, device

    @property
    def is_cheap(self) -> int:
        return int(self.held.is_cheap)

    @property
    def refresh_after(self) -> int:
        return self.held.refresh_after

    def bounds(self, out: Any) -> bool:
        """Exact, by one pass."""
        self.all_gains(out)
        return True

    def all_gains(self, out: Any) -> None:
        torch.from_numpy(out).copy_(self.held.all_gains())

    def gains(self, ids: Any, out: Any) -> None:
        torch.from_numpy(out).copy_(self.held.gains(self._there(ids)))

    def take(self, ids: Any, out: Any) -> None:
        gained = self.held.take(self._there(ids), out is not None)
        if out is not None:
            torch.from_numpy(out).copy_(gained)

    def before_pick(self, is_open: Any) -> None:
        self.held.before_pick(torch.from_numpy(is_open))

    def _there(self, ids: Any) -> Tensor:
        return torch.from_numpy(ids).long().to(self.device)


class Oracle:
    """A ground, ready for the greedy loop. It holds what is asked, never the reverse: memory goes with the last use."""

    def __init__(self, held: Held, device: torch.device) -> None:
        self.held, self.handle = held, _C.PythonOracle(Asked(held, device), held.N)

    def owners(self, ids: Tensor) -> Tensor:
        return self.held.owners(ids)

    def cover(self, ids: Tensor, rows: Tensor) -> int:
        return self.held.cover(ids, rows)


def of(ground: Ground, rule: Rule, maximum: float, room: int) -> large.Oracle:
    """The ground's; `room`: bytes it may take."""
    if isinstance(ground, Matrix):
        return Oracle(Table(ground, rule, maximum), ground.s.device)
    if isinstance(ground, Graph):
        return Oracle(Listed(ground, rule, maximum), ground.ids.device)
    assert isinstance(ground, Rows)
    left = room - memory(Problem.of(ground, rule))
    return Oracle(Features(ground, rule, maximum, left), ground.x.device)


def ones(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, dtype=torch.float32, device=device)


def packed(subject: str, x: Tensor, first_row: int) -> Tensor:
    """Rows on the lattice, float16 [M, columns]; refuses those that are not finite."""
    squares = lattice_rows.squares(x)
    bad = ~torch.isfinite(squares)
    if bool(bad.any()):
        row = _check.first(bad)
        _check.finite_rows(subject, x[row : row + 1], first_row + row)
    return lattice_rows.on_lattice(x, lattice.square_root(squares))[0]


class Features:
    """Rows on the lattice. Products when they are asked for, lists later."""

    def __init__(self, ground: Rows, rule: Rule, maximum: float, list_bytes: int) -> None:
        x, y = ground.x, ground.targets
        one = lattice.unit_square(x.shape[1])
        is_shifted = ground.metric == "shifted_cosine"
        self.scale = float(2 * one if is_shifted else one)
        candidates = packed(ground.caller.subject, x, ground.first_row)
        covered = candidates if y is None else packed(f"{ground.caller.op}: targets", y, 0)
        weight = ones(len(covered), x.device) if rule.weight is None else rule.weight
        self.pairs = Pairs(
            candidates, covered, padded(units.units(weight, self.scale, maximum)), rule.quality,
            one if is_shifted else 0, has_weight=rule.weight is not None,
        )  # fmt: skip
        self.N, self.M = len(candidates), len(covered)
        self.best, self.list_bytes = self.pairs.nothing(), list_bytes
        self.lists: Lists | None = None
        self.taken, self.next_look = 0, 1
        self.tiles = tiles(x.device)

    @property
    def is_cheap(self) -> bool:
        return self.lists is not None or self.N * self.M <= costs.EXACT_PAIRS

    @property
    def refresh_after(self) -> int:
        if self.lists is not None:
            return int(_C.NEVER)
        return costs.refresh_after(self.N, self.M, self.pairs.x.shape[1], self.pairs.is_mirrored)

    def gains(self, ids: Tensor) -> Tensor:
        if self.lists is not None:
            return self.lists.gains(ids, self.best)
        parts = [self.pairs.of_candidates(part).sums(self.best, self.tiles.few) for part in ids.split(BATCH)]
        return torch.cat([ids.new_empty(0), *parts])

    def all_gains(self) -> Tensor:
        if self.lists is not None:
            return self.lists.gains(self.lists.all, self.best)
        return self.pairs.sums(self.best, self.tiles.all)

    def take(self, ids: Tensor, wants_gains: bool) -> Tensor:
        self.taken += len(ids)
        if self.lists is not None:
            return self.lists.take(ids, self.best, wants_gains)
        parts = [self.pairs.of_candidates(part).take(self.best, wants_gains) for part in ids.split(BATCH)]
        return torch.cat([ids.new_empty(0), *parts])

    def before_pick(self, is_open: Tensor) -> None:
        """Lists, once the pairs that can still matter are few and fit: looked at after 1, 2, … 8, 9, 10, 11, … picks,
        an eighth more each time."""
        if self.lists is not None or self.list_bytes <= 0 or self.taken < self.next_look:
            return
        self.next_look = self.taken + max(self.taken // 8, 1)
        share, there = self._live_share(), is_open.to(self.best.device)
        pairs = MARGIN * share * int(is_open.sum()) * self.M
        if share > MOST_LIVE or pairs * PAIR_BYTES > self.list_bytes:
            return
        counts = self.pairs.sums(self.best, self.tiles.all, is_counted=True) * there
        ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        total = int(ends[-1])
        if total * PAIR_BYTES > self.list_bytes:
            return
        rows = torch.empty(total, dtype=torch.int32, device=there.device)
        t = torch.empty(total, dtype=torch.int16, device=there.device)
        self.pairs.write(self.best, there, ends[:-1].clone(), rows, t)
        self.lists = Lists(ends, rows, t)

    def _live_share(self) -> float:
        """Pairs above best, of all pairs: of a sample, by products of whatever precision torch takes."""
        if 0 in (self.N, self.M):
            return 0.0
        device, key = self.best.device, torch.zeros((), dtype=torch.int64, device=self.best.device)

        def drawn(draw: int, count: int, of: int) -> Tensor:
            positions = torch.arange(count, dtype=torch.int64, device=device)
            return _random.keys(0, draw, key, positions) % of

        candidates = drawn(_random.KEPT, SAMPLED_CANDIDATES, self.N)
        rows = drawn(_random.CHANCE, min(SAMPLED_ROWS, self.M), self.M)
        y, x = (q.index_select(0, ids).float() for q, ids in ((self.pairs.y, candidates), (self.pairs.x, rows)))
        quality = 1.0 if self.pairs.quality is None else self.pairs.quality.index_select(0, candidates)[:, None]
        t = (y @ x.mT + self.pairs.base) * self.pairs.unit.index_select(0, rows) * quality
        return float((t > self.best.index_select(0, rows) - NOTHING).double().mean())

    def cover(self, ids: Tensor, rows: Tensor) -> int:
        best, _ = self._reached(self.pairs.of_rows(rows), ids)
        return int((best[: len(rows)] - NOTHING).double().sum())

    def owners(self, ids: Tensor) -> Tensor:
        plain = self.pairs.plain(lattice.STEPS / self.scale)
        return self._reached(plain, ids)[1][: self.M].long()

    def _reached(self, pairs: Pairs, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What these candidates reach [M and more], and who is first with it, their position or -1."""
        best = pairs.nothing()
        owner = torch.full(best.shape, -1, dtype=torch.int32, device=best.device)
        many = max(AT_ONCE // 8 // (2 * pairs.y.shape[1] + 1), 1)
        if len(pairs.x):
            for k in range(0, len(ids), many):
                pairs.of_candidates(ids[k : k + many]).reach(best, owner, k)
        return best, owner


class Table:
    """A matrix in fixed point, candidate after candidate."""

    is_cheap, refresh_after = True, int(_C.NEVER)

    def __init__(self, ground: Matrix, rule: Rule, maximum: float) -> None:
        self.ground, s = ground, ground.s
        (self.M, self.N), device = s.shape, s.device
        weight = ones(self.M, device) if rule.weight is None else rule.weight
        quality = ones(self.N, device) if rule.quality is None else rule.quality
        self.t = torch.empty((self.N, self.M), dtype=torch.int16, device=device)
        many = self._at_once(32)
        for j in range(0, self.N, many):
            similarity = units.quotient(s[:, j : j + many].double(), ground.scale)
            self.t[j : j + many] = units.fixed_point(similarity, 1.0, weight, quality[j : j + many], maximum).mT
        self.best = torch.zeros(self.M, dtype=torch.int16, device=device)

    def _at_once(self, width: int) -> int:
        """Candidates whose pairs, of so many bytes, are looked at together."""
        return max(AT_ONCE // (width * max(self.M, 1)), 1)

    def gains(self, ids: Tensor) -> Tensor:
        return self._gains([self.t.index_select(0, part) for part in ids.split(self._at_once(16))], ids)

    def all_gains(self) -> Tensor:
        return self._gains(self.t.split(self._at_once(16)), self.best.new_empty(0, dtype=torch.int64))

    def _gains(self, parts: Any, like: Tensor) -> Tensor:
        found = [(t - self.best).clamp_(min=0).sum(dim=1, dtype=torch.int64) for t in parts]
        return torch.cat([like.new_empty(0), *found])

    def take(self, ids: Tensor, wants_gains: bool) -> Tensor:
        found = []
        for i in range(len(ids)):
            one = ids[i : i + 1]
            if wants_gains:
                found.append(self.gains(one))
            self.best = torch.maximum(self.best, self.t.index_select(0, one)[0])
        return torch.cat([ids.new_empty(0), *found])

    def before_pick(self, is_open: Tensor) -> None:
        del is_open  # the table stays as it is

    def cover(self, ids: Tensor, rows: Tensor) -> int:
        best = torch.zeros_like(self.best)
        for part in ids.split(self._at_once(4)):
            best = torch.maximum(best, self.t.index_select(0, part).amax(dim=0))
        return int(best.index_select(0, rows).sum(dtype=torch.int64))

    def owners(self, ids: Tensor) -> Tensor:
        return owners.of_matrix(self.ground, ids)


class Listed:
    """Lists of a graph turned round: by candidate, in fixed point."""

    is_cheap, refresh_after = True, int(_C.NEVER)

    def __init__(self, ground: Graph, rule: Rule, maximum: float) -> None:
        self.ground, self.N = ground, ground.size
        self.M, device = len(ground.ends) - 1, ground.ids.device
        row, candidate, t = self._edges(rule, maximum)
        order = candidate.sort(stable=True).indices
        counts = torch.bincount(candidate, minlength=self.N)
        ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self.lists = Lists(ends, row[order].int(), t[order])
        self.best = torch.full((self.M,), NOTHING, dtype=torch.float32, device=device)

    def _edges(self, rule: Rule, maximum: float) -> tuple[Tensor, Tensor, Tensor]:
        """Row, candidate and t of the edges that are worth anything; a missing diagonal is 1."""
        graph, device = self.ground, self.ground.ids.device
        row = torch.repeat_interleave(graph.ends.diff(), output_size=len(graph.ids))
        candidate, value = graph.ids, graph.values
        if graph.has_self:
            is_alone = torch.ones(self.M, dtype=torch.bool, device=device)
            is_alone[row[candidate == row]] = False
            alone = is_alone.nonzero()[:, 0]
            row, candidate = torch.cat([row, alone]), torch.cat([candidate, alone])
            value = torch.cat([value, ones(len(alone), device)])
        weight = ones(self.M, device) if rule.weight is None else rule.weight
        quality = ones(self.N, device) if rule.quality is None else rule.quality
        coefficient = units.units(weight, 1.0, maximum)[row] * quality[candidate]
        similarity = units.quotient(value.double(), graph.scale).float()
        t = torch.round(similarity * coefficient).clamp_(max=lattice.STEPS).to(torch.int16)
        is_worth = t > 0
        return row[is_worth], candidate[is_worth], t[is_worth]

    def gains(self, ids: Tensor) -> Tensor:
        return self.lists.gains(ids, self.best)

    def all_gains(self) -> Tensor:
        return self.gains(self.lists.all)

    def take(self, ids: Tensor, wants_gains: bool) -> Tensor:
        return self.lists.take(ids, self.best, wants_gains)

    def before_pick(self, is_open: Tensor) -> None:
        del is_open  # the lists stay as they are

    def cover(self, ids: Tensor, rows: Tensor) -> int:
        best = torch.full_like(self.best, NOTHING)
        self.lists.take(ids, best, False)
        return int((best.index_select(0, rows) - NOTHING).double().sum())

    def owners(self, ids: Tensor) -> Tensor:
        return owners.of_graph(self.ground, ids)


ENGINE = large.Engine(memory, of)
