"""neighbors and deduplicate as operators: compiling, arguments that are wrong, limits, progress."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mrtkern
from mrtkern import _dispatch, _progress
from mrtkern.ops.neighbors import reference
from mrtkern.ops.neighbors.deduplicate import deduplicate
from mrtkern.ops.neighbors.op import neighbors
from mrtkern.ops.neighbors.problem import CASES, Case, Problem
from tests.tools import lists

CPU = _dispatch.load("neighbors", "cpu")
needs_cpu = pytest.mark.skipif(isinstance(CPU, str), reason=f"compiled kernels: {CPU}")
every_backend = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])
every_case = pytest.mark.parametrize("case", lists.SMALL, ids=lambda case: case.name)


def operator_arguments(inputs: dict[str, Any]) -> tuple[Any, ...]:
    groups = inputs.get("exclude_group")
    pair = groups if isinstance(groups, tuple) else (groups, groups)
    rows = (inputs["x"], inputs.get("y"), inputs["k"], inputs["metric"], 1.0, inputs["precision"])
    return (*rows, "y" not in inputs, *pair, None)


@every_case
def test_operator_passes_opcheck(case: Case) -> None:
    torch.library.opcheck(torch.ops.mrtkern.neighbors.default, operator_arguments(case.make_inputs()))


def test_operator_of_deduplicate_passes_opcheck() -> None:
    for offsets in (None, torch.tensor([0, 7, 20])):
        torch.library.opcheck(torch.ops.mrtkern.components.default, (lists.normal(20, 3), offsets, 0.9, None))


@every_case
def test_fake_tensors_have_the_shapes_of_real_ones(case: Case) -> None:
    arguments = operator_arguments(case.make_inputs())
    real = torch.ops.mrtkern.neighbors(*arguments)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.ops.mrtkern.neighbors(*arguments)
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@every_backend
@pytest.mark.parametrize("name", ["groups", "self graph with groups"])
def test_compiles_as_one_graph(name: str, backend: str) -> None:
    torch._dynamo.reset()
    inputs = next(case for case in lists.SMALL if case.name == name).make_inputs()

    def program(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        got = neighbors(**{**inputs, "x": x * 2}, backend=backend)
        return got.ids, got.scores + 1

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    for eager, traced in zip(program(inputs["x"]), compiled(inputs["x"]), strict=True):
        assert torch.equal(eager, traced)


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)  # without it torch 2.6 breaks the graph
@every_backend
def test_deduplicate_compiles_as_one_graph(backend: str) -> None:
    torch._dynamo.reset()
    x = lists.normal(40, 2)
    compiled = torch.compile(lambda x: deduplicate(x, 0.99, backend=backend), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), deduplicate(x, 0.99, backend=backend))


def test_a_row_count_may_change_between_compiled_calls() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: neighbors(x, 3).ids, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (9, 14, 30):
        assert torch.equal(compiled(lists.normal(rows, 5)), neighbors(lists.normal(rows, 5), 3).ids)


def test_there_is_no_gradient_and_autocast_changes_nothing() -> None:
    x = lists.normal(20, 6).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = neighbors(x, 4, precision="float32", backend="reference")
    assert not got.scores.requires_grad
    assert torch.equal(got.scores, neighbors(x, 4, precision="float32", backend="reference").scores)


@every_backend
def test_nothing_of_the_callers_is_overwritten(backend: str) -> None:
    inputs = next(case for case in lists.SMALL if case.name == "groups").make_inputs()
    before = [inputs["x"].clone(), inputs["y"].clone(), *(labels.clone() for labels in inputs["exclude_group"])]
    neighbors(**inputs, backend=backend)
    deduplicate(inputs["x"], 0.5, backend=backend)
    after = [inputs["x"], inputs["y"], *inputs["exclude_group"]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# What callers get wrong


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"x": torch.ones(3)}, r"x must be \[M, D\], got \[3\]"),
        ({"x": torch.ones(2, 3, 4)}, r"x must be \[M, D\], got \[2, 3, 4\]"),
        (
            {"x": torch.ones(3, 2, dtype=torch.int64)},
            r"x must be float32, float64, bfloat16 or float16, got torch.int64",
        ),
        ({"y": torch.ones(4, 3)}, r"x and y must be \[M, D\] and .*D, got x \[5, 2\] and y \[4, 3\]"),
        ({"y": torch.ones(4)}, r"x and y must be \[M, D\] and .*D, got x \[5, 2\] and y \[4\]"),
        ({"y": torch.ones(4, 2).double()}, r"y must have the type of x, torch.float32, got torch.float64"),
        ({"y": torch.ones(4, 2), "exclude_self": True}, "exclude_self must be None or False with y, .* got True"),
        ({"k": -1}, "k must be at least 0, got -1"),
        ({"metric": "cos"}, "metric must be one of cosine, dot, .*, got 'cos'"),
        ({"precision": "fast"}, "precision must be one of exact, int16, float32, got 'fast'"),
        ({"precision": "int16", "metric": "rbf"}, "precision must be 'exact' for metric 'rbf', got 'int16'"),
        ({"gamma": 0.0}, "gamma must be positive and finite, got 0.0"),
        ({"gamma": float("inf")}, "gamma must be positive and finite, got inf"),
        (
            {"exclude_group": torch.zeros(4, dtype=torch.int64)},
            r"exclude_group must have one entry per row of x, .*\[4\]",
        ),
        ({"exclude_group": torch.zeros(5)}, "exclude_group must be int64, got torch.float32"),
        ({"approximate": 0}, "approximate must be at least 1, got 0"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*63 - 1, got -1"),
        (
            {"approximate": 2, "metric": "dot", "precision": "int16"},
            "precision must be 'exact' for metric 'dot' with approximate, got 'int16'",
        ),
        ({"backend": "numpy"}, "backend must be one of cuda, triton, cpu, reference, got 'numpy'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^neighbors: {sentence}$"):
        neighbors(**{"x": torch.ones(5, 2), "k": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"x": "ab"}, "x must be a tensor, an array or a list of numbers, got str"),
        ({"k": 2.0}, "k must be an int, got float"),
        ({"k": True}, "k must be an int, got bool"),
        (
            {"y": torch.ones(4, 2), "exclude_group": torch.zeros(5, dtype=torch.int64)},
            "exclude_group must be a pair .*Tensor",
        ),
        ({"exclude_group": "a" * 5}, "exclude_group must be a tensor, an array or a list of numbers, got str"),
        ({"approximate": 2.0}, "approximate must be an int or None, got float"),
        ({"approximate": True}, "approximate must be an int or None, got bool"),
        ({"progress": "yes"}, "progress must be True, False or a callable, got str"),
        ({"gamma": "1"}, "gamma must be a number, got str"),
    ],
)
def test_bad_types_are_named(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TypeError, match=f"^neighbors: {sentence}$"):
        neighbors(**{"x": torch.ones(5, 2), "k": 2, **arguments})


def test_labels_of_both_matrices_are_checked() -> None:
    labels = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"exclude_group must have one entry per row of y, shape \[4\], got \[5\]"):
        neighbors(torch.ones(5, 2), 1, y=torch.ones(4, 2), exclude_group=(labels, labels))


def test_products_of_float64_rows_must_not_overflow() -> None:
    x = torch.tensor([[1e200, -1e200], [1e200, 1e200]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^neighbors: x and y must have products of rows below 1.8e308 .* 1e\+200"):
        neighbors(x, 1, metric="dot")
    assert neighbors(x, 1).scores.tolist() == [[0.0], [0.0]]
    with pytest.raises(ValueError, match=r"precision must be 'exact' for metric 'dot' of torch.float64, got 'float32'"):
        neighbors(x, 1, metric="dot", precision="float32")


def test_what_cannot_fit_is_refused_before_it_is_allocated() -> None:
    with pytest.raises(MemoryError, match=r"^neighbors: x and k must leave room for \d{17} bytes"):
        neighbors(torch.ones(2**10, 1), 2**40)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"x": torch.ones(3)}, r"x must be \[N, D\], got \[3\]"),
        ({"threshold": 1.5}, "threshold must be from -1 to 1, got 1.5"),
        ({"threshold": float("nan")}, "threshold must be from -1 to 1, got nan"),
    ],
)
def test_bad_arguments_of_deduplicate_are_named(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^deduplicate: {sentence}$"):
        deduplicate(**{"x": torch.ones(5, 2), "threshold": 0.5, **arguments})


def test_a_threshold_and_a_diagonal_must_be_numbers() -> None:
    with pytest.raises(TypeError, match=r"^deduplicate: threshold must be a number, got str$"):
        deduplicate(torch.ones(5, 2), "0.9")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Neighbors\.csr: diagonal must be a number, got str$"):
        neighbors(torch.ones(5, 2), 1).csr(diagonal="1")  # type: ignore[arg-type]


# Choices


def example(**changes: Any) -> Problem:
    return replace(next(case for case in CASES if "bench" in case.tags).problem, **changes)


def test_the_choice_for_a_gpu_is_made_without_one() -> None:
    has_triton = not isinstance(_dispatch.load("neighbors", "triton"), str)
    for kind in ("lists", "components"):
        chosen = _dispatch.choose("neighbors", None, example(device="cuda", kind=kind))
        assert chosen == ("triton" if has_triton else "reference")
    for changes in ({"metric": "rbf"}, {"num_cells": 9, "num_probes": 2}):
        assert _dispatch.choose("neighbors", None, example(device="cuda", **changes)) == "reference"
    with pytest.raises(ValueError, match="neighbors: backend 'cuda' cannot run this: is not written in CUDA"):
        _dispatch.choose("neighbors", "cuda", example(device="cuda"))


@needs_cpu
def test_the_compiled_kernel_is_the_choice_on_a_cpu() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert _dispatch.choose("neighbors", None, example(dtype=dtype)) == "cpu"
    assert _dispatch.choose("neighbors", None, example(kind="components", N=None)) == "cpu"
    for metric in ("dot", "rbf"):
        assert _dispatch.choose("neighbors", None, example(metric=metric)) == "cpu"
        assert _dispatch.choose("neighbors", None, example(metric=metric, dtype=torch.float64)) == "reference"
        with pytest.raises(ValueError, match=f"neighbors: backend 'cpu' cannot run this: takes metric '{metric}' of"):
            neighbors(torch.ones(2, 2).double(), 1, metric=metric, backend="cpu")


def test_cases_know_their_size() -> None:
    for case in lists.SMALL:
        inputs = case.make_inputs()
        M, N = len(inputs["x"]), len(inputs.get("y", inputs["x"]))
        pairs = M * N if "y" in inputs else M * (N - 1) // 2
        assert case.problem.flops == 2 * pairs * inputs["x"].shape[1]
        rows = inputs["x"].nbytes + (inputs["y"].nbytes if "y" in inputs else 0)
        assert case.problem.bytes == rows + M * case.problem.K * 12


# Progress


@every_backend
@pytest.mark.parametrize(
    "call", [lambda x, **more: neighbors(x, 3, **more), lambda x, **more: deduplicate(x, 0.9, **more)]
)
def test_a_callable_gets_ascending_fractions(call: Callable[..., Any], backend: str) -> None:
    told: list[float] = []
    call(lists.normal(400, 8), progress=told.append, backend=backend)
    assert told and told == sorted(told) and told[-1] == 1.0 and told[0] > 0.0
    call(lists.normal(400, 8), backend=backend)
    assert told[-1] == 1.0 and told.count(1.0) == 1, "a later call does not report to an earlier callable"


@every_backend
def test_what_a_callable_raises_reaches_the_caller(backend: str) -> None:
    def stop(fraction: float) -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        neighbors(lists.normal(400, 8), 3, progress=stop, backend=backend)
    assert neighbors(lists.normal(40, 8), 3, backend=backend).ids.shape == (40, 3)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@every_backend
def test_a_bar_is_drawn_on_a_terminal_only_and_vanishes(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    for patience, stream, is_drawn in ((0.0, Terminal(), True), (60.0, Terminal(), False), (0.0, io.StringIO(), False)):
        monkeypatch.setattr(_progress, "PATIENCE", patience)
        monkeypatch.setattr("sys.stderr", stream)
        neighbors(lists.normal(400, 8), 3, progress=True, backend=backend)
        text = stream.getvalue()
        assert ("neighbors ━" in text) == is_drawn
        assert text.endswith("\r\x1b[K") if is_drawn else not text


def test_reference_runs_everything() -> None:
    assert all(reference.why_not(case.problem) is None for case in CASES)


# Rows in a file


@needs_cpu
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_may_lie_in_a_file_that_may_only_be_read(dtype: torch.dtype, tmp_path: Path) -> None:
    x = lists.normal(70, 33).to(dtype)
    path = tmp_path / "rows"
    path.write_bytes(x.view(torch.uint8).numpy().tobytes())
    mapped = torch.from_numpy(np.memmap(path, np.uint8, "r")).view(dtype).view(x.shape)  # a write would end the process
    for run in (
        lambda rows: neighbors(rows, 5).ids,
        lambda rows: deduplicate(rows, 0.3),
        lambda rows: mrtkern.similarity(rows),
        lambda rows: mrtkern.facility_location(rows, 9).ids,
        lambda rows: mrtkern.facility_location(rows, 4, offsets=torch.tensor([0, 30, 70])).ids,
    ):
        assert torch.equal(run(mapped), run(x))
