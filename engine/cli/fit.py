"""tunebook fit."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from engine.cli import shared
from engine.cli.shared import EXIT_FAILED, EXIT_OK, add_data, print_json, refuse
from engine.words import Problem, t
from engine.workspace import Workspace

if TYPE_CHECKING:
    from engine.plan import Plan

# What no memory hangs on does not matter here: the data, the disk, what the run is scored by.
UNIMPORTANT = {"dataset-none", "disk-too-small", "memory-too-small", "benchmark-unknown", "benchmark-needs"}


def register(command: shared.Command) -> None:
    sub = command("fit", fit)
    sub.add_argument("recipe", help="a file of recipes/, without .yaml")
    sub.add_argument("--data", help="a file, a stored data set's id, or a sample; for its rows and for the time")
    sub.add_argument("--probe", action="store_true", help="try the longest batch for one step; needs the device")
    sub.set_defaults(drop_bad_rows=True, fix=None, map=None)
    shared.take_base(sub)
    sub.add_argument("--set", action="append", metavar="PATH=VALUE", help="a setting, such as train.batch_size=1")


def fit(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Estimate the memory and time of a run; exit 0 when it may fit, 1 when it cannot or nothing is known."""
    from engine.plan import plans

    overrides, problems = shared.overrides(arguments.set)
    dataset_id = _data(arguments, workspace, problems)
    try:
        base = shared.counted(arguments.base, workspace)
        plan = plans.make(workspace, arguments.recipe, base=base, dataset=dataset_id, overrides=overrides)
    except plans.CannotPlan as error:
        return refuse([*problems, error.problem])
    problems += [p for p in plan.problems if p.rule not in UNIMPORTANT]
    if problems:
        return refuse(problems)
    for note in plan.base.notes:
        print(note, file=sys.stderr)
    probed = _probe(workspace, plan) if arguments.probe else None
    if arguments.json:
        print_json(_answer(plan, probed))
    else:
        _print(plan, probed)
    if probed is not None:
        return EXIT_OK if probed["status"] == "finished" else EXIT_FAILED
    return EXIT_FAILED if plan.room in ("none", "unknown") else EXIT_OK


def _data(arguments: argparse.Namespace, workspace: Workspace, problems: list[Problem]) -> str | None:
    """Return the id of the data that is named; a probe without data takes the recipe's sample."""
    from engine.check import DatasetError
    from engine.spec import recipes

    recipe = recipes.recipes().get(arguments.recipe)
    if arguments.probe and arguments.data is None and recipe is not None:
        arguments.data = recipe.sample
    if arguments.data is None:
        return None
    try:
        return add_data(arguments, workspace)
    except DatasetError as error:
        problems.append(error.problem)
        return None


def _answer(plan: Plan, probed: dict[str, Any] | None) -> dict[str, Any]:
    from engine.estimate import memory

    found = plan.memory
    return {
        "base": plan.base.ref,
        "device": found.device,
        "memory_bytes": plan.target.memory_bytes,
        "parameters": found.parameters or plan.base.parameters,
        "trained_parameters": found.trained_parameters,
        "parts": found.parts,
        "total_bytes": found.total_bytes if found.parts else None,
        "low_bytes": found.low_bytes if found.parts else None,
        "high_bytes": found.high_bytes if found.parts else None,
        "runs": found.runs,
        "sentence": memory.verdict(found, plan.target.memory_bytes),
        "time": plan.time,
        "probe": probed,
    }


def _print(plan: Plan, probed: dict[str, Any] | None) -> None:
    from engine.estimate import cards, duration, memory, phases

    words = memory.part_words()
    for name, size_bytes in (plan.memory.parts or {}).items():
        print(f"{words[name]:<28} {memory.size_words(size_bytes):>10}")
    print(memory.verdict(plan.memory, plan.target.memory_bytes))
    if held := cards.held_words(plan.target.held):
        print(held)
    if plan.memory.runs:
        print(t("Corrected by {n} finished runs of this kind on this machine.", n=plan.memory.runs))
    print(plan.time.sentence if plan.time else t("Name data with --data to see how long it takes."))
    for line in plan.time.lines if plan.time else ():
        print(f"{phases.title(line.phase):<40} {duration.between_words(line.low_s, line.high_s):>20}")
    if probed is not None:
        print(probed["sentence"])
    for warning in plan.warnings:
        print(t("warning: ") + warning.sentence)
    for problem in plan.problems:
        if problem.rule == "memory-too-small":
            print(f"  - {problem.fix}")
        elif problem.where == cards.WHERE:
            print(f"  - {problem.sentence}")


def _probe(workspace: Workspace, plan: Plan) -> dict[str, Any]:
    """Let a child try the longest batch once, when the device is free; return what it took. Nothing of it is kept."""
    import shutil

    from engine import events
    from engine.estimate import memory
    from engine.runs import follow, lifecycle

    run_id = lifecycle.start(workspace, msgspec.structs.replace(plan.spec, kind="probe"), name=t("Memory probe"))
    run_dir = workspace.run_dir(run_id)
    try:
        status = follow.wait(workspace, run_id)
    except KeyboardInterrupt:
        lifecycle.stop(workspace, run_id)
        raise
    found, _ = events.read(run_dir)
    measured = next((event for event in found if isinstance(event, events.Measured)), None)
    failed = next((event for event in reversed(found) if isinstance(event, events.Failed)), None)
    if measured is not None:
        sentence = t(
            "Tried: the longest batch ({tokens} tokens a row) takes {size}.",
            tokens=measured.longest_tokens,
            size=memory.size_words(measured.peak_bytes),
        )
    else:
        sentence = t("Tried: {what}; {fix}", what=failed.message, fix=failed.fix) if failed else status
    follow.wait_for_end(run_dir)
    shutil.rmtree(run_dir, ignore_errors=True)
    return {
        "status": status,
        "peak_bytes": measured.peak_bytes if measured else None,
        "longest_tokens": measured.longest_tokens if measured else None,
        "sentence": sentence,
    }
