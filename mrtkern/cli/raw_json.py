"""Lines of JSON as they are written: where their values stand, so that a writer can copy them without a change.

A parser would turn 12345678901234567890 into 1.2345678901234567e+19, 1.50 into 1.5, and add the keys of other rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

SPACE = re.compile(r"[ \t\r\n]*")
# numbers stay text: Python refuses whole ones of more than 4,300 digits
DECODE = json.JSONDecoder(strict=False, parse_int=str, parse_float=str, parse_constant=str).raw_decode

Span = tuple[int, int]


def members(text: str, start: int = 0) -> dict[str, Span]:
    """Where the value of every key of the object that begins at `start` stands. Its JSON must be valid."""
    found = {}
    at = skip(text, text.index("{", start) + 1)
    while text[at] != "}":
        key, at = DECODE(text, at)
        first = skip(text, skip(text, at) + 1)  # behind the colon
        _, end = DECODE(text, first)
        found[key] = (first, end)
        at = behind_comma(text, end)
    return found


def entries(text: str, start: int) -> Iterator[Span]:
    """Where every entry of the list that begins at `start` stands."""
    at = skip(text, start + 1)
    while text[at] != "]":
        _, end = DECODE(text, at)
        yield at, end
        at = behind_comma(text, end)


def cut(text: str, span: Span, picked: list[int]) -> str:
    """The list at `span` with the entries `picked` alone, in that order."""
    spans = list(entries(text, span[0]))
    return "[" + ", ".join(text[slice(*spans[i])] for i in picked) + "]"


def skip(text: str, at: int) -> int:
    """The first place from `at` on that is no space."""
    found = SPACE.match(text, at)
    assert found is not None
    return found.end()


def behind_comma(text: str, at: int) -> int:
    """Where the next value begins, or the bracket that closes."""
    at = skip(text, at)
    return skip(text, at + 1) if text[at] == "," else at
