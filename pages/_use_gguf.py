"""Use it, as one file: a GGUF file for llama.cpp, Ollama and the like, made, downloaded, and taken into Ollama."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import msgspec
import streamlit as st

from engine import limits
from engine.export import gguf, ollama
from engine.export import job as export_job
from engine.runs import store
from engine.spec import OBJECTIVES
from engine.words import Problem, joined, t
from engine.workspace import Workspace
from pages import _ui, _use_loss

# A browser gets a download through the server's memory.
MOST_DOWNLOAD_BYTES = 2 * 10**9
CHECKOUT_EXAMPLE = "~/llama.cpp"


def too_large(path: Path, size: int) -> bool:
    """Say where a download lies that is too large for a browser, and whether it is."""
    if size <= MOST_DOWNLOAD_BYTES:
        return False
    st.caption(t("It is too large for a browser; it lies here:"))
    st.code(path.name if limits.on() else str(path), language=None, wrap_lines=True)
    return True


def show(here: Workspace, run_id: str, *, busy: bool, start: Callable[[export_job.Job], None]) -> None:
    """Offer a run as one file. `start` begins a job; `busy` says that one is under way."""
    if OBJECTIVES[store.load_spec(here, run_id).objective].is_judge:
        st.caption(t("A reward model gives scores, and llama.cpp writes text."))
        return
    if limits.on():
        st.caption(_ui.plain(Problem(rule="demo-export").sentence))
        return
    bits = {
        "q4_k_m": t("Q4_K_M, about 5 bits"),
        "q8_0": t("Q8_0, about 8 bits"),
        "f16": t("F16, nothing quantised"),
    }
    kind = st.radio(
        t("One file for llama.cpp, Ollama, LM Studio and the like"),
        list(bits),
        format_func=lambda name: _ui.plain(bits[name]),
        horizontal=True,
        key="quantization",
    )
    file = gguf.file_of(here, run_id, kind)
    written = gguf.read(file)
    if written is None:
        _make(busy, start, kind)
        return
    _download(file, written.size_bytes)
    _use_loss.show(here, run_id, kind, written.size(), busy=busy, ask=lambda: start(_job("ask", kind)))
    said = _ui.plain(joined(*written.lines()))
    if written.is_same:
        st.caption(f":material/check: {said}")
    else:
        st.warning(said)
    _ollama(file, ollama.name_of(here, run_id, kind), busy, lambda: start(_job("ollama", kind)))


def _job(what: str, kind: str, folder: str | None = None, **how: bool) -> export_job.Job:
    return msgspec.convert({"what": what, "quantization": kind, "checkout": folder, **how}, export_job.Job)


def _make(busy: bool, start: Callable[[export_job.Job], None], kind: str) -> None:
    folder = str(st.session_state.get("llama_cpp", "")).strip() or None
    lacking = gguf.problem(_job("gguf", kind, folder))
    if lacking is not None:
        st.info(_ui.plain(lacking.sentence))
    into_ollama, ask = ollama.program() is not None, not st.session_state.get("without_asking", False)
    label = t("Make the file and give it to Ollama") if into_ollama else t("Make the file")
    if st.button(_ui.plain(label), type="primary", disabled=busy or lacking is not None, key="gguf"):
        start(_job("gguf", kind, folder, ask=ask, into_ollama=into_ollama))
    with st.expander(t("Without asking what it lost; another llama.cpp")):
        st.checkbox(
            t("Do not ask it what the run was asked"),
            help=t("Asking takes about as long as scoring the run did; without it nothing says what the file lost."),
            key="without_asking",
        )
        st.text_input(t("Its folder"), placeholder=CHECKOUT_EXAMPLE, key="llama_cpp")


def _download(file: Path, size: int) -> None:
    if too_large(file, size):
        return
    st.download_button(
        t("Download the file ({size} MB)", size=f"{size / 1e6:,.1f}"),
        file.read_bytes,  # on a click: an open file would be read whole each time the page is shown
        file_name=file.name,
        mime="application/octet-stream",
        type="primary",
        on_click="ignore",
        key="download_gguf",
    )


def _ollama(file: Path, name: str, busy: bool, create: Callable[[], None]) -> None:
    if ollama.program() is not None:
        if st.button(_ui.say("Ollama: create {name}", name=name), disabled=busy, key="ollama"):
            create()
        return
    modelfile = ollama.modelfile_of(file)
    st.markdown(f"**{_ui.plain(t('For Ollama'))}**")
    place = modelfile.name if limits.on() else shlex.quote(str(modelfile))
    st.code(f"ollama create {name} -f {place}\nollama run {name}", language="bash", wrap_lines=True)
    text = modelfile.read_text("utf-8") if modelfile.is_file() else ""
    st.download_button(
        t("Download the Modelfile, for another machine"), text, modelfile.name, "text/plain",
        on_click="ignore", key="download_modelfile", icon=":material/download:",
    )  # fmt: skip
