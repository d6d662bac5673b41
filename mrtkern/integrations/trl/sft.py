"""TRL's SFTTrainer with a loss that is normalised over prompts and responses of the whole optimizer step.

TRL computes the log-probabilities, their metrics and the term of a mixture's router; they are weighted on their way:

    TRL's loss: - sum of log p_t / num_items          here: log p_t ← log p_t · omega_t · num_items
"""

from __future__ import annotations

from typing import Any

import torch
import trl
from torch import Tensor

from mrtkern.integrations.step import PER_PROMPT, refuse_drifting_ranks
from mrtkern.integrations.trl.batches import OP, PromptCollator, Responses, gathered, keys_of, responses_of, weights_of
from mrtkern.integrations.trl.weights import step_weights
from mrtkern.integrations.versions import warn_outside

PART = "step_part"  # of a batch: which of the batches of an optimizer step it is


class SFTTrainer(trl.SFTTrainer):  # type: ignore[misc]
    """trl.SFTTrainer with `normalize`; everything else is TRL's.

        from mrtkern.integrations.trl import SFTTrainer        # instead of: from trl import SFTTrainer
        SFTTrainer(model, args=SFTConfig(), train_dataset=rows, normalize="prompt")

    Rows hold one response each, with a column that names their prompt; or a prompt with its K responses, with
    `mrtkern.integrations.data.ResponseCollator` as data_collator, remove_unused_columns=False and
    dataset_kwargs={"skip_prepare_dataset": True}.

    Arguments
    ---------
    normalize : str, optional
        Of `mrtkern.response_weights`, over the prompts, responses and tokens of all ranks and accumulated batches of an
        optimizer step: "prompt" is the mean over prompts of means over their responses of token means. None: TRL's
        mean over tokens.
    prompt_id : str
        The column of a number or a text that names the prompt of a row. Rows with equal prompts are two prompts unless
        their ids are equal: prompt_id="prompt" makes equal texts one.
    response_weight : str, optional
        A column of weights v of responses, used as given.
    constant : float
        Of "prompt_sum".

    Works padded, padding-free and with packing="bfd", which keeps sequences whole; the collator of TRL or of the user
    is wrapped. Metrics (entropy, mean_token_accuracy, num_tokens, aux_loss) are TRL's, over tokens. eval_loss is that
    of the whole evaluation set, for any size of batches.

    Raises
    ------
    ValueError
        With normalize: for packing_strategy "wrapped" and "bfd_split", which cut sequences; for loss_type "dft", label
        smoothing, compute_loss_func, images, sequence and context parallelism; for a prompt_id that no column has.

    Determinism
    -----------
    Weights are equal on every rank and for every split of a step.
    """

    data_collator: Any

    def __init__(
        self,
        *args: Any,
        normalize: str | None = None,
        prompt_id: str = "prompt_id",
        response_weight: str | None = None,
        constant: float = 1.0,
        **kwargs: Any,
    ) -> None:
        warn_outside("trl")
        self.normalize, self.prompt_id, self.response_weight, self.constant = (
            normalize,
            prompt_id,
            response_weight,
            constant,
        )
        self._parts: list[Tensor] = []
        self._records: list[Tensor] | None = None
        has_collator = len(args) > 2 or kwargs.get("data_collator") is not None
        super().__init__(*args, **kwargs)
        if normalize is None:
            return
        self._check_arguments()
        needs_prompt = normalize in PER_PROMPT and not has_collator
        columns = getattr(self.train_dataset, "column_names", None)
        if needs_prompt and columns is not None and prompt_id not in columns:
            rule = f"name a column with normalize {normalize!r}"
            raise ValueError(f"{OP}: prompt_id must {rule}, got {prompt_id!r} beside {', '.join(columns)}")
        self.data_collator = PromptCollator(self.data_collator, prompt_id if needs_prompt else None, response_weight)

    def _check_arguments(self) -> None:
        assert self.normalize is not None
        one = torch.ones(1, dtype=torch.int64, device="cpu")
        step_weights(self.normalize, one, one, constant=self.constant)
        parallel = getattr(self.accelerator, "parallelism_config", None)
        is_split = parallel is not None and (parallel.cp_enabled or getattr(parallel, "sp_enabled", False))
        refused = (
            ("loss_type", "'nll'", self.args.loss_type, self.args.loss_type != "nll"),
            ("label_smoothing_factor", "0", self.args.label_smoothing_factor, self.args.label_smoothing_factor != 0),
            ("compute_loss_func", "None", "a function", self.compute_loss_func is not None),
            ("parallelism_config", "without context and sequence parallelism", "both or one", is_split),
            ("train_dataset", "without images", "images", self._is_vision_dataset),
        )
        for name, rule, value, is_refused in refused:
            if is_refused:
                raise ValueError(f"{OP}: {name} must be {rule} with normalize, got {value}")

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        is_ours = packing and self.normalize is not None
        if is_ours and args.packing_strategy != "bfd":
            raise ValueError(f"{OP}: packing_strategy must be 'bfd' with normalize, got {args.packing_strategy!r}")
        dataset = super()._prepare_dataset(
            dataset, processing_class, args, packing and not is_ours, formatting_func, dataset_name
        )
        return self._packed(dataset, args) if is_ours else dataset

    def _packed(self, dataset: Any, args: Any) -> Any:
        """Rows packed by TRL together with the key of their prompt, and their weight, at each token."""
        columns = [name for name in (self.prompt_id, self.response_weight) if name is not None]
        names = [name for name in columns if name in dataset.column_names]

        def spread(row: dict[str, Any]) -> dict[str, Any]:
            found = {name: row[name] for name in names}
            if self.prompt_id in found:
                found[self.prompt_id] = int(keys_of([found[self.prompt_id]])[0])
            return {f"packed_{name}": [value] * len(row["input_ids"]) for name, value in found.items()}

        dataset = dataset.map(spread)
        dataset = dataset.select_columns(["input_ids", "labels", *(f"packed_{name}" for name in names)])
        dataset = dataset.rename_columns({f"packed_{name}": name for name in names})
        dataset = trl.pack_dataset(dataset, args.max_length, "bfd")
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.normalize is not None:
            extra = [name for name in (self.prompt_id, self.response_weight) if name is not None]
            self._signature_columns += [name for name in extra if name not in self._signature_columns]

    def _reject_skip_prepare_without_labels(self, datasets: Any, data_collator: Any) -> None:
        super()._reject_skip_prepare_without_labels(datasets, getattr(data_collator, "collator", data_collator))

    def _token_weights(self, batches: list[Responses], rows: Tensor, own: slice) -> list[Tensor]:
        """omega [B, L - 1] of each batch, by the rows of a whole step."""
        assert self.normalize is not None
        omega = weights_of(rows, self.normalize, self.response_weight is not None or self._has_bits, self.constant)[own]
        parts = omega.split([len(batch.rows) for batch in batches])
        none = omega.new_zeros(1)
        return [torch.cat([part, none])[batch.owner] for part, batch in zip(parts, batches, strict=True)]

    _has_bits = False  # whether batches bring weights of their own

    def _taken(self, batch: dict[str, Any], number: int) -> Responses:
        self._has_bits = "response_weight_bits" in batch
        W = self.accelerator.num_processes
        return responses_of(batch, number * W + self.accelerator.process_index)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of an optimizer step, each with its place; their weights are made here, from all of them."""
        refuse_drifting_ranks(OP, self)
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if self.normalize is None or not batches:
            return batches, num_items
        batches = [dict(batch) for batch in batches]
        found = [self._taken(batch, number) for number, batch in enumerate(batches)]
        rows, own = gathered(torch.cat([each.rows for each in found]), self.accelerator)
        self._parts = self._token_weights(found, rows, own)
        for number, batch in enumerate(batches):
            batch[PART] = number
        return batches, num_items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's, of weighted log-probabilities."""
        if PART not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        omega = self._parts[inputs.pop(PART)]
        is_counted = num_items_in_batch is not None
        factor = 1
        if self.model.training:  # what gradients, averaged over ranks, are divided by beyond num_items
            is_averaged = is_counted and self.args.average_tokens_across_devices
            factor *= 1 if is_averaged else self.accelerator.num_processes // self.get_tp_size()
            is_scaled = is_counted and self.model_accepts_loss_kwargs
            factor *= 1 if is_scaled else self.current_gradient_accumulation_steps

        is_weighted = False

        def weighted(**given: Any) -> Any:
            nonlocal is_weighted
            outputs = model(**given)
            if given.get("fused_lm_head"):
                is_weighted = True
                self._note(outputs.log_probs)
                count = num_items_in_batch if is_counted else outputs.label_mask.sum()
                count = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
                outputs.log_probs = outputs.log_probs * (omega.to(outputs.log_probs.device) * count * factor)
            return outputs

        found = super().compute_loss(weighted, inputs, return_outputs, num_items_in_batch)
        if not is_weighted:
            raise RuntimeError(
                f"{OP}: trl must ask the model for log-probabilities, got {trl.__version__}, which does not"
            )
        return found

    # Evaluation

    _evaluated: Responses | None = None

    def _note(self, log_probs: Tensor) -> None:
        """Keeps the rows of the responses that are evaluated, with the bits of their losses."""
        if self._records is None or self._evaluated is None:
            return
        rows, dataset_row, owner = self._evaluated
        nll = torch.zeros(len(rows) + 1, dtype=torch.float64, device="cpu")
        nll.index_add_(0, owner.flatten(), -log_probs.detach().cpu().double().flatten())
        is_real = dataset_row < self._real_rows(int(dataset_row.max()) + 1 if len(dataset_row) else 0)
        self._records.append(torch.cat([rows, nll[:-1].view(torch.int64)[:, None]], 1)[is_real])

    def _real_rows(self, B: int) -> int:
        """Of the rows of a batch: the last one repeats others, so that ranks have equally many."""
        state, rank = self.accelerator.gradient_state, self.accelerator.process_index
        if self.accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return B
        return min(max(int(state.remainder) - int(rank) * B, 0), B)

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """TRL's; a batch is weighted as if it were all."""
        if self.normalize is None or "labels" not in inputs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = dict(inputs)
        found = self._taken(inputs, len(self._records or ()))
        self._parts, self._evaluated = self._token_weights([found], found.rows, slice(None)), found
        inputs[PART] = 0
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._evaluated = None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's, with the loss of the whole set instead of a mean of the losses of batches."""
        self._records = []
        output = super().evaluation_loop(*args, **kwargs)
        records, self._records = self._records, None
        if self.normalize is None:
            return output
        mine = torch.cat([torch.empty((0, 5), dtype=torch.int64, device="cpu"), *records])
        rows, _ = gathered(mine, self.accelerator)
        if len(rows):
            has_weights = self.response_weight is not None or self._has_bits
            omega = weights_of(rows[:, :4], self.normalize, has_weights, self.constant).double()
            loss = (omega * rows[:, 4].contiguous().view(torch.float64)).sum()
            prefix = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
            output.metrics[f"{prefix}_loss"] = loss.item()
        return output
