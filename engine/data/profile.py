"""What a data set holds, in numbers: rows, turns, roles, characters, labels, and token lengths with a base's tokenizer.

Counted over all good rows with pyarrow, a group at a time, so memory does not grow with the file; tokens over a random
sample that is said to be one. Kept beside the data, one file for each base, since it never changes.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import pyarrow

from engine import looker
from engine.benchmarks import library
from engine.check import DatasetError
from engine.data import closer, datasets
from engine.models import Base
from engine.render import Coder, outcome
from engine.spec import schema
from engine.spec import split as spec_split
from engine.words import Problem
from engine.workspace import Workspace, find_struct, write_atomically

VERSION = 3
# The standard error of a share near one half is 1.1 points with so many rows.
SAMPLE_ROWS = 2_000
SAMPLE_CHARACTERS = 8_000_000
# The split is drawn here as training draws it, which holds all rows in memory.
SPLIT_ROWS = 20_000
# The files of a base that decide how it reads a row.
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "config.json",
    "generation_config.json",
)  # fmt: skip
_MESSAGES = ("messages", "prompt", "completion", "chosen", "rejected")


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """How a run at the default settings divides the rows. `groups` counts different questions; rows that share one are
    never on both sides. `held_out` are rows.parquet's 0-based rows."""

    share: float
    seed: int
    train_rows: int
    held_out: tuple[int, ...]
    groups: int


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """`turns` is messages of a row -> rows; `roles` and `characters` are by role ("text" for plain texts); `tokens` are
    the lengths of the sampled rows, the longer side of a pair; `refused` counts sampled rows that the base's template
    cannot write; `problem` says why there are no tokens."""

    rows: int
    turns: dict[int, int]
    roles: dict[str, int]
    characters: dict[str, int]
    labels: dict[str, int]
    tokens: tuple[int, ...] = ()
    refused: int = 0
    window_tokens: int | None = None
    plain_template: bool = False
    problem: Problem | None = None
    split: Split | None = None

    @property
    def is_sample(self) -> bool:
        return len(self.tokens) + self.refused < self.rows

    def over(self, window_tokens: int) -> float:
        """The share of sampled rows that are longer than a window."""
        return sum(length > window_tokens for length in self.tokens) / max(1, len(self.tokens))

    def quantile(self, share: float) -> int:
        """The length that this share of the sampled rows does not exceed."""
        ordered = sorted(self.tokens)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def describe(workspace: Workspace, dataset_id: str, base: Base) -> Statistics:
    """The statistics of a stored data set. Raises DatasetError when it has no good row or is damaged."""
    import pyarrow

    path = datasets.rows_path(workspace, dataset_id)
    kept = path.parent / f"statistics-{key(base)}.json"
    known = find_struct(kept, Statistics)
    if known is not None:
        return known
    try:
        found = _count(path, base)
    except (OSError, pyarrow.ArrowException) as error:
        problem = Problem(rule="dataset-damaged", parameters={"dataset": dataset_id[:12]})
        raise DatasetError(problem) from error
    if found.problem is None:
        with suppress(OSError):  # on a disk that takes nothing it is counted anew each time
            write_atomically(kept, msgspec.json.encode(found))
    return found


def closer_look(workspace: Workspace, dataset_id: str) -> closer.Closer | None:
    """What a closer look at all rows together has found, where it was taken: a job takes it (jobs.Call.closer)."""
    return closer.kept(workspace, dataset_id)


def key(base: Base) -> str:
    """Changes with the version of this file and with the files that decide how many tokens a text has."""
    parts: list[Any] = [VERSION, base.ref, base.window_tokens]
    for name in FILES:
        try:
            stat = (base.folder / name).stat() if base.folder else None
        except OSError:
            stat = None
        parts.append((stat.st_size, stat.st_mtime_ns) if stat else None)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


def _count(path: Path, base: Base) -> Statistics:
    import pyarrow.parquet as parquet

    turns: Counter[int] = Counter()
    roles: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    with parquet.ParquetFile(path) as file:
        total = file.metadata.num_rows
        dice = random.Random(0)  # noqa: S311 - a sample, not a secret
        wanted = set(dice.sample(range(total), min(total, SAMPLE_ROWS)))
        sampled: list[dict[str, Any]] = []
        first = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            _add(table, turns, roles, characters, labels)
            inside = sorted(row - first for row in wanted if first <= row < first + table.num_rows)
            sampled += table.take(inside).to_pylist()
            first += table.num_rows
    lengths, plain, problem = _tokens(sampled, base, dice)
    return Statistics(
        rows=total,
        turns=dict(sorted(turns.items())),
        roles=dict(roles),
        characters=dict(characters),
        labels=dict(labels),
        tokens=tuple(length for length in lengths if length is not None),
        refused=lengths.count(None),
        window_tokens=base.window_tokens,
        plain_template=plain,
        problem=problem,
        split=_split(path) if total <= SPLIT_ROWS else None,
    )


def _add(
    table: pyarrow.Table, turns: Counter[int], roles: Counter[str], characters: Counter[str], labels: Counter[str]
) -> None:
    """Count one group of rows."""
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute  # its functions are made when it is imported
    of_row: Any = None
    for name in _MESSAGES:
        if name not in table.column_names or not pa.types.is_list(table.schema.field(name).type):
            continue
        column = table[name].combine_chunks()
        count = pc.fill_null(pc.list_value_length(column), 0)
        # Both answers of a pair follow the same prompt: a row has as many turns as its conversation.
        if name != "rejected":
            of_row = count if of_row is None else pc.add(of_row, count)
        flat = pc.list_flatten(column)
        sizes = pa.table(
            {
                "role": pc.struct_field(flat, "role"),
                "size": pc.fill_null(pc.utf8_length(pc.struct_field(flat, "content")), 0),
            }
        )
        for one in sizes.group_by("role").aggregate([("size", "sum"), ("size", "count")]).to_pylist():
            roles[one["role"]] += one["size_count"]
            characters[one["role"]] += one["size_sum"]
    for name, shown in (("text", "text"), ("prompt", "user")):
        if name in table.column_names and pa.types.is_string(table.schema.field(name).type):
            sizes = pc.utf8_length(table[name])
            written = len(sizes) - sizes.null_count
            if written:
                roles[shown] += written
                characters[shown] += pc.sum(sizes).as_py()
    if of_row is not None:
        for one in pc.value_counts(of_row).to_pylist():
            if one["values"]:
                turns[one["values"]] += one["counts"]
    if "label" in table.column_names:
        for one in pc.value_counts(table["label"]).to_pylist():
            labels["true" if one["values"] else "false"] += one["counts"]


def _tokens(
    sampled: list[dict[str, Any]], base: Base, dice: random.Random
) -> tuple[list[int | None], bool, Problem | None]:
    """The lengths of sampled rows in random order, as many as the budget of characters allows."""
    dice.shuffle(sampled)
    kept, spent = [], 0
    for row in sampled:
        kept.append(row)
        spent += len(msgspec.json.encode(row))
        if spent > SAMPLE_CHARACTERS:
            break
    try:
        lengths, is_plain = looker.ask(_lengths, kept, base.folder, base.ref, at=base.folder)
    except looker.Refused as error:
        return [], False, error.problem
    return lengths, is_plain, None


def _lengths(rows: list[dict[str, Any]], folder: Path | None, ref: str) -> tuple[list[int | None], bool]:
    coder = Coder.of_folder(folder, ref)
    found = (outcome.of_row(row, coder) for row in rows)
    return [one.tokens if one.problem is None else None for one in found], coder.is_plain


def _split(path: Path) -> Split:
    import pyarrow.parquet as parquet

    defaults = schema.DatasetRef(id="")
    rows = parquet.read_table(path).to_pylist()
    out = spec_split.held_out(rows, defaults.eval_share, defaults.split_seed)
    return Split(
        share=defaults.eval_share,
        seed=defaults.split_seed,
        train_rows=len(rows) - len(out),
        held_out=tuple(out),
        groups=len({spec_split.group_of(row) for row in rows}),
    )


# So many rows say which language a data set is in.
_LANGUAGE_ROWS = 50


def language(workspace: Workspace, dataset: datasets.Dataset) -> str | None:
    """ "zh" where a data set is mostly Chinese, else None; decided on its first rows, those that are made."""
    try:
        return _language(workspace.root, dataset.id) if dataset.has_rows else None
    except DatasetError:
        return None  # damaged rows are named where they are trained on


@lru_cache(maxsize=64)
def _language(root: Path, dataset_id: str) -> str | None:
    said: list[str] = []
    for row in datasets.preview(Workspace(root), dataset_id, 0, _LANGUAGE_ROWS):
        said.append(row.get("text") or "")
        for turns in (row.get("messages"), row.get("completion"), row.get("chosen")):
            said += [turn.get("content") or "" for turn in turns or ()]
    return library.language_of(said)
