"""Lightning with StepCounts: accumulated steps equal one batch, the short last one included."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import mrtkern as mk
from tests.tools import oracle

pytest.importorskip("transformers", reason="the train extra is not installed")
pl = pytest.importorskip("lightning.pytorch", reason="the train extra is not installed")

from mrtkern.integrations.data import ResponseCollator  # noqa: E402
from mrtkern.integrations.lightning import StepCounts  # noqa: E402
from mrtkern.integrations.transformers import patch  # noqa: E402
from tests.tools import trainers  # noqa: E402

pytestmark = pytest.mark.trainers
ROWS = trainers.ragged_rows()


class Module(pl.LightningModule):
    """A model that is patched, or one whose logits go into the loss of mrtkern; with the prompts of a batch as weights
    of its validation losses."""

    def __init__(self, normalize: str, is_patched: bool = True) -> None:
        super().__init__()
        self.model = patch(trainers.tiny(), normalize) if is_patched else trainers.tiny()
        self.loss = None if is_patched else mk.MultiResponseCrossEntropyLoss(normalize)

    def training_step(self, batch: Any, _: int) -> Any:
        if self.loss is None:
            return self.model(**batch).loss
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        return self.loss(logits, batch["labels"][:, 1:].contiguous(), prompt=batch["prompt"])

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", self.model(**batch).loss, batch_size=int(batch["prompt"].max()) + 1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), trainers.RATE)


def trained(module: Any, size: int, accumulation: int, *, callbacks: Any, rows: Any = ROWS, **options: Any) -> Any:
    """The module after one epoch on the CPU."""
    collate = options.pop("collate", ResponseCollator())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=1, accumulate_grad_batches=accumulation, callbacks=callbacks, accelerator="cpu", devices=1,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(rows, batch_size=size, collate_fn=collate)
        trainer.fit(module, loader)
    return module.model


@pytest.mark.parametrize("normalize", trainers.NORMALIZATIONS)
@pytest.mark.parametrize(("size", "accumulation"), [(4, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("is_patched", [True, False])
def test_steps_equal_one_batch(normalize: str, size: int, accumulation: int, is_patched: bool) -> None:
    """11 prompts in steps of 4: the last is short, and at two at a time its last batch too."""
    steps = [trainers.collate(rows) for rows in trainers.steps_of(ROWS)]
    expected, _ = trainers.one_batch(trainers.tiny(), steps, normalize)
    model = trained(Module(normalize, is_patched), size, accumulation, callbacks=[StepCounts(normalize)])
    assert trainers.largest_difference(model, expected) < oracle.SPLIT


def test_lightning_alone_divides_a_short_step_by_the_length_of_others() -> None:
    steps = [trainers.collate(rows) for rows in trainers.steps_of(ROWS)]
    expected, _ = trainers.one_batch(trainers.tiny(), steps, "prompt")
    model = trained(Module("prompt", is_patched=False), 1, 4, callbacks=[])
    assert trainers.largest_difference(model, expected) > 100 * oracle.SPLIT


@pytest.mark.parametrize("size", [1, 3])
def test_losses_logged_by_their_number_of_prompts_are_those_of_the_set(size: int) -> None:
    module = Module("prompt")
    loader = torch.utils.data.DataLoader(ROWS, batch_size=size, collate_fn=ResponseCollator())
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = trainer.validate(module, loader, verbose=False)[0]["val_loss"]
    expected = trainers.true_loss(trainers.tiny(), trainers.collate(ROWS), "prompt").item()
    assert found == pytest.approx(expected, rel=oracle.LOSS)


def test_what_cannot_be_exact_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^lightning.StepCounts: normalize must be one of token, .* got 'mean'$"):
        StepCounts("mean")
    rows = trainers.single_rows(ROWS)
    collate = ResponseCollator(responses="response", prompt_id="prompt_id")
    with pytest.raises(ValueError, match=r"must have all its responses in one batch, got \d prompts in \d parts$"):
        trained(Module("prompt"), 2, 2, callbacks=[StepCounts("prompt")], rows=rows, collate=collate)
    module = Module("prompt")
    module.automatic_optimization = False
    with pytest.raises(ValueError, match=r"optimization must be automatic, got automatic_optimization=False$"):
        trained(module, 2, 1, callbacks=[StepCounts("prompt")])
