"""A patched model under what training adds: compilation, checkpoints, adapters, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mrtkern.integrations.step import count_step, counted_steps
from tests.tools import oracle

pytest.importorskip("transformers", reason="the train extra is not installed")

from mrtkern.integrations.data import ResponseCollator
from mrtkern.integrations.transformers import Trainer, patch
from tests.tools import trainers

pytestmark = pytest.mark.trainers
ROWS = trainers.ragged_rows()
BATCHES = [trainers.collate(rows) for rows in trainers.steps_of(ROWS, 2)]
STEPS = [trainers.collate(rows) for rows in trainers.steps_of(ROWS)]


def three_steps(model: Any, run: Any) -> Any:
    """SGD by steps of two batches; `run` is what is called for the model."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], trainers.RATE)
    for batches in counted_steps(BATCHES, 2):
        for batch in batches:
            run(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.full
@pytest.mark.parametrize("normalize", ["prompt", "token"])
def test_a_compiled_model_equals_one_batch(normalize: str) -> None:
    plain = torch.compile(trainers.tiny(), backend="eager", fullgraph=True)
    try:
        plain(input_ids=torch.arange(4)[None])
    except torch._dynamo.exc.Unsupported as error:
        pytest.skip(f"this torch does not compile this transformers: {str(error).splitlines()[0]}")
    expected, _ = trainers.one_batch(trainers.tiny(), STEPS, normalize)
    model = patch(trainers.tiny(), normalize)
    three_steps(model, torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True))
    assert trainers.largest_difference(model, expected) < oracle.SPLIT


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_of_activations_equal_one_batch(reentrant: bool) -> None:
    expected, _ = trainers.one_batch(trainers.tiny(tie_word_embeddings=True), STEPS, "prompt")
    model = patch(trainers.tiny(tie_word_embeddings=True), "prompt")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert trainers.largest_difference(three_steps(model, model), expected) < oracle.SPLIT


def test_an_adapter_in_the_trainer_equals_one_batch(tmp_path: Any) -> None:
    peft = pytest.importorskip("peft", reason="the train extra is not installed")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)

    def adapted() -> Any:
        model = trainers.tiny()
        torch.manual_seed(1)
        return peft.get_peft_model(model, config)

    expected, _ = trainers.one_batch(adapted(), STEPS, "prompt")
    trainer = trainers.in_order(Trainer)(
        adapted(), trainers.arguments(tmp_path, 2, 2), normalize="prompt", data_collator=ResponseCollator(),
        train_dataset=ROWS,
    )  # fmt: skip
    trainer.train()
    assert trainers.largest_difference(trainer.model, expected) < oracle.SPLIT


def test_a_mixture_of_experts_equals_one_batch_with_the_mean_of_its_auxiliary_losses(tmp_path: Any) -> None:
    """That term is the model's own, of each of its batches: the trainer averages it as it always did."""
    options = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.1}

    def auxiliary(model: Any, step: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = ROWS[auxiliary.seen : auxiliary.seen + int(step["prompt"].max()) + 1]
        auxiliary.seen += len(rows)
        batches = [trainers.collate(part) for part in trainers.steps_of(rows, 2)]
        inputs = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches]
        return 0.1 * torch.stack([model(**batch).aux_loss for batch in inputs]).mean()

    auxiliary.seen = 0
    expected, _ = trainers.one_batch(trainers.tiny("Mixtral", **options), STEPS, "prompt", auxiliary)
    trainer = trainers.in_order(Trainer)(
        trainers.tiny("Mixtral", **options), trainers.arguments(tmp_path, 2, 2), normalize="prompt",
        data_collator=ResponseCollator(), train_dataset=ROWS,
    )  # fmt: skip
    trainer.train()
    assert trainers.largest_difference(trainer.model, expected) < oracle.SPLIT


def test_training_goes_on_from_a_checkpoint(tmp_path: Any) -> None:
    def trainer() -> Any:
        given = trainers.arguments(tmp_path, 2, 2, save_strategy="steps", save_steps=2)
        return trainers.in_order(Trainer)(
            trainers.tiny(), given, normalize="prompt", data_collator=ResponseCollator(), train_dataset=ROWS
        )

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for (name, p), q in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(p, q), name


def naive(model: Any, batch: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """The loss of logits, each token by its weight."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(
        logits.reshape(-1, trainers.V).float(), batch["labels"][:, 1:].reshape(-1), reduction="none"
    )
    return (nll * weight.reshape(-1)).sum()


def test_under_autocast_splitting_changes_no_more_than_it_does_for_the_naive_loss() -> None:
    """Gradients of one batch of four prompts against four of one, under autocast to bfloat16."""
    import mrtkern as mk

    def gradient(loss_of: Any, model: Any, parts: list[Any]) -> torch.Tensor:
        for part in parts:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model, part)
            loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    def with_weights(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        counts = {name: batch[name] for name in ("num_prompts", "responses_per_prompt")}
        weight = mk.response_weights(batch["labels"][:, 1:].contiguous(), "prompt", prompt=batch["prompt"], **counts)
        return naive(model, batch, weight)

    splits = [count_step([trainers.collate(rows) for rows in trainers.steps_of(ROWS[:4], size)]) for size in (4, 1)]
    ours, theirs = (
        [gradient(loss_of, make(), parts) for parts in splits]
        for loss_of, make in (
            (lambda model, batch: model(**batch).loss, lambda: patch(trainers.tiny(), "prompt")),
            (with_weights, trainers.tiny),
        )
    )
    found, allowed = (float((whole - parts).norm() / whole.norm()) for whole, parts in (ours, theirs))
    print(f"\nsplit under autocast: {found:.2e} relative, {allowed:.2e} by the naive loss")
    assert found <= allowed
