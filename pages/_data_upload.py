"""Bringing a file: the upload that streams to disk, and the check of a large one with its progress and time left."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.components.v2 import component

from engine import limits
from engine.check import DatasetError, text_files
from engine.data import Dataset, jobs, uploads
from engine.data import fixes as data_fixes
from engine.estimate import memory
from engine.plan import take_along
from engine.words import language, t
from engine.workspace import Workspace
from pages import _failures, _jobs, _ui

# What Streamlit's own uploader may hold in memory; it stands in where the pages are served without our upload route.
FALLBACK_LIMIT_MB = 1
POLL_S = 0.5

_HTML = """
<div class="zone">
  <input type="file" id="file" multiple data-testid="stFileUploaderDropzoneInput">
  <label for="file"></label>
  <span class="hint"></span>
  <div class="going" hidden>
    <progress max="1" value="0"></progress>
    <span class="said" role="status"></span>
    <button type="button"></button>
  </div>
</div>
"""

_CSS = """
.zone { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: center; padding: 1.1rem 1.2rem;
  border: 1px dashed var(--st-border-color); border-radius: var(--st-base-radius);
  background: var(--st-secondary-background-color); color: var(--st-text-color); font-family: var(--st-font); }
.zone.over { border-color: var(--st-primary-color); border-style: solid; }
input { position: absolute; width: 1px; height: 1px; opacity: 0; }
label, button { padding: .45rem .9rem; border: 1px solid var(--st-border-color); font: inherit; cursor: pointer;
  border-radius: var(--st-button-radius); background: var(--st-background-color); color: var(--st-text-color); }
label:hover, button:hover { border-color: var(--st-primary-color); }
input:focus-visible + label, button:focus-visible { outline: 3px solid var(--st-primary-color); outline-offset: 2px; }
.zone.busy > input, .zone.busy > label, .zone.busy > .hint { display: none; }
.going { display: flex; flex: 1; flex-wrap: wrap; gap: .6rem 1rem; align-items: center; }
.going[hidden] { display: none; }
progress { flex: 1 1 12rem; height: .6rem; accent-color: var(--st-primary-color); }
"""

# Runs again whenever Python sends new data, so everything is assigned and nothing is added twice.
_JS = """
const uploads = new WeakMap();

export default function ({ parentElement, data, setTriggerValue }) {
  const find = selector => parentElement.querySelector(selector);
  const zone = find(".zone"), input = find("input"), going = find(".going"), said = find(".said");
  const bar = find("progress"), cancel = find("button"), texts = data.texts;
  find("label").textContent = texts.choose;
  find(".hint").textContent = texts.hint;
  cancel.textContent = texts.cancel;
  bar.setAttribute("aria-label", texts.bar);

  const idle = () => {
    uploads.delete(parentElement);
    zone.classList.remove("busy");
    going.hidden = true;
    input.value = "";
  };
  const refused = answer => { idle(); setTriggerValue("refused", answer); };
  const left = seconds => seconds < 90 ? texts.seconds.replace("{n}", Math.max(1, Math.round(seconds)))
    : texts.minutes.replace("{n}", Math.round(seconds / 60));

  const isText = file => data.endings.some(ending => file.name.toLowerCase().endsWith(ending));

  // One file, or several texts one after the other; what was sent before one is refused is left to be cleaned up.
  const send = async (files, sent = []) => {
    const file = files[sent.length];
    if (!file || uploads.has(parentElement)) return;
    if (files.length > 1 && !files.every(isText)) return refused({ rule: "upload-several", parameters: {} });
    if (file.size > data.limit_bytes) {
      return refused({ rule: "upload-too-large", parameters: { limit_mib: data.limit_bytes / 1048576 } });
    }
    const request = new XMLHttpRequest();
    uploads.set(parentElement, request);
    zone.classList.add("busy");
    going.hidden = false;
    bar.value = 0;
    said.textContent = file.name;
    const headers = { [data.header]: data.ticket };
    try {
      const room = await fetch(data.route, { method: "POST", headers: { ...headers, "X-Tunebook-Size": file.size } });
      if (!room.ok) return refused(await room.json());
    } catch { return refused({}); }
    if (uploads.get(parentElement) !== request) return;
    const began = performance.now();
    let shown = 0;
    request.upload.onprogress = event => {
      const share = event.total ? event.loaded / event.total : 0, now = performance.now();
      bar.value = share;
      if (now - shown < 500 && share < 1) return;  // a status that is read aloud should not chatter
      shown = now;
      const seconds = (now - began) / 1000;
      said.textContent = `${file.name}: ${Math.floor(share * 100)} %` +
        (seconds > 1 && share < 1 ? `, ${left(seconds / share - seconds)}` : "");
    };
    request.onload = () => {
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch { /* said below */ }
      if (request.status !== 201) return refused(answer);
      const all = [...sent, { id: answer.upload, name: file.name }];
      idle();
      if (all.length < files.length) return send(files, all);
      setTriggerValue("uploaded", { files: all });
    };
    request.onerror = () => refused({});
    request.onabort = idle;
    request.open("PUT", data.route);
    request.setRequestHeader(data.header, data.ticket);
    request.send(file);
  };

  input.onchange = () => send([...input.files]);
  cancel.onclick = () => { const request = uploads.get(parentElement); idle(); if (request) request.abort(); };
  zone.ondragover = event => { event.preventDefault(); zone.classList.add("over"); };
  zone.ondragleave = () => zone.classList.remove("over");
  zone.ondrop = event => {
    event.preventDefault();
    zone.classList.remove("over");
    send([...event.dataTransfer.files]);
  };
  return () => { const request = uploads.get(parentElement); if (request) { idle(); request.abort(); } };
}
"""

_uploader = component("tunebook_upload", html=_HTML, css=_CSS, js=_JS)


def widget(workspace: Workspace) -> None:
    """Let a person bring a file, by choosing or dropping it, and check it."""
    if uploads.route() is not None:
        size = memory.size_words(uploads.limit_bytes())
        if limits.on():
            rows = f"{limits.limits().rows:,}"
            st.caption(
                _ui.say(
                    "JSON Lines, a JSON array or CSV, also gzipped; in this demo at most {size} and {n} rows.",
                    size=size,
                    n=rows,
                )
            )
        else:
            st.caption(
                _ui.say(
                    "JSON Lines, a JSON array, CSV or Parquet, also gzipped; or texts (.md, .txt), several at once; "
                    "at most {size}.",
                    size=size,
                )
            )
    label = t("JSON Lines, a JSON array, CSV or Parquet; at most {n} MB", n=FALLBACK_LIMIT_MB)
    files = received(workspace, "upload", label, endings=text_files.ENDINGS)
    if len(files) == 1 and not limits.on() and take_along.holds_one(files[0][0]):
        _take_in(workspace, files[0][0])
    elif len(files) == 1:
        store(workspace, *files[0], remove=True)
    elif files:
        name = t("{first} and {n} more", first=files[0][1], n=len(files) - 1)
        texts = tuple((str(path), name) for path, name in files)
        call = jobs.Call(workspace=str(workspace.root), texts=texts, name=name, remove_source=True)
        _begin(call, sum(path.stat().st_size for path, _ in files))


def _take_in(workspace: Workspace, file: Path) -> None:
    """Open what was taken along from another Tunebook: its data, and Train with its settings."""
    try:
        with st.spinner(t("Checking ...")):
            opened = take_along.unpack(workspace, file)
    except DatasetError as error:
        st.error(_ui.plain(error.problem.sentence))
    else:
        if opened.dataset is not None:
            _ui.choose("dataset", opened.dataset.id)
        _ui.go("train", draft=opened.draft_id)
    finally:
        file.unlink(missing_ok=True)


def received(
    workspace: Workspace, key: str, label: str, limit_bytes: int | None = None, endings: tuple[str, ...] = ()
) -> list[tuple[Path, str]]:
    """Let a person send a file, or several whose names have these endings, and return where they lie and what they are
    called, once; whoever takes them removes them.

    `label` is for where the pages are served without our upload route.
    """
    route = uploads.route()
    if route is None:
        return _fallback(workspace, key, label)
    ticket = uploads.ticket(workspace, st.session_state.get("upload_ticket"))
    st.session_state["upload_ticket"] = ticket
    done = _uploader(
        key=f"{key}er",
        data={
            "route": route,
            "header": uploads.TICKET_HEADER,
            "ticket": ticket,
            "limit_bytes": min(limit_bytes or uploads.limit_bytes(), uploads.limit_bytes()),
            "endings": list(endings),
            "texts": {
                "choose": t("Choose a file"),
                "hint": t("or drop it here"),
                "cancel": t("Cancel"),
                "bar": t("Upload"),
                "seconds": t("about {n} s left", n="{n}"),
                "minutes": t("about {n} min left", n="{n}"),
            },
        },
        on_uploaded_change=lambda: None,
        on_refused_change=lambda: None,
    )
    if done.refused is not None:
        st.error(_ui.plain(uploads.refusal(done.refused).sentence))
    if not isinstance(done.uploaded, dict):
        return []
    sent = done.uploaded.get("files")
    named = [one for one in sent if isinstance(one, dict)] if isinstance(sent, list) else []
    found = [(uploads.path_of(workspace, one.get("id")), str(one.get("name") or "data")[:1000]) for one in named]
    files = [(path, name) for path, name in found if path is not None]
    if not files or len(files) < len(found):
        st.error(_ui.plain(uploads.refusal(None).sentence))
        return []
    return files


def _fallback(workspace: Workspace, key: str, label: str) -> list[tuple[Path, str]]:
    upload = st.file_uploader(_ui.plain(label), key=key)
    if upload is None or st.session_state.get(f"taken_{key}") == upload.file_id:
        return []
    st.session_state[f"taken_{key}"] = upload.file_id
    target = workspace.uploads_dir / secrets.token_hex(8)
    try:
        workspace.uploads_dir.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            shutil.copyfileobj(upload, out, 1 << 20)
    except OSError:
        target.unlink(missing_ok=True)
        raise
    return [(target, upload.name)]


def store(workspace: Workspace, source: Path, name: str, *, remove: bool = False) -> None:
    """Check and store a file; with `remove` it is an upload that is not needed afterwards."""
    call = jobs.Call(workspace=str(workspace.root), source=str(source), name=name, remove_source=remove)
    try:
        size = source.stat().st_size if source.is_file() else 0
    except (OSError, ValueError):
        size = 0  # the check says what is wrong
    _begin(call, size)


def change(
    workspace: Workspace,
    dataset: Any,
    *,
    fixes: tuple[str | data_fixes.Edit, ...] = (),
    mapping: dict[str, str] | None = None,
) -> None:
    """Store a repaired or differently read copy of a data set and go on with it."""
    call = jobs.Call(workspace=str(workspace.root), dataset=dataset.id, fixes=fixes, mapping=mapping)
    _begin(call, (dataset.folder / "original").stat().st_size)


def check_again(workspace: Workspace, dataset: Dataset) -> None:
    """Offer to check data anew whose report an earlier version of the check made."""
    if not dataset.outdated:
        return
    left, right = st.columns([5, 3], vertical_alignment="center")
    left.caption(t("An earlier version of the check made this report."))
    if right.button(t("Check again"), key="check_again"):
        call = jobs.Call(workspace=str(workspace.root), dataset=dataset.id, again=True)
        _begin(call, (dataset.folder / "original").stat().st_size)


def _begin(call: jobs.Call, size_bytes: int) -> None:
    """Do what takes a moment at once, and what takes longer in a process that is watched."""
    st.session_state["mending"] = call.dataset if call.fixes else None
    if size_bytes <= jobs.SMALL_BYTES and not limits.on():  # in a demo a small file may cost the server much
        with st.spinner(t("Checking ...")):
            result = jobs.at_once(call)
        if result is not None:
            _take(result)
            return
    import msgspec

    call = msgspec.structs.replace(call, language=language())
    try:
        job = jobs.start(call)
    except limits.OverLimit as refused:
        st.session_state["data_problem"] = refused.problems[0]
        if call.remove_source and call.source:
            Path(call.source).unlink(missing_ok=True)
        st.rerun()
    watch(job)


def watch(job: Path) -> None:
    """Follow a job on this page, in the place of one that went on before."""
    before = st.session_state.get("job")
    if before:
        jobs.stop(Path(before))
    st.session_state["job"] = str(job)
    st.rerun()


def _take(result: jobs.Result) -> None:
    """Go on with what was made, or keep what is wrong for the page that is drawn next."""
    mending = st.session_state.pop("mending", None)
    if result.dataset:
        _ui.choose("dataset", result.dataset)
        st.session_state.pop("data_problem", None)
        if mending:
            st.session_state.pop(f"edits_{mending}", None)  # they are applied
            st.session_state["mended"] = True
            for kept in ("look", "view", "from", "search"):  # where a person stands among the rows
                if f"{kept}_{mending}" in st.session_state:
                    st.session_state[f"{kept}_{result.dataset}"] = st.session_state[f"{kept}_{mending}"]
    elif result.problem:
        st.session_state["data_problem"] = result.problem
    st.rerun()


def problem() -> None:
    """Say, once, what was wrong with the last file, or that it was mended: a click far down the page changes its top."""
    if st.session_state.pop("mended", False):
        st.toast(t("Mended. “Undo” stands under the name of the data."), icon=":material/check_circle:")
    found = st.session_state.pop("data_problem", None)
    if found is not None:
        st.error(_ui.plain(found.sentence))


def busy() -> bool:
    """Whether a large file is being checked; shows how far it is."""
    if not st.session_state.get("job"):
        return False
    _watch()
    return True


def rows_made(workspace: Workspace, dataset: Dataset) -> None:
    """See that the rows that training reads are there: those of a large file are made now, beside the page."""
    if dataset.has_rows:
        return
    call = jobs.Call(workspace=str(workspace.root), dataset=dataset.id, rows=True, language=language())
    if _jobs.begin("rows_job", dataset.id, call):
        _watch_rows()


@_failures.fragment(run_every=POLL_S)
def _watch_rows() -> None:
    def said(percent: int) -> str:
        return t("Making the rows ready for training: {percent} %", percent=percent)

    result = _jobs.followed("rows_job", said, "rows_again")
    if result is None:
        return
    if result.problem is not None:
        st.session_state["data_problem"] = result.problem
    st.rerun()


@_failures.fragment(run_every=POLL_S)
def _watch() -> None:
    """The progress of a check, by itself: the rest of the page stays usable."""
    job = st.session_state.get("job")
    if not job:
        return
    folder = Path(job)
    result = jobs.result(folder)
    if result is not None:
        jobs.forget(folder)
        del st.session_state["job"]
        _take(result)
    now = jobs.progress(folder)
    text = t("Checking: {percent} %", percent=int(100 * now.share))
    if now.passes > 1:
        text = t("Checking, pass {n}: {percent} %", n=now.passes, percent=int(100 * now.share))
    if _ui.job_bar(now, text, t("Cancel"), key="cancel_job"):
        jobs.stop(folder)
        st.session_state.pop("job", None)
        st.rerun()
