"""tunebook advise, fit."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.cli import shared
from engine.cli.shared import EXIT_OK, EXIT_REFUSED, add_data, print_json
from engine.words import Problem, t
from engine.workspace import Workspace, read_struct

if TYPE_CHECKING:
    from engine.advise import Advice, Alternative, Case


def register(command: shared.Command) -> None:
    from engine.advise import facts
    from engine.read import formats

    sub = command("advise", advise)
    sub.add_argument("--facts", metavar="FILE", help="a JSON object of facts, by the names below with _ for -")
    sub.add_argument("--data", help="a file, a stored data set's id, or a sample: its rows, kind and labels")
    sub.set_defaults(drop_bad_rows=True, fix=None, map=None)
    sub.add_argument("--base", help="read the size of this base")
    for name, kind in (("rows", int), ("good-rows", int), ("bad-rows", int), ("gpu-memory-gib", float),
                       ("base-parameters", float), ("time-budget-minutes", float)):  # fmt: skip
        sub.add_argument(f"--{name}", type=kind)
    sub.add_argument("--data-type", choices=formats.TYPES)
    sub.add_argument(
        "--conversational",
        action="store_true",
        default=None,
        help="language-modeling rows are conversations, not texts",
    )
    sub.add_argument("--goal", choices=facts.GOALS)
    sub.add_argument("--alignment-data", choices=facts.ALIGNMENT_DATA, help="what people have said about answers")
    sub.add_argument("--forgetting-tolerance", choices=facts.TOLERANCES)
    sub.add_argument("--has-reward-model", action="store_true", default=None)
    sub.add_argument("--base-is-tuned", action="store_true", default=None)


def advise(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Say which recipe suits some data, a machine and a goal, by which rules, and what would change that."""
    from engine.advise import Facts, alternatives, for_data
    from engine.check import DatasetError
    from engine.data import datasets

    try:
        given = read_struct(Path(arguments.facts), dict[str, Any]) if arguments.facts else {}
        msgspec.convert(given, Facts)
    except (OSError, ValueError) as error:
        print(t("{path} cannot be read as facts: {reason}", path=arguments.facts, reason=error), file=sys.stderr)
        return EXIT_REFUSED
    if arguments.facts:  # a card that is not named there is not there
        given = {"gpu_memory_gib": None, **given}
    flags = {name: getattr(arguments, name) for name in _FACTS if getattr(arguments, name) is not None}
    base = shared.counted(arguments.base, workspace) if arguments.base else None
    data = None
    if arguments.data is not None:
        try:
            data = datasets.load(workspace, add_data(arguments, workspace))
        except DatasetError as error:
            print(error.problem.sentence, file=sys.stderr)
            return EXIT_REFUSED
    case, advice = for_data.for_data(workspace, base=base, data=data, said={**given, **flags})
    problems = [*advice.problems, *_base_problems(base)]
    if arguments.json:
        mentioned = [one._asdict() for one in alternatives.mentioned()]
        print_json({**msgspec.to_builtins(advice), "problems": problems, "mentioned": mentioned})
        return EXIT_OK
    _print(case, advice, problems)
    return EXIT_OK


def _print(case: Case, advice: Advice, problems: list[Problem]) -> None:
    from engine.advise import guide

    print(advice.sentence)
    for problem in problems:
        print(f"  ! {problem.sentence}")
    for reason in [*advice.reasons, *advice.stands_in]:
        print(f"  - {reason}")
    if advice.advised is not None:
        print(advice.evidence)
    for doubt in advice.doubts:
        print(f"  ~ {doubt}")
    rules = guide.rules()
    for rule in advice.followed:
        print(f"  + {rules[rule].words} ({rule})")
    for overruled in advice.overruled:
        print(f"  x {rules[overruled.rule].words} ({overruled.rule}): {overruled.why}")
    for sentence in advice.would_change:
        print(f"  ? {sentence}")
    for one in advice.alternatives:
        print(f"  {one.title:<28} {_range_words(one, case.target.memory_bytes)}")
    for number, stage in enumerate(advice.plan, 1):
        print(f"  {number}. {stage.title}: {stage.text}")


def _base_problems(base: Any) -> list[Problem]:
    """Return why the size of a base is not known; one of the hub that is not here is no problem before it is named."""
    if base is None or base.problems or base.parameters is not None or base.kind != "hub":
        return list(base.problems) if base is not None else []
    return [Problem(rule="base-not-here", where="base.ref", parameters={"ref": base.ref})]


def _range_words(one: Alternative, memory_bytes: float) -> str:
    """Return what an alternative takes, in one line."""
    from engine.estimate import duration, memory

    room = memory.room_words()
    parts = [room[one.room]]
    if one.memory.parts:
        parts.append(" - ".join(memory.range_words(one.memory, memory_bytes)))
    if one.time is not None:
        low, high = duration.duration_words(one.time.low_s), duration.duration_words(one.time.high_s)
        parts.append(f"{low} - {high} ({one.time.stands_on})")
    return ", ".join(parts)


_FACTS = ("rows", "data_type", "conversational", "good_rows", "bad_rows", "gpu_memory_gib", "base_parameters", "goal",
          "alignment_data", "forgetting_tolerance", "has_reward_model", "base_is_tuned",
          "time_budget_minutes")  # fmt: skip
