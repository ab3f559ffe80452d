"""Runs: the list, and one run as it goes: loss, time left, answers, log. Everything is read from the run's folder."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import streamlit as st

from engine import events, limits
from engine.estimate import machine_choices, memory
from engine.forgetting import adoption
from engine.plan import chains, drafts, tries
from engine.runs import Run, follow, store
from engine.runs import scored as runs_scored
from engine.spec import OBJECTIVES, RunSpec, settings
from engine.words import joined, t
from pages import _failures, _run_answers, _run_card, _run_list, _run_parts, _run_table, _run_timeline, _ui, _use

# A run is looked at each second in its first minutes, and then a little less often; what changes rarely, less often still.
REFRESH_S, LATER_REFRESH_S, DETAILS_REFRESH_S = 1.0, 2.0, 5.0
YOUNG_S = 180.0
LIST_LENGTH = 500

_ui.heading(t("Runs"))

workspace = _ui.workspace()


def _measured(found: list[Any]) -> None:
    """Show what the run took beside what was estimated."""
    measured = next((event for event in reversed(found) if isinstance(event, events.Measured)), None)
    if measured is None:
        return
    peak = memory.size_words(measured.peak_bytes)
    words = {"peak": peak, "baseline": memory.size_words(measured.baseline_bytes), "tokens": measured.longest_tokens}
    text = t("Memory of training at its peak: {peak}; longest row {tokens} tokens.", **words)
    if measured.baseline_bytes:
        text = t(
            "Memory of training at its peak: {peak}, of which {baseline} for the libraries; longest row {tokens} tokens.",
            **words,
        )
    if measured.estimated_bytes:
        share = f"{100 * (measured.estimated_bytes / measured.peak_bytes - 1):+.0f}"
        told = t(
            "The formula said {estimated} ({share} %). The next estimate on this machine goes by this run.",
            estimated=memory.size_words(measured.estimated_bytes),
            share=share,
        )
        text = joined(text, told)
    st.caption(_ui.plain(text))


def _how_it_runs(started: list[events.Started]) -> None:
    """Show what the machine decided where the settings leave it open, with the reasons."""
    if not started or not started[-1].choices:
        return
    choices = {one.setting: one for one in started[-1].choices}
    backend = choices.get("machine.backend")
    if backend is not None:
        name = settings.value_words("machine.backend", str(backend.value))
        st.caption(_ui.say("Trained with {backend}: {reason}.", backend=name, reason=backend.reason))
    named = {path: t(settings.fields()[path].title) for path in choices if path in settings.fields()}
    named[machine_choices.FREED_MEMORY] = t("Freed memory")
    with st.expander(t("How it runs on this machine")):
        st.dataframe(
            pd.DataFrame(
                [
                    {
                        t("setting"): named.get(path, path),
                        t("value"): settings.value_words(path, str(one.value)),
                        t("why"): str(one.reason),
                    }
                    for path, one in choices.items()
                ]
            ),
            hide_index=True,
            alt=t("What the machine decided for this run, and why"),
        )
        st.caption(t("Decide it yourself under Settings on Train, or with --set, as in machine.backend=plain."))


def _live(run_id: str) -> None:
    """Follow a run. Each part costs the server processor time whenever it is shown anew, as long as somebody watches."""
    found, now_s = _run_parts.followed(workspace, run_id), time.monotonic()
    young_until_s = (found.all[0].monotonic_s if found.all else now_s) + YOUNG_S
    _failures.fragment(run_every=REFRESH_S if now_s < young_until_s else LATER_REFRESH_S)(_moving)(
        run_id, young_until_s
    )
    _failures.fragment(run_every=DETAILS_REFRESH_S)(_show_details)(run_id)


def _moving(run_id: str, young_until_s: float) -> None:
    """The part that is looked at most often. Reads the whole page again when the run has ended, or is young no longer."""
    began_s = st.session_state.setdefault(f"watched_{run_id}", time.monotonic())
    run = store.describe(workspace, run_id)
    _run_parts.tab_title(run)
    _show_moving(run_id, run.status)
    if run.status not in store.LIVE or began_s < young_until_s < time.monotonic():
        st.session_state[f"watched_{run_id}"] = time.monotonic()
        st.rerun()


def _show_moving(run_id: str, state: str) -> None:
    """How far it is, the charts, and what wants to be read at once."""
    found = _run_parts.followed(workspace, run_id)
    _run_parts.silence(state, found.all)
    _run_parts.machines(workspace, run_id, state)
    _run_parts.how_far(workspace, run_id, state, found.others, found.steps[-1] if found.steps else None)
    _run_timeline.show(_run_timeline.road(workspace, run_id, state))
    _show_figures(run_id)
    _run_parts.foreseen(workspace, run_id, found.all)


def _show_figures(run_id: str) -> None:
    """The charts, and what the run wants to be read."""
    found = _run_parts.followed(workspace, run_id)
    _run_timeline.panels(run_id, OBJECTIVES[store.load_spec(workspace, run_id).objective], found)
    for event in found.others:
        if isinstance(event, events.Log) and event.level in ("warning", "result"):
            text = limits.unnamed(event.text, code=True)
            (st.warning if event.level == "warning" else st.info)(_ui.plain(text))


def _show_details(run_id: str) -> None:
    """What it took, its answers, the machine's choices, the log."""
    found = _run_parts.followed(workspace, run_id).others
    _run_answers.show([e for e in found if isinstance(e, events.Sample)])
    if store.load_spec(workspace, run_id).kind not in ("adopted", "recover"):
        _how_it_runs([e for e in found if isinstance(e, events.Started)])
    with st.expander(t("Log")):
        for event in found:
            if isinstance(event, events.Started):
                st.caption(_ui.say("Device {device}: {reason}", device=event.device, reason=event.reason))
            if isinstance(event, events.Log):
                st.caption(_ui.plain(limits.unnamed(event.text, code=True)))
        _measured(found)
        st.code(limits.unnamed(follow.log_tail(workspace.run_dir(run_id)), code=True) or " ", language=None)


def _heading(run: Run, spec: RunSpec) -> None:
    """What a run is: its name, its state, and what it was made of."""
    title = f"{run.name} · {_ui.status_word(run.status)}"
    st.header(_ui.plain(title), icon=_ui.STATUS_ICONS.get(run.status))
    of = store.made_of(workspace, run)
    if spec.kind == "adopted":
        told = [t("tuned elsewhere, on {base}", base=of.base)]
    else:
        told = [t("{recipe} on {base}", recipe=of.recipe, base=of.base), of.data]
    st.caption(_ui.plain(" · ".join([part for part in told if part] + [_ui.ago(run.created)])))
    if note := store.note(workspace, run.id):
        st.caption(_ui.plain(note))
    _run_parts.tab_title(run)


def _run(run: Run, runs: list[Run]) -> None:
    """One run: what it came to or how it goes, what can be done with it, and what comes next. `runs` are all there are."""
    spec = store.load_spec(workspace, run.id)
    _heading(run, spec)
    if store.nothing_trained(workspace, run.id):
        _run_parts.untrained(workspace, run)
        _show_details(run.id)
        return
    if spec.kind == "sweep":
        _run_table.children(workspace, run, runs)
    if spec.kind == "adopted":
        _ui.bullets(adoption.known(workspace, run.id))
    if run.status in store.LIVE:
        with st.container(horizontal=True):
            _run_parts.actions(workspace, run)
        _live(run.id)
        reason = t("The scores come when the run has ended.")
        _ui.next_step("forgetting", _to_the_report(), reason=reason, is_first=False, run=run.id)
    else:
        _ended(run, runs, spec)
    whole = tries.all_rows(workspace, run.id)
    if whole is not None and st.button(t("Now all rows"), type="primary", icon=":material/dataset:", key="all_rows"):
        _ui.go("train", draft=drafts.save(workspace, whole))
    chain = chains.of_run(workspace, run.id)
    if chain is not None and st.button(_ui.say("Its chain: {name}", name=chain.name), key="to_chain"):
        _ui.go("train", chain=chain.id)


def _ended(run: Run, runs: list[Run], spec: RunSpec) -> None:
    """A run that goes on no more: its way, what it came to, what can be done with it, and how it went."""
    _run_parts.outcome(workspace, run.id, store.summary(workspace, run.id))
    _run_timeline.show(_run_timeline.road(workspace, run.id, run.status))
    is_done = run.status == "finished"
    if is_done:
        _run_card.show(workspace, run, runs, spec)
    with st.container(horizontal=True):
        if is_done:
            alone = runs_scored.is_alone(workspace.run_dir(run.id))
            label = t("Open the report") if alone else _to_the_report()
            if st.button(label, type="primary", icon=":material/arrow_forward:", key="next_step"):
                _ui.go("forgetting", run=run.id)
            _run_card.buttons(workspace, run, spec)
        _run_parts.actions(workspace, run)
    if is_done:
        _use.show(workspace, run.id)
    _show_figures(run.id)
    _show_details(run.id)


def _to_the_report() -> str:
    return t("Next: what it gained and what it forgot")


def _list(runs: list[Run]) -> None:
    st.write(t("Every run goes on by itself: you may close this page, or even the server, and come back."))
    _run_list.queue(workspace)
    _run_table.show(workspace, runs)
    _run_list.room(workspace)


all_runs = store.list_every(workspace)[:LIST_LENGTH]
listed = {run.id: run for run in all_runs}
wanted = _ui.current("run")
if wanted and wanted not in listed and not _ui.known_run(wanted):
    st.warning(t("The run this link names is not here."))
    _ui.choose("run", None)
    wanted = None
if not wanted and len(all_runs) == 1:
    wanted = all_runs[0].id
    _ui.choose("run", wanted)
if not all_runs:
    _ui.empty(t("No runs yet. Start one; the starter is the fastest to try."), "train", t("Go to Train"))
elif not wanted or st.query_params.get(_run_list.VIEW) == _run_list.LIST:
    _list(all_runs)
else:
    if len(all_runs) > 1:
        _run_list.back(len(all_runs))
    _run_list.queue(workspace)
    problem = store.unreadable(workspace, wanted)
    one = listed.get(wanted) or store.line(workspace, wanted)
    if problem is not None:
        _run_parts.unreadable(workspace, one, problem)
    else:
        _run(one, all_runs)
    if len(all_runs) == 1:
        _run_list.room(workspace)
