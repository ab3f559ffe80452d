"""Measure a case, one run after the other, and add each finished run to its table; what is there already is not run again.

    python -m bench.measure rates --base "SmolLM2 135M" --data FOLDER [--minutes 60] [--most 3]

`--base` is a reference, or how a base of this home is called (`make real` brings "SmolLM2 135M"); `--data` the folder with
the files that the case names; a case of the starter's samples needs none. A case that keeps its runs keeps them in
$TUNEBOOK_HOME. It stops before a run that would begin after `--minutes`; a run that takes longer than a
piece may is stopped and not counted. The page is written anew after every run, and named partial until all are there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import psutil

from bench.measure import cases, table
from engine import events, machine, starter
from engine.data import datasets
from engine.models import Base, bases, shortlist
from engine.plan import plans
from engine.runs import follow, lifecycle, scored
from engine.spec import RunSpec
from engine.workspace import Workspace, default_workspace

MOST_PIECE_S = 3600.0


def base_of(name: str) -> Base:
    """Return the base of this home whose name begins so, else the one of that reference. Raises ValueError."""
    home = default_workspace()
    found = [bases.describe(folder, home) for folder in shortlist.folders(home)]
    base = next((one for one in found if one.title.startswith(name)), None) or bases.describe(name, home)
    if base.folder is None or base.problems:
        raise ValueError(f"{name} is no base on this machine")
    return base


def sha256_of(folder: Path) -> str:
    """Return what tells the weights of a folder from others."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def told(spec: RunSpec) -> dict[str, Any]:
    """Return a spec without what is of this machine or this day."""
    found = msgspec.to_builtins(spec)
    del found["base"], found["dataset"]["id"], found["day"], found["train"]["threads"], found["recipe"]["sha256"]
    return found


def phases_s(found: list[Any]) -> dict[str, float]:
    """Return the seconds of each phase of a run, by its events; "waiting" comes before the first."""
    spent: dict[str, float] = defaultdict(float)
    name, since_s = "waiting", found[0].monotonic_s
    for event in found:
        if isinstance(event, (events.Phase, *events.TERMINAL)):
            spent[name] += event.monotonic_s - since_s
            name = f"{event.phase} {event.detail}".strip() if isinstance(event, events.Phase) else ""
            since_s = event.monotonic_s
    return {name: round(seconds, 1) for name, seconds in spent.items()}


def measure(
    workspace: Workspace, case: cases.Case, piece: cases.Piece, base: Base, data: Path, most_s: float
) -> table.Row | str:  # fmt: skip
    """Carry out one run and return its row; "" where the table has it, else in words why there is none."""
    one = cases.of(case, piece.data)
    if one.sample:
        dataset = datasets.add_sample(workspace, starter.sample(one.sample))
    else:
        dataset = datasets.add(workspace, data, data.name, drop_bad_rows=True)
    ref = "starter" if base.is_toy else str(base.folder)  # which has rates of its own
    plan = plans.make(workspace, piece.recipe, base=ref, dataset=dataset.id, overrides=piece.settings)
    if plan.problems:
        return "; ".join(one.sentence for one in plan.problems)
    assert base.folder is not None
    weights = sha256_of(base.folder)
    key = table.key_of(told(plan.spec), weights, one.sha256)
    if any(row.key == key for row in table.read(case)):
        return ""
    began_s, run_id = time.monotonic(), lifecycle.start(workspace, plan.spec)
    run_dir = workspace.run_dir(run_id)

    def in_time(_: Any) -> None:
        if time.monotonic() - began_s > most_s:
            lifecycle.stop(workspace, run_id)

    status = follow.wait(workspace, run_id, on_event=in_time)
    follow.wait_for_end(run_dir)  # nothing writes into the folder that is deleted
    if status != "finished":
        return f"{status}: {follow.log_tail(run_dir, lines=3)}"
    found, _ = events.read(run_dir)
    started = next(event for event in found if isinstance(event, events.Started))
    row = table.Row(
        key=key, data=piece.data, recipe=piece.recipe, varied=piece.varied, seed=piece.seed, base=base.title,
        base_sha256=weights, data_sha256=one.sha256, spec=told(plan.spec), machine=_machine(started),
        versions=started.versions, at=time.strftime("%Y-%m-%d"), seconds=round(time.monotonic() - began_s, 1),
        phases_s=phases_s(found), steps=max(event.step for event in found if isinstance(event, events.Step)),
        figures=[_figure(row) for row in scored.of(workspace, run_id).rows], way=piece.way,
        run=run_id if case.keeps_runs else "",
    )  # fmt: skip
    if not case.keeps_runs:
        lifecycle.delete(workspace, run_id)  # a whole model each
    return row


def _machine(started: events.Started) -> dict[str, Any]:
    gpus = machine.facts().gpus
    return {
        "device": gpus[0].name if gpus else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "backend": started.backend,
    }


def _figure(row: Any) -> table.Figure:
    bounds = [None if abs(end) == float("inf") else round(end, 5) for end in (row.low, row.high)]
    return table.Figure(
        row.benchmark, row.family, row.n, round(row.base, 5), round(row.tuned, 5), round(row.change, 5), *bounds
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.measure", description="Measure a case and add each finished run to its table."
    )
    parser.add_argument("case")
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", type=Path, help="the folder with the files that the case names")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--threads", type=int, help="processor threads of a run, if not the recipe's; 0: all")
    parser.add_argument("--most", type=int, default=0, help="so many runs at most")
    arguments = parser.parse_args()
    until_s, failed, done = time.monotonic() + 60 * arguments.minutes, 0, 0
    try:
        case, base = cases.read(arguments.case), base_of(arguments.base)
        files = {name: cases.file_of(cases.of(case, name), arguments.data) for name in case.all_data}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    wanted = cases.pieces(case)
    # One home for all: the base is scored once for each data set. What is kept stays in the home of the person.
    folder = tempfile.TemporaryDirectory(prefix="measure-", ignore_cleanup_errors=True)
    workspace = default_workspace() if case.keeps_runs else Workspace(Path(folder.name))
    for number, piece in enumerate(wanted, 1):
        left_s = until_s - time.monotonic()
        if left_s <= 0 or (arguments.most and done >= arguments.most):
            break
        if arguments.threads is not None:
            piece = piece._replace(settings={**piece.settings, "train.threads": arguments.threads})
        found = measure(workspace, case, piece, base, files[piece.data], min(MOST_PIECE_S, left_s))
        if isinstance(found, table.Row):
            table.append(case, found)
            table.write_page(case, len(wanted), table.read(case))
            done += 1
            print(f"{number} of {len(wanted)}: {piece.words}: {found.seconds:.0f} s", flush=True)
        elif found:
            failed += 1
            print(f"{number} of {len(wanted)}: {piece.words}: {found}", file=sys.stderr, flush=True)
    folder.cleanup()
    print(table.write_page(case, len(wanted), table.read(case)).name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
