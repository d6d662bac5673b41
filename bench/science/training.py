"""A small decoder trained on a benchmark: what K and the selection method do to it.

    python -m bench.science.training DATA               every run that is not done yet, then the section of SCIENCE.md
    python -m bench.science.training DATA --most 3      at most so many runs; the next call goes on
    python -m bench.science.training DATA --summary     the section alone, of the runs that are done
    python -m bench.science.training DATA --scale large --device cuda     91 M parameters (not yet run)

DATA is a folder that `python -m bench.science.benchmark` wrote. A run keeps K responses of every prompt for its data
set, once, and trains a Llama from scratch (of under 1.5 M parameters but at scale large) with the loss "prompt" through
`mrtkern.integrations.transformers.patch`; its tokenizer (BPE of bytes) is made of the training texts. A step takes 16
prompts with their K responses. Runs are compared at equal tokens (those of prompts count), random also at equal steps:
those of its K = 4. Measured, on held-out words and on words of training with all their responses, kept or not:

    nll       mean over prompts of the weighted mean over all responses of the negative log-likelihood of a token, nats
    kl        KL of the distribution over a prompt's responses (by likelihood of the whole text) from `weight`, nats
    modes     different responses among those nearest (TF-IDF) to 8 samples, over the most that 8 could hit

Every run leaves a file in --runs, by default ~/.cache/mrtkern/training, from which the section is made.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from bench import data
from mrtkern import select_responses
from mrtkern.cli.columns import group_key
from mrtkern.cli.features import tfidf_vectors
from mrtkern.integrations.data import ResponseCollator

KEPT = (1, 2, 4, 8)
K = 4  # of the methods that are compared with random
SEEDS = 3
OTHERS = ("stratified", "coverage", "quality_diversity", "additive", "reward")
WEIGHTED = ("stratified",)  # methods whose responses are weighted by the share that they stand for
SAMPLES = 8  # a prompt, for modes
BATCH = 64  # responses, of an evaluation


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    name: str
    words: int  # prompts of the benchmark that are trained on, each in all its wordings
    tokens: int  # of a run, prompts and responses: two epochs of K = 4 and more
    vocabulary: int
    hidden: int
    layers: int
    prompts: int  # of a step
    evaluated: int  # prompts, of held-out words and of words of training each
    sampled: int  # prompts, for modes
    rate: float = 2e-3


SCALES = {
    "toy": Scale("toy", 20, 3_000, 300, 16, 1, prompts=4, evaluated=4, sampled=2),
    "small": Scale("small", 175, 170_000, 1024, 96, 3, prompts=16, evaluated=60, sampled=20),
    "full": Scale("full", 1200, 1_200_000, 1024, 128, 4, prompts=16, evaluated=150, sampled=40),
    "large": Scale("large", 3600, 4_000_000, 8192, 768, 12, prompts=64, evaluated=300, sampled=100, rate=3e-4),
}


@dataclass(frozen=True)
class Run:
    """One of 36."""

    method: str
    k: int
    equal: str  # "tokens" or "steps"
    seed: int

    def name(self) -> str:
        """Of its file."""
        return f"{self.method}-{self.k}-{self.equal}-{self.seed}"


def runs() -> list[Run]:
    """All of them, a whole seed before the next one, and in it random before the others."""
    each = [Run("random", k, "tokens", 0) for k in KEPT]
    each += [Run("random", k, "steps", 0) for k in KEPT if k != K]
    each += [Run(method, K, "tokens", 0) for method in OTHERS]
    return [replace(run, seed=seed) for seed in range(SEEDS) for run in each]


class Corpus:
    """A benchmark as tokens."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        every, self.test = (pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("train", "test"))
        firsts = [row for row in every if row["template"] == 0]
        texts = [text for row in every for text in (row["prompt"], *(row["responses"] if row["template"] == 0 else ()))]
        self.tokenizer = tokenizer(texts, scale.vocabulary)
        self.end = self.tokenizer.token_to_id("<end>")
        chosen = np.random.default_rng(11).permutation(len(firsts))[: scale.words]
        firsts = [firsts[i] for i in sorted(chosen)]
        names = {row["prompt_id"] for row in firsts}
        self.train = [row for row in every if row["prompt_id"] in names]
        self.offsets = np.cumsum([0, *(len(row["responses"]) for row in firsts)])
        texts = [text for row in firsts for text in row["responses"]]
        self.x = torch.from_numpy(tfidf_vectors(pa.chunked_array([pa.array(texts)])))
        self.reward = torch.tensor([float(count) for row in firsts for count in row["count"]])
        self.number = {row["prompt_id"]: i for i, row in enumerate(firsts)}
        self.key = torch.tensor([group_key(row["prompt_id"].encode()) for row in firsts])
        self.read = self.ids(texts, ends=True)  # as tokens
        self.asked = self.ids([row["prompt"] for row in self.train], ends=False)

    def ids(self, texts: Sequence[str], *, ends: bool) -> list[list[int]]:
        """Tokens; a response has an end."""
        return [[*found.ids, self.end] if ends else found.ids for found in self.tokenizer.encode_batch(list(texts))]

    def rows(self, run: Run) -> list[dict[str, Any]]:
        """Rows for `ResponseCollator`: the responses that the method keeps, the same ones in every wording."""
        offsets = torch.from_numpy(self.offsets)
        found = select_responses(
            self.x, offsets, run.k, method=run.method, reward=self.reward, group_key=self.key, seed=run.seed
        )
        assert found.offsets is not None
        rows = []
        for row, prompt in zip(self.train, self.asked, strict=True):
            b = self.number[row["prompt_id"]]
            picked = slice(int(found.offsets[b]), int(found.offsets[b + 1]))
            ids, share = found.ids[picked].tolist(), found.share[picked].double()
            weight = share / share.sum() if run.method in WEIGHTED else torch.full_like(share, 1 / len(ids))
            rows.append({"prompt": prompt, "responses": [self.read[i] for i in ids], "weight": weight.tolist()})
        return rows


def tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """BPE of bytes; <end> is token 0 and pads too."""
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        texts, vocab_size=vocabulary, min_frequency=2, special_tokens=["<end>"], show_progress=False
    )
    return made


def decoder(scale: Scale, seed: int) -> Any:
    """A Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    heads = max(4, scale.hidden // 64)
    config = LlamaConfig(
        vocab_size=scale.vocabulary, hidden_size=scale.hidden, intermediate_size=scale.hidden * 8 // 3,
        num_hidden_layers=scale.layers, num_attention_heads=heads, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def steps(rows: Sequence[Any], scale: Scale, seed: int) -> Iterator[list[Any]]:
    """Prompts of one step after another, without end; every epoch in an order of its own."""
    rng = np.random.default_rng((9, seed))
    while True:
        order = rng.permutation(len(rows))
        for first in range(0, len(order) - scale.prompts + 1, scale.prompts):
            yield [rows[i] for i in order[first : first + scale.prompts]]


def length(rows: Sequence[Any]) -> int:
    """Tokens of a step: every response is read after its prompt."""
    return sum(len(row["responses"]) * len(row["prompt"]) + sum(map(len, row["responses"])) for row in rows)


def train(corpus: Corpus, run: Run, scale: Scale, device: str) -> tuple[Any, dict[str, float]]:
    """The trained model, and what it took."""
    from mrtkern.integrations.transformers import patch

    model = patch(decoder(scale, run.seed).to(device), "prompt")
    rows = corpus.rows(run)
    collate = ResponseCollator(weight="weight")
    counted = rows if run.equal == "tokens" else corpus.rows(replace(run, k=K))
    last = max(1, round(scale.tokens * len(counted) / (length(counted) * scale.prompts)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=scale.rate, betas=(0.9, 0.95), weight_decay=0.1)
    warm = max(1, last // 20)
    course = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / warm) * (0.55 + 0.45 * math.cos(math.pi * min(1.0, i / last)))
    )
    done, tokens, start = 0, 0, time.monotonic()
    model.train()
    for step in steps(rows, scale, run.seed):
        loss = model(**{name: value.to(device) for name, value in collate(step).items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        course.step()
        optimizer.zero_grad(set_to_none=True)
        done, tokens = done + 1, tokens + length(step)
        if done >= last:
            break
    epochs = done * scale.prompts / len(rows)
    facts = {"steps": done, "tokens": tokens, "epochs": epochs, "seconds": time.monotonic() - start}
    return model.eval(), facts | {"parameters": sum(p.numel() for p in model.parameters())}


@torch.no_grad()
def likelihoods(model: Any, corpus: Corpus, row: Any) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood [N] of every response of a prompt, and its tokens [N]."""
    prompt = corpus.ids([row["prompt"]], ends=False)[0]
    responses = corpus.ids(row["responses"], ends=True)
    nll, counts = [], []
    for first in range(0, len(responses), BATCH):
        part = responses[first : first + BATCH]
        longest = len(prompt) + max(map(len, part))
        ids = torch.zeros(len(part), longest, dtype=torch.int64)
        is_target = torch.zeros(len(part), longest, dtype=torch.bool)
        for i, response in enumerate(part):
            ids[i, : len(prompt) + len(response)] = torch.tensor(prompt + response)
            is_target[i, len(prompt) : len(prompt) + len(response)] = True
        logits = model(input_ids=ids.to(model.device)).logits[:, :-1].float().cpu()
        each = torch.nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
        nll.append((each * is_target[:, 1:]).sum(1))
        counts.append(is_target.sum(1))
    return torch.cat(nll), torch.cat(counts)


def evaluated(model: Any, corpus: Corpus, rows: Sequence[Any]) -> dict[str, float]:
    """nll and kl, means over prompts."""
    nll, kl = [], []
    for row in rows:
        total, tokens = likelihoods(model, corpus, row)
        weight = torch.tensor(row["weight"])
        nll.append(float((weight * total / tokens).sum()))
        kl.append(float((weight * (weight.log() - (-total).log_softmax(0))).sum()))
    return {"nll": float(np.mean(nll)), "kl": float(np.mean(kl))}


@torch.no_grad()
def modes(model: Any, corpus: Corpus, rows: Sequence[Any], seed: int) -> float:
    """Mean over prompts of the responses that samples are nearest to, over the most they could be."""
    torch.manual_seed(seed)
    found = []
    for row in rows:
        prompt = torch.tensor(corpus.ids([row["prompt"]], ends=False), device=model.device)
        made = model.generate(
            prompt.expand(SAMPLES, -1), attention_mask=torch.ones_like(prompt).expand(SAMPLES, -1),
            do_sample=True, max_new_tokens=40, pad_token_id=0, eos_token_id=0, top_k=0,
        )  # fmt: skip
        texts = [corpus.tokenizer.decode(ids[prompt.shape[1] :].tolist()).replace("<end>", "") for ids in made]
        both = [*row["responses"], *(text if text.strip() else "." for text in texts)]
        x = tfidf_vectors(pa.chunked_array([pa.array(both)]))
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
        N = len(row["responses"])
        near = x[N:] @ x[:N].T
        hit = {int(i) for i, best in zip(near.argmax(1), near.max(1), strict=True) if best > 0}
        found.append(len(hit) / min(SAMPLES, N))
    return float(np.mean(found))


def finished(corpus: Corpus, run: Run, scale: Scale, device: str) -> dict[str, Any]:
    """Train and measure."""
    model, facts = train(corpus, run, scale, device)
    rng = np.random.default_rng(10)  # the same prompts for all runs
    seen = [row for row in corpus.train if row["template"] == 0]
    held = [row for row in corpus.test if row["template"] == 0]
    parts = {
        name: [rows[i] for i in rng.permutation(len(rows))[: scale.evaluated]]
        for name, rows in (("held out", held), ("training", seen))
    }
    measured = {name: evaluated(model, corpus, rows) for name, rows in parts.items()}
    measured["training"]["modes"] = modes(model, corpus, parts["training"][: scale.sampled], run.seed)
    return {"run": asdict(run), "scale": scale.name, "facts": facts, "measured": measured}


def main(arguments: list[str] | None = None) -> int:
    """Run what is not done yet."""
    from bench.science import trained

    parser = argparse.ArgumentParser(
        "python -m bench.science.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--scale", choices=list(SCALES), default="full", help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=data.cached().with_name("training"), metavar="FOLDER")
    parser.add_argument("--most", type=int, metavar="N", help="runs of this call")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    args = parser.parse_args(arguments)
    scale = SCALES[args.scale]
    if args.device != "cpu":
        torch.set_float32_matmul_precision("high")
    folder = args.runs / f"{args.data.name}-{scale.name}"
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [run for run in runs() if not (folder / f"{run.name()}.json").exists()]
    if not args.summary and waiting:
        corpus = Corpus(args.data, scale)
        for run in waiting[: args.most]:
            result = finished(corpus, run, scale, args.device)
            part = folder / f"{run.name()}.part"
            part.write_text(json.dumps(result, indent=1))
            part.replace(folder / f"{run.name()}.json")
            print(run.name(), json.dumps(result["measured"]), f"{result['facts']['seconds']:.0f} s", flush=True)
    trained.write(args.data, scale, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
