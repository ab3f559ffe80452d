"""tunebook grade."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import msgspec

from engine.cli import shared
from engine.cli.shared import EXIT_OK, EXIT_REFUSED, add_data, print_json
from engine.words import Problem, t
from engine.workspace import Workspace


def register(command: shared.Command) -> None:
    sub = command("grade", grade)
    sub.add_argument("data", nargs="?", help="a file, a stored data set's id, or a sample; left out: list the graders")
    sub.set_defaults(drop_bad_rows=True, fix=None, map=None)
    sub.add_argument("--grader", metavar="NAME", help="name this one; none: name no grader any more")
    sub.add_argument(
        "--set", action="append", metavar="PARAMETER=VALUE", help="with --grader: a parameter, as JSON or text"
    )


def grade(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Say what tells right answers of a data set from wrong ones: show which graders fit its rows, or name one."""
    from engine import graders
    from engine.check import DatasetError
    from engine.data import datasets

    if arguments.data is None:
        return _list(as_json=arguments.json)
    try:
        dataset = datasets.load(workspace, add_data(arguments, workspace))
        if arguments.grader is None:
            return _offer(workspace, dataset, as_json=arguments.json)
        ref = None if arguments.grader == "none" else _ref(arguments.grader, arguments.set or [])
        dataset = datasets.grade_by(workspace, dataset.id, ref)
    except DatasetError as error:
        return _refuse([error.problem])
    except graders.Refused as error:
        return _refuse(error.problems)
    return _named(workspace, dataset, as_json=arguments.json)


def _refuse(problems: list[Problem]) -> int:
    for problem in problems:
        print(problem.sentence, file=sys.stderr)
    return EXIT_REFUSED


def _ref(name: str, texts: list[str]) -> Any:
    """Return a grader as it is named on the command line. Raises graders.Refused for a parameter without a value."""
    from engine import graders
    from engine.spec import schema

    parameters, wrong = {}, []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            wrong.append(Problem(rule="grader-no-value", parameters={"parameter": text[:60]}))
            continue
        try:
            parameters[key.strip()] = json.loads(value)
        except (ValueError, RecursionError):
            parameters[key.strip()] = value
    if wrong:
        raise graders.Refused(wrong)
    return schema.GraderRef(name[:80], parameters)


def _list(*, as_json: bool) -> int:
    from engine import graders

    if as_json:
        print_json([msgspec.to_builtins(preset) for preset in graders.presets()])
        return EXIT_OK
    for preset in graders.presets():
        print(f"{preset.id:<20} {t(preset.title)}: {t(preset.about)}")
    return EXIT_OK


def _offer(workspace: Workspace, dataset: Any, *, as_json: bool) -> int:
    from engine.data import datasets

    offers = datasets.graders_for(workspace, dataset)
    if as_json:
        told = [
            {"grader": one.ref, "why": str(one.why), "tried": one.trial.tried, "right": one.trial.right}
            for one in offers
        ]
        print_json({"dataset": dataset.id, "grader": dataset.grader, "offers": told})
        return EXIT_OK
    if dataset.grader is not None:
        _named(workspace, dataset, as_json=False)
    if not offers:
        print(t("No grader fits these rows."))
    for one in offers:
        print(f"{one.ref.name:<20} {one.why}; {one.trial.says}")
    if offers and dataset.grader is None:
        print(t("Name one:  {command}", command=f"tunebook grade {dataset.id} --grader {offers[0].ref.name}"))
    return EXIT_OK


def _named(workspace: Workspace, dataset: Any, *, as_json: bool) -> int:
    """Print which grader a data set names, and how it finds the right answers of its rows."""
    from engine import graders
    from engine.data import datasets

    ref = dataset.grader
    try:
        trial = None if ref is None else datasets.tried(workspace, dataset, ref)
    except graders.Refused as error:
        return _refuse(error.problems)
    if as_json:
        print_json({"dataset": dataset.id, "grader": ref, "trial": trial})
    elif ref is None or trial is None:
        print(t("{name} names no grader.", name=dataset.name))
    else:
        print(t("{name} is graded by {grader}: {trial}.", name=dataset.name, grader=ref.name, trial=trial.says))
    return EXIT_OK if ref is None or trial is None or trial.problem(ref.name) is None else EXIT_REFUSED
