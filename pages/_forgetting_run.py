"""One run on the Forgetting page: what it gained and lost, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from engine.benchmarks import library
from engine.export import artifacts
from engine.forgetting import evaluations, examples, remedies, stages, summary
from engine.models import bases
from engine.plan import drafts
from engine.report import Comparison, frontier, headline, items, statistics, verdicts
from engine.runs import Run, ScoredRun
from engine.runs import scored as runs_scored
from engine.spec import OBJECTIVES
from engine.words import t
from engine.workspace import Workspace
from pages import (
    _failures,
    _forgetting_ask,
    _forgetting_blind,
    _forgetting_chart,
    _forgetting_examples,
    _forgetting_frontier,
    _forgetting_quantised,
    _forgetting_questions,
    _forgetting_recover,
    _forgetting_report,
    _theme,
    _ui,
    _use,
)
from pages import _forgetting_tables as tables


def show(workspace: Workspace, run_id: str, runs: Sequence[Run], others: int = 0) -> None:
    """Show one run, from its items alone: what it comes to first, all else in folds. `runs` are all there are, `others`
    how many stand on the same rows."""
    try:
        scored = runs_scored.of(workspace, run_id, runs)
        beside = examples.beside(scored, runs)
        by_itself = [] if scored.rows else runs_scored.alone(scored.folder)
    except (OSError, ValueError) as error:
        st.error(_ui.say("The scores of this run cannot be compared: {reason}", reason=error))
        return
    run_spec, objective, titled = scored.spec, OBJECTIVES[scored.spec.objective], library.titles(workspace)
    judged, ways = scored.judged(titled), summary.to_try(scored)
    if scored.rows:
        _first(scored, judged, titled, beside, ways, others)
    elif by_itself:
        tables.alone(by_itself, titled)
    _forgetting_recover.fold(scored, titled)
    if ways:
        _ui.fold(t("Train it again with one thing changed"), "again_fold", lambda: _what_to_do(scored, ways))
    if not objective.is_judge:
        _forgetting_blind.show(scored)
    if scored.rows:
        _ui.fold(t("Every score and question"), "figures_fold", lambda: _figures(scored, judged, titled, runs))
    _forgetting_quantised.fold(scored, titled)
    if _forgetting_examples.can_be_asked(workspace, run_spec):
        title = t("Should you tune at all? The base with examples in its context")
        _ui.fold(title, "examples_fold", lambda: _examples(scored, beside))
    if not objective.is_judge:
        _forgetting_ask.show(scored, titled)
    if scored.rows:
        title = t("Figures and report, as files")
        _ui.fold(title, "report_fold", lambda: _forgetting_report.downloads(scored, judged, titled))
    if not ways:  # else their fold leads there
        _ui.next_step("train", t("Next: train again, with other settings"), is_first=False)


def _examples(scored: ScoredRun, beside: examples.Beside | None) -> None:
    if beside is not None:
        st.markdown(_ui.plain(beside.sentence))
    _forgetting_examples.show(scored.workspace, scored.spec)


def _first(
    scored: ScoredRun, judged: list[verdicts.Judged], titled: dict[str, str], beside: examples.Beside | None,
    ways: list[remedies.Remedy], others: int,
) -> None:  # fmt: skip
    """The first screen: a headline, three sentences, what to do next, and one chart in two halves."""
    found = summary.of(scored, ways)
    st.header(_ui.plain(found.headline))
    told = ((t("Gained"), found.gained), (t("Lost"), found.lost), (t("What to do"), found.to_do))
    st.markdown("  \n".join(_ui.say("**{name}**: {text}", name=title, text=text) for title, text in told))
    with st.container(horizontal=True):
        _button(scored, found.action, remedies.best(ways) if found.action == "remedy" else None)
        can_chat = scored.spec.kind != "evaluate" and not OBJECTIVES[scored.spec.objective].is_judge
        if can_chat and found.action != "chat" and st.button(t("Ask it"), icon=":material/chat:", key="ask_it"):
            _chat(scored)
        made = artifacts.made_by(scored.folder)
        if (
            found.action != "use"
            and made is not None
            and st.button(t("Use it"), icon=":material/download:", key="use_it")
        ):
            _use_it(scored)
        label = t("Compare with {n} others", n=others) if others > 1 else t("Compare with another")
        st.button(_ui.plain(label), icon=":material/compare_arrows:", key="compare_it", on_click=_compare)
    panels = _forgetting_chart.panels(scored.rows, judged, titled, beside)
    columns = st.columns(len(panels), gap="medium") if panels else ()
    for number, (column, panel) in enumerate(zip(columns, panels, strict=True)):
        with column:
            st.markdown(f"**{_ui.plain(panel.title)}**")
            st.plotly_chart(_ui.figure(panel.figure), key=f"changes_{number}", config=_theme.STILL, alt=panel.told)
    _ui.toy_note(bases.describe(scored.spec.base.ref, scored.workspace))


def _chat(scored: ScoredRun) -> None:
    _ui.choose("run", scored.run_id)
    _ui.go("chat", run=scored.run_id)


def _use_it(scored: ScoredRun) -> None:
    _use.open_on(scored.run_id)
    _ui.go("runs", run=scored.run_id)


@_failures.kept
def _compare() -> None:
    """Open the view of several runs; before the page runs, since its switch is drawn first."""
    st.session_state["forgetting_view"] = "compare"


@_failures.kept
def _look_at(run_id: str) -> None:
    """Open another run's report; before the page runs, since the list of runs is drawn first."""
    st.session_state["scored_run"] = run_id


def _button(scored: ScoredRun, action: headline.Action, remedy: remedies.Remedy | None) -> None:
    """The one button that the last sentence comes to."""
    if remedy is not None and (there := remedy.there) is not None:
        # with a key of its own: under that of the other report's button this click would be that one's
        st.button(
            _ui.plain(t("Look at {name}", name=there.name)), type="primary", icon=":material/arrow_forward:",
            key="to_do_there", on_click=_look_at, args=(there.id,),
        )  # fmt: skip
        return
    words = {
        "again": t("Train it again"), "ask": t("Ask it general questions"), "compare": t("Compare the answers"),
        "chat": t("Chat with it and its base"),
        "recover": t("Recover what it lost") if scored.spec.recover is None else t("Look at the whole way"),
        "remedy": remedy.title if remedy is not None else "",
        "use": t("Use it"),
    }  # fmt: skip
    if not st.button(_ui.plain(words[action]), type="primary", icon=":material/arrow_forward:", key="to_do"):
        return
    if action == "use":
        _use_it(scored)
    elif action == "chat":
        _chat(scored)
    elif action == "recover":
        origin = scored.spec.recover
        _forgetting_recover.look(scored.run_id if origin is None else origin.run)
    elif action in ("again", "remedy"):
        if remedy is not None:
            made = remedies.draft(scored, remedy)
        else:
            made = drafts.of_spec(scored.workspace, scored.spec, came_from=t("The same as {name}", name=scored.name))
        _ui.go("train", draft=drafts.save(scored.workspace, made))
    else:
        st.session_state[{"ask": _forgetting_ask.FOLD, "compare": _forgetting_blind.FOLD}[action]] = True
        st.rerun()


def _figures(scored: ScoredRun, judged: list[verdicts.Judged], titled: dict[str, str], runs: Sequence[Run]) -> None:
    """All that was measured: the scores, the single questions, the stages, the way there, how it was asked."""
    line = stages.of(scored, runs)
    line = line if line is not None and line.changes else None
    walked = scored.spec.kind == "train" and OBJECTIVES[scored.spec.objective].is_scored_on_its_way
    staged = [t("Stage by stage")] if line is not None else []
    on_the_way = [t("Along the run")] if walked else []
    first = [t("Scores"), t("Question by question")]
    last = [t("Every figure"), t("How it was asked")]
    places = iter(st.tabs(first + staged + on_the_way + last))
    with next(places):
        _scores(scored, judged, titled)
    with next(places):
        _forgetting_questions.show(scored, titled)
    if line is not None:
        with next(places):
            st.caption(t("What each cost, and all since {base}", base=_ui.plain(line.first)))
            st.dataframe(
                tables.stages(line, titled),
                hide_index=True,
                alt=t("Scores before and after each stage of this line"),
            )
            _ui.bullets(map(str, line.notes))
    if walked:
        with next(places):
            _along(scored)
    with next(places):
        _every(scored, judged, titled)
    with next(places):
        _forgetting_questions.settings(scored, titled)


def _scores(scored: ScoredRun, judged: list[verdicts.Judged], titled: dict[str, str]) -> None:
    whole = [row for row in scored.rows if row.family in (items.ALL, items.SEEN, items.UNSEEN)]
    st.table(_ui.cells(tables.short(whole, judged, titled)), hide_index=True, border="horizontal")
    _ui.bullets([*(one.sentence for one in judged), *scored.about])
    _ui.rounding_note(bases.describe(scored.spec.base.ref, scored.workspace))
    _distance(whole)


def _every(scored: ScoredRun, judged: list[verdicts.Judged], titled: dict[str, str]) -> None:
    """Per family and subject, with intervals, p-values and what could have been missed."""
    rows = scored.rows
    asked = list(dict.fromkeys(row.benchmark for row in rows))
    chosen = st.multiselect(
        t("Only these questions"),
        asked,
        format_func=lambda b: tables.name(b, titled),
        key="families_of",
        placeholder=t("all"),
    )
    shown = [row for row in rows if not chosen or row.benchmark in chosen]
    st.dataframe(tables.table(shown, judged, titled, every=True), hide_index=True, alt=t("Scores per family"))
    st.caption(
        _ui.say(
            "Change: tuned minus base on the same questions. Intervals: Bonett and Price 2012 for accuracies, "
            "a bootstrap over rows for losses. A real drop is beyond noise after Holm's correction over all "
            "benchmarks, and at least 1 point, or {nats} of a loss (nats per token). Of fewer than {least} questions "
            "nothing is said.",
            nats=verdicts.MARGIN_NATS,
            least=statistics.LEAST_QUESTIONS,
        )
    )


def _distance(rows: list[Comparison]) -> None:
    """How far it moved from the base, and its perplexity on general text."""
    distance = next((row for row in rows if row.benchmark == items.KL), None)
    if distance is not None:
        st.caption(
            t(
                "How far it moved from the base on the new task: {nats} (KL, in nats per token). Of runs on the same rows "
                "the one that moved further usually forgot more (arXiv 2509.04259); between other rows the figure says "
                "nothing.",
                nats=f"{distance.tuned:.3f}",
            )
        )
    for row in rows:
        if row.benchmark == items.GENERAL_TEXT:
            base, tuned = (f"{verdicts.perplexity(loss):.1f}" for loss in (row.base, row.tuned))
            if base != tuned:
                st.caption(_ui.say("Perplexity on general text: {base} → {tuned}.", base=base, tuned=tuned))
            else:
                st.caption(_ui.say("Perplexity on general text: {base}, before and after.", base=base))


def _along(scored: ScoredRun) -> None:
    """Show gain against retention step by step, or offer the run again, scored on its way, with what that costs."""
    try:
        points = frontier.frontier(evaluations.along(scored))
    except (OSError, ValueError) as error:
        st.error(_ui.say("The points along this run cannot be compared: {reason}", reason=error))
        return
    if points:
        _points(scored, points)
        return
    n, cost = evaluations.POINTS, evaluations.along_cost(scored)
    st.write(
        _ui.say(
            "Its checkpoints were removed when it had finished. Train it again, scored {n} times on the way, and each "
            "of these steps is a point of gain against what was kept.",
            n=n,
        )
    )
    if cost is not None:
        st.write(
            _ui.say(
                "It takes about {time}: the run's {run}, and {n} times {scoring} for scoring.",
                time=_ui.duration(cost.run_s + n * cost.scoring_s), run=_ui.duration(cost.run_s), n=n,
                scoring=_ui.duration(cost.scoring_s),
            )
        )  # fmt: skip
    if st.button(t("Same run, scored on its way"), key="along_again"):
        _ui.go("train", draft=drafts.save(scored.workspace, evaluations.along_draft(scored)))


def _points(scored: ScoredRun, points: list[frontier.Point]) -> None:
    """The points of a run that was scored on its way, and a shorter run like the one that is picked."""
    picked = _forgetting_frontier.trade(_forgetting_frontier.numbered(points), "along")
    st.caption(
        t(
            "Only the weights of the end are kept. A run of fewer steps comes near an earlier point; its rate falls "
            "sooner, so measure it."
        )
    )
    last = max(one.step or 0 for one in points)
    if (
        picked is not None
        and picked.step is not None
        and picked.step < last
        and st.button(_ui.say("Same run, {n} steps", n=picked.step), key="shorter_run")
    ):
        told = t("{name}, with {change}", name=scored.name, change=t("{n} steps", n=picked.step))
        made = drafts.of_spec(scored.workspace, scored.spec, came_from=told, changes={"train.max_steps": picked.step})
        _ui.go("train", draft=drafts.save(scored.workspace, made))


def _what_to_do(scored: ScoredRun, found: list[remedies.Remedy]) -> None:
    """Offer the same run with one thing changed, each with the effect to expect and its source."""
    columns = st.columns(min(3, len(found)))
    for index, remedy in enumerate(found):
        with columns[index % len(columns)].container(border=True):
            st.markdown(f"**{_ui.plain(remedy.title)}**")
            st.caption(_ui.plain(remedy.measured))
            st.caption(_ui.plain(f"{remedy.effect} ({remedy.source})"))
            if (there := remedy.there) is not None:
                label = _ui.plain(t("Trained already: {name}", name=there.name))
                st.button(label, key=f"there_{remedy.name}", on_click=_look_at, args=(there.id,))
            elif st.button(t("Same run with this"), key=f"more_{remedy.name}"):
                made = remedies.draft(scored, remedy)
                _ui.go("train", draft=drafts.save(scored.workspace, made))
    st.caption(
        t(
            "In the order of what was measured: points of general accuracy, here or on the starter. What helped by less "
            "than a point is left out."
        )
    )
    st.caption(t("When it has finished, both stand side by side under “Runs against each other”."))
