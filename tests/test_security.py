"""Attacks that no other file of tests tries: see SECURITY.md for the list of threats and where each is tested."""

from __future__ import annotations

import http.client
import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import events, in_line
from engine.benchmarks import library
from engine.check import DatasetError
from engine.data import datasets, jobs, uploads
from engine.export import archive as export_archive
from engine.forgetting import evaluations
from engine.plan import drafts
from engine.runs import lifecycle, store
from engine.spec import schema, settings
from engine.workspace import BadId, Workspace, checked, machine_dir
from tests.apps import open_page, texts
from tests.browsers import Server
from tests.conftest import ROOT
from tests.helpers import fake_spec

HOSTILE = [
    "..", ".", "../..", "../../etc/passwd", "/etc/passwd", "a/../b", "a/b", "a\\b", "..\\..", "~", "~root", "a\0b", "",
    "-rf", "--help", "a-", "A", "%2e%2e", "..%2f", "a\n", "\ud800", "é", "a" * 97, "file:///etc/passwd", "con:", "$(id)",
]  # fmt: skip
MARKUP = (
    '<img src=x onerror="alert(1)"> [x](javascript:alert(1)) `a` **b** $x$ :material/home: <script>alert(2)</script>'
)


# --- paths ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", HOSTILE)
def test_no_id_of_any_kind_leads_out_of_a_workspace(workspace: Workspace, name: str) -> None:
    for make in (workspace.run_dir, workspace.dataset_dir, workspace.eval_dir, workspace.draft_path):
        with pytest.raises(BadId):
            make(name)
    assert not store.exists(workspace, name)
    assert drafts.load(workspace, name) is None
    assert uploads.path_of(workspace, name) is None
    assert library.find(name, workspace) is None
    assert evaluations.reference(workspace, name) == name  # looked up, found to be no run, left as it is
    for use in (datasets.load, datasets.delete, datasets.rows_path):
        with pytest.raises(DatasetError):
            use(workspace, name)
    assert not workspace.root.exists()


@given(st.text(max_size=100))
def test_whatever_passes_as_an_id_is_one_plain_name_and_no_option(text: str) -> None:
    try:
        name = checked(text)
    except BadId:
        return
    assert Path(name).name == name and not name.startswith(("-", ".")) and name.isascii()


def test_a_download_holds_nothing_that_a_link_in_the_run_leads_to(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    run_dir = workspace.run_dir("20260101-000000-abcdef")
    (run_dir / "model").mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(fake_spec()))
    (run_dir / "model" / "config.json").write_text("{}")
    (run_dir / "model" / "training_args.bin").write_bytes(b"a pickle")
    import zipfile

    with zipfile.ZipFile(export_archive.write_zip(workspace, run_dir.name)) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.startswith(("/", "..")) or name.endswith((".bin", ".pt", ".pkl"))]


# --- arguments --------------------------------------------------------------------------------------------------------
def test_no_text_of_a_user_is_an_argument_of_a_process(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    class Process:
        pid = 2**22 + 1

        def __init__(self, command: list[str], **_: Any):
            commands.append(command)

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    hostile = msgspec.structs.replace(
        fake_spec(), base=schema.BaseRef("--config=/etc/passwd; id"), recipe=schema.RecipeRef("-c import os", "0" * 64)
    )
    run_id = lifecycle.start(workspace, hostile, name="--help $(id)")
    jobs.start(jobs.Call(workspace=str(workspace.root), source="-rf /", name="--help"))
    python = commands[0][0]
    folder = commands[1][-1]
    ticket = commands[0][-3]
    assert commands[0] == [
        python, "-I", "-S", in_line.__file__, ticket, str(workspace.run_dir(run_id)), "engine.worker"
    ]  # fmt: skip
    assert Path(ticket).parent == machine_dir() / "queue" / "cpu" and Path(ticket).stem.endswith(f"-{run_id}")
    assert commands[1] == [python, "-m", "engine.data.jobs", folder]
    assert Path(folder).parent == workspace.root / "jobs" and folder.startswith("/")


# --- bombs ------------------------------------------------------------------------------------------------------------
DEEP = b"[" * 200_000
WIDE = b'{"name": ' + b'{"a":' * 200_000


@pytest.mark.parametrize("bomb", [DEEP, WIDE, b"\xff" * 1000, b"", b"null", b"1e999999999", b'{"name": 1e99999}'])
def test_files_that_are_bombs_cost_a_run_its_place_and_nobody_else_theirs(workspace: Workspace, bomb: bytes) -> None:
    good, bad = (workspace.run_dir(f"20260101-00000{n}-abcdef") for n in (1, 2))
    for run_dir in (good, bad):
        run_dir.mkdir(parents=True)
        (run_dir / "spec.json").write_bytes(schema.encode(fake_spec()))
    for name in ("spec.json", "summary.json", "meta.json", "pid.json", "events.jsonl"):
        (bad / name).write_bytes(bomb)
    workspace.draft_path("bomb").parent.mkdir()
    workspace.draft_path("bomb").write_bytes(bomb)
    assert good.name in [run.id for run in store.list_all(workspace)]
    assert drafts.load(workspace, "bomb") is None


@pytest.mark.parametrize("value", ["[" * 5_000, "{a: " * 5_000, "&a [*a, *a]", "!!python/object/apply:os.system [id]"])
def test_a_setting_that_is_a_bomb_or_an_object_is_a_problem(value: str) -> None:
    parsed = settings.parse_setting(f"layers={value}")
    if isinstance(parsed, tuple):
        converted = settings.convert_setting(*parsed)
        assert getattr(converted, "rule", "") == "setting-value" or converted == value


# --- text that would be more ------------------------------------------------------------------------------------------
@pytest.mark.page
def test_names_logs_answers_and_failures_with_markup_are_shown_as_text(workspace: Workspace) -> None:
    run_dir = workspace.run_dir("20260101-000000-abcdef")
    run_dir.mkdir(parents=True)
    made = msgspec.structs.replace(fake_spec(), base=schema.BaseRef(f"/models/{MARKUP}"))
    (run_dir / "spec.json").write_bytes(schema.encode(made))
    (run_dir / "meta.json").write_bytes(json.dumps({"name": MARKUP, "note": MARKUP}).encode())
    log = events.EventLog(run_dir)
    for event in (
        events.Queued(device="cpu"),
        events.Log(level="warning", text=MARKUP),
        events.Log(level="result", text=MARKUP),
        events.Sample(step=1, prompt=MARKUP, text=MARKUP),
        events.Failed(kind="bug", message=MARKUP, fix=MARKUP),
    ):
        log.append(event)
    log.close()
    (run_dir / "worker.log").write_text(MARKUP)
    for page in ("runs", "forgetting", "train"):
        app = open_page(page, run=run_dir.name, base=MARKUP)
        assert page != "runs" or MARKUP in texts(app)
        for kind in ("markdown", "caption", "info", "warning", "error", "success", "subheader"):
            for element in getattr(app, kind):
                assert not getattr(element, "allow_html", False)
                assert "<img" not in str(element.value).replace("\\<img", "") and "](java" not in str(element.value)


# --- other sites ------------------------------------------------------------------------------------------------------
def test_the_settings_that_keep_other_sites_out_are_on() -> None:
    server = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())["server"]
    assert server["address"] == "127.0.0.1" and server["enableXsrfProtection"] is True
    assert set(server["allowedHosts"]) == {"localhost", "127.0.0.1", "::1"}
    assert server.get("enableCORS", True) and not server.get("enableAgentApi", False)
    image = (ROOT / "Dockerfile").read_text()
    assert "USER user" in image and "--uid 1000" in image and "TUNEBOOK_DEMO=1" in image


@pytest.mark.browser
def test_a_server_answers_neither_another_sites_name_nor_its_pages(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start()
    try:

        def status(method: str, path: str, **headers: str) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            return connection.getresponse().status

        upgrade = {
            "Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13",
            "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }  # fmt: skip
        own = f"127.0.0.1:{server.port}"
        assert status("GET", "/_stcore/stream", Host=own, Origin=f"http://{own}", **upgrade) == 101
        assert status("GET", "/_stcore/stream", Host=own, Origin="http://evil.example", **upgrade) == 403
        evil = f"evil.example:{server.port}"  # a name that was turned to this machine
        assert status("GET", "/_stcore/stream", Host=evil, Origin=f"http://{evil}", **upgrade) in (400, 403)
        assert status("PUT", "/api/uploads", Host=own, Origin="http://evil.example") == 403
        assert status("PUT", "/api/uploads", Host=own, Origin=f"http://{own}") == 403  # without a ticket
        for path in (
            "/../engine/limits.toml",
            "/..%2f..%2fetc/passwd",
            "/static/../../../etc/passwd",
            "/app/static/..%2f",
        ):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("GET", path)
            body = connection.getresponse().read()
            assert b"root:" not in body and b"upload_mib" not in body
    finally:
        server.kill()
