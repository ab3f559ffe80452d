"""All runs of the Runs page: who waits, several runs side by side, and what takes room; the list is in _run_table.py."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import streamlit as st

from engine import limits, machine
from engine import room as taken
from engine.estimate import memory
from engine.runs import Run, device_queue, follow, lifecycle, store
from engine.spec import settings
from engine.words import t
from engine.workspace import Workspace, disk_bytes
from pages import _delete, _failures, _ui

QUEUE_REFRESH_S = 2.0
# What of the page the address asks for: all runs, and not the one that is worked on.
VIEW, LIST = "show", "all"
# So many of the settings in which a run differs from the one before are named.
MOST_NAMED = 2
# Of what takes room so much is listed; the rest is small.
MOST_TAKEN = 40


@functools.lru_cache(maxsize=4096)
def _disk_bytes(root: str, run_id: str, status: str, minute: int) -> int:
    """The size of a run's folder, looked up once a minute, and anew when its `status` is another."""
    return disk_bytes(Workspace(root).run_dir(run_id))


def size(workspace: Workspace, run: Run) -> str:
    """Return in words what a run takes on disk."""
    return memory.size_words(_disk_bytes(str(workspace.root), run.id, run.status, int(time.time() // 60)))


@_failures.fragment(run_every=QUEUE_REFRESH_S)
def _queue(workspace: Workspace, shown: list[str]) -> None:
    """The runs that wait, the next one first. When one has got its turn, the whole page is read again."""
    turns = follow.turns(workspace)
    there = list(turns)
    mine = [run_id for run_id in there if store.exists(workspace, run_id)]
    if mine != shown:
        st.rerun()
    st.header(t("Waiting"))
    st.caption(t("One run per device, first come first served, whether or not this page or its server is open."))
    if turns[mine[0]] and mine[0] != _ui.current("run"):  # whose own part of the page says it
        st.caption(_ui.plain(turns[mine[0]]))
    for run_id in mine:
        with st.container(horizontal=True, vertical_alignment="center"):
            position = there.index(run_id) + 1
            st.markdown(f"**{position:d}.** {_ui.plain(store.name(workspace, run_id))}", width="stretch")
            first = position == 1
            label, symbol = t("Move to the front"), ":material/vertical_align_top:"
            # Nobody overtakes strangers.
            if not limits.on() and st.button(_ui.plain(label), icon=symbol, key=f"front_{run_id}", disabled=first):
                lifecycle.move_first(workspace, run_id)
                st.rerun()
            if st.button(t("Remove"), icon=":material/close:", key=f"remove_{run_id}"):
                lifecycle.remove_waiting(workspace, run_id)
                st.rerun()
    if len(mine) < len(there) and not limits.on():
        st.caption(_ui.say("{n} more waiting runs belong to another home on this machine.", n=len(there) - len(mine)))


def queue(workspace: Workspace) -> None:
    """Show who waits, when somebody does."""
    mine = [run_id for run_id in device_queue.waiting(machine.facts().device) if store.exists(workspace, run_id)]
    if mine:
        _queue(workspace, mine)


def back(count: int) -> None:
    """Lead from one run to the list of all."""
    if st.button(_ui.say("All runs ({n})", n=count), icon=":material/arrow_back:", type="tertiary", key="all_runs"):
        st.query_params[VIEW] = LIST
        st.rerun()


def otherwise(workspace: Workspace, runs: list[Run]) -> dict[str, str]:
    """Return by run what it has set otherwise than the one before it that is called alike, in words: the first settings by
    name. `runs` are all there are, newest first."""
    fields, found = settings.fields(), dict[str, str]()
    for run_id, told in store.set_otherwise(workspace, runs).items():
        words = [
            t("{name}: {text}", name=t(fields[path].title), text=store.value_words(workspace, path, value))
            for path, value in told[:MOST_NAMED] if path in fields
        ]  # fmt: skip
        more = [t("{n} more", n=len(told) - MOST_NAMED)] if len(told) > MOST_NAMED else []
        found[run_id] = "; ".join(words + more)
    return found


def look(run_id: str) -> None:
    """Open one run in place of the list."""
    _ui.choose("run", run_id)
    if VIEW in st.query_params:
        del st.query_params[VIEW]
    st.rerun()


def room(workspace: Workspace) -> None:
    """List what takes room, with what needs it and one way to delete it. Looked for only while it is open."""
    _ui.fold(t("Room on disk"), "room", lambda: _all_taken(workspace))


def _all_taken(workspace: Workspace) -> None:
    if told := st.session_state.pop("room_freed", None):
        st.success(_ui.plain(told))
    found = taken.find(workspace)
    if not found:
        st.caption(t("Nothing takes room but what runs have made and were scored by."))
        return
    total = memory.size_words(sum(one.size_bytes for one in found))
    st.caption(_ui.say("{total} in all. What a run has made goes with the run.", total=total))
    for number, one in enumerate(found[:MOST_TAKEN]):
        _taken(workspace, number, one)
    if len(found) > MOST_TAKEN:
        st.caption(_ui.say("{n} smaller ones are not shown.", n=len(found) - MOST_TAKEN))


def _taken(workspace: Workspace, number: int, one: taken.Taken) -> None:
    """One line of it, with its button, which asks first."""
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.container(width="stretch", gap=None):
            st.markdown(_ui.plain(f"{memory.size_words(one.size_bytes)} · {taken.kind_word(one.kind)} · {one.title}"))
            for told in [one.kept] if one.kept else one.losses:
                st.caption(_ui.plain(told))
        if one.kept:
            return
        _delete.offer(
            f"room_{number}",
            one.title,
            one.title,
            lambda: _delete_taken(workspace, one),
            size=memory.size_words(one.size_bytes),
            depends=one.losses,
        )


def _delete_taken(workspace: Workspace, one: taken.Taken) -> None:
    freed = taken.delete(workspace, one.place, all_the_same=bool(one.losses))
    st.session_state["room_freed"] = t("{size} are free again.", size=memory.size_words(freed))


def compare(chosen: Sequence[str], *, marked: bool) -> None:
    """Lead to where runs are held against each other: losses, settings, and what each gained and lost; with those that are
    `marked`, or else with all of the same rows and base."""
    label = t("Compare these {n}", n=len(chosen)) if marked else t("Compare {n} on the same rows", n=len(chosen))
    if len(chosen) < 2:
        label = t("Compare runs")
    key = f"compare_{hash(tuple(chosen))}" if marked else "compare_runs"
    if st.button(label, type="primary" if marked else "secondary", icon=":material/compare_arrows:", key=key):
        from pages import _forgetting_compare  # which loads what draws its charts

        st.session_state.pop(_forgetting_compare.CHOSEN, None)
        if len(chosen) > 1:
            st.session_state[_forgetting_compare.CHOSEN] = list(chosen[: _forgetting_compare.MOST_COMPARED])
        st.session_state["forgetting_view"] = "compare"
        _ui.go("forgetting", view="compare")
