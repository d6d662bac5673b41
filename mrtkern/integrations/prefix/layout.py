"""How prompts and responses lie in one row, and the small tensor that carries it through a model.

    tokens   a0 a1 | a2 r r r | a2 s s | b0 | b1 t t       prompts a0 a1 a2 with responses r, s; b0 b1 with t
    mask     [[2, 4, 3, 0], [1, 3, 0, 0], [0, 0, 0, 0]]    a row for each prompt: its prefix, then its segments

A prompt's last token is not in its prefix: it begins every segment, so that the label of a response's first token
stands behind the token that predicts it, as in any other row. The tensor travels as `attention_mask` [1, 1, P + 1,
K + 2], int64: transformers hands masks of four dimensions to the attention as they are, trainers that sum a mask count
the tokens of the row, and no other attention can take it for a mask, of T x T: zeros around it keep its shape unlike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class Run:
    """`count` pieces of `length` tokens each, one behind the other from `start`; they see the prefix before them."""

    start: int
    count: int
    length: int
    prefix_start: int
    prefix: int

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.start + self.count * self.length


@dataclass(frozen=True)
class Layout:
    """Of every prompt the length of its prefix and those of its segments, in the order of the tokens."""

    prompts: tuple[tuple[int, ...], ...]
    blocks: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # what a device keeps of it

    @classmethod
    def of(cls, mask: Tensor) -> Layout:
        """What a mask says; read once for all layers, since reading waits for a device."""
        if mask not in _known:
            *rows, _ = mask[0, 0].tolist()
            _known[mask] = cls(tuple((row[0], *(length for length in row[1:] if length)) for row in rows))
        found: Layout = _known[mask]
        return found

    def mask(self) -> Tensor:
        """[1, 1, P + 1, K + 2] int64."""
        widest = max(map(len, self.prompts))
        rows = [[*prompt, *[0] * (widest + 1 - len(prompt))] for prompt in self.prompts]
        return torch.tensor([[[*rows, [0] * (widest + 1)]]], dtype=torch.int64, device="cpu")

    @cached_property
    def num_tokens(self) -> int:
        """T."""
        return sum(map(sum, self.prompts))

    @cached_property
    def prefixes(self) -> tuple[Run, ...]:
        """Those that have a token."""
        return tuple(Run(start, 1, prompt[0], start, 0) for start, prompt in self._starts() if prompt[0])

    @cached_property
    def segments(self) -> tuple[Run, ...]:
        """Neighbours of equal length together."""
        runs = []
        for start, (prefix, *lengths) in self._starts():
            at = start + prefix
            for length, equal in groupby(lengths):
                runs.append(Run(at, len(list(equal)), length, start, prefix))
                at = runs[-1].end
        return tuple(runs)

    def positions(self) -> Tensor:
        """[T] int64: those of the tokens in their prompts and responses."""
        pieces = [torch.arange(run.length, dtype=torch.int64, device="cpu") for run in self.prefixes]
        for run in self.segments:
            own = torch.arange(run.prefix, run.prefix + run.length, dtype=torch.int64, device="cpu")
            pieces.append(own.repeat(run.count))
        starts = [run.start for run in (*self.prefixes, *self.segments)]
        return torch.cat([pieces[i] for i in sorted(range(len(starts)), key=starts.__getitem__)])

    def _starts(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        start = 0
        for prompt in self.prompts:
            yield start, prompt
            start += sum(prompt)


_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def is_layout(mask: object) -> bool:
    """Whether an attention mask is one of these."""
    return isinstance(mask, Tensor) and mask.dim() == 4 and mask.dtype == torch.int64
