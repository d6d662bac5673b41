"""Fixtures of all tests: new memory is NaN, threads are restored, what lacks its machine is skipped visibly.

Triton reads TRITON_INTERPRET when it is first imported: with a GPU its kernels are compiled and tests marked `gpu` run,
without one they are interpreted and tests marked `interpret` run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import pytest
import torch

from tests.tools import drawn, triton_parts

if TYPE_CHECKING:
    from tests.tools.emulated import Workshop

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

NEEDED: dict[str, float] = {}  # by test function, the largest share of a tolerance, with --draws


MISSING = {
    "gpu": None if HAS_GPU else "no GPU on this machine",
    "interpret": triton_parts.without_interpreter() or ("a GPU runs these kernels here" if HAS_GPU else None),
    "compile": triton_parts.without_kernels(),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """How a run under a sanitizer is told what to test."""
    parser.addoption("--emulated-extension", type=Path, help="mrtkern._cuda for the CPU; without it one is built")
    parser.addoption("--part", type=int, default=1, help="take one of so many cases of each test function")
    parser.addoption("--draws", type=int, default=0, help="how many draws of other numbers each test function gets")


@pytest.hookimpl(trylast=True)  # of the cases that -k and -m leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests whose mark asks for what this machine lacks are reported as skipped; those that measure time are left to a
    run in one process; of each function's cases a part is drawn where one is asked for, the first of them always."""
    if hasattr(config, "workerinput"):  # one of several processes of pytest-xdist
        items[:] = [item for item in items if not item.get_closest_marker("timed")]
    functions: set[str] = set()
    kept: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        function, is_drawn = (
            item.nodeid.partition("[")[0],
            crc32(item.nodeid.encode()) % config.getoption("--part") == 0,
        )
        kept[is_drawn or function not in functions].append(item)
        functions.add(function)
    items[:] = kept[True]
    config.hook.pytest_deselected(items=kept[False])
    for item in items:
        for mark, reason in MISSING.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """With --draws a test runs on as many draws as are its share; what it needs of its tolerances is noted."""
    result = yield
    draws, name = pyfuncitem.config.getoption("--draws"), pyfuncitem.nodeid.partition("[")[0]
    if draws:
        share = -(-draws // sum(item.nodeid.partition("[")[0] == name for item in pyfuncitem.session.items))
        arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
        NEEDED[name] = max(NEEDED.get(name, 0.0), drawn.most_needed(pyfuncitem.obj, arguments, share))
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What each function needed of what it allows."""
    for name, needed in sorted(NEEDED.items(), key=lambda pair: -pair[1]):
        terminalreporter.write_line(f"{needed:.3f} of the tolerance needed by {name}")


@pytest.fixture(autouse=True)
def interpreted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests marked `interpret` run Triton's kernels on CPU tensors, in the strict interpreter."""
    if request.node.get_closest_marker("interpret"):
        from mrtkern._triton import targets
        from tests.tools import interpreter

        interpreter.guard(monkeypatch)
        monkeypatch.setattr(targets, "DEVICES", ("cuda", "cpu"))


@pytest.fixture(autouse=True)
def nan_in_new_memory() -> Iterator[None]:
    """torch.empty returns NaN (integers: the largest), so a result that was never written cannot pass."""
    was_on = torch.are_deterministic_algorithms_enabled()
    was_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    was_filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = was_filling
    torch.use_deterministic_algorithms(was_on, warn_only=was_warn_only)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """`threads(n)` sets torch's number of threads; the test's end restores it.

    Where results must not depend on it, torch may not be told to be deterministic.
    """
    before = torch.get_num_threads()

    def set_threads(count: int) -> None:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(count)

    yield set_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Builds CUDA sources for the CPU, each thing once per run of the tests."""
    from tests.tools.emulated import Workshop

    return Workshop(tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def emulated_cuda(request: pytest.FixtureRequest, workshop: Workshop) -> Iterator[Callable[[str], None]]:
    """CUDA kernels run on CPU tensors (tests/tools/emulated.py); `emulated_cuda(order)` orders blocks and threads."""
    from tests.tools import emulated

    given = request.config.getoption("--emulated-extension")
    with emulated.installed(given or workshop.extension(emulated.PLAIN)) as set_order:
        yield set_order
