"""Ways to train held against each other: gained and lost of each, as a mean over seeds with its spread and its interval."""

from __future__ import annotations

import itertools
from typing import Any

from bench.measure import cases
from engine.report import items, statistics

# What a table of ways has a column for, where it was measured: what it is called, and how it is told (points, or nats).
COLUMNS = (
    (items.CHOICES, items.ALL, "new task, choices", 100), (items.EXACT, items.ALL, "new task, exact words", 100),
    (items.LOSS, items.UNSEEN, "new task, held-out loss", 1), ("toy-world", items.ALL, "toy world", 100),
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
        "Mean change over seeds [95 % interval by Student's t, seeds as the unit: it says nothing of other questions, and "
        "has no width where all seeds came out alike] (least to greatest).", "",
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


def differences(case: cases.Case, rows: list[Any]) -> list[str]:
    """Return a line for each recipe and way, and each of the first two ways that it is held against: the difference of the
    mean changes with its 95 % interval (Welch, seeds as the unit); nothing where no way has two seeds. In points alone."""
    here = {(one.benchmark, one.family) for row in rows for one in row.figures}
    columns = [one for one in COLUMNS if one[:2] in here and one[-1] == 100]
    lines = []
    for recipe, name in itertools.product(case.grid, case.ways):
        for other in [one for one in list(case.ways)[:2] if list(case.ways).index(one) < list(case.ways).index(name)]:
            sides = [[row for row in rows if (row.recipe, row.way) == (recipe, way)] for way in (name, other)]
            if min(map(len, sides)) > 1:
                cells = [_difference(*(_changes(side, *one[:2]) for side in sides)) for one in columns]
                lines.append("| " + " | ".join([recipe, f"{name} − {other}", *cells]) + " |")
    if not lines:
        return []
    head = "| " + " | ".join(["recipe", "ways", *(name for *_, name, _ in columns)]) + " |"
    about = "One way less another, in points [95 % interval by Welch's t, seeds as the unit]."
    return [about, "", head, "|" + "---|" * (2 + len(columns)), *lines]


def _difference(one: list[float], other: list[float]) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in statistics.welch(one, other)))


def _changes(rows: list[Any], benchmark: str, family: str) -> list[float]:
    return [one.change for row in rows for one in row.figures if (one.benchmark, one.family) == (benchmark, family)]


def _cell(rows: list[Any], benchmark: str, family: str, _: str, by: int) -> str:
    values = [by * one for one in _changes(rows, benchmark, family)]
    return mean(values, 1 if by == 100 else 3)


def mean(values: list[float], digits: int) -> str:
    """Return the mean over seeds, its 95 % interval by Student's t, and the least and the greatest; "" of none."""
    if not values:
        return ""
    middle, low, high = statistics.t_interval(values)
    told = [f"{one:+.{digits}f}" for one in (middle, low, high, min(values), max(values))]
    return told[0] if len(values) == 1 else "{} [{}, {}] ({} to {})".format(*told)


def _remark(rows: list[Any]) -> str:
    """Say that a way gains nothing on the new task: in choices where there are any, else in its loss."""
    points = [100 * one for one in _changes(rows, items.CHOICES, items.ALL)]
    if points:
        return "no gain" if statistics.t_interval(points)[1 if len(points) > 1 else 0] < LEAST else ""
    losses = _changes(rows, items.LOSS, items.UNSEEN)
    return "no gain" if losses and sum(losses) >= 0 else ""
