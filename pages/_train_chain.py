"""The Train page's chain of SFT, reward model and PPO, each on the run before."""

from __future__ import annotations

import streamlit as st

from engine.data import datasets
from engine.models import bases
from engine.plan import chains, drafts, judges
from engine.runs import store
from engine.words import t
from engine.workspace import Workspace
from pages import _ui


def show(workspace: Workspace) -> None:
    """The three stages of SFT, reward model and PPO: what each needs, which run fills it, and the button of the next."""
    with st.container(border=True):
        st.markdown(f"**{t('SFT, reward model and PPO in turn')}**")
        skip = st.checkbox(
            t("Skip stage 1: the base answers well enough"), key="chain_skip_sft",
            help=t("Only for a base that was tuned to answer, and that tries different answers by itself."),
        )  # fmt: skip
        # The chain stands on a base of its own: stage 2 changes the base of the form below.
        root = st.session_state.setdefault("chain_base", _root(workspace))
        found = chains.look(workspace, base=root, skip_sft=skip, sft=st.session_state.get("chain_sft"))
        st.caption(_ui.say("Base of the chain: {base}", base=bases.describe(root, workspace).title))
        for column, stage in zip(st.columns(3), found.stages, strict=True):
            with column:
                _stage(workspace, found, stage, skipped=skip and stage.name == "sft")
        if found.alike is not None:
            st.caption(
                t("Policy and judge read text alike: the same tokens and the same template.")
                if found.alike
                else t("Policy and judge read text differently: train the reward model anew on the model of stage 1.")
            )
        done = found.stage("ppo").filled
        if done is not None and st.button(t("All three are done: see what it gained and forgot"), key="chain_done"):
            _ui.choose("run", done)
            _ui.go("forgetting")


def _root(workspace: Workspace) -> str:
    """Return the base a chain begins with: the one being worked on, unless it came out of a chain itself."""
    ref = _ui.current("base") or "starter"
    return "starter" if bases.describe(ref, workspace).kind == "run" else ref


def _stage(workspace: Workspace, found: chains.Chain, stage: chains.Link, *, skipped: bool) -> None:
    st.markdown(f"**{_ui.plain(stage.title)}**")
    st.caption(_ui.plain(stage.purpose))
    if skipped:
        st.markdown(t("Skipped"))
        return
    if stage.filled:
        st.markdown(":material/check_circle: " + _ui.say("Done by: {name}", name=store.name(workspace, stage.filled)))
        if stage.name == "reward" and (judged := judges.accuracy(workspace.run_dir(stage.filled))) is not None:
            share = f"{100 * judged.tuned:.0f} %"
            st.caption(_ui.say("Right on {share} of {n} unseen pairs; chance is 50 %.", share=share, n=judged.n))
        return
    if stage.going:
        st.markdown(":material/play_circle: " + _ui.say("On its way: {name}", name=store.name(workspace, stage.going)))
        if st.button(t("Watch it"), key=f"chain_watch_{stage.name}"):
            _ui.choose("run", stage.going)
            _ui.go("runs")
        return
    st.caption(_ui.say("Needs: {what}", what=stage.needs))
    if stage.name != found.next:
        st.caption(t("Comes after the stage before it."))
        return
    if stage.data is not None:
        stored = datasets.load(workspace, stage.data)
        label = _ui.say("Set it up with {data}", data=stored.name)
    else:
        label = t("Set it up with the sample")
    if st.button(label, type="primary", icon=":material/arrow_forward:", key=f"chain_{stage.name}"):
        dataset_id = stage.data or chains.sample_id(workspace, stage.name)
        _ui.go("train", draft=drafts.save(workspace, chains.draft(found, stage.name, dataset=dataset_id)), chain="1")
