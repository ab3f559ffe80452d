"""Fixtures that every test may use. Nothing here or in a test reaches the network or the user's own Tunebook home."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from hypothesis import settings

from engine import processes
from engine.workspace import Workspace
from tests import forked

ROOT = processes.PROJECT_DIR
VISITOR = "5e" * 16
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test out of the user's home and off the queue of real runs."""
    monkeypatch.setenv("TUNEBOOK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TUNEBOOK_MACHINE_DIR", str(tmp_path / "machine"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there: no test asks the real hub
    monkeypatch.setenv("TUNEBOOK_SPARE", "0")  # no page starts a process that imports everything
    monkeypatch.setenv("TUNEBOOK_LANG", "en")  # what a test reads does not hang on its machine
    monkeypatch.setattr(psutil, "getloadavg", lambda: (0.0, 0.0, 0.0))  # nor on what else that does


@pytest.fixture
def looks_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is chosen or sent be looked at in this process (engine/looker.py), where a test has put something else in
    the place of what looks."""
    monkeypatch.setattr(processes, "IS_CHILD", True)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "home")


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one real, short LoRA run of the new-facts sample on the starter: shared by all test processes, so tests
    only read it. It lies where a demo's visitor would have it, so that what names the folder can be found."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "trained"
    home = folder / "visitors" / VISITOR
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            done = tunebook(
                "train", "lora", "--data", "new-facts", "--wait", "--json", "--name", "A real run",
                "--set", "train.max_steps=60", "--set", "train.evaluations=3",
                home=home, machine=folder / "machine",  # in a process of its own: what its memory came to is claimed
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            (folder / "done").touch()
    return home


@pytest.fixture(autouse=True)
def what_is_imported_is_looked_through_once(request: pytest.FixtureRequest) -> None:
    """Leave what lives before a training in this process out of the collector's rounds, of which each has a dozen: with all
    that the tests import they took two thirds of its time."""
    if request.node.get_closest_marker("train") and "torch" in sys.modules:
        gc.collect()
        gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fresh-children", action="store_true", help="start every training in a fresh process")


def pytest_configure(config: pytest.Config) -> None:
    forked.fresh = config.getoption("--fresh-children")
    # Property tests ask the same examples each time, unless everything is tested (`make test-all`) or a seed is named; none
    # has a time of its own to keep, which a busy machine would break.
    searching = forked.fresh or config.getoption("--hypothesis-seed") is not None
    settings.register_profile("tunebook", deadline=None, derandomize=not searching)
    settings.load_profile("tunebook")


# What a folder's tests are; elsewhere each says so itself.
_MARKS = {"pages": "page", "homes": "page", "house": "scan"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = _MARKS.get(item.path.parent.name)
        if mark is not None:
            item.add_marker(mark)
    # Test processes take whole files in this order: the longest first, so that no long one is left for the end, and of these
    # first what needs no training, so that not all processes wait for the parent of trainings at once.
    holds: dict[Path, set[str]] = {}
    for item in items:
        holds.setdefault(item.path, set()).update(mark.name for mark in item.iter_markers())
    items.sort(key=lambda item: ("browser" not in holds[item.path], "train" not in holds[item.path]))


def tunebook(
    *arguments: str, home: Path, machine: Path, module: str = "engine.cli"
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "TUNEBOOK_HOME": str(home), "TUNEBOOK_MACHINE_DIR": str(machine)},
        capture_output=True,
        text=True,
        timeout=540,
    )


def chromium() -> str:
    """Return Chromium's path. Where there is none, browser tests are skipped, or fail when a browser is required."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        reason = "no Chromium on the PATH: install Debian's chromium to run the browser tests"
        if os.environ.get("TUNEBOOK_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found
