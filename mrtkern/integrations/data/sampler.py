"""Batches that keep prompts whole, where a row of the dataset is one response.

    step s     accumulation * world_size batches of prompts_per_batch prompts with all their rows
    last step  as many batches of fewer prompts, all of the same number; prompts that do not divide are left out of this
               epoch, fewer than there are batches, because one that came twice would count twice

All batches of a step have the same number of prompts, also in the last one: what a trainer makes of it, means over the
prompts of a batch, divided by accumulation and averaged over ranks, is the mean over the prompts of the step. The order
is drawn anew for each epoch from (seed, epoch) and depends on nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import mrtkern as mk
from mrtkern.integrations.data import checks

OP = "PromptBatchSampler"


class PromptBatchSampler:
    """A batch sampler for torch.utils.data.DataLoader whose batches hold prompts with all their rows.

        sampler = PromptBatchSampler(dataset["prompt_id"], prompts_per_batch=8, seed=0)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=ResponseCollator(…, prompt_id="prompt_id"))

    Arguments
    ---------
    prompt_ids : sequence [T]
        The id of the prompt of each row, as `mrtkern.group` takes it.
    prompts_per_batch : int
        Of one batch of one rank.
    world_size : int
        Ranks.
    accumulation : int
        Batches of a rank that the trainer accumulates before it steps.
    rank : int, optional
        Whose batches to give (Lightning: with Trainer(use_distributed_sampler=False)). None: all, a rank after the
        other, for a loader that deals batches out to ranks in turn, as accelerate's does, and with it transformers'
        Trainer; give those Accelerator(even_batches=False). A run of several ranks that resumes within an epoch must
        have had set_epoch called for it: they do not pass it on.
    seed : int, not negative
    shuffle : bool
        False: prompts in order of first appearance.
    drop_last : bool
        Leave out the last step when it is short.

    Yields
    ------
    list of int
        Row numbers, prompt after prompt, those of a prompt in their order.

    Raises
    ------
    ValueError
        For numbers out of range, and as `mrtkern.group` for ids; for a state of other ids or options.
    TypeError
        For a shuffle or drop_last that is neither True nor False.

    Memory
    ------
    8 bytes a row and 30 a prompt, and as much again while an epoch is drawn.

    Determinism
    -----------
    The same batches for the same ids, options, seed and epoch, on every rank.

    Example
    -------
    >>> from mrtkern.integrations.data import PromptBatchSampler
    >>> sampler = PromptBatchSampler(["a", "b", "a", "c"], prompts_per_batch=2, shuffle=False)
    >>> list(sampler)
    [[0, 2, 1], [3]]
    """

    def __init__(
        self,
        prompt_ids: Any,
        prompts_per_batch: int,
        *,
        world_size: int = 1,
        accumulation: int = 1,
        rank: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        numbers = {"prompts_per_batch": prompts_per_batch, "world_size": world_size, "accumulation": accumulation}
        numbers = {name: checks.whole(OP, name, value, 1) for name, value in numbers.items()}
        prompts_per_batch, world_size, accumulation = numbers.values()
        seed = checks.whole(OP, "seed", seed, 0)
        shuffle, drop_last = checks.flag(OP, "shuffle", shuffle), checks.flag(OP, "drop_last", drop_last)
        rank = None if rank is None else checks.whole(OP, "rank", rank, 0)
        if rank is not None and rank >= world_size:
            raise ValueError(f"{OP}: rank must be from 0 to {world_size - 1}, got {rank}")
        order, offsets, keys = mk.group(prompt_ids)
        self.order, self.offsets = order.numpy(), offsets.numpy()
        self.prompts_per_batch, self.world_size, self.accumulation = prompts_per_batch, world_size, accumulation
        self.rank, self.batches_per_step = rank, world_size * accumulation
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self.epoch = self.given = self.start = 0  # given: batches handed out; start: where the next iteration begins
        named = hashlib.blake2b(digest_size=16)
        for part in (order, offsets, keys):
            named.update(part.numpy().tobytes())
        self.facts = {
            **numbers, "seed": seed, "shuffle": shuffle, "drop_last": drop_last, "rows": len(self.order),
            "prompts": len(keys), "ids": named.hexdigest(),
        }  # fmt: skip
        if self.num_steps == 0:
            least = self.batches_per_step * (prompts_per_batch if drop_last else 1)
            rule = f"have at least {least} prompts"
            raise ValueError(f"{OP}: prompt_ids must {rule}, got {len(keys)}")

    @property
    def sampler(self) -> PromptBatchSampler:
        """Itself, where accelerate looks for what draws an epoch."""
        return self

    @property
    def num_prompts(self) -> int:
        """Different prompts."""
        return len(self.offsets) - 1

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        full, rest = divmod(self.num_prompts, self.prompts_per_batch * self.batches_per_step)
        return full + (rest >= self.batches_per_step and not self.drop_last)

    @property
    def num_left_out(self) -> int:
        """Prompts that an epoch leaves out, others in each when shuffled."""
        rest = self.num_prompts % (self.prompts_per_batch * self.batches_per_step)
        return rest if self.drop_last else rest % self.batches_per_step

    def __len__(self) -> int:
        """Batches of a whole epoch: of one rank, or of all where `rank` is None."""
        return self.num_steps * self.accumulation * (self.world_size if self.rank is None else 1)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of another epoch: the loop over epochs calls it, or transformers and accelerate do."""
        epoch = checks.whole(OP, "epoch", epoch, 0)
        if epoch != self.epoch:
            self.epoch, self.given, self.start = epoch, 0, 0

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the epoch; after `load_state_dict` once those that are left. `set_epoch` draws others."""
        first, self.start = self.start, 0
        prompts = self.drawn()
        for batch in range(first, len(self)):
            self.given = batch + 1
            yield self.rows(prompts, batch)

    def drawn(self) -> Any:
        """The prompts of the epoch in their order."""
        numbers = np.arange(self.num_prompts)
        return np.random.default_rng([self.seed, self.epoch]).permutation(numbers) if self.shuffle else numbers

    def rows(self, prompts: Any, batch: int) -> list[int]:
        """The rows of a batch."""
        batch = batch if self.rank is None else batch * self.world_size + self.rank  # of all ranks
        step, place = divmod(batch, self.batches_per_step)
        begin = step * self.prompts_per_batch * self.batches_per_step
        each = min(self.prompts_per_batch, (self.num_prompts - begin) // self.batches_per_step)
        mine = prompts[begin + place * each : begin + (place + 1) * each]
        return [int(row) for p in mine for row in self.order[self.offsets[p] : self.offsets[p + 1]]]

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """Where the epoch stands. batches: how many of it were trained on; None: how many were handed out, of which
        DataLoaders with workers, and accelerate's, ask for some in advance."""
        done = self.given if batches is None else checks.whole(OP, "batches", batches, 0)
        return {"epoch": self.epoch, "batches": done, **self.facts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken: the next iteration gives the batches of its epoch that are left."""
        for name, value in self.facts.items():
            if state.get(name) != value:
                rule = f"be of these ids and options, {name} {value}"
                raise ValueError(f"{OP}: state must {rule}, got {state.get(name)}")
        epoch, done = (checks.whole(OP, f"{name} of a state", state.get(name), 0) for name in ("epoch", "batches"))
        if done > len(self):
            raise ValueError(f"{OP}: state must be of 0 to {len(self)} batches, got {done}")
        self.epoch, self.given, self.start = epoch, done, done
