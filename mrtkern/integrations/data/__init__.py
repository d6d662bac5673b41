"""From datasets to batches: rows read into tokens, collated with the number of their prompt, prompts kept whole."""

from mrtkern.integrations.data.collator import ResponseCollator, weights_of
from mrtkern.integrations.data.rows import TokenRow, read_row
from mrtkern.integrations.data.sampler import PromptBatchSampler
from mrtkern.integrations.data.tokenized import TokenizedCollator

__all__ = ["PromptBatchSampler", "ResponseCollator", "TokenRow", "TokenizedCollator", "read_row", "weights_of"]
