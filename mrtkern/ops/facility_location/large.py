"""One large problem on any device: lazy greedy over an oracle, with a checkpoint, what fills up, owners, the value of
chance. Backends bring the oracle; the loop and its heap are the CPU's."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern import _check, _device, _progress, _random, lattice
from mrtkern.ops.facility_location import chance, checkpoint, polish, units
from mrtkern.ops.facility_location.ground import Features, Ground
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Course, Rule
from mrtkern.ops.facility_location.selection import Picks

SAVE_EVERY = 30.0  # seconds between two checkpoints
AT_ONCE = 256  # picks between two looks at the clock where they are quick


class Oracle(Protocol):
    """A ground, ready for the greedy loop."""

    handle: Any  # _C.Oracle

    def owners(self, ids: Tensor) -> Tensor:
        """Position of the most similar of `ids` (ascending) for each row, -1 where none is similar at all, [M]."""

    def cover(self, ids: Tensor, rows: Tensor) -> int:
        """Sum over these rows of the largest pair that one of these candidates has with each, whatever was taken."""


class Engine(NamedTuple):
    """What a backend brings."""

    memory: Callable[[Problem], int]  # the least bytes beyond inputs and results with which it runs
    oracle: Callable[[Ground, Rule, float, int], Oracle]  # of a ground, with the largest pair and the bytes it may take


def budget(course: Course, device: torch.device) -> int:
    """Bytes that the call may take beside its inputs."""
    return _device.memory(device) // 2 if course.max_memory is None else course.max_memory


def _largest(values: Tensor | None) -> float:
    return float(values.double().max()) if values is not None and len(values) else 1.0


class Made(NamedTuple):
    """What was picked, in order, with the gains; in steps."""

    ids: Tensor
    gains: Tensor
    value: int
    bound: int
    is_short: bool  # ended by a rule that stops, or by the user: nothing fills up
    is_interrupted: bool


class Call:
    """What one call makes on its way."""

    def __init__(self, ground: Ground, rule: Rule, engine: Engine) -> None:
        weight, quality = (None if v is None else v.contiguous() for v in (rule.weight, rule.quality))
        rule = dataclasses.replace(rule, weight=weight, quality=quality)  # held here: the oracle keeps addresses
        self.ground, self.rule, self.engine, self.device = ground, rule, engine, rule.k.device
        self.N, self.M = ground.largest, int(ground.covered[1])
        self.enough = min(units.enough_steps(rule, self.M), 2**63 - 1)
        self.k, self.op = int(rule.k[0]), ground.caller.op
        needed, room = engine.memory(Problem.of(ground, rule)), budget(rule.course, self.device)
        if needed > room:
            half = f"half of the {'machine' if self.device.type == 'cpu' else 'device'}'s memory"
            got = "max_memory" if rule.course.max_memory is not None else half
            raise MemoryError(f"{ground.caller.subject} must leave room for {needed} bytes, got {room} bytes, {got}")
        self.maximum = _largest(rule.weight) * _largest(rule.quality) or 1.0
        self.bonus = torch.zeros(self.N, dtype=torch.int64, device=self.device)
        if rule.bonus is not None:
            steps = rule.bonus.double() * lattice.STEPS
            self.bonus = torch.round(units.quotient(steps, self.maximum * ground.scale)).long()
        self.mask = (
            torch.ones(self.N, dtype=torch.bool, device=self.device) if rule.mask is None else rule.mask.contiguous()
        )
        self.start = torch.zeros(0, dtype=torch.int64, device=self.device) if rule.start is None else rule.start
        self.room, self.is_interrupted = room, False

    @cached_property
    def oracle(self) -> Oracle:
        """The ground, ready for the loop."""
        return self.engine.oracle(self.ground, self.rule, self.maximum, self.room)

    @cached_property
    def greedy(self) -> Any:
        """The loop, with nothing but `start` taken."""
        bonus, mask, start = self.bonus.cpu(), self.mask.cpu(), self.start.cpu().int()  # the loop copies them
        greedy = _C.LazyGreedy(
            self.oracle.handle, bonus=bonus.data_ptr(), is_open=mask.data_ptr(), limits=self._limits()
        )
        if self.rule.method == "stochastic":
            key = int(self.rule.group_key[0]) % 2**64
            greedy.sample(seed=self.rule.seed % 2**64, group_key=key, draws=-math.log(self.rule.epsilon))
        greedy.start(ids=start.data_ptr(), count=len(start))
        return greedy

    def _limits(self) -> Any:
        """Of the rule, as the loop knows them; they are copied."""
        given = self.rule.limits
        if given is None:
            return _C.Limits()
        cost, budget, label, cap, least = (
            None if value is None else value.cpu().contiguous() for value in given.tensors()
        )
        label = None if label is None else label.int()
        return _C.Limits(
            N=self.N, k=self.k, cost=_device.address(cost), budget=0 if budget is None else int(budget[0]),
            is_by_ratio=given.is_by_ratio, label=_device.address(label), cap=_device.address(cap),
            least=_device.address(least), classes=0 if cap is None else len(cap),
        )  # fmt: skip

    def _admitted(self, order: Tensor, most: int) -> Tensor:
        """Of these candidates, one after the other, those that limits admit, at most `most`."""
        if self.rule.limits is None:
            return order[:most]
        narrow = order.cpu().int()
        found = self._limits().admitted(ids=narrow.data_ptr(), count=len(narrow), most=most)
        return torch.tensor(found, dtype=torch.int64, device=order.device)

    def picks(self) -> Picks:
        """Select, and say what the selection is worth."""
        made = self._better()
        _progress.report(1.0)
        ids, gains, is_short, num_start = made.ids, made.gains, made.is_short, len(self.start)
        effective = int((gains > 0).sum())
        ids, gains = torch.cat([self.start, ids.to(self.device)]), gains.to(self.device)
        if self.rule.picks is None and not is_short:
            ids = torch.cat([ids, self._filled(ids, self.k - effective)])
        if self.rule.polish and not made.is_interrupted:
            swapped = polish.polished(
                self.oracle.handle, ids, num_start, bonus=self.bonus, mask=self.mask, limits=self._limits(),
                most=self.rule.polish, ends_whole=self.rule.course.on_interrupt == "prefix",
            )  # fmt: skip
            ids, gains = torch.cat([self.start, swapped.ids]), swapped.gains
            made, effective = made._replace(value=swapped.value), int((gains > 0).sum())
        gains = torch.cat([gains.new_zeros(num_start), gains, gains.new_zeros(len(ids) - num_start - len(gains))])
        owner, share = self._owners(ids)
        return Picks(
            ids=ids + self.ground.first_row, gains=gains, offsets=ids.new_tensor([0, len(ids)]),
            value=ids.new_tensor([made.value]), bound=ids.new_tensor([made.bound]),
            random=ids.new_tensor([self._random(len(ids) - num_start if is_short else self.k)]),
            effective_k=ids.new_tensor([effective]), owner=owner, share=share,
        )  # fmt: skip

    def _made(self) -> Made:
        """What the loop picks, or what the picks that are given are worth."""
        is_short = False
        if self.rule.picks is not None:
            given = (self.rule.picks - self.ground.first_row).cpu().int()
            self.greedy.follow(ids=given.data_ptr(), count=len(given), k=self.k)
        else:
            is_short = self._select()
        ids, gains = self.found()
        return Made(ids, gains, self.greedy.value, self.greedy.bound, is_short, self.is_interrupted)

    def _better(self) -> Made:
        """What the loop picks; with a budget the better of two, what leads by its gain and what leads by its gain a
        cost. The ground of the first is gone before the second has one."""
        limits, course = self.rule.limits, self.rule.course
        if limits is None or limits.cost is None:
            return self._made()
        if course.checkpoint is not None:
            course = dataclasses.replace(course, checkpoint=f"{course.checkpoint}.by-gain")
        by_gain = dataclasses.replace(self.rule, limits=dataclasses.replace(limits, is_by_ratio=False), course=course)
        with _progress.part(0.0, 0.5):
            first = Call(self.ground, by_gain, self.engine)._made()
        if not first.is_interrupted:
            with _progress.part(0.5, 1.0):
                second = self._made()
            if second.value >= first.value:
                return second._replace(bound=min(second.bound, self._bound_of(first, second)))
            first = first._replace(bound=min(first.bound, self._bound_of(second, first)))
        self.rule = by_gain
        return first

    def _bound_of(self, other: Made, kept: Made) -> int:
        """The bound of the other selection, where it is one of as many picks as the kept one could make."""
        most, own = (len(made.ids) if made.is_short else self.k for made in (other, kept))
        return other.bound if most >= own else kept.bound

    def found(self) -> tuple[Tensor, Tensor]:
        """Picks so far and their gains, on the CPU."""
        ids, gains = torch.empty((2, self.greedy.picked), dtype=torch.int64, device="cpu")
        self.greedy.copy_picks(ids=ids.data_ptr(), gains=gains.data_ptr())
        return ids, gains

    def _select(self) -> bool:
        """Greedy's picks; whether they ended early, by a rule that stops or by the user."""
        file = self._file()
        saved = None if file is None else file.read()
        if saved is not None:
            ids = torch.tensor(saved.ids, dtype=torch.int32, device="cpu")
            gains = torch.tensor(saved.gains, dtype=torch.int64, device="cpu")
            other = self.greedy.resume(ids=ids.data_ptr(), gains=gains.data_ptr(), count=len(ids), bound=saved.bound)
            if other >= 0:
                rule = "hold picks with the gains that they have"
                _check.fail(self.op, "checkpoint", rule, f"another gain of pick {other}")
        try:
            is_short = self._pick(file)
        except BaseException as error:  # Ctrl-C, or what a handler of another signal raises
            self._save(file)
            if self.rule.course.on_interrupt == "raise" or not isinstance(error, KeyboardInterrupt):
                raise
            self.greedy.finish(k=self.greedy.picked, is_quick=True)
            self.is_interrupted = True
            return True
        self._save(file)
        if is_short:
            self.greedy.finish(k=self.greedy.picked, is_quick=False)
        return is_short

    def _pick(self, file: checkpoint.File | None) -> bool:
        """Until there are k, or nothing gains; True: a rule stopped it."""
        many, saved_at = 1, time.monotonic()
        while True:
            least, began = self._least(), time.monotonic()
            until = 1 if self.greedy.picked == 0 else self.greedy.picked + many
            ended = self.greedy.pick(
                until=min(until, self.k), k=self.k, least=max(least, 0), enough=self.enough,
                progress=_progress.current(),
            )  # fmt: skip
            if ended != _C.Ended.no:
                return bool(ended == _C.Ended.enough)
            now = time.monotonic()
            many = min(2 * many, AT_ONCE) if now - began < 1.0 else max(many // 2, 1)
            if now - saved_at > SAVE_EVERY:
                self._save(file)
                saved_at = time.monotonic()

    def _least(self) -> int:
        """Steps that a pick must gain."""
        step = self.maximum * self.ground.scale / lattice.STEPS
        least = units.least_steps(self.rule.stop_gain or 0.0, step)
        if self.rule.stop_fraction is not None and self.greedy.picked:
            least = max(least, math.ceil(self.rule.stop_fraction * int(self.found()[1][0])))
        return least

    def _file(self) -> checkpoint.File | None:
        rule, ground, path = self.rule, self.ground, self.rule.course.checkpoint
        if path is None:
            return None
        held = [value for value in vars(ground).values() if isinstance(value, Tensor)]
        weighed = [rule.weight, rule.quality, rule.bonus, rule.mask, rule.start]
        words = [type(ground).__name__, getattr(ground, "metric", ""), ground.scale, self.N]
        words += [rule.stop_gain, rule.stop_fraction]
        more: dict[str, Any] = {}  # named: files that knew nothing of them are still taken up
        if rule.stop_coverage is not None:
            more["stop_coverage"] = rule.stop_coverage
        if rule.limits is not None:
            weighed += rule.limits.tensors()
            more["is_by_ratio"] = rule.limits.is_by_ratio
        if rule.method != "lazy":
            more["method"] = [rule.method, rule.epsilon, rule.seed, int(rule.group_key[0])]
        words += [more] if more else []
        return checkpoint.File(self.op, path, checkpoint.fingerprint([*held, *weighed], words), self.k, self.N)

    def _save(self, file: checkpoint.File | None) -> None:
        if file is not None:
            ids, gains = self.found()
            file.write(checkpoint.Saved(ids.tolist(), gains.tolist(), self.greedy.bound))

    def _filled(self, ids: Tensor, missing: int) -> Tensor:
        """What follows the picks once no candidate gains."""
        more, fill = ids.new_empty(0), self.rule.fill
        if fill == "none" or missing == 0:
            return more
        is_open = self.mask.clone()
        is_open[ids] = False
        if fill == "coverage":
            limits = None if self.rule.limits is None else self.rule.limits.after(ids[len(self.start) :])
            plain = dataclasses.replace(
                self.rule, k=self.rule.k.new_tensor([min(missing, int(is_open.sum()))]), start=ids, weight=None,
                quality=None, bonus=None, fill="none", stop_gain=None, stop_fraction=None, stop_coverage=None,
                limits=limits, method="lazy", polish=0, course=dataclasses.replace(self.rule.course, checkpoint=None),
            )  # fmt: skip
            rest = Call(self.ground, plain, self.engine)
            with _progress.shown(self.op, False):  # it was heard of to the end already
                rest._select()
            more = rest.found()[0].to(self.device)
            is_open[more] = False
        left = is_open.nonzero()[:, 0]
        if fill != "index":
            key = chance.keys(self.rule.seed, _random.KEPT, self.rule.group_key[0], self.N)
            left = left[key[left].sort(stable=True).indices]
        made = torch.cat([ids[len(self.start) :], more])
        return self._admitted(torch.cat([made, left]), len(made) + missing - len(more))[len(made) - len(more) :]

    def _owners(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The kept row most similar to each row, and the share of rows that each kept row has."""
        kept = ids.sort().values
        position = self.oracle.owners(kept)
        owner = torch.where(position >= 0, kept[position] if len(kept) else position, -1)
        covers_itself = isinstance(self.ground, Features) and self.ground.targets is None
        if covers_itself:
            owner[ids] = ids
        counts = torch.bincount(owner[owner >= 0], minlength=self.N)
        share = units.quotient(counts[ids].double(), max(self.M, 1)).float()
        return torch.where(owner >= 0, owner + self.ground.first_row, -1), share

    def _random(self, k: int) -> int:
        """The value of chance, of k picks."""
        group_key = self.rule.group_key[0]
        key = chance.keys(self.rule.seed, _random.CHANCE, group_key, self.N)
        rows, factor = chance.sampled(self.rule.weight, self.M, self.rule.seed, group_key)
        sets = chance.draws(key, self.mask, self.start, lambda order: self._admitted(order, k))
        return chance.value(self.oracle.cover, self.bonus, sets, rows, factor)
