"""Rows of datasets become batches that know the prompt of every response, as claims."""

from __future__ import annotations

import doctest
import inspect
import itertools
import json
import math
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mrtkern as mk
from mrtkern.integrations.data import (
    PromptBatchSampler,
    ResponseCollator,
    TokenizedCollator,
    TokenRow,
    read_row,
    weights_of,
)
from tests.tools import oracle, tokens

IDS = [{"prompt": [5, 6], "responses": [[7, 8], [9]]}, {"prompt": [5], "responses": [[9, 9, 9], [], [4]]}]
LAYOUTS = ("padded", "padding_free")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    pytest.importorskip("transformers")
    return tokens.tokenizer()


def words(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False).replace(" ", "")


def learnt(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """The labels of each response, without those that are ignored."""
    if "response_offsets" not in batch:
        return [[i for i in row if i != -100] for row in batch["labels"].tolist()]
    labels, offsets = batch["labels"][0], batch["response_offsets"].tolist()
    assert all(int(labels[first]) == -100 for first in offsets[:-1])
    return [[i for i in labels[a:b].tolist() if i != -100] for a, b in itertools.pairwise(offsets)]


# Reading


@pytest.mark.parametrize("made", [list, tuple, np.asarray, torch.tensor], ids=lambda f: f.__name__)
def test_token_ids_are_taken_as_they_are(made: Any) -> None:
    row = {"prompt": made([5, 6]), "responses": [made([7, 8]), made([9])]}
    assert read_row(row) == TokenRow([5, 6], [[7, 8], [9]])


def test_text_is_tokenised_as_a_whole_and_ended(tokenizer: Any) -> None:
    read = read_row({"prompt": "cd", "responses": ["ab", "", "d</s>"]}, tokenizer)
    assert words(tokenizer, read.prompt) == "<s>cd"
    assert [words(tokenizer, ids) for ids in read.responses] == ["ab</s>", "</s>", "d</s>"]
    assert len(read.responses[0]) == 2  # the merge


def test_a_prompt_has_the_same_tokens_also_where_text_merges(tokenizer: Any) -> None:
    read = read_row({"prompt": "ca", "responses": ["bd", "cd"]}, tokenizer)
    assert [words(tokenizer, ids) for ids in (read.prompt, *read.responses)] == ["<s>ca", "bd</s>", "cd</s>"]


def test_messages_go_through_the_chat_template(tokenizer: Any) -> None:
    turns = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    answer = {"role": "assistant", "content": "z"}
    read = read_row({"prompt": turns, "responses": ["z", answer, [answer]]}, tokenizer)
    assert words(tokenizer, read.prompt) == "<system>x</s><user>y</s><assistant>"
    assert [words(tokenizer, ids) for ids in read.responses] == ["z</s>"] * 3


def test_prompts_and_responses_may_be_of_different_kinds(tokenizer: Any) -> None:
    z = tokenizer.convert_tokens_to_ids("z")
    assert read_row({"prompt": "c", "responses": [[z]]}, tokenizer).responses == [[z]]
    assert read_row({"prompt": [z], "responses": ["z"]}, tokenizer) == TokenRow([z], [[z, tokenizer.eos_token_id]])


def test_long_responses_lose_their_end_and_prompts_nothing() -> None:
    assert read_row(IDS[1], max_length=2) == TokenRow([5], [[9], [], [4]])
    with pytest.raises(ValueError, match=r"column 'prompt' must leave room .* max_length 2, got 2 tokens in the row$"):
        read_row(IDS[0], max_length=2)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"responses": [[1]]}, r"row 1 of the batch must have a column 'prompt', got responses \(.*remove_unused.*\)"),
        ({"prompt": [1], "responses": []}, "column 'responses' must hold a response at least, got none in row 1 .*"),
        ({"prompt": [1], "responses": "x"}, "column 'responses' must hold a list of responses, got 'x' in row 1 .*"),
        ({"prompt": [], "responses": [[1]]}, "column 'prompt' must hold a token, .*, got none in row 1 of the batch"),
        ({"prompt": [1.5], "responses": [[1]]}, r"column 'prompt' must hold text, .*, got \[1.5\] in row 1 .*"),
        ({"prompt": [1], "responses": [[True]]}, r"column 'responses' must hold text, .*, got \[True\] in row 1 .*"),
        ({"prompt": None, "responses": [[1]]}, "column 'prompt' must hold text, .*, got NoneType in row 1 .*"),
        ({"prompt": "x", "responses": [[1]]}, "tokenizer must be given for text and messages, got None in row 1 .*"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_cannot_be_read_are_named(layout: str, row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^ResponseCollator: {sentence}$"):
        ResponseCollator(layout=layout)([IDS[0], row])


def test_conversations_that_would_teach_other_tokens_are_refused(tokenizer: Any) -> None:
    question = [{"role": "user", "content": "y"}]
    tool = [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}]
    with pytest.raises(ValueError, match="must hold turns of the assistant alone, got one of 'tool' in the row"):
        read_row({"prompt": question, "responses": [tool]}, tokenizer)
    with pytest.raises(ValueError, match="must hold messages only where the prompt does, got messages in the row"):
        read_row({"prompt": "y", "responses": [tool[:1]]}, tokenizer)
    rewriting = tokens.tokenizer("{{ messages | length }}{% if add_generation_prompt %}<assistant>{% endif %}")
    with pytest.raises(ValueError, match="must leave its prompt as it is under the chat template"):
        read_row({"prompt": question, "responses": ["z"]}, rewriting)


@pytest.mark.parametrize("page", [read_row, ResponseCollator, TokenizedCollator], ids=lambda page: page.__name__)
def test_an_example_prints_what_it_says(page: Any) -> None:
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(page) or "", {}, page.__name__, None, None)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


# Batches


def test_padded_batches_hold_a_response_a_row() -> None:
    batch = ResponseCollator(pad_token_id=0, pad_to_multiple_of=3)(IDS)
    assert batch["input_ids"].tolist() == [
        [5, 6, 7, 8, 0, 0], [5, 6, 9, 0, 0, 0], [5, 9, 9, 9, 0, 0], [5, 0, 0, 0, 0, 0], [5, 4, 0, 0, 0, 0]
    ]  # fmt: skip
    assert batch["attention_mask"].sum(1).tolist() == [4, 3, 4, 1, 2]
    assert learnt(batch) == [[7, 8], [9], [9, 9, 9], [], [4]]
    assert batch["prompt"].tolist() == [0, 0, 1, 1, 1]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_padding_free_batches_restart_positions_with_each_sequence() -> None:
    batch = ResponseCollator(layout="padding_free")(IDS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 5, 6, 9, 5, 9, 9, 9, 5, 5, 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 0, 0, 1]]
    assert batch["response_offsets"].tolist() == [0, 4, 7, 11, 12, 14]
    assert learnt(batch) == [[7, 8], [9], [9, 9, 9], [], [4]]
    assert batch["prompt"].tolist() == [0, 0, 1, 1, 1]
    assert {value.dtype for value in batch.values()} == {torch.int64}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_with_equal_text_stay_two(layout: str, tokenizer: Any) -> None:
    row = {"prompt": "cd", "responses": ["x", "y"]}
    assert ResponseCollator(tokenizer, layout=layout)([row, row])["prompt"].tolist() == [0, 0, 1, 1]
    long = [{"prompt": "cd", "response": "x", "prompt_id": i} for i in ("p", "q", "p")]
    collate = ResponseCollator(tokenizer, layout=layout, responses="response", prompt_id="prompt_id")
    assert collate(long)["prompt"].tolist() == [0, 1, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_per_response_gives_the_same_batch(layout: str) -> None:
    nested = ResponseCollator(layout=layout)(IDS)
    rows = [{"p": row["prompt"], "r": ids, "i": name} for row, name in zip(IDS, "ab", strict=True)
            for ids in row["responses"]]  # fmt: skip
    flat = ResponseCollator(layout=layout, prompt="p", responses="r", prompt_id="i")(rows)
    key = flat.pop("prompt_key")
    assert flat.keys() == nested.keys()
    assert all(torch.equal(flat[name], nested[name]) for name in nested)
    assert torch.equal(key, mk.group(["a", "b"])[2][nested["prompt"]])


def one_each(ids: list[Any]) -> dict[str, dict[str, torch.Tensor]]:
    """A batch of rows with these ids of prompts, by both collators that read such rows."""
    rows = [{"prompt": [1], "r": [2], "input_ids": [1, 2], "labels": [-100, 2], "i": value} for value in ids]
    return {
        "ResponseCollator": ResponseCollator(responses="r", prompt_id="i")(rows),
        "TokenizedCollator": TokenizedCollator("i")(rows),
    }


def test_a_prompt_has_whatever_names_it_elsewhere() -> None:
    name = uuid.UUID(int=5)
    ids = [
        name,
        b"\xff",
        "a",
        np.int64(7),
        str(name),
        torch.tensor(7),
        np.array(7),
        "7",
        np.str_("a"),
        np.bytes_(b"\xff"),
    ]
    for batch in one_each(ids).values():
        assert batch["prompt"].tolist() == [0, 1, 2, 3, 0, 3, 3, 3, 2, 1]
        assert batch["prompt_key"].tolist() == mk.group([name, b"\xff", "a", 7])[2][batch["prompt"]].tolist()


@pytest.mark.parametrize("op", ["ResponseCollator", "TokenizedCollator"])
@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (None, "hold an id in every row, got None"),
        ("", "hold an id in every row, got ''"),
        (math.nan, "hold an id in every row, got nan"),
        (1.5, "hold texts, whole numbers, bytes or UUIDs, got float"),
        (True, "hold texts, whole numbers, bytes or UUIDs, got bool"),
        ([7], "hold texts, whole numbers, bytes or UUIDs, got list"),
        ("\ud800", r"hold texts that UTF-8 can write, got '\\ud800'"),
    ],
)
def test_rows_without_the_id_of_their_prompt_are_named(op: str, value: Any, rule: str) -> None:
    row = {"prompt": [1], "r": [2], "input_ids": [1, 2], "labels": [-100, 2], "i": 3}
    collate = ResponseCollator(responses="r", prompt_id="i") if op == "ResponseCollator" else TokenizedCollator("i")
    with pytest.raises(ValueError, match=f"^{op}: column 'i' must {rule} in row 1 of the batch$"):
        collate([row, {**row, "i": value}])


def test_weights_travel_as_integers_and_come_back_exactly() -> None:
    shares = [[0.1, 1 / 3], [math.pi, -0.0, 5e-324]]
    rows = [{**row, "share": share} for row, share in zip(IDS, shares, strict=True)]
    batch = ResponseCollator(weight="share")(rows)
    assert {value.dtype for value in batch.values()} == {torch.int64}  # what casts floats finds none
    found = weights_of(batch)
    assert found is not None and found.tolist() == [v for share in shares for v in share]
    assert weights_of(ResponseCollator()(IDS)) is None
    for bad in ([0.5], [0.5, math.nan], [0.5, "x"], 0.5, None, [0.5, 10**400], [[-(10**5000)], 0], [0.5, True]):
        with pytest.raises(ValueError, match="column 'share' must hold a finite number for each of 2 responses, got "):
            ResponseCollator(weight="share")([{**IDS[0], "share": bad}])


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^ResponseCollator: layout must be one of padded, padding_free, got .packed"):
        ResponseCollator(layout="packed")


INTS: list[tuple[str, str, int, Callable[[Any], object]]] = [
    ("ResponseCollator", "max_length", 1, lambda value: ResponseCollator(max_length=value)),
    ("ResponseCollator", "pad_to_multiple_of", 1, lambda value: ResponseCollator(pad_to_multiple_of=value)),
    ("ResponseCollator", "pad_token_id", 0, lambda value: ResponseCollator(pad_token_id=value)),
    ("TokenizedCollator", "pad_to_multiple_of", 1, lambda value: TokenizedCollator("i", pad_to_multiple_of=value)),
    ("TokenizedCollator", "pad_token_id", 0, lambda value: TokenizedCollator("i", pad_token_id=value)),
    ("read_row", "max_length", 1, lambda value: read_row(IDS[0], max_length=value)),
    ("PromptBatchSampler", "prompts_per_batch", 1, lambda value: PromptBatchSampler([1], value)),
    ("PromptBatchSampler", "accumulation", 1, lambda value: PromptBatchSampler([1], 1, accumulation=value)),
    ("PromptBatchSampler", "seed", 0, lambda value: PromptBatchSampler([1], 1, seed=value)),
    ("PromptBatchSampler", "epoch", 0, lambda value: PromptBatchSampler([1], 1).set_epoch(value)),
    ("PromptBatchSampler", "batches", 0, lambda value: PromptBatchSampler([1], 1).state_dict(value)),
]


@pytest.mark.parametrize(("op", "name", "least", "call"), INTS, ids=[f"{op}-{name}" for op, name, *_ in INTS])
def test_what_is_no_whole_number_is_refused(op: str, name: str, least: int, call: Callable[[Any], object]) -> None:
    at_least, below = f"an int of at least {least}", r"an int below 2\*\*63"
    refused = (
        (least - 1, str(least - 1)),
        (1.0, "1.0"),
        ("8", "'8'"),
        (True, "True"),
        (-(10**5000), "one of 16610 bits"),
    )
    cases = [(value, at_least, got) for value, got in refused]
    for value, rule, got in [*cases, (2**63, below, str(2**63)), (10**5000, below, "one of 16610 bits")]:
        with pytest.raises(ValueError, match=f"^{op}: {name} must be {rule}, got {got}$"):
            call(value)


def test_no_multiple_is_a_multiple_of_one() -> None:
    for made in (ResponseCollator(pad_to_multiple_of=None)(IDS), ResponseCollator(pad_to_multiple_of=np.int64(1))(IDS)):
        assert all(torch.equal(made[name], value) for name, value in ResponseCollator()(IDS).items())
    row = {"input_ids": [5, 6], "labels": [-100, 6], "i": 0}
    assert TokenizedCollator("i", pad_to_multiple_of=None)([row])["input_ids"].tolist() == [[5, 6]]


@pytest.mark.parametrize(
    "collate",
    [
        ResponseCollator(),
        ResponseCollator(layout="padding_free"),
        ResponseCollator(prompt_id="i"),
        TokenizedCollator("i"),
    ],
    ids=["padded", "padding_free", "prompt_id", "tokenized"],
)
def test_a_batch_of_no_rows_is_refused(collate: Any) -> None:
    with pytest.raises(ValueError, match=f"^{type(collate).__name__}: rows must be one at least, got none$"):
        collate([])


def test_the_state_of_a_sampler_is_json_whatever_ints_it_was_made_of() -> None:
    four, no = np.int64(4), np.bool_(False)
    made = PromptBatchSampler(
        list("abcdefgh"), four, world_size=np.int32(1), seed=np.uint8(3), shuffle=no, drop_last=no
    )
    made.set_epoch(np.int64(2))
    state = json.loads(json.dumps(made.state_dict(np.int64(1))))
    again = PromptBatchSampler(list("abcdefgh"), 4, seed=3, shuffle=False)
    again.load_state_dict(state)
    assert (again.epoch, list(again)) == (2, [[4, 5, 6, 7]])
    for broken, sentence in (({"batches": None}, "batches of a state must be an int .*, got None"),
                             ({"epoch": "x"}, "epoch of a state must be an int .*, got 'x'"),
                             ({"batches": 3}, "state must be of 0 to 2 batches, got 3")):  # fmt: skip
        with pytest.raises(ValueError, match=f"^PromptBatchSampler: {sentence}$"):
            again.load_state_dict({**state, **broken})
    with pytest.raises(TypeError, match=r"^PromptBatchSampler: shuffle must be True or False, got 'no'$"):
        PromptBatchSampler(["a"], 1, shuffle="no")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("normalize", "right"), [("token", 7 / 5), ("response", 7 / 3), ("prompt", 2.5), ("prompt_token", 2.0)]
)
def test_means_are_those_of_prompts_and_of_responses(layout: str, normalize: str, right: float) -> None:
    """Prompt A: a response of 1 token with loss 4 and one of 3 with loss 0; prompt B: one of 1 token with loss 3."""
    batch = ResponseCollator(layout=layout)(
        [{"prompt": [1, 1], "responses": [[4], [2, 2, 2]]}, {"prompt": [1], "responses": [[3]]}]
    )
    targets = batch["labels"].reshape(-1) if layout == "padding_free" else batch["labels"]
    losses = torch.tensor([0.0, 9.0, 0.0, 3.0, 4.0], dtype=torch.float64)[targets.clamp(min=0)]
    w = mk.response_weights(targets, normalize, offsets=batch.get("response_offsets"), prompt=batch["prompt"])
    oracle.assert_summed((w.double() * losses).sum().float(), torch.tensor(right, dtype=torch.float64), 5, 4.0)


@pytest.mark.parametrize("token", [-100, 2**70])
def test_what_is_no_token_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match="hold text, token ids or messages"):
        ResponseCollator()([{"prompt": [5], "responses": [[token, 3]]}])
