"""axolotl's plugin, and the collator of rows that are tokenized: through axolotl itself where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mrtkern.integrations.data import TokenizedCollator
from tests.tools import oracle

PLUGIN = "mrtkern.integrations.axolotl.MultiResponsePlugin"
ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "id": "b"},
    {"input_ids": [5, 8], "labels": [-100, 8], "id": "a"},
    {"input_ids": [9, 8, 7, 6], "labels": [-100, -100, 7, 6], "id": "b"},
]

# The collator


def test_rows_are_padded_and_know_their_prompts() -> None:
    batch = TokenizedCollator("id", pad_token_id=1, pad_to_multiple_of=3)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1, 1, 1], [5, 8, 1, 1, 1, 1], [9, 8, 7, 6, 1, 1]]
    assert batch["labels"][1].tolist() == [-100, 8, -100, -100, -100, -100]
    assert batch["attention_mask"].sum(1).tolist() == [3, 2, 4]
    assert batch["prompt"].tolist() == [0, 1, 0]


def test_the_key_of_an_id_is_the_same_in_every_batch() -> None:
    collate = TokenizedCollator("id")
    whole = collate(ROWS)["prompt_key"].tolist()
    assert whole[0] == whole[2] != whole[1]
    assert [int(collate([row])["prompt_key"]) for row in ROWS] == whole


def test_a_row_keeps_its_own_attention_mask() -> None:
    masked = {**ROWS[0], "attention_mask": [0, 1, 1]}
    batch = TokenizedCollator("id")([masked, ROWS[1], {**ROWS[2], "attention_mask": torch.tensor([1, 0, 0, 1])}])
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1]]
    assert torch.equal(batch["input_ids"], TokenizedCollator("id")(ROWS)["input_ids"])
    assert torch.equal(batch["labels"], TokenizedCollator("id")(ROWS)["labels"])


WHERE = "in row 0 of the batch"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"input_ids": [1], "labels": [1]}, "row 0 of the batch must have a column 'id', got input_ids, labels"),
        ({"input_ids": [1, 2], "labels": [1], "id": 0}, "labels must be as many as the 2 tokens of row 0 .*, got 1"),
        ({**ROWS[0], "attention_mask": [1]}, "attention_mask must be as many as the 3 tokens of row 0 .*, got 1"),
        ({**ROWS[0], "attention_mask": [1, 2, 1]}, rf"column 'attention_mask' must hold 0 and 1, got \[.*\] {WHERE}"),
        ({**ROWS[0], "input_ids": None}, f"column 'input_ids' must hold whole numbers from 0, got NoneType {WHERE}"),
        ({**ROWS[0], "input_ids": [1, -1, 2]}, rf"column 'input_ids' must hold whole .*, got \[1, -1, 2\] {WHERE}"),
        ({**ROWS[0], "input_ids": [1.0]}, rf"column 'input_ids' must hold whole .*, got \[1.0\] {WHERE}"),
        ({**ROWS[0], "input_ids": [[1, 2, 3]]}, f"column 'input_ids' must hold whole .* {WHERE}"),
        ({**ROWS[0], "input_ids": [10**400]}, rf"column .* must hold .*, got \[one of 1329 bits\] {WHERE}"),
        ({"input_ids": [], "labels": [], "id": 0}, f"column 'input_ids' must hold a token at least, got none {WHERE}"),
        ({**ROWS[0], "labels": None}, f"column 'labels' must hold whole numbers from 0, or -100, got NoneType {WHERE}"),
        ({**ROWS[0], "labels": [-1, 6, 7]}, rf"column 'labels' must hold whole .*, got \[-1, 6, 7\] {WHERE}"),
        ({**ROWS[0], "id": None}, f"column 'id' must hold an id in every row, got None {WHERE}"),
    ],
)
def test_rows_that_do_not_fit_are_named(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^TokenizedCollator: {sentence}$"):
        TokenizedCollator("id")([row])


# The plugin


def configured(**keys: Any) -> Any:
    """A configuration, and axolotl's manager with the plugin alone."""
    base = pytest.importorskip("axolotl.integrations.base", reason="axolotl is not installed")
    from axolotl.utils.dict import DictDefault

    manager = base.PluginManager.get_instance()
    manager.plugins.clear()
    manager._cfg = None
    manager.register(PLUGIN)
    return manager, DictDefault(keys)


@pytest.mark.trainers
def test_it_is_a_plugin_of_axolotl_and_changes_nothing_unasked() -> None:
    manager, cfg = configured()
    assert manager.get_trainer_cls(cfg) is None
    assert manager.get_collator_cls_and_kwargs(cfg) is None
    assert manager.get_input_args() == ["mrtkern.integrations.axolotl.Arguments"]


@pytest.mark.trainers
@pytest.mark.parametrize("name", ["sample_packing", "rl"])
def test_what_knows_no_prompts_is_refused(name: str) -> None:
    manager, _ = configured()
    (plugin,) = manager.plugins.values()
    with pytest.raises(ValueError, match=f"axolotl: {name} must be off with mrtkern_normalize, got True"):
        plugin.register({"mrtkern_normalize": "prompt", name: True})
    plugin.register({name: True})


@pytest.mark.trainers
@pytest.mark.parametrize(("batch_size", "accumulation"), [(12, 1), (3, 4), (2, 8)])
def test_its_trainer_takes_one_batch_s_steps(batch_size: int, accumulation: int, tmp_path: Path) -> None:
    manager, cfg = configured(mrtkern_normalize="prompt")
    from axolotl.core.training_args import AxolotlTrainingArguments
    from datasets import Dataset

    from tests.tools import rollouts, supervised, tokens

    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in supervised.rows()]
    model = rollouts.tiny()
    manager.post_model_load(cfg, model)
    made = []
    for is_eval in (False, True):
        collator, options = manager.get_collator_cls_and_kwargs(cfg, is_eval=is_eval)
        made.append(collator(tokens.tokenizer(), padding=True, pad_to_multiple_of=8, return_tensors="pt", **options))
    arguments = AxolotlTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, optim="sgd", learning_rate=rollouts.RATE, max_grad_norm=0.0,
        lr_scheduler_type="constant", num_train_epochs=3, report_to=[], disable_tqdm=True, save_strategy="no",
        per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential", dataloader_pin_memory=False, logging_steps=1,
    )  # fmt: skip
    trainer = manager.get_trainer_cls(cfg)(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows),
        data_collator=made[0], eval_data_collator=made[1], processing_class=tokens.tokenizer(), dataset_tags=["made"],
    )  # fmt: skip
    trainer.train()
    truth = supervised.truth([supervised.rows()] * 3, "prompt")
    assert rollouts.difference(rollouts.parameters(model), truth) <= oracle.SPLIT
    with torch.no_grad():
        ended = rollouts.tiny()
        for p, q in zip(ended.parameters(), truth, strict=True):
            p.copy_(q)
        expected = float(supervised.true_loss(ended, rows, "prompt"))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=oracle.LOSS)
