"""The attention that transformers calls: over a shared prefix where a row says so, torch's own anywhere else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mrtkern.integrations.prefix import blocks, cpu, plain
from mrtkern.integrations.prefix.layout import Layout, is_layout

NAME = "mrtkern_prefix"
# What a model may hand to its attention beside the mask that changes the scores, and that no form here computes.
UNKNOWN = {"s_aux": "attention sinks", "position_bias": "a bias of positions", "indices": "sparse keys"}


def prefix_attention_forward(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, softcap: float | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D], and no weights."""
    for name, what in UNKNOWN.items():
        if others.get(name) is not None:
            raise ValueError(
                f"PrefixCollator: attention must be free of {what}, got {name} from {type(module).__name__}"
            )
    how = _shared if is_layout(attention_mask) else _ordinary
    return how(module, query, key, value, attention_mask, dropout, scaling, softcap=softcap, **others), None


@torch.compiler.disable  # every batch has another layout: traced, each would be compiled anew
def _shared(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor,
    dropout: float, scaling: float | None, *, softcap: float | None, sliding_window: int | None = None, **_: Any,
) -> Tensor:  # fmt: skip
    """A row with a layout, by the form that its device and its types allow."""
    layout = Layout.of(mask)
    _check(module, query, key, layout, sliding_window)
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    elif not query.dtype == key.dtype == value.dtype:
        query, key = query.to(value.dtype), key.to(value.dtype)
    D = query.shape[-1]
    scale = D**-0.5 if scaling is None else scaling
    is_fused = not dropout and value.shape[-1] == D
    if is_fused and query.is_cuda and query.dtype != torch.float64 and D >= blocks.NARROWEST:
        made = blocks.block_mask(layout, sliding_window, query)
        out: Tensor = flex_attention_forward(module, query, key, value, made, scaling=scale, softcap=softcap)[0]
        return out
    if is_fused and query.device.type == "cpu" and softcap is None and query.dtype in cpu.TYPES:
        out = cpu.prefix_attention(query, key, value, layout, sliding_window, scale)
    else:
        out = plain.prefix_attention(
            query, key, value, layout, window=sliding_window, scale=scale, softcap=softcap, dropout=dropout
        )
    return out.transpose(1, 2).contiguous()


def _ordinary(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    dropout: float, scaling: float | None, *, softcap: float | None, **others: Any,
) -> Tensor:  # fmt: skip
    """Rows without a layout, as in generation or evaluation: torch's attention, or with a softcap all scores."""
    if softcap is None:
        out: Tensor = sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, **others)[0]
        return out
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if mask is None:
        rows, columns = query.shape[2], key.shape[2]
        mask = torch.ones((rows, columns), dtype=torch.bool, device=query.device).tril(columns - rows)
    return plain.attend(query, key, value, mask, scaling, softcap, dropout).transpose(1, 2).contiguous()


def _check(module: torch.nn.Module, query: Tensor, key: Tensor, layout: Layout, window: int | None) -> None:
    """Nothing that the layout does not describe, nor what would be left out silently."""
    shape = [query.shape[0], query.shape[2], key.shape[2]]
    if shape != [1, layout.num_tokens, layout.num_tokens]:
        raise ValueError(
            "PrefixCollator: a batch must reach the attention whole, as one row without earlier tokens, got "
            f"{shape[0]} x {shape[1]} queries and {shape[2]} keys of {layout.num_tokens} tokens"
        )
    if not getattr(module, "is_causal", True):
        raise ValueError(f"PrefixCollator: attention must be causal, got {type(module).__name__} that is not")
    config = getattr(module, "config", None)
    types = getattr(config, "layer_types", None)
    is_sliding = types[module.layer_idx] == "sliding_attention" if types else getattr(config, "sliding_window", None)
    if is_sliding and window is None:
        raise ValueError(
            "PrefixCollator: a sliding window must reach the attention, got none from "
            f"{type(module).__name__} of a layer that has one"
        )


AttentionInterface.register(NAME, prefix_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
