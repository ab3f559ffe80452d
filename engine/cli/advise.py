"""tunebook advise, fit."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from engine.cli import shared
from engine.cli.shared import EXIT_FAILED, EXIT_OK, EXIT_REFUSED, add_data, print_json, refuse
from engine.words import Problem, t
from engine.workspace import Workspace


def register(command: shared.Command) -> None:
    from engine.advise import facts

    sub = command("advise", advise)
    sub.add_argument("--facts", metavar="FILE", help="a JSON object of facts, by the names below with _ for -")
    sub.add_argument("--data", metavar="FILE", help="read rows, kind and labels from this file")
    sub.add_argument("--base", help="read the size of this base")
    for name, kind in (("rows", int), ("good-rows", int), ("bad-rows", int), ("gpu-memory-gib", float),
                       ("base-parameters", float), ("time-budget-minutes", float)):  # fmt: skip
        sub.add_argument(f"--{name}", type=kind)
    sub.add_argument("--data-type", choices=facts.DATA_TYPES)
    sub.add_argument("--goal", choices=facts.GOALS)
    sub.add_argument("--alignment-data", choices=facts.ALIGNMENT_DATA, help="what people have said about answers")
    sub.add_argument("--forgetting-tolerance", choices=facts.TOLERANCES)
    sub.add_argument("--has-reward-model", action="store_true", default=None)
    sub.add_argument("--base-is-tuned", action="store_true", default=None)
    sub = command("fit", fit)
    sub.add_argument("recipe", help="a file of recipes/, without .yaml")
    sub.add_argument("--data", help="a file, a stored data set's id, or a sample; for its rows and for the time")
    sub.add_argument("--probe", action="store_true", help="try the longest batch for one step; needs the device")
    sub.set_defaults(drop_bad_rows=True, fix=None, map=None)
    shared.take_base(sub)
    sub.add_argument("--set", action="append", metavar="PATH=VALUE", help="a setting, such as train.batch_size=1")


def fit(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Estimate the memory and time of a run; exit 0 when it may fit, 1 when it cannot or nothing is known."""
    from engine import machine
    from engine.check import DatasetError
    from engine.data import datasets
    from engine.estimate import memory
    from engine.models import bases
    from engine.plan import build, takes
    from engine.spec import recipes as spec_recipes

    overrides, problems = shared.overrides(arguments.set)
    data, dataset = arguments.data, None
    recipe = spec_recipes.recipes().get(arguments.recipe)
    if arguments.probe and data is None and recipe is not None:
        data = recipe.sample
    if data is not None:
        try:
            arguments.data = data
            dataset = datasets.load(workspace, add_data(arguments, workspace))
        except DatasetError as error:
            problems.append(error.problem)
    run_spec, found = build.build(
        workspace,
        arguments.recipe,
        base_ref=arguments.base,
        dataset_id=dataset.id if dataset else None,
        overrides=overrides,
    )
    # what no memory hangs on does not matter here: the data, the disk, whether this version trains it
    unimportant = {"dataset-none", "disk-too-small", "memory-too-small", "not-built", "benchmark-unknown"}
    problems += [p for p in found if p.rule not in unimportant]
    if run_spec is None or problems:
        return refuse(problems)
    base, facts = bases.describe(arguments.base, workspace), machine.facts()
    one = takes.memory_of(run_spec, base, dataset, workspace)
    time = takes.duration_of(run_spec, base, dataset, workspace) if dataset is not None else None
    have_bytes = facts.device_memory_bytes
    sentence = memory.verdict(one, have_bytes)
    probed = _probe(workspace, run_spec) if arguments.probe else None
    if arguments.json:
        answer = {
            "base": base.ref,
            "device": one.device,
            "memory_bytes": have_bytes,
            "parameters": one.parameters or base.parameters,
            "trained_parameters": one.trained_parameters,
            "parts": one.parts,
            "total_bytes": one.total_bytes if one.parts else None,
            "low_bytes": one.low_bytes if one.parts else None,
            "high_bytes": one.high_bytes if one.parts else None,
            "runs": one.runs,
            "sentence": sentence,
            "time": time,
            "probe": probed,
        }
        print_json(answer)
    else:
        words = memory.part_words()
        for name, size_bytes in (one.parts or {}).items():
            print(f"{words[name]:<28} {memory.size_words(size_bytes):>10}")
        print(sentence)
        if one.runs:
            print(t("Corrected by {n} finished runs of this kind on this machine.", n=one.runs))
        print(time.sentence if time else t("Name data with --data to see how long it takes."))
        if probed is not None:
            print(probed["sentence"])
        for problem in found:
            if problem.rule == "memory-too-small":
                print(f"  - {problem.fix}")
    if probed is not None:
        return EXIT_OK if probed["status"] == "finished" else EXIT_FAILED
    return EXIT_OK if one.parts and one.low_bytes <= have_bytes else EXIT_FAILED


def _probe(workspace: Workspace, run_spec: Any) -> dict[str, Any]:
    """Let a child try the longest batch once, when the device is free; return what it took. Nothing of it is kept."""
    import shutil

    from engine import events
    from engine.estimate import memory
    from engine.runs import follow, lifecycle

    run_id = lifecycle.start(workspace, msgspec.structs.replace(run_spec, kind="probe"), name=t("Memory probe"))
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


def advise(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Say which recipe suits some data, a machine and a goal, by which rules, and what would change that."""
    from engine import machine
    from engine.advise import Facts, otherwise, outlook, ways
    from engine.advise import advice as advise_advice
    from engine.advise import fits as advise_fits
    from engine.models import Base, bases
    from engine.plan import judges
    from engine.spec import schema

    try:
        given = json.loads(Path(arguments.facts).read_bytes()) if arguments.facts else {}
        facts = msgspec.convert(given, Facts)
    except (OSError, ValueError, RecursionError) as error:
        print(t("{path} cannot be read as facts: {reason}", path=arguments.facts, reason=error), file=sys.stderr)
        return EXIT_REFUSED
    known: dict[str, Any] = {}
    base = None
    if arguments.data:
        known |= _facts_of(Path(arguments.data))
    if arguments.base:
        base = bases.describe(arguments.base, workspace)
        known |= {"base_parameters": base.parameters, "base_is_tuned": base.kind == "run"}
        known["has_reward_model"] = (
            judges.newest(workspace, base, schema.ObjectiveArgs().least_reward_accuracy) is not None
        )
    gpus = machine.facts().gpus
    if not arguments.facts and gpus:
        known["gpu_memory_gib"] = gpus[0].memory_mib / 1024
    flags = {name: getattr(arguments, name) for name in _FACTS if getattr(arguments, name) is not None}
    facts = msgspec.structs.replace(facts, **{**known, **flags})
    shape = advise_fits.shape_for(base, facts.base_parameters)
    planned = base or Base(ref="", kind="hub", title="")
    fits = advise_fits.fits(planned, facts.gpu_memory_gib, facts.base_parameters)
    need = advise_fits.need(planned, facts.gpu_memory_gib, facts.base_parameters)
    tight = advise_fits.tight(planned, facts.gpu_memory_gib, facts.base_parameters)
    advice = advise_advice.advise(facts, runnable=ways.runnable_now, fits=fits, need=need, tight=tight)
    outlooks = outlook.of(advice, shape, workspace, row_tokens=None)
    problems = [*advice.problems, *_base_problems(base)]
    if arguments.json:
        mentioned = [one._asdict() for one in otherwise.mentioned()]
        found = {**msgspec.to_builtins(advice), "problems": problems, "outlook": outlooks, "mentioned": mentioned}
        print_json(found)
        return EXIT_OK
    print(advice.headline)
    for problem in problems:
        print(f"  ! {problem.sentence}")
    if base is not None and base.shape is None and base.folder is not None and not base.problems:
        print(f"  ! {t('Its memory cannot be estimated: Tunebook does not know this architecture.')}")
    for reason in [*advice.reasons, *([advice.nearest_reason] if advice.nearest_reason else [])]:
        print(f"  - {reason}")
    print(t("Rules of the guide: {rules}", rules=", ".join(advice.rules) or "-"))
    for overruled in advice.overruled:
        print(f"  x {overruled.rule}: {overruled.why}")
    print(t("Confidence: {level}. {reason}", level=advice.confidence, reason=advice.confidence_reason))
    for sentence in advice.would_change:
        print(f"  ? {sentence}")
    for one in outlooks:
        print(f"  {one.title:<28} {_range_words(one)}")
    for number, stage in enumerate(advice.plan, 1):
        print(f"  {number}. {stage.title}: {stage.text}")
    return EXIT_OK


def _base_problems(base: Any) -> list[Problem]:
    """Return why the size of a base is not known; one of the hub that is not here is no problem before it is named."""
    if base is None or base.problems or base.parameters is not None or base.kind != "hub":
        return list(base.problems) if base is not None else []
    return [Problem(rule="base-not-here", where="base.ref", parameters={"ref": base.ref})]


def _range_words(one: Any) -> str:
    """Return what an alternative takes, in one line."""
    from engine.estimate import duration, memory

    parts = [t("fits") if one.fits else t("does not fit")]
    if one.low_bytes is not None:
        parts.append(f"{memory.size_words(one.low_bytes)} - {memory.size_words(one.high_bytes)}")
    if one.time is not None:
        parts.append(f"{duration.duration_words(one.time.low_s)} - {duration.duration_words(one.time.high_s)}")
    return ", ".join(parts)


_FACTS = ("rows", "data_type", "good_rows", "bad_rows", "gpu_memory_gib", "base_parameters", "goal", "alignment_data",
          "forgetting_tolerance", "has_reward_model", "base_is_tuned", "time_budget_minutes")  # fmt: skip


def _facts_of(file: Path) -> dict[str, Any]:
    """Return what a file says to the advisor."""
    from engine.check import DatasetError, check_file

    try:
        report = check_file(file)
    except DatasetError as error:
        print(error.problem.sentence, file=sys.stderr)
        return {}
    labels = report.label_counts or {}
    return {
        "rows": report.rows - report.bad_rows,
        "data_type": report.type,
        "good_rows": labels.get("true"),
        "bad_rows": labels.get("false"),
    }
