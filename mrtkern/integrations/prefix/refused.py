"""Which models cannot share a prefix exactly, and why."""

from __future__ import annotations

import inspect
from typing import Any

import torch

OP = "PrefixCollator"
LAYERS = {"full_attention", "sliding_attention"}


def why_not(model: Any) -> str | None:
    """None, or why the responses of a prompt would not get what K rows of their own give them: `RULE, got VALUE`."""
    if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        return f"be the model itself, which its trainer wraps, got {type(model).__name__}"
    is_prompted = [name for name, adapter in getattr(model, "peft_config", {}).items() if adapter.is_prompt_learning]
    if is_prompted:
        return f"see no learnt tokens before each sequence, got the prompt-learning adapter {is_prompted[0]!r}"
    model = without_adapters(model)
    if not hasattr(model, "set_attn_implementation") or not hasattr(model, "config"):
        return f"be a model of transformers, got {type(model).__name__}"
    return _why_not_layers(model, model.config) or _why_not_forward(model, model.config)


def without_adapters(model: Any) -> Any:
    """The model of transformers in one of peft."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _why_not_layers(model: Any, config: Any) -> str | None:
    """Of what its layers compute."""
    name = type(model).__name__
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        return f"be a decoder without cross-attention, whose keys belong to no position of the row, got {name}"
    if config.get_text_config() is not config:
        return f"read text alone, since other inputs bring positions and masks of their own, got {name}"
    unlike = sorted(set(getattr(config, "layer_types", None) or ()) - LAYERS)
    if unlike:
        return f"have layers of full or sliding attention alone, got {', '.join(unlike)} in {name}"
    if getattr(model, "_is_stateful", False):
        return f"read tokens by attention alone, since a state runs on from response to response, got {name}"
    if not getattr(config, "is_causal", True):
        return f"be causal, got {name} with is_causal=False"
    if any(key.endswith(".sinks") for key, _ in model.named_parameters()):
        return f"have no attention sinks, which no fused attention of torch takes, got {name}"
    if getattr(config, "output_router_logits", False):
        rule = "have no auxiliary loss of its router, which would count a prompt once instead of K times"
        return f"{rule} (output_router_logits=False), got {name}"
    return None


def _why_not_forward(model: Any, config: Any) -> str | None:
    """Of what reaches its attention."""
    name = type(model).__name__
    parameters = inspect.signature(model.forward).parameters
    if "position_ids" not in parameters or getattr(config, "alibi", False):
        return f"take its positions from position_ids, got {name}"
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return f"hand keywords of a batch on to its loss, got {name}"
    if not getattr(model, "_supports_attention_backend", False) or not model._can_set_attn_implementation():
        return f"call its attention through AttentionInterface, got {name}"
    return None
