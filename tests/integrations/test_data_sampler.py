"""Batches that keep prompts whole, in plain DataLoaders, through accelerate and in transformers' Trainer, as claims."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import mrtkern as mk
from mrtkern.integrations.data import PromptBatchSampler, ResponseCollator, weights_of
from tests.tools import tokens as tokens_of_letters

SIZES = [3, 1, 2, 5, 1, 4, 2, 3, 1, 2, 2]  # ragged; 11 prompts: neither 2 nor 3 ranks divide them
IDS = [f"p{p}" for r in range(5) for p, size in enumerate(SIZES) if r < size]  # the rows of a prompt stand apart
WHOLE = {name: [t for t, other in enumerate(IDS) if other == name] for name in dict.fromkeys(IDS)}


def prompts_of(batch: list[int]) -> list[str]:
    """The prompts of a batch, each of which must be whole and its rows in order."""
    names = list(dict.fromkeys(IDS[t] for t in batch))
    assert batch == [t for name in names for t in WHOLE[name]]
    return names


def epoch(sampler: PromptBatchSampler) -> list[list[str]]:
    found = [prompts_of(batch) for batch in sampler]
    assert len(found) == len(sampler)
    return found


def test_an_example_prints_what_it_says() -> None:
    page = inspect.getdoc(PromptBatchSampler) or ""
    example = doctest.DocTestParser().get_doctest(page, {}, "PromptBatchSampler", None, None)
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_prompt_comes_once_and_whole(shuffle: bool) -> None:
    found = epoch(PromptBatchSampler(IDS, 4, shuffle=shuffle))
    assert [len(names) for names in found] == [4, 4, 3]
    names = [name for batch in found for name in batch]
    assert sorted(names) == sorted(WHOLE)
    assert (names == list(WHOLE)) != shuffle


@pytest.mark.parametrize("per_batch", [1, 2, 4])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_have_as_many_prompts_each_in_every_step_and_none_twice(world_size: int, per_batch: int) -> None:
    samplers = [PromptBatchSampler(IDS, per_batch, world_size=world_size, rank=rank) for rank in range(world_size)]
    ranks = [epoch(sampler) for sampler in samplers]
    for step in zip(*ranks, strict=True):
        assert len({len(names) for names in step}) == 1
    names = [name for rank in ranks for batch in rank for name in batch]
    assert len(names) == len(set(names)) == len(WHOLE) - samplers[0].num_left_out
    assert samplers[0].num_left_out == len(WHOLE) % world_size  # no more than must be
    dealt = epoch(PromptBatchSampler(IDS, per_batch, world_size=world_size))
    assert [dealt[rank::world_size] for rank in range(world_size)] == ranks


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_trainer_that_divides_by_accumulation_has_the_mean_over_prompts_of_every_step(world_size: int) -> None:
    """Means over the prompts of a batch, over accumulation, averaged over ranks: in the short last step, too."""
    difficulty = {name: torch.tensor(float(3**i)) for i, name in enumerate(WHOLE)}
    options = {"world_size": world_size, "accumulation": 2}

    def steps(samplers: list[PromptBatchSampler]) -> list[tuple[list[str], float]]:
        ranks = [epoch(sampler) for sampler in samplers]
        found = []
        for first in range(0, len(ranks[0]), 2):
            window = [names for rank in ranks for names in rank[first : first + 2]]
            means = [torch.stack([difficulty[name] for name in names]).mean() for names in window]
            found.append(([name for names in window for name in names], float(sum(means)) / 2 / world_size))
        return found

    kept = steps([PromptBatchSampler(IDS, 2, rank=rank, **options) for rank in range(world_size)])
    assert [len(names) for names, _ in kept] == ([4, 4, 2] if world_size == 1 else [8])
    for names, loss in kept:
        assert loss == pytest.approx(float(torch.stack([difficulty[name] for name in names]).mean()))
    unaware = steps([PromptBatchSampler(IDS, 2, world_size=world_size, rank=rank) for rank in range(world_size)])
    names, loss = unaware[-1]
    assert loss != pytest.approx(float(torch.stack([difficulty[name] for name in names]).mean()))


def test_a_short_last_step_may_be_dropped() -> None:
    sampler = PromptBatchSampler(IDS, 2, world_size=2, rank=1, drop_last=True)
    assert [len(names) for names in epoch(sampler)] == [2, 2]
    assert sampler.num_left_out == 3


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    one, two = (PromptBatchSampler(IDS, 3, seed=5) for _ in range(2))
    first = epoch(one)
    assert epoch(one) == first == epoch(two)
    one.set_epoch(1)
    second = epoch(one)
    assert second != first
    two.set_epoch(1)
    assert epoch(two) == second != epoch(PromptBatchSampler(IDS, 3, seed=6))


def test_a_look_at_the_first_batch_costs_nothing() -> None:
    sampler = PromptBatchSampler(IDS, 3)
    first = next(iter(sampler))
    assert next(iter(sampler)) == first and len(epoch(sampler)) == 4


@pytest.mark.parametrize("done", range(5))
def test_an_epoch_goes_on_where_its_state_was_taken(done: int) -> None:
    sampler = PromptBatchSampler(IDS, 3, seed=5)
    sampler.set_epoch(2)
    whole = epoch(sampler)
    batches = iter(sampler)
    for _ in range(done):
        next(batches)
    state = sampler.state_dict() if done else sampler.state_dict(batches=0)
    again = PromptBatchSampler(IDS, 3, seed=5)
    again.load_state_dict(state)
    again.set_epoch(2)  # as loops over epochs do, which must not begin it anew
    assert [prompts_of(batch) for batch in again] == whole[done:]
    assert epoch(again) == whole
    assert state["batches"] == done


def test_a_state_of_other_rows_or_options_is_refused() -> None:
    state = PromptBatchSampler(IDS, 3).state_dict(batches=1)
    for other in (PromptBatchSampler(IDS, 2), PromptBatchSampler(IDS[::-1][1:], 3), PromptBatchSampler(IDS, 3, seed=1)):
        with pytest.raises(ValueError, match=r"^PromptBatchSampler: state must be of these ids .*, got"):
            other.load_state_dict(state)
    renamed = PromptBatchSampler([f"{name}'" for name in IDS], 3)
    with pytest.raises(ValueError, match="options, ids "):
        renamed.load_state_dict(state)
    with pytest.raises(ValueError, match="state must be of 0 to 4 batches, got 5"):
        PromptBatchSampler(IDS, 3).load_state_dict({**state, "batches": 5})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompts_per_batch": 0}, "prompts_per_batch must be an int of at least 1, got 0"),
        ({"world_size": 2, "rank": 2}, "rank must be from 0 to 1, got 2"),
        ({"seed": -1}, "seed must be an int of at least 0, got -1"),
        ({"seed": 0.5}, "seed must be an int of at least 0, got 0.5"),
        ({"world_size": 12}, "prompt_ids must have at least 12 prompts, got 11"),
        ({"prompts_per_batch": 12, "drop_last": True}, "prompt_ids must have at least 12 prompts, got 11"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^PromptBatchSampler: {sentence}$"):
        PromptBatchSampler(IDS, **{"prompts_per_batch": 2, **options})


# In loaders

ROWS = [{"prompt": [1, 2], "response": [t % 50 + 3], "prompt_id": name} for t, name in enumerate(IDS)]
COLLATE = ResponseCollator(responses="response", prompt_id="prompt_id")


def tokens(batches: Any) -> list[list[int]]:
    """The one token of every response of each batch, which tells its row."""
    return [batch["labels"][:, 2].tolist() for batch in batches]


def rows_of(sampler: PromptBatchSampler) -> list[list[int]]:
    return [[t % 50 + 3 for t in batch] for batch in sampler]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_dataloader_gives_whole_prompts(num_workers: int) -> None:
    sampler = PromptBatchSampler(IDS, 3)
    options = {"num_workers": num_workers, "multiprocessing_context": "fork" if num_workers else None}
    loader: DataLoader[Any] = DataLoader(ROWS, batch_sampler=sampler, collate_fn=COLLATE, **options)  # type: ignore[arg-type]
    batches = list(loader)
    assert tokens(batches) == rows_of(sampler)
    assert [int(batch["prompt"].max()) + 1 for batch in batches] == [3, 3, 3, 2]
    keys = dict(zip(WHOLE, mk.group(list(WHOLE))[2].tolist(), strict=True))
    named = [[keys[IDS[t]] for t in batch] for batch in sampler]
    assert [batch["prompt_key"].tolist() for batch in batches] == named  # the same on whichever rank they are


@pytest.mark.parametrize("rank", [0, 1])
def test_accelerate_deals_batches_out_to_ranks(rank: int) -> None:
    """What Accelerator.prepare makes of a loader in a process of two."""
    prepare = pytest.importorskip("accelerate").data_loader.prepare_data_loader
    dealt = PromptBatchSampler(IDS, 2, world_size=2)
    mine = PromptBatchSampler(IDS, 2, world_size=2, rank=rank)
    loader: DataLoader[Any] = DataLoader(ROWS, batch_sampler=dealt, collate_fn=COLLATE)  # type: ignore[arg-type]
    shard = prepare(loader, num_processes=2, process_index=rank, put_on_device=False, even_batches=False)
    assert len(shard) == len(mine)
    for number in range(2):
        shard.set_epoch(number)
        mine.set_epoch(number)
        assert tokens(shard) == rows_of(mine)
        assert dealt.epoch == number


@pytest.mark.parametrize("ranks", [1, 2])
def test_accelerate_resumes_in_the_middle_of_an_epoch(ranks: int) -> None:
    accelerate = pytest.importorskip("accelerate")
    sampler = PromptBatchSampler(IDS, 2, world_size=ranks)
    plain: DataLoader[Any] = DataLoader(ROWS, batch_sampler=sampler, collate_fn=COLLATE)  # type: ignore[arg-type]
    prepare = accelerate.data_loader.prepare_data_loader
    loader = prepare(plain, num_processes=ranks, process_index=0, put_on_device=False, even_batches=False)
    loader.set_epoch(1)
    whole = tokens(loader)
    again = PromptBatchSampler(IDS, 2, world_size=ranks)
    again.set_epoch(1)  # as a run that resumes has to: with two ranks what skips does not pass it on
    plain = DataLoader(ROWS, batch_sampler=again, collate_fn=COLLATE)  # type: ignore[arg-type]
    loader = prepare(plain, num_processes=ranks, process_index=0, put_on_device=False, even_batches=False)
    loader.set_epoch(1)
    assert tokens(accelerate.skip_first_batches(loader, 2)) == whole[2:]


def test_what_select_responses_keeps_goes_straight_on() -> None:
    """Rows by their ids, K of each prompt, their rows in a dataset, whole prompts, batches that know them."""
    order, offsets, keys = mk.group(IDS)
    x = torch.randn(len(IDS), 4, generator=torch.Generator().manual_seed(1))
    kept = mk.select_responses(x[order], offsets, 2, method="stratified", group_key=keys)
    rows = order[kept.ids].tolist()
    share = dict(zip(rows, kept.share.tolist(), strict=True))
    dataset = [{**ROWS[t], "share": share[t]} for t in rows]
    sampler = PromptBatchSampler([row["prompt_id"] for row in dataset], 3)
    collate = ResponseCollator(responses="response", prompt_id="prompt_id", weight="share")
    batches = [collate([dataset[i] for i in batch]) for batch in sampler]
    assert sorted(t for batch in tokens(batches) for t in batch) == sorted(t % 50 + 3 for t in rows)
    for batch in batches:
        sums = torch.zeros(3, dtype=torch.float64).index_add(0, batch["prompt"], weights_of(batch))
        assert sums[sums > 0].tolist() == pytest.approx([1.0] * int(batch["prompt"].max() + 1))
        loss = mk.response_weights(batch["labels"], "prompt", prompt=batch["prompt"], response_weight=weights_of(batch))
        assert float(loss.sum()) == pytest.approx(1.0)


@pytest.mark.trainers
def test_rows_of_datasets_go_through_the_trainer(tmp_path: Path) -> None:
    """A row per prompt, with messages and ragged responses as the library stores them: the Trainer's own loader."""
    datasets, transformers = pytest.importorskip("datasets"), pytest.importorskip("transformers")
    rows = [
        {"prompt": [{"role": "user", "content": "abc"}], "responses": ["x", "yz", "ab"]},
        {"prompt": [{"role": "user", "content": "abc"}], "responses": ["x"]},
    ]
    tokenizer = tokens_of_letters.tokenizer()
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **size))
    options = {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "max_steps": 1}
    arguments = transformers.TrainingArguments(
        str(tmp_path), remove_unused_columns=False, per_device_train_batch_size=2, **options
    )
    seen = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        seen.append(ResponseCollator(tokenizer)(rows))
        return {name: value for name, value in seen[-1].items() if name != "prompt"}

    trainer = transformers.Trainer(
        model, arguments, train_dataset=datasets.Dataset.from_list(rows), data_collator=collate
    )
    trainer.train()
    assert sorted(seen[0]["prompt"].tolist()) in ([0, 0, 0, 1], [0, 1, 1, 1])  # equal prompts stay two
    answers = {tokenizer.decode([i for i in row if i != -100]).replace(" ", "") for row in seen[0]["labels"].tolist()}
    assert answers == {"x</s>", "yz</s>", "ab</s>"}


@pytest.mark.trainers
def test_transformers_trainer_takes_whole_prompts_in_another_order_each_epoch(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **size))
    sampler = PromptBatchSampler(IDS, 3, seed=1)
    seen: list[list[int]] = []

    class Trainer(transformers.Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            loader: DataLoader[Any] = DataLoader(ROWS, batch_sampler=sampler, collate_fn=COLLATE)  # type: ignore[arg-type]
            return self.accelerator.prepare(loader)

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            seen.append(inputs["labels"][:, 2].tolist())
            kept = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
            return super().compute_loss(model, kept, *args, **kwargs)

    options = {"use_cpu": True, "report_to": [], "num_train_epochs": 2, "save_strategy": "no", "disable_tqdm": True}
    arguments = transformers.TrainingArguments(
        str(tmp_path), accelerator_config={"even_batches": False}, remove_unused_columns=False, **options
    )
    trainer = Trainer(model, arguments, train_dataset=ROWS, data_collator=COLLATE)
    trainer.train()
    expected = []
    for number in range(2):
        again = PromptBatchSampler(IDS, 3, seed=1)
        again.set_epoch(number)
        expected += rows_of(again)
    assert seen == expected
    assert trainer.state.global_step == 8 and torch.isfinite(model.lm_head.weight).all()


def test_a_state_of_rows_in_another_order_is_refused() -> None:
    sampler = PromptBatchSampler(["a", "a", "b"], 1, shuffle=False)
    next(iter(sampler))
    for ids in (["a", "b", "b"], ["b", "a", "a"]):
        with pytest.raises(ValueError, match="be of these ids and options"):
            PromptBatchSampler(ids, 1, shuffle=False).load_state_dict(sampler.state_dict())
