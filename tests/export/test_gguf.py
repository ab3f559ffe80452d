"""A run as one GGUF file: what is made, what is said of it, and that nothing half-written is left. The real llama.cpp is
asked where `make gguf` has built it, in `make test-all`."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from engine import processes, starter
from engine.export import NotExportable, gguf, job_runner, ollama
from engine.export.job import Job, State
from engine.gguf import llama_cpp
from engine.quantised import asking
from engine.runs import lifecycle
from engine.spec import recipes, schema
from engine.train import gguf as converter
from engine.workspace import Workspace, scratch
from tests.conftest import ROOT
from tests.fakes import llama_cpp as fake
from tests.helpers import wait_until

RUN = "20261130-000000-aaaaaa"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A home with one finished run that has made the starter whole."""
    made = Workspace(tmp_path / "home")
    spec, _ = recipes.resolve(
        recipes.recipes()["full"], base="starter", revision=None, parameters=None, dataset_id="a", overrides={}
    )
    run_dir = made.run_dir(RUN)
    run_dir.mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(spec))
    shutil.copytree(starter.MODEL_DIR, run_dir / "model")
    return made


def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **says: object) -> Path:
    folder = fake.lay_out(tmp_path / "llama; $(x)", starter.MODEL_DIR / "tokenizer.json", **says)
    monkeypatch.setenv(llama_cpp.NAMED_BY, str(folder))
    monkeypatch.setattr(processes, "start", fake.converting())
    monkeypatch.setattr(asking, "ask", lambda *_: None)
    return folder


def names(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in (workspace.run_dir(RUN) / "gguf").iterdir())


def test_a_file_of_fewer_bits_is_made_of_sixteen_that_are_not_kept_and_the_job_tells_how_far_it_is(
    workspace, tmp_path, monkeypatch
):
    fakes(tmp_path, monkeypatch)
    told: list[tuple[str, int, int]] = []
    made = job_runner.run(
        workspace, RUN, Job(what="gguf"), told=lambda s: told.append((s.phase, s.done_bytes, s.total_bytes))
    )
    assert made == str(gguf.file_of(workspace, RUN, "q4_k_m"))
    assert names(workspace) == [f"{RUN}-q4_k_m.{ending}" for ending in ("Modelfile", "gguf", "json")]
    assert list(dict.fromkeys(phase for phase, _, _ in told)) == ["converting", "quantizing", "reading", "asking"]
    assert ("converting", 2048, 4096) in told and {
        done / all_ for p, done, all_ in told if p == "quantizing" and all_
    } == {0.5, 1}
    written = gguf.read(Path(made))
    assert (
        written is not None
        and written.is_same
        and not written.found
        and written.texts == len(gguf.pre_tokenizers.TEXTS)
    )
    assert written.size_bytes == Path(made).stat().st_size == written.whole_bytes + 64
    text = Path(made).with_suffix(".Modelfile").read_text()
    assert text.startswith(f"FROM ./{RUN}-q4_k_m.gguf\n") and "<|user|>{{ .Content }}<|end|>" in text


def test_sixteen_bits_that_were_asked_for_are_used_for_the_next_file(workspace, tmp_path, monkeypatch):
    folder = fakes(tmp_path, monkeypatch, unknown=True)
    job_runner.run(workspace, RUN, Job(what="gguf", quantization="f16"))
    (folder / "says.json").write_text(json.dumps({**json.loads((folder / "says.json").read_text()), "refusing": "no"}))
    made = Path(job_runner.run(workspace, RUN, Job(what="gguf", quantization="q8_0")))
    written = gguf.read(made)
    assert written is not None and written.found and written.quantization == "q8_0"
    with pytest.raises(NotExportable, match="no"):  # it really would have been converted again
        job_runner.run(workspace, RUN, Job(what="gguf", quantization="f16"))


def test_a_tokenizer_that_llama_cpp_does_not_know_gets_the_first_way_with_the_same_tokens(
    workspace, tmp_path, monkeypatch
):
    fakes(tmp_path, monkeypatch, unknown=True, right="smollm", aborts=["qwen2"])
    written = gguf.read(Path(job_runner.run(workspace, RUN, Job(what="gguf"))))
    assert written is not None and written.found and written.pre_tokenizer == "smollm" and written.is_same
    assert "its way “smollm” gives the same tokens" in " ".join(written.lines())


def test_where_no_way_gives_the_same_tokens_the_nearest_ones_first_difference_is_said(workspace, tmp_path, monkeypatch):
    fakes(tmp_path, monkeypatch, unknown=True, right="none of them")
    with pytest.raises(
        NotExportable, match=r"“gpt-2” is wrong in \d+ of \d+ texts; at token 0 of “1” it reads “<\|pad\|>1” in"
    ):
        job_runner.run(workspace, RUN, Job(what="gguf"))
    assert names(workspace) == []


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        ({"refusing": "Model FooForCausalLM is not supported"}, "FooForCausalLM is not supported"),
        ({"quantizing": "llama_model_quantize: failed: no room"}, "could not be quantised"),
        ({"signal": 9}, "could not make the file"),
    ],
)
def test_what_fails_in_llama_cpp_is_passed_on_and_nothing_is_left(workspace, tmp_path, monkeypatch, says, sentence):
    fakes(tmp_path, monkeypatch, **says)
    with pytest.raises(NotExportable, match=sentence):
        job_runner.run(workspace, RUN, Job(what="gguf"))
    assert names(workspace) == []


def test_what_a_killed_job_left_goes_when_the_next_begins(workspace, tmp_path, monkeypatch):
    fakes(tmp_path, monkeypatch)
    dead = processes.start("engine.in_line")
    dead.wait()
    left = workspace.run_dir(RUN) / "gguf" / scratch("gguf").replace(str(os.getpid()), str(dead.pid))
    left.mkdir(parents=True)
    (left / "f16.gguf").write_bytes(b"half")
    job_runner.run(workspace, RUN, Job(what="gguf"))
    assert not left.exists() and len(names(workspace)) == 3


def test_a_job_that_is_killed_takes_its_processes_with_it_and_the_next_one_works(workspace, tmp_path, monkeypatch):
    pid_file = tmp_path / "writing"
    folder = fakes(tmp_path, monkeypatch, writing=str(pid_file))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    job_runner.run(workspace, RUN, Job(what="gguf", quantization="f16"))
    job_runner.start(workspace, RUN, Job(what="gguf", quantization="q8_0"))
    writer = wait_until(
        lambda: pid_file.is_file() and pid_file.read_text() and processes.identify(int(pid_file.read_text()))
    )
    with pytest.raises(lifecycle.CannotDelete, match="is being exported"):
        lifecycle.delete(workspace, RUN, all_the_same=True)
    job = job_runner.progress(workspace, RUN)
    assert job is not None and job.process is not None and processes.alive(writer)
    os.kill(job.process.pid, signal.SIGKILL)
    wait_until(lambda: not processes.alive(writer))
    job = job_runner.progress(workspace, RUN)
    assert job is not None and "was ended before it was done" in str(job.failure)
    told = json.loads((folder / "says.json").read_text())
    (folder / "says.json").write_text(json.dumps({name: value for name, value in told.items() if name != "writing"}))
    job_runner.run(workspace, RUN, Job(what="gguf", quantization="q8_0"))
    assert len(names(workspace)) == 6 and not any(name.startswith(".") for name in names(workspace))


def test_a_job_that_is_stopped_ends_with_its_processes_and_leaves_what_was_whole_alone(
    workspace, tmp_path, monkeypatch
):
    pid_file = tmp_path / "writing"
    fakes(tmp_path, monkeypatch, writing=str(pid_file))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    job_runner.run(workspace, RUN, Job(what="gguf", quantization="f16"))
    whole = names(workspace)
    job_runner.start(workspace, RUN, Job(what="gguf", quantization="q8_0"))
    begun = job_runner.progress(workspace, RUN)
    writer = wait_until(
        lambda: pid_file.is_file() and pid_file.read_text() and processes.identify(int(pid_file.read_text()))
    )
    job = job_runner.progress(workspace, RUN)
    assert begun is not None and job is not None and job.phase == "quantizing"
    assert 0 < begun.began_s == job.began_s <= job.counted_from_s

    job_runner.stop(workspace, RUN)

    assert not processes.alive(job.process) and names(workspace) == whole
    wait_until(lambda: not processes.alive(writer))
    assert job_runner.progress(workspace, RUN) is None
    job_runner.stop(workspace, RUN)  # there is none any more


@pytest.mark.parametrize(
    ("done", "took_s", "left_s"), [(0, 100.0, None), (25, 1.0, None), (25, 10.0, 30.0), (100, 10.0, 0.0)]
)
def test_what_is_left_of_a_phase_is_told_by_its_share_once_there_is_one(done, took_s, left_s):
    state = State(job=Job(what="gguf"), done_bytes=done, total_bytes=100, counted_from_s=50.0)
    assert state.left_s(50.0 + took_s) == left_s


def test_sixteen_bits_that_were_cut_or_whose_record_is_damaged_are_made_anew(workspace, tmp_path, monkeypatch):
    fakes(tmp_path, monkeypatch)
    whole = Path(job_runner.run(workspace, RUN, Job(what="gguf", quantization="f16")))
    size = whole.stat().st_size
    os.truncate(whole, size // 2)
    assert gguf.read(whole) is None
    made = gguf.read(Path(job_runner.run(workspace, RUN, Job(what="gguf"))))
    assert made is not None and made.whole_bytes == size
    job_runner.run(workspace, RUN, Job(what="gguf", quantization="f16"))
    told = json.loads(whole.with_suffix(".json").read_text())
    whole.with_suffix(".json").write_text(json.dumps({**told, "whole_bytes": 0}))
    assert gguf.read(whole) is None  # a size of which no share can be said


def test_what_the_file_says_otherwise_than_the_model_is_said(workspace, tmp_path, monkeypatch):
    fakes(tmp_path, monkeypatch, template="{{ messages }}", begins=True, ends=[], right="another")
    written = gguf.read(Path(job_runner.run(workspace, RUN, Job(what="gguf"))))
    assert written is not None and not written.is_same
    rules = [one.rule for one in written.problems]
    assert rules == ["gguf-read-template", "gguf-read-bos-added", "gguf-read-ends"]
    said = " ".join(written.lines())
    assert (
        "puts a beginning-of-text token" in said
        and "not in llama.cpp: <|end|>" in said
        and "become other tokens" in said
    )


def test_an_added_token_that_became_another_is_said():
    own = gguf.Coder.of_folder(starter.MODEL_DIR, "starter")
    answer = {"begins": False, "ends": list(own.stops)}
    values = {
        "tokenizer.chat_template": (starter.MODEL_DIR / "chat_template.jinja").read_text(),
        "tokenizer.ggml.tokens": ["<|pad|>", "<|end|>", "<|system|>", "?", "<|assistant|>"],
        "tokenizer.ggml.token_type": [3, 3, 3, 3, 1],
    }
    (found,) = gguf.problems(values, starter.MODEL_DIR, own, answer)
    assert found.rule == "gguf-read-added" and (found.parameters["n"], found.parameters["first"]) == (2, "<|user|>")


def test_where_llama_cpp_was_not_built_it_says_how(workspace, tmp_path, monkeypatch):
    monkeypatch.delenv(llama_cpp.NAMED_BY, raising=False)
    monkeypatch.setattr(llama_cpp, "built_at", lambda: tmp_path / "nothing")
    with pytest.raises(NotExportable, match="make gguf"):
        job_runner.run(workspace, RUN, Job(what="gguf"))
    with pytest.raises(NotExportable, match=r"there is no llama\.cpp in"):
        job_runner.run(workspace, RUN, Job(what="gguf", checkout=str(tmp_path)))


def test_a_converter_that_is_named_is_run_with_the_libraries_that_were_built(tmp_path, monkeypatch):
    built = fake.lay_out(tmp_path / "built", starter.MODEL_DIR / "tokenizer.json")
    monkeypatch.delenv(llama_cpp.NAMED_BY, raising=False)
    monkeypatch.setattr(llama_cpp, "built_at", lambda: built)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "convert_hf_to_gguf.py").touch()
    there = gguf.parts(str(tmp_path / "mine"))
    assert there is not None and there.folder == tmp_path / "mine" and there.libraries == built / "lib"


def test_a_disk_too_small_for_the_file_is_said_before_anything_is_written(workspace, tmp_path, monkeypatch):
    fakes(tmp_path, monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 51 * 2**20))
    with pytest.raises(NotExportable, match="MiB are free"):
        job_runner.run(workspace, RUN, Job(what="gguf"))
    assert not (workspace.run_dir(RUN) / "gguf").exists()
    size = 10**9
    assert gguf.needed_bytes(Job(what="gguf"), size, tmp_path / "none") == size * 1.5
    assert gguf.needed_bytes(Job(what="gguf", quantization="f16"), size, tmp_path / "none") == size


def test_settings_that_transformers_5_calls_otherwise_have_the_names_that_the_converter_reads():
    turned = {"model_type": "gpt_neox", "rope_parameters": {"partial_rotary_factor": 0.25}}
    assert converter._as_before(turned)["rotary_pct"] == 0.25
    assert converter._as_before({"model_type": "gpt2", "n_positions": 64})["n_ctx"] == 64
    mixed = {"model_type": "granitemoehybrid", "layer_types": ["linear_attention", "full_attention"]}
    assert converter._as_before(mixed)["layer_types"] == ["linear_attention", "attention"]
    assert converter._as_before({"model_type": "llama"}) == {"model_type": "llama"}


# --- Ollama ------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called ollama, which writes down where and how it was called."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "ollama").write_text(
        f'#!/bin/sh\npwd > "{folder}/told"\necho "$@" >> "{folder}/told"\nexec "{folder}/then"\n'
    )
    (folder / "then").write_text("#!/bin/sh\n")
    for one in folder.iterdir():
        one.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def named(workspace: Workspace, run_id: str, name: str) -> str:
    """Give a run a name and return what its file is called in Ollama."""
    (workspace.run_dir(run_id) / "meta.json").write_text(json.dumps({"name": name}))
    return ollama.name_of(workspace, run_id, "f16")


def test_a_runs_name_in_ollama_is_its_own_in_safe_letters_and_no_two_runs_share_one(workspace):
    assert named(workspace, RUN, "New facts · LoRA · Café 2.jsonl") == "new-facts-lora-cafe-2-jsonl:f16"
    assert named(workspace, RUN, "; rm -rf ~ $(x) ../..:latest\n") == "rm-rf-x-latest:f16"
    assert named(workspace, RUN, "入门模型") == "tunebook-aaaaaa:f16"
    assert named(workspace, RUN, "long " * 40) == "-".join(["long"] * 12) + ":f16"
    other = "20261130-000001-bbbbbb"
    shutil.copytree(workspace.run_dir(RUN), workspace.run_dir(other))
    assert named(workspace, other, "New facts: LoRA") == "new-facts-lora:f16"
    assert named(workspace, RUN, "New facts · LoRA") == "new-facts-lora-aaaaaa:f16"


def test_ollama_takes_the_file_in_under_the_runs_name(workspace, tmp_path, monkeypatch, program):
    fakes(tmp_path, monkeypatch)
    named(workspace, RUN, "New facts · LoRA · Starter 2")
    with pytest.raises(NotExportable, match="make it first"):
        job_runner.run(workspace, RUN, Job(what="ollama"))
    job_runner.run(workspace, RUN, Job(what="gguf"))
    assert job_runner.run(workspace, RUN, Job(what="ollama")) == "new-facts-lora-starter-2:q4_k_m"
    where, how = (program / "told").read_text().splitlines()
    assert Path(where) == workspace.run_dir(RUN) / "gguf"
    assert how == f"create new-facts-lora-starter-2:q4_k_m -f {RUN}-q4_k_m.Modelfile"
    (program / "then").write_text("#!/bin/sh\necho 'Error: could not connect' >&2\nexit 1\n")
    with pytest.raises(NotExportable, match="could not connect; see whether its server runs"):
        job_runner.run(workspace, RUN, Job(what="ollama"))


def test_a_template_that_gives_other_tokens_in_ollama_is_not_written(tmp_path, monkeypatch):
    shutil.copytree(starter.MODEL_DIR, tmp_path / "model")
    assert "TEMPLATE" in ollama.modelfile(tmp_path / "model", "./a.gguf")
    without_ends = "".join(
        f'{{{{ {word} eq .Role "{role}" }}}}<|{role}|>{{{{ .Content }}}}'
        for word, role in (("if", "system"), ("else if", "user"), ("else if", "assistant"))
    )
    made = "{{ range .Messages }}" + without_ends + "{{ end }}{{ end }}<|assistant|>"
    monkeypatch.setattr(ollama, "template", lambda *_, **__: (made, "", "<|end|>"))
    monkeypatch.setattr(processes, "IS_CHILD", True)
    assert "TEMPLATE" not in ollama.modelfile(tmp_path / "model", "./a.gguf")
