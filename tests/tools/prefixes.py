"""What the tests of the shared prefix compare: tiny models of every kind, ragged prompts, and a row for each response.

The truth knows nothing of mrtkern: one padded batch, the prompt before every response, transformers' own attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tools import oracle

V, IGNORE = 61, oracle.IGNORE
NOISE = 0.1  # five times an initialisation's: attention that prefers some tokens, sums that stay well conditioned
SIZES = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


def _turned(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": kind, "factor": 2.0, **options}}


SHORT = 8  # fewer positions than the longest sequence below has
# name -> class of transformers, options; windows are shorter than prompts, than responses, or both
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama, tied head": ("Llama", {"tie_word_embeddings": True}),
    "Llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama, linear RoPE": ("Llama", _turned("linear")),
    "Llama, dynamic RoPE": ("Llama", {"max_position_embeddings": SHORT, **_turned("dynamic")}),
    "Llama, yarn": ("Llama", _turned("yarn", original_max_position_embeddings=SHORT)),
    "Llama, llama3 RoPE": (
        "Llama",
        _turned("llama3", original_max_position_embeddings=SHORT, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Mistral, window of 5": ("Mistral", {"sliding_window": 5}),
    "Mistral, window of 2": ("Mistral", {"sliding_window": 2}),
    "Qwen2": ("Qwen2", {}),
    "Qwen2, window of 3 in one layer": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "Qwen3": ("Qwen3", {}),
    "Qwen3, window of 4": ("Qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
    "Gemma2, softcap and window": ("Gemma2", {"sliding_window": 4, "attn_logit_softcapping": 2.0}),
    "Gemma3, window": ("Gemma3", {"sliding_window": 4}),
    "Mixtral": ("Mixtral", {}),
    "DeepseekV3, values narrower than keys": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
            "v_head_dim": 6, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
            "moe_intermediate_size": 8, "first_k_dense_replace": 1,
        },
    ),
    "GPT2": (
        "GPT2",
        {"n_embd": 16, "n_head": 4, "n_layer": 2, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    ),
}  # fmt: skip


def tiny(name: str, **options: Any) -> Any:
    """A model with the same numbers every time, in training, whose attention is transformers' plainest."""
    kind, own = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")
    given = {**SIZES, **own, **options} if kind != "GPT2" else {"vocab_size": V, "n_positions": 64, **own, **options}
    made = transformers.AutoModelForCausalLM.from_config(config(**given))
    made.set_attn_implementation("eager")
    with torch.no_grad():  # far from the tiny numbers of an initialisation, with which all tokens see alike
        for p in made.parameters():
            p.add_(torch.randn_like(p) * NOISE)
    return made.train()


# lengths of a prompt and of its responses: ragged, one token, K = 1, an empty response, neighbours of equal length
LENGTHS = ((7, (5, 3, 8)), (1, (1, 4)), (12, (2,)), (3, (6, 0, 6, 6)), (2, (1, 1)))


def rows(lengths: Sequence[tuple[int, Sequence[int]]] = LENGTHS, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with their responses, as token ids."""
    g = torch.Generator().manual_seed(seed)

    def tokens(length: int) -> list[int]:
        return torch.randint(3, V, (length,), generator=g).tolist()

    return [{"prompt": tokens(P), "responses": [tokens(R) for R in responses]} for P, responses in lengths]


def separate(given: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """A row for each response, the prompt before it, padded on the right."""
    pairs = [(row["prompt"], response) for row in given for response in row["responses"]]
    L = max(len(prompt) + len(response) for prompt, response in pairs)

    def padded(parts: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([part + [filler] * (L - len(part)) for part in parts])

    return {
        "input_ids": padded([prompt + response for prompt, response in pairs], 0),
        "attention_mask": padded([[1] * (len(prompt) + len(response)) for prompt, response in pairs], 0),
        "labels": padded([[IGNORE] * len(prompt) + response for prompt, response in pairs], IGNORE),
    }


def gradients(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss as the model defines it, and the gradient of every parameter that has one."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def largest_difference(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """Of any gradient in norm, relative to its own; one that rounding alone made counts by the largest of all."""
    assert found.keys() == truth.keys()
    largest = max(float(g.norm()) for g in truth.values())
    return max(float((found[n] - g).norm() / max(float(g.norm()), NOTHING * largest)) for n, g in truth.items())


def same(found: Tensor, truth: Tensor) -> bool:
    """Equal but for the roundings of sums in another order."""
    assert found.shape == truth.shape
    return float((found - truth).abs().max()) <= oracle.SHARED[found.dtype] * float(truth.abs().max())


NOTHING = 1e-3  # of the largest gradient: biases of keys, which no softmax feels, have only roundings
