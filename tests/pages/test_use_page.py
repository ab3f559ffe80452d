"""The "Use it" part of the Runs page."""

from __future__ import annotations

import os
import time

import msgspec
import pytest
import streamlit as st

from engine import processes
from engine.export import gguf, job_runner, ollama
from engine.export import job as export_job
from engine.gguf import llama_cpp
from engine.processes import Identity
from engine.quantised import lost
from engine.serve import programs, serving
from engine.workspace import Workspace, write_atomically
from tests.apps import button, exporting, has_button, shown, texts

pytestmark = pytest.mark.train


@pytest.fixture(autouse=True)
def _no_llama_cpp(tmp_path, monkeypatch) -> None:
    """What `make gguf` may have built here is not looked at."""
    monkeypatch.delenv(llama_cpp.NAMED_BY, raising=False)
    monkeypatch.setattr(llama_cpp, "built_at", lambda: tmp_path / "llama.cpp")


def codes(app) -> str:
    return "\n".join(str(element.value) for element in app.code)


def chosen(app, section: str) -> None:
    next(w for w in app.radio if w.key == "use_section").set_value(section).run()


def test_a_finished_run_offers_every_way_to_use_it(workspace, real_run, monkeypatch):
    app = exporting(real_run)
    ways = next(w for w in app.radio if w.key == "use_section")
    assert ways.options == ["Adapter", "Merged model", "GGUF, Ollama", "Serve it", "Hub", "Other trainers"]
    assert "give the same" in texts(app) and "token ids as in training" in texts(app) and "PeftModel" in codes(app)
    started: list[export_job.Job] = []
    monkeypatch.setattr(job_runner, "start", lambda _here, _run, job, token=None: started.append(job))
    ways.set_value("merged").run()
    button(app, "merge").click().run()
    assert started == [export_job.Job(what="merged")]
    chosen(app, "trainers")
    assert "SFTTrainer" in codes(app) and f"tunebook export {real_run}" in codes(app)
    next(w for w in app.radio if w.key == "trainer").set_value("axolotl").run()
    assert "base_model: base" in codes(app) and not app.exception
    chosen(app, "ollama")
    kinds = next(w for w in app.radio if w.key == "quantization").options
    assert "make gguf" in texts(app) and shown(kinds[0]) == "Q4_K_M, about 5 bits"
    assert button(app, "gguf").disabled
    monkeypatch.setattr(gguf, "problem", lambda job: None)
    app.run()
    button(app, "gguf").click().run()
    assert started[-1] == export_job.Job(what="gguf", quantization="q4_k_m") and not app.exception


def test_a_folder_that_holds_no_llama_cpp_is_said_on_the_page(workspace, real_run, tmp_path):
    app = exporting(real_run)
    chosen(app, "ollama")
    next(w for w in app.text_input if w.key == "llama_cpp").set_value(str(tmp_path)).run()
    assert button(app, "gguf").disabled
    assert "there is no llama.cpp in" in texts(app) and "make gguf" in texts(app)


def test_a_file_that_was_made_is_downloaded_with_what_was_read_back_of_it_and_two_lines_for_ollama(
    workspace, real_run, monkeypatch
):
    file = gguf.file_of(workspace, real_run, "q4_k_m")
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    ollama.modelfile_of(file).write_text("FROM ./it.gguf")
    written = gguf.Written(
        quantization="q4_k_m", size_bytes=4, whole_bytes=10, pre_tokenizer="gpt-2", found=True, texts=5, tokens=50
    )
    write_atomically(file.with_suffix(".json"), msgspec.json.encode(written))
    monkeypatch.setattr(ollama, "program", lambda: None)
    app = exporting(real_run)
    chosen(app, "ollama")
    assert "0.40 of the size in 16 bits. What it lost against the model was not measured yet." in texts(app)
    assert "llama.cpp does not know this tokenizer" in texts(app)
    # as it lies: no step is left before these lines
    assert f"ollama create a-real-run:q4_k_m -f {ollama.modelfile_of(file)}" in codes(app)
    offered = [one.proto.label for one in app.get("download_button")]
    assert "Download the file" in offered[0] and "Download the Modelfile, for another machine" in offered
    started: list[export_job.Job] = []
    monkeypatch.setattr(job_runner, "start", lambda _here, _run, job, token=None: started.append(job))
    monkeypatch.setattr(ollama, "program", lambda: "/usr/bin/ollama")
    button(app, "ask_file").click().run()
    assert started.pop() == export_job.Job(what="ask", quantization="q4_k_m")
    told = lost.Lost(
        quantization="q4_k_m", size_bytes=4, mtime_ns=file.stat().st_mtime_ns, plain_bytes=10, same=lost.Same(20)
    )
    lost.folder_of(file).mkdir()
    write_atomically(lost.folder_of(file) / lost.LOST, msgspec.json.encode(told))
    app.run()
    assert "Q4_K_M: 20 of 20 greedy answers are the same at 0.40 of the size" in texts(app)
    assert "of the size in 16 bits" not in texts(app)  # once
    button(app, "ollama").click().run()
    assert started == [export_job.Job(what="ollama", quantization="q4_k_m")] and not app.exception


def test_a_job_under_way_says_its_part_its_share_and_its_clock_and_can_be_stopped(workspace, real_run, monkeypatch):
    now_s = time.monotonic()
    state = export_job.State(
        job=export_job.Job(what="gguf"), phase="quantizing", done_bytes=25, total_bytes=100,
        process=processes.identify(os.getpid()), began_s=now_s - 1200, counted_from_s=now_s - 600,
    )  # fmt: skip
    write_atomically(workspace.run_dir(real_run) / export_job.STATE, msgspec.json.encode(state))
    ended: list[Identity | None] = []
    monkeypatch.setattr(processes, "end", lambda process, most_s: ended.append(process))
    app = exporting(real_run)
    said = [shown(bar.proto.text) for bar in app.get("progress")]
    assert said == ["llama.cpp is quantising: 25 %, about 30 min left of this part; 20:00 so far"]
    button(app, "export_stop").click().run()
    assert ended == [state.process] and not app.get("progress") and not app.exception
    assert job_runner.progress(workspace, real_run) is None


def test_how_a_job_ended_is_said_once_and_can_be_put_away(workspace, real_run):
    run_dir = workspace.run_dir(real_run)
    state = export_job.State(job=export_job.Job(what="merged"), process=Identity(2**22 + 1, 1.0, "x"))
    write_atomically(run_dir / export_job.STATE, msgspec.json.encode(state))
    app = exporting(real_run)
    assert "the export was ended before it was done" in texts(app)
    button(app, "export_forget").click().run()
    assert "the export was ended" not in texts(app) and not (run_dir / export_job.STATE).exists()


@pytest.mark.parametrize(
    ("what", "note"),
    [
        ("merged", 'The merged model is made: see "Merged model".'),
        ("gguf", 'Q8_0 is made: see "GGUF, Ollama".'),
        ("ask", 'What Q8_0 lost is measured: see "GGUF, Ollama".'),
    ],
)
def test_what_was_made_is_called_by_its_name_and_not_by_its_folder(workspace, real_run, what, note):
    state = export_job.State(job=export_job.Job(what=what, quantization="q8_0"), made="gguf/it.gguf")
    write_atomically(workspace.run_dir(real_run) / export_job.STATE, msgspec.json.encode(state))
    app = exporting(real_run)
    assert note in texts(app) and "it.gguf" not in texts(app)


def test_looking_at_a_download_reads_none_of_it(workspace, real_run, monkeypatch):
    file = gguf.file_of(workspace, real_run, "q4_k_m")
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    written = gguf.Written(
        quantization="q4_k_m", size_bytes=4, whole_bytes=10, pre_tokenizer="gpt-2", found=True, texts=5, tokens=50
    )
    write_atomically(file.with_suffix(".json"), msgspec.json.encode(written))
    offered: dict[str, object] = {}
    monkeypatch.setattr(st, "download_button", lambda _, data, *, key, **__: offered.update({key: data}))
    app = exporting(real_run)
    chosen(app, "ollama")
    assert set(offered) == {"download", "download_gguf"} and all(map(callable, offered.values()))


def test_the_recipe_is_packed_with_its_rows(workspace, real_run):
    import io
    import zipfile

    from pages import _use

    with zipfile.ZipFile(io.BytesIO(_use._packed(Workspace(workspace.root), real_run, "trl"))) as archive:
        names = archive.namelist()
    assert {"trl/train.py", "trl/train.jsonl", "trl/eval.jsonl", "trl/base/model.safetensors"} <= set(names)


def test_a_run_is_served_seen_and_ended_on_its_page(workspace, real_run, monkeypatch):
    begun = serving.Serving(run=real_run, program="transformers", key="the-key")
    begun.process = processes.identify(os.getpid())
    asked: list[str | None] = []

    def start(_here: Workspace, _run: str, *, quantization: str | None) -> None:
        asked.append(quantization)
        serving.write(workspace, begun)

    monkeypatch.setattr(serving, "start", start)
    monkeypatch.setattr(programs, "MODULES", ("no_such_module",))
    app = exporting(real_run)
    chosen(app, "serve")
    assert "nothing on this machine can serve this run" in texts(app) and not has_button(app, "serve")
    monkeypatch.setattr(programs, "MODULES", ("msgspec",))
    app.run()
    button(app, "serve").click().run()
    assert asked == ["transformers"] and has_button(app, "serve_stop") and "Its key" not in texts(app)
    begun.phase, begun.port = "serving", 8703
    serving.write(workspace, begun)
    app.run()
    assert "It is served at http://127.0.0.1:8703/v1" in texts(app)
    assert "the-key" in codes(app) and "from openai import OpenAI" in codes(app) and "curl" in codes(app)
    monkeypatch.setattr(os, "kill", lambda *_: None)  # it is this very process that is said to serve
    monkeypatch.setattr(processes, "alive", lambda _identity: False)
    app.run()
    assert "the program that answers was ended from outside" in texts(app) and has_button(app, "serve")
    button(app, "serve_forget").click().run()
    assert "ended from outside" not in texts(app) and serving.now(workspace, real_run) is None and not app.exception
