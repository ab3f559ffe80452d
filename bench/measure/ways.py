"""Ways to train held against each other: gained and lost of each, as a mean over seeds with its spread and its interval."""

from __future__ import annotations

from typing import Any

from bench.measure import cases
from engine.report import items, statistics

# What a table of ways has a column for, where it was measured: what it is called, and how it is told (points, or nats).
COLUMNS = (
    ("new-task-choices", items.ALL, "new task, choices", 100), ("new-task-exact", items.ALL, "new task, exact words", 100),
    ("new-task-loss", items.UNSEEN, "new task, held-out loss", 1), ("toy-world", items.ALL, "toy world", 100),
    ("general-text", items.ALL, "general text", 1), ("blimp", items.ALL, "blimp", 100),
    (items.KL, items.UNSEEN, "KL to the base", 1),
)  # fmt: skip
# A gain whose interval reaches down to this is none, in points and in nats.
LEAST = 1.0


def table(case: cases.Case, rows: list[Any]) -> list[str]:
    """Return a line for each recipe and way: the mean change over seeds, its 95 % interval by Student's t with seeds as the
    unit, the least and the greatest change, and a remark where nothing is gained or there is no such way.
    `rows` are those of table.py."""
    here = {(one.benchmark, one.family) for row in rows for one in row.figures}
    columns = [one for one in COLUMNS if one[:2] in here]
    lines = [
        "Mean change over seeds [95 % interval by Student's t, seeds as the unit] (least to greatest).", "",
        "| " + " | ".join(["recipe", "way", "seeds", *(name for *_, name, _ in columns), "remark"]) + " |",
        "|" + "---|" * (4 + len(columns)),
    ]  # fmt: skip
    for recipe in case.grid:
        for name, way in case.ways.items():
            found = [row for row in rows if (row.recipe, row.way) == (recipe, name)]
            if way.recipes and recipe not in way.recipes:
                cells = ["", *["" for _ in columns], "there is no such run"]
            elif not found:
                cells = ["0", *["" for _ in columns], "not run"]
            else:
                cells = [str(len(found)), *(_cell(found, *one) for one in columns), _remark(found)]
            lines.append("| " + " | ".join([recipe, name, *cells]) + " |")
    return lines


def _changes(rows: list[Any], benchmark: str, family: str) -> list[float]:
    return [one.change for row in rows for one in row.figures if (one.benchmark, one.family) == (benchmark, family)]


def _cell(rows: list[Any], benchmark: str, family: str, _: str, by: int) -> str:
    values = [by * one for one in _changes(rows, benchmark, family)]
    if not values:
        return ""
    digits = 1 if by == 100 else 3
    mean, low, high = statistics.t_interval(values)
    told = f"{mean:+.{digits}f}"
    if len(values) > 1:
        told += f" [{low:+.{digits}f}, {high:+.{digits}f}] ({min(values):+.{digits}f} to {max(values):+.{digits}f})"
    return told


def _remark(rows: list[Any]) -> str:
    """Say that a way gains nothing on the new task: in choices where there are any, else in its loss."""
    points = [100 * one for one in _changes(rows, "new-task-choices", items.ALL)]
    if points:
        return "no gain" if statistics.t_interval(points)[1 if len(points) > 1 else 0] < LEAST else ""
    losses = _changes(rows, "new-task-loss", items.UNSEEN)
    return "no gain" if losses and sum(losses) >= 0 else ""
