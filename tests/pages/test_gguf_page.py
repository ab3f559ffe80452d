"""From a finished run to a file for llama.cpp in three clicks: skipped where `make gguf` has not built it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from engine.export import gguf
from engine.gguf import headers
from engine.runs import store
from engine.workspace import Workspace
from tests.browsers import SLOW_MS, Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_three_clicks_lead_from_a_finished_run_to_its_q4_k_m(
    server: Server, page: Page, trained_home: Path, tmp_path: Path
) -> None:
    if gguf.parts(None) is None:
        pytest.skip("llama.cpp is not here: `make gguf` has not been run")
    shutil.copytree(trained_home, server.home, dirs_exist_ok=True)
    workspace = Workspace(server.home)
    run_id = store.list_all(workspace)[0].id
    page.goto(f"{server.url}/runs?run={run_id}")

    page.get_by_role("button", name="Export").click(timeout=SLOW_MS)
    page.get_by_text("GGUF, Ollama").click(timeout=SLOW_MS)
    page.get_by_role("button", name="Make the file").click()
    download = page.get_by_role("button", name="Download the file")
    expect(download).to_be_visible(timeout=5 * SLOW_MS)
    with page.expect_download() as arriving:
        download.click()

    arriving.value.save_as(tmp_path / "it.gguf")
    assert arriving.value.suggested_filename == f"{run_id}-q4_k_m.gguf"
    header = headers.read(tmp_path / "it.gguf")
    assert header.architecture == "llama" and header.kind.startswith("Q")
    expect(page.get_by_text("give the same")).to_be_visible()
    if "TUNEBOOK_SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["TUNEBOOK_SCREENSHOTS"]) / "gguf.png", full_page=True)
