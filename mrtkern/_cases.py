"""A problem with a name: what tests, benchmarks and documents of an operation share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar


class _MakesInputs(Protocol):
    def make_inputs(self, seed: int = 0) -> dict[str, Any]: ...


P = TypeVar("P", bound=_MakesInputs)


@dataclass(frozen=True)
class Case(Generic[P]):
    """A problem with a name and the places that use it: "test", "bench", and what an operation names beside."""

    name: str
    problem: P
    tags: frozenset[str]

    def make_inputs(self, seed: int = 0) -> dict[str, Any]:
        """Arguments of the public function; the same seed gives the same bits."""
        return self.problem.make_inputs(seed)
