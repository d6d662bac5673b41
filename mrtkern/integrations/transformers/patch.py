"""`patch`: a model of transformers computes the loss of its responses normalised as asked, in training without logits.

    forward        takes the keys of `mrtkern.integrations.step` out of a batch, then goes the model's own way
    head.forward   in training, with labels: the loss itself, from hidden states; logits have no columns
    loss_function  that loss, or with logits (in evaluation, and with fused=False) the same loss of logits

What stands between head and loss is in `shape.py`. All three are attributes of the modules themselves, so a copy of a
model is patched as the model is, and `unpatch` takes them away.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import mrtkern as mk
from mrtkern.integrations import step, versions
from mrtkern.integrations.data import weights_of
from mrtkern.integrations.transformers.shape import Shape, read_shape

OP = "transformers.patch"
MARK = "_is_mrtkern"  # of a forward, and of what wraps it
NAME = "_mrtkern"  # of the state, on the model and on its head


@dataclass
class Batch:
    """What a forward was given beside the model's own arguments."""

    targets: Tensor  # [T]
    offsets: Tensor  # [R + 1]
    weight: Tensor  # [T], of the loss
    given: Mapping[str, Any]  # by KEYS
    is_training: bool
    has_logits: bool
    loss: Tensor | None = None  # once it is computed


@dataclass
class State:
    """What a patched model knows."""

    normalize: str
    fused: bool
    constant: float
    options: dict[str, float]  # of the loss, in training
    shape: Shape
    before: dict[str, Any]  # attributes of the model that `patch` replaced
    handle: Any  # of the hook
    batch: Batch | None = None  # of the forward that is running
    records: list[tuple[Mapping[str, Any], Tensor, Tensor]] | None = None  # of an evaluation: batch, T_r, sum of losses
    first: int = 0  # of accumulated batches, what the first one was divided by
    version: int = -1  # of the parameters at that one
    warned: set[str] = field(default_factory=set)


def _refuse(rule: str, got: Any) -> ValueError:
    return ValueError(f"{OP}: {rule}, got {got}")


def state_of(model: Any) -> State | None:
    """The state of a model, of one in an adapter, or of one that is compiled or distributed."""
    while hasattr(model, "module") or hasattr(model, "_orig_mod"):
        model = getattr(model, "_orig_mod", None) or model.module
    found: State | None = vars(_base(model)).get(NAME)
    return found


def _base(model: Any) -> Any:
    """The model inside adapters of PEFT."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def patch(
    model: Any,
    normalize: str,
    *,
    fused: bool = True,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    constant: float = 1.0,
) -> Any:
    """Makes the loss of a causal language model the loss over the responses of prompts, normalised as said.

        model = patch(model, "prompt")          # before a Trainer is made
        model(**batch).loss.backward()          # batch as `mrtkern.integrations.data` makes it

    Arguments
    ---------
    model : PreTrainedModel, or one in an adapter of PEFT
    normalize : str
        Of `mrtkern.response_weights`; those by prompt need `prompt` [R] in every batch.
    fused : bool
        In training the loss is computed from hidden states and the head's weight, and logits have no columns. False:
        from logits, for a head that is more than one matrix, and a forward that is not known.
    label_smoothing, z_loss : float
        Of `mrtkern.cross_entropy`, in training; an evaluation measures the plain loss.
    constant : float
        Of "prompt_sum".

    Returns
    -------
    model
        The same. Batches that `count_step` counted give their part of the whole step's loss; without counts a batch is
        taken for the whole step, and where gradients of several add up it warns unless that is the same.

    Raises
    ------
    ValueError
        For models whose loss or forward is of no known shape, that Liger or somebody else patched, and heads that are
        not one matrix; later for batches that do not fit.

    Memory
    ------
    Of `mrtkern.linear_cross_entropy`.

    Determinism
    -----------
    Of `mrtkern.linear_cross_entropy`.

    Example
    -------
    >>> import torch, transformers
    >>> from mrtkern.integrations.transformers import patch
    >>> config = transformers.LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...                                   num_attention_heads=2)
    >>> model = patch(transformers.LlamaForCausalLM(config), "prompt")
    >>> labels = torch.tensor([[-100, 3, 4], [-100, 5, -100], [-100, 6, 7]])
    >>> loss = model(input_ids=labels.clamp(min=0), labels=labels, prompt=torch.tensor([0, 0, 1])).loss
    >>> loss.shape, loss.requires_grad
    (torch.Size([]), True)
    """
    versions.warn_outside("transformers")
    base = _base(model)
    if normalize not in step.DIVISORS:
        raise _refuse(f"normalize must be one of {', '.join(step.DIVISORS)}", repr(normalize))
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    mk.MultiResponseCrossEntropyLoss(normalize, constant=constant, **options)  # refuses what it does not take
    if NAME in vars(base):
        unpatch(base)
    head, shape = _checked(base, fused)
    before = {name: vars(base)[name] for name in ("_loss_function", "accepts_loss_kwargs") if name in vars(base)}
    handle = base.base_model.register_forward_pre_hook(MethodType(_watch, base))
    state = State(normalize, fused, constant, options, shape, before, handle)
    vars(base)[NAME] = state
    vars(base)["forward"] = MethodType(_rooted(type(base).forward), base)
    vars(base)["_replicate_for_data_parallel"] = MethodType(_no_replica, base)
    if fused:
        vars(head).update({NAME: state, "forward": MethodType(_head, head)})
    vars(base)["_loss_function"] = MethodType(_loss, base)
    # Over a whole step transformers counts tokens and nothing else.
    vars(base)["accepts_loss_kwargs"] = normalize == "token"
    return model


def unpatch(model: Any) -> Any:
    """The model as it was before `patch`; one that is not patched is refused."""
    base = _base(model)
    state = vars(base).get(NAME)
    if state is None:
        raise ValueError("transformers.unpatch: model must be patched, got one that is not")
    for module in base.modules():
        if vars(module).get(NAME) is state:
            del vars(module)[NAME]
            if getattr(vars(module)["forward"], MARK, False) or module is not base:
                del vars(module)["forward"]
    for name in ("_replicate_for_data_parallel", "_loss_function", "accepts_loss_kwargs"):
        del vars(base)[name]
    vars(base).update(state.before)
    state.handle.remove()
    return model


def _checked(base: Any, fused: bool) -> tuple[Any, Shape]:
    """The head of a model that can be patched, and what it does to logits."""
    if not isinstance(base, PreTrainedModel):
        raise _refuse("model must be a PreTrainedModel that is not wrapped yet", type(base).__name__)
    maker = inspect.unwrap(base.forward).__module__
    if "forward" in vars(base) or maker.split(".")[0] == "liger_kernel":
        raise _refuse("model must have the forward of its class", f"one of {maker}")
    loss = getattr(base.loss_function, "__name__", type(base.loss_function).__name__)
    if loss != "ForCausalLMLoss" or getattr(base.config, "is_encoder_decoder", False):
        raise _refuse("model must have the loss ForCausalLMLoss", f"{loss} of {type(base).__name__}")
    head = base.get_output_embeddings()
    if head is None:
        raise _refuse("model must have a head", f"none of {type(base).__name__}")
    if not fused:
        return head, Shape(1.0, None)
    if type(head).forward is not torch.nn.Linear.forward or "forward" in vars(head):
        raise _refuse("the head must be one plain Linear, unless fused=False", type(head).__name__)
    shape = read_shape(base, head)
    if isinstance(shape, str):
        raise _refuse("model must be of a known shape, unless fused=False", f"{type(base).__name__}: {shape}")
    return head, shape


def _rooted(original: Any) -> Any:
    """The forward of a patched model, in place of its class's."""
    has_cache = "use_cache" in inspect.signature(original).parameters

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = getattr(self, NAME, None)
        if state is None:
            return original(self, *args, **kwargs)
        given = {key: kwargs.pop(key) for key in (*step.KEYS, "skip_logits", "num_items_in_batch") if key in kwargs}
        if kwargs.get("labels") is None:
            if self.training and torch.is_grad_enabled():
                _without_labels(state, given)
            return original(self, *args, **kwargs)
        if has_cache and ("response_offsets" in given or "cu_seq_lens_q" in kwargs):
            kwargs["use_cache"] = False  # beside a cache transformers takes the sequences of a row for one
        state.batch = _batch(self, state, given, kwargs)
        try:
            output = original(self, *args, **kwargs)
            if state.batch.loss is None:
                raise _refuse("model must call its loss_function", f"{type(self).__name__}, which does not")
            return output
        finally:
            state.batch = None

    setattr(forward, MARK, True)
    return forward


def _without_labels(state: State, given: Mapping[str, Any]) -> None:
    """Somebody trains a patched model on a loss of their own."""
    rule = "labels must reach the model in training (label_smoothing_factor and compute_loss_func keep them)"
    if "prompt" in given:
        raise _refuse(rule, None)
    _warn(state, f"{rule}, got None: this is not the loss of {state.normalize!r}")


def _warn(state: State, sentence: str) -> None:
    """Once per patched model."""
    if sentence not in state.warned:
        state.warned.add(sentence)
        warnings.warn(f"{OP}: {sentence}", stacklevel=2)


def _batch(model: Any, state: State, given: dict[str, Any], kwargs: Mapping[str, Any]) -> Batch:
    """What the loss has to know, read from what a forward was given."""
    head, labels = model.get_output_embeddings(), kwargs["labels"]
    if state.fused and head.__dict__.get(NAME) is not state:
        raise _refuse("the head must be the one that was patched, unless fused=False", type(head).__name__)
    if kwargs.get("shift_labels") is not None:
        raise _refuse("shift_labels must be None, because rows may not be split over ranks", "a tensor")
    if "prompt" not in given and state.normalize in step.PER_PROMPT:
        raise _refuse(f"a batch must have prompt [R] under {state.normalize!r}, from a collator that adds it", None)
    began = step.offsets_of({**kwargs, **given})
    if began is None and labels.shape[0] == 1 and kwargs.get("position_ids") is not None:
        _check_one_sequence(kwargs["position_ids"])
    targets, offsets = step.packed_targets(labels, began)
    counts: dict[str, Any] = step.counts_of(given)
    items = given.pop("num_items_in_batch", None)
    if items is not None and state.normalize != "token":
        rule = f"num_items_in_batch must be None under {state.normalize!r}: patch the model before its Trainer is made"
        raise _refuse(rule, int(items))
    if items is not None and "num_tokens" not in counts:
        counts["num_tokens"] = torch.as_tensor(items, dtype=torch.float64, device=targets.device)
    is_learning = model.training and torch.is_grad_enabled()
    if is_learning and not counts:
        _check_whole(model, state, {**given, "labels": labels, "response_offsets": began})
    weight = mk.response_weights(
        targets, state.normalize, offsets=offsets, prompt=given.get("prompt"), constant=state.constant,
        response_weight=weights_of(given), **counts,
    )  # fmt: skip
    has_logits = not (state.fused and given.get("skip_logits", model.training))
    return Batch(targets, offsets, weight, given, model.training, has_logits)


@torch.compiler.disable
def _check_one_sequence(position_ids: Tensor) -> None:
    """Several sequences in one row must say where they begin."""
    if int((position_ids == 0).sum()) > 1:
        raise _refuse("a batch must have response_offsets where position_ids restart", None)


@torch.compiler.disable
def _check_whole(model: Any, state: State, batch: Mapping[str, Any]) -> None:
    """Without counts a batch is the whole step: warns where it may be none, by what accumulated batches divide by."""
    if step.counting:
        return
    mend = "use mrtkern.integrations.transformers.Trainer, or count_step of mrtkern.integrations.step"
    name = step.DIVISORS[state.normalize]
    rule = f"must have the same number of {name.removeprefix('num_')} to equal one batch"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks = torch.distributed.get_world_size()
        if ranks > 1:
            _warn(state, f"batches of all ranks {rule}, got {ranks} ranks without counts; {mend}")
    divisor = int(step.count_step([batch])[0][name])
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    version = sum(parameter._version for parameter in learning)  # a step of an optimizer writes them
    if version != state.version or all(parameter.grad is None for parameter in learning):
        state.first, state.version = divisor, version
    elif divisor != state.first:
        _warn(state, f"accumulated batches {rule}, got {state.first} and {divisor}; {mend}")


def _watch(model: Any, *_: Any) -> None:
    """Before the layers run: a training step must have come through the forward that `patch` made."""
    state = getattr(model, NAME, None)
    if state is not None and state.batch is None and model.training and not getattr(model.forward, MARK, False):
        raise _refuse(
            "model must keep the forward that it was given", f"one of {inspect.unwrap(model.forward).__module__}"
        )


def _no_replica(model: Any) -> Any:
    raise _refuse("model must not be in DataParallel, whose replicas share one loss", type(model).__name__)


def _head(self: Any, hidden: Tensor) -> Tensor:
    """The head of a patched model: where nobody wants logits it leaves the loss, and logits without columns."""
    state = getattr(self, NAME, None)
    if state is None or state.batch is None or state.batch.has_logits:
        return type(self).forward(self, hidden)  # type: ignore[no-any-return]
    x = hidden.reshape(-1, hidden.shape[-1])
    bias, scale = self.bias, state.shape.scale
    if scale != 1:
        x, bias = x * scale, bias if bias is None else bias * scale
    state.batch.loss = _weighted(
        state, functools.partial(mk.linear_cross_entropy, x, self.weight, bias=bias, softcap=state.shape.softcap)
    )
    return hidden.new_empty((*hidden.shape[:-1], 0))


def _loss(self: Any, logits: Tensor, labels: Tensor, *_: Any, **__: Any) -> Tensor:
    """What a patched model calls as its loss_function."""
    state = getattr(self, NAME, None)
    if state is None or state.batch is None:
        raise _refuse(
            "model must keep the forward that it was given", f"one of {inspect.unwrap(self.forward).__module__}"
        )
    if state.batch.loss is None:
        state.batch.loss = _weighted(state, functools.partial(mk.cross_entropy, logits.reshape(-1, logits.shape[-1])))
    loss: Tensor = state.batch.loss
    return loss


def _weighted(state: State, loss_of: Any) -> Tensor:
    """The loss of a batch; in an evaluation that is recorded, also the sums that belong to its responses."""
    batch = state.batch
    assert batch is not None
    targets = batch.targets.to(batch.weight.device)
    if batch.is_training:
        loss: Tensor = loss_of(targets=targets, token_weight=batch.weight, **state.options)
    elif state.records is None:
        loss = loss_of(targets=targets, token_weight=batch.weight)
    else:
        details = loss_of(targets=targets, token_weight=batch.weight, return_details=True, offsets=batch.offsets)
        state.records.append((batch.given, details.response_tokens, details.response_nll))
        loss = details.loss
    return loss * batch.given["loss_parts"] if "loss_parts" in batch.given else loss
