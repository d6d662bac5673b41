"""Losses over a vocabulary that is split among the ranks of a process group: each holds some classes of every row.

    forward    lse and log-probability of the target among the own classes, one all-gather of 2 T numbers (with label
               smoothing 3 T) and which classes these are, the loss of the whole vocabulary
    backward   dz = w (exp(z - lse) - [v = y]) of the own classes; one all-reduce of dh

Hidden states, targets and weights are the same on every rank, and so is the loss. No rank sees another's logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo

from mrtkern import _check, _device, _dispatch, _sums
from mrtkern._check import Array
from mrtkern.ops.cross_entropy.arguments import check_targets, checked_options, rows_with_targets
from mrtkern.ops.cross_entropy.problem import IGNORE, Options
from mrtkern.ops.linear_cross_entropy import passes
from mrtkern.ops.linear_cross_entropy.arguments import check_memory, checked, flags, gradients_needed, product_type
from mrtkern.ops.linear_cross_entropy.problem import Cap, Head, Problem, sums_in
from mrtkern.ops.linear_cross_entropy.rows import Entries, entries


@dataclass(frozen=True)
class _Shard:
    """What a rank knows before it has heard of the others."""

    op: str
    process_group: dist.ProcessGroup
    targets: Tensor  # [T] of every row, in the whole vocabulary
    first_class: int
    num_classes: int
    given: Entries  # rows that count; their targets are numbered from this rank's first class, -1 where it has them not
    options: Options
    cap: Cap

    @classmethod
    def of(
        cls, op: str, process_group: dist.ProcessGroup, first_class: int, V: int, targets: Tensor,
        token_weight: Tensor | None, options: Options, wide: torch.dtype,
    ) -> _Shard:  # fmt: skip
        first_class = _check.integer(op, "first_class", first_class)
        if first_class < 0:
            _check.fail(op, "first_class", "be the number of this rank's first class", first_class)
        valid = targets != options.ignore_index
        weight = valid.to(wide) / valid.sum().clamp(min=1) if token_weight is None else token_weight.to(wide)
        own = targets - first_class
        own = torch.where((own >= 0) & (own < V), own, -1)
        given = entries(own, None, weight, valid, valid & (weight != 0), _device.may_wait(targets.device))
        return cls(op, process_group, targets, first_class, V, given, options, Cap(options.softcap))

    @property
    def num_statistics(self) -> int:
        """Numbers per row that a rank tells the others."""
        return 3 if self.options.label_smoothing else 2

    def statistics(self, kernels: ModuleType, z: Tensor, chunk: slice) -> Tensor:
        """Of some rows, [2 or 3, C] float64: lse; log-probability of the target among the own classes, 0 without one;
        for label smoothing how far the mean of the logits is below lse."""
        targets = self.given.targets[chunk]
        logp, _, lse, below = kernels.log_probs(
            z, torch.where(targets == -1, 0, targets), self.cap, bool(self.options.label_smoothing)
        )
        told = [lse, torch.where(targets < 0, 0, logp).double()]
        return torch.stack(told if below is None else [*told, below.double()])

    def merge(self, mine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, lse [T'] and number of all classes, from the statistics [2 or 3, T'] of every rank."""
        told = mine.new_full((mine.numel() + 2,), self.num_classes)  # filled, not copied: nothing waits for a device
        told[:1].fill_(self.first_class)
        told[2:] = mine.flatten()
        everyone = told.new_empty((dist.get_world_size(self.process_group), *told.shape))
        dist.all_gather(list(everyone), told, group=self.process_group)
        first, sizes = everyone[:, :2].T  # [ranks]
        is_own = (self.targets >= first[:, None]) & (self.targets < (first + sizes)[:, None])  # [ranks, T]
        is_bad = (is_own.sum(0) != 1) & (self.targets != self.options.ignore_index)
        may_wait = _device.may_wait(self.targets.device)
        if may_wait and bool(is_bad.any()):
            t = _check.first(is_bad)
            raise IndexError(
                f"{self.op}: targets must each be a class of exactly one rank, got {int(self.targets[t])} at position "
                f"{t}, which {int(is_own[:, t].sum())} have"
            )
        is_own = is_own if self.given.rows is None else is_own[:, self.given.rows]
        lses, logp, *below = everyone[:, 2:].unflatten(1, mine.shape).unbind(1)  # [ranks, T'] each
        lse = lses.logsumexp(0)
        above = lse - lses  # not negative, as -logp and what is below: no probability exceeds 1
        each, smoothing = torch.where(is_own, above - logp, 0).sum(0), self.options.label_smoothing
        if smoothing:
            smoothed = ((above + below[0]) * sizes[:, None]).sum(0) / sizes.sum()
            each = (1 - smoothing) * each + smoothing * smoothed
        each = each + self.options.z_loss * lse**2
        weight = self.given.weight
        loss = _sums.total(torch.where(weight == 0, 0, weight * each)).to(weight.dtype)
        return loss if may_wait else torch.where(is_bad.any(), torch.nan, loss), lse, sizes.sum()

    def whole(self, classes: Tensor) -> dict[str, Any]:
        """What the gradient of a part of the classes must know of the others, beside their lse."""
        smoothing = self.options.label_smoothing
        return {"z_loss": self.options.z_loss, "label_smoothing": smoothing, "classes": classes if smoothing else None}


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, shard: _Shard, kernels: ModuleType) -> Tensor:
        z = _wanted(logits, shard.given)
        loss, lse, classes = shard.merge(shard.statistics(kernels, z, slice(0, len(z))))
        ctx.save_for_backward(logits, lse)
        ctx.shard, ctx.kernels, ctx.whole = shard, kernels, shard.whole(classes)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, lse = ctx.saved_tensors
        shard = ctx.shard
        _check.once(shard.op, "logits", grad)
        dz = _wanted(logits, shard.given, is_copy=True)
        weight = shard.given.weight * grad  # before the one rounding to the type of the logits
        ctx.kernels.log_probs_backward(dz, shard.given.targets, shard.cap, weight, None, lse=lse, **ctx.whole)
        if shard.given.rows is None:
            return dz, None, None
        return torch.zeros_like(logits).index_copy_(0, shard.given.rows, dz), None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, shard: _Shard, kernels: ModuleType,
        problem: Problem,
    ) -> Tensor:  # fmt: skip
        counted = shard.given.targets.shape[0]
        mine = torch.empty(shard.num_statistics, counted, dtype=torch.float64, device=hidden.device)

        def step(z: Tensor, _: Tensor, chunk: slice) -> None:
            mine[:, chunk] = shard.statistics(kernels, z, chunk)

        passes.run(kernels, replace(problem, needs=(False,) * 3), Head(hidden, weight, bias), shard.given, step)
        loss, lse, classes = shard.merge(mine)
        ctx.save_for_backward(hidden, weight, bias, lse)
        ctx.shard, ctx.kernels, ctx.problem, ctx.whole = shard, kernels, problem, shard.whole(classes)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, lse = ctx.saved_tensors
        shard = ctx.shard
        _check.once(shard.op, "the loss", grad)
        head = Head(hidden, weight, bias)
        made = passes.log_probs_backward(
            ctx.kernels, ctx.problem, head, shard.given, shard.cap, None, lse=lse, **ctx.whole
        )
        if made.hidden is not None:
            dist.all_reduce(made.hidden, group=shard.process_group)
        found = (
            None if d is None or value is None else passes.scaled(d, grad, value.dtype, in_place=True)
            for d, value in zip((made.hidden, made.weight, made.bias), head, strict=True)
        )
        return *found, None, None, None


# torch.compiler.disable imports the compiler at once, seconds for everyone; this one does so at the first call.
_eager = _disable_dynamo


def _wanted(logits: Tensor, given: Entries, is_copy: bool = False) -> Tensor:
    """The rows that count, columns adjacent."""
    if given.rows is not None:
        return logits[given.rows]
    return logits.clone(memory_format=torch.contiguous_format) if is_copy else logits.contiguous()


@_eager
def vocabulary_parallel_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    first_class: int,
    process_group: dist.ProcessGroup,
    token_weight: Array | None = None,
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """`cross_entropy` of logits whose columns are split among the ranks of `process_group`.

        cross_entropy(torch.cat([logits of rank 0, logits of rank 1, …], 1), targets, …)

    Arguments
    ---------
    logits : [T, V_r] or [R, L, V_r]
        The classes first_class … first_class + V_r - 1 of every row, any split that covers each once and leaves no rank
        without.
    targets : int64 [T] or [R, L]
        In the whole vocabulary.
    first_class : int
        The class of the first column here.
    process_group : ProcessGroup
        It exists already; every rank of it must make the call.
    token_weight : like targets, optional
        None: the mean over valid tokens.
    ignore_index, label_smoothing, z_loss, softcap
        As in `cross_entropy`; like targets and token_weight the same on every rank.
    backend : str, optional
        None chooses; a name is obeyed or refused.

    Returns
    -------
    loss : a scalar
        The same on every rank.

    Gradient
    --------
    logits, the own columns, nothing sent.

    Raises
    ------
    IndexError
        On every rank, for a target that not exactly one rank has.
    ValueError
        On the rank that has it, for shapes, types and options that do not fit and a negative first_class.

    Memory
    ------
    A copy of the logits in backward, their gradient.

    Devices
    -------
    torch.compile breaks its graph here.

    Determinism
    -----------
    The same bits on every run.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> logits, targets = torch.zeros(2, 4), torch.tensor([1, 3])
    >>> loss = mk.vocabulary_parallel_cross_entropy(logits, targets, first_class=0, process_group=dist.group.WORLD)
    >>> round(loss.item(), 4)
    1.3863
    >>> dist.destroy_process_group()

    Source
    ------
    Shoeybi et al., Megatron-LM, arXiv 1909.08053; the loss's equations: `mrtkern.ops.cross_entropy`.
    """
    op = "vocabulary_parallel_cross_entropy"
    _check.no_transform(op)
    logits, targets, token_weight, _ = rows_with_targets(op, "logits", logits, targets, token_weight)
    _check.no_tangent(op, logits=logits)
    if logits.ndim != 2:
        _check.fail(op, "logits", "be [T, V_r]", _check.shape(logits))
    token_weight, _ = check_targets(op, logits.shape[0], logits.device, targets, token_weight, None)
    options = checked_options(op, ignore_index, softcap, label_smoothing, z_loss, backend=backend)
    T, V = logits.shape
    capability = _device.capability(logits.device)
    problem = Problem(T, 0, V, *(logits.dtype,) * 3, logits.device.type, capability=capability)
    kernels = _dispatch.run("linear_cross_entropy", backend, problem, op)
    wide = sums_in(logits.dtype)
    shard = _Shard.of(op, process_group, first_class, V, targets, token_weight, options, wide)
    loss: Tensor = _Logits.apply(logits, shard, kernels)  # type: ignore[no-untyped-call]
    return loss


@_eager
def vocabulary_parallel_linear_cross_entropy(
    hidden: Array,
    weight: Array,
    targets: Array,
    *,
    first_class: int,
    process_group: dist.ProcessGroup,
    bias: Array | None = None,
    token_weight: Array | None = None,
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """`linear_cross_entropy` of a head whose rows are split among the ranks of `process_group`.

        linear_cross_entropy(hidden, torch.cat([weight of rank 0, weight of rank 1, …]), targets, …)

    Arguments
    ---------
    hidden : [T, D] or [R, L, D]
        The same on every rank.
    weight : [V_r, D]
    bias : [V_r], optional
        The classes first_class … first_class + V_r - 1, any split that covers each once and leaves no rank without (of
        a DTensor with Shard(0) on n ranks: weight.to_local(), rank * ceil(V / n)).
    targets, first_class, process_group, token_weight, ignore_index, label_smoothing, z_loss, softcap, backend
        As in `vocabulary_parallel_cross_entropy`.

    Returns
    -------
    loss : a scalar
        The same on every rank.

    Gradient
    --------
    weight and bias, the own rows; hidden, summed over the ranks by one all-reduce, which every rank must ask for.
    Logits are computed again in backward: 8 T V D operations.

    Raises
    ------
    IndexError
        On every rank, for a target that not exactly one rank has.
    ValueError
        On the rank that has it, for shapes, types and options that do not fit and a negative first_class.

    Memory
    ------
    As `linear_log_prob`, and per row and rank 17 bytes, with label smoothing 25.

    Devices
    -------
    torch.compile breaks its graph here.

    Determinism
    -----------
    The same bits on every run.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> hidden, weight, targets = torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([1, 3])
    >>> loss = mk.vocabulary_parallel_linear_cross_entropy(
    ...     hidden, weight, targets, first_class=0, process_group=dist.group.WORLD
    ... )
    >>> round(loss.item(), 4)
    1.3863
    >>> dist.destroy_process_group()

    Source
    ------
    Shoeybi et al., Megatron-LM, arXiv 1909.08053; the head's equations: `mrtkern.ops.linear_cross_entropy`.
    """
    op = "vocabulary_parallel_linear_cross_entropy"
    _check.no_transform(op)
    hidden, weight, bias, targets, token_weight, *_ = checked(op, hidden, weight, bias, targets, token_weight)
    options = checked_options(op, ignore_index, softcap, label_smoothing, z_loss, backend=backend)
    needs = gradients_needed(hidden, weight, bias)
    product = product_type(hidden, weight)
    problem = Problem.of(Head(hidden, weight, bias), product, flags(needs), is_log_prob=True)
    kernels = _dispatch.run("linear_cross_entropy", backend, problem, op)
    check_memory(op, problem, kernels, targets)
    wide = sums_in(product)
    shard = _Shard.of(op, process_group, first_class, weight.shape[0], targets, token_weight, options, wide)
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = _Linear.apply(hidden, weight, bias, shard, kernels, problem)  # type: ignore[no-untyped-call]
    return loss
