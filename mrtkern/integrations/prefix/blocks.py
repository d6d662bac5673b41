"""The shared prefix as FlexAttention takes it: which keys a query sees, by index alone.

A token sees those of its own piece up to itself and those of its prefix, in a window all less than its width before it.
Blocks of the mask without such a pair are skipped on a device, so that no score is computed for other responses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from mrtkern.integrations.prefix.layout import Layout

MaskMod = Callable[[Any, Any, Any, Any], Any]
NARROWEST = 16  # features of a head that FlexAttention's kernels take


def visible(layout: Layout, window: int | None, device: torch.device) -> MaskMod:
    """mask_mod of FlexAttention: whether the query at an index of the row sees the key at another."""
    own, first, behind = (torch.empty(layout.num_tokens, dtype=torch.int64, device="cpu") for _ in range(3))
    for run in (*layout.prefixes, *layout.segments):
        tokens = slice(run.start, run.end)
        starts = torch.arange(run.start, run.end, run.length, dtype=torch.int64, device="cpu")
        own[tokens] = starts.repeat_interleave(run.length)
        first[tokens], behind[tokens] = run.prefix_start, run.prefix_start + run.prefix
    own, first, behind, position = (x.to(device) for x in (own, first, behind, layout.positions()))

    def mask_mod(batch: Any, head: Any, q: Any, k: Any) -> Any:
        mine = (k <= q) & (k >= own[q])
        seen = mine | ((k >= first[q]) & (k < behind[q]))
        return seen if window is None else seen & (position[k] > position[q] - window)

    return mask_mod


def block_mask(layout: Layout, window: int | None, like: Tensor) -> BlockMask:
    """For rows of this layout; made once for all layers with this window."""
    key = (window, like.device)
    if key not in layout.blocks:
        T = layout.num_tokens
        mask_mod = visible(layout, window, like.device)
        layout.blocks[key] = create_block_mask(mask_mod, None, None, T, T, device=like.device, _compile=like.is_cuda)
    made: BlockMask = layout.blocks[key]
    return made
