"""K responses that share one pass over their prompt get what K rows of their own get, as claims."""

from __future__ import annotations

import doctest
import inspect
import itertools
import pickle
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the train extra is not installed")

import transformers
from torch.nn.attention.flex_attention import create_mask, flex_attention

from mrtkern.integrations.prefix import PrefixCollator, blocks, cpu, plain
from mrtkern.integrations.prefix.attention import NAME, prefix_attention_forward
from mrtkern.integrations.prefix.layout import Layout, is_layout
from tests.tools import oracle, prefixes, tokens

LAYOUT = Layout(((6, 6, 4, 9), (0, 2, 5), (11, 3), (2, 7, 1, 7, 7), (1, 2, 2)))
WINDOWS = (None, 1, 2, 3, 5, 8, 40)
every_window = pytest.mark.parametrize("window", WINDOWS)


def seen(layout: Layout, window: int | None) -> torch.Tensor:
    """[T, T] bool, by the definition: a segment is its prefix and itself, one token after the other."""
    T = layout.num_tokens
    mask = torch.zeros(T, T, dtype=torch.bool)
    start = 0
    for prefix, *segments in layout.prompts:
        before = list(range(start, start + prefix))
        ends = itertools.accumulate(segments, initial=start + prefix)
        for first, end in [(start, start), *itertools.pairwise(ends)]:
            sequence = before + list(range(first, end))
            for i, q in enumerate(sequence):
                mask[q, sequence[max(0, i + 1 - window) if window else 0 : i + 1]] = True
        start += prefix + sum(segments)
    return mask


def heads(layout: Layout, H: int = 4, kept: int = 2, D: int = 8) -> list[torch.Tensor]:
    """q [1, H, T, D], k and v [1, H_kv, T, D], float64."""
    g = torch.Generator().manual_seed(0)
    shapes = [(1, H, layout.num_tokens, D), *[(1, kept, layout.num_tokens, D)] * 2]
    return [torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes]


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """All scores of all tokens."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return ((q @ k.mT * scale).masked_fill(~mask, -torch.inf)).softmax(-1) @ v


# Batches


def test_a_row_holds_every_prompt_once_and_forks_one_token_early() -> None:
    collate = PrefixCollator(None, prefixes.tiny("Llama"))
    batch = collate([{"prompt": [3, 4, 5], "responses": [[6, 7], [8]]}, {"prompt": [9], "responses": [[], [6]]}])
    assert batch["input_ids"].tolist() == [[3, 4, 5, 6, 7, 5, 8, 9, 9, 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 0, 1]]
    none = prefixes.IGNORE
    assert batch["labels"].tolist() == [[none, none, none, 6, 7, none, 8, none, none, 6]]
    assert batch["response_offsets"].tolist() == [0, 5, 7, 8, 10]
    assert batch["prompt"].tolist() == [0, 0, 1, 1]


def test_a_batch_is_whole_numbers_and_its_mask_counts_its_tokens() -> None:
    batch = PrefixCollator(None, prefixes.tiny("Llama"))(prefixes.rows())
    assert {x.dtype for x in batch.values()} == {torch.int64}
    assert int(batch["attention_mask"].sum()) == batch["input_ids"].numel()


def test_labels_of_a_response_lie_between_its_offsets_behind_one_that_is_ignored() -> None:
    rows = prefixes.rows()
    batch = PrefixCollator(None, prefixes.tiny("Llama"))(rows)
    labels, offsets = batch["labels"][0], batch["response_offsets"].tolist()
    assert offsets[0] == 0 and offsets[-1] == len(labels)
    parts = [labels[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    assert [part[0] for part in parts] == [prefixes.IGNORE] * len(parts)
    found = [[label for label in part if label != prefixes.IGNORE] for part in parts]
    assert found == [response for row in rows for response in row["responses"]]
    assert batch["prompt"].tolist() == [p for p, row in enumerate(rows) for _ in row["responses"]]


def test_text_messages_and_weights_are_read_as_by_any_collator() -> None:
    tokenizer = tokens.tokenizer()
    collate = PrefixCollator(tokenizer, prefixes.tiny("Llama"), weight="w", max_length=4)
    batch = collate([{"prompt": "cd", "responses": ["ab", "ddddd"], "w": [0.25, 0.75]}])
    assert tokenizer.decode(batch["input_ids"][0]).replace(" ", "") == "<s>cdabdd"
    assert batch["response_weight_bits"].view(torch.float64).tolist() == [0.25, 0.75]


def test_a_row_that_cannot_be_read_is_refused_by_name() -> None:
    collate = PrefixCollator(None, prefixes.tiny("Llama"))
    with pytest.raises(ValueError, match=r"^PrefixCollator: column 'prompt' must .* in row 1 of the batch$"):
        collate([{"prompt": [3], "responses": [[4]]}, {"prompt": [], "responses": [[4]]}])


def test_a_batch_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^PrefixCollator: rows must be one at least, got none$"):
        PrefixCollator(None, prefixes.tiny("Llama"))([])


def test_a_collator_goes_to_other_processes_without_its_model() -> None:
    made = pickle.dumps(PrefixCollator(None, prefixes.tiny("Llama")))
    assert len(made) < 1000
    assert pickle.loads(made)(prefixes.rows()).keys() >= {"input_ids", "attention_mask"}


def test_a_layout_survives_its_mask_and_no_attention_takes_it_for_one_of_its_own() -> None:
    for prompts in (LAYOUT.prompts, ((0, 2),), ((1, 2),), ((0, 1),), ((0, 1), (0, 1))):
        layout = Layout(prompts)
        mask = layout.mask()
        assert is_layout(mask) and Layout.of(mask) == layout and Layout.of(mask) is Layout.of(mask)
        scores, values = (
            torch.zeros(1, 1, layout.num_tokens, layout.num_tokens),
            torch.zeros(1, 1, layout.num_tokens, 1),
        )
        with pytest.raises(RuntimeError):
            (scores + mask).softmax(-1) @ values


def test_the_example_prints_what_it_says() -> None:
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(PrefixCollator) or "", {}, "collator", None, None)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


# The attention


@every_window
@pytest.mark.parametrize("kept", [1, 2, 4])
def test_parts_joined_by_their_sums_are_the_whole(window: int | None, kept: int) -> None:
    given = heads(LAYOUT, kept=kept)
    truth = dense(*given, seen(LAYOUT, window), 0.3)
    upstream = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = [truth, *torch.autograd.grad(truth, given, upstream)]
    out = cpu.prefix_attention(*given, LAYOUT, window, 0.3)
    found = [out, *torch.autograd.grad(out, given, upstream)]
    # together: under a window of one token no gradient reaches queries and keys
    assert prefixes.same(*(torch.cat([x.flatten() for x in values]) for values in (found, expected)))


def test_strides_of_heads_do_not_matter() -> None:
    given = heads(LAYOUT)
    upstream = torch.ones_like(given[0])
    turned = [x.detach().mT.contiguous().mT.requires_grad_() for x in given]
    out, other = (cpu.prefix_attention(*these, LAYOUT, None, 0.3) for these in (given, turned))
    assert turned[0].stride(-1) > 1 and torch.equal(out, other)
    expected = torch.autograd.grad(out, given, upstream)
    found = torch.autograd.grad(other, turned, upstream.mT.contiguous().mT)
    assert all(torch.equal(got, value) for got, value in zip(found, expected, strict=True))


@every_window
def test_a_piece_at_a_time_is_the_whole(window: int | None) -> None:
    given = heads(LAYOUT)
    options: Any = {"window": window, "scale": 0.3, "dropout": 0.0}
    out = plain.prefix_attention(*given, LAYOUT, softcap=None, **options)
    assert prefixes.same(out, dense(*given, seen(LAYOUT, window), 0.3))


@every_window
def test_blocks_let_through_what_the_definition_does(window: int | None) -> None:
    mask_mod = blocks.visible(LAYOUT, window, torch.device("cpu"))
    T = LAYOUT.num_tokens
    assert torch.equal(create_mask(mask_mod, 1, 1, T, T, device="cpu")[0, 0], seen(LAYOUT, window))


def test_flex_attention_on_blocks_is_the_whole() -> None:
    """Forward alone, which is all it has on a CPU."""
    with torch.no_grad():
        q, k, v = (x.float() for x in heads(LAYOUT))
        made = blocks.block_mask(LAYOUT, 5, q)
        assert made is blocks.block_mask(LAYOUT, 5, k)
        out = flex_attention(q, k, v, block_mask=made, scale=0.3, enable_gqa=True)
        assert prefixes.same(out, dense(q, k, v, seen(LAYOUT, 5), 0.3))


# Models


@pytest.mark.parametrize("name", ["Llama, tied head", "Qwen3, window of 4", "Gemma2, softcap and window"])
def test_loss_and_gradients_are_those_of_a_row_for_each_response(name: str) -> None:
    model = prefixes.tiny(name)
    rows = prefixes.rows()
    loss, truth = prefixes.gradients(model, prefixes.separate(rows))
    found = prefixes.gradients(model, PrefixCollator(None, model)(rows))
    assert prefixes.same(found[0], loss)
    assert prefixes.largest_difference(found[1], truth) <= oracle.SHARED[torch.float32]


def test_order_of_prompts_and_neighbours_change_no_token() -> None:
    """What a prompt's tokens see does not depend on what else lies in the row."""
    model = prefixes.tiny("Llama")
    collate, rows = PrefixCollator(None, model), prefixes.rows()
    with torch.no_grad():
        whole = model(**collate(rows)).logits[0]
        alone = torch.cat([model(**collate([row])).logits[0] for row in rows])
    assert prefixes.same(whole, alone)


def test_rows_without_a_layout_are_read_as_ever() -> None:
    """Evaluation and generation: the same attention, padding masks and windows included."""
    for name in ("Llama", "Gemma2, softcap and window"):
        model = prefixes.tiny(name).eval()
        batch = prefixes.separate(prefixes.rows())
        prompt = batch["input_ids"][:1, :4]
        with torch.no_grad():
            logits, said = model(**batch).logits, model.generate(prompt, max_new_tokens=6, do_sample=False)
            PrefixCollator(None, model)
            assert model.config._attn_implementation == NAME
            is_token = batch["attention_mask"].bool()
            assert prefixes.same(model(**batch).logits[is_token], logits[is_token])
            assert torch.equal(model.generate(prompt, max_new_tokens=6, do_sample=False), said)


def test_dropout_draws_for_a_prompt_once() -> None:
    model = prefixes.tiny("Llama", attention_dropout=0.5)
    batch = PrefixCollator(None, model)(prefixes.rows())
    losses = [float(model(**batch).loss) for _ in range(2)]
    assert losses[0] != losses[1]
    model.eval()
    assert float(model(**batch).loss) == float(model(**batch).loss)


# What is refused


REFUSED = {
    "linear_attention in Qwen3NextForCausalLM": lambda: transformers.Qwen3NextForCausalLM(
        transformers.Qwen3NextConfig(**prefixes.SIZES, num_experts=2, num_experts_per_tok=1)
    ),
    "linear_attention in MambaForCausalLM": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=prefixes.V, hidden_size=8, num_hidden_layers=1)
    ),
    "a state runs on from response to response, got RwkvForCausalLM": lambda: transformers.RwkvForCausalLM(
        transformers.RwkvConfig(vocab_size=prefixes.V, hidden_size=8, num_hidden_layers=2, context_length=16)
    ),
    "take its positions from position_ids, got BloomForCausalLM": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=prefixes.V, hidden_size=8, n_layer=1, n_head=2)
    ),
    "without cross-attention": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=prefixes.V, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    ),
    "read text alone, .*, got Gemma3ForConditionalGeneration": lambda: transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(text_config=prefixes.SIZES, vision_config={"num_hidden_layers": 0})
    ),
    "have no attention sinks, .*, got GptOssForCausalLM": lambda: transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**prefixes.SIZES, num_local_experts=2, num_experts_per_tok=1)
    ),
    "output_router_logits=False": lambda: prefixes.tiny("Mixtral", output_router_logits=True),
    "be the model itself, which its trainer wraps, got DataParallel": lambda: torch.nn.DataParallel(
        prefixes.tiny("Llama")
    ),
    "be a model of transformers, got Linear": lambda: torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_model_that_would_not_be_exact_is_refused_with_the_reason(said: str) -> None:
    model = REFUSED[said]()
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    with pytest.raises(ValueError, match=f"^PrefixCollator: model must .*{said}"):
        PrefixCollator(None, model)
    assert getattr(getattr(model, "config", None), "_attn_implementation", None) == before


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_batch_under_another_attention_is_an_error(attention: str) -> None:
    """Never an answer: eager attention would add a bool mask, torch's would read the positions as packing."""
    model = prefixes.tiny("Llama")
    batch = PrefixCollator(None, model)(prefixes.rows())
    model.set_attn_implementation(attention)
    with pytest.raises(RuntimeError):
        model(**batch)


def test_a_batch_that_was_split_is_refused() -> None:
    model = prefixes.tiny("Llama")
    batch = PrefixCollator(None, model)(prefixes.rows())
    half = {name: batch[name][:, :20] for name in ("input_ids", "position_ids")}
    with pytest.raises(ValueError, match=r"^PrefixCollator: a batch must reach the attention whole, .* got 1 x 20 "):
        model(**half, attention_mask=batch["attention_mask"])


def test_what_changes_scores_beside_the_mask_is_refused_in_every_row() -> None:
    """Learnt by the attention alone, as when a model hands it to some layers."""
    model = prefixes.tiny("Llama")
    q, k, v = (x[:, :2] for x in heads(LAYOUT))
    for mask in (LAYOUT.mask(), None):
        with pytest.raises(ValueError, match=r"^PrefixCollator: attention must be free of attention sinks, got s_aux "):
            prefix_attention_forward(model.model.layers[0].self_attn, q, k, v, mask, s_aux=torch.zeros(2))
