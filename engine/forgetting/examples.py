"""Should one tune at all? The base is asked the held-out rows of the new task, as they are and after worked examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine import machine
from engine.benchmarks import speeds
from engine.check import DatasetError
from engine.data import datasets, division
from engine.forgetting import evaluations
from engine.models import bases
from engine.report import Comparison, headline, items, paired, verdicts
from engine.runs import Run, ScoredRun, admission, store
from engine.spec import RunSpec, schema
from engine.spec.schema import Quantize
from engine.words import Problem, joined, t
from engine.workspace import Workspace

# So many examples show what is asked for and in what form; more fill the window.
SHOTS = 4
# So many held-out rows tell 61 % from 50 % and take a fraction of a training.
ROWS = 150


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What a base makes of the new task without training: `row` compares it without and with `shots` examples; `chance` is
    what guessing gets right."""

    run_id: str
    shots: int
    row: Comparison
    chance: float = 0.0

    @property
    def sentence(self) -> str:
        """What the base gets right already, and what training can add at most."""
        told: dict[str, object] = {"n": self.row.n, "shots": self.shots}
        if paired.too_few(self.row):
            return t("Too few held-out rows to say what the base can do already: {n}.", **told)
        if paired.is_loss(self.row):
            before, after = verdicts.apart(self.row.base, self.row.tuned, ".2f")
            return t(
                "With {shots} examples in its context the base's loss on {n} held-out rows goes from {before} to {after}. "
                "No answer here is right or wrong, so what tuning could add is not known.",
                before=before, after=after, **told,
            )  # fmt: skip
        plain, shown = (f"{100 * share:.0f}" for share in (self.row.base, self.row.tuned))
        told |= {"plain": plain, "shown": shown, "most": f"{100 * (1 - max(self.row.base, self.row.tuned)):.0f}"}
        if verdicts.change_of(self.row) == "better":
            said = t(
                "The base already gets {shown} % right with {shots} examples in its context, {plain} % without ({n} "
                "held-out rows): tuning gains at most {most} points.",
                **told,
            )
        else:
            said = t(
                "The base gets {plain} % right as it is, and {shown} % with {shots} examples in its context ({n} held-out "
                "rows): tuning gains at most {most} points.",
                **told,
            )
        guessed = t("Guessing gets {share} %.", share=f"{100 * self.chance:.0f}") if self.chance else ""
        return joined(said, guessed)


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """The third bar of a report: `row` compares the base after `shots` examples with the tuned model, and `plain` is what
    the base makes of the same questions as they are."""

    run_id: str
    shots: int
    row: Comparison
    plain: float

    @property
    def sentence(self) -> str:
        """The three figures in one line."""
        scale, form, unit = (1, ".2f", "") if paired.is_loss(self.row) else (100, ".0f", " %")
        tuned, shown, plain = (
            f"{scale * value:{form}}{unit}" for value in (self.row.tuned, self.row.base, self.plain)
        )  # fmt: skip
        return t(
            "Tuned {tuned}, base with {shots} examples in its context {shown}, base {plain} ({n} held-out rows).",
            tuned=tuned, shown=shown, plain=plain, shots=self.shots, n=self.row.n,
        )  # fmt: skip


def build(
    workspace: Workspace, base: schema.BaseRef, rows: schema.DatasetRef, *, quantize: Quantize = "none",
    shots: int = SHOTS,
) -> tuple[RunSpec | None, list[Problem]]:  # fmt: skip
    """Return the spec that asks a base by itself the held-out rows of a new task, without examples and with them, and what
    keeps it from starting."""
    described = bases.describe(base.ref, workspace, base.revision)
    problems = evaluations.model_problems(workspace, described, None) or _row_problems(workspace, rows)
    if problems:
        return None, problems
    made = RunSpec(
        kind="evaluate", recipe=evaluations.RECIPE, quantize=quantize, base=base, dataset=rows,
        train=evaluations.reading(described), evaluate=schema.Evaluate(limit=ROWS, shots=shots),
    )  # fmt: skip
    refused = admission.problems(made, workspace)
    return (None, refused) if refused else (made, [])


def has_pairs(workspace: Workspace, rows: schema.DatasetRef) -> bool:
    """Whether rows are questions with answers, which can be shown as examples."""
    try:
        return _are_pairs(datasets.load(workspace, rows.id))
    except (DatasetError, OSError, ValueError):
        return False


def _are_pairs(found: datasets.Dataset) -> bool:
    return found.report.type == "prompt-completion"


def _row_problems(workspace: Workspace, rows: schema.DatasetRef) -> list[Problem]:
    try:
        found = datasets.load(workspace, rows.id)
    except (DatasetError, OSError, ValueError):
        return [Problem(rule="dataset-none")]
    if not _are_pairs(found):
        return [Problem(rule="examples-rows", parameters={"data": found.name})]
    if not (rows.eval_id or rows.eval_share):
        return [Problem(rule="examples-held-out", parameters={"data": found.name})]
    return []


def asked(
    workspace: Workspace, base: schema.BaseRef, rows: schema.DatasetRef, runs: Sequence[Run] | None = None
) -> list[tuple[Run, RunSpec]]:
    """Return the evaluations that ask a base these very rows after examples, in any state, newest first."""
    listed = store.list_all(workspace) if runs is None else runs
    near = [run for run in listed if run.recipe == evaluations.RECIPE.name and run.dataset == rows.id]
    found = []
    for run in near:
        try:
            spec = store.load_spec(workspace, run.id)
        except (OSError, ValueError):
            continue
        alike = spec.kind == "evaluate" and not spec.evaluate.against and spec.evaluate.shots
        if alike and spec.base.pinned == base.pinned and spec.dataset == rows:
            found.append((run, spec))
    return found


def known(
    workspace: Workspace, base: schema.BaseRef, rows: schema.DatasetRef, runs: Sequence[Run] | None = None
) -> Known | None:
    """Return what a base was found to make of these rows, by the newest evaluation that has ended; None where nobody has
    asked. Raises OSError and ValueError for items that are broken."""
    for run, spec in asked(workspace, base, rows, runs):
        if run.status == "finished":
            folder, shots = workspace.run_dir(run.id), spec.evaluate.shots
            found = items.joined(folder, items.with_examples(shots))
            lines = [row for name, one in found.items() for row in _compared(run.id, name, one.base, one.tuned)]
            row = headline.asked(lines)
            if row is None:
                return None
            return Known(run_id=run.id, shots=shots, row=row, chance=verdicts.chance_of(found[row.benchmark].base))
    return None


def beside(run: ScoredRun, runs: Sequence[Run] | None = None) -> Beside | None:
    """Return what the base of a run makes of the run's own new task after examples; None where nobody has asked, or what
    was asked is not what says what the run has learned. Raises as known does."""
    row, spec = headline.asked(run.rows), run.spec
    if row is None or row.benchmark not in run.joined:
        return None
    for asked_run, asked_spec in asked(run.workspace, spec.base, spec.dataset, runs):
        if asked_run.status == "finished" and asked_spec.quantize == spec.quantize:
            shots = asked_spec.evaluate.shots
            role, folder = items.with_examples(shots), run.workspace.run_dir(asked_run.id) / "items"
            path = folder / f"{role}-{row.benchmark}.jsonl"
            if not path.is_file():
                return None
            tuned = [one for one in run.joined[row.benchmark].tuned if one.family != items.SEEN]
            shown = items.read_items(path)
            found = headline.asked(_compared(run.run_id, row.benchmark, shown, tuned))
            plain = headline.asked(_compared(run.run_id, row.benchmark, run.joined[row.benchmark].base, shown))
            if found is None or plain is None:
                return None
            return Beside(run_id=asked_run.id, shots=shots, row=found, plain=plain.base)
    return None


def _compared(run_id: str, benchmark: str, before: list[items.Item], after: list[items.Item]) -> list[Comparison]:
    """Compare answers to the same questions, of which one side was asked after examples: its prompts are other ones, so
    that questions are told by their names, which come from the rows."""
    there = {one.item: one for one in before}
    pairs = [(there[one.item], one) for one in after if one.item in there]
    same = [msgspec.structs.replace(one, prompt_sha=other.prompt_sha, tokens=other.tokens) for one, other in pairs]
    return paired.compare_all(run_id, benchmark, same, [other for _, other in pairs])


def seconds(workspace: Workspace, base: schema.BaseRef, rows: schema.DatasetRef, shots: int = SHOTS) -> float | None:
    """Return the estimated seconds of asking, from what was measured on this machine; None where that says nothing."""
    described, device = bases.describe(base.ref, workspace, base.revision), machine.facts().device
    try:
        made = RunSpec(recipe=evaluations.RECIPE, base=base, dataset=rows)
        held_out = division.split_rows(made, datasets.load(workspace, rows.id), workspace)[1]
        some = datasets.preview(workspace, rows.id, 0, 50)
        evaluation = datasets.preview(workspace, rows.eval_id, 0, 50) if rows.eval_id else some
    except (DatasetError, OSError, ValueError):
        return None
    n = min(ROWS, held_out)
    read = 0
    if evaluation and some and all(row.get("choices") for row in evaluation):
        example, question = (sum(map(_characters, found)) / len(found) for found in (some, evaluation))
        read = round(n * (2 * question + shots * example))
    return speeds.of_rows(workspace, device, described.ref, described.parameters, speeds.AFTER_EXAMPLES, n, read)


def _characters(row: dict[str, Any]) -> int:
    turns = [*(row.get("prompt") or ()), *(row.get("completion") or ())]
    return sum(len(turn.get("content") or "") for turn in turns) + sum(map(len, row.get("choices") or ()))
