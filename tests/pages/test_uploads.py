"""Uploads: whole files or nothing, room asked first, nobody from elsewhere, and a name is never a path."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import threading
import time
from collections import namedtuple
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest
from playwright.sync_api import expect, sync_playwright
from starlette.applications import Starlette
from starlette.routing import Route

from engine.data import uploads
from engine.workspace import Workspace
from tests.browsers import FLAGS, Server
from tests.conftest import chromium

HOST = "tunebook.example"


async def stream(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def receive(workspace: Workspace, announced: str | None, *pieces: bytes) -> str:
    return asyncio.run(uploads.receive(workspace, announced, stream(*pieces)))


def left_over(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in workspace.uploads_dir.glob("*"))


def headers(workspace: Workspace, **more: str) -> dict[str, str]:
    given = {"origin": f"http://{HOST}", "host": HOST, uploads.TICKET_HEADER: uploads.ticket(workspace)}
    return {**given, **more}


@pytest.mark.parametrize("pieces", [[b"abc"], [b"a", b"b", b"c"], [b"x" * 3_000_000, b"y" * 3_000_000], []])
def test_an_upload_is_on_disk_byte_for_byte_under_a_name_of_ours(workspace: Workspace, pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    upload_id = receive(workspace, str(len(whole)), *pieces)
    path = uploads.path_of(workspace, upload_id)
    assert path is not None and path.read_bytes() == whole and path.parent == workspace.uploads_dir
    assert left_over(workspace) == [upload_id]


@pytest.mark.parametrize(
    ("announced", "pieces", "status", "rule"),
    [
        ("10", [b"short"], 400, "upload-broken"),
        ("3", [b"more than said"], 400, "upload-broken"),
        (None, [b"abc"], 411, "upload-broken"),
        ("-1", [b"abc"], 411, "upload-broken"),
        (str(uploads.LIMIT_MIB * 2**20 + 1), [b"abc"], 413, "upload-too-large"),
    ],
)
def test_what_is_not_whole_leaves_nothing(
    workspace: Workspace, announced: str | None, pieces: list[bytes], status: int, rule: str
) -> None:
    with pytest.raises(uploads.UploadRefused) as refused:
        receive(workspace, announced, *pieces)
    assert (refused.value.status, refused.value.problem.rule) == (status, rule)
    assert left_over(workspace) == []


def test_a_connection_that_breaks_leaves_nothing(workspace: Workspace) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * 2_000_000
        assert [name.endswith(".part") for name in left_over(workspace)] == [True]  # written as it comes
        raise ConnectionResetError

    with pytest.raises(uploads.UploadRefused):
        asyncio.run(uploads.receive(workspace, "3000000", breaks()))
    assert left_over(workspace) == []


def test_an_upload_that_does_not_fit_the_disk_is_refused_before_a_byte_is_sent(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 900 << 20))
    assert uploads.check_room(workspace, str(300 << 20)) == 300 << 20
    with pytest.raises(uploads.UploadRefused) as refused:
        uploads.check_room(workspace, str(400 << 20))
    assert refused.value.problem.parameters == {"free_mib": 900, "needed_mib": 1000}


def test_a_disk_that_fills_up_meanwhile_is_said_so(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads, "_write_all", full)
    with pytest.raises(uploads.UploadRefused) as refused:
        receive(workspace, "3", b"abc")
    assert refused.value.problem.rule == "disk-full" and left_over(workspace) == []


def test_only_a_page_of_this_server_with_a_ticket_may_send(workspace: Workspace) -> None:
    assert uploads.admitted(httpx.Headers(headers(workspace))).root == workspace.root
    for wrong in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": f"http://{HOST}.evil.example"},
        {uploads.TICKET_HEADER: "guessed"},
        {uploads.TICKET_HEADER: ""},
    ):
        with pytest.raises(uploads.UploadRefused) as refused:
            uploads.admitted(httpx.Headers(headers(workspace, **wrong)))
        assert refused.value.status == 403


def test_a_ticket_is_kept_while_it_is_good_and_leads_to_its_own_workspace_alone(workspace: Workspace) -> None:
    one = uploads.ticket(workspace)
    assert uploads.ticket(workspace, one) == one and uploads.ticket(workspace, "unknown") != one
    other = Workspace(workspace.root / "other")
    mine = uploads.ticket(other)
    assert uploads.admitted(httpx.Headers(headers(workspace, **{uploads.TICKET_HEADER: mine}))).root == other.root


@pytest.mark.parametrize("bad", ["../../etc/passwd", "/etc/passwd", "a/b", "", None, 7, "x" * 300, "a.part", "\0"])
def test_an_upload_id_is_looked_up_and_never_a_path(workspace: Workspace, bad: object) -> None:
    workspace.uploads_dir.mkdir(parents=True)
    (workspace.uploads_dir / "a.part").write_bytes(b"half")
    assert uploads.path_of(workspace, bad) is None


def test_what_nobody_came_back_for_is_removed_by_the_next_upload(workspace: Workspace) -> None:
    workspace.uploads_dir.mkdir(parents=True)
    for name, age_s in (("old", 2 * 24 * 3600), ("old.part", 2 * 24 * 3600), ("new", 60)):
        (workspace.uploads_dir / name).write_bytes(b"x")
        then_s = time.time() - age_s
        os.utime(workspace.uploads_dir / name, times=(then_s, then_s))
    made = receive(workspace, "1", b"x")
    assert left_over(workspace) == sorted([made, "new"])


def test_an_answer_from_the_browser_names_only_problems_of_uploads() -> None:
    known = {"rule": "upload-too-large", "parameters": {"limit_mib": 5}}
    assert "5 MiB" in uploads.refusal(known).sentence
    for other in (None, "x", {"rule": "bom"}, {"rule": "upload-too-large"}, {"rule": "upload-no-room", "parameters": 1},
                  {"rule": "upload-too-large", "parameters": {"limit_mib": 1, "more": 2}}):  # fmt: skip
        assert uploads.refusal(other).rule == "upload-broken"


def test_the_limit_is_a_setting_of_the_server(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEBOOK_UPLOAD_LIMIT_MIB", "20")
    with pytest.raises(uploads.UploadRefused) as refused:
        uploads.check_room(workspace, str((20 << 20) + 1))
    assert refused.value.problem.parameters == {"limit_mib": 20}


def test_the_route_of_the_server_takes_a_file_and_answers_in_json(workspace: Workspace) -> None:
    import app

    server = Starlette(routes=[Route(app.UPLOAD_ROUTE, app.upload, methods=["POST", "PUT"])])

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=server)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
            good = headers(workspace)
            return [
                await client.post(app.UPLOAD_ROUTE, headers={**good, "X-Tunebook-Size": "3"}),
                await client.post(app.UPLOAD_ROUTE, headers={**good, "X-Tunebook-Size": str(10**15)}),
                await client.put(app.UPLOAD_ROUTE, headers=good, content=b"abc"),
                await client.put(app.UPLOAD_ROUTE, headers={**good, "origin": "http://evil.example"}, content=b"abc"),
                await client.get(app.UPLOAD_ROUTE, headers=good),
            ]

    room, no_room, sent, foreign, read = asyncio.run(ask())
    assert (room.status_code, no_room.status_code, no_room.json()["rule"]) == (204, 413, "upload-too-large")
    assert sent.status_code == 201
    path = uploads.path_of(workspace, sent.json()["upload"])
    assert path is not None and path.read_bytes() == b"abc"
    assert (foreign.status_code, read.status_code) == (403, 405)
    assert uploads.route() == app.UPLOAD_ROUTE
    uploads.served_at("")  # as in a process that only draws pages
    uploads._route.clear()


@pytest.mark.slow
@pytest.mark.browser
def test_three_hundred_megabytes_go_from_the_browser_to_checked_rows_with_the_servers_memory_flat(
    tmp_path: Path,
) -> None:
    big = tmp_path / "big.jsonl"
    with big.open("wb") as file:
        for block in range(300):
            rows = [json.dumps({"prompt": f"q{block}.{n}", "completion": "word " * 195}) for n in range(1024)]
            file.write(("\n".join(rows) + "\n").encode())
    assert big.stat().st_size > 300_000_000
    server = Server(tmp_path)
    server.start()
    try:
        assert server.process is not None
        process = psutil.Process(server.process.pid)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
            page = browser.new_page()
            page.goto(f"{server.url}/data")
            chosen = page.get_by_test_id("stFileUploaderDropzoneInput")
            small = b'{"text": "one"}\n{"text": "two"}\n'
            chosen.set_input_files({"name": "a.jsonl", "mimeType": "text/plain", "buffer": small})
            expect(page.get_by_text("ready to train on")).to_be_visible(timeout=60_000)
            peak = [before := process.memory_info().rss]
            ended = threading.Event()

            def watch() -> None:
                while not ended.wait(0.1):
                    peak[0] = max(peak[0], process.memory_info().rss)

            watcher = threading.Thread(target=watch)
            watcher.start()
            page.get_by_text("Bring other data").click()
            began_s = time.monotonic()
            chosen.set_input_files(big)
            expect(page.get_by_text(re.compile(r"Checking(, pass \d)?: \d+ %")).first).to_be_visible(timeout=120_000)
            sent_s = time.monotonic() - began_s
            page.get_by_text("Try a sample").click()  # the page is alive meanwhile
            expect(page.get_by_role("button", name="Use New facts")).to_be_visible(timeout=60_000)
            expect(page.get_by_text("307,200 questions with answers")).to_be_visible(timeout=300_000)
            checked_s = time.monotonic() - began_s
            ended.set()
            watcher.join()
            browser.close()
        print(f"memory {before >> 20} -> {peak[0] >> 20} MiB, sent in {sent_s:.1f} s, checked after {checked_s:.1f} s")
        assert peak[0] - before < 60 << 20
        assert left_over(Workspace(server.home)) == []
    finally:
        server.kill()
