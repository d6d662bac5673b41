"""Every tolerance is met with room, whatever the numbers: tests that compare floats, run on a thousand other draws.

`pytest --draws 1000` repeats each test that draws numbers, shifting the seeds of all generators, as often as it takes
for a thousand draws of its function over all its parameters, and fails where a result needed more than half of what is
allowed beyond its own rounding: that much is the bound of the sums itself, of which twice is allowed.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.tools import drawn, oracle
from tests.tools.repository import ROOT

PARTS = {  # files that compare floats, and the names of tests in them that are not too long to be drawn often
    "losses of logits": (["cross_entropy", "cross_entropy_cpu"], "bound or formula or copies or repeated or tails"),
    "similarity": (["similarity", "similarity_cpu"], "bound or rounded_once or narrow_types"),
    "heads": (["linear_cross_entropy", "linear_log_prob"], "bound or definition or log_softmax or errs"),
}


def draw(name: str, draws: int) -> None:
    """Run the tests of a part in a process of its own."""
    files, names = PARTS[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--draws", str(draws), "-k", names]
    command += [str(path) for file in files for path in (ROOT / "tests").glob(f"*/test_{file}.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:]


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", PARTS)
def test_a_thousand_draws_stay_within_half_of_what_is_allowed(name: str) -> None:
    draw(name, 1000)


def test_a_tolerance_without_room_is_found_and_every_draw_has_other_numbers() -> None:
    seen: list[float] = []

    def compare(share: float) -> None:
        x = torch.randn(1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + torch.rand(1)
        seen.append(float(x))
        oracle.assert_within(x + share, x, torch.ones(1, dtype=torch.float64))

    assert drawn.most_needed(compare, {"share": 0.4}, 5) == pytest.approx(0.4)
    with pytest.raises(AssertionError, match=r"^draw 1 needs 0\.600 of what is allowed"):
        drawn.most_needed(compare, {"share": 0.6}, 5)
    assert len(seen) == 6 and len(set(seen[:5])) == 5 and seen[5] == seen[0]


def test_what_compares_no_floats_is_not_repeated() -> None:
    calls: list[None] = []
    assert drawn.most_needed(lambda: calls.append(None), {}, 5) == 0
    assert len(calls) == 1
