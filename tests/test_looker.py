"""What somebody chose or sent costs a page no more than a bounded look, whatever it is made to cost: each attack, and what
is said of it. Limits are small here; that those of the product are enough for honest files is told where they stand."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine import looker, processes, starter
from engine.check import DatasetError, apart
from engine.data import Dataset, datasets, jobs, lengths, profile, readiness
from engine.models import bases, counted
from engine.render import NoTokenizer
from engine.words import Problem
from engine.workspace import Workspace, open_regular, read_object
from tests import looks
from tests.helpers import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel bounds no memory")


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a look two seconds of the processor and 700 MiB."""
    monkeypatch.setattr(looker, "MOST_CPU_S", 2)
    monkeypatch.setattr(looker, "MEMORY_BYTES", 700 << 20)
    monkeypatch.setattr(looker, "_deaths", {})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder that a person chose: a copy of the starter, which each test spoils."""
    return Path(shutil.copytree(starter.MODEL_DIR, tmp_path / "base"))


@pytest.fixture
def rows(workspace: Workspace, tmp_path: Path) -> Dataset:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"aaaaaaaa{n}", "completion": "a" * 40 + "!"}) + "\n" for n in range(9))
    )
    return datasets.add(workspace, file, "Rows")


def spoil(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}), "utf-8")


# --- the process itself ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("function", "rule"),
    [(looks.spins, "look-time"), (looks.sleeps, "look-time"), (looks.fills, "look-memory"), (looks.crashes, "look-failed"),
     (looks.panics, "look-failed"), (looks.raises, "look-failed"), (looks.answers_too_much, "look-memory")],
)  # fmt: skip
def test_whatever_a_look_ends_in_is_a_sentence_and_the_next_one_is_answered(tmp_path, monkeypatch, function, rule):
    looker.ask(looks.process)  # a process that is up, so that its start does not count
    monkeypatch.setattr(looker, "MOST_S", 2)
    monkeypatch.setattr(looker, "MOST_CPU_S", 1)
    with pytest.raises(looker.Ended) as ended:
        looker.ask(function, at=tmp_path)
    assert ended.value.problem.rule == rule and str(tmp_path) in ended.value.problem.sentence
    assert looker.ask(looks.process) not in (0, os.getpid())


def test_many_who_ask_at_once_for_what_ends_a_look_wait_for_a_few_such_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(looker, "_places", threading.BoundedSemaphore(1))
    started = []
    monkeypatch.setattr(looker, "_Process", lambda make=looker._Process: started.append(1) or make())
    monkeypatch.setattr(looker, "_idle", [])

    def asks(_: int) -> str:
        with pytest.raises(looker.Ended) as ended:
            looker.ask(looks.crashes, at=tmp_path)
        return ended.value.problem.rule

    with ThreadPoolExecutor(6) as pool:
        said = list(pool.map(asks, range(6)))
    assert said == ["look-failed"] * 6 and len(started) == 1


def test_one_process_serves_one_look_after_another(tmp_path):
    assert looker.ask(looks.process) == looker.ask(looks.process)


def test_what_is_told_and_answered_is_what_it_was_whatever_a_name_is(tmp_path, workspace, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / os.fsdecode(b"no-\xff-text")
    problem = Problem(rule="tokenizer-none", parameters={"base": "mine"})
    assert looker.ask(looks.echoes, odd, workspace, problem) == (odd, workspace.root, problem, str(tmp_path))


def test_a_problem_comes_back_and_costs_no_process(tmp_path):
    before = looker.ask(looks.process)
    with pytest.raises(looker.Refused) as refused:
        looker.ask(looks.refuses, at=tmp_path)
    assert refused.value.problem.rule == "tokenizer-none" and not isinstance(refused.value, looker.Ended)
    assert looker.ask(looks.process) == before


def test_whoever_asks_a_thousand_times_over_is_refused_in_words_and_leaves_no_thousand_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(looker, "_places", threading.Semaphore(0))
    monkeypatch.setattr(looker, "_waiting", threading.Semaphore(3))
    monkeypatch.setattr(looker, "_MOST_WAIT_S", 2)
    said: list[str] = []

    def ask() -> None:
        with pytest.raises(looker.Refused) as refused:
            looker.ask(looks.process, at=tmp_path)
        said.append(refused.value.problem.rule)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for one in threads:
        one.start()
    wait_until(lambda: len(said) == 17)
    assert sum(one.is_alive() for one in threads) == 3  # who wait for a turn, and not for ever
    for one in threads:
        one.join(10)
    assert said == ["look-busy"] * 20
    monkeypatch.setattr(looker, "_places", threading.Semaphore(1))
    assert looker.ask(looks.process, at=tmp_path) == looker.ask(looks.process, at=tmp_path)


def test_a_look_that_tells_how_far_it_is_has_its_time_again_each_time(monkeypatch):
    monkeypatch.setattr(looker, "MOST_CPU_S", 1)
    told: list[int] = []
    assert looker.ask(looks.goes_on, progress=lambda done, total: told.append(done)) and told == [0, 1, 2, 3]


def test_a_file_that_ended_a_look_is_not_looked_at_again_until_it_is_another_or_time_has_passed(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(looker.Ended):
        looker.ask(looks.crashes, at=file)
    with pytest.raises(looker.Ended):  # without a process
        looker.ask(looks.process, at=file)
    assert looker.ask(looks.process, at=tmp_path / "other")
    file.write_text("another")
    assert looker.ask(looks.process, at=file)
    with pytest.raises(looker.Ended):
        looker.ask(looks.crashes, at=file)
    monkeypatch.setattr(looker, "AGAIN_S", 0)
    assert looker.ask(looks.process, at=file)


def test_no_token_is_passed_on(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(looker, "_idle", [])
    assert looker.ask(looks.os_token) == ""


def test_the_starter_and_what_a_child_of_ours_looks_at_are_looked_at_in_place(tmp_path, monkeypatch):
    assert looker.ask(looks.process, at=starter.MODEL_DIR) == os.getpid()
    monkeypatch.setattr(processes, "IS_CHILD", True)
    assert looker.ask(looks.process, at=tmp_path) == os.getpid()


# --- bases: headers, settings, tokenizers ----------------------------------------------------------------------------
def ruled(base: Path, workspace: Workspace) -> set[str]:
    return {one.rule for one in bases.describe(str(base), workspace).problems}


LOOKED_AT = {"look-time", "look-memory", "look-failed"}


def test_a_header_of_400_000_tensors_takes_no_page_with_it(base, workspace):
    header = ",".join(f'"t{n}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' for n in range(400_000)).encode()
    header = b"{" + header + b"}"
    (base / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert ruled(base, workspace) & LOOKED_AT
    began_s = time.monotonic()
    assert ruled(base, workspace) & LOOKED_AT and time.monotonic() - began_s < 0.5  # it is remembered


@pytest.mark.parametrize("size", [2**64, 2**200, -1, 1.5, "9"])
def test_sizes_that_no_tensor_has_are_a_problem(base, workspace, size):
    header = json.dumps({"model.embed_tokens.weight": {"dtype": "F32", "shape": [size], "data_offsets": [0, size]}})
    (base / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
    assert ruled(base, workspace)


@pytest.mark.slow
def test_an_index_that_names_a_million_files_is_a_problem(base, workspace):
    (base / "model.safetensors").unlink()
    names = ",".join(f'"t{n}":"{n}.safetensors"' for n in range(10**6))
    (base / "model.safetensors.index.json").write_text(f'{{"weight_map":{{{names}}}}}')
    assert ruled(base, workspace) & {"folder-missing-shards", *LOOKED_AT}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_deep_nesting_is_a_problem(base, workspace, name):
    (base / name).write_text("[" * 200_000)
    assert ruled(base, workspace)


def test_a_huge_config_json_is_a_problem(base, workspace):
    (base / "config.json").write_bytes(b'{"a":[' + b"[]," * 12_000_000 + b"[]]}")
    assert ruled(base, workspace) & LOOKED_AT


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_regular_file_is_not_read(base, workspace, name, kind):
    (base / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(base / name)
    else:
        (base / name).symlink_to("/dev/zero")
    found = bases.describe(str(base), workspace)
    assert not {one.rule for one in found.problems} & LOOKED_AT  # at once, and not when its time was up
    assert found.problems or name == "chat_template.jinja"


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_base_that_is_no_regular_file_is_a_problem(tmp_path, workspace, kind):
    path = tmp_path / "base.gguf"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    for ref in (str(path), f"gguf:{path}"):
        problems = bases.describe(ref, workspace).problems
        assert problems and not {one.rule for one in problems} & LOOKED_AT
    with pytest.raises(OSError, match="no ordinary file"):
        open_regular(path)
    assert read_object(path) == {}


def every_reader(workspace: Workspace, rows: Dataset, base: Path) -> list[Problem]:
    """Let all that pages and the command line read rows with read them as a base does, and return what each says."""
    described = bases.describe(str(base), workspace)
    said: list[Problem] = []
    for read in (
        lambda: readiness.of(workspace, rows, described),
        lambda: readiness.preview(workspace, rows.id, described, 128),
        lambda: apart.report_of(rows.folder / "original", base=described),
    ):
        try:
            read()
        except (NoTokenizer, DatasetError) as error:
            said.append(error.problem)
    found = profile.describe(workspace, rows.id, described).problem
    assert lengths.of(rows, described, workspace) is not None
    return [*said, *([found] if found is not None else [])]


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set a = 'a' * 3000000000 %}{{ a }}{{ a }}",
    ],
    ids=["nested ranges", "a long text"],
)
def test_a_template_that_never_ends_or_fills_the_memory_takes_no_page_with_it(base, workspace, rows, template):
    (base / "chat_template.jinja").write_text(template)
    began_s = time.monotonic()
    said = every_reader(workspace, rows, base)
    if "for" in template:
        assert [one.rule for one in said] == ["look-time"] * 4
        assert time.monotonic() - began_s < 20  # each package has tried once
    else:  # a text that does not fit is one more thing that the template refuses
        assert {one.rule for one in said} <= {"look-memory", "nothing-to-train"}


def test_an_expression_that_a_tokenizer_cannot_match_is_a_sentence_of_each_row(base, workspace, rows):
    """Its library panics then, which is no Exception of Python's."""
    told = json.loads((base / "tokenizer.json").read_bytes())
    slow = {"type": "Split", "pattern": {"Regex": "(a|aa|aaa|a*)*$"}, "behavior": "Isolated", "invert": False}
    told["pre_tokenizer"] = slow
    (base / "tokenizer.json").write_text(json.dumps(told))
    said = every_reader(workspace, rows, base)
    found = readiness.known(workspace, rows, bases.describe(str(base), workspace))
    assert said or (found is not None and found.tally.refused)


# --- tables ----------------------------------------------------------------------------------------------------------
def bomb(path: Path) -> Path:
    """A Parquet file of a few KiB, every row of which repeats a long text that stands there once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000, pa.int32()), pa.array(["a" * (8 << 20)]))
    pq.write_table(pa.table({"text": text}), path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    return path


def test_a_table_of_a_few_bytes_that_fills_the_memory_is_a_sentence_for_page_and_command_line(workspace, tmp_path):
    file = bomb(tmp_path / "rows.parquet")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call = jobs.Call(workspace=str(workspace.root), source=str(file), name="Rows")
    page = jobs.at_once(call)  # None: left to a job, which is bounded alike
    found = [] if page is None else datasets.problems(workspace, page.dataset) if page.dataset else [page.problem]
    try:
        found = [*found, *apart.report_of(file).problems]
    except DatasetError as error:
        found = [*found, error.problem]
    assert {one.rule for one in found if one is not None} & {*LOOKED_AT, "bad-parquet"}
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 200 << 10


def test_a_small_file_that_takes_long_is_left_to_a_job(workspace, tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    call = jobs.Call(workspace=str(workspace.root), source=str(file), name="Rows", remove_source=True)

    def ask(*_given: Any, **_how: Any) -> Any:
        raise looker.Ended(Problem(rule="look-time"))

    with monkeypatch.context() as patched:
        patched.setattr(looker, "ask", ask)
        assert jobs.at_once(call) is None and file.exists()
    found = jobs.at_once(call)
    assert found is not None and found.dataset and not file.exists()


# --- the model itself ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reason", "rule"),
    [("time", "base-count-time"), ("MemoryError: ", "base-count-memory"), ("ValueError: a", "base-not-built")],
)
def test_what_ended_the_child_that_counts_is_a_sentence(reason, rule):
    problem = counted.Found(reason=reason).problem("mine")
    assert problem.rule == rule and "mine" in problem.sentence


@pytest.mark.parametrize(
    ("code", "reason"), [("import time; time.sleep(60)", "time"), ("import os; os.abort()", "signal 6")]
)
def test_whoever_waits_for_the_child_that_counts_writes_what_ended_it(tmp_path, monkeypatch, code, reason):
    import subprocess

    def start(*_given: Any, **_how: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code])

    monkeypatch.setattr(counted.processes, "start", start)
    monkeypatch.setattr(counted, "MOST_S", 0.5 if reason == "time" else 60)
    counted.main("config.json", tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_bytes())["reason"] == reason
