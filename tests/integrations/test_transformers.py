"""`patch` and the Trainer of mrtkern.integrations.transformers: a step equals one batch however it is split."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from mrtkern.integrations.step import count_step
from tests.tools import oracle

transformers = pytest.importorskip("transformers", reason="the train extra is not installed")

from mrtkern.integrations.data import ResponseCollator  # noqa: E402
from mrtkern.integrations.transformers import Trainer, patch  # noqa: E402
from tests.tools import trainers  # noqa: E402

ROWS = trainers.ragged_rows()
STEPS = [trainers.collate(rows) for rows in trainers.steps_of(ROWS)]
every_normalization = pytest.mark.parametrize("normalize", trainers.NORMALIZATIONS)


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    """Parameters and losses of three steps on whole batches, by normalisation."""
    return {name: trainers.one_batch(trainers.tiny(), STEPS, name) for name in trainers.NORMALIZATIONS}


def plain_loop(model: Any, steps: Any) -> Any:
    """Losses added up, one step of SGD for each list of batches."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], trainers.RATE)
    for batches in steps:
        for batch in batches:
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def split_steps(size: int, rows: Any = ROWS, **options: Any) -> list[list[dict[str, torch.Tensor]]]:
    """Steps in batches of so many rows, without counts."""
    return [
        [trainers.collate(part, **options) for part in trainers.steps_of(whole, size)]
        for whole in trainers.steps_of(rows)
    ]


def trained(
    folder: Any, size: int, accumulation: int, *, trainer: Any = Trainer, model: Any = None, **options: Any
) -> Any:
    """A trainer after one epoch over the rows, in their order."""
    given = {"data_collator": ResponseCollator(), "train_dataset": ROWS, **options}
    model = trainers.tiny() if model is None else model
    made = trainers.in_order(trainer)(model, trainers.arguments(folder, size, accumulation), **given)
    made.train()
    return made


@pytest.mark.parametrize(("normalize", "size"), [*((name, 1) for name in trainers.NORMALIZATIONS), ("prompt", 2)])
def test_a_plain_loop_over_counted_batches_equals_one_batch(truth: Any, normalize: str, size: int) -> None:
    model = plain_loop(patch(trainers.tiny(), normalize), map(count_step, split_steps(size)))
    assert trainers.largest_difference(model, truth[normalize][0]) < oracle.SPLIT


@every_normalization
@pytest.mark.parametrize(("layout", "fused"), [("padded", True), ("padding_free", True), ("padding_free", False)])
def test_layouts_and_losses_of_logits_equal_the_definition(normalize: str, layout: str, fused: bool) -> None:
    model = patch(trainers.tiny(), normalize, fused=fused)
    expected = trainers.true_loss(trainers.tiny(), STEPS[0], normalize)
    found = model(**trainers.collate(ROWS[:4], layout=layout))
    assert found.loss.item() == pytest.approx(expected.item(), rel=oracle.LOSS)
    assert found.logits.shape[-1] == (0 if fused else trainers.V)


@pytest.mark.parametrize(
    ("normalize", "size", "accumulation"),
    [*((name, 2, 2) for name in trainers.NORMALIZATIONS), ("prompt", 4, 1), ("prompt", 1, 4)],
)
def test_the_trainer_equals_one_batch(truth: Any, tmp_path: Any, normalize: str, size: int, accumulation: int) -> None:
    """11 prompts in steps of 4: the last step is short, and at 2 at a time its last batch too."""
    trainer = trained(tmp_path, size, accumulation, normalize=normalize)
    expected, losses = truth[normalize]
    assert trainers.largest_difference(trainer.model, expected) < oracle.SPLIT
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=oracle.LOSS)


def test_a_prompt_may_have_its_responses_in_several_batches(tmp_path: Any) -> None:
    """One response a row, three at a time, accumulated over two batches: most prompts are cut."""
    rows = trainers.single_rows(ROWS)
    collate = ResponseCollator(responses="response", prompt_id="prompt_id")
    whole = [collate(part) for part in trainers.steps_of(rows, 6)]
    for normalize in ("prompt", "prompt_token"):
        expected, _ = trainers.one_batch(trainers.tiny(), whole, normalize)
        trainer = trained(tmp_path, 3, 2, normalize=normalize, train_dataset=rows, data_collator=collate)
        assert trainers.largest_difference(trainer.model, expected) < oracle.SPLIT


def test_normalising_every_batch_by_itself_is_another_loss_and_is_said_to_be(truth: Any, tmp_path: Any) -> None:
    """The trainer of transformers, with batches of 2, 2, 2, 2 and 2, 1 prompts, and the same by hand."""
    with pytest.warns(UserWarning, match=r"must have the same number of prompts to equal one batch, got 2 and 1; use"):
        trainer = trained(tmp_path, 2, 2, trainer=transformers.Trainer, model=patch(trainers.tiny(), "prompt"))
    assert trainers.largest_difference(trainer.model, truth["prompt"][0]) > 100 * oracle.SPLIT


def test_the_trainer_of_transformers_is_exact_where_batches_have_as_many_prompts(truth: Any, tmp_path: Any) -> None:
    """One row a prompt, one at a time; a short last step is divided by its own length."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer = trained(tmp_path, 1, 4, trainer=transformers.Trainer, model=patch(trainers.tiny(), "prompt"))
        by_token = trained(tmp_path, 2, 2, trainer=transformers.Trainer, model=patch(trainers.tiny(), "token"))
    assert trainers.largest_difference(trainer.model, truth["prompt"][0]) < oracle.SPLIT
    assert trainers.largest_difference(by_token.model, truth["token"][0]) < oracle.SPLIT


# What others got wrong


def unit_losses(lengths: list[int]) -> dict[str, Any]:
    """Labels of responses that a model without weights predicts at log V each."""
    labels = torch.full((len(lengths), max(lengths)), oracle.IGNORE)
    for row, length in zip(labels, lengths, strict=True):
        row[:length] = 5
    return {"input_ids": labels.clamp(min=0), "labels": labels, "prompt": torch.arange(len(lengths))}


def indifferent() -> Any:
    """A model all of whose losses are log V."""
    model = trainers.tiny()
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


@every_normalization
def test_the_first_label_of_a_row_counts_nowhere(normalize: str) -> None:
    """5 labels, 4 predicted: 1 in units of log V, where counting 5 labels gives 0.8."""
    loss = patch(indifferent(), normalize, constant=4.0)(**unit_losses([5])).loss
    assert loss.item() / torch.tensor(float(trainers.V)).log().item() == pytest.approx(1.0, rel=oracle.LOSS)


def test_nothing_is_divided_by_accumulation_twice(tmp_path: Any) -> None:
    """What one step moves at accumulation 4, in units of what it moves at 1: 1, where dividing twice gives 0.25."""
    moved = []
    for size, accumulation in ((4, 1), (1, 4)):
        trainer = trained(tmp_path, size, accumulation, normalize="prompt", train_dataset=ROWS[:4])
        moved.append(trainer.model.lm_head.weight.detach() - trainers.tiny().lm_head.weight.detach())
    assert float(moved[1].norm() / moved[0].norm()) == pytest.approx(1.0, rel=oracle.LOSS)


def test_smoothing_is_the_same_for_every_accumulation(tmp_path: Any) -> None:
    whole, split = (
        trained(tmp_path, size, 4 // size, normalize="prompt", label_smoothing=0.2, z_loss=1e-3) for size in (4, 1)
    )
    assert trainers.largest_difference(split.model, [p.detach() for p in whole.model.parameters()]) < oracle.SPLIT
    plain = trained(tmp_path, 4, 1, normalize="prompt")
    assert trainers.largest_difference(split.model, [p.detach() for p in plain.model.parameters()]) > oracle.SPLIT
    with pytest.raises(ValueError, match=r"^transformers.Trainer: label_smoothing_factor must be 0 .*, got 0.1$"):
        Trainer(trainers.tiny(), trainers.arguments(tmp_path, 1, 1, label_smoothing_factor=0.1), normalize="prompt")


# Evaluation


def graded() -> tuple[Any, list[dict[str, Any]]]:
    """A model, and rows with responses of 1 and 3 tokens; their losses are what it says of each token."""
    model = trainers.tiny()
    rows = [{"prompt": [7], "responses": [[3]]}, {"prompt": [8], "responses": [[4, 4, 4]]}]
    return model, rows


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("adapted", [False, True])
def test_eval_loss_does_not_depend_on_the_batch_size(tmp_path: Any, size: int, adapted: bool) -> None:
    """Of lengths 1 and 3 by token: (l1 + l2 + l3 + l4) / 4, where averaging batches of 1 gives (l1 + mean) / 2."""
    model, rows = graded()
    nll = [trainers.true_loss(model, trainers.collate([row]), "token").item() for row in rows]
    if adapted:
        peft = pytest.importorskip("peft", reason="the train extra is not installed")
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for normalize, expected in (("token", (nll[0] + 3 * nll[1]) / 4), ("prompt", (nll[0] + nll[1]) / 2)):
        given = {"per_device_eval_batch_size": size, "prediction_loss_only": True}
        trainer = Trainer(
            model, trainers.arguments(tmp_path, 1, 1, **given), normalize=normalize, data_collator=ResponseCollator()
        )
        assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(expected, rel=oracle.LOSS)
