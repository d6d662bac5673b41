"""SFTTrainer: weights that no split of a step changes, in every layout, TRL's metrics, and a loss of evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the train extra is not installed")
pytestmark = pytest.mark.trainers

import transformers  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling  # noqa: E402

from mrtkern.integrations.data import ResponseCollator  # noqa: E402
from mrtkern.integrations.trl import SFTTrainer  # noqa: E402
from mrtkern.integrations.trl.batches import PromptCollator  # noqa: E402
from tests.tools import oracle, rollouts  # noqa: E402
from tests.tools.supervised import IGNORE, rows, split, trainer, true_loss, truth  # noqa: E402

NORMALIZATIONS = ["token", "response", "prompt", "prompt_token", "prompt_sum"]
ROWS = rows()  # 6 prompts, 12 responses
UNIT = oracle.sum_error(16, torch.float32)
PACKED = {"packing": True, "packing_strategy": "bfd", "max_length": 16}
LAYOUTS = {"padded": {}, "padding_free": {"padding_free": True}, "bfd": PACKED}


def parameters(folder: Path, given: Any = ROWS, **options: Any) -> list[torch.Tensor]:
    made = trainer(SFTTrainer, folder, given, **options)
    made.train()
    return rollouts.parameters(made.model)


# Training


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [(12, 1), (3, 4), (2, 8)])
def test_the_mean_over_prompts_in_every_layout_and_split(layout: str, sizes: tuple[int, int], tmp_path: Path) -> None:
    """All 12 responses in each of three steps; the last batch of a step is short, and a prompt lies in two."""
    config = split(*sizes, **LAYOUTS[layout])
    found = parameters(tmp_path, config=config, normalize="prompt")
    assert rollouts.difference(found, truth([ROWS] * 3, "prompt")) <= oracle.SPLIT


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_every_normalisation_is_its_definition(normalize: str, tmp_path: Path) -> None:
    """Two steps of 8 and 4 responses: the last window is short."""
    found = parameters(tmp_path, config=split(2, 4, num_train_epochs=1), normalize=normalize)
    assert rollouts.difference(found, truth([ROWS[:8], ROWS[8:]], normalize)) <= oracle.SPLIT


def test_trl_s_own_loss_is_another_mean(tmp_path: Path) -> None:
    made = trainer(trl.SFTTrainer, tmp_path, ROWS, config=split(3, 4))
    made.train()
    naive = rollouts.parameters(made.model)
    assert rollouts.difference(naive, truth([ROWS] * 3, "prompt")) > 100 * oracle.SPLIT
    assert rollouts.difference(naive, truth([ROWS] * 3, "token")) <= oracle.SPLIT
    ours = parameters(tmp_path, config=split(3, 4))
    assert rollouts.difference(ours, naive) == 0


def test_rows_with_a_prompt_and_its_responses(tmp_path: Path) -> None:
    """By the collator of mrtkern.integrations.data: numbers of prompts mean nothing beyond their batch."""
    whole: dict[str, dict[str, Any]] = {}
    for row in ROWS:
        P = row["labels"].count(IGNORE)
        made = whole.setdefault(row["prompt_id"], {"prompt": row["input_ids"][:P], "responses": []})
        made["responses"].append(row["input_ids"][P:])
    for layout in ("padded", "padding_free"):
        options = {"remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
        found = parameters(
            tmp_path, list(whole.values()), config=split(2, 3, **options), normalize="prompt",
            data_collator=ResponseCollator(layout=layout),
        )  # fmt: skip
        assert rollouts.difference(found, truth([ROWS] * 3, "prompt")) <= oracle.SPLIT


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_responses_are_used_as_given(layout: str, tmp_path: Path) -> None:
    config = split(3, 4, **LAYOUTS[layout])
    found = parameters(tmp_path, config=config, normalize="prompt", response_weight="weight")
    assert rollouts.difference(found, truth([ROWS] * 3, "weight")) <= oracle.SPLIT


@pytest.mark.parametrize("bad", [None, float("nan"), 10**400, "1", True])
def test_weights_that_are_no_numbers_and_batches_of_no_rows_are_refused(bad: Any) -> None:
    """Of the user's collator, here TRL's for language modelling."""
    collate = PromptCollator(DataCollatorForLanguageModeling(pad_token_id=0), "id", "v")
    rows = [{"input_ids": [1, 2], "labels": [-100, 2], "id": i, "v": v} for i, v in ((0, 0.5), (1, torch.tensor(0.25)))]
    assert collate(rows)["response_weight_bits"].view(torch.float64).tolist() == [0.5, 0.25]
    with pytest.raises(ValueError, match=r"^SFTTrainer: column 'v' must hold finite numbers, got \["):
        collate([rows[0], {**rows[1], "v": bad}])
    with pytest.raises(ValueError, match=r"^SFTTrainer: rows must be one at least, got none$"):
        collate([])


def test_a_weight_of_zero_leaves_the_gradient_of_the_others(tmp_path: Path) -> None:
    """Not that of all rows times the first weight."""
    given = [{**row, "weight": float(i == 1)} for i, row in enumerate(ROWS[1:3])]
    assert given[0]["prompt_id"] == given[1]["prompt_id"]
    config = split(2, 1, num_train_epochs=1)
    found = parameters(tmp_path, given, config=config, normalize="prompt", response_weight="weight")
    assert rollouts.difference(found, truth([given[1:]], "prompt")) <= oracle.SPLIT


def test_equal_prompts_are_two_unless_asked(tmp_path: Path) -> None:
    given = [{**row, "text_of_prompt": "same", "prompt_id": i} for i, row in enumerate(ROWS[:4])]
    config = split(4, 1, num_train_epochs=1)
    apart = parameters(tmp_path, given, config=config, normalize="prompt")
    assert rollouts.difference(apart, truth([given], "response")) <= oracle.SPLIT
    one = parameters(tmp_path, given, config=config, normalize="prompt_token", prompt_id="text_of_prompt")
    assert rollouts.difference(one, truth([given], "token")) <= oracle.SPLIT


def test_the_first_label_is_predicted_by_nobody_and_does_not_count(tmp_path: Path) -> None:
    """5 labels, 4 of them predicted: weights add up to 1, not to 0.8."""
    given = [{"input_ids": [7, 8, 9, 10, 11], "labels": [7, 8, 9, 10, 11], "prompt_id": 0}]
    for layout in LAYOUTS.values():
        made = trainer(SFTTrainer, tmp_path, given, config=split(1, 1, **layout), normalize="prompt")
        batches = [made.data_collator([made.train_dataset[0]])]
        made.get_batch_samples(iter(batches), 1, made.args.device)
        assert made._parts[0].tolist() == [[0.25] * 4]


def moe() -> Any:
    """A mixture of experts whose router is trained on a term of its own."""
    torch.manual_seed(0)
    sizes = {**rollouts.SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes))


def test_metrics_and_the_term_of_a_router_are_trl_s(tmp_path: Path) -> None:
    """Under "token" everything is; under "prompt" what is measured on the first parameters."""
    logs, ends = {}, {}
    for name, cls, normalize in (("trl", trl.SFTTrainer, {}), ("token", SFTTrainer, {"normalize": "token"}),
                                 ("prompt", SFTTrainer, {"normalize": "prompt"})):  # fmt: skip
        made = trainer(cls, tmp_path, ROWS, config=split(3, 4), model=moe(), **normalize)
        made.train()
        logs[name], ends[name] = made.state.log_history, rollouts.parameters(made.model)
    assert rollouts.difference(ends["token"], ends["trl"]) <= oracle.SPLIT
    measured = ("entropy", "mean_token_accuracy", "num_tokens", "aux_loss")
    for key in measured:
        assert logs["prompt"][0][key] == pytest.approx(logs["trl"][0][key], rel=oracle.SPLIT)
    router = logs["trl"][0]["loss"] - float(true_loss(moe(), ROWS, "token").detach())
    expected = float(true_loss(moe(), ROWS, "prompt").detach()) + router
    assert logs["prompt"][0]["loss"] == pytest.approx(expected, rel=oracle.LOSS)
    assert router > 0.1


def test_adapters_and_checkpointed_layers_learn_the_same_however_a_step_is_split(tmp_path: Path) -> None:
    """LoRA on attention, whose model TRL wraps itself; under "token" it is TRL's."""
    peft = pytest.importorskip("peft", reason="the train extra is not installed")
    ends = {}
    for cls, normalize in ((trl.SFTTrainer, None), (SFTTrainer, "token"), (SFTTrainer, "prompt")):
        for sizes in ((12, 1), (3, 4)):
            lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
            options = {} if normalize is None else {"normalize": normalize}
            config = split(*sizes, gradient_checkpointing=True)
            made = trainer(cls, tmp_path, ROWS, config=config, peft_config=lora, **options)
            made.train()
            ends[normalize, sizes] = [p.detach().clone() for p in made.model.parameters() if p.requires_grad]
        assert rollouts.difference(ends[normalize, (3, 4)], ends[normalize, (12, 1)]) <= oracle.SPLIT
    assert rollouts.difference(ends["token", (3, 4)], ends[None, (12, 1)]) <= oracle.SPLIT
    assert rollouts.difference(ends["prompt", (3, 4)], ends[None, (12, 1)]) > 100 * oracle.SPLIT


# Evaluation


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("normalize", ["token", "prompt"])
def test_the_loss_of_evaluation_is_that_of_the_whole_set_for_any_batch(
    normalize: str, layout: str, tmp_path: Path
) -> None:
    expected = float(true_loss(rollouts.tiny(), ROWS, normalize).detach())
    for size in (1, 5, 12):
        config = split(2, 1, per_device_eval_batch_size=size, **LAYOUTS[layout])
        made = trainer(
            SFTTrainer, tmp_path, ROWS, config=config, normalize=normalize, eval_dataset=Dataset.from_list(ROWS)
        )
        assert made.evaluate()["eval_loss"] == pytest.approx(expected, rel=oracle.LOSS), size
    made.train()
    assert len(made.state.log_history) > 3


# What is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"config": {**PACKED, "packing_strategy": "wrapped"}},
            "packing_strategy must be 'bfd' with normalize, got 'wrap",
        ),
        (
            {"config": {**PACKED, "packing_strategy": "bfd_split"}},
            "packing_strategy must be 'bfd' with normalize, got 'bfd_s",
        ),
        ({"config": {"loss_type": "dft"}}, "loss_type must be 'nll' with normalize, got dft"),
        ({"config": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor must be 0 with normalize, got 0.1"),
        ({"compute_loss_func": lambda *_, **__: 0}, "compute_loss_func must be None with normalize, got a function"),
        ({"normalize": "mean"}, "normalize must be one of token, .*, got 'mean'"),
        ({"prompt_id": "question"}, "prompt_id must name a column with normalize 'prompt', got 'question'"),
    ],
)
def test_bad_arguments_get_one_sentence(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        trainer(SFTTrainer, tmp_path, ROWS, **{"normalize": "prompt", **options})


def test_a_trainer_that_takes_its_loss_elsewhere_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights would be left out in silence."""
    made = trainer(SFTTrainer, tmp_path, ROWS, config=split(12, 1), normalize="prompt")
    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", transformers.Trainer.compute_loss)
    with pytest.raises(RuntimeError, match="trl must ask the model for log-probabilities, got 1"):
        made.train()
