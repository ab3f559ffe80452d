"""Names are cleaned, a home is private, only ordinary files are read, and what dead writers left goes."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import starter
from engine import workspace as ws
from engine.data import datasets
from engine.forgetting import evaluations
from engine.runs import lifecycle, store
from engine.spec import schema
from tests.helpers import PROJECT_DIR, fake_spec

HOSTILE = "a\u202egpj.exe\u2066\u200b\u200d\ufeff\x1b[2J\x00\n\r\u2028b\u0085\ud800 " + "x" * 500


# --- names -------------------------------------------------------------------------------------------------------
@given(st.text(alphabet=st.characters()) | st.just(HOSTILE))
def test_a_name_is_one_line_of_what_can_be_seen_and_cleaning_it_again_changes_nothing(text):
    cleaned = ws.one_line(text)
    assert len(cleaned) <= 120 and cleaned == cleaned.strip() and "  " not in cleaned
    seen = [one for one in cleaned if one not in "\u200c\u200d" and unicodedata.category(one) != "Cn"]
    assert "".join(seen).isprintable()
    assert ws.one_line(cleaned) == cleaned


@pytest.mark.parametrize("hidden", ["a\u200db", "\u200dab", "ab\u200c", "a\u200c\u200db", "a\u200b\u2066b\u200f"])
def test_what_joins_nothing_is_left_out_of_a_name(hidden):
    assert ws.one_line(hidden) == "ab"
    assert ws.one_line("é\u200d\u200d" + "数\u200d\u200d\u200c据") == "é数\u200d据"


def test_a_name_in_any_language_stays_as_it_is():
    persian, sinhala, family = "می\u200cخواهم", "ශ්\u200dරී", "👨\u200d👩\u200d👧 1"
    later = "\U0002ebf0\U000323b0"  # of a Unicode that not every Python knows
    for name in ("LoRA on 数据 🎛️ naïve", "tělo – “x”", "שלום", "한국어 1.5e-4", persian, sinhala, family, later):
        assert ws.one_line(name) == name


def test_a_run_a_data_set_and_questions_are_named_alike_at_the_start_and_when_renamed(workspace, monkeypatch):
    monkeypatch.setattr(lifecycle, "_spawn", lambda *_: None)
    wanted = ws.one_line(HOSTILE)
    assert wanted.startswith("agpj.exe [2J b")
    run_id = lifecycle.start(workspace, fake_spec(), name=HOSTILE)
    meta = workspace.run_dir(run_id) / "meta.json"
    assert json.loads(meta.read_bytes())["name"] == store.name(workspace, run_id) == wanted
    store.rename(workspace, run_id, HOSTILE + "y")
    assert store.name(workspace, run_id) == wanted
    store.write_note(workspace, run_id, f"one\n{HOSTILE}")
    assert store.note(workspace, run_id).startswith("one\nagpj.exe [2J")
    data = datasets.add(workspace, starter.sample("new-facts").file, HOSTILE)
    assert data.name == wanted and datasets.rename(workspace, data.id, HOSTILE).name == wanted
    own, _ = evaluations.add_questions(workspace, b'{"prompt": "a", "choices": ["b", "c"], "gold": 0}\n', HOSTILE)
    assert own is None or own.title.isprintable()
    base = schema.BaseRef("x/" + HOSTILE.replace("\ud800", ""))
    run_id = lifecycle.start(workspace, msgspec.structs.replace(fake_spec(), base=base))
    assert json.loads((workspace.run_dir(run_id) / "meta.json").read_bytes())["name"].isprintable()


def test_a_name_that_was_written_past_us_is_cleaned_where_it_is_read(workspace, monkeypatch):
    monkeypatch.setattr(lifecycle, "_spawn", lambda *_: None)
    run_id = lifecycle.start(workspace, fake_spec())
    (workspace.run_dir(run_id) / "meta.json").write_text(json.dumps({"name": "a\u202eb\n\x07" * 400}))
    name = store.name(workspace, run_id)
    assert name.isprintable() and len(name) <= 120


# --- only ordinary files ------------------------------------------------------------------------------------------
@pytest.fixture
def odd(tmp_path) -> dict[str, Path]:
    """What is no ordinary file, by kind; each called as the file it stands in for, too."""
    places = {"fifo": tmp_path / "fifo", "socket": tmp_path / "socket"}
    os.mkfifo(places["fifo"])
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(places["socket"]))
    links = {"zero": "/dev/zero", "kmsg": "/proc/kmsg", "pagemap": "/proc/self/pagemap", "stdin": "/dev/stdin"}
    for name, target in {**links, "dangling": "/nowhere/at all", "itself": str(tmp_path / "itself")}.items():
        (tmp_path / name).symlink_to(target)
        places[name] = tmp_path / name
    return places


def in_time(code: str, *arguments: object) -> str:
    """Run code in a process of its own with a pipe that nobody writes to as its input; what reads that would hang."""
    read, write = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], cwd=PROJECT_DIR, stdin=read, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(read)
        os.close(write)
    assert done.returncode == 0, done.stderr
    return done.stdout


EVERYWHERE = """
import sys, os
from pathlib import Path
from engine import limits
from engine.check import DatasetError, check_file, text_files
from engine.data import datasets
from engine.forgetting import sweep_plan
from engine.models import bases, alike, folders
from engine.plan import take_along
from engine.spec import recipes, schema
from engine.workspace import Workspace, is_regular, read_object
home = Workspace(Path(sys.argv[1]))
def told(path, call):
    try:
        return repr(call())
    except (DatasetError, recipes.RecipeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
for name in sys.argv[2:]:
    path = Path(name)
    folder = path.parent / (path.name + ".d")
    folder.mkdir()
    for inner in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "README.md", "notes.txt",
                  "model.safetensors.index.json", "chat_template.jinja", "adapter_config.json"):
        (folder / inner).symlink_to(path)
    (path.parent / (path.name + ".yaml")).symlink_to(path)
    (path.parent / (path.name + ".md")).symlink_to(path)
    assert not is_regular(path)
    for what in (
        lambda: check_file(path), lambda: datasets.add(home, path, "rows"), lambda: datasets.add(home, folder, "texts"),
        lambda: datasets.add(home, path.parent / (path.name + ".md"), "notes.md"),
        lambda: take_along.unpack(home, path), lambda: limits.read_questions(path, 1000),
        lambda: recipes.load_recipe(path.parent / (path.name + ".yaml")),
    ):
        said = told(path, what)
        assert "Error" in said or "NotAFile" in said, (name, said)
        print(said)
    assert read_object(path) == {} and not take_along.holds_one(path)
    assert bases.describe(str(folder), home).problems and folders.look(folder).problems
    assert bases.describe(str(path), home).problems or bases.describe(str(path), home).folder is None
"""


@pytest.mark.slow
def test_nothing_but_an_ordinary_file_is_read_as_data_questions_a_recipe_or_a_model_and_nothing_hangs(tmp_path, odd):
    said = in_time(EVERYWHERE, tmp_path / "home", *odd.values())
    assert "is no ordinary file" in said
    assert not list((tmp_path / "home").rglob("meta.json"))


def test_the_command_line_refuses_them_too(tmp_path, odd):
    code = "import sys; from engine.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit as e: print('exit', e.code)"
    for words in (["check", odd["fifo"]], ["train", "lora", "--data", odd["kmsg"]], ["open", odd["fifo"]],
                  ["advise", "--facts", odd["zero"]], ["evaluate", "starter", "--benchmarks", odd["kmsg"]]):  # fmt: skip
        said = in_time(f"import os; os.environ['TUNEBOOK_HOME'] = {str(tmp_path / 'home')!r}\n{code}", *words)
        assert "exit 0" not in said, words


# --- a home is private --------------------------------------------------------------------------------------------
def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_home_and_the_machines_folder_are_made_for_their_owner_alone_and_narrowed_where_they_are_wide(
    tmp_path, monkeypatch
):
    home, machine = tmp_path / "deep" / "home", tmp_path / "machine"
    monkeypatch.setenv("TUNEBOOK_HOME", str(home))
    monkeypatch.setenv("TUNEBOOK_MACHINE_DIR", str(machine))
    ws.default_workspace()
    ws.machine_dir()
    assert mode(home) == mode(machine) == 0o700
    for folder, inside in ((home, "runs"), (machine, "queue")):
        (folder / inside).mkdir()
        folder.chmod(0o755)
    ws.default_workspace()
    ws.machine_dir()
    assert mode(home) == mode(machine) == 0o700


def test_a_folder_that_is_no_home_of_ours_or_everybodys_keeps_its_mode(tmp_path, monkeypatch):
    for bits, name in ((0o755, "something else"), (0o1777, "runs")):
        place = tmp_path / name / "x"
        (place / name).mkdir(parents=True)
        place.chmod(bits)
        monkeypatch.setenv("TUNEBOOK_HOME", str(place))
        ws.default_workspace()
        assert mode(place) == bits


def test_a_folder_with_other_things_or_for_others_keeps_its_mode_and_what_is_theirs_in_it(tmp_path, monkeypatch):
    """Somebody's folder of data sets and models, a group's, a home directory that was named as the home."""
    theirs = {"mine": ("models/.old-backup", "datasets/.new-rows", ".chat-history", "notes.txt", "code/.hub-x"),
              "group": ("runs/.settings.json-abcd1234",)}  # fmt: skip
    for name, files in theirs.items():
        place = tmp_path / name
        for file in files:
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_text("theirs")
            os.utime(place / file, (0, 0))
        place.chmod(0o2775 if name == "group" else 0o755)
        monkeypatch.setenv("TUNEBOOK_HOME", str(place))
        ws.default_workspace()
        assert mode(place) == (0o2775 if name == "group" else 0o755)
        ws.clear_leftovers(place)
        ws.clear_scratch(place / "models")
    assert all((tmp_path / "mine" / file).exists() for file in theirs["mine"])


def test_a_user_without_a_home_directory_has_the_home_that_is_named(tmp_path, monkeypatch):
    def nobody(_):
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)  # as in a container that runs under any number
    monkeypatch.setenv("TUNEBOOK_HOME", str(tmp_path))
    tmp_path.chmod(0o755)
    assert ws.default_workspace().root == tmp_path and mode(tmp_path) == 0o700


def test_a_home_that_cannot_be_made_raises_only_where_something_is_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNEBOOK_HOME", str(tmp_path / "file" / "home"))
    assert store.list_every(ws.default_workspace()) == []


# --- what dead writers left ---------------------------------------------------------------------------------------
LEAVE = """
import os, sys, time
from pathlib import Path
from engine import workspace as ws
root = Path(sys.argv[1])
for folder in ("uploads", "datasets", "runs/20260101-000000-abcdef", "models", "."):
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / f"{ws.scratch('upload')}0.part").write_text("half")
    (root / folder / f"{ws.scratch('merged')}partial").mkdir()
    (root / folder / f"{ws.scratch('merged')}partial" / "model.safetensors").write_text("half")
print(flush=True)
sys.stdin.read()
"""


def left(root: Path) -> list[Path]:
    return [path for path in root.rglob(".*") if "-w" in path.name]


def test_what_a_dead_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", LEAVE, str(tmp_path)], cwd=PROJECT_DIR, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None and writer.stdout.readline()
    mine = tmp_path / "uploads" / f"{ws.scratch('upload')}mine.part"
    mine.write_text("half")
    (tmp_path / ".kept-by-hand").write_text("")
    ws.clear_leftovers(tmp_path)
    assert len(left(tmp_path)) == 11
    writer.kill()  # and stays a zombie, which is dead
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)
    ws.clear_leftovers(tmp_path)
    assert left(tmp_path) == [mine] and (tmp_path / ".kept-by-hand").exists()
    writer.communicate()


def test_what_may_be_another_machines_goes_only_when_it_is_old(tmp_path):
    (tmp_path / "datasets").mkdir()
    theirs = tmp_path / "datasets" / ".new-w0badf00d.1-abc"
    ours = tmp_path / "datasets" / ".spec.json-a1b2c3d4"  # as they were called before they were signed
    for path in (theirs, ours):
        path.write_text("half")
    ws.clear_leftovers(tmp_path)
    assert theirs.exists() and ours.exists()
    for path in (theirs, ours):
        os.utime(path, (0, time.time() - 2 * ws.LEFT_S))
    ws.clear_leftovers(tmp_path)
    assert not theirs.exists() and not ours.exists()


@pytest.mark.skipif(not os.path.exists("/proc/self/ns/pid"), reason="where there are containers")
def test_what_a_container_on_this_machine_writes_stays(tmp_path, monkeypatch):
    """It has the machine's boot, and numbers of processes that mean nothing here."""
    stat_of, folder = os.stat, tmp_path / "datasets"
    folder.mkdir()

    def elsewhere(path, *more, **named):
        return os.stat_result([0, 4711, *[0] * 8]) if path == "/proc/self/ns/pid" else stat_of(path, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", elsewhere)
        patch.setattr(os, "getpid", lambda: 2**22 + 1)  # beyond any that lives
        theirs = folder / f"{ws.scratch('new')}rows"
    theirs.write_text("half")
    ws.clear_leftovers(tmp_path)
    assert theirs.exists()


def test_a_write_that_was_killed_leaves_nothing_that_stays(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom engine import workspace as ws\n"
        "os.replace = lambda *_: os._exit(9)\nws.write_atomically(Path(sys.argv[1]) / 'a.json', b'{}')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT_DIR, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    ws.clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
