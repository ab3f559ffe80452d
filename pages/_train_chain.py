"""The Train page's chain: SFT, then preferences, in stages that each wait for a click, as one written file."""

from __future__ import annotations

import secrets

import streamlit as st

from engine import limits
from engine.check import DatasetError
from engine.data import datasets
from engine.models import bases
from engine.plan import chains, drafts, judges, plans
from engine.runs import lifecycle, store
from engine.words import t
from engine.workspace import Workspace
from pages import _failures, _ui

REFRESH_S = 2.0
SAMPLE = "sample"


def opened(workspace: Workspace) -> str:
    """Return what the button of the chain opens: the newest chain that is not done, or a new one."""
    return next((chain.id for chain in chains.list_all(workspace) if not chain.done), "new")


def show(workspace: Workspace, wanted: str) -> None:
    """Show the chain that the address names, or the form of a new one: the stages of a road may be named there."""
    there = {chain.id: chain for chain in chains.list_all(workspace)}
    with st.container(horizontal=True):
        if st.button(t("Back to a single run"), icon=":material/arrow_back:", key="chain_back"):
            _open(None)
        if wanted in there and st.button(t("Begin another chain"), key="chain_new"):
            _open("new")
        others = [name for name in there if name != wanted]
        if others:
            with st.popover(t("Earlier chains")):
                for name in others[:10]:
                    if st.button(_ui.plain(there[name].name), key=f"chain_open_{name}"):
                        _open(name)
    if wanted in there:
        _chain(workspace, there[wanted])
    else:
        _begin(workspace, wanted)


def _open(chain: str | None) -> None:
    if chain is None:
        del st.query_params["chain"]
    else:
        st.query_params["chain"] = chain
    st.rerun()


# --- a new one ---------------------------------------------------------------------------------------------------


def _begin(workspace: Workspace, wanted: str) -> None:
    """The form: which road, which data each stage takes, and the one button."""
    roads = {
        "dpo": t("SFT, then DPO: pairs of answers"),
        "kto": t("SFT, then KTO: answers marked good or bad"),
        "ppo": t("SFT, a judge, then PPO"),
    }
    st.header(t("A chain: learn to answer, then what is better"))
    road = st.radio(
        t("Which road"), list(roads), format_func=lambda name: _ui.plain(roads[name]), key="chain_road",
        index=list(roads).index(wanted) if wanted in roads else 0, horizontal=True,
    )  # fmt: skip
    base = _ui.current("base") or "starter"
    described = bases.describe(base, workspace)
    if described.kind == "run":
        base, described = "starter", bases.describe("starter", workspace)
    st.caption(_ui.say("Base of the chain: {base}", base=described.title))
    _ui.toy_note(described)
    skip = st.checkbox(
        t("Leave SFT out: the base answers well enough"), key="chain_skip_sft",
        help=t("Only for a base that was tuned to answer, and that tries different answers by itself."),
    )  # fmt: skip
    names = [name for name in chains.ROADS[road] if not (skip and name == "sft")]
    chosen = {}
    for column, name in zip(st.columns(3), names, strict=False):
        with column:
            chosen[name] = _data(workspace, name)
    title = chains.words(names[0])[0]
    if not st.button(_ui.plain(t("Start stage 1: {stage}", stage=title)), type="primary", key="chain_start"):
        return
    try:
        given = {name: chains.sample_id(workspace, name) if one == SAMPLE else one for name, one in chosen.items()}
        token = st.session_state.setdefault("chain_token", secrets.token_hex(8))  # a double click begins one chain
        chain = chains.begin(workspace, road, given, base=base, chain_id=token)
    except (DatasetError, plans.CannotPlan) as error:
        st.error(_ui.plain(error.problem.sentence))
    except chains.CannotGoOn as error:
        _ui.problem_list(error.problems)
    else:
        if _start(workspace, chain):
            del st.session_state["chain_token"]
            _open(chain)
        chains.forget(workspace, chain)


def _data(workspace: Workspace, name: str) -> str:
    """Choose the data of a stage: what it reads, what its rows can be taken from, or the sample."""
    title, _, needs = chains.words(name)
    fitting = {one.id: one for one in chains.fitting(workspace, name)}

    def shown(one: str) -> str:
        if one == SAMPLE:
            return t("the sample: {what}", what=needs)
        if not chains.is_taken_from(name, fitting[one]):
            return fitting[one].name
        told = {"name": fitting[one].name}
        return t("{name}: its good answers", **told) if name == "sft" else t("{name}: its questions", **told)

    return st.selectbox(_ui.plain(title), [*fitting, SAMPLE], format_func=shown, key=f"chain_data_{name}")


def _start(workspace: Workspace, chain: str) -> bool:
    """Start the next stage; where it cannot start, say why."""
    try:
        run_id = chains.start_next(workspace, chain)
    except (chains.CannotGoOn, limits.OverLimit) as error:
        st.error(t("This run cannot start yet:"))
        _ui.problem_list(error.problems)
    except plans.CannotPlan as error:
        st.error(_ui.plain(error.problem.sentence))
    else:
        _ui.choose("run", run_id)
        return True
    return False


# --- one that is there -------------------------------------------------------------------------------------------


def _chain(workspace: Workspace, chain: chains.Chain) -> None:
    st.header(_ui.plain(chain.name))
    for number, (column, stage) in enumerate(zip(st.columns(3), chain.stages, strict=False), 1):
        with column.container(border=True):
            _stage(workspace, number, stage)
    if chain.alike is False:
        st.warning(t("Policy and judge read text differently: train the reward model anew on the model of stage 1."))
    if chain.going is not None:
        _wait(workspace, chain.id, chain.going.name)
    elif chain.next is not None:
        _next(workspace, chain, chain.next)
    elif st.button(t("All stages are done: see what it gained and forgot"), type="primary", key="chain_done"):
        _report(chain.stages[-1])


def _stage(workspace: Workspace, number: int, stage: chains.Stage) -> None:
    st.markdown(f"**{number:d}. {_ui.plain(stage.title)}**")
    try:
        rows = datasets.load(workspace, stage.data).name
    except DatasetError:
        rows = t("its data is gone")
    st.caption(_ui.plain(rows))
    st.markdown((":material/check_circle: " if stage.filled else "") + _ui.plain(stage.says))
    if stage.run is None or not store.exists(workspace, stage.run):
        return
    if stage.name == "reward" and (judged := judges.accuracy(workspace.run_dir(stage.run))) is not None:
        share = f"{100 * judged.tuned:.0f} %"
        st.caption(_ui.say("Right on {share} of {n} unseen pairs; chance is 50 %.", share=share, n=judged.n))
    if stage.filled:
        if st.button(t("See its report"), key=f"chain_report_{stage.name}"):
            _report(stage)
    elif st.button(t("Watch it") if stage.state in store.LIVE else t("Look at it"), key=f"chain_watch_{stage.name}"):
        _ui.choose("run", stage.run)
        _ui.go("runs")


def _report(stage: chains.Stage) -> None:
    _ui.choose("run", stage.run)
    st.session_state["forgetting_view"] = "run"
    st.session_state.pop("scored_run", None)
    _ui.go("forgetting")


@_failures.fragment(run_every=REFRESH_S)
def _wait(workspace: Workspace, chain_id: str, stage: str) -> None:
    """Read the page again when the stage on its way has ended."""
    found = chains.look(workspace, chain_id)
    if found is None or found.going is None or found.going.name != stage:
        st.rerun()
    st.caption(t("The next stage waits for your click. You may close this page meanwhile."))


def _next(workspace: Workspace, chain: chains.Chain, stage: chains.Stage) -> None:
    """The one button that leads on, and the other ways in a fold."""
    number = chain.stages.index(stage) + 1
    can_go_on = stage.state in ("failed", "stopped", "interrupted")
    named = {"n": number, "stage": stage.title}
    label = (
        t("Go on with stage {n}: {stage}", **named) if can_go_on else t("Start the next stage: {n}. {stage}", **named)
    )
    if st.button(_ui.plain(label), type="primary", icon=":material/arrow_forward:", key="chain_next"):
        if can_go_on:
            _resume(workspace, stage)
        elif _start(workspace, chain.id):
            st.rerun()
    with st.expander(t("Another way for this stage")):
        if can_go_on and st.button(t("Start this stage anew"), key="chain_anew") and _start(workspace, chain.id):
            st.rerun()
        if st.button(t("Set it up by hand"), key="chain_by_hand", help=t("Its run can then be taken into the chain.")):
            _ui.go("train", draft=drafts.save(workspace, chains.draft(workspace, chain.id)))
        found = {run.id: run for run in chains.usable(workspace, chain.id)}
        if not found:
            return
        stored = {one.id: one.name for one in datasets.list_all(workspace)}

        def shown(run_id: str) -> str:
            run = found[run_id]
            return t("{name}, trained on {data}", name=run.name, data=stored.get(run.dataset, "?"))

        run_id = st.selectbox(t("A run that is there already"), list(found), format_func=shown, key="chain_usable")
        if st.button(t("Take this run"), key="chain_take"):
            chains.take(workspace, chain.id, run_id)
            st.rerun()


def _resume(workspace: Workspace, stage: chains.Stage) -> None:
    try:
        lifecycle.resume(workspace, stage.run or "")
    except (lifecycle.CannotResume, limits.OverLimit) as error:
        st.error(_ui.plain(error))
    else:
        st.rerun()
