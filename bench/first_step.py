"""Where the time of a run goes: seconds from Start to the first step, to each phase and to the report.

python -m bench.first_step --base FOLDER --data rows.jsonl --rows 200 --set train.epochs=1
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from engine import events
from engine.data import datasets
from engine.plan import plans
from engine.runs import follow, lifecycle
from engine.spec import settings
from engine.words import Problem
from engine.workspace import Workspace


def phases(found: list[events.Event]) -> list[tuple[float, float, str]]:
    """Return (second it begins, seconds it takes, name) of each phase of a run, the wait for its turn left out."""
    began_s = next(event.monotonic_s for event in found if isinstance(event, events.Phase))
    turns: list[tuple[float, str]] = []
    for event in found:
        name = ""
        if isinstance(event, events.Phase):
            name = f"{event.phase} {event.detail}".strip()
        elif isinstance(event, events.Step) and event.step == 1:
            name = "training, after the first step"
        elif isinstance(event, events.TERMINAL):
            name = "end"
        if name and (not turns or turns[-1][1] != name):
            turns.append((event.monotonic_s - began_s, name))
    ends = [*(at for at, _ in turns[1:]), turns[-1][0]]
    return [(at, end - at, name) for (at, name), end in zip(turns, ends, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--recipe", default="lora")
    parser.add_argument("--rows", type=int, default=0, help="train on so many rows; 0 is all")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--home", type=Path, help="keep what the base wrote and answered, for a second run on it")
    arguments = parser.parse_args()
    overrides = {}
    for text in [*arguments.set, f"dataset.most_rows={arguments.rows}"]:
        parsed = settings.parse_setting(text)
        if isinstance(parsed, Problem):
            print(parsed.sentence, file=sys.stderr)
            return 2
        overrides[parsed[0]] = parsed[1]
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(arguments.home or Path(folder))
        workspace.root.mkdir(parents=True, exist_ok=True)
        dataset = datasets.add(workspace, arguments.data, arguments.data.name)
        plan = plans.make(workspace, arguments.recipe, base=arguments.base, dataset=dataset.id, overrides=overrides)
        for problem in plan.problems:
            print(problem.sentence, file=sys.stderr)
        if plan.problems:
            return 2
        run_id = lifecycle.start(workspace, plan.spec)
        status = follow.wait(workspace, run_id)
        found, _ = events.read(workspace.run_dir(run_id))
        for at, took, name in phases(found):
            print(f"{at:7.1f} s  {took:7.1f} s  {name}")
        steps = [event for event in found if isinstance(event, events.Step)]
        told = {"run": run_id, "status": status, "steps": len(steps), "budget_s": plan.spec.evaluate.budget_s}
        print(json.dumps(told))
    return 0 if status == "finished" else 1


if __name__ == "__main__":
    sys.exit(main())
