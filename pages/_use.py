"""Use it: what a finished run made, taken along: a download, merged, on the hub, for Ollama, or for another trainer."""

from __future__ import annotations

import io
import tempfile
import time
import zipfile
from pathlib import Path

import streamlit as st

from engine import limits
from engine.data import jobs
from engine.export import NotExportable, artifacts, gguf, job_runner, other_trainers, parity, portable_recipe, usage
from engine.export import archive as export_archive
from engine.export import job as export_job
from engine.runs import store
from engine.spec import OBJECTIVES
from engine.words import Problem, joined, t
from engine.workspace import Workspace
from pages import _failures, _ui, _use_gguf, _use_serve

REFRESH_S = 1.0
# Larger ones are packed when asked for: a copy of them is not made by looking at a page.
PACKED_AT_ONCE_BYTES = 200 * 10**6


def show(here: Workspace, run_id: str) -> None:
    """Offer everything a finished run can be taken along as."""
    made = artifacts.made_by(here.run_dir(run_id))
    if made is None:
        return
    _job(here, run_id)
    title = t("Take it along: files, Ollama, serving, upload")
    _ui.fold(title, fold_key(run_id), lambda: _everything(here, run_id, made.name == "adapter"))


def fold_key(run_id: str) -> str:
    """Return by what name the session knows whether the part is open: a button elsewhere opens it."""
    return f"take_along_{run_id}"


def open_on(run_id: str) -> None:
    """Open the part on the page of a run, at the one file where that can be made on this machine."""
    st.session_state[fold_key(run_id)] = True
    if gguf.parts(None) is not None:
        st.session_state["use_section"] = "ollama"


def _everything(here: Workspace, run_id: str, adapter: bool) -> None:
    names = {"take": t("Adapter") if adapter else t("Model")}
    names |= {"merged": t("Merged model")} if adapter else {}
    names |= {"ollama": t("GGUF, Ollama"), "serve": t("Serve it"), "hub": t("Hub")}
    if store.load_spec(here, run_id).kind == "train":  # a recipe that nobody knows cannot be written for others
        names |= {"trainers": t("Other trainers")}
    chosen = st.radio(
        t("What to take along"),
        list(names),
        format_func=lambda name: _ui.plain(names[name]),
        horizontal=True,
        key="use_section",
    )
    if chosen == "take":
        _take(here, run_id, adapter)
    elif chosen == "merged":
        _merged(here, run_id)
    elif chosen == "ollama":
        _use_gguf.show(here, run_id, busy=_busy(here, run_id), start=lambda job: _start(here, run_id, job))
    elif chosen == "serve":
        _use_serve.show(here, run_id)
    elif chosen == "hub":
        _hub(here, run_id, adapter)
    else:
        _trainers(here, run_id)


def _busy(here: Workspace, run_id: str) -> bool:
    state = job_runner.progress(here, run_id)
    return state is not None and not state.ended


def _start(here: Workspace, run_id: str, job: export_job.Job, token: str | None = None) -> None:
    try:
        job_runner.start(here, run_id, job, token=token)
    except NotExportable as error:
        st.error(_ui.plain(error))
    else:
        st.rerun()


def _job(here: Workspace, run_id: str) -> None:
    """Show the job under way, or how the last one ended."""
    state = job_runner.progress(here, run_id)
    if state is None:
        return
    if not state.ended:
        _follow(here, run_id)
        return
    if state.failure is not None:
        st.error(_ui.plain(limits.unnamed(state.failure, code=True)))
    elif state.job.what == "push":
        st.success(_ui.say("It is on the hub: {where}", where=state.made))
    elif state.job.what == "ollama" or state.job.into_ollama:
        st.success(_ui.say("Ollama has it: ollama run {name}", name=state.made))
    elif state.job.what == "merged":
        st.success(t('The merged model is made: see "Merged model".'))
    elif state.job.what == "ask":
        name = state.job.quantization.upper()
        st.success(_ui.say('What {name} lost is measured: see "GGUF, Ollama".', name=name))
    else:
        st.success(_ui.say('{name} is made: see "GGUF, Ollama".', name=state.job.quantization.upper()))
    if st.button(t("Put this note away"), key="export_forget"):
        job_runner.forget(here, run_id)
        st.rerun()


@_failures.fragment(run_every=REFRESH_S)
def _follow(here: Workspace, run_id: str) -> None:
    state = job_runner.progress(here, run_id)
    if state is None or state.ended:
        st.rerun()
        return
    if state.phase in ("asking", "creating") and st.session_state.get("export_phase") != (run_id, state.phase):
        st.session_state["export_phase"] = run_id, state.phase
        st.rerun()  # the file is made, and can be had while more is done
    now_s, phase = time.monotonic(), export_job.phase_words().get(state.phase, state.phase)
    so_far, left_s = _clock(now_s - state.began_s), state.left_s(now_s)
    said = t("{phase}: {time} so far", phase=phase, time=so_far)
    if left_s is not None:
        left, share = _ui.duration(max(1, left_s)), f"{100 * state.share:.0f}"
        said = t("{phase}: {share} %, about {left} left of this part; {time} so far",
                 phase=phase, share=share, left=left, time=so_far)  # fmt: skip
    now = jobs.JobProgress(done=state.done_bytes, total=state.total_bytes or 1)
    if _ui.job_bar(now, said, t("Stop"), key="export_stop"):
        job_runner.stop(here, run_id)
        st.toast(_ui.plain(t("Stopped. Nothing half made is left.")))
        st.rerun()


def _clock(seconds: float) -> str:
    """Return a time that is seen to move, as 2:05."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"


def _checked(found: parity.Parity | None) -> None:
    """Say how it compares with what was trained."""
    if found is None:
        return
    lines = found.lines()
    if found.differences:
        st.warning(_ui.plain(joined(*lines)))
    else:
        st.caption(":material/check: " + _ui.plain(joined(*lines)))


def _download(here: Workspace, run_id: str, *, merged: bool) -> None:
    key = "download_merged" if merged else "download"
    folder = here.run_dir(run_id) / artifacts.MERGED if merged else artifacts.made_by(here.run_dir(run_id))
    assert folder is not None
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    archive = here.run_dir(run_id) / f"{folder.name}.zip"
    if _use_gguf.too_large(folder, size):
        return
    if (
        size > PACKED_AT_ONCE_BYTES
        and not archive.exists()
        and not st.button(t("Pack it for download"), key=f"pack_{key}")
    ):
        return
    archive = export_archive.write_zip(here, run_id, merged=merged)
    size_mb = archive.stat().st_size / 1e6
    what = t("merged model") if merged else t("adapter") if folder.name == "adapter" else t("model")
    st.download_button(
        t("Download the {what} ({size} MB)", what=what, size=f"{size_mb:.1f}"),
        archive.read_bytes,  # on a click: an open file would be read whole each time the page is shown
        file_name=f"{run_id}-{archive.name}",
        mime="application/zip",
        on_click="ignore",
        key=key,
    )


def _take(here: Workspace, run_id: str, adapter: bool) -> None:
    try:
        _download(here, run_id, merged=False)
    except (NotExportable, OSError) as error:
        st.caption(_ui.plain(error if isinstance(error, NotExportable) else _failures.sentence(error)))
        return
    if store.load_spec(here, run_id).adopted is None:  # nothing was trained here to compare it with
        _checked(parity.read(here.run_dir(run_id)))
    needs = t("transformers and peft") if adapter else t("transformers")
    st.caption(t("Unpack it and run these lines beside it; they need only {needs}:", needs=needs))
    st.code(usage.load_script(here, run_id), language="python")
    if not adapter and not OBJECTIVES[store.load_spec(here, run_id).objective].is_judge:
        st.caption(t("Or serve it with vLLM:"))
        st.code(usage.vllm_commands("model"), language="bash", wrap_lines=True)


def _merged(here: Workspace, run_id: str) -> None:
    folder = here.run_dir(run_id) / artifacts.MERGED
    if not folder.is_dir():
        size = artifacts.size_bytes(here, run_id)
        st.write(t("The adapter and its base as one model, which loads without peft."))
        if size:
            st.caption(t("About {size} MB, kept beside the run.", size=f"{size / 1e6:,.0f}"))
        if st.button(t("Merge"), type="primary", disabled=_busy(here, run_id), key="merge"):
            _start(here, run_id, export_job.Job(what="merged"))
        return
    try:
        _download(here, run_id, merged=True)
    except (NotExportable, OSError) as error:
        st.caption(_ui.plain(error if isinstance(error, NotExportable) else _failures.sentence(error)))
    _checked(parity.read(folder))
    st.caption(t("Unpack it and run these lines beside it; they need only {needs}:", needs=t("transformers")))
    st.code(usage.load_merged_script(here, run_id, artifacts.MERGED), language="python")
    if not OBJECTIVES[store.load_spec(here, run_id).objective].is_judge:
        st.caption(t("Or serve it with vLLM:"))
        st.code(usage.vllm_commands(artifacts.MERGED), language="bash", wrap_lines=True)


def _hub(here: Workspace, run_id: str, adapter: bool) -> None:
    if limits.on():
        st.caption(_ui.plain(Problem(rule="demo-export").sentence))
        return
    st.write(t("Upload it to the Hugging Face hub with its card. Nobody but you sees it."))
    with st.form("push", clear_on_submit=False, border=False):
        repository = st.text_input(t("Repository"), placeholder=_ui.ID_EXAMPLE, key="push_repository")
        token = st.text_input(
            t("Token"),
            type="password",
            help=t("One that may write. Not kept anywhere. Empty: your own login on this machine."),
            key="push_token",
            autocomplete="off",
        )
        alone = adapter and not artifacts.travels_whole(here, run_id)
        only = st.checkbox(t("Only the adapter"), value=False, key="push_adapter") if alone else False
        sent = st.form_submit_button(t("Upload"), disabled=_busy(here, run_id))
    if sent:
        job = export_job.Job(what="push", repository=repository.strip(), only_adapter=only)
        _start(here, run_id, job, token=token.strip() or None)
    if st.toggle(t("Show the card"), key="show_card"):  # its intervals take a moment
        from engine.export import card

        st.code(card.markdown(here, run_id, whole=not only), language="markdown", wrap_lines=True)


def _trainers(here: Workspace, run_id: str) -> None:
    st.write(t("The same recipe and rows for another trainer. What it cannot do stands at the head of its file."))
    trainers = other_trainers.TRAINERS
    tool = st.radio(
        t("Trainer"),
        list(trainers),
        format_func=lambda name: _ui.plain(trainers[name].title),
        horizontal=True,
        key="trainer",
    )
    try:
        found = other_trainers.files(portable_recipe.of_run(here, run_id), tool)
    except (NotExportable, OSError) as error:
        st.info(_ui.plain(error if isinstance(error, NotExportable) else _failures.sentence(error)))
    else:
        st.download_button(
            t("Download with the rows"),
            _ui.spoken(lambda: _packed(here, run_id, tool)),
            file_name=f"{run_id}-{tool}.zip",
            mime="application/zip",
            on_click="ignore",
            key="download_recipe",
        )
        name, text = next(iter(found.items()))
        st.code(text, language="python" if name.endswith(".py") else "yaml", height=400)
    st.caption(t("The same from the command line:"))
    st.code(f"tunebook export {run_id} --what {tool} --to {tool}", language="bash", wrap_lines=True)
    with st.expander(t("Other tools")):
        _ui.bullets(other_trainers.by_hand())


def _packed(here: Workspace, run_id: str, tool: str) -> bytes:
    """Return the recipe with its rows as one zip."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / tool
        other_trainers.write(here, run_id, tool, target)
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            for path in sorted(target.rglob("*")):
                if path.is_file():
                    archive.writestr(path.relative_to(folder).as_posix(), path.read_bytes())
    return packed.getvalue()
