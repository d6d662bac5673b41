"""response_weights and the loss module: five normalisations, global counts, what they do to gradients."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mrtkern import _device
from mrtkern.loss import NORMALIZATIONS, MultiResponseCrossEntropyLoss, _run, response_weights
from mrtkern.ops.cross_entropy.details import LossDetails
from mrtkern.ops.cross_entropy.op import cross_entropy
from tests.tools import oracle
from tests.tools.process import LONGEST
from tests.tools.repository import ROOT

IGNORE = -100
TOTALS = (
    "num_prompts", "num_responses", "num_tokens", "responses_per_prompt", "tokens_per_response", "tokens_per_prompt",
)  # fmt: skip
PLAIN = {"response_weight": None, "ignore_index": IGNORE, "constant": 1.0, **dict.fromkeys(TOTALS)}
every_normalization = pytest.mark.parametrize("normalize", NORMALIZATIONS)


def ragged(seed: int = 0, P: int = 6) -> dict[str, torch.Tensor]:
    """Prompts in no order with 1 to 4 responses of 0 to 9 tokens, some ignored, one prompt empty."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 5, (P,), generator=generator)
    prompt = torch.repeat_interleave(counts)
    prompt = prompt[torch.randperm(len(prompt), generator=generator)] * 1_000_003 - 7  # any numbers
    lengths = torch.randint(0, 10, (len(prompt),), generator=generator)
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    targets = torch.randint(0, 11, (int(offsets[-1]),), generator=generator)
    targets[torch.rand(len(targets), generator=generator) < 0.2] = IGNORE
    for r in (prompt == prompt[0]).nonzero().view(-1):
        targets[offsets[r] : offsets[r + 1]] = IGNORE
    return {"targets": targets, "offsets": offsets, "prompt": prompt}


def expected(
    targets: torch.Tensor, normalize: str, offsets: torch.Tensor, prompt: torch.Tensor | None = None,
    response_weight: torch.Tensor | None = None, constant: float = 1.0,
) -> list[float]:  # fmt: skip
    """Token by token, from the table."""
    ends = offsets.tolist()
    tokens = [sum(y != IGNORE for y in targets[i:j].tolist()) for i, j in itertools.pairwise(ends)]
    ids = list(range(len(tokens))) if prompt is None else prompt.tolist()
    kept = [r for r, T in enumerate(tokens) if T]
    P = len({ids[r] for r in kept})
    v = [1.0] * len(tokens) if response_weight is None else response_weight.tolist()

    def weight(r: int) -> float:
        mates = [q for q in kept if ids[q] == ids[r]]
        share = 1 / len(mates) if response_weight is None else v[r]
        if normalize == "token":
            return v[r] / sum(tokens)
        if normalize == "response":
            return v[r] / (len(kept) * tokens[r])
        if normalize == "prompt":
            return share / (P * tokens[r])
        if normalize == "prompt_token":
            return v[r] / (P * sum(v[q] * tokens[q] for q in mates))
        return share / (P * constant)

    return [
        0.0 if int(targets[t]) == IGNORE else weight(r) for r in range(len(tokens)) for t in range(ends[r], ends[r + 1])
    ]


def assert_weights(got: torch.Tensor, wanted: list[float] | torch.Tensor) -> None:
    """Computed in float64 and rounded once; a rounding of float64 may decide between two neighbours."""
    truth = torch.as_tensor(wanted, dtype=torch.float64).reshape(got.shape)
    oracle.assert_summed(got, truth, 1, truth.abs())


@every_normalization
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_weights_are_those_of_the_table(normalize: str, weighted: bool, grouped: bool) -> None:
    for seed in range(5):
        given = ragged(seed)
        if not grouped:
            del given["prompt"]
        if weighted:
            generator = torch.Generator().manual_seed(seed)
            given["response_weight"] = torch.rand(len(given["offsets"]) - 1, generator=generator).double() + 0.1
        got = response_weights(normalize=normalize, **given, constant=3.0)
        assert got.dtype == torch.float32
        assert_weights(got, expected(normalize=normalize, **given, constant=3.0))


@every_normalization
def test_padded_targets_have_the_weights_of_packed_ones(normalize: str) -> None:
    given = ragged(3)
    lengths = given["offsets"].diff()
    padded = torch.full((len(lengths), 12), IGNORE)
    inside = torch.arange(12) < lengths[:, None]
    padded[inside] = given["targets"]
    got = response_weights(padded, normalize, prompt=given["prompt"])
    assert torch.equal(got[inside], response_weights(normalize=normalize, **given))
    assert not got[~inside].any()


@every_normalization
def test_the_order_of_responses_does_not_matter(normalize: str) -> None:
    given = ragged(1)
    R = len(given["prompt"])
    order = torch.randperm(R, generator=torch.Generator().manual_seed(0))
    pieces = [torch.arange(int(given["offsets"][r]), int(given["offsets"][r + 1])) for r in order]
    tokens = torch.cat(pieces)
    offsets = F.pad(torch.tensor([len(piece) for piece in pieces]).cumsum(0), (1, 0))
    shuffled = {"targets": given["targets"][tokens], "offsets": offsets, "prompt": given["prompt"][order]}
    got = response_weights(normalize=normalize, **shuffled)
    assert_weights(got, response_weights(normalize=normalize, **given)[tokens].double())


def test_means_sum_to_one() -> None:
    given = ragged(2)
    for normalize in ("token", "response", "prompt", "prompt_token"):
        total = response_weights(normalize=normalize, **given).double().sum()
        oracle.assert_summed(total.float(), torch.tensor(1.0).double(), len(given["targets"]), 1.0)


def test_response_weights_are_used_as_given() -> None:
    given = ragged(2)
    v = torch.linspace(-1, 2, len(given["prompt"]))
    for normalize in ("token", "response", "prompt", "prompt_sum"):
        single = response_weights(normalize=normalize, **given, response_weight=v)
        double = response_weights(normalize=normalize, **given, response_weight=2 * v)
        assert torch.equal(double, 2 * single)


@every_normalization
def test_nothing_valid_has_weights_zero(normalize: str) -> None:
    for targets, offsets in ((torch.full((4,), IGNORE), [0, 1, 4]), (torch.empty(0, dtype=torch.int64), [0, 0])):
        got = response_weights(targets, normalize, offsets=torch.tensor(offsets))
        assert got.shape == targets.shape
        assert not got.any()


def test_lengths_tilt_what_is_learnt() -> None:
    """Responses of 10 and 100 tokens, each half of the data, learnt as q by the optimum of the weighted likelihood."""
    targets, offsets, prompt = torch.zeros(110, dtype=torch.int64), torch.tensor([0, 10, 110]), torch.zeros(2).long()
    tilt = {"token": 0.5, "response": 10 / 11, "prompt": 10 / 11, "prompt_token": 0.5, "prompt_sum": 0.5}
    for normalize, q in tilt.items():
        w = response_weights(targets, normalize, offsets=offsets, prompt=prompt)[[0, 10]].double()
        assert float(w[0] / w.sum()) == pytest.approx(q)


def test_token_and_prompt_are_different_gradients() -> None:
    given = ragged(4)
    logits = torch.randn(len(given["targets"]), 11, generator=torch.Generator().manual_seed(1), requires_grad=True)
    gradients = []
    for normalize in ("token", "prompt"):
        w = response_weights(normalize=normalize, **given)
        (gradient,) = torch.autograd.grad(cross_entropy(logits, given["targets"], token_weight=w), logits)
        gradients.append(gradient.flatten())
    assert float(F.cosine_similarity(*gradients, dim=0)) < 0.95


# Counts of the whole step


def counts_of(given: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What one all-reduce of a step would give: P, R, the tokens; and per response those of its prompt."""
    is_valid = given["targets"] != IGNORE
    tokens = torch.stack([
        is_valid[i:j].sum() for i, j in zip(given["offsets"][:-1], given["offsets"][1:], strict=True)
    ])  # fmt: skip
    mates = (given["prompt"][:, None] == given["prompt"]) & (tokens > 0)
    return {
        "num_prompts": len(given["prompt"][tokens > 0].unique()),
        "num_responses": int((tokens > 0).sum()),
        "num_tokens": int(tokens.sum()),
        "responses_per_prompt": mates.sum(1).clamp(min=1),
        "tokens_per_response": tokens,
        "tokens_per_prompt": (mates * tokens).sum(1),
    }


def part(given: dict[str, torch.Tensor], counts: dict[str, Any], which: torch.Tensor) -> tuple[Any, Any, torch.Tensor]:
    """The responses `which` of a batch, the counts for them, and their tokens."""
    pieces = [torch.arange(int(given["offsets"][r]), int(given["offsets"][r + 1])) for r in which]
    tokens = torch.cat([torch.empty(0, dtype=torch.int64), *pieces])
    offsets = F.pad(torch.tensor([len(piece) for piece in pieces], dtype=torch.int64).cumsum(0), (1, 0))
    mine = {"targets": given["targets"][tokens], "offsets": offsets, "prompt": given["prompt"][which]}
    local = {k: v[which] if isinstance(v, torch.Tensor) and v.ndim else v for k, v in counts.items()}
    return mine, local, tokens


@every_normalization
def test_parts_with_the_counts_of_the_step_have_the_weights_of_the_whole(normalize: str) -> None:
    given = ragged(5)
    counts = counts_of(given)
    whole = response_weights(normalize=normalize, **given)
    for which in torch.randperm(len(given["prompt"]), generator=torch.Generator().manual_seed(0)).split(3):
        mine, local, tokens = part(given, counts, which)
        assert_weights(response_weights(normalize=normalize, **mine, **local), whole[tokens].double())


def test_counts_may_be_tensors() -> None:
    given = ragged(5)
    for name in ("num_prompts", "num_responses", "num_tokens"):
        for normalize in NORMALIZATIONS:
            number = response_weights(normalize=normalize, **given, **{name: 17})
            assert torch.equal(response_weights(normalize=normalize, **given, **{name: torch.tensor(17)}), number)


def test_counts_may_be_shares_of_ranks_that_average() -> None:
    given = ragged(5)
    P = counts_of(given)["num_prompts"]
    half = response_weights(normalize="prompt", **given, num_prompts=P / 16)
    assert torch.equal(half, 16 * response_weights(normalize="prompt", **given))


RANKS = """
import sys, torch
import torch.distributed as dist
from tests.losses.test_loss import counts_of, part, ragged
from mrtkern.loss import NORMALIZATIONS, response_weights
from mrtkern.ops.cross_entropy.op import cross_entropy
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
given = ragged(6)
R = len(given["prompt"])
hidden = torch.randn(len(given["targets"]), 5, generator=torch.Generator().manual_seed(1))
W = torch.randn(11, 5, generator=torch.Generator().manual_seed(2))
def gradient(normalize, parts, counts):
    head = W.clone().requires_grad_()
    for which in parts:
        mine, local, tokens = part(given, counts, which)
        w = response_weights(normalize=normalize, **mine, **local)
        cross_entropy(hidden[tokens] @ head.T, mine["targets"], token_weight=w).backward()
    return head.grad
counts = counts_of(given)
empty = (counts["tokens_per_response"] == 0).nonzero().view(-1)
# Rank 1 holds every third response, prompts split over ranks; and accumulates, one step without any valid token.
mine = torch.arange(R)[torch.arange(R) % 3 == 0] if rank else torch.arange(R)[torch.arange(R) % 3 != 0]
steps = [*mine.split(2), empty[:1]]
for normalize in NORMALIZATIONS:
    whole = gradient(normalize, [torch.arange(R)], counts)
    split = gradient(normalize, steps, counts)
    dist.all_reduce(split)
    naive = gradient(normalize, steps, {}) / len(steps)  # each part normalised by itself, then averaged: as trainers do
    dist.all_reduce(naive)
    scale = whole.abs().max()
    print(normalize, float((split - whole).abs().max() / scale), float((naive / 2 - whole).abs().max() / scale))
dist.destroy_process_group()
"""


def test_accumulation_and_ranks_equal_one_batch_and_local_normalisation_does_not(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, str(rank), str(tmp_path / "store")],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in ranks:
        said, _ = process.communicate(timeout=LONGEST)
        assert process.returncode == 0
        lines = [line.split() for line in said.splitlines() if line.startswith(NORMALIZATIONS)]
        assert len(lines) == len(NORMALIZATIONS)
        for _, with_counts, naive in lines:
            assert float(with_counts) < oracle.SPLIT
            assert float(naive) > 100 * oracle.SPLIT


# Compilation


@every_normalization
def test_compiled_as_one_graph(normalize: str) -> None:
    torch._dynamo.reset()
    given = ragged(1)
    compiled = torch.compile(response_weights, fullgraph=True, backend="aot_eager")
    got = compiled(normalize=normalize, **given, num_prompts=9)
    assert torch.equal(got, response_weights(normalize=normalize, **given, num_prompts=9))


@every_normalization
@pytest.mark.parametrize("grouped", [False, True])
def test_nothing_is_read_back_from_a_device(grouped: bool, normalize: str) -> None:
    """Tensors on the device `meta` have no values: whoever asks for one fails."""
    given = {name: value.to("meta") for name, value in ragged(1).items()}
    prompt = given["prompt"] if grouped else None
    found = _run(given["targets"], normalize, offsets=given["offsets"], prompt=prompt, **PLAIN)
    assert found.shape == given["targets"].shape
    with pytest.raises(RuntimeError, match="meta"):
        int(given["offsets"][0])


@pytest.mark.parametrize("ends", [[0, 3, 9], [-4, 2, 4], [0, 3, 2], [1, 2, 4], [0, 2, 3], [2**40, 2**41, 4]])
def test_offsets_that_do_not_fit_make_weights_nan_on_a_device(ends: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_device, "may_wait", lambda device, check=None: bool(check))
    found = response_weights(torch.tensor([1, 2, 3, 4]), "prompt", offsets=torch.tensor(ends))
    assert bool(found.isnan().all())


def test_operator_passes_opcheck() -> None:
    given = ragged(1)
    targets = given.pop("targets")
    torch.library.opcheck(torch.ops.mrtkern.response_weights.default, (targets, "prompt"), given | PLAIN)


# The module


@every_normalization
def test_module_is_the_two_functions(normalize: str) -> None:
    given = ragged(1)
    logits = torch.randn(len(given["targets"]), 11)
    crit = MultiResponseCrossEntropyLoss(normalize, label_smoothing=0.1)
    w = response_weights(normalize=normalize, **given)
    wanted = cross_entropy(logits, given["targets"], token_weight=w, label_smoothing=0.1)
    found = crit(logits, **given)
    assert torch.equal(found, wanted)
    settings = f"{normalize!r}, ignore_index=-100, constant=1.0, label_smoothing=0.1"
    assert repr(crit) == f"MultiResponseCrossEntropyLoss({settings})"


def test_module_passes_counts_and_returns_details() -> None:
    given = ragged(1)
    logits = torch.randn(len(given["targets"]), 11)
    crit = MultiResponseCrossEntropyLoss("prompt", return_details=True)
    found, other = crit(logits, **given), crit(logits, **given, num_prompts=1000)
    assert isinstance(found, LossDetails)
    assert found.prompt_loss.shape == (len(given["prompt"].unique()),)
    P = counts_of(given)["num_prompts"]
    oracle.assert_summed(other.loss * 1000, found.loss.double() * P, oracle.cross_entropy_steps(), 10.0 * P)


@pytest.mark.parametrize("size", [(0, 3), (2, 0)])
def test_module_takes_padded_logits_of_nothing(size: tuple[int, int]) -> None:
    crit = MultiResponseCrossEntropyLoss("prompt", return_details=True)
    targets = torch.empty(size, dtype=torch.int64)
    for found in (
        crit(torch.empty(*size, 11), targets),
        crit(torch.empty(*size, 5), targets, weight=torch.ones(11, 5, requires_grad=True)),
    ):
        assert float(found.loss.detach()) == 0
        assert found.response_tokens.tolist() == [0] * size[0]


def test_module_takes_padded_logits() -> None:
    logits, targets = torch.randn(3, 4, 11), torch.randint(0, 11, (3, 4))
    targets[1, 2:] = IGNORE
    crit = MultiResponseCrossEntropyLoss("response", return_details=True)
    found = crit(logits, targets)
    rows = [F.cross_entropy(z.double(), y) for z, y in zip(logits, targets, strict=True)]
    oracle.assert_summed(found.loss, torch.stack(rows).mean(), oracle.cross_entropy_steps(), 10.0)
    assert found.response_tokens.tolist() == [4, 2, 4]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"normalize": "mean"},
            "normalize must be one of token, response, prompt, prompt_token, prompt_sum, got 'mean'",
        ),
        ({"offsets": None}, r"offsets must be given with targets \[T\], got None"),
        ({"offsets": torch.tensor([0, 2])}, "offsets must end with the number of targets 3, got 2"),
        ({"targets": torch.ones(2, 3).long()}, r"offsets must be None with padded targets, got \[3\]"),
        ({"targets": torch.ones(1, 2, 3).long()}, r"targets must be \[T\] with offsets, or \[R, L\], got \[1, 2, 3\]"),
        ({"targets": torch.ones(3)}, "targets must be int64, got torch.float32"),
        ({"prompt": torch.tensor([1])}, r"prompt must have one entry per response, shape \[2\], got \[1\]"),
        ({"prompt": torch.ones(2)}, "prompt must be int64, got torch.float32"),
        (
            {"response_weight": torch.ones(3)},
            r"response_weight must have one entry per response, shape \[2\], got \[3\]",
        ),
        ({"response_weight": torch.ones(2, requires_grad=True)}, "response_weight must not require a gradient, .*"),
        ({"constant": 0.0}, "constant must be positive and finite, got 0.0"),
        ({"num_tokens": 0}, "num_tokens must be positive and finite, got 0"),
        ({"num_tokens": float("nan")}, "num_tokens must be positive and finite, got nan"),
        ({"num_prompts": torch.ones(2)}, r"num_prompts must be a number or 0-d, got \[2\]"),
        ({"tokens_per_response": torch.ones(3)}, r"tokens_per_response must be a number or of shape \[2\], got \[3\]"),
        ({"num_prompts": torch.tensor(0)}, "num_prompts must be finite and positive, got 0"),
        ({"num_prompts": torch.tensor(-3)}, "num_prompts must be finite and positive, got -3"),
        ({"num_tokens": torch.tensor(torch.nan)}, "num_tokens must be finite and positive, got nan"),
        (
            {"tokens_per_response": torch.tensor([1, 0])},
            "tokens_per_response must be finite and positive, got 0 for response 1",
        ),
        ({"num_tokens": torch.tensor(True)}, "num_tokens must be of numbers, got torch.bool"),
        ({"num_tokens": torch.nn.Parameter(torch.ones(()))}, "num_tokens must not require a gradient, .*"),
        ({"constant": torch.nn.Parameter(torch.ones(()))}, "constant must not require a gradient, .*"),
        ({"response_weight": torch.tensor([1.0, torch.inf])}, "response_weight must be finite, got inf for response 1"),
        (
            {"response_weight": torch.tensor([1.0, 1e300], dtype=torch.float64)},
            "response_weight must leave weights that float32 can hold, got inf for response 1",
        ),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], sentence: str) -> None:
    given = {"targets": torch.tensor([0, 1, 2]), "normalize": "prompt", "offsets": torch.tensor([0, 1, 3]), **changes}
    with pytest.raises(ValueError, match=f"^response_weights: {sentence}$"):
        response_weights(**given)


def test_a_count_of_nothing_weighs_nothing() -> None:
    targets = torch.full((2, 3), IGNORE)
    found = response_weights(targets, "token", num_tokens=torch.tensor(0), responses_per_prompt=torch.tensor([0, 1]))
    assert found.count_nonzero() == 0


def test_counts_without_meaning_make_weights_nan_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_device, "may_wait", lambda device, check=None: bool(check))
    for given in (
        {"num_tokens": torch.tensor(-1.0)},
        {"response_weight": torch.full((2,), 1e300, dtype=torch.float64)},
    ):
        assert bool(response_weights(torch.zeros(2, 3).long(), "token", **given).isnan().all())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"softcap": -1.0}, "softcap must be None or positive and finite, got -1.0"),
        ({"label_smoothing": 2.0}, "label_smoothing must be from 0 to 1, got 2.0"),
        ({"constant": 0.0}, "constant must be positive and finite, got 0.0"),
        ({"ignore_index": 1.5}, "ignore_index must be an int, got float"),
        ({"inplace": "no"}, "inplace must be True or False, got 'no'"),
        ({"backend": "tpu"}, "backend must be one of .*, got 'tpu'"),
        ({"softcap": torch.nn.Parameter(torch.ones(()))}, "softcap must not require a gradient, .*"),
    ],
)
def test_a_module_is_refused_when_it_is_made(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^MultiResponseCrossEntropyLoss: {sentence}$"):
        MultiResponseCrossEntropyLoss("prompt", **options)


def test_a_module_refuses_what_only_the_other_kind_of_call_has() -> None:
    logits, targets = torch.randn(2, 3, 11), torch.zeros(2, 3).long()
    with pytest.raises(ValueError, match=r"^MultiResponseCrossEntropyLoss: bias must be None without weight"):
        MultiResponseCrossEntropyLoss("prompt")(logits, targets, bias=torch.ones(11))
    with pytest.raises(ValueError, match=r"^MultiResponseCrossEntropyLoss: inplace must be False with weight"):
        MultiResponseCrossEntropyLoss("prompt", inplace=True)(logits, targets, weight=torch.ones(5, 11))


# An independent implementation

LIGER = """
import sys, torch
from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction
z, y, eps, z_loss = torch.load(sys.argv[1])
z = z.requires_grad_()
found = LigerCrossEntropyFunction.apply(z * 1, y, None, -100, z_loss, eps, "mean", None, False)
found[0].backward()
torch.save((found[0].detach(), z.grad), sys.argv[2])
"""


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="the peers extra is not installed")
@pytest.mark.parametrize(("eps", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01)])
def test_liger_in_the_triton_interpreter_agrees(eps: float, z_loss: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(6, 200, generator=generator) * 3, torch.randint(0, 200, (6,), generator=generator)
    y[2] = IGNORE
    torch.save((z, y, eps, z_loss), tmp_path / "in")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", LIGER, tmp_path / "in", tmp_path / "out"], env=environment, check=True)
    loss, gradient = torch.load(tmp_path / "out")
    logits = z.clone().requires_grad_()
    found = cross_entropy(logits, y, label_smoothing=eps, z_loss=z_loss)
    found.backward()
    assert logits.grad is not None
    oracle.assert_summed(found.detach(), loss.double(), oracle.cross_entropy_steps(), 20.0)
    oracle.assert_summed(logits.grad, gradient.double(), oracle.cross_entropy_steps(), 1.0)
