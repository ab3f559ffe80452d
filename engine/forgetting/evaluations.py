"""Evaluations: ask a model and its base benchmarks without training, and put all that is known of a run together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from engine import events, graders, machine
from engine.benchmarks import library, shipped, speeds
from engine.check import DatasetError
from engine.data import datasets, profile
from engine.models import Base, bases
from engine.plan import drafts
from engine.report import blind, frontier, headline, items, paired
from engine.runs import admission, lifecycle, scored, store
from engine.spec import RunSpec, schema
from engine.spec import settings as spec_settings
from engine.words import Problem, t
from engine.workspace import Workspace

# Making the graders of a file may take so long in all: patterns are tried, and there may be thousands of slow ones.
GRADERS_S = 30.0
RECIPE = schema.RecipeRef("evaluate", "0" * 64)


def reference(workspace: Workspace, ref: str) -> str:
    """Return what a person named as a base reference: a run's id stands for what that run made."""
    return f"run:{ref}" if store.exists(workspace, ref) else ref


def sets(workspace: Workspace, ref: str) -> dict[str, library.Set]:
    """Return the ready sets of questions of a run or a base; of a run, those in the language of its data among them."""
    ref, language = reference(workspace, ref), None
    if ref.startswith("run:"):
        with suppress(DatasetError, OSError, ValueError):  # data that is gone has no language
            data = store.load_spec(workspace, ref.removeprefix("run:")).dataset.id
            language = profile.language(workspace, datasets.load(workspace, data)) if data else None
    return library.sets(toy=bases.describe(ref, workspace).is_toy, language=language)


def build(
    workspace: Workspace,
    ref: str,
    names: Sequence[str],
    *,
    limit: int = 0,
    shots: int = 0,
    template: str = "auto",
    against: str | None = None,
) -> tuple[RunSpec | None, list[Problem]]:
    """Return the spec of an evaluation with everything that keeps it from starting; None when there are problems.

    `ref` is a run's id or a base. It is compared with `against`; for a run that is the base it was made from, held in as
    many bits as in training, and a base by itself is only scored, for later comparisons.
    """
    ref = reference(workspace, ref)
    tuned = bases.describe(ref, workspace)
    quantize = "none"
    if ref.startswith("run:") and not tuned.problems:
        try:
            made = store.load_spec(workspace, ref.removeprefix("run:"))
        except (OSError, ValueError) as error:
            run_id, reason = ref.removeprefix("run:"), str(error)
            told = Problem(rule="run-spec-broken", where="base.ref", parameters={"run": run_id, "reason": reason})
            return None, [told]
        quantize = made.quantize
        against = against or made.base.pinned
    if against is not None:
        against = reference(workspace, against)
    settings, wrong = _settings(limit=limit, shots=shots, template=template)
    problems = [*model_problems(workspace, tuned, against), *name_problems(workspace, names), *wrong]
    if problems:
        return None, problems
    revision = tuned.revision if tuned.kind == "hub" else None
    evaluate = msgspec.convert(
        {"benchmarks": list(dict.fromkeys(names)), "against": against or "", **settings}, schema.Evaluate
    )
    made = RunSpec(
        kind="evaluate",
        recipe=RECIPE,
        quantize=quantize,
        base=schema.BaseRef(ref, revision),
        dataset=schema.DatasetRef(""),
        train=reading(tuned),
        evaluate=evaluate,
    )
    refused = admission.problems(made, workspace)
    return (None, refused) if refused else (made, [])


def reading(model: Base) -> schema.Train:
    """Return the settings under which a model that is not trained reads: its window, and as many threads as help."""
    threads = 1 if model.is_toy else machine.facts().cores
    return schema.Train(max_length=min(model.window_tokens or 2048, 2048), threads=threads)


def add_questions(workspace: Workspace, data: bytes, name: str) -> tuple[shipped.Benchmark | None, list[Problem]]:
    """Check a person's own questions and keep them, as library.add does; what grades them must be a grader."""
    end_s = time.monotonic() + GRADERS_S

    def wrong(told: Any) -> list[Problem]:
        return [Problem(rule="bench-graders-slow")] if time.monotonic() > end_s else _grader_problems(told)

    return library.add(workspace, data, name, wrong)


def _grader_problems(told: Any) -> list[Problem]:
    try:
        graders.make(msgspec.convert(told, schema.GraderRef))
    except msgspec.ValidationError:
        return [Problem(rule="bench-grader", where="grader")]
    except graders.Refused as refused:
        return [msgspec.structs.replace(one, where=f"grader.{one.where}" if one.where else "grader")
                for one in refused.problems]  # fmt: skip
    return []


def everything(workspace: Workspace, run_id: str) -> tuple[RunSpec | None, list[Problem]]:
    """Return the spec that asks a run and its base all the questions of which its check in bounded time asked some, going
    on from there, and what keeps it from starting. Raises as store.load_spec does."""
    made = store.load_spec(workspace, run_id)
    return _of_its_rows(workspace, run_id, msgspec.structs.replace(made.evaluate, budget_s=None, along=0))


def texts(workspace: Workspace, run_id: str) -> tuple[RunSpec | None, list[Problem]]:
    """Return the spec that lets a run and its base answer held-out prompts, as many as a blind comparison shows, and what
    keeps it from starting. Raises as store.load_spec does."""
    problems = _prompt_problems(workspace, store.load_spec(workspace, run_id).dataset)
    asked = schema.Evaluate(benchmarks=[shipped.HELD_OUT], limit=blind.PROMPTS)
    return (None, problems) if problems else _of_its_rows(workspace, run_id, asked)


def has_prompts(run: scored.ScoredRun) -> bool:
    """Whether a run's rows hold out prompts that it and its base can answer."""
    return not _prompt_problems(run.workspace, run.spec.dataset)


def _prompt_problems(workspace: Workspace, rows: schema.DatasetRef) -> list[Problem]:
    """Return why there are no held-out prompts in a run's rows."""
    try:
        found = datasets.load(workspace, rows.id)
    except (DatasetError, OSError, ValueError):
        return [Problem(rule="dataset-none")]
    if found.report.kind == "texts":
        return [Problem(rule="texts-plain", parameters={"data": found.name})]
    if not (rows.eval_id or rows.eval_share):
        return [Problem(rule="texts-held-out", parameters={"data": found.name})]
    return []


def texts_seconds(workspace: Workspace, run: scored.ScoredRun) -> float | None:
    """Return the estimated seconds of texts(), from what was measured on this machine; None where that says nothing."""
    base = bases.describe(run.spec.base.ref, workspace)
    one = speeds.of_rows(workspace, machine.facts().device, base.ref, base.parameters, blind.TEXTS, blind.PROMPTS, 0)
    return None if one is None else 2 * one


def _of_its_rows(
    workspace: Workspace, run_id: str, evaluate: schema.Evaluate
) -> tuple[RunSpec | None, list[Problem]]:  # fmt: skip
    """Return the spec that asks a run and its base about the run's own rows, and what keeps it from starting."""
    made = store.load_spec(workspace, run_id)
    ref, against = f"run:{run_id}", made.base.pinned
    tuned = bases.describe(ref, workspace)
    evaluate = msgspec.structs.replace(evaluate, against=against)
    spec = RunSpec(
        kind="evaluate", recipe=RECIPE, objective=made.objective, quantize=made.quantize, base=schema.BaseRef(ref),
        dataset=made.dataset, train=made.train, evaluate=evaluate, machine=made.machine, day=made.day,
    )  # fmt: skip
    problems = model_problems(workspace, tuned, against) or admission.problems(spec, workspace)
    return (None, problems) if problems else (spec, [])


def model_problems(workspace: Workspace, tuned: Base, against: str | None) -> list[Problem]:
    """Return what keeps a model, or the one it is compared with, from being asked."""
    other = [] if against is None else [bases.describe(against, workspace)]
    problems = [problem for one in [*other, tuned] for problem in one.problems]
    for one in [tuned, *other]:
        if one.scores_only:
            problems.append(Problem(rule="evaluate-reward", where="base", parameters={"ref": one.ref}))
    return problems


def name_problems(workspace: Workspace, names: Sequence[str]) -> list[Problem]:
    """Return what is wrong with the names of benchmarks: none at all, or one that is not here."""
    known = [one.name for one in library.available(workspace)]
    if not names:
        return [Problem(rule="evaluate-none", where="evaluate.benchmarks", parameters={"names": ", ".join(known)})]
    return [library.unknown(name, known) for name in names if name not in known]


def _settings(**given: object) -> tuple[dict[str, object], list[Problem]]:
    """Return the settings of an evaluation, converted, and what is wrong with them."""
    settings: dict[str, object] = {}
    problems = []
    for path, value in given.items():
        converted = spec_settings.convert_setting(f"evaluate.{path}", value)
        if isinstance(converted, Problem):
            problems.append(converted)
        else:
            settings[path] = converted
    return settings, problems


def name_of(workspace: Workspace, run_spec: RunSpec) -> str:
    """Return what an evaluation is called in lists."""
    ref = run_spec.base.ref
    shown = (
        store.name(workspace, ref.removeprefix("run:"))
        if ref.startswith("run:")
        else bases.describe(ref, workspace).title
    )
    return t("Scores of {name}", name=shown[:80])


def start(workspace: Workspace, run_spec: RunSpec, *, name: str | None = None, click_id: str | None = None) -> str:
    """Queue an evaluation and return its run id."""
    return lifecycle.start(workspace, run_spec, name=name or name_of(workspace, run_spec), click_id=click_id)


def seconds(workspace: Workspace, ref: str, names: Sequence[str], limit: int = 0) -> float | None:
    """Return the estimated seconds of evaluating `ref`, from what was measured on this machine; None when nothing was.
    A run is asked with its base, whose scores may be cached: counted once then."""
    ref = reference(workspace, ref)
    described, device = bases.describe(ref, workspace), machine.facts().device
    one = speeds.seconds(workspace, device, described.ref, described.parameters, list(names), limit)
    if one is None or not ref.startswith("run:"):
        return one
    below = bases.describe(store.load_spec(workspace, ref.removeprefix("run:")).base.pinned, workspace)
    other = speeds.seconds(workspace, device, below.ref, below.parameters, list(names), limit)
    return None if other is None else one + other


def along(run: scored.ScoredRun, measure: str | None = None) -> list[frontier.Point]:
    """Return a point for each step of a run that was scored on its way, and one for its end, in order; nothing when it
    was scored only at its end. All by the benchmarks of the first; the gain by a measure, or by one that all have."""
    folder = run.folder
    steps = items.steps_scored(folder)
    if not steps:
        return []
    lines = {step: paired.compare_run(folder, items.at_step(step)) for step in steps}
    last = max((event.step for event in events.read(folder)[0] if isinstance(event, events.Finished)), default=0)
    if last:
        asked = {row.benchmark for row in lines[steps[0]]}
        lines[last] = [row for row in paired.compare_run(folder) if row.benchmark in asked]
    measure = headline.common_measure(lines.values()) if measure is None else measure
    return [
        msgspec.structs.replace(
            frontier.point(t("{name}, step {step}", name=run.name, step=step), rows, run.chance, measure), step=step
        )
        for step, rows in lines.items()
        if rows
    ]


POINTS = 5


class AlongCost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a run took before, and that scoring its tuned model once took."""

    run_s: float
    scoring_s: float


def along_cost(run: scored.ScoredRun) -> AlongCost | None:
    """Return what it would cost to train a run again and score it on its way, by its own events; None when they do not
    say."""
    found, _ = events.read(run.folder)
    started = [one for one in found if isinstance(one, events.Started)]
    ended = [one for one in found if isinstance(one, events.Finished)]
    began = [one for one in found if isinstance(one, events.Phase) and one.detail == "tuned"]
    told = [
        one for one in found if isinstance(one, events.Scored) and one.model == "tuned" and one.benchmark != items.KL
    ]
    if len(started) != 1 or not ended or not began or not told:
        return None  # resumed, or not scored: its clock says nothing
    return AlongCost(
        run_s=ended[-1].monotonic_s - started[0].monotonic_s, scoring_s=told[-1].monotonic_s - began[0].monotonic_s
    )


def along_draft(run: scored.ScoredRun) -> drafts.Draft:
    """Return a run made again with all of its settings, scored at several points on its way."""
    told = t("The same as {name}, scored {n} times on its way", name=run.name, n=POINTS)
    return drafts.of_spec(run.workspace, run.spec, came_from=told, changes={"evaluate.along": POINTS})
