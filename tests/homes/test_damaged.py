"""A home whose files are damaged, one at a time: every page opens, the rest works, and what is damaged is said."""

from __future__ import annotations

import re
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.runtime import fragment as streamlit_fragment
from streamlit.runtime.scriptrunner import exec_code
from streamlit.testing.v1 import AppTest

from engine import damaged
from engine.data import datasets
from engine.workspace import Workspace
from pages import _failures
from tests.conftest import ROOT
from tests.homes import damages as homes

Opening = tuple[str, dict[str, Any], dict[str, str]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one of everything, built once; what waits in it is written where it is copied."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEBOOK_MACHINE_DIR", str(root / "machine"))
        patch.setenv("TUNEBOOK_HOME", str(root / "home"))
        homes.build(root)
    return root


@pytest.fixture
def here(whole: Path, tmp_path: Path) -> Workspace:
    """A copy of it, where the pages of this test look."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True, symlinks=True)
    return Workspace(tmp_path / "home")


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was raised on a page, though it was said there: a damaged file is met where it is read, and not by the frame."""
    found: list[str] = []

    def note(error: BaseException, *_: Any, **__: Any) -> str:
        trace = traceback.extract_tb(error.__traceback__)
        ours = [f"{one.filename.removeprefix(f'{ROOT}/')}:{one.lineno}" for one in trace if str(ROOT) in one.filename]
        found.append(f"{type(error).__name__}: {str(error)[:200]} at {' < '.join(ours[::-1][:4])}")
        return ""

    monkeypatch.setattr(_failures, "_noted", note)
    monkeypatch.setattr(exec_code, "handle_uncaught_app_exception", note)
    monkeypatch.setattr(streamlit_fragment, "handle_uncaught_app_exception", note, raising=False)
    yield found


def openings(here: Workspace, path: Path) -> list[Opening]:
    """Return the pages that look at a file, each with what is chosen there; `path` is relative to what holds home and
    machine."""
    kind = path.parts[1] if path.parts[0] == "home" else "machine"
    run = next((one for one in path.parts if re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", one)), homes.RUN)
    data = path.parts[2] if kind == "datasets" else homes.DATA
    base = {"current_base": str(here.models_dir / "counted")}
    match kind:
        case "datasets":
            looks = [{f"look_{data}": look, "way": way} for look, way in LOOKS]
            return [*(("data", look, {"dataset": data}) for look in looks), ("train", {}, {"dataset": data}),
                    ("advisor", {}, {"dataset": data})]  # fmt: skip
        case "runs" if run == homes.SWEEP:
            return [("runs", {}, {"run": run}), ("forgetting", {}, {"run": run, "view": "sweep"})]
        case "runs" if "items" in path.parts:
            return [("runs", {}, {"run": run}), ("forgetting", {}, {"run": run}),
                    ("forgetting", {}, {"run": homes.RUN, "view": "compare"})]  # fmt: skip
        case "runs":
            return [("runs", {}, {"run": run}), ("forgetting", {}, {"run": run}), ("chat", {}, {"run": run}),
                    ("train", {"current_base": f"run:{run}"}, {"dataset": homes.DATA})]  # fmt: skip
        case "drafts":
            return [("train", {}, {"draft": path.stem})]
        case "chains":
            return [("train", {}, {"chain": path.stem}), ("runs", {}, {"run": homes.RUN})]
        case "models":
            base = {"current_base": str(here.models_dir / path.parts[2])}
            return [("train", base, {"dataset": homes.DATA}), ("advisor", base, {"dataset": homes.DATA})]
        case "shapes":
            return [("train", base, {"dataset": homes.DATA})]
        case "deleted":
            return [("runs", {}, {"run": homes.LINE}), ("train", {"current_base": f"run:{homes.LINE}"}, {})]
        case "chat":
            return [("chat", {}, {}), ("runs", {}, {"run": homes.JUDGE})]
        case "machine":
            return [("runs", {}, {"run": homes.WAITING}), ("train", {}, {})]
    return [("train", {}, {"dataset": homes.DATA}), ("advisor", {}, {}), ("forgetting", {}, {"run": homes.RUN})]


LOOKS = (("rows", "stored"), ("numbers", "mix"), ("mask", "upload"), ("division", "upload"))


def opened(page: str, state: dict[str, Any], asked: dict[str, str]) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "_frame.py"), default_timeout=60)
    app.switch_page(f"{page}.py")
    for key, value in state.items():
        app.session_state[key] = value
    for key, value in asked.items():
        app.query_params[key] = value
    return app.run()


def walk(here: Workspace, path: Path, how: str, failed: list[str]) -> None:
    """Damage a file and open what looks at it; then say what is wrong with that, if anything."""
    there = here.root.parent / path
    known = {one.id for one in datasets.list_all(here)}
    homes.damage(there, how)
    for page, state, asked in openings(here, path):
        if how == "unreadable":
            with homes.without_rights():
                opened(page, state, asked)
        else:
            opened(page, state, asked)
        assert not failed, f"{path} {how}: {page} {asked} {failed}"
    # What is damaged is listed with its place, and all else works.
    listed = {one.place for one in damaged.find(here)}
    left = {one.id for one in datasets.list_all(here)}
    gone = {here.dataset_dir(one) for one in known - left}
    assert gone == {one for one in listed if one.parent == here.datasets_dir}
    assert len(gone) <= (path.parts[1] == "datasets")


def every(root: Path) -> list[tuple[Path, str]]:
    return [(path, how) for path in homes.everything(root) for how in homes.damages(root / path)]
