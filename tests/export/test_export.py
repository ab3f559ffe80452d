"""Export: a zip that loads elsewhere with the lines beside it, and holds nothing that runs code when it is opened."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import machine, starter
from engine.data import datasets
from engine.export import NotExportable, artifacts, job_runner, ollama, usage
from engine.export import archive as export_archive
from engine.export import job as export_job
from engine.export import parity as export_parity
from engine.models import bases
from engine.processes import Identity
from engine.render.template import Template
from engine.runs import store
from engine.spec import recipes, schema
from engine.workspace import Workspace
from tests import forked
from tests.conftest import tunebook
from tests.helpers import PROJECT_DIR

needs_starter = pytest.mark.skipif(
    not (starter.MANIFEST.is_file() and starter.MODEL_DIR.is_dir()), reason="engine/starter/model has not been built"
)
MADE = {"model": "model.safetensors", "adapter": "adapter_model.safetensors"}


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return Workspace(tmp_path / "home")


def ran(workspace: Workspace, recipe: str, base: str, made: str | None, run_id: str = "r1") -> Path:
    """A run folder with what a run of `recipe` on `base` made."""
    run_spec, problems = recipes.resolve(
        recipes.recipes()[recipe], base=base, revision=None, parameters=None, dataset_id="a", overrides={}
    )
    assert problems == []
    run_dir = workspace.run_dir(run_id)
    run_dir.mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(run_spec))
    if made is not None:
        (run_dir / made / "deep").mkdir(parents=True)
        (run_dir / made / MADE[made]).write_bytes(b"weights")
        (run_dir / made / "tokenizer.json").write_text("{}")
        (run_dir / made / "deep" / "note.txt").write_text("ü")
        (run_dir / made / "training_args.bin").write_bytes(b"\x80\x04.")
    return run_dir


def content(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def calls(source: str) -> list[tuple[str, list[Any]]]:
    """Each call of load.py with the constants it is given: [("from_pretrained", ["model"]), ...]."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found.append((node.func.attr, [a.value for a in node.args if isinstance(a, ast.Constant)]))
    return found


# --- the lines that load it --------------------------------------------------------------------------------------


def test_the_lines_of_a_full_model_load_its_folder(workspace):
    ran(workspace, "full", "owner/name", "model")
    lines = usage.load_script(workspace, "r1")
    loaded = [arguments for name, arguments in calls(lines) if name == "from_pretrained"]
    assert loaded == [["model"], ["model"]] and "peft" not in lines


@pytest.mark.parametrize(("base", "named"), [("starter", "base"), ("owner/name", "owner/name")])
def test_the_lines_of_an_adapter_load_its_base_first(workspace, base, named):
    ran(workspace, "lora", base, "adapter")
    lines = usage.load_script(workspace, "r1")
    loaded = [arguments for name, arguments in calls(lines) if name == "from_pretrained"]
    assert loaded == [["adapter"], [named], ["adapter"]]
    assert lines.index("AutoModelForCausalLM.from_pretrained") < lines.index("PeftModel.from_pretrained")


@pytest.mark.parametrize("recipe", ["full", "lora"])
@pytest.mark.parametrize("question", ['say "hi"', "it's {odd} {0}", "a\nb\\", "日本", "''' + exit() + '''", ""])
def test_a_question_is_only_ever_a_text_in_the_lines(workspace, recipe, question):
    ran(workspace, recipe, "owner/name", "model" if recipe == "full" else "adapter")
    tree = ast.parse(usage.load_script(workspace, "r1", question))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert question in texts
    names = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert names == {"print"}


def test_a_folder_with_quotes_in_its_name_is_only_a_text_too(workspace):
    folder = '/tmp/it\'s "mine"'
    ran(workspace, "lora", folder, "adapter")
    assert ("from_pretrained", [folder]) in calls(usage.load_script(workspace, "r1"))


# --- the download ------------------------------------------------------------------------------------------------


def test_a_full_model_is_one_zip_with_its_lines_and_spec_and_no_pickle(workspace):
    run_dir = ran(workspace, "full", "owner/name", "model")
    path = export_archive.write_zip(workspace, "r1")
    assert path == run_dir / "model.zip"
    found = content(path)
    assert sorted(found) == [
        "load.py", "model/deep/note.txt", "model/model.safetensors", "model/tokenizer.json", "spec.json"
    ]  # fmt: skip
    assert found["model/model.safetensors"] == b"weights"
    assert found["load.py"].decode() == usage.load_script(workspace, "r1")
    assert found["spec.json"] == (run_dir / "spec.json").read_bytes()


def test_an_adapter_on_a_public_base_travels_alone(workspace):
    ran(workspace, "lora", "owner/name", "adapter")
    folders = {name.partition("/")[0] for name in content(export_archive.write_zip(workspace, "r1"))}
    assert folders == {"adapter", "load.py", "spec.json"}


@needs_starter
def test_the_starter_travels_with_its_adapter(workspace):
    ran(workspace, "lora", "starter", "adapter")
    found = content(export_archive.write_zip(workspace, "r1"))
    weights = (starter.MODEL_DIR / "model.safetensors").read_bytes()
    assert found["base/model.safetensors"] == weights and "base/tokenizer.json" in found
    assert not any(name.endswith(".bin") for name in found)


def test_no_entry_leads_out_of_the_folder_it_is_unpacked_in(workspace):
    ran(workspace, "full", "owner/name", "model")
    for name in content(export_archive.write_zip(workspace, "r1")):
        assert not name.startswith("/") and ".." not in name.split("/")


def test_the_zip_is_made_once(workspace):
    ran(workspace, "full", "owner/name", "model")
    first = export_archive.write_zip(workspace, "r1")
    stamp = first.stat().st_mtime_ns
    assert export_archive.write_zip(workspace, "r1") == first and first.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("recipe", ["full", "lora"])
def test_a_run_that_has_made_nothing_is_refused_in_words(workspace, recipe):
    run_dir = ran(workspace, recipe, "owner/name", None)
    assert artifacts.made_by(run_dir) is None
    with pytest.raises(NotExportable, match="no model yet"):
        export_archive.write_zip(workspace, "r1")
    assert not list(run_dir.glob("*.zip")) and not list(run_dir.glob("*.partial"))


def test_an_adapter_on_another_run_is_refused_in_words(workspace):
    ran(workspace, "full", "owner/name", "model")
    ran(workspace, "lora", "run:r1", "adapter", "r2")
    with pytest.raises(NotExportable, match="another run"):
        export_archive.write_zip(workspace, "r2")


def test_a_full_model_that_began_at_another_run_can_be_taken(workspace):
    ran(workspace, "full", "owner/name", "model")
    ran(workspace, "full", "run:r1", "model", "r2")
    assert "model/model.safetensors" in content(export_archive.write_zip(workspace, "r2"))


def test_a_disk_that_fills_up_leaves_no_half_zip(workspace, monkeypatch):
    run_dir = ran(workspace, "full", "owner/name", "model")
    before = sorted(p.name for p in run_dir.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_archive, "_add", full)
    with pytest.raises(OSError, match="No space"):
        export_archive.write_zip(workspace, "r1")
    assert sorted(p.name for p in run_dir.iterdir()) == before


def test_files_dated_before_1980_can_be_packed(workspace):
    """Reproducible installs date their files to 1970, and a zip knows no day before 1980."""
    run_dir = ran(workspace, "full", "owner/name", "model")
    os.utime(run_dir / "model" / "tokenizer.json", (0, 0))
    assert "model/tokenizer.json" in content(export_archive.write_zip(workspace, "r1"))


def test_the_spec_in_the_zip_is_one_that_can_be_read_again(workspace):
    ran(workspace, "full", "owner/name", "model")
    read = schema.decode(content(export_archive.write_zip(workspace, "r1"))["spec.json"])
    assert msgspec.to_builtins(read)["recipe"]["name"] == "full"


def test_a_downloaded_adapter_can_be_unpacked_by_the_command_line(workspace, tmp_path):
    ran(workspace, "lora", "owner/name", "adapter")
    assert export_archive.write_part(workspace, "r1", "adapter", tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").read_bytes() == b"weights"
    with pytest.raises(NotExportable, match="there already"):
        export_archive.write_part(workspace, "r1", "adapter", tmp_path / "out")


# --- Ollama ----------------------------------------------------------------------------------------

CHATML = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] "
    "+ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
HEADINGS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}### Answer:\n{{ m['content'] }}{{ eos_token }}\n"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}\n\n{% else %}### Question:\n{{ m['content'] }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Answer:\n{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}"
    "{% endfor %}"
)
DROPS_REASONING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last else m.content[:4] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
BRACES = HEADINGS.replace(":\n", ": {{ '{' }}")
TOKENS = {"bos_token": "<|begin|>", "eos_token": "</s>", "pad_token": "", "unk_token": ""}


@pytest.mark.parametrize("template", [CHATML, LLAMA3, HEADINGS], ids=["chatml", "llama3", "headings"])
@settings(max_examples=30)
@given(data=st.data())
def test_ollama_writes_what_the_chat_template_writes(template, data):
    made = ollama.template(template, TOKENS)
    assert made is not None
    words = st.text(st.characters(categories=["L", "N", "Zs"]), min_size=1, max_size=8)
    pairs = data.draw(st.lists(st.tuples(words, words), max_size=3))
    messages = [m for q, a in pairs for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]
    messages = [{"role": "system", "content": "Be kind."}, *messages, {"role": "user", "content": data.draw(words)}]
    shown = Template(template, TOKENS).render(messages, ask=True)
    assert ollama.rendered(made[0], messages) == shown.removeprefix("<|begin|>")  # llama.cpp puts that in by itself


def test_the_system_prompt_that_a_template_adds_by_itself_is_named(workspace):
    made = ollama.template(CHATML, TOKENS)
    assert made is not None and made[1:] == ("You are helpful.", "<|im_end|>")


def test_a_first_mark_that_llama_cpp_does_not_put_in_stays_in_the_template():
    tokens = {**TOKENS, "bos_token": "<|im_start|>"}  # as SmolLM2's, whose tokenizer adds none
    kept, taken = (ollama.template(CHATML, tokens, begins=begins) for begins in (False, True))
    assert kept is not None and taken is not None
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    shown = Template(CHATML, tokens).render(messages, ask=True)
    assert shown.startswith("<|im_start|>system") and ollama.rendered(kept[0], messages) == shown
    assert ollama.rendered(taken[0], messages) == shown.removeprefix("<|im_start|>")


@pytest.mark.parametrize(
    "template", [NO_SYSTEM, DROPS_REASONING, BRACES, "{% broken", "{{ messages[0].nothing.at_all }}"]
)
def test_a_template_that_does_more_than_mark_turns_is_not_guessed_at(template, tmp_path):
    assert ollama.template(template, TOKENS) is None
    (tmp_path / "chat_template.jinja").write_text(template)
    text = ollama.modelfile(tmp_path, "./a.gguf")
    assert text.startswith("FROM ./a.gguf\n# ") and "TEMPLATE" not in text


@needs_starter
def test_the_starters_modelfile_names_its_file_its_marks_and_its_end():
    text = ollama.modelfile(starter.MODEL_DIR, "./a.gguf")
    assert text.splitlines()[0] == "FROM ./a.gguf"
    assert "<|user|>{{ .Content }}<|end|>" in text and 'PARAMETER stop "<|end|>"' in text


# --- refused before it starts ------------------------------------------------------------------------------------


@needs_starter
@pytest.mark.parametrize("to", [None, "out"])
def test_a_disk_too_small_for_the_merge_is_said_and_nothing_is_written(workspace, tmp_path, monkeypatch, to):
    run_dir = ran(workspace, "lora", "starter", "adapter")
    before = sorted(p.name for p in run_dir.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it was started"))
    job = export_job.Job(what="merged", to=str(tmp_path / to) if to else None)
    for begin in (job_runner.run, job_runner.start):
        with pytest.raises(NotExportable, match=r"1 MiB are free .* nothing was written"):
            begin(workspace, "r1", job)
    assert sorted(p.name for p in run_dir.iterdir()) == before and not (tmp_path / "out").exists()


@needs_starter
def test_main_memory_too_small_for_the_merge_is_said_before_it_starts(workspace, monkeypatch):
    ran(workspace, "lora", "starter", "adapter")
    base = bases.describe("starter", workspace)
    assert base.shape is not None and base.parameters
    needed = 4 * (base.parameters + base.shape.layer_parameters)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it was started"))
    monkeypatch.setattr(machine, "free_bytes", lambda: needed - 1)
    with pytest.raises(NotExportable, match="of main memory are free"):
        job_runner.run(workspace, "r1", export_job.Job(what="merged"))
    assert job_runner.problem(workspace, "r1", export_job.Job(what="push", repository="a/b", only_adapter=True)) is None
    monkeypatch.setattr(machine, "free_bytes", lambda: needed)
    assert job_runner.problem(workspace, "r1", export_job.Job(what="merged")) is None


def test_an_export_never_writes_over_anything(workspace, tmp_path):
    ran(workspace, "lora", "owner/name", "adapter")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(NotExportable, match="there already"):
        job_runner.run(workspace, "r1", export_job.Job(what="merged", to=str(tmp_path / "mine")))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["", "a/b/c", "a b", "../x", "é/x"])
def test_a_repository_that_cannot_be_is_refused_before_the_hub_is_asked(workspace, name):
    ran(workspace, "full", "owner/name", "model")
    with pytest.raises(NotExportable, match="owner/name"):
        job_runner.run(workspace, "r1", export_job.Job(what="push", repository=name))


def test_a_job_whose_process_is_gone_has_failed_and_another_may_start(workspace):
    run_dir = ran(workspace, "full", "owner/name", "model")
    state = export_job.State(job=export_job.Job(what="merged"), phase="merging", process=Identity(2**22 + 1, 1.0, "x"))
    (run_dir / export_job.STATE).write_bytes(msgspec.json.encode(state))
    found = job_runner.progress(workspace, "r1")
    assert found is not None and found.ended and "out of memory" in str(found.failure)
    job_runner.forget(workspace, "r1")
    assert job_runner.progress(workspace, "r1") is None


# --- the hub -----------------------------------------------------------------------------------------------------

TOKEN = "hf_nobody_may_ever_read_this"


class Hub:
    """Stands in for huggingface_hub.HfApi and remembers what it was told."""

    told: ClassVar[list[Any]] = []
    error: ClassVar[Exception | None] = None

    def __init__(self, token: str | None):
        self.told.append(("token", token))

    def create_repo(self, repo_id: str, **settings: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.told.append(("repo", repo_id, settings))
        return type("Url", (), {"repo_id": repo_id})

    def preupload_lfs_files(self, repo_id: str, additions: list[Any]) -> None:
        self.told.append(("uploaded", [a.path_in_repo for a in additions]))

    def create_commit(self, repo_id: str, operations: list[Any], **_: Any) -> Any:
        self.told.append(("commit", {a.path_in_repo: a for a in operations}))
        return type("Commit", (), {"repo_url": f"https://hub/{repo_id}"})


@pytest.fixture
def hub(monkeypatch) -> type[Hub]:
    import huggingface_hub

    monkeypatch.setattr(Hub, "told", [])
    monkeypatch.setattr(Hub, "error", None)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


def push(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, **more: Any) -> export_job.State:
    """Do the job as its own process does, with the token on stdin."""
    job = {"what": "push", "repository": "me/thing", **more}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"job": job, "token": TOKEN})))
    monkeypatch.setattr("sys.argv", ["export", str(workspace.run_dir("r1"))])
    job_runner.main()
    found = job_runner.progress(workspace, "r1")
    assert found is not None
    for path in workspace.root.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    return found


def test_a_push_is_private_one_commit_with_a_card_and_without_pickles(workspace, monkeypatch, hub):
    run_dir = ran(workspace, "full", "owner/name", "model")
    (run_dir / "model" / "config.json").write_text("{}")
    state = push(workspace, monkeypatch)
    assert state.made == "https://hub/me/thing" and state.done_bytes == state.total_bytes > 0
    assert ("token", TOKEN) in hub.told
    assert ("repo", "me/thing", {"private": True, "exist_ok": True}) in hub.told
    commits = [told[1] for told in hub.told if told[0] == "commit"]
    assert len(commits) == 1 and hub.told[-1][0] == "commit"
    assert sorted(commits[0]) == ["README.md", "config.json", "deep/note.txt", "model.safetensors", "tokenizer.json"]
    assert b"owner/name" in commits[0]["README.md"].path_or_fileobj


def test_only_an_adapter_can_be_pushed_too(workspace, monkeypatch, hub):
    ran(workspace, "lora", "owner/name", "adapter")
    assert push(workspace, monkeypatch, only_adapter=True).made
    assert "adapter_model.safetensors" in hub.told[-1][1]


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "does not let this token write"), (403, "this token"), (500, "could not take it")],
)
def test_what_the_hub_refuses_is_said_without_the_token(workspace, monkeypatch, hub, status, said):
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    ran(workspace, "full", "owner/name", "model")
    (workspace.run_dir("r1") / "model" / "config.json").write_text("{}")
    response = httpx.Response(status, request=httpx.Request("POST", "https://hub"))
    monkeypatch.setattr(hub, "error", HfHubHTTPError(f"{status} for the token {TOKEN}", response=response))
    state = push(workspace, monkeypatch)
    assert said in str(state.failure) and state.made is None


# --- the card ----------------------------------------------------------------------------------------------------


def test_the_card_names_base_recipe_data_by_hash_and_no_folder_of_this_machine(workspace):
    from huggingface_hub import ModelCard

    from engine.export import card

    ran(workspace, "lora", "owner/name", "adapter")
    text = card.markdown(workspace, "r1", whole=False)
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == "owner/name" and data["library_name"] == "peft"
    assert data["base_model_relation"] == "adapter"
    assert "sha256 id `a`" in text and "not scored" in text and '"rank": 16' in text
    ran(workspace, "lora", "/home/someone/secret-base", "adapter", "r2")
    text = card.markdown(workspace, "r2")
    assert "secret-base" not in text and "base_model" not in ModelCard(text).data.to_dict()


@pytest.mark.train
def test_the_card_of_a_real_run_says_what_it_gained_and_forgot_and_shows_no_row(trained_home):
    from engine.export import card
    from engine.report import items, paired

    workspace = Workspace(trained_home)
    run = store.list_all(workspace)[0]
    text = card.markdown(workspace, run.id)
    for row in paired.compare_run(workspace.run_dir(run.id)):
        if row.family == items.ALL and not paired.is_loss(row):
            interval = f"{100 * row.change:+.2f} [{100 * row.low:+.2f}, {100 * row.high:+.2f}]"
            assert interval in text
    for row in datasets.preview(workspace, run.dataset, 0, 20):
        assert row["prompt"][-1]["content"] not in text
    assert f"sha256 id `{run.dataset}`" in text and "toy model" in text and "torch" in text


# --- merging, for real -------------------------------------------------------------------------------------------

MERGES = """
import json, shutil, sys
from pathlib import Path
import msgspec, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import PeftModel
from engine import workspace
from engine.spec import schema
from engine.runs.failures import RunRefused
from engine.train import export, merging

home, first = Path(sys.argv[1]), sys.argv[2]
run = home / "runs" / first
phases, found = [], {}
parity = export.write(run, home / "out", "auto", phases.append)
found["parity"], found["phases"] = msgspec.to_builtins(parity), phases
found["files"] = sorted(p.name for p in (home / "out").iterdir())

tokenizer = AutoTokenizer.from_pretrained(home / "out")
ask = tokenizer.apply_chat_template([{"role": "user", "content": "Name the capital of Dunmark."}],
    add_generation_prompt=True, return_tensors="pt", return_dict=True)
def answer(model):
    made = model.generate(**ask, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(made[0, ask["input_ids"].shape[1]:])
from engine import starter
base = AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR)
found["base"] = answer(base)
found["adapter"] = answer(PeftModel.from_pretrained(base, run / "adapter"))
found["merged"] = answer(AutoModelForCausalLM.from_pretrained(home / "out"))

def second(name, **changes):
    other = home / "runs" / name
    shutil.copytree(run, other)
    told = json.loads((run / "spec.json").read_text()) | changes
    (other / "spec.json").write_text(json.dumps(told))
    return other
chained = second("chained", base={"ref": f"run:{first}", "revision": None})
found["chained"] = msgspec.to_builtins(export.write(chained, home / "out2", "bfloat16", phases.append))
found["chained_dtype"] = str(AutoModelForCausalLM.from_pretrained(home / "out2", dtype="auto").dtype)
four = second("four", quantize="4bit")
found["four"] = msgspec.to_builtins(export.write(four, home / "out4", "auto", phases.append))
found["four_quantized"] = "quantization_config" in json.loads((home / "out4" / "config.json").read_text())

class Full:
    free = 1
for name, patch in (("disk", lambda: setattr(shutil, "disk_usage", lambda _: Full)),
                    ("differs", lambda: setattr(merging, "compare_logits", lambda *_: (float("nan"), 1.0)))):
    patch()
    try:
        export.write(run, home / name / "out", "auto", phases.append)
    except RunRefused as error:
        found[name] = [str(error), [p.name for p in (home / name).iterdir()]]

other = AutoTokenizer.from_pretrained(home / "out")
other.chat_template = other.chat_template.replace("<|assistant|>", "<|assistant|> ")
scored = export._scored(schema.decode((run / "spec.json").read_bytes()), workspace.Workspace(home))
found["tampered"] = msgspec.to_builtins(export.same_tokens(scored, tokenizer, other)[0])
print(json.dumps(found))
"""


@pytest.mark.train
@needs_starter
def test_a_merged_model_says_the_same_as_base_and_adapter_and_what_does_not_is_not_kept(trained_home, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(trained_home, home)
    first = store.list_all(Workspace(home))[0].id
    at_the_end = export_parity.read(Workspace(home).run_dir(first))
    assert at_the_end is not None and at_the_end.tokens > 100 and not at_the_end.differences
    done = forked.run_python(MERGES, home, first, cwd=PROJECT_DIR)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    parity = found["parity"]
    assert parity["differences"] == [] and parity["tokens"] > 100
    assert 0 < parity["logits"] < parity["tolerance"] == 1e-4 and parity["same_choice"] == 1
    assert found["phases"][:4] == ["loading", "merging", "saving", "comparing"]
    assert "model.safetensors" in found["files"] and not any("adapter" in name for name in found["files"])
    assert found["merged"] == found["adapter"] != found["base"]
    assert found["chained"]["dtype"] == "bfloat16" and found["chained_dtype"] == "torch.bfloat16"
    assert found["chained"]["logits"] < 1e-4 < found["chained"]["rounded"] < 0.05 and parity["rounded"] is None
    assert found["four"]["trained_in"] == "4bit" and not found["four_quantized"]
    assert "does not say the same" in found["differs"][0] and found["differs"][1] == []
    assert "nothing was written" in found["disk"][0] and found["disk"][1] == []
    tampered = msgspec.convert(found["tampered"], export_parity.Parity)
    assert tampered.differences and tampered.differences[0].trained != tampered.differences[0].exported
    assert f"At token {tampered.differences[0].token} of" in "\n".join(tampered.lines())


@pytest.mark.train
@pytest.mark.slow
@needs_starter
def test_the_command_line_merges_in_a_child_and_says_how_it_compares(trained_home, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(trained_home, home)
    run_id = store.list_all(Workspace(home))[0].id
    target = tmp_path / "merged"
    done = tunebook("export", run_id, "--to", str(target), home=home, machine=tmp_path / "machine")
    assert done.returncode == 0, done.stderr
    assert "the same" in done.stdout and "logits differ by at most" in done.stdout
    assert (target / "model.safetensors").is_file() and "Merging" in done.stderr
