"""Runs: the list, and one run as it goes: loss, time left, answers, log. Everything is read from the run's folder."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import streamlit as st

from engine import events, limits
from engine.estimate import machine_choices, memory
from engine.forgetting import adoption, recovery
from engine.models import bases
from engine.plan import chains, drafts, tries
from engine.runs import follow, store
from engine.spec import OBJECTIVES, RunSpec, settings
from engine.words import joined, t
from pages import _charts, _failures, _forgetting_recover, _run_list, _run_parts, _ui, _use

# A run is looked at each second in its first minutes, and then a little less often; what changes rarely, less often still.
REFRESH_S, LATER_REFRESH_S, DETAILS_REFRESH_S = 1.0, 2.0, 5.0
YOUNG_S = 180.0
LIST_LENGTH = 500

_ui.heading(t("Runs"), t("Every run goes on by itself: you may close this page, or even the server, and come back."))

workspace = _ui.workspace()


def _progress(run_id: str, state: str, found: list[Any], steps: list[events.Step]) -> None:
    last = steps[-1] if steps else None
    _run_parts.how_far(workspace, run_id, state, found, last)
    if store.load_spec(workspace, run_id).kind in ("adopted", "recover"):  # it takes no steps
        return
    a, b, c, d = st.columns(4)
    rate = next((e.tokens_per_s for e in reversed(steps) if e.tokens_per_s), None)
    a.metric(t("Step"), f"{last.step:,} / {last.total_steps:,}" if last else "–")
    b.metric(t("Loss"), f"{last.loss:.3f}" if last and last.loss is not None else "–")
    c.metric(t("Tokens per second"), f"{rate:,.0f}" if rate else "–")
    d.metric(t("Memory"), f"{last.memory_mib:,.0f} MiB" if last and last.memory_mib else "–")


def _answers(samples: list[events.Sample]) -> None:
    """Show how the answers to the fixed prompts change: one table, a column per prompt."""
    if not samples:
        return
    st.subheader(t("Answers as it trains"))
    table: dict[str, dict[int, str]] = {}
    for sample in samples:
        table.setdefault(sample.prompt, {})[sample.step] = sample.text
    frame = pd.DataFrame(table).sort_index(ascending=False)
    frame.index.name = t("step")
    st.dataframe(frame, alt=t("Answers to three fixed prompts at several steps"))


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
        name = {"plain": "transformers + peft", "unsloth": "Unsloth"}.get(str(backend.value), str(backend.value))
        st.caption(_ui.say("Trained with {backend}: {reason}.", backend=name, reason=backend.reason))
    named = {path: t(settings.fields()[path].title) for path in choices if path in settings.fields()}
    named[machine_choices.FREED_MEMORY] = t("Freed memory")
    with st.expander(t("How it runs on this machine")):
        st.dataframe(
            pd.DataFrame(
                [
                    {
                        t("setting"): named.get(path, path),
                        t("value"): str(one.value),
                        t("why"): str(one.reason),
                    }
                    for path, one in choices.items()
                ]
            ),
            hide_index=True,
            alt=t("What the machine decided for this run, and why"),
        )
        st.caption(
            t("Decide it yourself under Advanced on the Train page, or with --set, as in machine.backend=plain.")
        )


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
    steps, evals = found.steps, found.evals
    objective = OBJECTIVES[store.load_spec(workspace, run_id).objective]
    _run_parts.silence(state, found.all)
    _run_parts.machines(workspace, run_id, state)
    _progress(run_id, state, found.others, steps)
    watched = next((event for event in reversed(found.others) if isinstance(event, events.Watched)), None)
    if steps and objective.loss_falls:
        st.echarts_chart(
            _charts.loss(steps, evals, t(objective.loss_unit), watched),
            height=300,
            key=f"loss_{run_id}",
            alt=t("Loss on trained rows, on held-out rows and on general text over the steps"),
        )
    if steps:
        rewards = None if objective.writes_answers else _charts.rewards(steps, evals)
        if objective.writes_answers:
            for number, chart in enumerate(_charts.ppo(steps)):
                alt = [
                    t("Reward and KL to the start over the updates"),
                    t("Clipped share and entropy over the updates"),
                ]
                st.echarts_chart(chart, height=300, key=f"ppo_{number}_{run_id}", alt=alt[number])
        if rewards is not None:
            st.echarts_chart(
                rewards,
                height=300,
                key=f"rewards_{run_id}",
                alt=t("Rewards of better and worse answers, and the share in the right order, over the steps"),
            )
    if state in store.LIVE:
        _run_parts.foreseen(workspace, run_id, found.all)
    for event in found.others:
        if isinstance(event, events.Log) and event.level in ("warning", "result"):
            text = limits.unnamed(event.text, code=True)
            (st.warning if event.level == "warning" else st.info)(_ui.plain(text))


def _show_details(run_id: str) -> None:
    """What it took, its answers, the machine's choices, the log."""
    found = _run_parts.followed(workspace, run_id).others
    _measured(found)
    _answers([e for e in found if isinstance(e, events.Sample)])
    if store.load_spec(workspace, run_id).kind not in ("adopted", "recover"):
        _how_it_runs([e for e in found if isinstance(e, events.Started)])
    with st.expander(t("Log")):
        for event in found:
            if isinstance(event, events.Started):
                st.caption(_ui.say("Device {device}: {reason}", device=event.device, reason=event.reason))
            if isinstance(event, events.Log):
                st.caption(_ui.plain(limits.unnamed(event.text, code=True)))
        st.code(limits.unnamed(follow.log_tail(workspace.run_dir(run_id)), code=True) or " ", language=None)


def _recovery(run_id: str, spec: RunSpec, status: str) -> None:
    """Lead to the way back toward the base, from a run that has one and from one that goes it."""
    if spec.recover is not None:
        if store.exists(workspace, spec.recover.run) and st.button(
            t("Look at the whole way"), icon=":material/undo:", key="to_way"
        ):
            _forgetting_recover.look(spec.recover.run)
    elif status == "finished" and not recovery.problems(workspace, run_id):
        label = t("Go back toward the base, without training")
        if st.button(_ui.plain(label), icon=":material/undo:", key="to_way"):
            _forgetting_recover.look(run_id)


def _run(run_id: str) -> None:
    """One run: what can be done with it, how it goes or ended, and what comes next."""
    run = store.describe(workspace, run_id)
    title = f"{run.name} · {_ui.status_word(run.status)}"
    st.subheader(_ui.plain(title), icon=_ui.STATUS_ICONS.get(run.status))
    spec = store.load_spec(workspace, run_id)
    base, adopted = bases.short(run.base, workspace), spec.kind == "adopted"
    made = (
        t("tuned elsewhere, on {base}", base=base) if adopted else t("{recipe} on {base}", recipe=run.recipe, base=base)
    )
    st.caption(_ui.plain(f"{run.id} · {made}"))
    _run_parts.tab_title(run)
    if store.nothing_trained(workspace, run_id):
        _run_parts.untrained(workspace, run)
        _show_details(run_id)
        return
    _run_parts.actions(workspace, run)
    if adopted:
        _ui.bullets(adoption.known(workspace, run_id))
    if run.status in store.LIVE:
        _live(run_id)
    else:
        _run_parts.outcome(workspace, run_id, store.summary(workspace, run_id))
        _show_moving(run_id, run.status)
        _show_details(run_id)
    whole = tries.all_rows(workspace, run_id)
    if whole is not None and st.button(t("Now all rows"), type="primary", icon=":material/dataset:", key="all_rows"):
        _ui.go("train", draft=drafts.save(workspace, whole))
    chain = chains.of_run(workspace, run_id)
    if chain is not None and st.button(_ui.say("Its chain: {name}", name=chain.name), key="to_chain"):
        _ui.go("train", chain=chain.id)
    _recovery(run_id, spec, run.status)
    if run.status == "finished":
        _use.show(workspace, run_id)


all_runs = store.list_every(workspace)[:LIST_LENGTH]
if not all_runs:
    _ui.empty(t("No runs yet. Start one; with the starter it takes a minute."), "train", t("Go to Train"))
else:
    wanted = _ui.current("run")
    _run_list.queue(workspace)
    listed = {run.id: run for run in all_runs}
    if wanted and wanted not in listed and not _ui.known_run(wanted):
        st.warning(t("The run this link names is not here."))
        _ui.choose("run", None)
    if len(all_runs) > 1 or not wanted:
        _run_list.table(workspace, all_runs)
    run_id = _ui.current("run") or all_runs[0].id
    if _ui.current("run") != run_id:
        _ui.choose("run", run_id)
    strange = store.unreadable(workspace, run_id)
    if strange is not None:
        _run_parts.unreadable(workspace, store.line(workspace, run_id), strange)
    else:
        _run(run_id)
    readable = [run for run in all_runs if not run.note]
    if len(readable) > 1:
        _run_list.compare(workspace, readable)
    _run_list.room(workspace)
    ended = strange is not None or store.status(workspace, run_id) not in store.LIVE
    if not ended or (strange is None and store.summary(workspace, run_id).status not in ("stopped", "interrupted")):
        _ui.next_step(
            "forgetting",
            t("Next: what it gained and what it forgot"),
            reason=None if ended else t("The scores come when the run has ended."),
        )
