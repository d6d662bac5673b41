"""TRL's GRPOTrainer that trains on K of the N rollouts of every prompt, and can average over prompts.

TRL generates and scores all N. Then rows are chosen by `mrtkern.select_responses`, and the weights of a normalisation
are multiplied into the advantages, in which every policy loss of TRL is homogeneous:

    loss = sum over tokens of omega_t · loss_t,   where TRL has sum of c_t · loss_t:   A ← A · omega / c
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import trl
from torch import Tensor

import mrtkern as mk
from mrtkern.integrations.step import PER_PROMPT, refuse_drifting_ranks
from mrtkern.integrations.trl import kept as rows_kept
from mrtkern.integrations.trl.kept import OP, WITHOUT_EMBEDDINGS, Embeddings, Kept
from mrtkern.integrations.trl.weights import shares_here, step_weights
from mrtkern.integrations.versions import warn_outside

BASELINES = ("all", "kept")
PER_TOKEN_OF_STEP = ("dapo", "cispo", "vespo")  # losses that TRL divides by the tokens of the generation batch
EPSILON = 1e-4  # beside the deviation by which TRL divides advantages


class _Scored(NamedTuple):
    """What a generation batch was scored by."""

    reward: Tensor  # of all ranks, NaN where no function gave one
    completions: list[Any]  # of this rank
    completion_ids: list[list[int]]


class GRPOTrainer(trl.GRPOTrainer):  # type: ignore[misc]
    """trl.GRPOTrainer with `keep`, `method` and `normalize`; everything else is TRL's.

        from mrtkern.integrations.trl import GRPOTrainer       # instead of: from trl import GRPOTrainer
        GRPOTrainer(model, reward, args=args, train_dataset=prompts, keep=4, method="max_variance", normalize="prompt")

    Arguments
    ---------
    keep : int, optional
        Rollouts of each prompt to train on, of the num_generations that are generated and scored; the forward and
        backward passes of training run on these alone, log-probabilities of an old or reference policy on all. None:
        all.
    method : str
        Of `mrtkern.select_responses`: "random", "max_variance" (PODS), "stratified", "coverage", … Rewards are the
        weighted sums of TRL's; rollouts without a reward or with every token masked are kept only where there are
        fewer than K others.
    embeddings : callable, optional
        completions of this rank, as reward functions get them → [n, D] floats, for methods that compare completions.
        None: token n-grams (one and two in a row) hashed into 512 signed buckets, without a model.
    normalize : str, optional
        Of `mrtkern.response_weights`, over the prompts, rollouts and tokens of all ranks and accumulated batches of an
        optimizer step: "prompt" is the mean over prompts of means over their rollouts of token means. None: TRL's
        loss_type divides. With stratified the shares are the weights of a prompt's rollouts.
    baseline : str
        "all": advantages of TRL, against all N; "kept": against the kept rollouts, as PODS has it.
    constant : float, optional
        Of "prompt_sum"; None: max_completion_length.
    select_options : mapping, optional
        Further arguments of `mrtkern.select_responses`: alpha, lam, fill, metric.

    The weights act on the policy loss. The terms of beta (KL), of the entropy bonus and of a mixture's router stay as
    TRL averages them. Under steps_per_generation > gradient_accumulation_steps TRL spreads the rollouts of a prompt
    over several optimizer steps; each step then averages over those it has.

    Metrics: kept/responses (a prompt, of those that count), kept/tokens (share of the generated ones), kept/reward,
    kept/reward_std, kept/effective_k (picks that added to the objective).

    Raises
    ------
    ValueError
        For a keep that leaves ranks rows that steps_per_generation does not divide, unless normalize is given (rows
        without a token then fill up, and count nowhere); for images with keep; for Liger's loss with normalize.

    Determinism
    -----------
    Every rank chooses from the same gathered numbers; random draws are seeded by args.seed and the step.
    """

    def __init__(
        self,
        *args: Any,
        keep: int | None = None,
        method: str = "random",
        embeddings: Embeddings | None = None,
        normalize: str | None = None,
        baseline: str = "all",
        constant: float | None = None,
        select_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        warn_outside("trl")
        self.keep, self.method, self.embeddings, self.normalize = keep, method, embeddings, normalize
        self.baseline, self.select_options = baseline, dict(select_options or {})
        self._scored: _Scored | None = None
        super().__init__(*args, **kwargs)
        self.constant = float(self.max_completion_length if constant is None else constant)
        self._check_arguments()

    def _check_arguments(self) -> None:
        if self.baseline not in BASELINES:
            raise ValueError(f"{OP}: baseline must be one of {', '.join(BASELINES)}, got {self.baseline!r}")
        one = torch.zeros(1, dtype=torch.int64, device="cpu")
        if self.keep is not None:
            if (
                isinstance(self.keep, bool)
                or not isinstance(self.keep, int)
                or not 1 <= self.keep <= self.num_generations
            ):
                rule = f"be an int from 1 to the {self.num_generations} generations of a prompt"
                raise ValueError(f"{OP}: keep must {rule}, got {self.keep!r}")
            x = torch.ones((1, 1), dtype=torch.float32, device="cpu")
            offsets = torch.tensor([0, 1], dtype=torch.int64, device="cpu")
            mk.select_responses(x, offsets, 1, method=self.method, reward=x[0], **self.select_options)
            if self.select_options.get("fill") == "none" and self.normalize is None:
                raise ValueError(f"{OP}: normalize must be given with fill 'none', whose prompts keep fewer, got None")
            kept = self.args.generation_batch_size // self.num_generations * self.keep
            W, S = self.accelerator.num_processes, self.args.steps_per_generation
            if kept % (W * S) and self.normalize is None:
                rule = f"leave rows that {W} ranks × steps_per_generation {S} divide, or normalize be given"
                raise ValueError(f"{OP}: keep must {rule}, got {self.keep}, which leaves {kept}")
        if self.normalize is not None:
            step_weights(self.normalize, one + 1, one, constant=self.constant)
            S, G = self.args.steps_per_generation, self.args.gradient_accumulation_steps
            if S % G and G % (S * self.num_iterations):
                rule = f"be a multiple of gradient_accumulation_steps {G}, or divide it with num_iterations,"
                raise ValueError(f"{OP}: steps_per_generation must {rule} with normalize, got {S}")
            if getattr(self, "use_liger_kernel", False) and hasattr(self, "compute_liger_loss"):
                raise ValueError(f"{OP}: use_liger_kernel must be False with normalize, got True")

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: list[Any], completion_ids_list: list[list[int]]
    ) -> Tensor:
        found: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        reward = (found * self.reward_weights.to(found.device)).nansum(1)
        reward = torch.where(found.isnan().all(1), torch.nan, reward)
        self._scored = _Scored(reward, completions, completion_ids_list)
        return found

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        is_training = self.model.training
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        scored, self._scored = self._scored, None
        assert scored is not None
        n, rank = len(output["completion_ids"]), self.accelerator.process_index
        N = self.num_generations if is_training else self.num_generations_eval
        own = slice(rank * n, (rank + 1) * n)
        output["prompt"] = torch.arange(len(scored.reward), dtype=torch.int64, device=scored.reward.device)[own] // N
        output["is_counted"] = ~scored.reward[own].isnan()
        output["share"] = torch.ones_like(scored.reward[own])
        if self.keep is not None and is_training:
            output = self._kept(output, scored, N, own)
        return output

    def _kept(self, output: dict[str, Any], scored: _Scored, N: int, own: slice) -> dict[str, Any]:
        """The rows that are trained on."""
        assert self.keep is not None
        if output.get("num_images") is not None:
            raise ValueError(f"{OP}: keep must be None with images, got {self.keep}")
        n, accelerator, reward = len(output["prompt"]), self.accelerator, scored.reward
        tokens = accelerator.gather(self._mask(output).sum(1))
        options = {"method": self.method, "seed": int(self.args.seed), **self.select_options}
        key = self.state.global_step * self.args.gradient_accumulation_steps
        key += self._step % self.args.gradient_accumulation_steps
        kept = rows_kept.keep(self._features(scored), reward, tokens, N, self.keep, key=key, **options)
        if self.baseline == "kept":
            output["advantages"] = self._advantages(reward, kept)[own]
        share = torch.zeros_like(reward).index_copy_(0, kept.ids.reshape(-1), kept.share.reshape(-1).to(reward.dtype))
        is_counted = torch.zeros_like(reward, dtype=torch.bool)
        is_counted[kept.ids.reshape(-1)] = kept.counts.reshape(-1)
        output["share"], output["is_counted"] = share[own], is_counted[own]
        rows = rows_kept.dealt(kept.ids, accelerator.num_processes, self.args.steps_per_generation)
        rows = rows[accelerator.process_index]
        if n % N == 0:
            rows = torch.where(rows < 0, -1, rows - own.start)
        else:
            output = rows_kept.exchanged(output, accelerator, self._tokenizer.pad_token_id)
            n = len(output["prompt"])
        output = rows_kept.trimmed(rows_kept.subset(output, rows, n), getattr(self, "pad_to_multiple_of", None))
        output["num_items_in_batch"] = accelerator.gather(self._mask(output).sum()).sum()
        self._note(kept, reward, output["num_items_in_batch"] / tokens.sum().clamp(min=1))
        return output

    def _features(self, scored: _Scored) -> Tensor:
        """[rows of all ranks, D], what completions are compared by; one column of ones where nothing is compared."""
        device = self.accelerator.device
        if self.method in WITHOUT_EMBEDDINGS:
            return torch.ones((len(scored.reward), 1), dtype=torch.float32, device=device)
        if self.embeddings is None:
            found = rows_kept.token_features(scored.completion_ids)
        else:
            found = rows_kept.as_matrix(self.embeddings(scored.completions), len(scored.completions))
        gathered: Tensor = self.accelerator.gather(found.to(device).contiguous())
        return gathered

    def _advantages(self, reward: Tensor, kept: Kept) -> Tensor:
        """Advantages [rows of all ranks] against the kept rollouts, scaled as args.scale_rewards says; 0 elsewhere."""
        r = torch.where(kept.counts, reward[kept.ids], torch.nan)  # [P, K]
        centred = (r - r.nanmean(1, keepdim=True)).nan_to_num(0.0)
        if self.scale_rewards == "group":
            centred = centred / (_deviation(centred, kept.counts.sum(1, keepdim=True)) + EPSILON)
        elif self.scale_rewards == "batch":
            counted = r[kept.counts]
            spread = _deviation((counted - counted.mean())[None], kept.counts.sum()[None, None])
            centred = centred / (spread + EPSILON)
        return torch.zeros_like(reward).index_copy_(0, kept.ids.reshape(-1), centred.reshape(-1))

    def _note(self, kept: Kept, reward: Tensor, tokens: Tensor) -> None:
        """The metrics of what was kept."""
        counted = reward[kept.ids[kept.counts]]
        spread = counted.std() if len(counted) > 1 else torch.zeros((), dtype=torch.float32, device=reward.device)
        found = {
            "responses": kept.counts.sum(1).double().mean(),
            "tokens": tokens,
            "reward": counted.mean(),
            "reward_std": spread,
            "effective_k": kept.effective_k.double().mean(),
        }
        for name, value in found.items():
            self._metrics["train"][f"kept/{name}"].append(value.item())

    @staticmethod
    def _mask(batch: Mapping[str, Any]) -> Tensor:
        """[R, C] of the tokens that are trained on."""
        mask: Tensor = batch["completion_mask"]
        return mask if batch.get("tool_mask") is None else mask * batch["tool_mask"]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's; ranks that would drift apart are refused."""
        refuse_drifting_ranks(OP, self)
        return super().get_batch_samples(*args, **kwargs)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        if self.normalize is None or "omega" in inputs:
            return inputs
        if not self.model.training:
            self._weigh([inputs])
            return inputs
        batches = self._buffered_inputs
        G = min(len(batches), self.args.gradient_accumulation_steps)
        for first in range(0, len(batches), G):
            self._weigh(batches[first : first + G])
        return inputs

    def _weigh(self, batches: list[dict[str, Any]]) -> None:
        """Puts omega [R] into the batches of an optimizer step: the weight of a token of each row, over all ranks."""
        columns = [
            (self._mask(batch).sum(1) * batch["is_counted"], batch["prompt"], batch["share"]) for batch in batches
        ]
        facts = torch.cat([torch.stack([column.double() for column in each], 1) for each in columns])  # [rows, 3]
        T, prompt, share = self.accelerator.gather(facts).unbind(1)
        is_shared = self.keep is not None and self.method == "stratified" and self.normalize in PER_PROMPT
        assert self.normalize is not None
        T, prompt = T.long(), prompt.long()
        v = shares_here(share, T, prompt) if is_shared else None
        omega = step_weights(self.normalize, T, prompt, response_weight=v, constant=self.constant)
        own = omega.view(self.accelerator.num_processes, -1)[self.accelerator.process_index]
        for batch, weights in zip(batches, own.split([len(each[0]) for each in columns]), strict=True):
            batch["omega"] = weights

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if "omega" in inputs:
            A = inputs["advantages"]
            scale = (inputs["omega"].double() / self._coefficient(inputs)).to(A.dtype)
            inputs = {**inputs, "advantages": A * (scale if A.ndim == 1 else scale[:, None])}
        loss: Tensor = super()._compute_loss(model, inputs)
        return loss

    def _coefficient(self, inputs: dict[str, Any]) -> Tensor:
        """What TRL multiplies the loss of a token of each row by [R], gradients averaged over ranks.

        Over it, a generation batch that is one of several in an optimizer step counts as its part.
        """
        mask, W, S = self._mask(inputs), self.accelerator.num_processes, self.args.steps_per_generation
        G = self.current_gradient_accumulation_steps if self.model.training else 1
        part = max(G / S, 1.0) if self.model.training else 1.0
        T = mask.sum(1).double()
        divisor = {
            "bnpo": T.sum().clamp(min=1).expand_as(T),
            "dr_grpo": torch.full_like(T, len(T) * self.max_completion_length),
            "luspo": torch.full_like(T, len(T)),
        }.get(self.loss_type, T.clamp(min=1) * len(T))  # grpo, sapo
        divisor = divisor * G * W
        if self.loss_type in PER_TOKEN_OF_STEP:
            tokens = inputs["num_items_in_batch"].double().clamp(min=1).expand_as(T)
            divisor = tokens * (G / S if self.model.training else 1.0)
        coefficient: Tensor = part / divisor
        return coefficient


def _deviation(centred: Tensor, counts: Tensor) -> Tensor:
    """Of numbers around 0, over their count - 1 [rows, 1]."""
    return ((centred * centred).sum(1, keepdim=True) / (counts - 1).clamp(min=1)).sqrt()
