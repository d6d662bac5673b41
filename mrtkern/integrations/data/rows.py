"""A row of a dataset, one prompt with its K responses, read into token ids: from text, token ids or chat messages.

A prompt has the same tokens before each of its responses, so that they can share one pass over it:

    token ids   as they are
    text        what tokenizer(prompt + response) has after the tokens of tokenizer(prompt), where it begins with them;
                else, when the last piece of the prompt and the first of the response merge, the tokens of the response
                alone. The end-of-sequence token follows, unless it is there
    messages    what the chat template of prompt and response has after that of the prompt with the opening of an answer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from mrtkern.integrations.data import checks

LETTERS = 40  # of a value that is refused are shown
ROLES = ("assistant", "model")  # whose turns are learnt


class TokenRow(NamedTuple):
    """A prompt and its responses as token ids."""

    prompt: list[int]
    responses: list[list[int]]


def read_row(
    row: Mapping[str, Any],
    tokenizer: Any = None,
    *,
    prompt: str = "prompt",
    responses: str = "responses",
    max_length: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    op: str = "read_row",
    where: str = "the row",
) -> TokenRow:
    """The tokens of a prompt and those of its K responses; K may differ from row to row.

    Arguments
    ---------
    row : mapping
        The column `prompt` holds a text, token ids, or messages {"role", "content"}; `responses` a list of as many as
        there are, each a text, token ids, or one message or several of the assistant. A text after messages is one
        turn of the assistant. Lists may be arrays and tensors.
    tokenizer : a tokenizer of transformers, optional
        Needed by texts and messages.
    prompt, responses : str
        The names of the columns.
    max_length : int, optional
        Of prompt and response together: a response keeps its first max_length - len(prompt) tokens. A prompt is never
        cut; one that leaves no room for a token of a response is refused.
    chat_template_kwargs : mapping, optional
        Handed on to tokenizer.apply_chat_template.
    op, where : str
        Who reads and which row it is, for sentences about rows that cannot be read.

    Returns
    -------
    TokenRow
        prompt: list of int, not empty; responses: K lists of int, which may be empty.

    Raises
    ------
    ValueError
        Naming column and row: a column that is not there, values of another kind, a prompt without tokens or without
        responses, turns of others among the responses, a chat template that rewrites the prompt.

    Memory
    ------
    The lists.

    Determinism
    -----------
    The same tokens for every batch and order in which rows come.

    Example
    -------
    >>> from mrtkern.integrations.data import read_row
    >>> read_row({"prompt": [5, 6], "responses": [[7, 8], [9]]})
    TokenRow(prompt=[5, 6], responses=[[7, 8], [9]])
    """
    reader = _Reader(op, where, tokenizer, prompt, responses, dict(chat_template_kwargs or {}))
    return _cut(reader, reader.read(row), max_length)


def _cut(reader: _Reader, read: TokenRow, max_length: int | None) -> TokenRow:
    if max_length is None:
        return read
    room = checks.whole(reader.op, "max_length", max_length, 1) - len(read.prompt)
    if room < 1:
        rule = f"leave room for a token of a response in max_length {max_length}"
        reader.refuse(reader.prompt, rule, f"{len(read.prompt)} tokens")
    return TokenRow(read.prompt, [ids[:room] for ids in read.responses])


@dataclass(frozen=True)
class _Reader:
    """One row, and how it is read."""

    op: str
    where: str
    tokenizer: Any
    prompt: str
    responses: str
    chat: dict[str, Any]

    def read(self, row: Mapping[str, Any]) -> TokenRow:
        given = self.column(row, self.prompt)
        kind = self.kind(self.prompt, given)
        listed = self.column(row, self.responses)
        if not isinstance(listed, list):
            self.refuse(self.responses, "hold a list of responses", shown(listed))
        if not listed:
            self.refuse(self.responses, "hold a response at least", "none")
        answers = [plain(answer) for answer in listed]
        kinds = [self.kind(self.responses, answer) for answer in answers]
        before = given if kind == "ids" else self.text(given) if kind == "text" else self.opening(given)
        if not before:
            self.refuse(self.prompt, "hold a token, from which the first of a response is predicted", "none")
        texts = [r for r, name in enumerate(kinds) if name == "text"]
        if kind == "text":
            both = self.texts([given + answers[r] for r in texts])
            for r, ids in zip(texts, both, strict=True):
                answers[r] = self.after(before, ids, answers[r])
        elif kind == "ids":
            for r in texts:
                answers[r] = self.ended(self.tokens(answers[r], add_special_tokens=False))
        else:
            for r in texts:
                answers[r], kinds[r] = [{"role": ROLES[0], "content": answers[r]}], "messages"
        for r, name in enumerate(kinds):
            if name == "messages":
                answers[r] = self.answer(given if kind == "messages" else None, before, answers[r])
        return TokenRow(before, answers)

    def column(self, row: Mapping[str, Any], name: str) -> Any:
        """A value of the row."""
        if name not in row:
            have = ", ".join(map(str, row)) or "none"
            raise ValueError(
                f"{self.op}: {self.where} must have a column {name!r}, got {have} "
                "(transformers' Trainer drops columns unless remove_unused_columns=False)"
            )
        return plain(row[name])

    def kind(self, column: str, value: Any) -> str:
        """Text, ids or messages."""
        if isinstance(value, str):
            return "text"
        if isinstance(value, dict):
            value = [value]
        if isinstance(value, list):
            if checks.are_whole(value, 0):
                return "ids"
            if all(isinstance(entry, dict) and {"role", "content"} <= set(entry) for entry in value):
                return "messages"
        return self.refuse(column, "hold text, token ids or messages with role and content", shown(value))

    def refuse(self, column: str, rule: str, got: str) -> NoReturn:
        raise ValueError(f"{self.op}: column {column!r} must {rule}, got {got} in {self.where}")

    def needed(self) -> Any:
        """The tokenizer."""
        if self.tokenizer is None:
            raise ValueError(f"{self.op}: tokenizer must be given for text and messages, got None in {self.where}")
        return self.tokenizer

    def tokens(self, text: str, **options: Any) -> list[int]:
        return list(self.needed()(text, **options)["input_ids"])

    def texts(self, given: list[str]) -> list[list[int]]:
        return list(self.needed()(given)["input_ids"]) if given else []

    def text(self, given: str) -> list[int]:
        """A prompt, which an end-of-sequence token put there by the tokenizer does not end."""
        ids, end = self.tokens(given), self.tokenizer.eos_token_id
        if ids and ids[-1] == end and not given.endswith(self.tokenizer.eos_token):
            ids.pop()
        return ids

    def after(self, before: list[int], both: list[int], text: str) -> list[int]:
        """The tokens of a response after those of its prompt."""
        follows = both[: len(before)] == before
        return self.ended(both[len(before) :] if follows else self.tokens(text, add_special_tokens=False))

    def ended(self, ids: list[int]) -> list[int]:
        """With the end-of-sequence token, if there is one."""
        end = self.needed().eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]

    def opening(self, messages: list[Any]) -> list[int]:
        """The tokens of a prompt of messages, and of the opening of an answer."""
        return self.templated(messages, add_generation_prompt=True)

    def templated(self, messages: list[Any], **options: Any) -> list[int]:
        made = self.needed().apply_chat_template(messages, tokenize=True, return_dict=True, **options, **self.chat)
        return list(made["input_ids"])

    def answer(self, messages: list[Any] | None, before: list[int], turns: Any) -> list[int]:
        """The tokens of a response of messages."""
        turns = [turns] if isinstance(turns, dict) else turns
        if messages is None:
            self.refuse(self.responses, "hold messages only where the prompt does", "messages")
        others = [turn["role"] for turn in turns if turn["role"] not in ROLES]
        if others:
            self.refuse(self.responses, "hold turns of the assistant alone", f"one of {shown(others[0])}")
        both = self.templated([*messages, *turns])
        if both[: len(before)] != before:
            rule = "leave its prompt as it is under the chat template (give texts or token ids instead)"
            self.refuse(self.responses, rule, "other tokens before the response")
        return both[len(before) :]


def plain(value: Any) -> Any:
    """Arrays, tensors and tuples as lists, their numbers as those of Python."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return value
    return [entry if isinstance(entry, (int, str, dict)) else plain(entry) for entry in value]


def shown(value: Any) -> str:
    """A value as part of a sentence."""
    if not isinstance(value, (str, list)):
        return type(value).__name__
    text = checks.digits(value)
    return text if len(text) <= LETTERS else text[:LETTERS] + "…"
