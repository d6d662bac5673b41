"""A test on other numbers: every generator that it seeds, and the common one, begins elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.tools import oracle

ROOM = 0.5  # of what is allowed: a result may err by twice the bound of its sums
APART = 1_000_003  # between the seeds of two draws


def most_needed(test: Callable[..., None], arguments: dict[str, Any], draws: int) -> float:
    """The largest share of its tolerances that a test needs in so many draws."""
    most = 0.0
    for draw in range(1, draws + 1):

        class Shifted(torch.Generator):
            def manual_seed(self, seed: int, draw: int = draw) -> torch.Generator:
                return super().manual_seed(seed + APART * draw)

        oracle.shares.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "Generator", Shifted)
            torch.manual_seed(APART * draw)
            test(**arguments)
        if not oracle.shares:
            break  # it compares nothing
        most = max(most, *oracle.shares)
        assert most <= ROOM, f"draw {draw} needs {most:.3f} of what is allowed"
    return most
