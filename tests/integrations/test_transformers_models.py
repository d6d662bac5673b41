"""`patch` on one model after the other: what it changes, what it leaves, what it refuses."""

from __future__ import annotations

import copy
import doctest
import inspect
import warnings
from typing import Any

import pytest
import torch

from tests.tools import oracle

transformers = pytest.importorskip("transformers", reason="the train extra is not installed")

from mrtkern.integrations import versions  # noqa: E402
from mrtkern.integrations.transformers import Trainer, patch, unpatch  # noqa: E402
from mrtkern.integrations.transformers.shape import Shape, read_shape  # noqa: E402
from tests.tools import trainers  # noqa: E402
from tests.tools.repository import ROOT  # noqa: E402

ROWS = trainers.ragged_rows(4)
BATCH = trainers.collate(ROWS)
SHAPES = {
    "Llama": Shape(1.0, None),
    "Gemma2": Shape(1.0, 30.0),  # a softcap
    "Granite": Shape(0.125, None),  # divides by 8, below
    "Cohere": Shape(0.0625, None),  # multiplies by 1 / 16
    "Phi": Shape(1.0, None),  # a bias
    "Bloom": Shape(1.0, None),  # an old forward
}
OPTIONS = {"Granite": {"logits_scaling": 8.0}, "Phi": {"num_key_value_heads": 2}}


def tiny(name: str, **options: Any) -> Any:
    return trainers.tiny(name, **{**OPTIONS.get(name, {}), **options})


def gradients(model: Any) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_same_gradients(model: Any, expected: list[torch.Tensor]) -> None:
    """To the rounding of float32 sums: of a row of V and over all tokens, by the largest of a tensor."""
    error = oracle.sum_error(trainers.V + BATCH["labels"].numel(), torch.float32)
    for (name, parameter), truth in zip(model.named_parameters(), expected, strict=True):
        difference = (parameter.grad - truth).abs().max() if parameter.grad is not None else truth.abs().max()
        assert float(difference) <= error * max(float(truth.abs().max()), 1.0), name


@pytest.mark.parametrize("name", SHAPES)
def test_the_loss_and_its_gradient_are_those_of_the_models_own_logits(name: str) -> None:
    model = tiny(name)
    assert read_shape(model, model.get_output_embeddings()) == SHAPES[name]
    loss = trainers.true_loss(model, BATCH, "prompt")
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    patch(model, "prompt")
    found = model(**BATCH)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(loss.item(), rel=oracle.LOSS)
    assert found.logits.shape == (*BATCH["labels"].shape, 0)
    assert_same_gradients(model, expected)


def test_a_mixture_of_experts_keeps_its_auxiliary_loss() -> None:
    options = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.1}
    before = tiny("Mixtral", **options)
    plain = before(**{name: value for name, value in BATCH.items() if name != "prompt"})
    loss = trainers.true_loss(before, BATCH, "prompt") + 0.1 * plain.aux_loss
    loss.backward()
    model = patch(tiny("Mixtral", **options), "prompt")
    found = model(**BATCH)
    found.loss.backward()
    assert found.aux_loss.item() == plain.aux_loss.item() > 0
    assert found.loss.item() == pytest.approx(loss.item(), rel=oracle.LOSS)
    assert_same_gradients(model, gradients(before))


def test_a_tied_head_gets_both_gradients() -> None:
    before = tiny("Llama", tie_word_embeddings=True)
    trainers.true_loss(before, BATCH, "prompt").backward()
    model = patch(tiny("Llama", tie_word_embeddings=True), "prompt")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model(**BATCH).loss.backward()
    assert_same_gradients(model, gradients(before))


def test_without_labels_and_in_evaluation_a_patched_model_gives_its_own_logits() -> None:
    model = tiny("Llama").eval()
    inputs = {"input_ids": BATCH["input_ids"], "attention_mask": BATCH["attention_mask"]}
    expected = model(**inputs).logits
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    patch(model, "prompt")
    assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(model(**BATCH).logits, expected)
    assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), generated)
    assert model(**BATCH, skip_logits=True).logits.shape[-1] == 0
    assert model(**BATCH).loss.item() == pytest.approx(model(**BATCH, skip_logits=True).loss.item(), rel=oracle.LOSS)


def test_unpatch_leaves_nothing() -> None:
    model = tiny("Llama")
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    hooks = len(model.model._forward_pre_hooks)
    for normalize in ("token", "prompt"):  # patched twice, taken back once
        patch(model, normalize)
    assert unpatch(model) is model
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys(), name
    assert len(model.model._forward_pre_hooks) == hooks
    assert model.loss_function.__name__ == "ForCausalLMLoss"
    assert model(**{name: value for name, value in BATCH.items() if name != "prompt"}).logits.shape[-1] == trainers.V
    with pytest.raises(ValueError, match=r"^transformers.unpatch: model must be patched, got one that is not$"):
        unpatch(model)


def test_a_copy_is_a_patched_model_of_its_own() -> None:
    model = patch(tiny("Llama"), "prompt")
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.lm_head.weight)
    other(**BATCH).loss.backward()
    assert model.lm_head.weight.grad is None and other.lm_head.weight.grad is not None
    assert other(**BATCH).loss.item() == pytest.approx(float(torch.tensor(float(trainers.V)).log()), rel=oracle.LOSS)
    unpatch(other)
    assert model(**BATCH).logits.shape[-1] == 0


def test_a_saved_model_is_one_of_transformers(tmp_path: Any) -> None:
    model = patch(tiny("Llama"), "prompt")
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and loaded.loss_function.__name__ == "ForCausalLMLoss"
    for (name, p), (_, q) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(p, q), name


# Refused


def test_models_whose_loss_would_be_another_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^transformers.patch: normalize must be one of token, .*, got 'tokens'$"):
        patch(tiny("Llama"), "tokens")
    with pytest.raises(ValueError, match=r"must be a PreTrainedModel that is not wrapped yet, got DataParallel$"):
        patch(torch.nn.DataParallel(tiny("Llama")), "prompt")
    model = tiny("Llama")
    model.loss_function = torch.nn.functional.cross_entropy
    with pytest.raises(ValueError, match=r"must have the loss ForCausalLMLoss, got cross_entropy of LlamaForCausalLM$"):
        patch(model, "prompt")
    with pytest.raises(ValueError, match=r"^transformers.patch: model must have the loss"):
        patch(transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=9, d_model=8, d_ff=8)), "prompt")
    with pytest.raises(ValueError, match="label_smoothing"):
        patch(tiny("Llama"), "prompt", label_smoothing=2.0)


def test_a_forward_of_unknown_shape_is_refused_unless_the_loss_is_of_logits() -> None:
    class Squared(transformers.LlamaForCausalLM):
        def forward(self, input_ids: Any = None, labels: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
            hidden = self.model(input_ids, attention_mask).last_hidden_state
            logits = self.lm_head(hidden) ** 2
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs) if labels is not None else None
            return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)

    torch.manual_seed(0)
    model = Squared(transformers.LlamaConfig(**trainers.SIZES))
    with pytest.raises(ValueError, match=r"unless fused=False, got Squared: its forward changes logits by more than"):
        patch(model, "prompt")
    expected = trainers.true_loss(model, BATCH, "prompt").item()
    assert patch(model, "prompt", fused=False)(**BATCH).loss.item() == pytest.approx(expected, rel=oracle.LOSS)


def test_replicas_of_a_patched_model_are_refused() -> None:
    model = patch(tiny("Llama"), "prompt")
    with pytest.raises(ValueError, match=r"^transformers.patch: model must not be in DataParallel"):
        model._replicate_for_data_parallel()


def test_batches_that_do_not_fit_are_refused() -> None:
    model = patch(tiny("Llama"), "prompt")
    without = {name: value for name, value in BATCH.items() if name != "prompt"}
    with pytest.raises(ValueError, match=r"^transformers.patch: a batch must have prompt \[R\] under 'prompt'"):
        model(**without)
    with pytest.raises(ValueError, match=r"^transformers.patch: shift_labels must be None"):
        model(**BATCH, shift_labels=BATCH["labels"])
    with pytest.raises(ValueError, match=r"patch the model before its Trainer is made, got 7$"):
        model(**BATCH, num_items_in_batch=7)
    packed = trainers.collate(ROWS, layout="padding_free")
    with pytest.raises(ValueError, match=r"must have response_offsets where position_ids restart, got None$"):
        model(**{name: value for name, value in packed.items() if name != "response_offsets"})
    with pytest.raises(ValueError, match=r"^transformers.patch: labels must reach the model in training"):
        model(**{name: value for name, value in BATCH.items() if name != "labels"})
    with pytest.warns(UserWarning, match="this is not the loss of 'prompt'$"):
        model(input_ids=BATCH["input_ids"])


def test_a_forward_that_somebody_replaces_is_noticed_in_training_and_in_evaluation(tmp_path: Any) -> None:
    """Liger's stands in for the model's when training begins, and takes the loss with it."""
    liger = pytest.importorskip("liger_kernel.transformers", reason="liger-kernel is not installed")
    replace = {"rope": False, "rms_norm": False, "swiglu": False, "fused_linear_cross_entropy": True}
    model = tiny("Llama")
    liger.apply_liger_kernel_to_llama(model=model, **replace)
    with pytest.raises(ValueError, match=r"must have the forward of its class, got one of liger_kernel"):
        patch(model, "prompt")
    model = patch(tiny("Llama"), "token")
    liger.apply_liger_kernel_to_llama(model=model, **replace)
    for training in (True, False):
        with pytest.raises(ValueError, match=r"must keep the forward that it was given, got one of liger_kernel"):
            model.train(training)(**BATCH)
    with pytest.raises(ValueError, match=r"^transformers.Trainer: use_liger_kernel must be False"):
        Trainer(tiny("Llama"), trainers.arguments(tmp_path, 1, 1, use_liger_kernel=True), normalize="prompt")


def test_a_head_inside_an_adapter_is_refused_unless_the_loss_is_of_logits() -> None:
    peft = pytest.importorskip("peft", reason="the train extra is not installed")

    def adapted(model: Any, **options: Any) -> Any:
        return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))

    for options in ({"target_modules": ["lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}):
        with pytest.raises(ValueError, match=r"the head must be one plain Linear, unless fused=False"):
            patch(adapted(tiny("Llama"), **options), "prompt")
        model = adapted(patch(tiny("Llama"), "prompt"), **options)
        with pytest.raises(ValueError, match=r"the head must be the one that was patched, unless fused=False"):
            model(**BATCH)
        model = patch(adapted(tiny("Llama"), **options), "prompt", fused=False)
        expected = trainers.true_loss(adapted(tiny("Llama"), **options), BATCH, "prompt").item()
        assert model(**BATCH).loss.item() == pytest.approx(expected, rel=oracle.LOSS)


@pytest.mark.parametrize("is_first", [True, False])
def test_an_adapter_on_attention_learns_as_it_would_from_logits(is_first: bool) -> None:
    """Patched before or after the adapter."""
    peft = pytest.importorskip("peft", reason="the train extra is not installed")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)

    def adapted(model: Any) -> Any:
        torch.manual_seed(1)
        return peft.get_peft_model(model, config)

    before = adapted(tiny("Llama"))
    trainers.true_loss(before, BATCH, "prompt").backward()
    model = adapted(patch(tiny("Llama"), "prompt")) if is_first else patch(adapted(tiny("Llama")), "prompt")
    model(**BATCH).loss.backward()
    assert model.get_base_model().lm_head.weight.grad is None
    assert_same_gradients(model, gradients(before))


def test_a_version_outside_of_those_tested_warns_once(monkeypatch: Any) -> None:
    monkeypatch.setattr(versions, "_warned", set())
    for version, is_inside in (("5.24.3", True), ("4.1.0", False), ("6.0.0", False)):
        monkeypatch.setattr("importlib.metadata.version", lambda _, found=version: found)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            versions.warn_outside("transformers")
            versions.warn_outside("transformers")
        versions._warned.clear()
        assert len(said) == (0 if is_inside else 1)


def test_the_example_of_the_page_prints_what_it_says() -> None:
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(patch) or "", {}, "patch", None, None)
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0


def test_readme_names_the_versions_that_were_tested() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for library, name in (("transformers", "transformers"), ("lightning", "Lightning")):
        oldest, newest = (version.rpartition(".")[0] for version in versions.TESTED[library])
        assert f"{name} {oldest} to {newest}" in readme
