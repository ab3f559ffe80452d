"""What several commands share: exit codes, printing, the data that is named, a run that is followed."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from engine.words import Problem, t
from engine.workspace import Unreadable, Workspace

if TYPE_CHECKING:
    from engine.models import Base
    from engine.runs import Run, ScoredRun

EXIT_OK, EXIT_FAILED, EXIT_REFUSED, EXIT_STOPPED = 0, 1, 2, 3


class Command(Protocol):
    """Adds a command to the parser: its name and the function that carries it out, whose docstring is its help."""

    def __call__(self, name: str, function: Any, *, as_json: bool = True) -> argparse.ArgumentParser: ...


def take_base(command: argparse.ArgumentParser) -> None:
    command.add_argument("--base", default="starter", help="starter, a folder, a Hugging Face id, or run:<id>")


def counted(ref: str, workspace: Workspace) -> Base:
    """Describe a base; where only the usual arithmetic says what it has, a child counts it first."""
    from engine.models import bases

    found = bases.describe(ref, workspace)
    if found.shape is not None and found.shape.is_estimated:
        print(t("Counting what {name} has ...", name=found.title), file=sys.stderr)
    return bases.count(found, workspace, wait=True)


def take_data(command: argparse.ArgumentParser, **how: Any) -> None:
    """Let a command take what add_data() stores."""
    from engine.data import fixes

    command.add_argument(
        "--data", **how,
        help="a file, a stored id, a sample such as new-facts, hf:owner/name[:config][:split], or mix:A=3,B=1",
    )  # fmt: skip
    command.add_argument("--drop-bad-rows", action="store_true", help="leave rows with errors out")
    command.add_argument("--fix", action="append", choices=fixes.FIXES, help="repair the file first")
    take_map(command)


def take_map(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--map", action="append", metavar="COLUMN=NAME", help="what a column is, such as reply=completion"
    )


def take_name_and_wait(command: argparse.ArgumentParser) -> None:
    command.add_argument("--name", help="what to call the run")
    take_wait(command)


def take_wait(command: argparse.ArgumentParser) -> None:
    command.add_argument("--wait", action="store_true", help="follow the run to its end")


def print_json(value: Any) -> None:
    """Print a value as JSON; null stands for a number that is none or without end, for which JSON has no word."""
    told = _finite(msgspec.to_builtins(value))
    sys.stdout.write(json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _finite(one) for name, one in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(one) for one in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def refuse(problems: list[Problem]) -> int:
    print(t("This run cannot start:"), file=sys.stderr)
    for problem in problems:
        print(f"  - {problem.sentence}", file=sys.stderr)
    return EXIT_REFUSED


def failed(error: OSError | Unreadable) -> int:
    """Say what kept a command from reading or writing its files."""
    from engine.check import os_problem

    wrong = os_problem(error, error.filename or t("a file")).sentence if isinstance(error, OSError) else error
    print(wrong, file=sys.stderr)
    return EXIT_FAILED


def written(write: Callable[[], Iterable[object]]) -> int:
    """Carry out an export and print what it wrote, a line each, or why it was refused."""
    from engine.export import NotExportable

    try:
        made = write()
    except (NotExportable, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    for one in made:
        print(one)
    return EXIT_OK


def there(workspace: Workspace, run_id: str) -> bool:
    """Whether there is such a run, of whatever version; where there is none, that is said."""
    from engine.runs import store

    if store.exists(workspace, run_id):
        return True
    print(t("There is no run {id}; `tunebook runs` lists them.", id=run_id[:80]), file=sys.stderr)
    return False


def known_run(workspace: Workspace, run_id: str) -> bool:
    """Whether there is such a run and this version can read it; where not, that is said."""
    from engine.runs import store

    if not there(workspace, run_id):
        return False
    problem = store.unreadable(workspace, run_id)
    if problem is not None:
        print(f"{run_id}: {problem.sentence}", file=sys.stderr)
    return problem is None


def made_something(workspace: Workspace, run_id: str) -> bool:
    """Whether a run is known and has trained anything; where not, that is said."""
    from engine.runs import store

    if not known_run(workspace, run_id):
        return False
    if store.nothing_trained(workspace, run_id):
        problem = Problem(rule="run-untrained", parameters={"id": run_id})
        print(problem.sentence, file=sys.stderr)
        return False
    return True


def report_lines(found: ScoredRun, runs: Sequence[Run] | None = None) -> list[str]:
    """Return what the report of a run says first, where anything was scored, and what its quantised files lost."""
    from engine.forgetting import examples, summary
    from engine.quantised import lost, said

    files = said.spoken(lost.every(found.folder))
    if not found.rows and found.moved:
        return files
    told, beside = summary.of(found), examples.beside(found, runs)
    return [
        f"{found.name} ({found.run_id}): {told.headline}",
        t("Gained: {text}", text=told.gained),
        t("Lost: {text}", text=told.lost),
        t("What to do: {text}", text=told.to_do),
        *([] if beside is None else [beside.sentence]),
        *files,
    ]


def mapping(arguments: argparse.Namespace) -> dict[str, str]:
    """Return what --map COLUMN=NAME says; without "=" nothing is named, which the check refuses."""
    return {column: name for column, _, name in (text.rpartition("=") for text in arguments.map or [])}


def add_data(arguments: argparse.Namespace, workspace: Workspace) -> str:
    """Return the id of the data named on the command line: a stored id, a sample, a file that is stored now, a data set
    of the hub (hf:owner/name[:config][:split]), or several of these mixed by weight (mix:A=3,B=1)."""
    from engine import starter
    from engine.check import DatasetError, os_problem
    from engine.data import datasets, jobs, mix
    from engine.models import hub_client

    how = {"drop_bad_rows": arguments.drop_bad_rows, "fixes": arguments.fix or (), "mapping": mapping(arguments)}
    if arguments.data.startswith("mix:"):
        parts = []
        for text in arguments.data.removeprefix("mix:").split(","):
            name, _, weight = text.rpartition("=")
            try:
                share = float(weight)
            except ValueError:
                raise DatasetError(Problem(rule="mix-weights")) from None
            one = argparse.Namespace(**{**vars(arguments), "data": name})
            parts.append((add_data(one, workspace), share))
        return mix.add(workspace, parts, arguments.data[:100]).id
    if arguments.data.startswith("hf:"):
        try:
            return jobs.add_from_hub(workspace, arguments.data, **how).id
        except hub_client.HubError as error:
            raise DatasetError(error.problem) from error
    source = Path(arguments.data)
    try:
        there = source.exists()
    except OSError as error:  # a name that no file can have
        raise DatasetError(os_problem(error, source)) from error
    if not there:
        if arguments.data in {sample.name for sample in starter.SAMPLES}:
            return datasets.add_sample(workspace, starter.sample(arguments.data)).id
        if any(d.id == arguments.data for d in datasets.list_all(workspace)):
            return arguments.data
    return datasets.add(
        workspace,
        source,
        source.name,
        **how,
    ).id


def overrides(texts: list[str] | None) -> tuple[dict[str, Any], list[Problem]]:
    """Return the settings of all --set, and what is wrong with the others."""
    from engine.spec import settings as spec_settings

    overrides: dict[str, Any] = {}
    problems: list[Problem] = []
    for text in texts or []:
        parsed = spec_settings.parse_setting(text)
        if isinstance(parsed, Problem):
            problems.append(parsed)
        else:
            overrides[parsed[0]] = parsed[1]
    return overrides, problems


def follow(workspace: Workspace, run_id: str, *, as_json: bool) -> int:
    from engine.runs import follow, store

    print(run_id, file=sys.stderr)
    if waits := follow.turns(workspace).get(run_id):
        print(waits, file=sys.stderr)
    try:
        status = follow.wait(workspace, run_id, print_event)
    except KeyboardInterrupt:
        print(t("\nThe run goes on. Stop it with: tunebook stop {id}", id=run_id), file=sys.stderr)
        status = store.status(workspace, run_id)
    if as_json:
        print_json({"id": run_id, "status": status})
    else:
        print(f"{run_id} {status}")
        if not store.summary(workspace, run_id).moved:
            print(t("Nothing was learned: training changed no weight."))
    return {"finished": EXIT_OK, "stopped": EXIT_STOPPED}.get(status, EXIT_OK if status in store.LIVE else EXIT_FAILED)


def print_event(event: Any) -> None:
    from engine import events

    match event:
        case events.Started():
            text = f"{event.device}: {event.reason}"
        case events.Phase():
            from engine.runs import follow

            text = follow.doing([event])
        case events.Log():
            text = event.text
        case events.Step():
            if event.step % max(1, event.total_steps // 10) and event.step != 1:
                return
            loss = "-" if event.loss is None else f"{event.loss:.4f}"
            text = f"step {event.step}/{event.total_steps}  loss {loss}  left {event.left_s or 0:.0f} s"
        case events.Progress():
            left = "" if event.left_s is None else f"  left {event.left_s:.0f} s"
            text = f"{event.done}/{event.total}  {event.detail}{left}"
        case events.Eval():
            text = f"step {event.step}  held-out loss {event.loss:.4f}"
        case events.Failed():
            text = f"failed: {event.message}; {event.fix}"
        case _:
            return
    print(text, file=sys.stderr, flush=True)


def started(run_id: str, status: str, *, as_json: bool) -> int:
    if as_json:
        print_json({"id": run_id, "status": status})
    else:
        print(t("Started {id}. Follow it with: tunebook show {id}", id=run_id))
    return EXIT_OK
