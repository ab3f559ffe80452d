"""No page and no download names a folder of the machine, or a visitor's number, which is the key to a workspace."""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from engine import events, limits, starter, visitors
from engine.data import datasets
from engine.export import archive as export_archive
from engine.export import artifacts, card, job, job_runner
from engine.plan import chains, drafts
from engine.runs import store
from engine.spec import schema
from engine.workspace import Workspace, machine_dir
from pages import _use
from tests.apps import PAGES, open_page
from tests.conftest import ROOT, VISITOR
from tests.helpers import fake_spec
from tests.left_by_runs import leave_adapter
from tests.models.test_bases import model

Download = tuple[str, bytes]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What the pages offer for download, by its name, made as by a click."""
    found: dict[str, bytes] = {}

    def offered(label: str, data: Any, file_name: str = "", *_: Any, **__: Any) -> bool:
        data = data() if callable(data) else data
        found[f"{file_name} ({label})"] = (
            data.encode() if isinstance(data, str) else data if isinstance(data, bytes) else data.read()
        )
        return False

    monkeypatch.setattr(st, "download_button", offered)
    return found


def members(name: str, data: bytes) -> Iterator[Download]:
    """Yield a file, and of an archive every member with its name."""
    yield name, data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as opened:
            for member in opened.namelist():
                yield from members(f"{name}: {member}", member.encode() + b"\n" + opened.read(member))


def shown(app: AppTest) -> str:
    """All that a page sends to the browser, without Markdown's escapes."""
    return "\n".join(str(getattr(node, "proto", "")) for part in (app.main, app.sidebar) for node in part).replace(
        "\\", ""
    )


@pytest.fixture
def here(trained_home: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A demo's visitor with a real run, which was merged, a failed one, a chain and data with errors."""
    monkeypatch.setenv("TUNEBOOK_DEMO", "1")
    workspace = visitors.place(VISITOR)
    shutil.copytree(trained_home, workspace.root)
    (workspace.root / limits.ARRIVED).touch()
    run_dir = next(workspace.runs_dir.glob("2*"))
    shutil.copytree(starter.MODEL_DIR, run_dir / "merged")
    (run_dir / "worker.log").write_text(f'  File "{ROOT}/engine/train/run.py", line 3\n{run_dir}/adapter: gone\n')
    failed = workspace.run_dir("20270101-000000-" + "a" * 32)
    failed.mkdir()
    (failed / "spec.json").write_bytes(schema.encode(msgspec.structs.replace(fake_spec(), base=schema.BaseRef("gpt2"))))
    log = events.EventLog(failed)
    text = f"[Errno 13] Permission denied: '{failed}/checkpoints'"
    log.append(events.Log(text=f"{sys.prefix}/lib/x.py: {text}", level="warning"))
    log.append(events.Failed(kind="unknown", message=text, fix=f"look into {ROOT}/engine"))
    bad = workspace.uploads_dir / "rows"
    bad.parent.mkdir(exist_ok=True)
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 1}\n')
    datasets.add(workspace, bad, "rows")
    return workspace


def needles(*more: object) -> list[str]:
    return [VISITOR, str(visitors.visitors_dir().parent), str(machine_dir()), str(ROOT), sys.prefix, *map(str, more)]


def held(texts: dict[str, bytes | str], wanted: list[str]) -> dict[str, str]:
    """Which of the texts holds which of the wanted."""
    found = {}
    for name, text in texts.items():
        data = text.encode() if isinstance(text, str) else text
        for one in wanted:
            if one.encode() in data:
                at = data.index(one.encode())
                found[name] = data[max(0, at - 80) : at + 120].decode("utf-8", "replace")
    return found


def looks(run: str, failed: str, learned: str, rows: str) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Each page, with what is chosen on it, and what its address names."""
    opened = {_use.fold_key(run): True, f"works_{run}": True, f"values_{run}": True}
    of_run, of_failed = {"run": run, "dataset": learned}, {"run": failed, "dataset": rows}
    for page in PAGES:
        yield page, {}, of_run
    for page in ("data", "runs", "forgetting"):
        yield page, {}, of_failed
    for look in ("numbers", "mask", "division"):
        yield "data", {f"look_{learned}": look}, of_run
    for section in ("take", "merged", "ollama", "hub"):
        yield "runs", {**opened, "use_section": section}, of_run
    yield "data", {f"manage_{learned}": True}, of_run
    for trainer in ("trl", "llama-factory", "axolotl"):
        yield "runs", {**opened, "use_section": "trainers", "trainer": trainer}, of_run
    for view in ("compare", "sweep"):
        yield "forgetting", {"forgetting_view": view}, of_run


def test_no_page_and_no_download_of_a_demo_names_a_folder_or_a_number(
    here: Workspace, downloads: dict[str, bytes], trained_home: Path
) -> None:
    run, failed = sorted(path.name for path in here.runs_dir.glob("2*"))
    trained_on = store.load_spec(here, run).dataset.id
    rows = next(one.id for one in datasets.list_all(here) if one.name == "rows")
    (here.run_dir(run) / job.STATE).write_bytes(
        msgspec.json.encode(job.State(job=job.Job(what="merged"), made=str(here.run_dir(run) / "merged")))
    )
    (here.run_dir(failed) / job.STATE).write_bytes(
        msgspec.json.encode(job.State(job=job.Job(what="merged"), failure=f"OSError: {here.run_dir(failed)}/merged"))
    )
    draft = drafts.save(here, drafts.of_spec(here, store.load_spec(here, run), came_from="A copy"))
    chain = chains.begin(here, "dpo", {"sft": trained_on, "dpo": chains.sample_id(here, "dpo")})
    seen: dict[str, bytes | str] = {}
    state = {"visitor": VISITOR}
    for page, chosen, named in looks(run, failed, trained_on, rows):
        seen[f"{page} {chosen} {named['run']}"] = shown(open_page(page, state | chosen, **named))
    other = {"visitor": visitors.draw()}
    for page in ("data", "runs", "forgetting"):
        seen[f"{page} of another"] = shown(open_page(page, other, run=run, dataset=trained_on))
        assert "A real run" not in str(seen[f"{page} of another"])
    seen["draft"] = shown(open_page("train", state, draft=draft))
    seen["chain"] = shown(open_page("train", state, chain=chain))
    assert "run.py" in "".join(map(str, seen.values())) and len(downloads) > 8  # the log was shown, and files were made
    files = {name: data for one, data in downloads.items() for name, data in members(one, data)}
    assert {"adapter_config.json", "spec.json", "load.py", "train.jsonl"} <= {
        name.rpartition("/")[2].rpartition(" ")[2] for name in files
    }
    assert held({**seen, **files}, needles(trained_home.parent)) == {}


def test_a_merge_is_named_and_not_where_it_lies(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the job writes down no more than a name."""
    run_dir = workspace.run_dir("20270101-000000-abcdef")
    run_dir.mkdir(parents=True)
    monkeypatch.setattr(job_runner, "run", lambda *_, **__: str(run_dir / "merged"))
    monkeypatch.setattr(sys, "argv", ["job_runner", str(run_dir)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"job": {"what": "merged"}, "token": None})))
    assert job_runner.main() == 0
    assert str(run_dir.parent) not in (run_dir / job.STATE).read_text()
    state = job_runner.progress(workspace, run_dir.name)
    assert state is not None and state.made == "merged"


@pytest.mark.parametrize(
    "place", ["{home}/visitors/{n}/runs/r/merged", "{home}/visitors/{n}", "{home}", "{machine}/queue/x"]
)
@pytest.mark.parametrize("around", ["{}", "It is in {}.", "'{}': no", "a {}, b", "({})", "{}/"])
def test_a_text_of_a_demo_names_no_folder_of_its_home_and_other_texts_stay(
    monkeypatch, place: str, around: str
) -> None:
    home = visitors.visitors_dir().parent
    said = around.format(place).format(home=home, machine=machine_dir(), n=VISITOR)
    assert limits.unnamed(said) == said  # where this is no demo
    monkeypatch.setenv("TUNEBOOK_DEMO", "1")
    named = limits.unnamed(said)
    assert str(home) not in named and VISITOR not in named and str(machine_dir()) not in named
    for other in ("/usr/lib/x", f"{home}work/x", "1/2", "a b", f"{ROOT}/engine"):
        assert limits.unnamed(other) == other
    assert limits.unnamed(f'File "{ROOT}/engine/x.py", line 3', code=True) == 'File "x.py", line 3'


def test_what_leaves_a_machine_names_a_base_of_a_folder_by_its_last_name(workspace: Workspace, tmp_path: Path) -> None:
    """At home too: the download, what is pushed, the card."""
    folder = model(tmp_path / "secret" / "mine")
    run_dir = workspace.run_dir("20270101-000000-abcdef")
    leave_adapter(run_dir)
    base = schema.BaseRef(str(folder))
    (run_dir / "spec.json").write_bytes(schema.encode(msgspec.structs.replace(fake_spec(), base=base, adapter="lora")))
    told = {"peft_type": "LORA", "base_model_name_or_path": str(folder), "r": 8}
    (run_dir / "adapter" / "adapter_config.json").write_text(json.dumps(told))
    (run_dir / "adapter" / "README.md").write_text(f"base_model: {folder}")
    travelling = artifacts.travelling(workspace, run_dir.name, run_dir / "adapter")
    assert json.loads(travelling["adapter_config.json"])["base_model_name_or_path"] == "mine"  # type: ignore[arg-type]
    with zipfile.ZipFile(export_archive.write_zip(workspace, run_dir.name)) as opened:
        assert "adapter/README.md" not in opened.namelist()
        holds = [name for name in opened.namelist() if str(folder).encode() in opened.read(name)]
    assert holds == ["load.py"]  # which has to find it
    assert str(folder) not in card.markdown(workspace, run_dir.name)
