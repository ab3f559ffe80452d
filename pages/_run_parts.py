"""One run of the Runs page: what can be done with it, how it ended, and what would help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from engine import events, limits, peers
from engine.forgetting import foresight, sweep_plan
from engine.plan import drafts, plans, repeat
from engine.runs import Run, checkpoints, failures, follow, lifecycle, store
from engine.words import Problem, joined, t
from engine.workspace import Workspace
from pages import _delete, _run_list, _ui


class Followed:
    """What a session has read of a run's events, in their order; whoever watches reads what is new each second."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self._offset = 0
        self.all: list[Any] = []
        self.steps: list[events.Step] = []
        self.evals: list[events.Eval] = []
        self.others: list[Any] = []

    def read(self) -> None:
        new, self._offset = events.read(self.run_dir, self._offset)
        self.all += new
        self.steps += [event for event in new if isinstance(event, events.Step)]
        self.evals += [event for event in new if isinstance(event, events.Eval)]
        self.others += [event for event in new if not isinstance(event, events.Step | events.Eval)]


def followed(here: Workspace, run_id: str) -> Followed:
    """Return the events of a run so far. Those of the run that was looked at last are kept in the session."""
    run_dir, kept = here.run_dir(run_id), st.session_state.get("followed_run")
    if kept is None or kept.run_dir != run_dir:
        kept = st.session_state["followed_run"] = Followed(run_dir)
    kept.read()
    return kept


def tab_title(run: Run) -> None:
    """Say in the browser's tab how far the run is, so that it can be watched from another one."""
    done = f"{round(100 * run.progress)} % " if run.status in ("running", "stopping") else ""
    st.set_page_config(page_title=f"{done}{_ui.status_word(run.status)} · {run.name}")


def how_far(here: Workspace, run_id: str, state: str, found: list[Any], last: events.Step | None) -> None:
    """Show what a run is doing and how far it is; nothing when it has ended."""
    if state == "queued":
        st.info(_ui.plain(follow.turns(here).get(run_id) or t("About to start.")))
    if state in ("running", "stopping"):
        share = min(1.0, last.step / max(1, last.total_steps)) if last else 0.0
        st.progress(share, text=_ui.plain(follow.doing([*found, *([last] if last else [])])))


def foreseen(here: Workspace, run_id: str, found: list[Any]) -> None:
    """Say where general text will stand at a run's end, as far as its evaluations tell, and how often that was right."""
    ranges = foresight.foretold(store.load_spec(here, run_id), found)
    if not ranges:
        return
    low, high = f"{ranges[-1].low:+.2f}", f"{ranges[-1].high:+.2f}"
    told = t(
        "If it goes on so, its loss on watched general text ends {low} to {high} from the base's.", low=low, high=high
    )
    kept = f"foreseen_{run_id}"  # all runs are read for it, and the page is shown anew each second
    if kept not in st.session_state:
        st.session_state[kept] = foresight.tally(here)
    right, total = st.session_state[kept]
    if total:
        told = joined(told, t("Such first ranges were right {right} of {total} times here.", right=right, total=total))
    st.caption(_ui.plain(told))


def actions(here: Workspace, run: Run) -> None:
    """Offer what can be done with a run, in the row of its page."""
    if run.status in ("queued", "running") and st.button(t("Stop"), icon=":material/stop:", key="stop"):
        lifecycle.stop(here, run.id)
        st.rerun()
    if run.status in ("stopped", "interrupted", "failed"):
        label = t("Resume") if _can_go_on(here, run.id) else t("Start again with the same settings")
        if st.button(label, type="primary", key="resume"):
            _resume(here, run.id)
    with st.popover(t("More"), icon=":material/keep:" if run.pin else None):
        _more(here, run)
    if run.status not in store.LIVE:
        _offer_deletion(here, run)


def _more(here: Workspace, run: Run) -> None:
    """What is seldom wanted: the same again, its name, a note, a pin, and the command that repeats it."""
    told = store.load_spec(here, run.id)
    # What was trained elsewhere, or not trained at all, cannot be trained again the same way.
    if told.kind not in ("adopted", "recover") and st.button(
        t("Duplicate"), help=t("Open Train with the same settings"), key="duplicate"
    ):
        made = drafts.of_spec(here, told, came_from=t("A copy of {name}", name=run.name))
        _ui.go("train", draft=drafts.save(here, made))
    new_name = st.text_input(t("Name"), store.name(here, run.id), key=f"rename_{run.id}")
    if st.button(t("Save the name"), key="save_name"):
        store.rename(here, run.id, new_name)
        st.rerun()
    text = st.text_area(t("What you want to remember of this run"), store.note(here, run.id), key=f"note_{run.id}")
    if st.button(t("Save the note"), key="save_note"):
        store.write_note(here, run.id, text)
        st.rerun()
    _pin(here, run)
    with st.expander(t("Repeat it in a terminal")):
        st.caption(_ui.say("This starts the same again. On disk this run is the folder {id}.", id=run.id))
        st.code(repeat.repeat_command(here, run.id), language="bash", wrap_lines=True)


def _pin(here: Workspace, run: Run) -> None:
    pinned = store.pin(here, run.id)
    if pinned is not None:
        st.caption(_ui.say("Pinned as {pin}.", pin=str(pinned)))
    name = st.text_input(t("Pin it as"), pinned.name if pinned else run.name, key=f"pin_{run.id}")
    st.caption(t("A second run under a name is its version 2. What is pinned asks before anything of it is deleted."))
    if st.button(t("Pin it"), key="save_pin", disabled=not name.strip()):
        lifecycle.pin(here, run.id, name)
        st.rerun()
    if pinned is not None and st.button(t("Take the pin away"), key="unpin"):
        lifecycle.pin(here, run.id, "")
        st.rerun()


def _can_go_on(here: Workspace, run_id: str) -> bool:
    """Whether a run that has ended early has anything to go on from; a training without a checkpoint begins anew."""
    told = store.load_spec(here, run_id)
    return told.kind != "train" or checkpoints.last_checkpoint(here.run_dir(run_id)) is not None


def _resume(here: Workspace, run_id: str) -> None:
    try:
        lifecycle.resume(here, run_id)
    except (lifecycle.CannotResume, limits.OverLimit) as error:
        st.error(_ui.plain(error))
    else:
        st.rerun()


def untrained(here: Workspace, run: Run) -> None:
    """A run that was stopped before its first step leads on or away, and nowhere else."""
    st.info(t("It ended before its first step: nothing was trained. Start it again, or delete it."))
    with st.container(horizontal=True):
        label = t("Start again with the same settings")
        if st.button(label, type="primary", icon=":material/play_arrow:", key="resume"):
            _resume(here, run.id)
        _offer_deletion(here, run)


def unreadable(here: Workspace, run: Run, problem: Problem) -> None:
    """A run of a later version, or one whose spec is cut or damaged: what is known of it, and what can be done."""
    st.header(_ui.plain(f"{run.name} · {_ui.status_word(run.status)}"), icon=_ui.STATUS_ICONS.get(run.status))
    st.caption(_ui.say("On disk it is the folder {id}.", id=run.id))
    st.warning(_ui.plain(problem.sentence))
    if not store.supervised(here.run_dir(run.id)):
        _offer_deletion(here, run)


def _offer_deletion(here: Workspace, run: Run) -> None:
    lost, stays = list[str](), ""
    try:
        lost = lifecycle.losses(here, run.id)
    except lifecycle.CannotDelete as error:
        stays = str(error)

    def delete() -> None:
        lifecycle.delete(here, run.id, all_the_same=bool(lost))
        _ui.choose("run", None)

    what = t("This deletes the run “{name}”, its checkpoints, its log and what it made.", name=run.name)
    if run.recipe == sweep_plan.RECIPE.name:
        what = joined(what, t("The runs that it has started stay, each in the list by itself."))
    _delete.offer(
        f"run_{run.id}",
        run.name,
        what,
        delete,
        size=_run_list.size(here, run),
        depends=lost,
        stays=stays,
    )


def outcome(here: Workspace, run_id: str, short: store.Summary) -> None:
    """Say how the run ended and what would help."""
    if short.status == "failed" and short.failure:
        what, fix = (limits.unnamed(short.failure[name], code=True) for name in ("message", "fix"))
        st.error(_ui.say("It failed: {what}. What to do: {fix}.", what=what, fix=fix))
        _start_again(here, run_id, str(short.failure["kind"]))
    elif short.status == "finished" and not short.moved:
        st.warning(t("Nothing was learned: training changed no weight. Its warnings below say why."))
    elif short.status == "interrupted":
        gone = t("Its process is gone without a word: it was killed, or the machine was switched off.")
        st.warning(_ui.plain(joined(gone, t("Resume it.") if _can_go_on(here, run_id) else _no_checkpoint())))
    elif short.status == "stopped" and limits.time_was_up(here.run_dir(run_id)):
        minutes = f"{limits.limits().minutes:g}"
        st.info(
            t(
                "Stopped: its {minutes} minutes in this demo were up. Try fewer steps, or take data and settings to your "
                'own Tunebook: "Duplicate", then "Take this along".',
                minutes=minutes,
            )
        )
    elif short.status == "stopped" and _can_go_on(here, run_id):
        st.info(t("Stopped as asked. It can go on from where it was."))
    elif short.status == "stopped":
        st.info(_ui.plain(joined(t("Stopped as asked."), _no_checkpoint())))


def _no_checkpoint() -> str:
    return t("No checkpoint was kept, so it cannot go on from there; it can start again with the same settings.")


def _start_again(here: Workspace, run_id: str, kind: str) -> None:
    """Offer a new run with each change that is safe to try."""
    run_spec = store.load_spec(here, run_id)
    if run_spec.kind in ("adopted", "recover"):
        return
    found = failures.remedies(kind, run_spec)
    fitting = plans.of_spec(here, run_spec).smaller if kind == "oom" else None
    if fitting and not {"adapter", "objective"} & set(fitting):
        found = [failures.Retry(t("all that is needed to fit this machine"), fitting), *found]
    if not found:
        return
    st.caption(t("Start again with:"))
    with st.container(horizontal=True):
        for number, remedy in enumerate(found):
            if st.button(_ui.plain(remedy.title[:1].upper() + remedy.title[1:]), key=f"remedy_{number}"):
                draft = drafts.of_spec(
                    here, store.load_spec(here, run_id), changes=remedy.changes,
                    came_from=t("{name}, started again with {change}", name=store.name(here, run_id), change=remedy.title),
                )  # fmt: skip
                _ui.go("train", draft=drafts.save(here, draft))


def machines(here: Workspace, run_id: str, state: str) -> None:
    """Say what is to be started on the other machines that share a run, while they have not come."""
    run_spec = store.load_spec(here, run_id)
    if state != "running" or run_spec.machine.nodes == 1:
        return
    run_dir = here.run_dir(run_id)
    absent = [number for number in peers.missing(run_dir, run_spec) if number]
    if not absent:
        return
    st.info(
        t(
            "Other machines are awaited. Start this on each, in the environment in which Tunebook is installed there; the "
            "folder of runs must be seen by the same name. They begin together, once all have come."
        )
    )
    lines = peers.lines(run_dir, run_spec)
    for number in absent:
        st.caption(_ui.say("Machine {n}", n=number + 1))
        st.code(lines[number - 1], language="bash", wrap_lines=True)


def silence(state: str, found: list[Any]) -> None:
    """Say when nothing was heard of a run for so long that it may hang."""
    silent_s = follow.silent_s(found) if state == "running" else None
    if silent_s is not None:
        st.warning(
            _ui.say(
                "Nothing was heard of this run for {time}. It may hang: look at its log; Stop ends it and keeps the last "
                "checkpoint, and Resume goes on from there.",
                time=_ui.duration(silent_s),
            )
        )
