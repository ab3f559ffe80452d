"""Runs against each other on the Forgetting page: the trade of gain against what was kept, and the run to pick."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec
import pandas as pd
import streamlit as st

from engine.benchmarks import library
from engine.forgetting import evaluations, sweep_plan
from engine.report import Comparison, files, frontier, headline, items
from engine.runs import Run, ScoredRun, store
from engine.runs import scored as runs_scored
from engine.spec import RunSpec, schema, settings, tolerances
from engine.words import t
from engine.workspace import Workspace
from pages import _failures, _forgetting_frontier, _ui
from pages import _forgetting_tables as tables


def alike(workspace: Workspace, scored: list[Run], run_id: str | None) -> list[str]:
    """Return the scored trainings on the same rows and base as a run, itself among them, newest first."""
    trained = {run.id: store.load_spec(workspace, run.id) for run in scored}
    trained = {name: one for name, one in trained.items() if one.kind == "train"}
    own = trained.get(run_id or "") or next(iter(trained.values()), None)
    if own is None:
        return []
    return [name for name, one in trained.items() if one.dataset.id == own.dataset.id and one.base.ref == own.base.ref]


def show(workspace: Workspace, scored: list[Run], run_id: str | None, runs: Sequence[Run]) -> None:
    """Let a person pick from the scored runs, and show where they stand. `runs` are all there are."""
    names = {run.id: f"{run.name} · {run.id[-6:]}" for run in scored if run.recipe != evaluations.RECIPE.name}
    usual = alike(workspace, scored, run_id)[:30]
    chosen = st.multiselect(
        t("Runs"), list(names), default=[one for one in usual if one in names], format_func=lambda i: names[i],
        key=f"compared_{run_id}", help=t("At first: all on the same rows and base."),
    )  # fmt: skip
    if len(chosen) < 2:
        st.info(
            t("Choose two runs or more. Another run on the same rows, with other settings, is what to compare with.")
        )
        if not chosen:
            return
    lines, compared = {}, {}
    specs = {one: store.load_spec(workspace, one) for one in chosen}
    for one in chosen:
        try:
            found = runs_scored.of(workspace, one, runs)
        except (OSError, ValueError) as error:
            st.error(_ui.say("{name} cannot be compared: {reason}", name=names[one], reason=error))
            continue
        if found.rows:
            lines[one], compared[one] = found.rows, found
    measure = headline.common_measure(lines.values())
    points = [frontier.point(names[one], found.rows, found.chance, measure) for one, found in compared.items()]
    groups = _recipes({one: specs[one] for one in lines})
    if any(len(group) > 1 for group in groups.values()) and st.toggle(
        t("Runs that differ only in their seed are one point"), value=True, key="by_seed"
    ):
        by_run = {point.runs[0]: point for point in points}
        points = [frontier.over_seeds(label, [by_run[one] for one in group]) for label, group in groups.items()]
    walked = {one: _along(found, measure) for one, found in compared.items()}
    if any(walked.values()) and st.toggle(
        t("With the points along each run"), value=True, key="with_along",
        help=t("Runs that were scored on their way; each step is a point, joined by a line."),
    ):  # fmt: skip
        shown = {point.runs[0] for point in points if len(point.runs) == 1}
        for one, steps in walked.items():
            if one in shown and steps:  # its end is the last of them
                points = [point for point in points if point.runs != [one]] + steps
    points = frontier.frontier(points)
    if not points:
        return
    picked = _forgetting_frontier.trade(points, "compare")
    if picked is not None and len(picked.runs) == 1 and picked.runs[0] != run_id:
        st.button(
            _ui.say("Look at {name}", name=picked.name), key="look_at_picked", on_click=_look_at, args=(picked.runs[0],)
        )
    st.subheader(t("Side by side"))
    st.dataframe(
        _beside(_comparable(lines, specs), names, library.titles(workspace)),
        hide_index=True,
        alt=t("Changes of each run"),
    )
    st.caption(t("Change of each run against its base, with the 95 % interval."))
    _downloads(points)


def _downloads(points: list[frontier.Point]) -> None:
    """Offer where the runs stand as files."""
    figures = [msgspec.structs.asdict(point) for point in points]
    with st.container(horizontal=True):
        flat = [{k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in one.items()} for one in figures]
        for label, data, kind in (
            (t("Figures (CSV)"), files.as_csv(flat), "csv"),
            (t("Figures (JSON)"), files.as_json(figures), "json"),
        ):
            st.download_button(_ui.plain(label), data, f"frontier.{kind}", on_click="ignore", key=f"frontier_{kind}")


@_failures.kept
def _look_at(run_id: str) -> None:
    """Open the view of one run; before the page runs, since its switch is drawn first."""
    _ui.choose("run", run_id)
    st.session_state["forgetting_view"] = "run"
    st.session_state.pop("scored_run", None)


def _along(run: ScoredRun, measure: str | None) -> list[frontier.Point]:
    """Return the points along a run; none where they cannot be compared, which the run's own view says."""
    try:
        return evaluations.along(run, measure)
    except (OSError, ValueError):
        return []


def _comparable(lines: dict[str, list[Comparison]], specs: dict[str, RunSpec]) -> dict[str, list[Comparison]]:
    """Return the lines of runs without their distance from the base, unless all were scored on the same rows: it is read on
    a run's own, and says nothing between others."""
    rows = set()
    for one in map(specs.__getitem__, lines):
        chosen = one.dataset
        drawn = (chosen.id, chosen.eval_id, chosen.split_seed, chosen.eval_share, one.evaluate.limit)
        rows.add((*drawn, tolerances.chooses(one.train)))
    if len(rows) < 2:
        return lines
    return {name: [row for row in found if row.benchmark != items.KL] for name, found in lines.items()}


def _recipes(specs: dict[str, RunSpec]) -> dict[str, list[str]]:
    """Group runs that differ in nothing but their seed, under the name of what they have in common."""
    groups: dict[bytes, list[str]] = defaultdict(list)
    for name, one in specs.items():
        train = msgspec.structs.replace(one.train, seed=0, threads=0)
        groups[schema.encode(msgspec.structs.replace(one, train=train))].append(name)
    differing = _differing(list(specs.values()))
    found: dict[str, list[str]] = {}
    for some in groups.values():
        one = specs[some[0]]
        label = sweep_plan.label(one.recipe.name, {path: schema.value_at(one, path) for path in differing})
        while label in found:  # what tells them apart is no setting: keep them apart
            label += " ·"
        found[label] = some
    return found


def _differing(specs: list[RunSpec]) -> list[str]:
    """Return the settings that tell runs of one recipe apart, the seed and the threads aside."""
    found = []
    for path in settings.fields():
        by_recipe: dict[str, set[str]] = defaultdict(set)
        for one in specs:
            by_recipe[one.recipe.name].add(str(schema.value_at(one, path)))
        if path not in ("train.seed", "train.threads") and any(len(values) > 1 for values in by_recipe.values()):
            found.append(path)
    return found


def _beside(lines: Mapping[str, Sequence[Comparison]], names: dict[str, str], titled: dict[str, str]) -> pd.DataFrame:
    """Return a line per benchmark with every run's change beside the others."""
    told: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for run_id, rows in lines.items():
        for row in rows:
            if row.family in (items.ALL, items.SEEN, items.UNSEEN):
                change = f"{tables.number(row, row.change, signed=True)} [{tables.interval(row)}]"
                told[row.benchmark, row.family][names[run_id]] = change
    return pd.DataFrame(
        [
            {
                t("Questions"): tables.name(benchmark, titled),
                t("Part"): tables.family(family),
                **{names[one]: changes.get(names[one], "–") for one in lines},
            }
            for (benchmark, family), changes in told.items()
        ]
    )
