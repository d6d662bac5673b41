"""Pages of the public functions: each has the same sections in the same order, and its example prints what it says."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import mrtkern

FUNCTIONS = {
    name: value for name in mrtkern.__all__ if inspect.isfunction(inspect.unwrap(value := getattr(mrtkern, name)))
}
SECTIONS = (
    "Arguments", "Returns", "Gradient", "Precision", "Raises", "Memory", "Devices", "Determinism", "Example", "Source",
)  # fmt: skip
SOMETIMES = {"Gradient", "Precision", "Devices"}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def sections(function: Callable[..., Any]) -> dict[str, str]:
    """Text under each head of a docstring, in order."""
    parts = re.split(r"^(\w+)\n-+$", inspect.getdoc(function) or "", flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@every_function
def test_a_page_has_the_sections_in_their_order_and_none_is_empty(function: Callable[..., Any]) -> None:
    found = sections(function)
    assert list(found) == [head for head in SECTIONS if head in found]
    assert set(SECTIONS) - set(found) <= SOMETIMES
    assert all(text.strip() for text in found.values())


@every_function
def test_a_page_underlines_heads_at_their_length(function: Callable[..., Any]) -> None:
    heads = re.findall(r"^(\w+)\n(-+)$", inspect.getdoc(function) or "", re.MULTILINE)
    assert [head for head, line in heads if len(head) != len(line)] == []


@every_function
def test_a_page_names_every_argument(function: Callable[..., Any]) -> None:
    said = set(re.findall(r"\w+", sections(function)["Arguments"]))
    assert set(inspect.signature(function).parameters) - said == set()


@every_function
def test_a_page_says_where_its_gradient_goes_or_that_there_is_none(function: Callable[..., Any]) -> None:
    found = sections(function)
    assert ("Gradient" in found) != ("No gradient." in found["Returns"])


@every_function
def test_an_example_prints_what_it_says(function: Callable[..., Any]) -> None:
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(function) or "", {}, function.__name__, None, None)
    if torch.__version__ < (2, 8) and "destroy_process_group" in example.docstring:
        pytest.skip("a gloo group of torch before 2.8 may wait for ever for its thread, which waits for Python's lock")
    assert any(one.want for one in example.examples)
    said: list[str] = []
    assert doctest.DocTestRunner().run(example, out=said.append).failed == 0, "".join(said)
