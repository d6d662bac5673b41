"""Counts of a step that is split over batches and ranks: parts add up to the loss of the whole."""

from __future__ import annotations

import doctest
import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import mrtkern as mk
from mrtkern.integrations.step import DIVISORS, Gather, count_step, counted_steps, counts_of, packed_targets
from tests.tools import oracle, process


def batch_of(lengths: list[int], prompt: list[int] | None = None, key: list[int] | None = None) -> dict[str, Tensor]:
    """Responses of so many tokens, each after a token that nobody learns; losses belong to tokens by their place."""
    labels = torch.full((len(lengths), 1 + max(lengths, default=0)), oracle.IGNORE)
    for row, length in zip(labels, lengths, strict=True):
        row[1 : 1 + length] = 0
    given = {"labels": labels, "prompt": prompt, "prompt_key": key}
    return {name: torch.as_tensor(value) for name, value in given.items() if value is not None}


def loss_of(batch: dict[str, Any], losses: list[list[float]], normalize: str) -> float:
    """The part of a counted batch, whose responses have these losses at their tokens."""
    targets, offsets = packed_targets(batch["labels"], None)
    weight = mk.response_weights(targets, normalize, offsets=offsets, prompt=batch.get("prompt"), **counts_of(batch))
    flat = torch.tensor([loss for response in losses for loss in response], dtype=torch.float64)
    return float((weight[targets != oracle.IGNORE].double() * flat).sum() * batch["loss_parts"])


def on_ranks(steps: list[list[dict[str, Tensor]]], parts: int) -> list[list[dict[str, Any]]]:
    """What `count_step` finds on as many ranks as there are steps, each a thread with a gather between them."""
    meeting, given = threading.Barrier(len(steps), timeout=process.LONGEST), [torch.empty(0)] * len(steps)

    def gather_of(rank: int) -> Gather:
        def gather(values: Tensor) -> Tensor:
            given[rank] = values
            meeting.wait()
            found = torch.cat(given)
            meeting.wait()
            return found

        return gather

    found: list[list[dict[str, Any]]] = [[]] * len(steps)

    def call(rank: int) -> Callable[[], None]:
        def counted() -> None:
            found[rank] = count_step(steps[rank], gather=gather_of(rank), parts=parts)

        return counted

    process.at_once(call(rank) for rank in range(len(steps)))
    return found


@pytest.mark.parametrize("normalize", DIVISORS)
def test_unit_losses_on_four_ranks_have_the_mean_one(normalize: str) -> None:
    """Ragged, one rank with nothing to learn; a mean divided by the number of ranks twice would be 1 / 16. "prompt_sum"
    has responses of one token, because it adds up tokens."""
    sizes = [[1, 3], [2, 2, 1], [0, 0], [3, 1, 2, 2]]
    prompts = [[0, 0], [0, 1, 1], [0, 1], [0, 1, 1, 2]]
    steps = [[batch_of(size, prompt)] for size, prompt in zip(sizes, prompts, strict=True)]
    if normalize == "prompt_sum":
        sizes = [[min(length, 1) for length in size] for size in sizes]
        steps = [[batch_of(size, prompt)] for size, prompt in zip(sizes, prompts, strict=True)]
    found = on_ranks(steps, parts=4)
    losses = [
        loss_of(batch, [[1.0] * length for length in size], normalize)
        for (batch,), size in zip(found, sizes, strict=True)
    ]
    assert sum(losses) / 4 == pytest.approx(1.0, rel=oracle.LOSS)
    assert losses[2] == 0


def test_the_token_mean_does_not_depend_on_micro_batches() -> None:
    """Lengths 1 and 3, losses 1 and 3: 2.5, where the mean of batches of one is 2; multiplied by their number, 4."""
    first, last = count_step([batch_of([1]), batch_of([3])])
    assert loss_of(first, [[1.0]], "token") + loss_of(last, [[3.0] * 3], "token") == pytest.approx(2.5, rel=oracle.LOSS)


@pytest.mark.parametrize(
    ("normalize", "expected"), [("token", 1.4), ("response", 7 / 3), ("prompt", 2.5), ("prompt_token", 2.0)]
)
@pytest.mark.parametrize("is_cut", [False, True])
def test_prompts_are_told_from_responses(normalize: str, expected: float, is_cut: bool) -> None:
    """Prompt A: length 1, loss 4, and length 3, loss 0; B: length 1, loss 3. On one rank, and with A cut over two."""
    if is_cut:
        (first,), (last,) = on_ranks([[batch_of([1], [0], [7])], [batch_of([3, 1], [0, 1], [7, 8])]], parts=1)
        found = loss_of(first, [[4.0]], normalize) + loss_of(last, [[0.0] * 3, [3.0]], normalize)
    else:
        (batch,) = count_step([batch_of([1, 3, 1], [0, 0, 1])])
        found = loss_of(batch, [[4.0], [0.0] * 3, [3.0]], normalize)
    assert found == pytest.approx(expected, rel=oracle.LOSS)


def test_equal_numbers_are_one_prompt_in_a_batch_and_equal_keys_everywhere() -> None:
    batches = [batch_of([1, 1], [0, 0]), batch_of([1], [0])]
    assert [int(batch["num_prompts"]) for batch in count_step(batches)] == [2, 2]
    keyed = [batch_of([1, 1], [0, 0], [5, 5]), batch_of([1], [0], [5])]
    found = count_step(keyed)
    assert [int(batch["num_prompts"]) for batch in found] == [1, 1]
    assert [batch["responses_per_prompt"].tolist() for batch in found] == [[3, 3], [3]]
    ranks = on_ranks([[batch] for batch in batches], parts=2)
    assert [int(batch["num_prompts"]) for (batch,) in ranks] == [2, 2]


def test_a_rank_may_have_no_batch_and_a_batch_no_token() -> None:
    found = on_ranks([[batch_of([2, 1], [0, 1])], []], parts=2)
    assert found[1] == [] and int(found[0][0]["num_prompts"]) == 2
    (empty,) = count_step([batch_of([0], [0])])
    assert int(empty["num_prompts"]) == 0 and loss_of(empty, [[]], "prompt") == 0


def test_response_weights_travel_as_bits_and_keep_them() -> None:
    v = torch.tensor([0.1, 0.9, 1.0], dtype=torch.float64)
    batch = {**batch_of([2, 1, 3], [0, 0, 1]), "response_weight_bits": v.view(torch.int64)}
    (found,) = count_step([batch])
    assert torch.equal(counts_of(found)["tokens_per_prompt"], torch.tensor([0.2 + 0.9, 0.2 + 0.9, 3.0], dtype=v.dtype))
    assert [name for name, value in found.items() if isinstance(value, Tensor) and value.is_floating_point()] == []


def test_a_loader_comes_by_steps_and_the_last_may_be_short() -> None:
    batches = [batch_of([1]) for _ in range(5)]
    assert [len(step) for step in counted_steps(batches, 2)] == [2, 2, 1]
    assert [int(step[0]["num_prompts"]) for step in counted_steps(batches, 2)] == [2, 2, 1]


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^count_step: a batch must have labels, got input_ids$"):
        count_step([{"input_ids": torch.zeros(1, 1)}])
    with pytest.raises(ValueError, match=r"^count_step: prompt must have a number per response \[2\], got \[1\]$"):
        count_step([{**batch_of([1, 1]), "prompt": torch.tensor([0])}])
    with pytest.raises(
        ValueError, match=r"^count_step: labels must be \[R, L\], or \[1, T\] with response_offsets, got \[3\]$"
    ):
        count_step([{"labels": torch.zeros(3, dtype=torch.int64)}])


def test_the_first_label_of_every_response_is_predicted_by_nobody() -> None:
    labels = torch.tensor([[1, 2, 3, 4, 5]])
    targets, offsets = packed_targets(labels, torch.tensor([0, 2, 2, 5]))
    assert targets.tolist() == [2, oracle.IGNORE, 4, 5, oracle.IGNORE] and offsets.tolist() == [0, 2, 2, 5]
    padded, offsets = packed_targets(torch.tensor([[1, 2], [3, 4]]), None)
    assert padded.tolist() == [2, oracle.IGNORE, 4, oracle.IGNORE] and offsets.tolist() == [0, 2, 4]
    none, offsets = packed_targets(torch.empty((2, 0), dtype=torch.int64), None)
    assert none.tolist() == [] and offsets.tolist() == [0, 0, 0]


def test_the_example_of_the_page_prints_what_it_says() -> None:
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(count_step) or "", {}, "count_step", None, None)
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0


def test_sequences_of_a_row_may_begin_under_their_name_in_transformers() -> None:
    labels = torch.tensor([[-100, 2, 3, -100, 5, 6, 7]])
    ends = torch.tensor([0, 3, 7], dtype=torch.int32)
    (counted,) = count_step([{"labels": labels, "cu_seq_lens_q": ends, "prompt": torch.tensor([0, 1])}])
    assert (int(counted["num_responses"]), int(counted["num_tokens"])) == (2, 5)


RANKS = 4
SIZES, PROMPTS = [[1, 3], [2, 2, 1], [0, 0], [3, 1, 2, 2]], [[0, 0], [0, 1, 1], [0, 1], [0, 1, 1, 2]]


def unit_losses(rank: int, folder: str) -> None:
    """In a process of gloo: this rank's part of every normalisation, averaged over the ranks as DDP averages."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)

    def gather(values: Tensor) -> Tensor:
        found = [torch.empty_like(values) for _ in range(RANKS)]
        dist.all_gather(found, values)
        return torch.cat(found)

    found = {}
    for normalize in ("token", "response", "prompt", "prompt_token"):
        (batch,) = count_step([batch_of(SIZES[rank], PROMPTS[rank])], gather=gather, parts=RANKS)
        mean = torch.tensor(loss_of(batch, [[1.0] * length for length in SIZES[rank]], normalize))
        dist.all_reduce(mean)
        found[normalize] = float(mean) / RANKS
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.trainers
def test_unit_losses_on_four_processes_have_the_mean_one(tmp_path: Path) -> None:
    mp.spawn(unit_losses, (str(tmp_path),), nprocs=RANKS)
    for rank in range(RANKS):
        assert list(torch.load(tmp_path / str(rank)).values()) == pytest.approx([1.0] * 4, rel=oracle.LOSS)
