"""`mrtkern weights` end to end: under the weights that it writes, each trainer's own formula is the normalised loss."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("rich")

import mrtkern as mk  # noqa: E402
from mrtkern.__main__ import main  # noqa: E402
from mrtkern.cli.weights import CONSUMERS, SCALE  # noqa: E402
from mrtkern.integrations.data import PromptBatchSampler, ResponseCollator  # noqa: E402
from tests.tools import oracle, tokens  # noqa: E402

# Prompt A: a response of 1 token with loss 4 and one of 3 tokens with loss 0; prompt B: one of 1 token with loss 3
TOY = [("A", [7], 4.0), ("B", [7], 3.0), ("A", [7, 8, 9], 0.0)]
RIGHT = {"token": 7 / 5, "response": 7 / 3, "prompt": 2.5, "prompt_token": 2.0}
made = np.random.default_rng(5)
LARGE = [(f"p{made.integers(40)}", [0] * int(made.integers(0, 30)), float(made.random())) for _ in range(300)]


def table(rows: list[tuple[str, list[int], float]]) -> Any:
    prompts, ids, losses = zip(*rows, strict=True)
    text = ["".join(chr(97 + i) for i in row) for row in ids]
    kind = pa.list_(pa.int64())
    return pa.table({"p": prompts, "ids": pa.array(ids, kind), "n": [*map(len, ids)], "text": text, "loss": losses})


def nested(rows: list[tuple[str, list[int], float]]) -> Any:
    names = list(dict.fromkeys(name for name, *_ in rows))
    lists = {name: [(ids, loss) for other, ids, loss in rows if other == name] for name in names}
    ids = [[i for i, _ in lists[name]] for name in names]
    columns = {"ids": pa.array(ids, pa.list_(pa.list_(pa.int64()))), "n": [[len(i) for i in row] for row in ids]}
    return pa.table({"p": names, **columns, "loss": [[loss for _, loss in lists[name]] for name in names]})


def write(rows: Any, path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(rows, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
    else:
        lines = [",".join(rows.column_names)]
        lines += [",".join(f'"{cell}"' for cell in row.values()) for row in rows.to_pylist()]
        path.write_text("\n".join(lines) + "\n")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(
    source: Path, normalize: str, consumer: str, *options: str, group: str = "p", out: str = "out.jsonl"
) -> list[dict[str, Any]]:
    """The rows that the command writes."""
    target = source.with_name(out)
    command = ["weights", str(source), "-o", str(target), "--group-by", group, "--normalize", normalize]
    assert main([*command, "--for", consumer, *options]) == 0
    return read(target)


def flat(rows: list[dict[str, Any]], column: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and loss of every token, float32."""
    lengths = torch.tensor([row["n"] for row in rows])
    found = [torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in (column, "loss")]
    weight, loss = (x.repeat_interleave(lengths) for x in found)
    return weight, loss


def ms_swift(weight: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    return (loss * weight).sum() / len(loss)


def verl(weight: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    """Two ranks with two micro-batches each: every one over the sum of all masks times the ranks, ranks averaged."""
    parts = [(weight[i::4] * loss[i::4]).sum() / weight.sum() * 2 for i in range(4)]
    return torch.stack(parts).sum() / 2


def megatron(weight: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    """Three micro-batches, whose sums are cut to whole numbers before they are added up."""
    counts = sum(int(part.sum()) for part in weight.split(len(loss) // 3 + 1))
    return (loss * weight).sum() / counts


FORMULAS = {"ms-swift": (ms_swift,), "verl": (verl,), "megatron": (megatron,), "mean1": (ms_swift, verl)}


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("normalize", RIGHT)
@pytest.mark.parametrize("rows", [TOY, LARGE], ids=["toy", "large"])
def test_a_trainers_formula_is_the_normalised_loss(tmp_path: Path, rows: Any, normalize: str, consumer: str) -> None:
    found = run(write(table(rows), tmp_path / "in.parquet"), normalize, consumer, "--tokens", "ids")
    weight, loss = flat(found, CONSUMERS[consumer].column)
    lengths = torch.tensor([len(ids) for _, ids, _ in rows])
    targets = torch.zeros(int(lengths.sum()), dtype=torch.int64)
    number = {name: i for i, name in enumerate(dict.fromkeys(name for name, *_ in rows))}
    prompt, ends = torch.tensor([number[name] for name, *_ in rows]), torch.cat([lengths[:1] * 0, lengths.cumsum(0)])
    w = mk.response_weights(targets, normalize, offsets=ends, prompt=prompt)
    right = torch.tensor(RIGHT[normalize]).double() if rows is TOY else (w.double() * loss.double()).sum()
    roundings = 2 * len(loss) + 8  # two sums, and the few operations that made each weight
    allowed = roundings * oracle.roundoff(torch.float32) * (weight.double() * loss.double()).sum() / weight.sum()
    for formula in FORMULAS[consumer]:
        cut = 3 / weight.sum() if formula is megatron else 0.0  # three sums, each less than 1 short
        oracle.assert_within(formula(weight, loss), right, (allowed + right * cut).double())


@pytest.mark.parametrize("normalize", RIGHT)
def test_without_weights_each_formula_is_the_mean_over_tokens(tmp_path: Path, normalize: str) -> None:
    """What the column is for: but for "token" no formula has the loss without it."""
    found = run(write(table(TOY), tmp_path / "in.parquet"), normalize, "mean1", "--tokens", "ids")
    weight, loss = flat(found, "mrt_weight")
    plain = float(ms_swift(torch.ones_like(weight), loss))
    assert (plain == pytest.approx(RIGHT[normalize])) == (normalize == "token")


def test_weights_of_megatron_lose_next_to_nothing_when_they_are_cut(tmp_path: Path) -> None:
    found = run(write(table(LARGE), tmp_path / "in.parquet"), "prompt", "megatron", "--counts", "n")
    weight, _ = flat(found, "mrt_weight")
    assert float(weight.mean()) == pytest.approx(SCALE)


@pytest.mark.parametrize("out", ["out.parquet", "out.jsonl", "out.csv"])
@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".csv"])
def test_every_format_gives_the_same_weights_beside_all_that_was_there(tmp_path: Path, ending: str, out: str) -> None:
    source = write(table(TOY), tmp_path / f"in{ending}")
    target = tmp_path / out
    command = ["weights", str(source), "-o", str(target), "--group-by", "p", "--normalize", "prompt", "--for", "mean1"]
    assert main([*command, "--tokens", "ids"]) == 0
    rows = pa.csv.read_csv(target).to_pylist() if out.endswith("csv") else read(target)
    assert [row["mrt_weight"] for row in rows] == pytest.approx([1.25, 2.5, 1.25 / 3])
    assert [row["p"] for row in rows] == ["A", "B", "A"]
    assert list(rows[0]) == ["p", "ids", "n", "text", "loss", "mrt_weight"]


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
@pytest.mark.parametrize("option", ["--tokens=ids", "--counts=n"])
def test_lists_of_a_prompt_get_a_list_of_weights(tmp_path: Path, ending: str, option: str) -> None:
    found = run(write(nested(TOY), tmp_path / f"in{ending}"), "response", "ms-swift", option)
    assert [row["loss_scale"] for row in found] == [pytest.approx([5 / 3, 5 / 9]), pytest.approx([5 / 3])]


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
def test_messages_of_ms_swift_hold_the_weight_in_the_turns_of_the_assistant(tmp_path: Path, ending: str) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = table(TOY).append_column("messages", pa.array([turns] * 3))
    found = run(write(rows, tmp_path / f"in{ending}"), "prompt", "ms-swift", "--counts", "n", "--messages", "messages")
    plain = run(write(rows, tmp_path / f"in{ending}"), "prompt", "ms-swift", "--counts", "n", out="plain.jsonl")
    assert [row["messages"][1].pop("loss_scale") for row in found] == [row.pop("loss_scale") for row in plain]
    assert found == plain


def test_messages_that_can_hold_no_weight_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    for turns, sentence in (
        ([user], "must hold messages with a turn of the assistant, got none in row 1"),
        ([user, {**answer, "loss_scale": 0.5}], "must hold turns without a loss_scale of their own, got 0.5 in row 1"),
    ):
        lines = [{"p": "a", "n": 1, "m": [user, answer]}, {"p": "a", "n": 1, "m": turns}]
        source = tmp_path / "in.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = ["weights", str(source), "-o", str(tmp_path / "out.jsonl"), "--group-by", "p", "--counts", "n"]
        assert main([*command, "--normalize", "prompt", "--for", "ms-swift", "--messages", "m"]) == 2
        assert f"column 'm' {sentence}\n" in capsys.readouterr().err
        assert main([*command, "--normalize", "prompt", "--for", "verl", "--messages", "m"]) == 2
        assert "--messages needs --for ms-swift" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_shares_weigh_the_responses_of_a_prompt(tmp_path: Path) -> None:
    rows = table(TOY).append_column("share", pa.array([0.25, 1.0, 0.75]))
    found = run(write(rows, tmp_path / "in.parquet"), "prompt", "mean1", "--counts", "n", "--share", "share")
    weight, loss = flat(found, "mrt_weight")
    assert float(ms_swift(weight, loss)) == pytest.approx((0.25 * 4 + 3) / 2)


def test_the_constant_of_prompt_sum_is_kept_where_it_can_be(tmp_path: Path) -> None:
    source = write(table(TOY), tmp_path / "in.parquet")
    found = run(source, "prompt_sum", "ms-swift", "--counts", "n", "--constant", "2")
    assert float(ms_swift(*flat(found, "loss_scale"))) == pytest.approx((4 / 2 + 3) / 2 / 2)


def test_texts_are_counted_by_a_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tokens.tokenizer().save_pretrained(tmp_path / "tokenizer")
    source = write(table([("A", [2], 4.0), ("B", [2], 3.0), ("A", [0, 1, 2, 3], 0.0)]), tmp_path / "in.parquet")
    options = ["--text", "text", "--tokenizer", str(tmp_path / "tokenizer"), "--extra", "0"]
    found = run(source, "token", "ms-swift", *options)  # "abcd" has a merge: three tokens
    assert [row["loss_scale"] for row in found] == pytest.approx([1.0] * 3)
    found = run(source, "response", "mean1", *options)
    assert [row["mrt_weight"] for row in found] == pytest.approx([5 / 3, 5 / 3, 5 / 9])


def test_responses_without_tokens_weigh_nothing_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(table([*TOY, ("B", [], 9.0), ("C", [], 9.0)]), tmp_path / "in.parquet")
    found = run(source, "prompt", "mean1", "--tokens", "ids")
    assert [row["mrt_weight"] for row in found] == pytest.approx([1.25, 2.5, 1.25 / 3, 0, 0])
    said = capsys.readouterr().out
    assert "5 responses of 3 prompts, 5 tokens: column 'mrt_weight', prompt, for mean1" in said
    assert "weights from 0.4167 to 2.5, mean over tokens 1\n" in said
    assert "2 responses without a token: weight 0, and no part of K" in said


def test_what_select_keeps_goes_straight_on(tmp_path: Path) -> None:
    """Selected, weighed, collated: row numbers, shares and weights stay with their responses."""
    rows = {
        "prompt": ["question a", "question b"],
        "id": ["a", "b"],
        "responses": [["x y", "x z", "y y y", "z"], ["w w", "w"]],
        "n": [[3, 3, 5, 1], [3, 1]],
    }
    source, kept, out = (tmp_path / name for name in ("in.jsonl", "kept.jsonl", "out.jsonl"))
    source.write_text("".join(json.dumps({k: v[i] for k, v in rows.items()}) + "\n" for i in range(2)))
    options = ["--group-by", "id", "--k", "2", "--text", "responses", "--method", "stratified", "--cut", "n"]
    assert main(["select", str(source), "-o", str(kept), *options]) == 0
    weighed = run(kept, "prompt", "verl", "--counts", "n", "--share", "mrt_share", group="id")
    pytest.importorskip("transformers")
    collate = ResponseCollator(tokens.tokenizer(), weight="mrt_share")
    batch = collate(weighed)
    assert batch["prompt"].tolist() == [0, 0, 1, 1]
    shares = [v for row in weighed for v in row["mrt_share"]]
    v = torch.tensor(shares, dtype=torch.float64)
    lengths = torch.tensor([n for row in weighed for n in row["n"]])
    mean = torch.stack([(v * lengths / lengths)[:2].sum(), (v * lengths / lengths)[2:].sum()]).mean()
    weight = torch.tensor([w for row in weighed for w in row["mrt_weight"]], dtype=torch.float64)
    assert float((weight * lengths).sum() / lengths.sum()) == pytest.approx(1.0)
    assert (weight / (v / lengths)).tolist() == pytest.approx([float(weight[0] * lengths[0] / v[0])] * 4)
    assert float(mean) == pytest.approx(1.0)
    assert out.exists()


def test_kept_rows_of_one_response_each_are_sampled_by_whole_prompts(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    lines = [{"q": f"question {i % 3}", "id": i % 3, "answer": "xyzwvu"[i % 6] * (i % 4 + 1)} for i in range(18)]
    source, kept = tmp_path / "in.jsonl", tmp_path / "kept.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--group-by", "id", "--k", "2", "--text", "answer"]
    assert main(["select", str(source), "-o", str(kept), *options]) == 0
    rows = read(kept)
    sampler = PromptBatchSampler([row["id"] for row in rows], 2, world_size=1)
    collate = ResponseCollator(tokens.tokenizer(), prompt="q", responses="answer", prompt_id="id", weight="mrt_share")
    batches = [collate([rows[t] for t in batch]) for batch in sampler]
    assert [batch["prompt"].tolist() for batch in batches] == [[0, 0, 1, 1], [0, 0]]
    keys = mk.group(range(3))[2].tolist()  # those with which the command selected
    assert sorted({key for batch in batches for key in batch["prompt_key"].tolist()}) == sorted(keys)


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({"n": [1, -1, 2]}, ["--counts", "n"], "column 'n' must not hold negative numbers, got -1.0 in row 1"),
        ({"n": [1.0, 1.5, 2]}, ["--counts", "n"], "column 'n' must hold whole numbers of tokens, got 1.5 in row 1"),
        ({"n": [1, None, 2]}, ["--counts", "n"], "column 'n' must hold a number, got null in row 1"),
        ({"n": [0, 0, 0]}, ["--counts", "n"], "column 'n' must count a token at least, got none in .*"),
        ({"n": ["a", "b", "c"]}, ["--counts", "n"], "column 'n' must hold numbers, got string in every row from row 0"),
        ({"n": [1, 2, 3]}, ["--tokens", "n"], "column 'n' must hold token ids, got int64 in every row from row 0"),
        ({"n": [1, 2, 3]}, ["--counts", "m"], ".* has no column 'm': its columns are p, n"),
        ({"n": [1, 2, 3], "p": ["a", None, "b"]}, ["--counts", "n"], "column 'p' must hold a prompt id, got null .*"),
        ({"n": [1, 2, 3], "mrt_weight": [1, 2, 3]}, ["--counts", "n"], ".* 'mrt_weight': weights adds it"),
        (
            {"n": [1, 2, 3], "s": [1.0, -1.0, 0.5]},
            ["--counts", "n", "--share", "s"],
            "column 's' must not hold negative numbers, got -1.0 in row 1",
        ),
        (
            {"n": [1, 2, 3], "s": [0.0, 0.0, 0.0]},
            ["--counts", "n", "--share", "s"],
            "column 's' must give a response with tokens a share, got 0 for all",
        ),
        (
            {"n": [1, 2, 3], "s": [[1.0], [1.0], [0.5]]},
            ["--counts", "n", "--share", "s"],
            r"columns must all hold one response a row .*, got 'n' \(int64\) and 's' \(list<.*\)",
        ),
        ({"n": [[1], [2], None]}, ["--counts", "n"], "column 'n' must hold a list, got null in row 2"),
        ({"n": ["x", "y", "z"]}, ["--text", "n"], "--text and --tokenizer need each other: .*"),
        ({"n": [1, 2, 3]}, ["--counts", "n", "--normalize", "prompt_sum"], "--normalize prompt_sum needs --for ms-.*"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, Any], options: list[str], sentence: str
) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"p": ["a", "b", "a"], **columns}), source)
    command = ["weights", str(source), "-o", str(tmp_path / "out.jsonl"), "--group-by", "p", "--for", "verl"]
    assert main([*command, "--normalize", "prompt", *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("mrtkern weights: ")
    assert re.fullmatch(f"mrtkern weights: {sentence}\n", said), said
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    source = write(table(TOY), tmp_path / "in.parquet")
    command = ["weights", str(source), "-o", str(source), "--group-by", "p", "--for", "verl", "--counts", "n"]
    assert main([*command, "--normalize", "prompt"]) == 2


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["weights", "--help"])
    assert "mrtkern weights kept.parquet -o train.jsonl" in capsys.readouterr().out
