"""Data sets made of stored ones, which go through the same check as any file: several mixed by weight into one; and the good
answers of pairs as rows for SFT, or the questions of any rows for PPO, with what they were made from as their parent."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from engine.check import DatasetError
from engine.data import datasets
from engine.data.datasets import Dataset
from engine.spec import split
from engine.words import Problem, Text, later
from engine.workspace import Workspace, scratch

_CHAT = ("prompt-completion", "language-modeling")
# What good answers and questions can be taken from.
ANSWERS_FROM = ("preference", "unpaired-preference")
QUESTIONS_FROM = (*ANSWERS_FROM, "prompt-completion")

LEAST_WEIGHT, MOST_WEIGHT = 0.001, 1000.0


def counts(rows: list[int], weights: list[float]) -> list[int]:
    """Return how many rows of each data set a mix takes: in the proportion of the weights, as many as there are without
    taking a row twice (rows that come again are learned by heart)."""
    most = min(have / weight for have, weight in zip(rows, weights, strict=True))
    return [max(1, math.floor(most * weight + 1e-9)) for weight in weights]


def add(workspace: Workspace, parts: Sequence[tuple[str, float]], name: str) -> Dataset:
    """Store a mix of data sets, named by id with their weights. Raises DatasetError when one cannot be part of it."""
    if len(parts) < 2 or not all(LEAST_WEIGHT <= weight <= MOST_WEIGHT for _, weight in parts):
        raise DatasetError(Problem(rule="mix-weights"))
    loaded = [datasets.load(workspace, dataset_id) for dataset_id, _ in parts]
    types = {one.report.type for one in loaded}
    for one in loaded:
        reason: Text | None = None
        if not one.report.trainable:
            reason = later("{n} of its rows are bad", n=one.report.bad_rows)
        elif len(types) > 1 and not (types <= set(_CHAT) and not _is_text(one)):
            reason = later("its rows are of another kind than the others'")
        if reason is not None:
            raise DatasetError(Problem(rule="mix-part", parameters={"name": one.name[:80], "reason": reason}))
    as_chat = types <= set(_CHAT) and not any(_is_text(one) for one in loaded)
    if not as_chat and types == {"language-modeling"} and not all(_is_text(one) for one in loaded):
        reason = later("its rows are of another kind than the others'")
        raise DatasetError(Problem(rule="mix-part", parameters={"name": loaded[0].name[:80], "reason": reason}))
    taken = counts([one.good_rows for one in loaded], [weight for _, weight in parts])
    workspace.uploads_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=scratch("mix"), dir=workspace.uploads_dir) as folder:
        target = Path(folder) / "mix.jsonl"
        with target.open("w", encoding="utf-8") as out:
            for one, count in zip(loaded, taken, strict=True):
                for row in _spread(datasets.rows_path(workspace, one.id), one.good_rows, count):
                    out.write(json.dumps(_plain(row, as_chat=as_chat), ensure_ascii=False) + "\n")
        return datasets.add(workspace, target, name)


def _is_text(one: Dataset) -> bool:
    return one.report.kind == "texts"


def _spread(path: Path, rows: int, count: int) -> Any:
    """Yield `count` of a file's rows, spread evenly over all of them."""
    import pyarrow.parquet

    at = 0
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            if (at + 1) * count // rows > at * count // rows:
                yield row
            at += 1


def _plain(row: dict[str, Any], *, as_chat: bool) -> dict[str, Any]:
    """Return a canonical row as one that a file may hold."""
    if as_chat:
        # An answer of the prompt is not trained, as a turn of a conversation it would be.
        asked = [one | {"train": False} if one["role"] == "assistant" else one for one in row.get("prompt") or []]
        messages = row.get("messages") or [*asked, *(row.get("completion") or [])]
        kept: dict[str, Any] = {"messages": [_message(one) for one in messages]}
    else:
        kept = {}
        for key in ("text", "messages", "prompt", "completion", "chosen", "rejected", "label", "completions", "labels"):
            value = row.get(key)
            if value is not None:
                chat = isinstance(value, list) and value and isinstance(value[0], dict)
                kept[key] = [_message(one) for one in value] if chat else value
    if row.get("tools"):
        kept["tools"] = json.loads(row["tools"])
    return kept


def _message(message: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if value is not None}
    if isinstance(kept.get("tool_calls"), str):
        kept["tool_calls"] = json.loads(kept["tool_calls"])
    return kept


def answers(workspace: Workspace, source: Dataset, *, share: float, seed: int) -> Dataset:
    """Return the good answers of pairs, or of answers marked good, as rows for SFT. Rows that a later run on `source` holds
    out (`share` and `seed` of its spec) are not trained on here either: their answers are its evaluation data.

    Raises DatasetError for rows without marked answers, and when nothing is left.
    """
    if source.report.type not in ANSWERS_FROM:
        raise _unfit(source)
    rows = datasets.read_rows(workspace, source.id)
    out = set(split.held_out(rows, share, seed))
    kept = [_answer(row) for index, row in enumerate(rows) if index not in out and _is_good(row)]
    held = [_answer(row) for index, row in enumerate(rows) if index in out and _is_good(row)]
    eval_id = _store(workspace, source, held, f"{source.name}: answers held out (evaluation)").id if held else None
    return _store(workspace, source, kept, f"{source.name}: its good answers", eval_id)


def questions(workspace: Workspace, source: Dataset) -> Dataset:
    """Return the questions of rows, each once, as rows for PPO. Raises DatasetError for rows that have none."""
    if source.report.type not in QUESTIONS_FROM:
        raise _unfit(source)
    asked = ({"prompt": row["prompt"]} for row in datasets.read_rows(workspace, source.id) if row.get("prompt"))
    return _store(workspace, source, asked, f"{source.name}: its questions", once=True)


def _is_good(row: dict[str, Any]) -> bool:
    return bool(row.get("prompt")) and (bool(row.get("chosen")) or row.get("label") is True)


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    made = {"prompt": row["prompt"], "completion": row.get("chosen") or row["completion"]}
    return made | ({"tools": row["tools"]} if row.get("tools") else {})


def _unfit(source: Dataset) -> DatasetError:
    return DatasetError(Problem(rule="derived-kind", parameters={"name": source.name, "type": source.report.type}))


def _store(
    workspace: Workspace,
    source: Dataset,
    rows: Iterable[dict[str, Any]],
    name: str,
    eval_id: str | None = None,
    *,
    once: bool = False,
) -> Dataset:
    lines = [json.dumps(_plain(row, as_chat=False), ensure_ascii=False) for row in rows]
    workspace.uploads_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=scratch("derived"), dir=workspace.uploads_dir) as folder:
        target = Path(folder) / "derived.jsonl"
        target.write_text("".join(f"{line}\n" for line in (dict.fromkeys(lines) if once else lines)), "utf-8")
        return datasets.add(workspace, target, name, parent=source.id, eval_id=eval_id)
