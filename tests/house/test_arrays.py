"""Every public function takes numpy arrays, lists and int32 offsets where it takes tensors, with the same result."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mrtkern as mk

made = torch.Generator().manual_seed(3)
X, Y = torch.randn(6, 4, generator=made), torch.randn(3, 4, generator=made)
ROWS, POSITIVE = torch.rand(6, generator=made), torch.rand(6, 6, generator=made)
ENDS, TWO = torch.tensor([0, 4, 6]), torch.tensor([2, 1])
TARGETS, PROMPT = torch.tensor([0, 1, 2, -100, 0, 3]), torch.tensor([7, 9])
ENTRIES, ENTRY_ENDS = torch.tensor([0, 1, 2, 3, 0, 1, 2]), torch.tensor([0, 2, 3, 4, 5, 6, 7])
CLASSES = torch.tensor([0, 1, 0, 1, 1, 0])
MASK = torch.tensor([True, False, True, True, True, True])
MATRIX = torch.tensor([[0, 1, 2], [3, 0, -100]])
DETAILS = {"return_details": True, "offsets": ENDS, "prompt": PROMPT}
COUNTS = {"responses_per_prompt": TWO, "tokens_per_response": 2 * TWO, "tokens_per_prompt": ROWS[:2]}

# every tensor of every public function, in calls that may have them together
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("similarity", {"x": X, "y": Y}),
    ("similarity", {"x": X.double(), "offsets": ENDS}),
    ("neighbors", {"x": X, "k": 2, "y": Y}),
    ("neighbors", {"x": X, "k": 2, "exclude_group": MATRIX.reshape(-1)}),
    ("deduplicate", {"x": X.half(), "threshold": 0.5, "offsets": ENDS}),
    ("facility_location", {"x": X, "k": TWO, "offsets": ENDS, "group_key": PROMPT, "fill": "random"}),
    ("facility_location", {"x": X, "k": 2, "targets": Y, "weight": ROWS[:3], "quality": ROWS, "bonus": ROWS}),
    ("facility_location", {"similarity": POSITIVE, "k": 2, "start": TWO[:1], "mask": MASK}),
    ("facility_location", {"x": X, "k": 2, "picks": TWO}),
    ("facility_location", {"x": X, "cost": CLASSES + 1, "budget": TWO + 1, "offsets": ENDS}),
    ("facility_location", {"x": X, "k": 2, "group": CLASSES, "group_cap": TWO, "group_min": TWO - 1}),
    (
        "maximize",
        {
            "objective": "log_det", "x": X, "k": TWO, "offsets": ENDS, "quality": ROWS, "mask": MASK,
            "group_key": PROMPT,
        },
    ),
    ("maximize", {"objective": "graph_cut", "similarity": POSITIVE + POSITIVE.T, "k": 2}),
    ("select_stages", {"x": X, "k": (1, 2), "start": TWO[:1], "mask": MASK}),
    (
        "select_responses",
        {"embeddings": X, "offsets": ENDS, "k": TWO, "method": "reward", "reward": ROWS, "group_key": PROMPT},
    ),
    ("cross_entropy", {"logits": X, "targets": TARGETS, "token_weight": ROWS, **DETAILS}),
    ("cross_entropy", {"logits": X.double(), "targets": ENTRIES, "target_offsets": ENTRY_ENDS}),
    ("cross_entropy", {"logits": X.reshape(2, 3, 4), "targets": MATRIX, "token_weight": ROWS.reshape(2, 3)}),
    ("linear_cross_entropy", {"hidden": X, "weight": X, "bias": ROWS, "targets": TARGETS, "token_weight": ROWS}),
    ("linear_cross_entropy", {"hidden": X, "weight": X, "targets": TARGETS, **DETAILS}),
    ("linear_cross_entropy", {"hidden": X, "weight": X, "targets": ENTRIES, "target_offsets": ENTRY_ENDS}),
    ("linear_log_prob", {"hidden": X, "weight": X, "bias": ROWS, "targets": TARGETS}),
    ("linear_log_prob", {"hidden": X.reshape(2, 3, 4), "weight": X, "targets": MATRIX}),
    ("response_weights", {"targets": TARGETS, "normalize": "prompt_token", "offsets": ENDS, "prompt": PROMPT,
                          "response_weight": ROWS[:2], "num_prompts": ROWS.sum(), **COUNTS}),
    ("response_weights", {"targets": MATRIX, "normalize": "token", "num_tokens": ROWS.sum()}),
    ("response_weights", {"targets": MATRIX, "normalize": "response", "num_responses": ROWS.sum()}),
    ("variance_components", {"values": X, "offsets": ENDS}),
    ("allocate_k", {"score": ROWS[:2], "total": 5, "min_k": TWO, "max_k": 4 * TWO}),
    ("Neighbors.from_lists", {"ids": TWO[:, None] - 1, "scores": ROWS[:2, None]}),
]  # fmt: skip
APART = {
    "vocabulary_parallel_cross_entropy": "below", "vocabulary_parallel_linear_cross_entropy": "below",
    "group": "its ids are a sequence of any kind", "graph": "is sparse", "k": "may be an int",
}  # fmt: skip
KINDS: dict[str, Callable[[Tensor], Any]] = {
    "numpy": lambda x: x.numpy(),
    "lists": lambda x: x.tolist(),
    "views": lambda x: np.flip(np.flip(x.numpy(), 0).copy(), 0) if x.ndim else x.numpy(),
    "int32": lambda x: x.int().numpy() if x.dtype == torch.int64 else x.numpy(),
}


def function(name: str) -> Callable[..., Any]:
    return mk.Neighbors.from_lists if "." in name else getattr(mk, name)


def flat(found: Any) -> Iterator[Tensor]:
    """The tensors of a result."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, (tuple, list)):
        for part in found:
            yield from flat(part)
    else:
        fields = vars(found) if dataclasses.is_dataclass(found) else found._asdict()
        yield from (torch.as_tensor(value) for value in fields.values() if isinstance(value, (Tensor, float)))


def same(got: Any, expected: Any) -> bool:
    pairs = list(zip(flat(got), flat(expected), strict=True))
    return bool(pairs) and all(a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "given"), CALLS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CALLS)])
def test_arrays_and_lists_are_taken_as_tensors(name: str, given: dict[str, Any], kind: str) -> None:
    if kind == "lists":  # which have no type, and become float32
        given = {key: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in given.items()}
    arrays = {key: KINDS[kind](x) if isinstance(x, Tensor) else x for key, x in given.items()}
    assert same(function(name)(**arrays), function(name)(**given))


def test_the_calls_hold_every_tensor_of_every_public_function() -> None:
    held = {name: {key for called, given in CALLS if called == name for key in given} for name, _ in CALLS}
    missing = {
        f"{name}: {key}"
        for name in mk.__all__
        if inspect.isfunction(inspect.unwrap(getattr(mk, name))) and name not in APART
        for key, parameter in inspect.signature(getattr(mk, name)).parameters.items()
        if any(kind in str(parameter.annotation) for kind in ("Array", "Tensor", "Count")) and key not in APART
        if key not in held.get(name, set())
    }
    assert missing == set()


def test_offsets_of_int32_are_taken() -> None:
    for name, given in CALLS:
        narrow = {key: x.int() if key.endswith("offsets") else x for key, x in given.items()}
        if any(x is not given[key] for key, x in narrow.items()):
            assert same(function(name)(**narrow), function(name)(**given)), name


def test_the_module_and_groups_of_two_sets_take_arrays() -> None:
    crit = mk.MultiResponseCrossEntropyLoss("prompt")
    assert torch.equal(crit(X.numpy(), TARGETS.tolist(), offsets=[0, 4, 6], prompt=np.array([7, 7])),
                       crit(X, TARGETS, offsets=ENDS, prompt=torch.tensor([7, 7])))  # fmt: skip
    pair = ([0, 1, 2, 0, 1, 2], np.array([0, 1, 2]))
    tensors = tuple(torch.tensor(labels) for labels in pair)
    assert same(mk.neighbors(X, 1, y=Y, exclude_group=pair), mk.neighbors(X, 1, y=Y, exclude_group=tensors))


def test_losses_over_a_split_vocabulary_take_arrays() -> None:
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        options = {"first_class": 0, "process_group": dist.group.WORLD}
        for call, given in (
            (mk.vocabulary_parallel_cross_entropy, {"logits": X, "targets": TARGETS, "token_weight": ROWS}),
            (mk.vocabulary_parallel_linear_cross_entropy, {"hidden": X, "weight": X, "bias": ROWS, "targets": TARGETS}),
        ):
            expected = call(**given, **options)
            for kind in ("numpy", "lists"):
                assert torch.equal(call(**{name: KINDS[kind](x) for name, x in given.items()}, **options), expected)
    finally:
        dist.destroy_process_group()


def test_numbers_keep_their_type_and_lists_are_float32() -> None:
    x = X.double().numpy()
    for dtype in (np.float64, np.float32, np.float16):
        assert mk.similarity(x.astype(dtype)).numpy().dtype == dtype
    assert mk.similarity(x.tolist()).dtype == torch.float32
    assert mk.similarity([[1, 0], [0, 1]]).dtype == torch.float32
    assert torch.equal(mk.similarity(x.astype(">f8")), mk.similarity(x))


def test_nothing_of_an_array_is_overwritten_unless_asked() -> None:
    logits = X.numpy().copy()
    logits.flags.writeable = False
    mk.cross_entropy(logits, TARGETS)
    assert (logits == X.numpy()).all()
    logits = logits.copy()
    mk.cross_entropy(logits, TARGETS, inplace=True)
    assert (logits != X.numpy()).any()


@pytest.mark.parametrize(
    ("value", "error", "sentence"),
    [
        ("word", TypeError, "str"),
        (3.0, TypeError, "float"),
        (np.float32(3), TypeError, "float32"),
        ([["a"]], TypeError, "list of <U1"),
        (np.zeros(2, dtype=complex), TypeError, "ndarray of complex128"),
        ([[1.0], [1.0, 2.0]], ValueError, "list of lists of several lengths"),
        ([X[0], X[1]], TypeError, "list of tensors"),
    ],
)
def test_what_holds_no_numbers_is_refused_in_a_sentence(value: Any, error: type[Exception], sentence: str) -> None:
    rule = "x must be a tensor, an array or a list of numbers, got"
    with pytest.raises(error, match=f"^similarity: {rule} {sentence}$"):
        mk.similarity(value)


def test_numbers_of_another_type_are_refused_as_those_of_a_tensor_are() -> None:
    with pytest.raises(ValueError, match=r"^similarity: x must be float32, .*, got torch\.int64$"):
        mk.similarity(np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(ValueError, match=r"^cross_entropy: targets must be int64, got torch\.float32$"):
        mk.cross_entropy(X, [0.5] * 6)
    with pytest.raises(ValueError, match=r"^cross_entropy: targets must be int64, got torch\.bool$"):
        mk.cross_entropy(X, [True] * 6)
    with pytest.raises(ValueError, match=r"^cross_entropy: targets must be int64, got torch\.int32$"):
        mk.cross_entropy(X, TARGETS.int())


def test_compiled_calls_of_tensors_and_arrays_stay_one_graph() -> None:
    def loss(x: Tensor, targets: Tensor, ends: Tensor) -> Any:
        w = mk.response_weights(targets, "response", offsets=ends)
        return mk.cross_entropy(x, targets, token_weight=w)

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    assert torch.equal(compiled(X, TARGETS, ENDS), loss(X, TARGETS, ENDS))
    assert torch.equal(compiled(X, TARGETS, ENDS.int()), loss(X, TARGETS, ENDS))
