"""Which rollouts of a generation batch are trained on: K of the N of every prompt, as rows that each rank can split.

    rows of all ranks, N a prompt  →  kept rows, K a prompt  →  the same number on each rank, a multiple of the steps

Ranks decide from the same gathered numbers, so they decide the same. A prompt with fewer than K rollouts that count
(with a reward and a token that is not masked) keeps others in their place; rows that only fill up are copies without a
token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import mrtkern as mk

OP = "GRPOTrainer"
WITHOUT_EMBEDDINGS = ("random", "reward", "max_variance")  # methods that compare no completions
BUCKETS = 512  # of hashed n-grams
MULTIPLIERS = (0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64)  # odd: a product with one permutes 64 bits


class Kept(NamedTuple):
    """What is trained on."""

    ids: Tensor  # [P, K] rows of all ranks, ascending in each prompt
    counts: Tensor  # [P, K] bool: with a reward and a token
    share: Tensor  # [P, K] of the prompt's rollouts for which it stands; 1 / K but for stratified
    effective_k: Tensor  # [P] picks that added something to the objective


def token_features(completions: Sequence[Sequence[int]]) -> Tensor:
    """[n, 512] float32: how often each token and each two in a row occur, hashed into signed buckets.

    Cosines compare what completions say in the same words and in the same order, without a model. The same on every
    rank and machine.
    """
    lengths = [len(ids) for ids in completions]
    flat = torch.tensor([token for ids in completions for token in ids], dtype=torch.int64, device="cpu")
    row = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.int64, device="cpu"))
    pairs = (row[1:] == row[:-1]).nonzero()[:, 0]
    grams = torch.cat([flat + 1, (flat[pairs] + 1) * MULTIPLIERS[1] + flat[pairs + 1] + 1])
    mixed = grams * MULTIPLIERS[0]
    mixed = (mixed ^ (mixed >> 29)) * MULTIPLIERS[1]
    bucket, sign = (mixed >> 40) % BUCKETS, ((mixed >> 33) & 1) * 2.0 - 1
    index = torch.cat([row, row[pairs]]) * BUCKETS + bucket
    features = torch.zeros(len(lengths) * BUCKETS, dtype=torch.float32, device="cpu")
    return features.index_add_(0, index, sign.float()).view(len(lengths), BUCKETS)


def as_matrix(found: Any, n: int) -> Tensor:
    """What `embeddings` returned, checked."""
    matrix = found.detach() if isinstance(found, Tensor) else torch.from_numpy(np.asarray(found))
    if matrix.ndim != 2 or len(matrix) != n or not matrix.is_floating_point():
        shape = f"{list(matrix.shape)} of {matrix.dtype}"
        raise ValueError(f"{OP}: embeddings must return floats [{n}, D], one row per completion, got {shape}")
    return matrix


def keep(
    embeddings: Tensor, reward: Tensor, tokens: Tensor, N: int, K: int, *, key: int, **options: Any
) -> Kept:  # fmt: skip
    """K of the N rows of every prompt; embeddings [P N, D], reward [P N] with NaN where there is none, tokens [P N]."""
    P = len(reward) // N
    is_candidate = ~reward.isnan() & (tokens > 0)
    rows = is_candidate.nonzero()[:, 0]
    offsets = torch.zeros(P + 1, dtype=torch.int64, device=reward.device)
    offsets[1:] = is_candidate.view(P, N).sum(1).cumsum(0)
    numbers = torch.arange(P, dtype=torch.int64, device=reward.device)
    picks = mk.select_responses(
        embeddings[rows], offsets, K, reward=reward[rows], group_key=numbers + key * P, **options
    )
    assert picks.offsets is not None
    prompt = torch.repeat_interleave(picks.offsets.diff())
    order = torch.full((P, N), 2 * N, dtype=torch.int64, device=reward.device)  # kept first, then those that fill up
    order += torch.arange(N, dtype=torch.int64, device=reward.device)
    chosen = rows[picks.ids]
    order.view(-1)[chosen] -= 2 * N
    share = torch.zeros(P * N, dtype=torch.float32, device=reward.device)
    each = 1.0 / picks.offsets.diff().clamp(min=1)[prompt]
    share[chosen] = each.float() if picks.share is None else picks.share
    first = order.argsort(1)[:, :K].sort(1).values + N * numbers[:, None]  # [P, K]
    is_kept = torch.zeros(P * N, dtype=torch.bool, device=reward.device).index_fill_(0, chosen, True)
    return Kept(first, is_kept[first], share[first], picks.effective_k)


def dealt(ids: Tensor, world_size: int, steps: int) -> Tensor:
    """Rows of each rank [W, n], n a multiple of `steps`; -1 fills up. Ranks keep the order of the rows."""
    flat = ids.reshape(-1)
    each = -(-len(flat) // world_size)
    n = -(-each // steps) * steps
    table = torch.full((world_size, n), -1, dtype=torch.int64, device=flat.device)
    padded = torch.full((world_size * each,), -1, dtype=torch.int64, device=flat.device)
    padded[: len(flat)] = flat
    table[:, :each] = padded.view(world_size, each)
    return table


def subset(output: dict[str, Any], rows: Tensor, num_rows: int) -> dict[str, Any]:
    """The rows of a generation batch; where -1 stands, a copy of row 0 without a token."""
    found: dict[str, Any] = {}
    for name, value in output.items():
        if isinstance(value, Tensor) and value.ndim and len(value) == num_rows:
            found[name] = value[rows.clamp(min=0)]
        elif isinstance(value, list) and len(value) == num_rows:
            found[name] = [value[i] for i in rows.clamp(min=0).tolist()]
        else:
            found[name] = value
    found["completion_mask"] = torch.where(rows[:, None] < 0, 0, found["completion_mask"])
    return found


def trimmed(output: dict[str, Any], multiple: int | None) -> dict[str, Any]:
    """Without the columns that are padding in every row that is left."""
    step = multiple or 1
    sizes = {part: output[f"{part}_mask"].shape[1] for part in ("prompt", "completion")}
    used = {}
    for part, size in sizes.items():
        is_used = output[f"{part}_mask"].any(0)
        is_used = is_used.flip(0) if part == "prompt" else is_used  # prompts are padded on their left
        last = int(is_used.nonzero().max()) + 1 if bool(is_used.any()) else 1
        used[part] = min(size, -(-last // step) * step)
    found = dict(output)
    for name, value in output.items():
        if not isinstance(value, Tensor) or value.ndim != 2:
            continue
        if name in ("prompt_ids", "prompt_mask"):
            found[name] = value[:, sizes["prompt"] - used["prompt"] :]
        elif value.shape[1] == sizes["completion"]:
            found[name] = value[:, : used["completion"]]
    return found


def exchanged(output: dict[str, Any], accelerator: Any, pad_token_id: int) -> dict[str, Any]:
    """The rows of every rank, each as long as the longest."""
    found: dict[str, Any] = {}
    for name, value in output.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            found[name] = value
            continue
        if value.ndim > 1:
            fill, is_prompt = pad_token_id if name.endswith("_ids") else 0, name.startswith("prompt_")
            value = accelerator.pad_across_processes(value, dim=1, pad_index=fill, pad_first=is_prompt)
        found[name] = accelerator.gather(value)
    return found


Embeddings = Callable[[list[Any]], Any]
