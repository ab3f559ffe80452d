"""Runs against each other on the Forgetting page: the trade of gain against what was kept, and the run to pick."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from engine import limits
from engine.benchmarks import library
from engine.forgetting import evaluations, remedies, sweep_plan
from engine.plan import drafts
from engine.report import Comparison, files, frontier, headline, items
from engine.runs import Run, ScoredRun, store
from engine.runs import scored as runs_scored
from engine.spec import RunSpec, schema, settings, tolerances
from engine.words import t
from engine.workspace import Workspace
from pages import _failures, _forgetting_frontier, _forgetting_lines, _ui
from pages import _forgetting_tables as tables
from pages._forgetting_frontier import Trade

CHOSEN = "compared_runs"
# As many as have lines that can be told apart; and of an address no more is read than names of so many.
MOST_COMPARED, MOST_LETTERS = _forgetting_lines.MOST_LINES, 1_000
MOST_LISTED = 200


class _Marked(NamedTuple):
    """Runs that differ only in their seed, by what they have in common, and the mark of every run."""

    groups: dict[str, list[str]]
    marks: dict[str, _forgetting_lines.Mark]


def alike(workspace: Workspace, scored: list[Run], run_id: str | None) -> list[str]:
    """Return the scored trainings on the same rows and base as a run, itself among them, newest first."""
    trained = {run.id: store.load_spec(workspace, run.id) for run in scored}
    trained = {name: one for name, one in trained.items() if one.kind == "train"}
    own = trained.get(run_id or "") or next(iter(trained.values()), None)
    if own is None:
        return []
    return [name for name, one in trained.items() if one.dataset.id == own.dataset.id and one.base.ref == own.base.ref]


def others(workspace: Workspace, scored: list[Run], run_id: str) -> int:
    """Return how many other runs of the same rows and base were scored."""
    same = alike(workspace, scored, run_id)
    return len(same) - 1 if run_id in same else 0


def show(workspace: Workspace, scored: list[Run], run_id: str | None, runs: Sequence[Run]) -> None:
    """Let a person pick runs, and show where those that were scored stand, and the losses and settings of all. `runs` are
    all there are, newest first."""
    is_scored = {run.id for run in scored}
    names = tables.names(run for run in runs[:MOST_LISTED] if run.id in is_scored or _trains(workspace, run))
    usual = [one for one in alike(workspace, scored, run_id) if one in names]
    if len(names) < 2:
        _nothing(workspace, scored, usual, runs)
        return
    if CHOSEN not in st.session_state:
        st.session_state[CHOSEN] = (_asked(names) or usual)[:MOST_COMPARED]
    st.session_state[CHOSEN] = [one for one in st.session_state[CHOSEN] if one in names]
    left, right = st.columns([5, 1], vertical_alignment="bottom")
    chosen = left.multiselect(
        t("Runs"), list(names), format_func=lambda i: names[i], key=CHOSEN, max_selections=MOST_COMPARED,
        help=t("At first: all on the same rows and base."), placeholder=t("Choose two or more"),
    )  # fmt: skip
    _address(chosen)
    if len(chosen) < 2 and len(usual) != 1:
        st.info(
            t("Choose two runs or more. Another run on the same rows, with other settings, is what to compare with.")
        )
        return
    if len(chosen) < 2:
        _nothing(workspace, scored, usual, runs)
        return
    compared = _read(workspace, [one for one in chosen if one in is_scored], names, runs)
    shown = [one for one in chosen if one in compared or one not in is_scored]
    specs = {one: compared[one].spec if one in compared else store.load_spec(workspace, one) for one in shown}
    groups = _recipes(specs)
    marks = _forgetting_lines.marked(groups.values())
    if without := [f"{names[one]} ({marks[one].text})" for one in shown if one not in compared]:
        told = ", ".join(without)
        st.caption(_ui.say("Not scored, so only their losses and settings stand below: {names}.", names=told))
    if len(compared) > 1:
        scored_groups = {label: [one for one in group if one in compared] for label, group in groups.items()}
        _scored(workspace, compared, names, _Marked(scored_groups, marks), right, run_id)
    else:  # else its list says what the letters stand for
        _ui.bullets(t("{name}: {text}", name=mark.text, text=names[one]) for one, mark in marks.items())
    if len(shown) > 1:
        _forgetting_lines.show(workspace, marks)
        _link(chosen)


def _trains(workspace: Workspace, run: Run) -> bool:
    kinds = (evaluations.RECIPE.name, sweep_plan.RECIPE.name)
    return run.recipe not in kinds and store.load_spec(workspace, run.id).kind == "train"


def _scored(
    workspace: Workspace, compared: dict[str, ScoredRun], names: dict[str, str], marked: _Marked, place: DeltaGenerator,
    run_id: str | None,
) -> None:  # fmt: skip
    """Show the trade of gain against what was kept, and every change."""
    trades = _trades(compared, names, marked, place)

    def look(picked: frontier.Point) -> None:
        if len(picked.runs) == 1 and picked.runs[0] != run_id:
            st.button(t("Look at it"), key="look_at_picked", on_click=_look_at, args=(picked.runs[0],), type="primary")

    _forgetting_frontier.trade(trades, "compare", look)
    with st.expander(t("Every change, side by side")):
        lines = {one: found.rows for one, found in compared.items()}
        specs = {one: found.spec for one, found in compared.items()}
        texts = {one: mark.text for one, mark in marked.marks.items()}
        beside = _beside(_comparable(lines, specs), texts, library.titles(workspace))
        st.dataframe(beside, hide_index=True, alt=t("Changes of each run"))
        st.caption(t("Change of each run against its base, with the 95 % interval."))
        _downloads([one.point for one in trades])


def _asked(names: Mapping[str, str]) -> list[str]:
    """Return the runs that the address names, as far as they are here; it is never more than looked up."""
    named = st.query_params.get("runs", "")[:MOST_LETTERS].split(",")
    return [one for one in dict.fromkeys(named) if one in names]


def _address(chosen: Sequence[str]) -> None:
    """Let the address hold what is compared, so that a refresh or a link opens it again."""
    st.query_params["view"] = "compare"
    if chosen:
        st.query_params["runs"] = ",".join(chosen)
    else:
        st.query_params.pop("runs", None)


def _link(chosen: Sequence[str]) -> None:
    """Offer the address of this view to be copied, folded, for it is long. Not in a demo, where it would open nothing for
    others, or all."""
    if limits.on() or not st.context.url:
        return
    address = st.context.url.partition("?")[0]
    with st.expander(t("A link to this comparison, for whoever has this home")):
        st.code(f"{address}?view=compare&runs={','.join(chosen)}", language=None, wrap_lines=True)


def _nothing(workspace: Workspace, scored: list[Run], usual: Sequence[str], runs: Sequence[Run]) -> None:
    """Say that there is nothing to compare with yet, with the click that makes it: a run again with one thing changed."""
    if not usual:
        _ui.empty(t("Two runs are needed, on the same rows and base."), "train", t("Start a run"))
        return
    found = runs_scored.of(workspace, usual[0], runs)
    ways = remedies.of(found.spec, workspace)
    change = ways[0].title if ways else t("Another seed")
    st.info(
        _ui.say(
            "Two runs are needed to compare. Run {name} again with one thing changed, and both stand here: {change}.",
            name=found.name, change=change,
        )
    )  # fmt: skip
    if st.button(t("Set that run up"), type="primary", icon=":material/arrow_forward:", key="empty_state"):
        if ways:
            made = remedies.draft(found, ways[0])
        else:
            told = t("{name}, with {change}", name=found.name, change=t("another seed"))
            changes = {"train.seed": found.spec.train.seed + 1}
            made = drafts.of_spec(workspace, found.spec, came_from=told, changes=changes)
        _ui.go("train", draft=drafts.save(workspace, made))


def _read(
    workspace: Workspace, chosen: Sequence[str], names: dict[str, str], runs: Sequence[Run]
) -> dict[str, ScoredRun]:
    """Return the runs that can be compared; of the others it is said why not."""
    compared = {}
    for one in chosen:
        try:
            found = runs_scored.of(workspace, one, runs)
            found.spec  # noqa: B018 - read now, so that what is broken is said here
        except (OSError, ValueError) as error:
            st.error(_ui.say("{name} cannot be compared: {reason}", name=names[one], reason=error))
            continue
        if found.rows:
            compared[one] = found
    return compared


def _trades(
    compared: dict[str, ScoredRun], names: dict[str, str], marked: _Marked, place: DeltaGenerator
) -> list[Trade]:  # fmt: skip
    """Return where runs stand, with the mark of each; seeds of one recipe as one point, and steps on the way, as chosen."""
    measure = headline.common_measure(found.rows for found in compared.values())
    points = [frontier.point(names[one], found.rows, found.chance, measure) for one, found in compared.items()]
    groups = {label: group for label, group in marked.groups.items() if group}
    walked = {one: _along(found, measure) for one, found in compared.items()}
    has_seeds, has_ways = any(len(group) > 1 for group in groups.values()), any(walked.values())
    options = place.popover(t("Options")) if has_seeds or has_ways else place
    if has_seeds and options.toggle(t("Runs that differ only in their seed are one point"), value=True, key="by_seed"):
        by_run = {point.runs[0]: point for point in points}
        points = [
            frontier.over_seeds(
                names[group[0]] if len(group) < 2 else t("{name} ({n} seeds)", name=label, n=len(group)),
                [by_run[one] for one in group],
            )
            for label, group in groups.items()
        ]
    if has_ways and options.toggle(
        t("With the points along each run"), value=True, key="with_along",
        help=t("Runs that were scored on their way; each step is a point, joined by a line."),
    ):  # fmt: skip
        shown = {point.runs[0] for point in points if len(point.runs) == 1}
        for one, steps in walked.items():
            if one in shown and steps:  # its end is the last of them
                points = [point for point in points if point.runs != [one]] + steps
    points = frontier.frontier(points)
    ends = {run: point for point in points for run in point.runs}  # of the steps on a way the last
    trades = []
    for one in points:
        mark = marked.marks[one.runs[0]]
        told = mark.letter if len(one.runs) > 1 else mark.text
        trades.append(Trade(one, told if ends[one.runs[0]] is one else "", mark.colour))
    return trades


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


def _comparable(
    lines: Mapping[str, Sequence[Comparison]], specs: dict[str, RunSpec]
) -> Mapping[str, Sequence[Comparison]]:
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
    by_recipe: dict[str, list[RunSpec]] = defaultdict(list)
    for one in specs:
        by_recipe[one.recipe.name].append(one)
    found = {path for some in by_recipe.values() for path, _ in store.differing(some)}
    return [path for path in settings.fields() if path in found - {"train.seed", "train.threads"}]


def _beside(
    lines: Mapping[str, Sequence[Comparison]], names: Mapping[str, str], titled: dict[str, str]
) -> pd.DataFrame:
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
