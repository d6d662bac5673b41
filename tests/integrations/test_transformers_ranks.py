"""Two real gloo ranks: DDP, FSDP2, the Trainer, Lightning and accelerate take the steps that one batch takes.

Each rank does everything once, in one process.
"""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mrtkern.integrations.step import count_step, counted_steps
from tests.tools import oracle, process

pytest.importorskip("transformers", reason="the train extra is not installed")
pytest.importorskip("lightning", reason="the train extra is not installed")

from mrtkern.integrations.data import ResponseCollator
from mrtkern.integrations.transformers import Trainer, patch
from tests.tools import trainers

pytestmark = pytest.mark.trainers
RANKS = 2
WITHOUT_FSDP2 = not hasattr(torch.cpu.Stream, "record_event")  # it records events where there are no streams either
ROWS = trainers.ragged_rows()
SINGLE = trainers.single_rows(ROWS)
CUT = ResponseCollator(responses="response", prompt_id="prompt_id")
FULL = [*ROWS, ROWS[0]]  # what two ranks make of eleven rows
WAYS = ("ragged", "cut", "nothing valid", "accumulated")  # a step is split over ranks; accumulated in batches of a row


def whole_steps(way: str) -> list[dict[str, Tensor]]:
    """Steps as one batch."""
    if way == "cut":
        return [CUT(rows) for rows in trainers.steps_of(SINGLE, 8)]
    steps = [trainers.collate(rows) for rows in trainers.steps_of(FULL if way == "accumulated" else ROWS)]
    if way == "nothing valid":
        for step in steps:
            step["labels"][step["prompt"] >= 2] = oracle.IGNORE
    return steps


def own_batches(way: str, rank: int) -> list[list[dict[str, Tensor]]]:
    """The batches of a rank, by steps: every second row of cut prompts, else the first two prompts or the others."""
    if way == "cut":
        parts = [rows[rank::RANKS] for rows in trainers.steps_of(SINGLE, 8)]
        return [[CUT(rows) for rows in trainers.steps_of(part, 2)] for part in parts]
    parts = [rows[2 * rank : 2 * rank + 2] for rows in trainers.steps_of(FULL if way == "accumulated" else ROWS)]
    size = 1 if way == "accumulated" else 2
    batches = [[trainers.collate(rows) for rows in trainers.steps_of(part, size)] for part in parts]
    if way == "nothing valid" and rank == 1:
        for batch in (batch for step in batches for batch in step):
            batch["labels"].fill_(oracle.IGNORE)
    return batches


def gather(values: Tensor) -> Tensor:
    found = [torch.empty_like(values) for _ in range(RANKS)]
    dist.all_gather(found, values)
    return torch.cat(found)


def trained(model: Any, wrapped: Any, steps: Any, is_counted: bool = True) -> list[Tensor]:
    """Parameters after SGD on this rank's steps; ranks are averaged by what wraps the model."""
    optimizer = torch.optim.SGD(wrapped.parameters(), trainers.RATE)
    for batches in steps:
        for batch in count_step(batches, gather=gather, parts=RANKS) if is_counted else batches:
            wrapped(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = [parameter.detach() for parameter in model.parameters()]
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.clone() for p in found]


def with_ddp(way: str, rank: int, **options: Any) -> list[Tensor]:
    model = patch(trainers.tiny(), "prompt")
    return trained(model, DistributedDataParallel(model), own_batches(way, rank), **options)


def with_fsdp(way: str, rank: int, is_head_apart: bool = False) -> list[Tensor]:
    """FSDP2; the head in the root's group of parameters, or in one of its own."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = patch(trainers.tiny(), "prompt"), init_device_mesh("cpu", (RANKS,))
    parts = [*model.model.layers, *([model.lm_head] if is_head_apart else []), model]
    for part in parts:
        fully_shard(part, mesh=mesh)
    return trained(model, model, own_batches(way, rank))


def with_accelerate() -> list[Tensor]:
    """The loop of examples/train_accelerate.py: ranks talk in the last batch of a step alone."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = patch(trainers.tiny(), "prompt")
    loader = torch.utils.data.DataLoader(ROWS, batch_size=1, collate_fn=ResponseCollator())
    wrapped, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), trainers.RATE), loader)
    for batches in counted_steps(loader, 2, gather=accelerator.gather, parts=accelerator.num_processes):
        for i, batch in enumerate(batches):
            with contextlib.nullcontext() if i == len(batches) - 1 else accelerator.no_sync(wrapped):
                accelerator.backward(wrapped(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


def make_trainer(folder: str) -> Any:
    """Under torchrun's variables, with evaluations in batches of 2."""
    options = {"per_device_eval_batch_size": 2, "prediction_loss_only": True}
    return trainers.in_order(Trainer)(
        trainers.tiny(), trainers.arguments(folder, 1, 2, **options), normalize="prompt",
        data_collator=ResponseCollator(), train_dataset=ROWS, eval_dataset=ROWS,
    )  # fmt: skip


def with_trainer(folder: str) -> dict[str, Any]:
    """Parameters, logged losses, and then the loss of the eleven rows."""
    trainer = make_trainer(folder)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    parameters = [p.detach().clone() for p in trainer.model.parameters()]
    return {"parameters": parameters, "eval_loss": trainer.evaluate()["eval_loss"], "losses": logged}


def evaluated_first(folder: str) -> str:
    """What is said where a trainer evaluates before it trains."""
    trainer = make_trainer(folder)
    trainer.evaluate()
    try:
        trainer.train()
    except ValueError as error:
        return str(error)
    return "nothing"


def with_lightning() -> list[Tensor]:
    import lightning.pytorch as pl

    from mrtkern.integrations.lightning import StepCounts

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = patch(trainers.tiny(), "prompt")

        def training_step(self, batch: Any, _: int) -> Any:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), trainers.RATE)

    module = Module()
    trainer = pl.Trainer(
        max_epochs=1, accumulate_grad_batches=2, callbacks=[StepCounts("prompt")], accelerator="cpu", devices=RANKS,
        strategy="ddp", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    sampler = torch.utils.data.DistributedSampler(ROWS, shuffle=False)
    trainer.fit(module, torch.utils.data.DataLoader(ROWS, 1, sampler=sampler, collate_fn=ResponseCollator()))
    return [p.detach().clone() for p in module.model.parameters()]


def work(rank: int, port: int, results: str) -> None:
    """One rank: everything, then the results go to a file."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "GROUP_RANK": 0}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0}
    os.environ.update({name: str(value) for name, value in names.items()})
    dist.init_process_group("gloo", timeout=timedelta(seconds=process.LONGEST))
    found: dict[Any, Any] = {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found["naive"] = with_ddp("ragged", rank, is_counted=False)
    found["said"] = [str(one.message) for one in said if "mrtkern" in str(one.message)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for way in WAYS:
            found["DDP", way] = with_ddp(way, rank)
            if not WITHOUT_FSDP2:
                found["FSDP2", way] = with_fsdp(way, rank, is_head_apart=way == "accumulated")
        found["Lightning"] = with_lightning()
        found["accelerate"] = with_accelerate()
        found["Trainer"] = with_trainer(f"{results}/trainer{rank}")
        found["evaluated first"] = evaluated_first(f"{results}/trainer{rank}")
    torch.save(found, f"{results}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What the two ranks found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    mp.spawn(work, (port, str(folder)), nprocs=RANKS)
    return [torch.load(folder / str(rank)) for rank in range(RANKS)]


def difference(found: list[Tensor], way: str, normalize: str = "prompt") -> float:
    model = trainers.tiny()
    expected, _ = trainers.one_batch(trainers.tiny(), whole_steps(way), normalize)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), found, strict=True):
            parameter.copy_(value)
    return trainers.largest_difference(model, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "engine", ["DDP", pytest.param("FSDP2", marks=pytest.mark.skipif(WITHOUT_FSDP2, reason="not on this torch's CPUs"))]
)
def test_ranks_equal_one_batch(ranks: list[dict[Any, Any]], engine: str, way: str) -> None:
    for found in ranks:
        assert difference(found[engine, way], way) < oracle.SPLIT


def test_ranks_that_normalise_by_themselves_take_another_step_and_say_so(ranks: list[dict[Any, Any]]) -> None:
    for found in ranks:
        assert difference(found["naive"], "ragged") > 100 * oracle.SPLIT
        assert any("batches of all ranks must have the same number of prompts" in text for text in found["said"])


def test_trainers_equal_one_batch(ranks: list[dict[Any, Any]]) -> None:
    """Eleven rows over two ranks: the first one fills up the last step, and counts in no evaluation."""
    expected, losses = trainers.one_batch(trainers.tiny(), whole_steps("accumulated"), "prompt")
    trained = trainers.tiny()
    with torch.no_grad():
        for parameter, value in zip(trained.parameters(), expected, strict=True):
            parameter.copy_(value)
    eval_loss = trainers.true_loss(trained, trainers.collate(ROWS), "prompt").item()
    for found in ranks:
        for values in (found["Trainer"]["parameters"], found["Lightning"], found["accelerate"]):
            assert (
                max(float((p - q).abs().max() / q.abs().max()) for p, q in zip(values, expected, strict=True))
                < oracle.SPLIT
            )
        assert found["Trainer"]["eval_loss"] == pytest.approx(eval_loss, rel=oracle.LOSS)
    assert ranks[0]["Trainer"]["losses"] == pytest.approx(losses, rel=oracle.LOSS)


def test_a_model_that_no_rank_would_share_gradients_of_is_refused(ranks: list[dict[Any, Any]]) -> None:
    """Of accelerate 1.15, which wraps nothing that an evaluation prepared."""
    for found in ranks:
        assert found["evaluated first"] == (
            "transformers.Trainer: ranks must share gradients, got a model that evaluate() prepared before train()"
        )
