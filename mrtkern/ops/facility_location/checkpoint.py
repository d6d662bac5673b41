"""The picks of a long call in a file: written whole or not at all, taken up by the same call only."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrtkern import _check

VERSION = 1
CHUNK = 1 << 16  # rows hashed at a time


class Saved(NamedTuple):
    """Picks in order, what each gained in steps, and the bound so far."""

    ids: list[int]
    gains: list[int]
    bound: int


def fingerprint(tensors: Iterable[Tensor | None], words: Iterable[Any]) -> str:
    """Names a problem: values, types and shapes of all tensors, and the words."""
    found = hashlib.blake2b(digest_size=16)
    for value in tensors:
        if value is None:
            found.update(b"none")
            continue
        found.update(f"{value.dtype} {list(value.shape)}".encode())
        for rows in value.split(CHUNK) if value.ndim else [value]:
            found.update(rows.contiguous().view(torch.uint8).cpu().numpy() if rows.numel() else b"")
    found.update(json.dumps(list(words)).encode())
    return found.hexdigest()


class File:
    """One checkpoint of one problem."""

    def __init__(self, op: str, path: str, name: str, k: int, N: int) -> None:
        self.op, self.path, self.name, self.k, self.N = op, Path(path), name, k, N
        folder = self.path.parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):  # said now, not when hours are to be saved
            _check.fail(op, "checkpoint", "lie in a folder that can be written to", repr(path))
        if self.path.exists() and not self.path.is_file():
            _check.fail(op, "checkpoint", "be a file or the name of a new one", repr(path))

    def read(self) -> Saved | None:
        """What it holds, None where there is no file; refuses one of another call, or one that was changed."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            held = json.loads(content)
            saved = Saved(held["ids"], held["gains"], held["bound"])
            known = {"version": held["version"], "problem": held["problem"], "k": held["k"]}
        except (ValueError, KeyError, TypeError):
            _check.fail(self.op, "checkpoint", "be a file that facility_location wrote", repr(str(self.path)))
        if known != self._identity():
            rule = "be of the same data, options, k and version"
            _check.fail(self.op, "checkpoint", rule, f"{str(self.path)!r}, which is of another call")
        if not self._is_whole(saved):
            _check.fail(self.op, "checkpoint", "hold picks as they were written", repr(str(self.path)))
        return saved

    def _is_whole(self, saved: Saved) -> bool:
        """Whether the loop can follow it: so many different candidates as there are gains, and integers all."""
        if not (isinstance(saved.ids, list) and isinstance(saved.gains, list)):
            return False
        if not all(type(value) is int and 0 <= value < 2**63 for value in (*saved.ids, *saved.gains, saved.bound)):
            return False
        are_picks = len(set(saved.ids)) == len(saved.ids) <= self.k and max(saved.ids, default=0) < max(self.N, 1)
        return are_picks and len(saved.ids) == len(saved.gains)

    def write(self, saved: Saved) -> None:
        """Replace the file: after any crash it is the old one or the new one."""
        folder = self.path.parent
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=self.path.name, suffix=".part", delete=False) as file:
            try:
                json.dump(self._identity() | saved._asdict(), file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, self.path)
            finally:
                Path(file.name).unlink(missing_ok=True)  # absent once it is in its place

    def _identity(self) -> dict[str, Any]:
        return {"version": VERSION, "problem": self.name, "k": self.k}
