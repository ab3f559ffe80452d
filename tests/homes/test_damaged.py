"""A home whose files are damaged, one at a time: every page opens, the rest works, and what is damaged is said."""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from engine import damaged, processes
from engine.cli import main
from engine.data import datasets
from engine.models import Base, shortlist
from engine.plan import chains
from engine.runs import store
from engine.words import Problem
from engine.workspace import Workspace
from pages import _failures
from tests.apps import button, has_button, texts
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
def failed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was raised on a page, though it was said there: a damaged file is met where it is read, and not by the frame."""
    found: list[str] = []

    def note(error: BaseException, *_: Any, **__: Any) -> str:
        trace = traceback.extract_tb(error.__traceback__)
        ours = [f"{one.filename.removeprefix(f'{ROOT}/')}:{one.lineno}" for one in trace if str(ROOT) in one.filename]
        found.append(f"{type(error).__name__}: {str(error)[:200]} at {' < '.join(ours[::-1][:4])}")
        return ""

    monkeypatch.setattr(_failures, "_noted", note)
    # whatever a page would start beside itself ends at once
    monkeypatch.setattr(processes, "start", lambda *_, **__: subprocess.Popen(["true"]))
    return found


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
        case "runs" if path.name == "skipped.jsonl":
            look = {f"look_{homes.DATA}": "mask", "way": "stored", f"learned_by_{homes.DATA}": homes.RUN}
            return [("data", look, {"dataset": homes.DATA})]
        case "runs" if path.name == "foresight.json":
            return [("runs", {}, {"run": run}), ("train", {}, {"dataset": homes.DATA})]
        case "runs" if run in (homes.WAY, homes.POINT):
            return [
                *(("forgetting", {}, {"run": one, "recover": "1"}) for one in (homes.RUN, run)),
                ("runs", {}, {"run": run}),
            ]
        case "runs" if run == homes.EXAMPLES or path.name == "judgements.json":
            return [("forgetting", {}, {"run": homes.RUN}), ("advisor", {}, {"dataset": homes.DATA})]
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


def walk(here: Workspace, path: Path, how: str, failed: list[str], asked: list[Opening]) -> None:
    """Damage a file, open what looks at it, and list the home on the command line; then say what is wrong with that."""
    known = {one.id for one in datasets.list_all(here)}
    runs = {one.id for one in store.list_every(here)}
    homes.damage(here.root.parent / path, how)
    with homes.without_rights() if how == "unreadable" else nullcontext():
        for page, state, parameters in asked:
            app = opened(page, state, parameters)
            assert not app.exception, f"{path} {how}: {page} {parameters} {app.exception[0].value}"
            assert not failed, f"{path} {how}: {page} {parameters} {failed}"
        for command in (["runs"], ["show", homes.RUN], ["compare", homes.RUN], ["chain"]):
            with pytest.raises(SystemExit):
                main(command)
        # What is damaged is listed with its place, and all else works.
        gone = known - {one.id for one in datasets.list_all(here)}
        assert {here.dataset_dir(one) for one in gone} == {one.place for one in damaged.find(here, "data")}
        assert gone <= set(path.parts)
        assert {one.id for one in store.list_every(here)} == runs
        chain = {one.id for one in chains.list_all(here)} | {one.place.stem for one in damaged.find(here, "chain")}
        assert chain >= {homes.CHAIN} or how == "gone"


def file_of(root: Path, name: str) -> Path:
    return next(path for path in homes.everything(root) if name in str(path))


# One of each damage, over the kinds of files.
CHOSEN = (
    ("meta.json", "empty"), ("report.json", "half"), ("rows.parquet", "half"), ("rows.parquet", "garbage"),
    ("original", "gone"), ("problems.jsonl", "bytes"), ("readiness-", "folder"), (f"{homes.RUN}/spec.json", "nested"),
    (f"{homes.RUN}/spec.json", "gone"), (f"{homes.RUN}/summary.json", "null"), (f"{homes.RUN}/events.jsonl", "huge"),
    ("tuned-toy-world", "hollow"), ("sweep.json", "list"), ("chains/", "later"), ("drafts/", "words"),
    ("deleted/", "infinite"), ("read-once/config.json", "negative"), ("votes.jsonl", "object"),
    ("machine/queue", "dangling"), ("folders.json", "unreadable"), ("judgements.json", "later"),
    ("examples-new-task", "folder"), ("curve.json", "infinite"), ("skipped.jsonl", "half"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "how"), CHOSEN)
def test_a_damaged_file_is_said_and_all_else_works(
    whole: Path, here: Workspace, failed: list[str], name: str, how: str
) -> None:
    path = file_of(whole, name)
    walk(here, path, how, failed, openings(here, path)[:1])


@pytest.mark.slow
@pytest.mark.parametrize("how", [*homes.ANY, *homes.TOLD, *homes.KINDS])
def test_every_file_that_is_damaged_is_said_and_all_else_works(
    whole: Path, tmp_path: Path, failed: list[str], how: str
) -> None:
    """The pages that look at a file take turns over what happens to it."""
    turn = [*homes.ANY, *homes.TOLD, *homes.KINDS].index(how)
    for path in homes.everything(whole):
        if how in homes.damages(path):
            shutil.rmtree(tmp_path / "home", ignore_errors=True)
            shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
            here = Workspace(tmp_path / "home")
            asked = openings(here, path)
            walk(here, path, how, failed, asked[turn % len(asked) :][:1])


@pytest.mark.parametrize(
    ("name", "page", "asked"),
    [(f"{homes.DATA}/meta.json", "data", {}), ("chains/", "train", {}), ("drafts/", "train", {}),
     ("read-once/config.json", "train", {}), ("benchmarks/own-566f5bc68772d178/meta.json", "forgetting", {})],
)  # fmt: skip
def test_what_cannot_be_read_is_listed_with_its_place_and_can_be_deleted(
    whole: Path, here: Workspace, failed: list[str], name: str, page: str, asked: dict[str, str]
) -> None:
    there = here.root.parent / file_of(whole, name)
    homes.damage(there, "half")
    place = there if there.parent in (here.chains_dir, here.drafts_dir) else there.parent
    app = opened(page, {}, asked)
    assert str(place) in texts(app) and place in {one.place for one in damaged.find(here)}
    for box in app.checkbox:  # what a run uses is said, and asks for a tick
        if str(box.key).startswith("delete_anyway_damaged_data"):
            assert f"the run {store.name(here, homes.RUN)} uses it" in texts(app)
            app = box.check().run()
    app = button(app, f"delete_damaged_{damaged.find(here)[0].kind}_{place.name}").click().run()
    assert not place.exists() and str(place) not in texts(app)
    assert not failed and damaged.find(here) == []


def test_a_run_whose_spec_is_gone_is_listed_and_can_be_deleted(here: Workspace, failed: list[str]) -> None:
    (here.run_dir(homes.RUN) / "spec.json").unlink()
    app = opened("runs", {}, {"run": homes.RUN})
    assert "cannot be read" in texts(app) and has_button(app, f"delete_run_{homes.RUN}")
    check = next(one for one in app.checkbox if one.key == f"delete_anyway_run_{homes.RUN}")
    app = button(check.set_value(True).run(), f"delete_run_{homes.RUN}").click().run()
    assert not here.run_dir(homes.RUN).exists() and not failed


# --- a home that takes nothing ---------------------------------------------------------------------------------------
NUMBERS = {errno.ENOSPC: "the disk is full", errno.EROFS: "a disk that may only be read"}
WRITERS: tuple[tuple[Opening, tuple[str, ...]], ...] = (
    (("data", {"way": "sample"}, {}), ("sample_new-facts",)),
    (("advisor", {}, {"dataset": homes.DATA}), ("use_this",)),
    (("train", {}, {"dataset": homes.DATA}), ("start",)),
    (("runs", {}, {"run": homes.RUN}), ("duplicate", "save_name", "save_note")),
    (("chat", {}, {}), ("delete_prompt",)),
)


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a page would start beside itself ends at once."""
    monkeypatch.setattr(processes, "start", lambda *_, **__: subprocess.Popen(["true"]))


def click(page: Opening, key: str, root: Path, number: int) -> AppTest:
    """Press a button of a page while nothing below `root` can be written."""
    app = opened(*page)
    with pytest.MonkeyPatch.context() as patch:
        homes.refuse_writes(patch, root, number)
        app = button(app, key).click().run()
    assert not app.exception, f"{page} {key}: {app.exception[0].value}"
    assert app.title
    return app


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("number", [errno.ENOSPC, pytest.param(errno.EROFS, marks=pytest.mark.slow)])
def test_an_action_on_a_disk_that_takes_nothing_says_so_and_the_page_stays(here: Workspace, number: int) -> None:
    for page, keys in WRITERS:
        for key in keys:
            app = click(page, key, here.root, number)
            assert NUMBERS[number] in texts(app), f"{page[0]} {key}: {texts(app)[:300]}"
            assert has_button(app, key)


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_every_button_on_a_disk_that_takes_nothing_answers_in_words(
    here: Workspace, failed: list[str], number: int
) -> None:
    views: list[Opening] = [
        *(page for page, _ in WRITERS),
        ("data", {}, {"dataset": homes.DATA}),
        ("data", {"way": "stored"}, {"dataset": homes.PAIRS}),
        *(("train", {}, {"chain": name}) for name in (homes.CHAIN, "new")),
        *(("runs", {}, {"run": run}) for run in (homes.FAILED, homes.SWEEP)),
        ("forgetting", {}, {"run": homes.RUN, "dataset": homes.DATA}),
        ("forgetting", {}, {"run": homes.SWEEP, "view": "sweep", "dataset": homes.DATA}),
        ("guide", {}, {}),
    ]
    for page in views:
        with pytest.MonkeyPatch.context() as patch:
            homes.refuse_writes(patch, here.root, number)
            app = opened(*page)
            assert not app.exception and not failed, f"{page} does not open: {failed}"
        keys = [str(one.key) for one in app.button if not one.disabled]
        for key in {re.sub(r"^(open|try|step|use)_.*", r"\1", key): key for key in keys}.values():  # one of those alike
            click(page, key, here.root, number)
            failed.clear()  # it was said


@pytest.mark.parametrize("number", NUMBERS)
def test_a_command_on_a_disk_that_takes_nothing_says_so(
    here: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    homes.refuse_writes(monkeypatch, here.root, number)
    with pytest.raises(SystemExit):
        main(["train", "lora", "--data", homes.DATA])
    assert NUMBERS[number] in capsys.readouterr().err


@pytest.mark.parametrize("rule", ["look-busy", "look-time", "base-count-time"])
def test_a_model_is_not_damaged_because_the_machine_was_busy(here: Workspace, monkeypatch, rule: str) -> None:
    (here.models_dir / "honest").mkdir(parents=True)
    wrong = Base(ref="honest", kind="folder", title="honest", problems=(Problem(rule=rule),))
    monkeypatch.setattr(shortlist, "describe", lambda *_: wrong)
    assert shortlist.unreadable(here) == {}
