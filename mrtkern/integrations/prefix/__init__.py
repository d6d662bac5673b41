"""One pass over a prompt for all of its responses: a collator and the attention that reads its rows.

collator   PrefixCollator: prompts and responses into one row      layout   where they lie, as a small tensor
attention  what transformers calls, and the choice among:          refused  models that cannot be exact, and why
  cpu      torch's fused kernel on parts, joined by their sums     blocks   FlexAttention's BlockMask, for devices
  plain    a piece at a time, for softcaps and dropout
"""

from mrtkern.integrations.prefix.collator import PrefixCollator

__all__ = ["PrefixCollator"]
