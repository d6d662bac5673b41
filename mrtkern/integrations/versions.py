"""Versions of other people's libraries that the tests have run with: a version outside works or not, nobody knows."""

from __future__ import annotations

import importlib.metadata
import re
import warnings

# library: the oldest and the newest release with which the tests of its integration passed
TESTED = {
    "transformers": ("5.0.0", "5.24.0"),
    "lightning": ("2.5.0", "2.6.6"),
    "trl": ("1.15.0", "1.16.0"),
    "verl": ("0.9.1", "0.9.1"),
    "axolotl": ("0.19.0", "0.19.0"),
}

_warned: set[str] = set()


def _numbers(version: str) -> tuple[int, ...]:
    """What orders releases; their third number on does not count at the newest end, because those mend."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def warn_outside(library: str) -> None:
    """Says once per library that its installed version is older or newer than those that were tested.

    library : a key of TESTED, by its name on the package index.
    """
    oldest, newest = TESTED[library]
    found = importlib.metadata.version(library)
    is_inside = _numbers(oldest) <= _numbers(found) and _numbers(found)[:2] <= _numbers(newest)[:2]
    if not is_inside and library not in _warned:
        _warned.add(library)
        warnings.warn(f"mrtkern.integrations: {library} {oldest} to {newest} are tested, got {found}", stacklevel=3)
