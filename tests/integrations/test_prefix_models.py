"""A shared prompt in models of every kind and in the trainers that people use, against a row for each response."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the train extra is not installed")

import transformers

from mrtkern.integrations.data import ResponseCollator
from mrtkern.integrations.prefix import PrefixCollator
from mrtkern.integrations.transformers import patch
from tests.tools import oracle, prefixes, tokens

pytestmark = pytest.mark.trainers

F32 = torch.float32
ROWS = prefixes.rows()


def agree(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor], dtype: torch.dtype = F32) -> bool:
    """Of the gradients of all parameters."""
    return prefixes.largest_difference(found, truth) <= oracle.SHARED[dtype]


@pytest.mark.parametrize("name", prefixes.MODELS)
def test_loss_and_every_gradient_are_those_of_a_row_for_each_response(name: str) -> None:
    model = prefixes.tiny(name)
    loss, truth = prefixes.gradients(model, prefixes.separate(ROWS))
    found, got = prefixes.gradients(model, PrefixCollator(None, model)(ROWS))
    assert prefixes.same(found, loss)
    assert agree(got, truth)


@pytest.mark.parametrize("is_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(is_reentrant: bool) -> None:
    model = prefixes.tiny("Qwen3, window of 4")
    loss, truth = prefixes.gradients(model, prefixes.separate(ROWS))
    model.gradient_checkpointing_enable({"use_reentrant": is_reentrant})
    model.enable_input_require_grads()
    found, got = prefixes.gradients(model, PrefixCollator(None, model)(ROWS))
    assert prefixes.same(found, loss)
    assert agree(got, truth)


@pytest.mark.full
def test_compiling_changes_nothing() -> None:
    """Of two batches, the second with another layout; the backend is dynamo's own, what is tested is the tracing."""
    model = prefixes.tiny("Llama", num_hidden_layers=1, use_cache=False)
    collate = PrefixCollator(None, model)
    compiled = torch.compile(model, backend="eager")
    for rows in (ROWS, ROWS[1:]):
        loss, truth = prefixes.gradients(model, collate(rows))
        compiled.zero_grad()
        found = compiled(**collate(rows)).loss
        found.backward()
        assert prefixes.same(found.detach(), loss)
        assert agree({name: p.grad for name, p in model.named_parameters()}, truth)


def test_bfloat16_is_as_near_to_float32_as_a_row_for_each_response() -> None:
    model = prefixes.tiny("Qwen3")
    _, truth = prefixes.gradients(model, prefixes.separate(ROWS))

    def away(batch: dict[str, torch.Tensor], autocast: bool) -> float:
        narrow = model if autocast else copy.deepcopy(model).to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = narrow(**batch).loss
        loss.backward()
        found = {name: p.grad.float() for name, p in narrow.named_parameters()}
        narrow.zero_grad()
        return prefixes.largest_difference(found, truth)

    for autocast in (False, True):
        model.set_attn_implementation("sdpa")
        rows = away(prefixes.separate(ROWS), autocast)
        assert away(PrefixCollator(None, model)(ROWS), autocast) <= 2 * rows  # two roundings of a sum instead of one


def test_lora_learns_the_same() -> None:
    peft = pytest.importorskip("peft")
    model = prefixes.tiny("Llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)

    def gradients(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**batch).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    truth = gradients(prefixes.separate(ROWS))
    assert agree(gradients(PrefixCollator(None, model)(ROWS)), truth)
    learnt = peft.get_peft_model(
        prefixes.tiny("Llama"), peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    )
    with pytest.raises(ValueError, match=r"^PrefixCollator: model must see no learnt tokens .* adapter 'default'$"):
        PrefixCollator(None, learnt)


def test_a_saved_model_forgets_the_attention(tmp_path: Path) -> None:
    model = prefixes.tiny("Llama")
    PrefixCollator(None, model)
    model.save_pretrained(tmp_path)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


# Trainers


def arguments(kind: Any, folder: Path, **options: Any) -> Any:
    """All rows in one step, two at a time."""
    given = {
        "optim": "sgd", "max_grad_norm": 0.0, "use_cpu": True,
        "max_steps": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True, "remove_unused_columns": False,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "dataloader_pin_memory": False,
        "per_device_eval_batch_size": len(ROWS), "include_num_input_tokens_seen": "non_padding", "bf16": False,
    }  # fmt: skip
    return kind(output_dir=str(folder), **{**given, **options})


def stepped(trainer: Any, model: Any) -> dict[str, torch.Tensor]:
    """The gradients with which a trainer steps."""
    found: dict[str, torch.Tensor] = {}

    class Reader(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            found.update({name: p.grad.clone() for name, p in model.named_parameters()})

    trainer.add_callback(Reader())
    trainer.train()
    return found


def tokens_of_rows() -> int:
    return sum(len(row["prompt"]) - 1 + sum(1 + len(r) for r in row["responses"]) for row in ROWS)


def test_transformers_trainer_steps_with_the_same_gradients(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    model = prefixes.tiny("Llama, tied head")
    loss, truth = prefixes.gradients(model, prefixes.separate(ROWS))
    data = datasets.Dataset.from_list(ROWS)
    trainer = transformers.Trainer(
        model, arguments(transformers.TrainingArguments, tmp_path),
        train_dataset=data, eval_dataset=data, data_collator=PrefixCollator(None, model),
    )  # fmt: skip
    assert prefixes.same(torch.tensor(trainer.evaluate()["eval_loss"]), loss)
    model.zero_grad()
    assert agree(stepped(trainer, model), truth)
    assert trainer.state.num_input_tokens_seen == tokens_of_rows()


def test_sft_trainer_steps_with_the_same_gradients(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model = prefixes.tiny("Qwen3, window of 4")
    loss, truth = prefixes.gradients(model, prefixes.separate(ROWS))
    data = datasets.Dataset.from_list(ROWS)
    given = arguments(trl.SFTConfig, tmp_path, dataset_kwargs={"skip_prepare_dataset": True})
    trainer = trl.SFTTrainer(
        model, given, train_dataset=data, eval_dataset=data, data_collator=PrefixCollator(None, model),
        processing_class=tokens.tokenizer(),
    )  # fmt: skip
    assert prefixes.same(torch.tensor(trainer.evaluate()["eval_loss"]), loss)
    model.zero_grad()
    assert agree(stepped(trainer, model), truth)
    logged = next(entry for entry in reversed(trainer.state.log_history) if "num_tokens" in entry)
    assert logged["num_tokens"] == tokens_of_rows()


def test_a_patched_model_normalises_by_prompt_the_same() -> None:
    """Means over responses of means over prompts, with ragged K, from hidden states alone."""
    patched = {
        name: patch(prefixes.tiny("Llama, tied head"), "prompt", fused=name == "shared") for name in ("rows", "shared")
    }
    loss, truth = prefixes.gradients(patched["rows"], ResponseCollator()(ROWS))
    found, got = prefixes.gradients(patched["shared"], PrefixCollator(None, patched["shared"])(ROWS))
    assert prefixes.same(found, loss)
    assert agree(got, truth)
