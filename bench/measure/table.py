"""The table of a case: one line for each finished run (bench/measure/tables/NAME.jsonl), and a page of it (docs/measured/).

A table that lacks runs is named partial, in its file and in its title.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec

from bench.measure import cases, ways
from engine import processes
from engine.report import items
from engine.workspace import append_line

TABLES = Path(__file__).parent / "tables"
PAGES = processes.PROJECT_DIR / "docs" / "measured"


class Figure(msgspec.Struct, frozen=True):
    """One comparison of base and tuned, as `tunebook compare` has it: low and high bound the change at 95 %."""

    benchmark: str
    family: str
    n: int
    base: float
    tuned: float
    change: float
    low: float | None
    high: float | None


class Row(msgspec.Struct, frozen=True):
    """A finished run: what it was (`key` tells it from every other), on what, how long it took and what came of it.

    `phases_s` are the seconds by phase, `spec` all of spec.json but what names this machine's folders.
    """

    key: str
    data: str
    recipe: str
    varied: dict[str, Any]
    seed: int
    base: str
    base_sha256: str
    data_sha256: str
    spec: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    at: str
    seconds: float
    phases_s: dict[str, float]
    steps: int
    figures: list[Figure]
    way: str = ""
    run: str = ""  # where it was kept


def key_of(spec: dict[str, Any], base_sha256: str, data_sha256: str) -> str:
    """Return what tells a run from others: its settings, and the content of what it stands on."""
    told = json.dumps([spec, base_sha256, data_sha256], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def read(case: cases.Case) -> list[Row]:
    """Return the finished runs of a case."""
    path = TABLES / f"{case.name}.jsonl"
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [msgspec.json.decode(line, type=Row) for line in lines]


def append(case: cases.Case, row: Row) -> None:
    """Add a finished run."""
    append_line(TABLES / f"{case.name}.jsonl", msgspec.json.encode(row))


def write_page(case: cases.Case, wanted: int, rows: list[Row]) -> Path:
    """Write the page of a case and return its path; the partial page goes once the table is whole."""
    PAGES.mkdir(parents=True, exist_ok=True)
    whole, partial = PAGES / f"{case.name}.md", PAGES / f"{case.name}.partial.md"
    target = whole if len(rows) >= wanted else partial
    for path in {whole, partial} - {target}:
        path.unlink(missing_ok=True)
    target.write_text(page(case, wanted, rows), "utf-8")
    return target


def page(case: cases.Case, wanted: int, rows: list[Row]) -> str:
    """Return the page: a table for each data set, the control beside them."""
    done = "" if len(rows) >= wanted else f" (partial: {len(rows)} of {wanted} runs)"
    lines = [f"# {case.title}{done}", "", *_about(case, rows)]
    for data in case.all_data:
        of_data = [row for row in rows if row.data == data]
        if of_data:
            one = cases.of(case, data)
            count = f"{one.rows} rows of" if one.rows else "all rows of"
            lines += ["", f"## {data[0].upper()}{data[1:]}: {count} `{one.title}` ({one.licence})", ""]
            lines += [f"Here {_settings(one.settings)}.", ""] if one.settings else []
            if case.ways:
                compared = ways.differences(case, of_data)
                lines += [
                    *ways.table(case, of_data),
                    "",
                    *compared,
                    *([""] if compared else []),
                    "Each run, with its 95 % interval over questions:",
                    "",
                ]
            lines += _table(of_data)
    return "\n".join(lines) + "\n"


def _about(case: cases.Case, rows: list[Row]) -> list[str]:
    if not rows:
        return []
    machines = {f"{one.machine['cores']} cores, {one.machine['device']}" for one in rows}
    told = {f"{name} {one.versions[name]}" for one in rows for name in ("torch", "transformers", "trl", "peft")}
    return [
        f"Base: {rows[0].base} (sha256 {rows[0].base_sha256[:12]}); {', '.join(sorted(machines))}; "
        f"{', '.join(sorted(told))}. Settings: {_settings(case.settings)}, but for what a data set says; all else is the "
        "recipe's default.",
        "Change from base to tuned with its 95 % interval over questions, one line a seed: what varies between seeds is "
        "not in the interval. Losses are nats per trained token (less is better), accuracies points.",
        *(
            []
            if case.control is None
            else [
                f"Under any training a rounded base heals: read a change of general text or questions against the "
                f"{cases.CONTROL} of the same recipe and rate."
            ]
        ),
        *case.notes,
        f"Made by `python -m bench.measure {case.name} --base ... --data ...`.",
    ]


def _settings(of: dict[str, Any]) -> str:
    return ", ".join(f"`{path}={value}`" for path, value in of.items())


def _table(rows: list[Row]) -> list[str]:
    columns = sorted({(one.benchmark, one.family) for row in rows for one in row.figures if _shown(one)})
    varied = list(dict.fromkeys(path for row in rows for path in row.varied))
    named = any(row.way for row in rows)
    head = ["recipe", *(["way"] if named else [])]
    head += [*(path.rpartition(".")[2].replace("_", " ") for path in varied), "seed", "steps", "minutes"]
    names = [f"{benchmark}: {family}" if family != benchmark else benchmark for benchmark, family in columns]
    lines = ["| " + " | ".join([*head, *names]) + " |", "|" + "---|" * (len(head) + len(names))]
    for row in sorted(rows, key=lambda one: (one.recipe, one.way, [one.varied.get(at, 0) for at in varied], one.seed)):
        cells = [row.recipe, *([row.way] if named else [])]
        cells += [f"{row.varied[path]:g}" if path in row.varied else "" for path in varied]
        cells += [str(row.seed), str(row.steps), f"{row.seconds / 60:.1f}"]
        found = {(one.benchmark, one.family): one for one in row.figures}
        lines.append("| " + " | ".join([*cells, *(_cell(found.get(column)) for column in columns)]) + " |")
    return lines


def _shown(one: Figure) -> bool:
    """The families of a benchmark are left to the file: its whole is shown, and of the run's rows those it has not seen."""
    return one.family in (items.ALL, items.UNSEEN)


def _cell(one: Figure | None) -> str:
    if one is None:
        return ""
    is_loss = one.benchmark.partition(":")[0] in LOSSES
    by = 100 if not is_loss and 0 <= one.base <= 1 and 0 <= one.tuned <= 1 else 1
    digits = 1 if by == 100 else 3
    told = f"{by * one.base:.{digits}f}: {by * one.change:+.{digits}f}"
    if one.low is None or one.high is None:
        return told
    return f"{told} [{by * one.low:+.{digits}f}, {by * one.high:+.{digits}f}]"


LOSSES = ("general-text", "general-text-zh", items.LOSS, items.KL)
