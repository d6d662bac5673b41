"""Losses over a split vocabulary, on two real gloo ranks: equal to one rank that has all of it."""

from __future__ import annotations

import itertools
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import mrtkern
from mrtkern.ops.linear_cross_entropy.problem import Problem
from tests.tools import bounds, oracle, process
from tests.tools.linear_heads import assert_all_bounded, truth

RANKS = 2
CUT = 30  # of 101 classes: rank 0 has fewer than rank 1
OPTIONS = {
    "plain": {},
    "capped": {"softcap": 2.0, "z_loss": 1e-2},
    "smoothed": {"label_smoothing": 0.1},
    "nothing but smoothing, capped": {"label_smoothing": 1.0, "softcap": 2.0, "z_loss": 1e-2},
}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def make_inputs(dtype: torch.dtype) -> dict[str, Any]:
    """Ignored rows, rows of weight 0, weights of both signs; targets in both halves. 18 rows count: 1/18 is rounded."""
    inputs = Problem(
        23, 12, 101, dtype, dtype, dtype, ignored=0.2, has_bias=True, needs=(True, True, True)
    ).make_inputs()
    inputs["token_weight"][::5] = 0
    inputs["token_weight"][::3] *= -1
    return inputs


def shard(value: Tensor, rank: int) -> Tensor:
    return (value[:CUT], value[CUT:])[rank].detach().clone().requires_grad_(value.requires_grad)


def linear(inputs: dict[str, Any], rank: int, options: dict[str, Any]) -> tuple[Tensor, ...]:
    """Loss and gradients of hidden and of this rank's rows of weight and bias."""
    hidden = inputs["hidden"].detach().requires_grad_()
    weight, bias = shard(inputs["weight"], rank), shard(inputs["bias"], rank)
    loss = mrtkern.vocabulary_parallel_linear_cross_entropy(
        hidden, weight, inputs["targets"], bias=bias, token_weight=inputs["token_weight"], first_class=CUT * rank,
        process_group=dist.group.WORLD, **options,
    )  # fmt: skip
    return loss.detach(), *torch.autograd.grad(loss * 3, (hidden, weight, bias))


def on_logits(inputs: dict[str, Any], rank: int, options: dict[str, Any]) -> tuple[Tensor, ...]:
    """Loss and gradient of this rank's columns; without weights."""
    z = torch.nn.functional.linear(inputs["hidden"], inputs["weight"], inputs["bias"]).detach()
    part = (z[:, :CUT], z[:, CUT:])[rank].requires_grad_()
    loss = mrtkern.vocabulary_parallel_cross_entropy(
        part, inputs["targets"], first_class=CUT * rank, process_group=dist.group.WORLD, **options
    )
    return loss.detach(), torch.autograd.grad(loss * 3, part)[0]


def scaled(rank: int) -> Tensor:
    """Gradient of this rank's float16 columns under a loss scale, before which it is nothing in float16."""
    z = torch.zeros(4, 101, dtype=torch.float16)
    part = (z[:, :CUT], z[:, CUT:])[rank].requires_grad_()
    loss = mrtkern.vocabulary_parallel_cross_entropy(
        part, torch.tensor([0, 1, 50, 100]), token_weight=torch.full((4,), 1e-6), first_class=CUT * rank,
        process_group=dist.group.WORLD,
    )  # fmt: skip
    return torch.autograd.grad(loss * 2.0**17, part)[0]


def loss_of(inputs: dict[str, Any], hidden: Tensor, rank: int) -> Tensor:
    return mrtkern.vocabulary_parallel_linear_cross_entropy(
        hidden,
        (inputs["weight"][:CUT], inputs["weight"][CUT:])[rank],
        inputs["targets"],
        first_class=CUT * rank,
        process_group=dist.group.WORLD,
    )


DERIVATIVES = (  # that these losses have not
    lambda loss, leaf: torch.autograd.grad(loss, leaf, create_graph=True),
    lambda loss, leaf: torch.autograd.grad(loss, leaf, torch.ones(3), is_grads_batched=True),
)


def padded(inputs: dict[str, Any], rank: int) -> tuple[Tensor, ...]:
    """The losses of `linear` and `on_logits`, of the same rows as one response."""
    rows = {name: inputs[name].detach()[None] for name in ("hidden", "targets", "token_weight")}
    given = {"first_class": CUT * rank, "process_group": dist.group.WORLD}
    weight, bias = shard(inputs["weight"], rank).detach(), shard(inputs["bias"], rank).detach()
    logits = torch.nn.functional.linear(rows["hidden"], inputs["weight"].detach(), inputs["bias"].detach())
    return (
        mrtkern.vocabulary_parallel_linear_cross_entropy(weight=weight, bias=bias, **rows, **given),
        mrtkern.vocabulary_parallel_cross_entropy(
            (logits[..., :CUT], logits[..., CUT:])[rank], rows["targets"], **given
        ),
    )


def certain(rank: int) -> list[Tensor]:
    """Losses of rows whose targets are certain."""
    z = torch.full((1, 101), -30.0)
    found = []
    for y in (3, 77):
        z[0, y] = 22.46
        for options in ({}, {"softcap": 1.7}, {"softcap": 30.0, "label_smoothing": 1e-3}):
            part = (z[:, :CUT], z[:, CUT:])[rank]
            found.append(
                mrtkern.vocabulary_parallel_cross_entropy(
                    part, torch.tensor([y]), first_class=CUT * rank, process_group=dist.group.WORLD, **options
                )
            )
        z[0, y] = -30.0
    return found


def sentences(rank: int) -> list[str]:
    """What is refused, and how."""
    inputs, said = make_inputs(torch.float32), []
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (RANKS,))
    whole = {name: inputs[name] for name in ("hidden", "targets")}
    split = distribute_tensor(inputs["weight"].detach(), mesh, [Shard(0)])
    inputs["targets"][4] = 101
    inputs["token_weight"][4] = 1
    light = {**inputs, "token_weight": inputs["token_weight"].clone()}
    light["token_weight"][4] = 0  # the other classes' loss would be the same without this target
    leaf = inputs["hidden"].detach().requires_grad_()
    right = {**inputs, "targets": inputs["targets"].clamp(max=100)}
    calls = (
        lambda: mrtkern.linear_cross_entropy(**whole, weight=split),
        lambda: mrtkern.linear_log_prob(**whole, weight=split),
        lambda: linear(inputs, rank, {}),
        lambda: linear(right, 0, {}),  # both say they are rank 0
        lambda: linear(light, rank, {}),
        *(lambda call=call: call(loss_of(right, leaf, rank), leaf) for call in DERIVATIVES),
        lambda: torch.func.grad(lambda x: loss_of(right, x, rank))(leaf.detach()),
        lambda: torch.func.vmap(lambda x: loss_of(right, x, rank))(leaf.detach()[None]),
    )
    for call in calls:
        try:
            call()
            said.append("nothing")
        except (ValueError, IndexError, RuntimeError) as error:
            said.append(str(error))
    return said


def counted_messages(rank: int, options: dict[str, Any]) -> dict[str, int]:
    """Collectives of one forward and backward."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        linear(make_inputs(torch.float32), rank, options)
    names = [event.key for event in profiler.key_averages() for _ in range(event.count)]
    return {
        "gathers": names.count("gloo:all_gather"),
        "reductions": names.count("gloo:all_reduce"),
    }


def work(rank: int, store: str, results: str) -> None:
    """One rank: everything, then the results go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=process.LONGEST)
    )
    found: dict[Any, Any] = {}
    for (name, dtype), (option, options) in itertools.product(DTYPES.items(), OPTIONS.items()):
        inputs = make_inputs(dtype)
        found["linear", name, option] = linear(inputs, rank, options)
        found["logits", name, option] = on_logits(inputs, rank, options)
    found["sentences"], found["float16"] = sentences(rank), scaled(rank)
    found["padded"], found["certain"] = padded(make_inputs(torch.float32), rank), certain(rank)
    found["messages"] = [counted_messages(rank, options) for options in OPTIONS.values()]
    torch.save(found, f"{results}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What the two ranks found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder / "store"), str(folder)), nprocs=RANKS)
    return [torch.load(folder / str(rank)) for rank in range(RANKS)]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", DTYPES)
def test_a_split_head_is_the_whole_head(ranks: list[dict[Any, Any]], name: str, option: str) -> None:
    inputs, options = make_inputs(DTYPES[name]), OPTIONS[option]
    (loss, dh, *first), (other_loss, other_dh, *second) = (found["linear", name, option] for found in ranks)
    assert torch.equal(loss, other_loss)
    assert torch.equal(dh, other_dh)
    joined = (loss, dh, *(torch.cat(parts) for parts in zip(first, second, strict=True)))
    value, *gradients = truth(inputs, **options)
    assert_all_bounded(joined, (value, *(gradient * 3.0 for gradient in gradients)))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", DTYPES)
def test_split_logits_are_whole_logits(ranks: list[dict[Any, Any]], name: str, option: str) -> None:
    inputs, options = make_inputs(DTYPES[name]), OPTIONS[option]
    z = torch.nn.functional.linear(inputs["hidden"], inputs["weight"], inputs["bias"]).detach()
    (loss, first), (other_loss, second) = (found["logits", name, option] for found in ranks)
    assert torch.equal(loss, other_loss)
    whole = bounds.cross_entropy(bounds.exact(z, bounds.unit_of(z.dtype)), inputs["targets"], **options)
    assert_all_bounded((loss, torch.cat([first, second], 1)), (whole.loss, whole.gradient * 3.0))


def test_one_message_forward_and_one_backward(ranks: list[dict[Any, Any]]) -> None:
    for found in ranks:
        assert found["messages"] == [{"gathers": 1, "reductions": 1}] * len(OPTIONS)


def test_float16_gradients_survive_a_loss_scale(ranks: list[dict[Any, Any]]) -> None:
    found = torch.cat([found["float16"] for found in ranks], 1)
    truth = torch.full((4, 101), 1 / 101).double() - torch.nn.functional.one_hot(torch.tensor([0, 1, 50, 100]), 101)
    oracle.assert_summed(found, truth * 1e-6 * 2.0**17, 8, 1.0)


def test_sharded_heads_and_foreign_targets_are_refused_on_every_rank(ranks: list[dict[Any, Any]]) -> None:
    for found in ranks:
        loss, log_prob, outside, overlapping, light, *_ = found["sentences"]
        assert loss.startswith("linear_cross_entropy: weight must be whole: pass weight.full_tensor()")
        assert log_prob.startswith("linear_log_prob: weight must be whole: pass weight.full_tensor()")
        assert outside == (
            "vocabulary_parallel_linear_cross_entropy: targets must each be a class of exactly one rank, "
            "got 101 at position 4, which 0 have"
        )
        assert overlapping.endswith((", which 2 have", ", which 0 have"))
        assert light == outside


def test_derivatives_that_are_not_there_are_refused(ranks: list[dict[Any, Any]]) -> None:
    op = "vocabulary_parallel_linear_cross_entropy"
    for found in ranks:
        *_, twice, batched, grad, vmap = found["sentences"]
        assert twice == f"{op}: the loss must be differentiated once at most, got create_graph=True"
        assert batched == f"{op}: the loss must be differentiated by one gradient at a time, got a batch of them"
        assert grad == vmap
        assert grad == f"{op}: the call must not be transformed, because ranks talk in it, got one of torch.func"


def test_padded_rows_have_the_loss_of_packed_ones(ranks: list[dict[Any, Any]]) -> None:
    for found in ranks:
        of_a_head, of_logits = found["padded"]
        assert torch.equal(of_a_head, found["linear", "float32", "plain"][0])
        assert torch.equal(of_logits, found["logits", "float32", "plain"][0])


def test_no_loss_is_negative(ranks: list[dict[Any, Any]]) -> None:
    for found in ranks:
        assert all(float(loss) >= 0 for loss in found["certain"])
