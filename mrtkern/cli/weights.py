"""`mrtkern weights`: a column of loss weights, so that trainers that take one train under a normalisation of ours.

reading.py streams the table; here the tokens of every response are counted (pass 1) and weighed by `response_weights`
over the whole table; writing.py streams the table again, every row with its weight (pass 2).
Memory: about 200 bytes a response, and one batch of the table.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from mrtkern.cli import InputError, add_table, counted, new_parser
from mrtkern.cli import columns as check
from mrtkern.cli.columns import Place, is_list, is_number, is_text
from mrtkern.cli.packing import Packed, Rows, check_columns, check_group, combined, unnested
from mrtkern.cli.progress import Steps
from mrtkern.cli.reading import Csv, Jsonl, Source, ending, open_source
from mrtkern.cli.writing import Temporary, as_table, check_schema, shortest, to_json, to_python, write_rows
from mrtkern.loss import NORMALIZATIONS, response_weights

SCALE = 256  # megatron: a sum loses at most 1 of 256 tokens' weights; int32 holds the sum of 8 million tokens
TEXTS = 1024  # tokenised at a time
SUMMARY = "write a column of loss weights for a trainer that takes one"
DESCRIPTION = """\
Write the table once more, with a weight for the loss of every response, so that a trainer that multiplies the losses
of a response's tokens by it trains under the normalisation: prompts count alike whatever their number of responses
(prompt, prompt_token), responses whatever their length (response, prompt), or tokens (token).

A row is a response, or (nested) a row is a prompt whose columns hold lists, an entry a response. The tokens that the
trainer learns of each response are counted in --counts, --tokens or --text. --share gives weights within a prompt, used
as they are: mrt_share, as stratified selections want it.

What a trainer divides by decides what the weights must be:
  ms-swift   sum of weight * loss / number of labels. --messages puts it where it is looked for, into each turn of the
             assistant as its loss_scale; run with --is_binary_loss_scale false
  verl       sum of weight * loss / sum of weights (SFT, a loss mask of floats). Mean 1 over tokens
  megatron   the same, but the sum of weights of a micro-batch is cut to a whole number: mean 256 over tokens, so that
             nothing to speak of is lost; run with --calculate-per-token-loss, up to 8 million tokens a step
  mean1      mean 1 over tokens, for whoever divides by the number of labels or by the sum of weights
The whole table as one step has exactly the loss of the normalisation. Of steps that hold prompts whole, verl and
megatron have each step's own, under prompt and prompt_token; ms-swift has it times the step's number of labels over
the average one.
"""
EXAMPLE = """\
example: the glosses that `mrtkern select` kept, a prompt's loss the mean over its glosses, whatever their lengths
  mrtkern select mrtkern/data/wordnet_senses.parquet -o kept.parquet --group-by word --k 4 --text gloss
  mrtkern weights kept.parquet -o train.jsonl --group-by word --text gloss --tokenizer Qwen/Qwen3-0.6B \\
      --normalize prompt --for ms-swift

exit status: 0 done; 2 input that cannot be used: one sentence names row and column, and no output is written;
130 Ctrl-C: no output is written
"""


class Consumer(NamedTuple):
    """A trainer's convention."""

    column: str
    divides: str


CONSUMERS = {
    "ms-swift": Consumer("loss_scale", "the number of labels"),
    "verl": Consumer("mrt_weight", "the sum of weights"),
    "megatron": Consumer("mrt_weight", "the sum of weights, cut to a whole number"),
    "mean1": Consumer("mrt_weight", "the number of labels, or the sum of weights"),
}


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of `mrtkern`."""
    parser = new_parser(subparsers, "weights", SUMMARY, DESCRIPTION, EXAMPLE)
    add = parser.add_argument
    add_table(parser, writes=True)
    add("--group-by", metavar="COL", required=True, help="the prompt of a row")
    add("--normalize", choices=NORMALIZATIONS, required=True, help="as in mrtkern.response_weights")
    add("--for", dest="consumer", choices=CONSUMERS, required=True, help="whose convention")
    lengths = parser.add_mutually_exclusive_group(required=True)
    lengths.add_argument("--counts", metavar="COL", help="numbers of tokens")
    lengths.add_argument("--tokens", metavar="COL", help="lists of token ids")
    lengths.add_argument("--text", metavar="COL", help="texts, tokenised by --tokenizer")
    add("--tokenizer", metavar="NAME", help="a tokenizer of transformers: its name, or a folder")
    add(
        "--extra", type=int, default=1, metavar="N",
        help="--text: tokens learnt beside those of the text, such as an end of sequence (default: %(default)s)",
    )  # fmt: skip
    add("--share", metavar="COL", help="weights of the responses of a prompt, such as mrt_share")
    add("--constant", type=float, default=1.0, help="of prompt_sum, which ms-swift alone can have (default: 1)")
    add("--messages", metavar="COL", help="ms-swift, to .jsonl: write the weight into the assistant's turns of COL")
    add("--column", metavar="NAME", help="the new column (default: loss_scale for ms-swift, else mrt_weight)")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what no table could satisfy."""
    if args.normalize == "prompt_sum" and args.consumer != "ms-swift":
        rule = f"--for {args.consumer} divides by {CONSUMERS[args.consumer].divides}"
        raise InputError(f"--normalize prompt_sum needs --for ms-swift, because {rule}, which loses its constant")
    if not 0 < args.constant < float("inf"):
        raise InputError(f"--constant must be positive and finite, got {args.constant}")
    if (args.text is None) != (args.tokenizer is None):
        raise InputError("--text and --tokenizer need each other: a text has tokens by a tokenizer alone")
    if args.extra < 0:
        raise InputError(f"--extra must be at least 0, got {args.extra}")
    if args.tokenizer is not None and importlib.util.find_spec("transformers") is None:
        raise InputError('--tokenizer needs transformers, pip install "mrtkern[train]"; or count tokens for --counts')
    kind = ending(args.output, "output")
    if args.messages is not None and (args.consumer != "ms-swift" or kind != ".jsonl" or args.column is not None):
        raise InputError("--messages needs --for ms-swift, an output that ends in .jsonl, and no --column")
    if os.path.realpath(args.input) == os.path.realpath(args.output):
        raise InputError(f"output must not be the input itself, got {str(args.output)!r}")


def run(args: argparse.Namespace) -> int:
    """Count, weigh, write, tell."""
    check_arguments(args)
    source = open_source(args.input)
    name = args.column or CONSUMERS[args.consumer].column
    counter = Counter.of(args, source)
    check_schema(source, args.output.suffix.lower(), [] if args.messages else [name], "weights")
    with ExitStack() as stack:
        out = Temporary(args.output, "output").opened(stack)
        steps = stack.enter_context(Steps())
        steps.begin("counting", source.num_rows)
        found = counter.read(source, steps.advance)
        weight = weighed(args, found)
        steps.begin("writing", found.packed.num_rows)
        if args.messages is not None:
            write_messages(source, args.messages, weight, out, steps.advance)
        else:
            write_rows(source, found.packed, Weights(name, weight), True, out, steps.advance)
        out.commit()
    print("\n".join(remarks(args, name, found, weight)))
    return 0


class Weights(NamedTuple):
    """The added column."""

    name: str
    weight: Any  # [T] float32

    @property
    def types(self) -> dict[str, Any]:
        """Its name and its type."""
        return {self.name: pa.float32()}

    @property
    def rank(self) -> Any:
        """Every response is written."""
        return np.zeros(len(self.weight), dtype=np.int32)

    def column(self, name: str, picked: Any) -> Any:
        """The weights of the responses `picked`."""
        return pa.array(self.weight[picked], self.types[name])


class Counted(NamedTuple):
    """Every response, in file order."""

    packed: Packed  # with no packed places: rows stay where they are
    prompt: Any  # [T] int64
    tokens: Any  # [T] int64
    share: Any  # [T] float64, or None


@dataclass
class Counter:
    """What is read, and how tokens are counted."""

    group: str
    lengths: str  # the column
    count: Callable[[Any, str, Place], Any]  # of it, [responses] int64
    share: str | None
    is_nested: bool
    groups: check.Groups = field(init=False)

    def __post_init__(self) -> None:
        self.groups = check.Groups(self.group)

    @classmethod
    def of(cls, args: argparse.Namespace, source: Source) -> Counter:
        """From the arguments and the types of the columns."""
        lengths = args.counts or args.tokens or args.text
        names = [args.group_by, lengths, *(name for name in (args.share, args.messages) if name is not None)]
        check_columns(source, names)
        check_group(source, args.group_by)
        is_csv = isinstance(source, Csv)
        if args.counts is not None:
            depth, count = depth_of(source, lengths, "numbers", lambda kind: is_number(kind) or is_csv), numbers_of
        elif args.tokens is not None:
            depth, count = depth_of(source, lengths, "token ids", lambda kind: is_ids(kind) or is_csv), lengths_of
        else:
            tokenizer = load_tokenizer(args.tokenizer)
            depth = depth_of(source, lengths, "texts", is_text)

            def count(column: Any, name: str, place: Place) -> Any:
                return texts_of(column, name, place, tokenizer, args.extra)

        if args.share is not None:
            other = depth_of(source, args.share, "numbers", lambda kind: is_number(kind) or is_csv)
            if other != depth:
                kinds = " and ".join(f"{name!r} ({source.schema.field(name).type})" for name in (lengths, args.share))
                rule = "columns must all hold one response a row or all hold a list of responses a row"
                raise InputError(f"{rule}, got {kinds}")
        if args.messages is not None and depth:
            raise InputError(f"--messages needs a row per response, got a list of responses a row in {lengths!r}")
        return cls(args.group_by, lengths, count, args.share, depth)

    def read(self, source: Source, advance: Callable[[int], None]) -> Counted:
        """Count, check and pack; `advance` is told how many rows were read."""
        prompt, tokens, share = Rows(None), Rows(None), Rows(None)
        sizes, num_rows = [np.zeros(1, dtype=np.int64)], 0
        values = [self.lengths, *([self.share] if self.share else [])]
        for first_row, batch in source.batches(list(dict.fromkeys([self.group, *values]))):
            if batch.num_rows == 0:
                continue
            codes = self.groups.encode(combined(batch, self.group), first_row)
            found, splits = {name: combined(batch, name) for name in values}, None
            if self.is_nested:
                splits, found = unnested(found, values, first_row)
                codes = np.repeat(codes, np.diff(splits))
                sizes.append(np.diff(splits))
            place = Place(first_row, splits)
            prompt.append(codes)
            tokens.append(self.count(found[self.lengths], self.lengths, place))
            if self.share is not None:
                share.append(not_negative(check.rewards(found[self.share], self.share, place), self.share, place))
            num_rows += batch.num_rows
            advance(batch.num_rows)
        splits = np.cumsum(np.concatenate(sizes)) if self.is_nested else None
        packed = Packed(
            num_rows=num_rows, order=None, offsets=None, group_key=None, labels=self.groups.labels, reward=None,
            vectors=None, texts=None, splits=splits,
        )  # fmt: skip
        if tokens.data is None or not tokens.taken(None).any():
            raise InputError(f"column {self.lengths!r} must count a token at least, got none in {source.path}")
        shares = None if self.share is None else share.taken(None)
        return Counted(packed, prompt.taken(None), tokens.taken(None), shares)


def depth_of(source: Source, name: str, expected: str, is_one: Callable[[Any], bool]) -> bool:
    """Whether the column holds a list of responses a row."""
    kind = check.storage(source.schema.field(name).type)
    if is_one(kind) or pa.types.is_null(kind):
        return False
    if is_list(kind) and (is_one(kind.value_type) or pa.types.is_null(kind.value_type)):
        return True
    raise InputError(f"column {name!r} must hold {expected}, got {kind} in every row from row 0")


def is_ids(kind: Any) -> bool:
    """A list of whole numbers."""
    return bool(is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_null(kind.value_type)))


def not_negative(values: Any, name: str, place: Place) -> Any:
    """The values, or the first that is negative refused."""
    if (values < 0).any():
        i = int((values < 0).argmax())
        raise InputError(f"column {name!r} must not hold negative numbers, got {values[i]} in {place(i)}")
    return values


def numbers_of(column: Any, name: str, place: Place) -> Any:
    """Numbers of tokens."""
    values = not_negative(check.rewards(column, name, place), name, place)
    if (values != np.floor(values)).any():
        i = int((values != np.floor(values)).argmax())
        raise InputError(f"column {name!r} must hold whole numbers of tokens, got {values[i]} in {place(i)}")
    return values.astype(np.int64)


def lengths_of(column: Any, name: str, place: Place) -> Any:
    """Lengths of lists of token ids; of a CSV file they are text, such as [5, 6]."""
    if is_text(column.type):
        column = check.parsed_vectors(column, name, place)
    return check.flat(column, name, place)[1]


def texts_of(column: Any, name: str, place: Place, tokenizer: Any, extra: int) -> Any:
    """Numbers of tokens of texts, with `extra` more of each."""
    check.no_nulls(column, name, "text", place)
    counts = []
    for first in range(0, len(column), TEXTS):
        texts = column.slice(first, TEXTS).to_pylist()
        counts += [len(ids) + extra for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return np.asarray(counts, dtype=np.int64)


def load_tokenizer(name: str) -> Any:
    """A tokenizer of transformers."""
    try:
        return importlib.import_module("transformers").AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"--tokenizer {name!r} cannot be loaded: {' '.join(str(error).split())[:200]}") from error


def weighed(args: argparse.Namespace, found: Counted) -> Any:
    """[T] float32: the weight of each response, in the consumer's convention."""
    tokens = torch.from_numpy(found.tokens)
    T = int(tokens.sum())
    try:
        omega = response_weights(
            torch.where(tokens > 0, 0, -100)[:, None],  # one target stands for all of a response, which weigh alike
            args.normalize,
            prompt=found.prompt,
            response_weight=found.share,
            tokens_per_response=tokens,
            constant=args.constant,
        )[:, 0].double()
    except ValueError as error:
        raise InputError(f"{args.input} cannot be weighed: {error}") from error
    total = float((omega * tokens).sum())
    if total == 0:
        raise InputError(f"column {args.share!r} must give a response with tokens a share, got 0 for all")
    scale = T if args.consumer == "ms-swift" else T / total * (SCALE if args.consumer == "megatron" else 1)
    return (omega * scale).float().numpy()


def write_messages(source: Source, name: str, weight: Any, out: Temporary, advance: Callable[[int], None]) -> None:
    """The rows as JSON lines, with the weight of each in the turns of the assistant."""
    blocks: Any = source.lines() if isinstance(source, Jsonl) else source.batches()
    for first_row, block in blocks:
        rows = [json.loads(line) for line in block] if isinstance(block, list) else to_python(as_table(block))
        for r, row in enumerate(rows, start=first_row):
            turns = row[name] if isinstance(row[name], list) else []
            answers = [turn for turn in turns if isinstance(turn, dict) and turn.get("role") == "assistant"]
            if not answers:
                raise InputError(
                    f"column {name!r} must hold messages with a turn of the assistant, got none in row {r}"
                )
            for turn in answers:
                if turn.get("loss_scale") is not None:
                    got = f"{turn['loss_scale']} in row {r}"
                    raise InputError(f"column {name!r} must hold turns without a loss_scale of their own, got {got}")
                turn["loss_scale"] = shortest(weight[r])
            out.file.write(to_json(row).encode() + b"\n")
        advance(len(rows))


def remarks(args: argparse.Namespace, name: str, found: Counted, weight: Any) -> list[str]:
    """What was written, and what the reader must know of it."""
    has = found.tokens > 0
    T = int(found.tokens.sum())
    mean = float((weight.astype(np.float64) * found.tokens).sum()) / T
    responses, prompts = counted(len(weight), "response"), counted(len(found.packed.labels), "prompt")
    where = f"column {name!r}" if args.messages is None else f"loss_scale in {args.messages!r}"
    lines = [
        f"{responses} of {prompts}, {counted(T, 'token')}: {where}, {args.normalize}, for {args.consumer}, "
        f"which divides by {CONSUMERS[args.consumer].divides}",
        f"weights from {weight[has].min():.4g} to {weight[has].max():.4g}, mean over tokens {mean:.6g}",
    ]
    if not has.all():
        lines.append(f"{counted(int((~has).sum()), 'response')} without a token: weight 0, and no part of K")
    return lines
