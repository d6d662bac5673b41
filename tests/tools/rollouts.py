"""TRL's GRPOTrainer on rollouts that are given: the same completions and rewards however a step is split.

Completions are lists of tokens made from their prompt and their place among its rollouts; one of token 5 alone gets no
reward, so that prompts have different numbers of rollouts that count.

The truth knows nothing of TRL and mrtkern: advantages, and the loss of a step, row by row in float64. At ratios of 1
every policy loss of TRL has the gradient of - A log p.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
import transformers
from datasets import Dataset

from tests.tools import oracle, tokens

N, C = 4, 6  # rollouts of a prompt, and the tokens of the longest
RATE = 0.1
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 2, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
UNSCORED = 5


def tiny() -> Any:
    """A model of one layer, the same numbers every time."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def completion(prompt: int, place: int) -> list[int]:
    """Of 1 to 6 tokens; of prompt 1 the last two rollouts get no reward."""
    generator = torch.Generator().manual_seed(100 * prompt + place)
    length = 1 + (3 * prompt + 5 * place) % C
    if prompt % 4 == 1 and place >= 2:
        return [UNSCORED]
    return torch.randint(7, 40, (length,), generator=generator).tolist()


def reward(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    """Any numbers, by the tokens alone."""
    return [None if ids == [UNSCORED] else float(sum(ids) * 7 % 11) for ids in completion_ids]


def given(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """A rollout function: rows come N to a prompt, over all ranks."""
    first = trainer.accelerator.process_index * len(prompts)
    found = [completion(ord(text[-1]) - ord("a"), (first + i) % N) for i, text in enumerate(prompts)]
    ids = trainer.processing_class(text=prompts)["input_ids"]
    return {"prompt_ids": ids, "completion_ids": found, "logprobs": [[0.0] * len(each) for each in found]}


def prompts(n: int = 12) -> Dataset:
    """Texts that end with a letter of their own."""
    return Dataset.from_dict({"prompt": [f"{'b' * (i % 3)}{chr(97 + i)}" for i in range(n)]})


def arguments(folder: Any, **options: Any) -> Any:
    """SGD on the CPU, and nothing that blurs a comparison."""
    from trl import GRPOConfig

    settings = {
        "output_dir": str(folder), "use_cpu": True, "optim": "sgd", "learning_rate": RATE, "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant", "num_generations": N, "max_completion_length": C, "max_steps": 3,
        "per_device_train_batch_size": 16, "report_to": [], "disable_tqdm": True, "logging_steps": 1, "bf16": False,
        "save_strategy": "no", "shuffle_dataset": False, "gradient_checkpointing": False, "seed": 3,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GRPOConfig(**{**settings, **options})


def trainer(cls: Any, folder: Any, *, config: dict[str, Any] | None = None, model: Any = None, **options: Any) -> Any:
    """A trainer on the given rollouts."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    made = {"reward_funcs": reward, "rollout_func": given, "train_dataset": prompts(), **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls(
            tiny() if model is None else model,
            args=arguments(folder, **(config or {})),
            processing_class=tokens.tokenizer(),
            **made,
        )


def parameters(model: Any) -> list[torch.Tensor]:
    """Copies."""
    return [p.detach().clone() for p in model.parameters()]


def difference(found: Any, expected: Any) -> float:
    """The largest of parameters, relative to the largest of theirs."""
    pairs = list(zip(found, expected, strict=True))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def trained(cls: Any, folder: Any, **options: Any) -> list[torch.Tensor]:
    """The parameters after the steps."""
    made = trainer(cls, folder, **options)
    made.train()
    return parameters(made.model)


def advantages(rewards: list[float | None]) -> list[float]:
    """Of the rollouts of one prompt, as scale_rewards "group" has it; 0 without a reward."""
    scored = torch.tensor([r for r in rewards if r is not None], dtype=torch.float64)
    spread = float(scored.std()) if len(scored) > 1 else 0.0
    return [0.0 if r is None else (r - float(scored.mean())) / (spread + 1e-4) for r in rewards]


def true_loss(model: Any, prompt_ids: list[list[int]], places: list[list[int]], first: int, normalize: str) -> Any:
    """Of prompts first, first + 1, … of `prompts`, of which the rollouts at `places` are trained on."""
    each: list[list[torch.Tensor]] = []
    for p, ids in enumerate(prompt_ids, first):
        rollouts = [completion(p, place) for place in range(N)]
        rewards = reward(rollouts)
        A = advantages(rewards)
        each.append([])
        for place in places[p - first]:
            if rewards[place] is not None:
                row = torch.tensor([ids + rollouts[place]])
                log_p = model(row).logits[0, len(ids) - 1 : -1].double().log_softmax(-1)
                each[-1].append(-A[place] * log_p.gather(1, row[0, len(ids) :, None])[:, 0])
    return oracle.normalized([k for k in each if k], normalize, constant=C)


def truth(normalize: str, places: list[list[int]] | None = None, P: int = 4, steps: int = 3) -> list[torch.Tensor]:
    """Parameters after steps of SGD on P prompts each; places of the kept rollouts of each prompt, or all."""
    model, texts = tiny(), prompts()["prompt"]
    ids = tokens.tokenizer()(text=list(texts))["input_ids"]
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    kept = places or [list(range(N))] * len(texts)
    for first in range(0, P * steps, P):
        true_loss(model, ids[first : first + P], kept[first : first + P], first, normalize).backward()
        optimizer.step()
        optimizer.zero_grad()
    return parameters(model)
