"""Arguments of every kind given to every public function: refused in one sentence that names the function, or taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mrtkern as mk

X, ENDS, TARGETS = torch.randn(6, 4), torch.tensor([0, 3, 6]), torch.tensor([0, 1, 2, 3, 0, 1])
HUGE = 2**70  # beyond int64

CALLS: dict[str, Callable[..., Any]] = {
    "similarity": lambda **given: mk.similarity(X, **given),
    "neighbors": lambda k=2, **given: mk.neighbors(X, k, **given),
    "deduplicate": lambda threshold=0.5, **given: mk.deduplicate(X, threshold, **given),
    "facility_location": lambda k=2, **given: mk.facility_location(X, k, **given),
    "select_responses": lambda k=2, offsets=ENDS, **given: mk.select_responses(X, offsets, k, **given),
    "cross_entropy": lambda **given: mk.cross_entropy(X, TARGETS, **given),
    "linear_cross_entropy": lambda **given: mk.linear_cross_entropy(X, X, TARGETS, **given),
    "linear_log_prob": lambda **given: mk.linear_log_prob(X, X, TARGETS, **given),
    "vocabulary_parallel_cross_entropy": lambda first_class=0, **given: mk.vocabulary_parallel_cross_entropy(
        X, TARGETS, first_class=first_class, process_group=None, **given
    ),
    "response_weights": lambda **given: mk.response_weights(TARGETS, "prompt", offsets=ENDS, **given),
    "optimal_k": lambda **given: mk.optimal_k(1.0, 1.0, prompt_cost=1.0, response_cost=1.0, **given),
    "allocate_k": lambda total=6, **given: mk.allocate_k(X[:3, 0].abs(), total, **given),
    "Neighbors.from_lists": lambda **given: mk.Neighbors.from_lists(ENDS[:1, None], X[:1, :1], **given),
    "MultiResponseCrossEntropyLoss": lambda **given: mk.MultiResponseCrossEntropyLoss("prompt", **given),
}
WITH_BACKEND = tuple(CALLS)[:9]
LOSSES = ("cross_entropy", "linear_cross_entropy", "linear_log_prob")


def refuse(error: type[Exception], op: str, sentence: str, **given: Any) -> None:
    with pytest.raises(error, match=f"^{op}: {sentence}$"):
        CALLS[op](**given)


@pytest.mark.parametrize("op", WITH_BACKEND)
def test_what_names_no_backend_is_refused_by_the_function_that_was_called(op: str) -> None:
    rule = "backend must be one of cuda, triton, cpu, reference, got "
    refuse(TypeError, op, rule + r"device\(type='cpu'\)", backend=torch.device("cpu"))
    refuse(ValueError, op, rule + "'cudax'", backend="cudax")
    if op != "vocabulary_parallel_cross_entropy":
        refuse(ValueError, op, "backend 'cuda' cannot run this: .*", backend="cuda")


@pytest.mark.parametrize(
    ("op", "name"),
    [
        *((op, name) for op in ("cross_entropy", "linear_cross_entropy") for name in ("label_smoothing", "z_loss")),
        *((op, "softcap") for op in LOSSES),
        ("linear_log_prob", "temperature"),
        ("deduplicate", "threshold"),
        ("facility_location", "similarity_scale"),
        ("response_weights", "constant"),
        ("response_weights", "num_prompts"),
        ("optimal_k", "budget"),
    ],
)
def test_what_is_no_number_is_a_type_error(op: str, name: str) -> None:
    refuse(TypeError, op, f"{name} must be a number, got str", **{name: "3"})
    refuse(TypeError, op, f"{name} must be a number, got bool", **{name: True})
    for huge in (10**400, -(10**5000)):  # of which Python writes no digits
        sentence = f"{name} must be a number that float64 can hold, got one of {huge.bit_length()} bits"
        refuse(ValueError, op, sentence, **{name: huge})
    if name != "num_prompts":  # which of response_weights may be a tensor and has a sentence of its own
        sentence = rf"{name} must be a number, got a tensor \[2\] of torch.float32"
        refuse(TypeError, op, sentence, **{name: torch.ones(2)})


@pytest.mark.parametrize(
    ("op", "name"),
    [
        *((op, "ignore_index") for op in (*LOSSES, "response_weights")),
        *((op, "k") for op in ("neighbors", "facility_location", "select_responses")),
        *((op, "seed") for op in ("neighbors", "facility_location", "select_responses")),
        *(("allocate_k", name) for name in ("total", "min_k", "max_k")),
        *(("optimal_k", name) for name in ("max_k", "num_prompts")),
        ("vocabulary_parallel_cross_entropy", "first_class"),
        ("Neighbors.from_lists", "num_columns"),
    ],
)
def test_what_is_no_int_is_a_type_error_and_what_int64_cannot_hold_is_named(op: str, name: str) -> None:
    for value, kind in (("3", "str"), (True, "bool"), (2.0, "float")):
        refuse(TypeError, op, f"{name} must be an int.*, got {kind}", **{name: value})
    refuse(ValueError, op, rf"{name} must be an int from -2\*\*63 to 2\*\*63 - 1, got {HUGE}", **{name: HUGE})
    refuse(ValueError, op, rf"{name} must be an int from -2\*\*63 .*, got one of 16610 bits", **{name: 10**5000})


@pytest.mark.parametrize(
    ("op", "name", "sentence"),
    [
        *((op, "check", "True, False or None") for op in LOSSES),
        *((op, "return_details", "True or False") for op in LOSSES[:2]),
        ("cross_entropy", "inplace", "True or False"),
        ("neighbors", "exclude_self", "True, False or None"),
    ],
)
def test_a_word_is_no_flag(op: str, name: str, sentence: str) -> None:
    refuse(TypeError, op, f"{name} must be {sentence}, got 'no'", **{name: "no"})


def test_numbers_of_numpy_are_numbers() -> None:
    three, half = np.int64(3), np.float32(0.5)
    assert torch.equal(mk.neighbors(X, three).ids, mk.neighbors(X, 3).ids)
    for op in ("facility_location", "select_responses"):
        assert torch.equal(CALLS[op](k=three, seed=three).ids, CALLS[op](k=3, seed=3).ids)
    for value in (three, half):
        weights = CALLS["response_weights"](num_prompts=value, ignore_index=three)
        assert torch.equal(weights, CALLS["response_weights"](num_prompts=float(value), ignore_index=3))
    loss = CALLS["cross_entropy"](label_smoothing=half, softcap=three, ignore_index=three)
    assert torch.equal(loss, CALLS["cross_entropy"](label_smoothing=0.5, softcap=3, ignore_index=3))


def test_refusals_name_the_value_that_was_given() -> None:
    weight = torch.full((6,), 1e300, dtype=torch.float64)
    refuse(ValueError, "facility_location", r"weight must be finite in float32, got 1e\+300 at row 0", weight=weight)
    start = torch.tensor([1, 200])
    refuse(ValueError, "facility_location", "start must hold row numbers from 0 to 5, got 200", start=start)
    k = 2**63 - 1
    refuse(ValueError, "facility_location", f"k must be from 0 to the number of candidates 6, got {k}", k=k)


def test_refusals_name_the_function_and_the_argument_of_the_user() -> None:
    refuse(ValueError, "select_responses", "metric must be one of .*, got 'dot'", metric="dot")
    rule = r"must be on the device of embeddings \(cpu\), got meta"
    for name, value in (
        ("offsets", ENDS),
        ("k", ENDS[1:]),
        ("reward", X[:, 0]),
        ("group_key", ENDS[1:]),
    ):
        refuse(ValueError, "select_responses", f"{name} {rule}", **{name: value.to("meta")})
    for op in LOSSES[:2]:
        short = {"return_details": True, "offsets": ENDS[:2]}
        refuse(ValueError, op, "offsets must end with the number of targets 6, got 3", **short)


def test_the_module_knows_its_options() -> None:
    refuse(TypeError, "MultiResponseCrossEntropyLoss", "options must be among .*, got lablsmooth", lablsmooth=0.1)
    assert CALLS["MultiResponseCrossEntropyLoss"](label_smoothing=0.1, check=False).options["check"] is False


def test_gradients_by_torch_func_are_refused() -> None:
    sentence = "^similarity: x must be differentiated by backward, got a transform of torch.func$"
    with pytest.raises(RuntimeError, match=sentence):
        torch.func.grad(lambda x: mk.similarity(x).sum())(X)
