"""A Trainer in which accumulation and ranks do not change the loss: counts before the first forward of a step, and an
evaluation that adds up numerators and counts instead of averaging batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor

import mrtkern as mk
from mrtkern.integrations import step
from mrtkern.integrations.transformers.patch import State, _warn, patch, state_of

OP = "transformers.Trainer"


def _refuse(rule: str, got: Any) -> ValueError:
    return ValueError(f"{OP}: {rule}, got {got}")


class Trainer(transformers.Trainer):
    """transformers.Trainer for a model that learns from several responses of each prompt.

        trainer = Trainer(model, arguments, normalize="prompt", data_collator=collate, train_dataset=rows)

    A step accumulated over batches and averaged over ranks equals one batch, the short step at the end of an epoch
    included, whatever number of prompts, responses and tokens a batch holds; a prompt may have its responses in
    several batches where these have `prompt_key`. eval_loss is the loss of the whole evaluation set at once.

    normalize and further options of `patch` patch the model; without them it must have been patched before.
    The others are transformers.Trainer's. Refused: what takes labels away from the model or replaces its forward
    (label_smoothing_factor, compute_loss_func, use_liger_kernel), DataParallel, and rows that are split over ranks.
    """

    def __init__(self, model: Any = None, args: Any = None, *more: Any, normalize: str | None = None, **kwargs: Any):
        names = ("fused", "label_smoothing", "z_loss", "constant")
        options = {name: kwargs.pop(name) for name in names if name in kwargs}
        if normalize is None and options:
            raise _refuse("normalize must be given with options of patch", ", ".join(options))
        self._patching = None if normalize is None else {"normalize": normalize, **options}
        if getattr(args, "use_liger_kernel", False):  # would reach into classes before this could be undone
            raise _refuse("use_liger_kernel must be False, because it replaces the loss", True)
        if model is not None and self._patching:
            patch(model, **self._patching)
        super().__init__(model, args, *more, **kwargs)
        if self.args.label_smoothing_factor != 0:
            raise _refuse("label_smoothing_factor must be 0 (give label_smoothing)", self.args.label_smoothing_factor)
        if self.compute_loss_func is not None:
            raise _refuse("compute_loss_func must be None", self.compute_loss_func)
        if self.args.n_gpu > 1:
            raise _refuse("a process must have one GPU, because DataParallel shares one loss", self.args.n_gpu)
        parallel = getattr(self.accelerator, "parallelism_config", None)
        for name in ("cp_size", "sp_size", "tp_size"):
            if getattr(parallel, name, 1) > 1:
                raise _refuse(f"{name} must be 1, because rows and heads may not be split", getattr(parallel, name))
        self._state()
        self.model_accepts_loss_kwargs = False  # of transformers' counts; those of the step come with the batches

    def call_model_init(self, trial: Any = None) -> Any:
        """A fresh model, patched."""
        model = super().call_model_init(trial)
        return patch(model, **self._patching) if self._patching else model

    def _state(self) -> State:
        state = state_of(self.model)
        if state is None:
            raise _refuse("normalize must be given, or model be patched", None)
        return state

    def _gather(self, rows: Tensor) -> Tensor:
        gathered: Tensor = self.accelerator.gather(rows.to(self.args.device))
        return gathered

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of a step, each with the counts of the whole step over all ranks."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        ranks = self.accelerator.num_processes
        step.refuse_drifting_ranks(OP, self)
        gather = self._gather if ranks > 1 else None
        return step.count_step(batches, gather=gather, parts=max(len(batches), 1) * ranks), num_items

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """As in transformers; logits are left out where only the loss is asked for."""
        if prediction_loss_only:
            inputs = {**inputs, "skip_logits": True}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As in transformers, with the loss of all responses at once."""
        with self._recording() as records:
            output: Any = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        if records:
            output.metrics[f"{metric_key_prefix}_loss"] = self._whole_loss(dataloader, records)
        return output

    @contextlib.contextmanager
    def _recording(self) -> Iterator[list[Any]]:
        state = self._state()
        state.records = []
        try:
            yield state.records
        finally:
            state.records = None

    def _whole_loss(self, dataloader: Any, records: list[Any]) -> float:
        """Of every response of the set once, wherever its batch was."""
        rows = []
        for number, (given, T_r, nll) in enumerate(records):
            part = torch.cat((step.response_rows(given, number, T_r), step.bits(nll)[:, None]), 1)
            rows.append(part[: self._real(dataloader, part)] if number == len(records) - 1 else part)
        gather = self._gather if self.accelerator.num_processes > 1 else None
        prompt, T_r, v, nll = step.whole_step(step.gathered(torch.cat(rows), gather)[0])
        state, is_weighed = self._state(), any("response_weight_bits" in given for given, *_ in records)
        weight = mk.response_weights(
            torch.where(T_r > 0, 0, step.IGNORE), state.normalize, prompt=prompt, constant=state.constant,
            offsets=torch.arange(len(T_r) + 1, dtype=torch.int64, device="cpu"), tokens_per_response=T_r,
            response_weight=v if is_weighed else None,
        )  # fmt: skip
        return float((weight.double() * nll).sum())

    def _real(self, dataloader: Any, part: Tensor) -> int:
        """How many responses of the last batch are of the set, and not of rows that fill up the ranks."""
        remainder, n = int(getattr(dataloader, "remainder", -1)), int(self.args.eval_batch_size)
        if self.accelerator.num_processes == 1 or remainder <= 0:
            return len(part)
        real: int = min(max(remainder - self.accelerator.process_index * n, 0), n)
        if len(part) == n:
            return real
        sizes: Tensor = part[:, 1].unique_consecutive(return_counts=True)[1]
        if len(sizes) == n:
            return sum(sizes[:real].tolist())
        _warn(
            self._state(), "rows that fill up the last batches of ranks count in eval_loss, where they cannot be told"
        )
        return len(part)
