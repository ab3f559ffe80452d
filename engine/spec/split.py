"""Which rows are trained on and which are held out: seeded, and by group, so that one prompt is never on both sides."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

from engine.spec.schema import DatasetRef

# Enough for an interval of a few points; more would only cost time on every evaluation.
MOST_HELD_OUT = 500


def group_of(row: dict[str, Any]) -> str:
    """Rows with the same question form a group: the prompt, or the turns before the last answer, or the text."""
    messages = row.get("messages") or []
    last = max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    question = row.get("prompt") or messages[:last] or messages or row.get("text")
    if isinstance(question, list):  # fields that messages have got since do not divide old data anew
        question = [{key: one.get(key) for key in ("role", "content", "tool_calls", "name")} for one in question]
    return json.dumps(question, ensure_ascii=False, sort_keys=True)


def held_out(rows: list[dict[str, Any]], share: float, seed: int) -> list[int]:
    """Return the indices of held-out rows: whole groups in an order drawn from `seed`, until the share is reached.

    At most MOST_HELD_OUT rows, at least one where there are two groups, never the last group.
    """
    if share <= 0:
        return []
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(group_of(row), []).append(index)
    if len(groups) < 2:
        return []
    order = sorted(groups, key=lambda g: hashlib.sha256(f"{seed}:{g}".encode("utf-8", "surrogatepass")).digest())
    wanted = most_held_out(len(rows), share)
    chosen: list[int] = []
    for group in order[:-1]:
        if len(chosen) >= wanted:
            break
        if chosen and len(chosen) + len(groups[group]) > MOST_HELD_OUT:
            continue
        chosen += groups[group]
    return sorted(chosen)


def halved(rows: list[dict[str, Any]], seed: int) -> set[int]:
    """Return the indices of about half of some rows, drawn by the seed in whole groups; at least one where there is one, and
    never the last of several groups."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(group_of(row), []).append(index)
    order = sorted(groups, key=lambda g: hashlib.sha256(f"{seed}:half:{g}".encode("utf-8", "surrogatepass")).digest())
    chosen: set[int] = set()
    for group in order[:-1] or order:
        if 2 * len(chosen) >= len(rows):
            break
        chosen.update(groups[group])
    return chosen


def most_held_out(rows: int, share: float) -> int:
    """Return how many of so many rows are to be held out, as far as their groups allow."""
    return min(MOST_HELD_OUT, max(1, round(share * rows))) if share > 0 else 0


def distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first of all rows that say the same, in their order."""
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(_content(row), row)
    return list(first.values())


def drawn(rows: list[dict[str, Any]], most: int, seed: int) -> list[dict[str, Any]]:
    """Return at most so many different rows, in their order: of each family of questions as large a share as it has of
    all, drawn by the seed and by what the rows say, so that neither their order nor where they lie decides.

    A file is often sorted by kind: its first rows are all of one.
    """
    if len(rows) <= most:
        return rows
    names = [_content(row) for row in rows]
    first = {name: index for index, name in reversed(list(enumerate(names)))}.values()
    families: dict[tuple[str, bool], list[int]] = {}
    for index in sorted(first):
        family = (str(rows[index].get("family") or ""), bool(rows[index].get("choices")))
        families.setdefault(family, []).append(index)
    wanted = min(most, len(first))
    chosen: list[int] = []
    for family, share in zip(families, proportional([len(some) for some in families.values()], wanted), strict=True):
        by_draw = sorted(families[family], key=lambda i: hashlib.sha256(f"{seed}:{names[i]}".encode()).digest())
        chosen += by_draw[:share]
    return [rows[index] for index in sorted(chosen)]


def _content(row: dict[str, Any]) -> str:
    """What names a row by what it says, wherever it stands."""
    said = json.dumps({key: value for key, value in row.items() if key != "line"}, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def proportional(sizes: list[int], wanted: int) -> list[int]:
    """Divide `wanted` by size, the largest remainders first (Hamilton's method); each gets one as far as they go."""
    total = sum(sizes)
    exact = [wanted * size / total for size in sizes]
    shares = [int(one) for one in exact]
    order = sorted(range(len(sizes)), key=lambda i: (shares[i] > 0, shares[i] - exact[i], i))
    for index in order[: wanted - sum(shares)]:
        shares[index] += 1
    return shares


def divide(
    chosen: DatasetRef, read: Callable[[str], list[dict[str, Any]]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows to train on and those held out: of the evaluation data at most MOST_HELD_OUT, whatever is trained
    on, or a share split off by group. `read` gives the canonical rows of a stored data set."""
    rows = read(chosen.id)
    if chosen.eval_id:
        return _some(rows, chosen), drawn(read(chosen.eval_id), MOST_HELD_OUT, chosen.split_seed)
    out = set(held_out(rows, chosen.eval_share, chosen.split_seed))
    kept = [row for index, row in enumerate(rows) if index not in out]
    return _some(kept, chosen), [rows[index] for index in sorted(out)]


def _some(rows: list[dict[str, Any]], chosen: DatasetRef) -> list[dict[str, Any]]:
    """Return the rows to train on: all, or the first so many in an order drawn by the split seed, so that fewer rows are
    always part of more. What is held out stays the same."""
    most = chosen.most_rows
    if not most or most >= len(rows):
        return rows
    order = random.Random(chosen.split_seed).sample(range(len(rows)), len(rows))  # noqa: S311 - no secret
    return [rows[index] for index in sorted(order[:most])]
