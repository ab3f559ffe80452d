"""Go back toward the base from every kept run of a case, and tell what is gained and lost at the run, at the suggested point
and half of the way.

    python -m bench.measure.recover keep [--minutes 60] [--points 0.75,0.5,0.3]

The home must be that in which the case kept its runs ($TUNEBOOK_HOME). A run that the table has is not scored again; the
page is written anew after every run.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable

import msgspec

from bench.measure import cases, table, ways
from engine import events
from engine.forgetting import recovery, recovery_curve
from engine.report import items
from engine.runs import follow
from engine.workspace import Workspace, append_line, default_workspace

ROWS, PAGE = table.TABLES / "recover.jsonl", table.PAGES / "recover.md"
HALF = 0.5


class Row(msgspec.Struct, frozen=True):
    """The way back from a finished run of a case; `key` is that of the run in the table of the case."""

    key: str
    case: str
    recipe: str
    way: str
    seed: int
    versions: dict[str, str]
    at: str
    seconds: float
    curve: recovery_curve.Curve


def read() -> list[Row]:
    """Return the ways back that were scored."""
    lines = ROWS.read_bytes().splitlines() if ROWS.is_file() else []
    return [msgspec.json.decode(line, type=Row) for line in lines]


def measure(workspace: Workspace, case: cases.Case, of: table.Row, points: list[float]) -> Row | str:
    """Score the way back from a run and return its row; in words why there is none."""
    spec, problems = recovery.build(workspace, of.run, points=points)
    if spec is None:
        return "; ".join(one.sentence for one in problems)
    began_s, scan = time.monotonic(), recovery.start(workspace, spec)
    status, folder = follow.wait(workspace, scan), workspace.run_dir(scan)
    follow.wait_for_end(folder)
    curve = recovery.curve(workspace, of.run)
    if status != "finished" or curve is None:
        return f"{status}: {follow.log_tail(folder, lines=3)}"
    found, _ = events.read(folder)
    versions = next(one for one in found if isinstance(one, events.Started)).versions
    seconds = round(time.monotonic() - began_s, 1)
    return Row(of.key, case.name, of.recipe, of.way, of.seed, versions, time.strftime("%Y-%m-%d"), seconds, curve)


_HEAD = (
    " | the run: gain | exact words | general | suggested, % of the way | gain | general | got back "
    "| half of the way: gain | exact words | general | remark |"
)


# --- the page ---------------------------------------------------------------------------------------------------------


def page(found: list[Row]) -> str:
    """Return the page: for each case a line for each recipe and way, and one for each run."""
    lines = [
        "# The way back to the base, after each way to train", "",
        "Without training: LoRA and OFT scaled down, full weights interpolated. Gain is the change on the new task, general "
        "knowledge the mean change of its benchmarks, more being better in both. The suggested point is chosen on one half "
        "of the questions and read on the other, and the reverse (cross-fitted); half of the way is the same point for all, "
        "chosen by nobody. Means over seeds [95 % interval by Student's t, seeds as the unit] (least to greatest).",
        "Made by `python -m bench.measure.recover CASE`, on the runs that `python -m bench.measure CASE` kept.",
    ]  # fmt: skip
    for name, each in itertools.groupby(sorted(found, key=lambda row: row.case), key=lambda row: row.case):
        lines += _of_case(cases.read(name), list(each))
    return "\n".join(lines) + "\n"


def _of_case(case: cases.Case, found: list[Row]) -> list[str]:
    kept = len([one for one in table.read(case) if one.run])
    curve = found[0].curve
    gain, general = ("points" if curve.in_points else "nats"), (curve.general_in or "points")
    lines = [
        "", f"## {case.title}", "",
        f"{len(found)} of {kept} runs that were kept. Gain by {curve.measure} ({gain}), general knowledge in {general}; "
        f"scored at {', '.join(recovery_curve.percent(one.at) for one in curve.points)} % of the way.", *case.notes, "",
        "| recipe | way | seeds" + _HEAD,
        "|" + "---|" * 14,
    ]  # fmt: skip
    for recipe in case.grid:
        for name, way in case.ways.items():
            rows = sorted((one for one in found if (one.recipe, one.way) == (recipe, name)), key=lambda one: one.seed)
            if rows:
                lines.append(_line([recipe, name, str(len(rows))], rows))
            elif not way.recipes or recipe in way.recipes:
                lines.append(f"| {recipe} | {name} | 0 |" + " |" * 10 + " not run |")
    lines += [
        "", "Each run, with its 95 % interval over questions:", "",
        "| recipe | way | seed" + _HEAD,
        "|" + "---|" * 14,
    ]  # fmt: skip
    for row in sorted(found, key=lambda one: (one.recipe, one.way, one.seed)):
        lines.append(_line([row.recipe, row.way, str(row.seed)], [row]))
    return lines


def _line(head: list[str], rows: list[Row]) -> str:
    points = rows[0].curve.general_in != "nats"

    def told(pick: Callable[[Row], recovery_curve.Figure | None], in_points: bool) -> str:
        return _told([one for row in rows if (one := pick(row)) is not None], in_points)

    gained = rows[0].curve.in_points
    cells = [
        told(lambda row: _point(row, row.curve.end, "gain"), gained),
        told(lambda row: _exact(row, row.curve.end), True),
        told(lambda row: _point(row, row.curve.end, "general"), points),
        ", ".join(_suggested(row) for row in rows),
        told(lambda row: row.curve.suggested and row.curve.suggested.gain, gained),
        told(lambda row: row.curve.suggested and row.curve.suggested.general, points),
        told(lambda row: row.curve.suggested and row.curve.suggested.got_back, points),
        told(lambda row: _point(row, HALF, "gain"), gained),
        told(lambda row: _exact(row, HALF), True),
        told(lambda row: _point(row, HALF, "general"), points),
        _remark(rows),
    ]  # fmt: skip
    return "| " + " | ".join([*head, *cells]) + " |"


def _point(row: Row, at: float, which: str) -> recovery_curve.Figure | None:
    found = row.curve.at(at)
    return None if found is None else getattr(found, which)


def _exact(row: Row, at: float) -> recovery_curve.Figure | None:
    """What was learned may be recognised at a point and not said any more."""
    found = row.curve.at(at)
    return None if found is None else found.lines.get(items.EXACT)


def _suggested(row: Row) -> str:
    found = row.curve.suggested
    if found is None:
        return "none"
    return "/".join(dict.fromkeys(recovery_curve.percent(at) for at in found.halves))


def _told(found: list[recovery_curve.Figure], in_points: bool) -> str:
    """Return figures of several runs as their mean over seeds, that of one with its interval over questions."""
    by, digits = (100, 1) if in_points else (1, 3)
    if len(found) != 1:
        return ways.mean([by * one.value for one in found], digits)
    one = found[0]
    ends = "" if one.low is None or one.high is None else f" [{by * one.low:+.{digits}f}, {by * one.high:+.{digits}f}]"
    return f"{by * one.value:+.{digits}f}{ends}"


def _remark(rows: list[Row]) -> str:
    """Say where nothing is gained that could be kept, as `tunebook recover` does."""
    none = [row for row in rows if row.curve.suggested is None or (row.curve.suggested.gain.low or 0) <= 0]
    if len(none) == len(rows):
        return "no gain"
    return f"no gain in {len(none)} of {len(rows)}" if none else ""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.measure.recover", description="Score the way back from every kept run of a case."
    )
    parser.add_argument("case", nargs="?", help="none: write the page alone")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--points", default="", help="parts of the way, between commas, if not the usual")
    arguments = parser.parse_args()
    until_s, failed = time.monotonic() + 60 * arguments.minutes, 0
    points = [float(one) for one in arguments.points.split(",") if one]
    case = cases.read(arguments.case) if arguments.case else None
    runs = [one for one in table.read(case) if one.run] if case is not None else []
    for number, one in enumerate(runs, 1):
        assert case is not None
        if one.key in {row.key for row in read()}:
            continue
        if time.monotonic() >= until_s:
            break
        found = measure(default_workspace(), case, one, points)
        told = f"{number} of {len(runs)}: {one.recipe}, {one.way}, seed {one.seed}"
        if isinstance(found, str):
            failed += 1
            print(f"{told}: {found}", file=sys.stderr, flush=True)
            continue
        append_line(ROWS, msgspec.json.encode(found))
        PAGE.write_text(page(read()), "utf-8")
        print(f"{told}: {found.seconds:.0f} s, {_suggested(found)}", flush=True)
    PAGE.write_text(page(read()), "utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
