"""GRPOTrainer: weights that no split of a step changes, K of N kept, and the values that others got wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the train extra is not installed")
pytestmark = pytest.mark.trainers

import trl  # noqa: E402

import mrtkern as mk  # noqa: E402
from mrtkern.integrations.trl import GRPOTrainer  # noqa: E402
from tests.tools import oracle, rollouts  # noqa: E402

SPLITS = [(16, 1), (8, 2), (4, 4)]  # rows of a batch, and how many of them are accumulated
LOSSES = ["grpo", "dapo", "bnpo", "dr_grpo", "luspo", "cispo", "sapo", "vespo"]
UNIT = oracle.sum_error(16, torch.float32)  # of weights, and of the losses that they multiply


def split(batch_size: int, accumulation: int, **options: Any) -> dict[str, Any]:
    return {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation, **options}


# Normalisation


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_loss_type_split_in_any_way_is_the_mean_over_prompts(loss_type: str, tmp_path: Path) -> None:
    """Ragged K: two prompts in each step have two rollouts without a reward."""
    expected = rollouts.truth("prompt")
    for sizes in SPLITS if loss_type in ("grpo", "dapo") else SPLITS[2:]:
        config = split(*sizes, loss_type=loss_type, epsilon_high=5.0)  # cispo cuts ratios there
        found = rollouts.trained(GRPOTrainer, tmp_path, config=config, normalize="prompt")
        assert rollouts.difference(found, expected) <= oracle.SPLIT, sizes


@pytest.mark.parametrize("normalize", ["token", "response", "prompt_token", "prompt_sum"])
def test_every_normalisation_is_its_definition(normalize: str, tmp_path: Path) -> None:
    found = rollouts.trained(GRPOTrainer, tmp_path, config=split(4, 4), normalize=normalize)
    assert rollouts.difference(found, rollouts.truth(normalize)) <= oracle.SPLIT


def test_losses_of_trl_are_other_means_and_depend_on_the_split(tmp_path: Path) -> None:
    """Without normalize the trainer is TRL's; its loss_type "grpo" is the mean over prompts for equal K alone."""
    expected = rollouts.truth("prompt")
    found = {
        (loss_type, sizes): rollouts.trained(trl.GRPOTrainer, tmp_path, config=split(*sizes, loss_type=loss_type))
        for loss_type, sizes in (("grpo", (16, 1)), ("bnpo", (16, 1)), ("bnpo", (4, 4)))
    }
    assert min(rollouts.difference(p, expected) for p in found.values()) > 100 * oracle.SPLIT
    assert rollouts.difference(found["bnpo", (16, 1)], found["bnpo", (4, 4)]) > 100 * oracle.SPLIT
    ours = rollouts.trained(GRPOTrainer, tmp_path, config=split(16, 1, loss_type="bnpo"))
    assert rollouts.difference(ours, found["bnpo", (16, 1)]) == 0


def test_weights_of_a_step_add_up_to_one_where_a_generation_is_several_steps(tmp_path: Path) -> None:
    """Two of four batches a step: dividing by the counts of all four gave half."""
    config = split(4, 2, steps_per_generation=4, max_steps=2)
    trainer = rollouts.trainer(GRPOTrainer, tmp_path, config=config, normalize="prompt", keep=3)
    trainer.train()
    batches = trainer._buffered_inputs
    sums = [float((batch["omega"] * batch["completion_mask"].sum(1)).sum()) for batch in batches]
    assert [sums[0] + sums[1], sums[2] + sums[3]] == pytest.approx([1.0, 1.0], rel=UNIT)


def test_several_generations_in_a_step_are_its_mean(tmp_path: Path) -> None:
    """Two batches are generated for a step that accumulates two: each counts half, by its own prompts."""
    config = split(8, 2, generation_batch_size=8)
    found = rollouts.trained(GRPOTrainer, tmp_path, config=config, normalize="prompt")
    assert rollouts.difference(found, rollouts.truth("prompt")) <= oracle.SPLIT


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., float]:
    """The loss of rows with these prompts, lengths and losses of every token; length 0: masked."""
    made: dict[Any, Any] = {}

    def loss(prompt: list[int], lengths: list[int], losses: list[float], normalize: str | None) -> float:
        key = "grpo" if normalize is None else normalize
        if key not in made:
            config = split(4, 1, loss_type="grpo", beta=0.0)
            made[key] = rollouts.trainer(GRPOTrainer, tmp_path_factory.mktemp("o"), config=config, normalize=normalize)
        trainer, R = made[key], len(prompt)
        trainer.current_gradient_accumulation_steps = 1
        mask = (torch.arange(4) < torch.tensor(lengths)[:, None]).long()
        batch = {
            "prompt_ids": torch.full((R, 1), 7), "prompt_mask": torch.ones(R, 1, dtype=torch.long),
            "completion_ids": torch.full((R, 4), 8), "completion_mask": mask, "advantages": -torch.tensor(losses),
            "num_items_in_batch": mask.sum(), "prompt": torch.tensor(prompt), "share": torch.ones(R),
            "is_counted": torch.ones(R, dtype=torch.bool),
        }  # fmt: skip
        if normalize is not None:
            trainer._weigh([batch])
        trainer.model.train()
        return float(trainer._compute_loss(trainer.model, batch))

    return loss


@pytest.mark.parametrize(
    ("normalize", "value"), [("token", 1.4), ("response", 7 / 3), ("prompt", 2.5), ("prompt_token", 2.0)]
)
def test_the_mean_over_prompts_is_not_the_mean_over_responses(unit: Any, normalize: str, value: float) -> None:
    assert unit([0, 0, 1], [1, 3, 1], [4.0, 0.0, 3.0], normalize) == pytest.approx(value, rel=UNIT)


def test_masked_completions_do_not_count(unit: Any) -> None:
    """TRL's mean over rows counts them: half."""
    assert unit([0, 0], [2, 0], [1.0, 1.0], "prompt") == pytest.approx(1.0, rel=UNIT)
    assert unit([0, 0], [2, 0], [1.0, 1.0], None) == pytest.approx(0.5, rel=UNIT)


def test_prompts_with_equal_texts_stay_two(tmp_path: Path) -> None:
    data = rollouts.prompts().select([0, 0, 1, 2])
    trainer = rollouts.trainer(
        GRPOTrainer, tmp_path, config=split(16, 1, max_steps=1), normalize="prompt", train_dataset=data
    )
    trainer.train()
    assert trainer._buffered_inputs[0]["prompt"].unique().tolist() == [0, 1, 2, 3]


def test_temperature_divides_logits_before_the_softmax(tmp_path: Path) -> None:
    """As in mrtkern.linear_log_prob; dividing log-probabilities gave -0.575 for ln 0.9."""
    z, one = torch.tensor([[0.0], [math.log(3)]]), torch.ones(1, 1)
    log_p, _ = mk.linear_log_prob(one, z, torch.tensor([1]), temperature=0.5)
    assert float(log_p) == pytest.approx(math.log(0.9), rel=UNIT)
    trainer = rollouts.trainer(GRPOTrainer, tmp_path, config=split(16, 1, temperature=0.5))
    ids = torch.tensor([[7, 8, 9, 10, 11]])
    found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, torch.ones_like(ids), 4)[0]
    hidden = trainer.model.model(ids).last_hidden_state[0, :-1]
    expected, _ = mk.linear_log_prob(hidden, trainer.model.lm_head.weight, ids[0, 1:], temperature=0.5)
    torch.testing.assert_close(found[0], expected, rtol=oracle.LOSS, atol=oracle.LOSS)


# K of N


def places(trainer: Any) -> list[list[int]]:
    """Of the rollouts that the last generation batch kept and that count, by their tokens."""
    found: dict[int, list[int]] = {}
    rows = [row for batch in trainer._buffered_inputs for row in zip(*rows_of(batch), strict=True)]
    first = 4 * (trainer.state.global_step - 1)
    for prompt, ids, is_counted in rows:
        if is_counted and ids:
            rolls = [rollouts.completion(first + prompt, place) for place in range(rollouts.N)]
            found.setdefault(prompt, []).append(rolls.index(ids))
    return [sorted(found[p]) for p in sorted(found)]


def rows_of(batch: dict[str, Any]) -> tuple[list[int], list[list[int]], list[bool]]:
    ids = [
        row[mask.bool()].tolist() for row, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    return batch["prompt"].tolist(), ids, batch["is_counted"].tolist()


@pytest.mark.parametrize(("method", "size"), [("reward", (16, 1)), ("max_variance", (8, 2)), ("coverage", (4, 4))])
def test_what_is_kept_is_what_the_method_keeps_and_is_trained_on(method: str, size: Any, tmp_path: Path) -> None:
    """Parameters are those of a loss that has the kept rollouts alone, advantages against all N."""
    trainer = rollouts.trainer(
        GRPOTrainer, tmp_path, config=split(*size), keep=2, method=method, normalize="prompt", embeddings=by_length
    )
    trainer.train()
    texts = range(12)
    expected = [chosen(p, method) for p in texts]
    assert places(trainer) == expected[8:]
    assert rollouts.difference(rollouts.parameters(trainer.model), rollouts.truth("prompt", expected)) <= oracle.SPLIT


def by_length(completions: list[Any]) -> torch.Tensor:
    """Some features that a completion has: its text is how the tokenizer writes it."""
    return torch.tensor([[len(text) + 1.0, len(set(text)) + 1.0, 1.0] for text in completions])


def chosen(p: int, method: str) -> list[int]:
    """By mrtkern.select_responses, of the rollouts of prompt p that have a reward."""
    rolls = [rollouts.completion(p, place) for place in range(rollouts.N)]
    found = [(i, r) for i, r in enumerate(rollouts.reward(rolls)) if r is not None]
    texts = rollouts.tokens.tokenizer().batch_decode([rolls[i] for i, _ in found], skip_special_tokens=True)
    rewards = torch.tensor([r for _, r in found])
    picks = mk.select_responses(by_length(texts), torch.tensor([0, len(found)]), 2, method=method, reward=rewards)
    return sorted(found[i][0] for i in picks.ids.tolist())


def test_keeping_trains_on_fewer_rows_and_counts_again(tmp_path: Path) -> None:
    trainer = rollouts.trainer(GRPOTrainer, tmp_path, config=split(8, 2, max_steps=1), keep=2, method="reward")
    trainer.train()
    batches = trainer._buffered_inputs
    assert [len(batch["completion_ids"]) for batch in batches] == [4, 4]
    counted = sum(int(batch["completion_mask"].sum()) for batch in batches)
    assert {int(batch["num_items_in_batch"]) for batch in batches} == {counted}
    longest = max(int(batch["completion_mask"].sum(1).max()) for batch in batches)
    assert batches[0]["completion_ids"].shape[1] == longest
    logged = trainer.state.log_history[0]
    assert logged["kept/responses"] == 2
    assert logged["kept/reward"] > logged["reward"]
    assert 0 < logged["kept/tokens"] < 1


def test_rows_that_do_not_divide_are_filled_up_and_count_nowhere(tmp_path: Path) -> None:
    """4 prompts keep 3 each on 8 batches of 2: 16 rows, of which 4 have no token."""
    config = split(2, 8, max_steps=1)
    trainer = rollouts.trainer(GRPOTrainer, tmp_path, config=config, keep=3, method="reward", normalize="prompt")
    trainer.train()
    masks = [batch["completion_mask"].any(1) for batch in trainer._buffered_inputs]
    assert sum(len(mask) for mask in masks) == 16 and int(torch.cat(masks).sum()) == 12
    expected = [chosen_by_reward(p, 3) for p in range(4)]
    assert (
        rollouts.difference(rollouts.parameters(trainer.model), rollouts.truth("prompt", expected, steps=1))
        <= oracle.SPLIT
    )


def chosen_by_reward(p: int, K: int) -> list[int]:
    rewards = rollouts.reward([rollouts.completion(p, place) for place in range(rollouts.N)])
    order = sorted(range(rollouts.N), key=lambda i: (-math.inf if rewards[i] is None else rewards[i], -i), reverse=True)
    return sorted(order[:K])


def test_advantages_against_the_kept(tmp_path: Path) -> None:
    config = split(16, 1, max_steps=1)
    options = {"keep": 3, "method": "max_variance", "baseline": "kept"}
    trainer = rollouts.trainer(GRPOTrainer, tmp_path, config=config, **options)
    trainer.train()
    batch = trainer._buffered_inputs[0]
    for p in range(4):
        rows = (batch["prompt"] == p).nonzero()[:, 0]
        ids = [batch["completion_ids"][r][batch["completion_mask"][r].bool()].tolist() for r in rows]
        expected = rollouts.advantages(rollouts.reward(ids))
        torch.testing.assert_close(
            batch["advantages"][rows].double(), torch.tensor(expected).double(), rtol=oracle.LOSS, atol=oracle.LOSS
        )


def test_draws_change_from_step_to_step_and_are_those_of_the_seed(tmp_path: Path) -> None:
    def drawn(**config: Any) -> list[list[int]]:
        data = rollouts.prompts().select([0, 2, 3, 4] * 3)
        options = {"keep": 2, "train_dataset": data, "normalize": "prompt"}
        trainer = rollouts.trainer(GRPOTrainer, tmp_path, config=split(16, 1, **config), **options)
        found: list[list[int]] = []
        inner = trainer._generate_and_score_completions

        def recorded(inputs: Any) -> Any:
            output = inner(inputs)
            found.append(sorted(map(tuple, rows_of(output)[1])))
            return output

        trainer._generate_and_score_completions = recorded
        trainer.train()
        return found

    one = drawn()
    assert one == drawn()
    assert not one[0] == one[1] == one[2]
    assert one != drawn(seed=4)


# With TRL's own generation, and what is refused


def test_three_steps_with_generation_and_the_default_features(tmp_path: Path) -> None:
    rollouts.tiny().save_pretrained(tmp_path / "model")
    trainer = rollouts.trainer(
        GRPOTrainer, tmp_path, config=split(8, 1, beta=0.1), model=str(tmp_path / "model"), rollout_func=None, keep=2,
        method="stratified",
        normalize="prompt", reward_funcs=lambda completion_ids, **_: [float(sum(ids) % 7) for ids in completion_ids],
    )  # fmt: skip
    before = rollouts.parameters(trainer.model)
    trainer.train()
    history = [logged for logged in trainer.state.log_history if "kept/reward" in logged]
    assert len(history) == 3 and all(math.isfinite(logged["loss"]) for logged in history)
    assert rollouts.difference(rollouts.parameters(trainer.model), before) > 0


def test_default_features_compare_tokens_and_their_order() -> None:
    from mrtkern.integrations.trl.kept import token_features

    x = token_features([[1, 2, 3], [1, 2, 3], [3, 2, 1], [9, 8, 7], [], [1]])
    s = mk.similarity(x[[0, 1, 2, 3]])
    assert x.shape == (6, 512) and s[0, 1] == pytest.approx(1.0, rel=oracle.LOSS)
    assert s[0, 1] > s[0, 2] > s[0, 3]
    assert x[4].abs().sum() == 0 and x[5].abs().sum() == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keep": 5}, "keep must be an int from 1 to the 4 generations of a prompt, got 5"),
        ({"keep": 2, "method": "best"}, "method must be one of random, .*, got 'best'"),
        ({"normalize": "mean"}, "normalize must be one of token, .*, got 'mean'"),
        ({"keep": 2, "select_options": {"fill": "none"}}, "normalize must be given with fill 'none'"),
        ({"baseline": "none"}, "baseline must be one of all, kept, got 'none'"),
        ({"keep": 3, "config": split(2, 8)}, r"divide, or normalize be given, got 3, which leaves 12"),
        ({"normalize": "prompt", "config": split(8, 2, steps_per_generation=3)}, "steps_per_generation must be a mult"),
    ],
)
def test_bad_arguments_get_one_sentence(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        rollouts.trainer(GRPOTrainer, tmp_path, **options)


def test_embeddings_of_another_shape_are_refused(tmp_path: Path) -> None:
    options = {"keep": 2, "method": "coverage", "embeddings": lambda completions: torch.ones(len(completions) - 1, 3)}
    with pytest.raises(
        ValueError, match=r"embeddings must return floats \[16, D\], one row per completion, got \[15, 3\]"
    ):
        rollouts.trainer(GRPOTrainer, tmp_path, **options).train()
