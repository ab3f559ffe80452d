"""tunebook train, chain, runs, show, stop, resume, delete."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import msgspec

from engine.cli import shared
from engine.cli.shared import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_STOPPED,
    add_data,
    known_run,
    print_event,
    print_json,
    refuse,
)
from engine.plan import repeat
from engine.spec import RunSpec
from engine.words import Problem, t
from engine.workspace import Workspace, read_object

# Problems of the machine that a script is not written for.
OF_THIS_MACHINE = ("memory-", "merge-memory", "disk-", "devices-missing", "driver-")


def register(command: shared.Command) -> None:
    sub = command("train", train)
    sub.add_argument("recipe", help="a file of recipes/, without .yaml")
    shared.take_data(sub, required=True)
    sub.add_argument("--eval-data", help="a file that is only scored, never trained on")
    shared.take_base(sub)
    sub.add_argument("--set", action="append", metavar="PATH=VALUE", help="a setting, such as train.epochs=3")
    sub.add_argument(
        "--try-rows", type=int, metavar="N", help="train on so many rows, drawn by the seed, for a first try"
    )
    sub.add_argument(
        "--script", metavar="FOLDER",
        help="start nothing: write it as a script of TRL, with what divides a base over several cards",
    )  # fmt: skip
    shared.take_name_and_wait(sub)
    sub = command("chain", chain)
    sub.add_argument("--sft-data", help="questions with answers, or pairs: their good answers; left out, no SFT")
    sub.add_argument("--preference-data", help="pairs of a better and a worse answer, or answers marked good or bad")
    sub.add_argument("--prompts", help="questions alone, or rows that have them: then a judge and PPO instead of DPO")
    sub.add_argument("--set", action="append", metavar="STAGE:PATH=VALUE", help="such as ppo:train.epochs=3")
    sub.add_argument("--go-on", metavar="CHAIN", help="start the next stage of a chain")
    shared.take_base(sub)
    shared.take_name_and_wait(sub)
    command("runs", list_runs).add_argument("--pinned", action="store_true", help="only those that are pinned")
    sub = command("pin", pin, as_json=False)
    sub.add_argument("run")
    sub.add_argument("name", nargs="?", default="", help="as its next version; left out: the pin is taken away")
    sub = command("room", show_room)
    sub.add_argument("--delete", metavar="PLACE", help="one of the places listed")
    sub.add_argument("--force", action="store_true", help="though something is lost with it")
    command("show", show).add_argument("run")
    command("stop", stop, as_json=False).add_argument("run")
    sub = command("resume", resume)
    sub.add_argument("run")
    shared.take_wait(sub)
    sub = command("delete", delete, as_json=False)
    sub.add_argument("run")
    sub.add_argument("--force", action="store_true", help="though others need it")


def train(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Start a run; with --wait follow it to its end."""
    from engine.check import DatasetError
    from engine.data import datasets
    from engine.plan import plans
    from engine.runs import lifecycle, store

    overrides, problems = shared.overrides(arguments.set)
    if arguments.try_rows is not None:
        overrides["dataset.most_rows"] = arguments.try_rows
    dataset_id = None
    try:
        dataset_id = add_data(arguments, workspace)
        if arguments.eval_data:
            evaluation = Path(arguments.eval_data)
            overrides["dataset.eval_id"] = datasets.add(workspace, evaluation, evaluation.name).id
        general = overrides.get("train.replay_data")
        if isinstance(general, str) and general and Path(general).exists():
            overrides["train.replay_data"] = datasets.add(workspace, Path(general), Path(general).name).id
    except DatasetError as error:
        problems.append(error.problem)
    try:
        base = shared.counted(arguments.base, workspace)
        plan = plans.make(workspace, arguments.recipe, base=base, dataset=dataset_id, overrides=overrides)
    except plans.CannotPlan as error:
        return refuse([*problems, error.problem])
    problems += [p for p in plan.problems if dataset_id is not None or p.rule != "dataset-none"]
    if arguments.script is not None:  # another machine is meant
        problems = [problem for problem in problems if not problem.rule.startswith(OF_THIS_MACHINE)]
    if problems:
        return refuse(problems)
    for note in plan.base.notes:
        print(note, file=sys.stderr)
    for warning in [*(one.sentence for one in plan.warnings), *plan.evaluation_notes, *plan.row_warnings]:
        print(t("warning: ") + str(warning), file=sys.stderr)
    for note in plan.step_notes:
        print(note, file=sys.stderr)
    if arguments.script is not None:
        return _write_script(workspace, plan.spec, Path(arguments.script).absolute())
    run_id = lifecycle.start(workspace, plan.spec, name=arguments.name)
    _say_machines(workspace, run_id)
    if not arguments.wait:
        return shared.started(run_id, store.status(workspace, run_id), as_json=arguments.json)
    return shared.follow(workspace, run_id, as_json=arguments.json)


def _write_script(workspace: Workspace, run_spec: RunSpec, folder: Path) -> int:
    """Write a run that is not started here as a script with its rows."""
    from engine.export import other_trainers, portable_recipe

    return shared.written(
        lambda: other_trainers.write_recipe(workspace, portable_recipe.of_spec(workspace, run_spec), "trl", folder)
    )


def _say_machines(workspace: Workspace, run_id: str, *, running: bool = False) -> None:
    """Say what is to be started on the other machines that share a run; once it is running, on those that have not come."""
    from engine import peers
    from engine.runs import store

    run_dir, run_spec = workspace.run_dir(run_id), store.load_spec(workspace, run_id)
    absent = peers.missing(run_dir, run_spec) if running else None
    for machine, line in enumerate(peers.lines(run_dir, run_spec), 1):
        if absent is None or machine in absent:
            print(t("machine {n}: {line}", n=machine + 1, line=line), file=sys.stderr)


def chain(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Start the first stage of a chain, or the next with --go-on: SFT, then DPO or KTO, or a judge and PPO. With --wait it
    is followed, and goes on, to the end; without anything named, chains are listed."""
    from engine.check import DatasetError
    from engine.plan import chains, plans

    if arguments.go_on is None and not (arguments.preference_data or arguments.prompts or arguments.sft_data):
        return _list_chains(arguments, workspace)
    chain_id = arguments.go_on
    try:
        chain_id = chain_id or _begin_chain(arguments, workspace)
        return _drive_chain(arguments, workspace, chain_id)
    except (DatasetError, plans.CannotPlan) as error:
        return refuse([error.problem])
    except chains.CannotGoOn as error:
        if chain_id is not None and arguments.go_on is None and not _runs_of(chains.look(workspace, chain_id)):
            chains.forget(workspace, chain_id)  # nothing of it has begun
        return refuse(list(error.problems))


def _list_chains(arguments: argparse.Namespace, workspace: Workspace) -> int:
    from engine.plan import chains

    found = chains.list_all(workspace)
    if arguments.json:
        print_json([{"chain": one.id, "name": one.name, "runs": _runs_of(one)} for one in found])
        return EXIT_OK
    if not found:
        print(t("No chains yet. Begin one with --sft-data, --preference-data and, for PPO, --prompts."))
    for one in found:
        print(f"{one.id}  {' · '.join(f'{stage.name} {stage.state}' for stage in one.stages)}  {one.name}")
    return EXIT_OK


def _runs_of(found: Any) -> dict[str, str]:
    if found is None:
        return {}
    return {stage.name: stage.run for stage in found.stages if stage.run is not None}


def _begin_chain(arguments: argparse.Namespace, workspace: Workspace) -> str:
    """Write down the chain that the command line describes, and return its id. Raises what chains.begin raises."""
    from engine.data import datasets
    from engine.plan import chains

    given = {"sft": arguments.sft_data, "preference": arguments.preference_data, "ppo": arguments.prompts}
    data = {
        name: add_data(argparse.Namespace(data=source, drop_bad_rows=False, fix=None, map=None), workspace)
        for name, source in given.items()
        if source
    }
    pairs = data.pop("preference", None)
    road = "ppo" if "ppo" in data else "dpo"
    if pairs is not None:
        if road != "ppo" and datasets.load(workspace, pairs).report.type == "unpaired-preference":
            road = "kto"
        data["reward" if road == "ppo" else road] = pairs
    settings, wrong = _stage_settings(arguments.set)
    if wrong:
        raise chains.CannotGoOn(*wrong)
    shared.counted(arguments.base, workspace)  # for the plans of all stages
    return chains.begin(workspace, road, data, base=arguments.base, settings=settings, name=arguments.name or "")


def _drive_chain(arguments: argparse.Namespace, workspace: Workspace, chain_id: str) -> int:
    """Start the next stage of a chain; with --wait also what comes after it, each when the one before has finished."""
    from engine.plan import chains
    from engine.runs import follow, store

    found = chains.look(workspace, chain_id)
    while True:
        going = found.going if found is not None and arguments.wait else None
        stage = going or (found.next if found is not None else None)
        run_id = going.run if going is not None and going.run else chains.start_next(workspace, chain_id)
        name = stage.name if stage is not None else ""
        print(f"{name}: {run_id}", file=sys.stderr)
        if not arguments.wait:
            break
        try:
            status = follow.wait(workspace, run_id, print_event)
        except KeyboardInterrupt:
            print(t("\nThe run goes on. Stop it with: tunebook stop {id}", id=run_id), file=sys.stderr)
            status = store.status(workspace, run_id)
        if status != "finished":
            print(t("The chain ends here: {stage} is {status}.", stage=name, status=status), file=sys.stderr)
            return EXIT_STOPPED if status == "stopped" else EXIT_FAILED
        found = chains.look(workspace, chain_id)
        if found is None or found.next is None:
            break
        if found.next.name == name:  # what has just finished does not fill its stage
            print(t("The chain ends here: {stage} is {status}.", stage=name, status=found.next.state), file=sys.stderr)
            return EXIT_FAILED
    return _told_chain(arguments, workspace, chain_id)


def _told_chain(arguments: argparse.Namespace, workspace: Workspace, chain_id: str) -> int:
    from engine.plan import chains

    found = chains.look(workspace, chain_id)
    made = _runs_of(found)
    if arguments.json:
        print_json({"chain": chain_id, "runs": made})
        return EXIT_OK
    for name, run_id in made.items():
        print(f"{name:<7} {run_id}")
    if found is not None and not found.done:
        print(t("Start the next stage, when this one has finished, with: tunebook chain --go-on {id}", id=chain_id))
    return EXIT_OK


def _stage_settings(texts: list[str] | None) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """Return what --set STAGE:PATH=VALUE says for each stage, and what is wrong with the others."""
    from engine.plan import chains

    by_stage: dict[str, list[str]] = {}
    problems = []
    for text in texts or []:
        stage, _, setting = text.partition(":")
        if stage in chains.STAGES:
            by_stage.setdefault(stage, []).append(setting)
        else:
            problems.append(Problem(rule="setting-unknown", where=text[:80]))
    settings = {}
    for stage, listed in by_stage.items():
        settings[stage], wrong = shared.overrides(listed)
        problems += wrong
    return settings, problems


def list_runs(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """List all runs, newest first; beside them what else of the home cannot be read."""
    from engine import damaged
    from engine.runs import follow, store
    from engine.serve import serving

    found = [run for run in store.list_every(workspace) if run.pin or not arguments.pinned]
    turns = follow.turns(workspace) if any(run.status == "queued" for run in found) else {}
    if arguments.json:
        print_json(found)
    elif arguments.pinned and not found:
        print(t("No run is pinned. Pin one with: tunebook pin ID NAME"))
    elif not found:
        print(t("No runs yet. Start one with: tunebook train lora --data new-facts --wait"))
    served = {} if arguments.json else serving.all_now(workspace)
    for run in [] if arguments.json else found:
        note = run.note or turns.get(run.id) or (served[run.id].sentence if run.id in served else None)
        pinned = f"{run.pin}  " if run.pin else ""
        print(f"{run.id}  {run.status:<11} {run.progress:4.0%}  {pinned}{run.name}{f'  ({note})' if note else ''}")
    for one in [] if arguments.pinned else damaged.find(workspace):
        print(f"{one.place}: {one.problem.sentence}", file=sys.stderr)
    return EXIT_OK


def pin(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Pin a run under a name, as the next version of it; without a name its pin is taken away."""
    from engine.runs import lifecycle

    if not known_run(workspace, arguments.run):
        return EXIT_FAILED
    made = lifecycle.pin(workspace, arguments.run, arguments.name)
    if made is None:
        print(t("{id} is not pinned.", id=arguments.run))
    else:
        print(t("{id} is pinned as {pin}.", id=arguments.run, pin=str(made)))
    return EXIT_OK


def show_room(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """List what takes room, with what needs it; with --delete delete one of it."""
    from engine import room
    from engine.estimate import memory

    if arguments.delete is not None:
        try:
            freed = room.delete(workspace, arguments.delete, all_the_same=arguments.force)
        except (room.CannotDelete, OSError) as error:
            print(error, file=sys.stderr)
            if isinstance(error, room.MustBeAsked):
                print(t("Delete it all the same with --force."), file=sys.stderr)
            return EXIT_REFUSED
        print(t("Deleted {place}: {size}.", place=arguments.delete, size=memory.size_words(freed)))
        return EXIT_OK
    found = room.find(workspace)
    if arguments.json:
        print_json(found)
        return EXIT_OK
    if not found:
        print(t("Nothing takes room but what runs have made and were scored by."))
    for one in found:
        why = "; ".join([one.kept] if one.kept else one.losses)
        print(f"{memory.size_words(one.size_bytes):>9}  {room.kind_word(one.kind)}  {one.title}  {one.place}")
        if why:
            print(f"{'':>9}  {why}")
    return EXIT_OK


def _say_report(workspace: Workspace, run_id: str) -> None:
    """Say what the report of a run says first, where it was scored and its scores can be read."""
    from engine.report import items
    from engine.runs import scored

    if not items.benchmarks_of(workspace.run_dir(run_id)):
        return
    try:
        for line in shared.report_lines(scored.of(workspace, run_id)):
            print(line)
    except (OSError, ValueError) as error:
        print(f"{run_id}: {error}", file=sys.stderr)


def show(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Show one run with its spec, its summary and what it took."""
    from engine import events
    from engine.estimate import memory
    from engine.forgetting import adoption
    from engine.runs import follow, store
    from engine.spec import schema

    if not shared.there(workspace, arguments.run):
        return EXIT_FAILED
    line = msgspec.to_builtins(store.line(workspace, arguments.run))
    problem = store.unreadable(workspace, arguments.run)
    found = store.summary(workspace, arguments.run)
    if problem is not None:
        run_spec = read_object(workspace.run_dir(arguments.run) / "spec.json")
    else:
        run_spec = schema.told(store.load_spec(workspace, arguments.run))
    if found.failure:  # in the reader's language
        found.failure = {key: str(value) for key, value in found.failure.items()}
    summary = msgspec.to_builtins(found)
    if arguments.json:
        print_json({**line, "spec": run_spec, "summary": summary})
        return EXIT_OK
    measured = summary.pop("measured")
    for key, value in {**line, **{k: v for k, v in summary.items() if k not in line and v is not None}}.items():
        print(f"{key:<13} {value}")
    if found.status in store.LIVE:
        run_dir = workspace.run_dir(arguments.run)
        waits = follow.turns(workspace).get(arguments.run) if found.status == "queued" else ""
        print(f"{'doing':<13} {waits or follow.doing(events.read(run_dir)[0])}")
        if problem is None:
            _say_machines(workspace, arguments.run, running=found.status == "running")
    if measured is not None:
        print(f"{'peak_memory':<13} {memory.size_words(measured['peak_bytes'])}")
        if measured["estimated_bytes"]:
            print(f"{'estimated':<13} {memory.size_words(measured['estimated_bytes'])}")
    if problem is None and run_spec["kind"] == "adopted":
        for sentence in adoption.known(workspace, arguments.run):
            print(sentence)
    if problem is None and found.status not in store.LIVE:
        _say_report(workspace, arguments.run)
    print(problem.sentence if problem is not None else repeat.repeat_command(workspace, arguments.run))
    return EXIT_OK


def stop(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Ask a run to stop after a checkpoint."""
    from engine.runs import lifecycle

    if not known_run(workspace, arguments.run):
        return EXIT_FAILED
    lifecycle.stop(workspace, arguments.run)
    print(t("Asked {id} to stop; it saves a checkpoint first.", id=arguments.run))
    return EXIT_OK


def resume(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Let a stopped, interrupted or failed run go on from its last checkpoint."""
    from engine.runs import lifecycle

    if not known_run(workspace, arguments.run):
        return EXIT_FAILED
    try:
        lifecycle.resume(workspace, arguments.run)
    except lifecycle.CannotResume as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    _say_machines(workspace, arguments.run)
    return shared.follow(workspace, arguments.run, as_json=arguments.json) if arguments.wait else EXIT_OK


def delete(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Delete a run and all it made. Where others need it, that is said, and only --force deletes it."""
    from engine.runs import lifecycle

    if not shared.there(workspace, arguments.run):
        return EXIT_FAILED
    try:
        lifecycle.delete(workspace, arguments.run, all_the_same=arguments.force)
    except lifecycle.MustBeAsked as refused:
        print(t("{id} was not deleted. What would be lost with it:", id=arguments.run), file=sys.stderr)
        for loss in refused.losses:
            print(f"  - {loss}", file=sys.stderr)
        print(t("Delete it all the same with: tunebook delete {id} --force", id=arguments.run), file=sys.stderr)
        return EXIT_REFUSED
    except (lifecycle.CannotDelete, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    print(t("Deleted {id}.", id=arguments.run))
    return EXIT_OK
