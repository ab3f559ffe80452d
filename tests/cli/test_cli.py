"""The command line: its exit codes, its JSON to the letter, all problems at once, and no run started by accident."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from engine import events, machine, processes, starter
from engine.cli import main
from engine.data import datasets
from engine.machine import nvidia
from engine.models import bases
from engine.plan import repeat
from engine.report import Item
from engine.report import items as report_items
from engine.runs import follow, lifecycle, store
from engine.spec import RunSpec, recipes, schema
from engine.spec import settings as spec_settings
from engine.workspace import Workspace

needs_starter = pytest.mark.skipif(
    not (starter.MANIFEST.is_file() and starter.MODEL_DIR.is_dir()), reason="engine/starter/model has not been built"
)
CHECK_KEYS = [
    "file", "container", "layout", "type", "conversational", "rows", "bad_rows", "errors", "warnings", "problems",
    "problems_file",
]  # fmt: skip
RUN_KEYS = ["id", "name", "status", "recipe", "base", "dataset", "created", "progress"]
COMPARE_KEYS = [
    "run", "benchmark", "family", "n", "base", "tuned", "change", "low", "high", "base_only_right", "tuned_only_right",
]  # fmt: skip
PAIRS = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(12)]
RUN = "20261124-201516-0a1b2c"


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.setenv("TUNEBOOK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TUNEBOOK_MACHINE_DIR", str(tmp_path / "machine"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(nvidia, "ask", nvidia.Answer)
    machine.facts.cache_clear()

    def spawn(*_: object) -> None:
        pytest.fail("a training was started")

    monkeypatch.setattr(lifecycle, "_spawn", spawn)
    return Workspace(tmp_path / "home")


@pytest.fixture
def tunebook(capsys, workspace):
    def call(*words: str) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, said.out, said.err)

    return call


@pytest.fixture
def started(monkeypatch) -> list[RunSpec]:
    """Specs whose run was asked for; the run folder is written, and no process begins."""
    specs: list[RunSpec] = []

    def spawn(run_dir: Path, *_: object) -> processes.Identity | None:
        specs.append(schema.decode(spec_json(run_dir)))
        return processes.identify(os.getpid())

    monkeypatch.setattr(lifecycle, "_spawn", spawn)
    return specs


def spec_json(run_dir: Path) -> bytes:
    return (run_dir / "spec.json").read_bytes()


def file_of(tmp_path: Path, rows: list[Any], name: str = "mine.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def finished(workspace: Workspace, run_id: str = RUN, run_spec: RunSpec | None = None) -> Path:
    """A finished run folder, written by hand."""
    made, _ = recipes.resolve(
        recipes.recipes()["lora"], base="owner/name", revision=None, parameters=None, dataset_id="d", overrides={}
    )
    run_dir = workspace.run_dir(run_id)
    run_dir.mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(run_spec or made))
    (run_dir / "meta.json").write_text(json.dumps({"name": "Mine"}))
    log = events.EventLog(run_dir)
    log.append(events.Queued(device="cpu"))
    log.append(events.Step(step=5, total_steps=10, epoch=1.0, loss=0.5))
    log.append(events.Finished(step=10))
    log.close()
    return run_dir


def scored(run_dir: Path) -> None:
    def items(pattern: str) -> list[Item]:
        return [
            Item(item=f"q{i}", family="ab"[i % 2], prompt_sha=f"p{i}", correct=letter == "r")
            for i, letter in enumerate(pattern)
        ]

    def rows(nats: list[float]) -> list[Item]:
        return [
            Item(item=f"r{i}", family=report_items.UNSEEN, prompt_sha=f"p{i}", loglikelihoods=[-x], tokens=2)
            for i, x in enumerate(nats)
        ]

    for model, pattern, nats in (("base", "rrrrww", [2.0, 4.0]), ("tuned", "rrwwrw", [1.0, 2.0])):
        report_items.write_items(run_dir / "items" / f"{model}-toy-world.jsonl", items(pattern))
        report_items.write_items(run_dir / "items" / f"{model}-new-task-loss.jsonl", rows(nats))


# --- check -------------------------------------------------------------------------------------------------------


def test_check_of_a_good_file_is_0_and_of_a_bad_or_missing_one_1(tunebook, tmp_path):
    good, bad = file_of(tmp_path, PAIRS), file_of(tmp_path, [*PAIRS, "not json"], "bad.jsonl")
    assert tunebook("check", good).code == 0
    said = tunebook("check", bad)
    assert said.code == 1 and "line 13: " in said.out
    missing = tunebook("check", str(tmp_path / "none.jsonl"))
    assert missing.code == 1 and "none.jsonl" in missing.err and missing.out == ""


def test_check_with_a_base_says_nothing_of_what_was_found_no_time(tunebook, tmp_path):
    said = tunebook("check", file_of(tmp_path, PAIRS), "--base", "starter")
    assert said.code == 0 and "warning" not in said.out


def test_check_json_begins_with_exactly_the_keys_of_the_contract(tunebook, tmp_path):
    said = tunebook("check", "--json", file_of(tmp_path, [*PAIRS, {"prompt": "q", "completion": None}]))
    assert said.code == 1
    assert list(said.json)[: len(CHECK_KEYS)] == CHECK_KEYS
    assert (said.json["container"], said.json["type"], said.json["conversational"]) == (
        "jsonl",
        "prompt-completion",
        False,
    )
    assert (said.json["rows"], said.json["bad_rows"], said.json["errors"]) == (13, 1, {"null-field": 1})
    (problem,) = said.json["problems"]
    assert list(problem) == ["severity", "line", "row", "rule", "where", "message", "fix"]
    assert (problem["line"], problem["rule"], problem["where"]) == (13, "null-field", "completion")


def test_check_writes_every_problem_where_it_is_told(tunebook, tmp_path):
    found = tmp_path / "problems.jsonl"
    tunebook("check", file_of(tmp_path, [*PAIRS, "x", "y"]), "--problems", str(found))
    assert [json.loads(line)["line"] for line in found.read_text().splitlines()] == [13, 14]


def test_the_file_of_problems_never_takes_the_place_of_the_data(tunebook, tmp_path):
    data = file_of(tmp_path, [*PAIRS, "x"])
    before = Path(data).read_bytes()
    tunebook("check", data, "--problems", data)
    assert Path(data).exists() and Path(data).read_bytes() == before


# --- train: refused ----------------------------------------------------------------------------------------------


@needs_starter
def test_train_lists_every_problem_and_ends_with_2(tunebook, tmp_path):
    data = file_of(tmp_path, [*PAIRS, "not json"])
    said = tunebook(
        "train", "lora", "--data", data, "--set", "train.epochs=abc", "--set", "nonsense",
        "--set", "machine.devices=999",
        "--set", "train.max_length=9999", "--set", "layers=[99]", "--wait",
    )  # fmt: skip
    assert said.code == 2 and said.out == ""
    for part in ("train.epochs cannot be abc", "nonsense is not a setting", "999 devices", "9999 tokens",
                 "layers", "1 of 13 rows have errors"):  # fmt: skip
        assert part in said.err, part
    assert said.err.count("\n  - ") == 7  # so many devices are not there, and could not share a step


def test_train_with_an_unknown_recipe_names_those_there_are(tunebook, tmp_path):
    said = tunebook("train", "mystery", "--data", file_of(tmp_path, PAIRS))
    assert said.code == 2 and "there is no recipe mystery" in said.err and "lora" in said.err


@pytest.mark.parametrize("base", ["a/b/c", "/nowhere/at/all", "run:none", "~nobody-of-this-name/x"])
def test_train_on_a_base_that_is_none_is_refused(tunebook, tmp_path, base):
    said = tunebook("train", "lora", "--data", file_of(tmp_path, PAIRS), "--base", base)
    assert said.code == 2 and said.err.startswith("This run cannot start:")


def test_missing_data_does_not_hide_what_else_is_wrong(tunebook):
    said = tunebook("train", "lora", "--data", "none.jsonl", "--base", "a/b/c", "--set", "train.epochs=abc")
    assert said.code == 2
    for part in ("none.jsonl", "a/b/c is no base model", "train.epochs cannot be abc"):
        assert part in said.err, part


def test_missing_evaluation_data_is_refused(tunebook, tmp_path):
    said = tunebook("train", "lora", "--data", file_of(tmp_path, PAIRS), "--eval-data", str(tmp_path / "none.jsonl"))
    assert said.code == 2 and "none.jsonl" in said.err


def test_a_recipe_file_that_cannot_be_read_is_named(tunebook, tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "lora.yaml").write_bytes((recipes.RECIPES_DIR / "lora.yaml").read_bytes())
    (folder / "mine.yaml").write_text("title: [")
    monkeypatch.setattr(recipes, "RECIPES_DIR", folder)
    said = tunebook("train", "mine", "--data", file_of(tmp_path, PAIRS), "--base", "owner/name")
    assert said.code == 2 and "mine.yaml" in said.err


@pytest.mark.parametrize("words", [[], ["nothing"], ["train", "lora"], ["check"], ["compare"], ["check", "a", "--no"]])
def test_words_that_are_no_command_end_with_2_and_the_usage(tunebook, words):
    said = tunebook(*words)
    assert said.code == 2 and "usage: tunebook" in said.err


# --- train: started ----------------------------------------------------------------------------------------------


def test_train_without_wait_prints_the_id_and_the_status(tunebook, tmp_path, started, workspace):
    said = tunebook("train", "lora", "--data", file_of(tmp_path, PAIRS), "--base", "owner/name", "--json")
    assert said.code == 0 and list(said.json) == ["id", "status"]
    assert said.json["status"] == "queued" and store.exists(workspace, said.json["id"])
    assert len(started) == 1
    plain = tunebook("train", "lora", "--data", file_of(tmp_path, PAIRS), "--base", "owner/name", "--name", "Zoë")
    assert "tunebook show" in plain.out and "Zoë" in tunebook("runs").out


@pytest.mark.parametrize(
    ("status", "code"), [("finished", 0), ("failed", 1), ("stopped", 3), ("interrupted", 1), ("running", 0)]
)
def test_train_wait_ends_with_the_code_of_the_status(tunebook, tmp_path, started, monkeypatch, status, code):
    monkeypatch.setattr(follow, "wait", lambda *_: status)
    words = ("train", "lora", "--data", file_of(tmp_path, PAIRS), "--base", "owner/name", "--wait", "--json")
    said = tunebook(*words)
    assert said.code == code and list(said.json) == ["id", "status"] and said.json["status"] == status


def test_ctrl_c_leaves_the_run_going_and_says_how_to_stop_it(tunebook, tmp_path, started, monkeypatch):
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow, "wait", interrupted)
    said = tunebook("train", "lora", "--data", file_of(tmp_path, PAIRS), "--base", "owner/name", "--wait", "--json")
    assert said.code == 0 and said.json["status"] == "queued"
    assert f"tunebook stop {said.json['id']}" in said.err


def test_data_is_a_file_or_the_id_of_a_stored_set(tunebook, tmp_path, started, workspace):
    stored = datasets.add(workspace, file_of(tmp_path, PAIRS), "mine").id
    for word in (stored, str(tmp_path / "mine.jsonl")):
        assert tunebook("train", "lora", "--data", word, "--base", "owner/name").code == 0
    assert [made.dataset.id for made in started] == [stored, stored]


@needs_starter
def test_a_sample_is_named_and_brings_its_evaluation_data(tunebook, started):
    assert tunebook("train", "full", "--data", "new-facts").code == 0
    (made,) = started
    assert made.dataset.eval_id and made.base.ref == "starter" and made.evaluate.benchmarks == ["toy-world"]


def test_bad_rows_are_left_out_when_asked(tunebook, tmp_path, started):
    data = file_of(tmp_path, [*PAIRS, "not json"])
    assert tunebook("train", "lora", "--data", data, "--base", "owner/name").code == 2
    assert tunebook("train", "lora", "--data", data, "--base", "owner/name", "--drop-bad-rows").code == 0
    assert len(started) == 1


# --- runs, show, stop, resume ------------------------------------------------------------------------------------


def test_runs_json_is_a_list_newest_first_with_exactly_the_keys_of_the_contract(tunebook, workspace):
    assert tunebook("runs", "--json").json == []
    finished(workspace)
    finished(workspace, "20261125-000000-000000")
    listed = tunebook("runs", "--json").json
    assert [run["id"] for run in listed] == ["20261125-000000-000000", RUN]
    assert all(list(run) == RUN_KEYS for run in listed)
    assert listed[0]["status"] == "finished" and listed[0]["progress"] == 1.0
    assert [run["name"] for run in listed] == ["Mine 2", "Mine"]  # two of one name are told apart


def test_show_json_is_a_line_of_the_list_with_spec_and_summary(tunebook, workspace):
    run_dir = finished(workspace)
    shown = tunebook("show", RUN, "--json")
    assert shown.code == 0 and list(shown.json) == [*RUN_KEYS, "spec", "summary"]
    assert shown.json["spec"] == json.loads(spec_json(run_dir))
    assert shown.json["summary"]["status"] == "finished" and shown.json["summary"]["step"] == 5


def test_show_ends_with_the_command_that_repeats_the_run(tunebook, workspace):
    finished(workspace)
    last = tunebook("show", RUN).out.splitlines()[-1]
    assert last == repeat.repeat_command(workspace, RUN) and last.startswith("tunebook train lora --data d ")


@pytest.mark.parametrize("command", ["show", "stop", "resume", "compare"])
@pytest.mark.parametrize("run", ["none", "../../etc", "", "A", "x" * 500])
def test_an_unknown_run_ends_with_1_and_names_it(tunebook, command, run):
    said = tunebook(command, run)
    assert said.code == 1 and said.out == "" and f"There is no run {run[:80]}" in said.err


@pytest.mark.parametrize("command", [["show"], ["show", "--json"], ["resume"], ["compare"]])
def test_a_run_of_a_later_version_is_told_in_words(tunebook, workspace, command):
    path = finished(workspace) / "spec.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    assert tunebook(*command, RUN).code in (0, 1, 2)


def test_stop_leaves_word_for_the_run(tunebook, workspace):
    run_dir = finished(workspace)
    assert tunebook("stop", RUN).code == 0 and (run_dir / "stop").exists()


def test_a_finished_run_is_not_resumed(tunebook, workspace):
    finished(workspace)
    said = tunebook("resume", RUN)
    assert said.code == 2 and "finished" in said.err


# --- compare -----------------------------------------------------------------------------------------------------


def test_compare_json_has_exactly_the_keys_of_the_contract(tunebook, workspace):
    scored(finished(workspace))
    said = tunebook("compare", RUN, "--json")
    assert said.code == 0 and all(list(row) == COMPARE_KEYS for row in said.json)
    assert [(row["benchmark"], row["family"]) for row in said.json] == [
        ("new-task-loss", "all"), ("toy-world", "all"), ("toy-world", "a"), ("toy-world", "b"),
    ]  # fmt: skip
    loss, whole = said.json[:2]
    assert (loss["n"], loss["base"], loss["tuned"], loss["change"]) == (2, 1.5, 0.75, -0.75)
    assert loss["base_only_right"] is None and loss["tuned_only_right"] is None
    assert (whole["run"], whole["n"], whole["base_only_right"], whole["tuned_only_right"]) == (RUN, 6, 2, 1)
    assert whole["low"] is None and whole["high"] is None  # too few to say


def test_compare_json_is_json_where_items_are_too_few_to_say(tunebook, workspace):
    run_dir = finished(workspace)
    for model in ("base", "tuned"):
        one = Item(item="r0", family=report_items.UNSEEN, prompt_sha="p0", loglikelihoods=[-1.0], tokens=2)
        report_items.write_items(run_dir / "items" / f"{model}-new-task-loss.jsonl", [one])

    def no_json(word: str) -> None:
        raise AssertionError(word)

    (row,) = json.loads(tunebook("compare", RUN, "--json").out, parse_constant=no_json)
    assert (row["n"], row["low"], row["high"]) == (1, None, None)


def test_compare_takes_many_runs_and_prints_a_line_for_each_family(tunebook, workspace):
    other = "20261125-000000-000000"
    for run in (RUN, other):
        scored(finished(workspace, run))
    assert [row["run"] for row in tunebook("compare", RUN, other, "--json").json] == [RUN] * 4 + [other] * 4
    lines = tunebook("compare", RUN).out.splitlines()
    assert len(lines) == 9 and "66.67 ->    50.00 %" in lines[1] and "change -16.67 (too few to say)" in lines[1]


def test_compare_says_what_was_lost_and_won_apart_and_shows_the_lost_ones_with_both_answers(tunebook, workspace):
    run_dir = finished(workspace)
    for model, right in (("base", (True, True, False)), ("tuned", (False, True, True))):
        made = [
            Item(
                item=f"q{n}", family="f", prompt_sha=f"p{n}", prompt=f"Ask {n}?", text=f"{model} said {n}", correct=one
            )
            for n, one in enumerate(right)
        ]
        report_items.write_items(run_dir / "items" / f"{model}-instructions.jsonl", made)
    plain, more = (tunebook("compare", RUN, *also).out for also in ((), ("--lost",)))
    assert "lost 1, won 1" in plain and "base said" not in plain and "tuned said" not in plain
    assert more.startswith(plain)
    assert more[len(plain):].split("\n") == [
        "", f"{RUN}  instructions  q0: Ask 0?", "Base: base said 0", "Tuned: tuned said 0", "",
    ]  # fmt: skip


def test_compare_of_a_base_that_was_asked_by_itself_prints_its_scores(tunebook, workspace):
    asked = RunSpec(
        kind="evaluate", recipe=schema.RecipeRef("evaluate", "0" * 64), base=schema.BaseRef("starter"),
        dataset=schema.DatasetRef(""), evaluate=schema.Evaluate(benchmarks=["toy-world"]),
    )  # fmt: skip
    run_dir = finished(workspace, run_spec=asked)
    scored(run_dir)
    for path in (run_dir / "items").glob("tuned-*"):
        path.unlink()
    said = tunebook("compare", RUN).out
    assert re.search(rf"{RUN}  toy-world +n=\d+ +[\d.]+ % \[[\d.]+, [\d.]+\]", said) and "asked by itself" in said
    assert "Nothing was scored yet" not in said


def test_compare_of_a_run_without_scores_says_so(tunebook, workspace):
    finished(workspace)
    assert tunebook("compare", RUN, "--json").json == []
    assert "Nothing was scored yet" in tunebook("compare", RUN).out


@pytest.mark.parametrize("text", ["not json\n", '{"item": "q0", "family": "a", "prompt_sha": "other"}\n'])
def test_compare_of_items_that_do_not_fit_ends_with_1(tunebook, workspace, text):
    run_dir = finished(workspace)
    scored(run_dir)
    (run_dir / "items" / "tuned-toy-world.jsonl").write_text(text)
    said = tunebook("compare", RUN, "--json")
    assert said.code == 1 and said.out == "" and RUN in said.err


# --- repeating a run ---------------------------------------------------------------------------------------------


def repeated(tunebook: Any, workspace: Workspace, run_id: str) -> None:
    words = shlex.split(repeat.repeat_command(workspace, run_id))
    assert words[0] == "tunebook" and words[-1] == "--wait"
    said = tunebook(*words[1:-1])  # without waiting
    assert said.code == 0, said.err


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["train.learning_rate=1e-5", "train.epochs=2.5", "layers=top:0.5"],
        ["layers=[0, 3, 1]", "adapter_args.target_modules=q_proj, v_proj", "train.gradient_checkpointing=true"],
        ["dataset.eval_share=0", "train.schedule=constant", "train.threads=1", "evaluate.limit=5"],
        ["objective_args.beta=0.1", "objective_args.weights=[1, 1.5]", "train_head=false"],
    ],
)
def test_the_command_that_repeats_a_run_gives_an_equal_spec(tunebook, tmp_path, started, workspace, settings):
    flags = [word for setting in settings for word in ("--set", setting)]
    said = tunebook("train", "lora", "--data", file_of(tmp_path, PAIRS), "--base", "owner/name", "--json", *flags)
    repeated(tunebook, workspace, said.json["id"])
    first, second = started
    assert first == second
    for setting in settings:
        path, value = spec_settings.parse_setting(setting)  # pyright: ignore[reportGeneralTypeIssues]
        assert schema.value_at(second, path) == spec_settings.convert_setting(path, value)


@needs_starter
@pytest.mark.parametrize("setting", [None, "evaluate.benchmarks=[]", "dataset.eval_id=", "train.replay_share=0"])
def test_the_command_that_repeats_a_starter_run_gives_an_equal_spec(tunebook, started, workspace, setting):
    flags = ["--set", setting] if setting else []
    run_id = tunebook("train", "full", "--data", "new-facts", "--json", *flags).json["id"]
    repeated(tunebook, workspace, run_id)
    assert started[0] == started[1]


@needs_starter
def test_a_run_on_the_sample_split_by_itself_can_be_repeated(tunebook, started, workspace):
    """The Train page can leave the sample's evaluation data out; the command line must be able to say so too."""
    sample = datasets.add_sample(workspace, starter.sample("new-facts"))
    made, _ = recipes.resolve(
        recipes.recipes()["full"],
        base="starter",
        revision=None,
        parameters=bases.describe("starter", workspace).parameters,
        dataset_id=sample.id,
        overrides={"evaluate.benchmarks": ["toy-world"]},
    )
    finished(workspace, run_spec=made)
    repeated(tunebook, workspace, RUN)
    assert [msgspec.structs.replace(one, day=None) for one in started] == [made] and made.dataset.eval_id is None


def test_a_text_of_the_run_is_only_ever_one_word_of_the_command(tunebook, tmp_path, started, workspace):
    nasty = "q_proj; rm -rf $(pwd) '\"`"
    words = ("train", "lora", "--data", file_of(tmp_path, PAIRS), "--base", "owner/name", "--json")
    run_id = tunebook(*words, "--set", f"adapter_args.target_modules={nasty}").json["id"]
    repeated(tunebook, workspace, run_id)
    assert started[1].adapter_args.target_modules == nasty


def test_advise_answers_from_flags_a_file_and_facts_and_says_why(tunebook, tmp_path):
    said = tunebook("advise", "--rows", "5000", "--data-type", "prompt-completion", "--gpu-memory-gib", "7.6",
                    "--base-parameters", "7e9", "--json")  # fmt: skip
    assert said.code == 0 and said.json["advised"]["quantize"] == "4bit" and "C4" in said.json["rules"]
    facts = tmp_path / "facts.json"
    facts.write_text('{"rows": 500, "data_type": "prompt-completion"}')
    said = tunebook("advise", "--facts", str(facts), "--json")
    assert said.json["advised"]["adapter"] == "lora" and not any(row["fired"] for row in said.json["tables"]["memory"])
    said = tunebook("advise", "--data", file_of(tmp_path, PAIRS))
    assert said.code == 0 and "C3" in said.out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no file"), (b"", "is empty"), (b"PAR1 and nothing more", "Parquet file cannot be read"),
        (b'{"question": "a", "reply": "b"}\n', "none of the known layouts"), ("folder", "is a folder"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", [["advise"], ["fit", "lora"]], ids=lambda words: words[0])
def test_data_that_cannot_be_read_is_refused_with_what_is_wrong_with_it(tunebook, tmp_path, command, content, says):
    path = tmp_path / "mine.jsonl"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    said = tunebook(*command, "--data", str(path), "--json")
    assert said.code == 2 and says in said.err and not said.out
    assert tunebook(*command, "--data", "a" * 5000).code == 2


@pytest.mark.parametrize(
    "words", [["advise", "--rows", "100"], ["fit", "lora"], ["train", "lora", "--data", "new-facts"]]
)
def test_a_recipe_that_cannot_be_read_is_named(tunebook, tmp_path, monkeypatch, words):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "mine.yaml").write_text("title: [")
    monkeypatch.setattr(recipes, "RECIPES_DIR", folder)
    said = tunebook(*words)
    assert said.code == 2 and "mine.yaml" in said.err


def test_a_reader_of_the_output_that_goes_is_no_fault(tmp_path):
    code = "import sys; from engine.cli import main; sys.argv = ['tunebook', 'check', '--rules']; main()"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=processes.PROJECT_DIR, timeout=60)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("content", ["{", '{"rows": "many"}', '{"colour": 1}', "[]"])
def test_facts_that_cannot_be_read_are_refused_in_a_sentence(tunebook, tmp_path, content):
    facts = tmp_path / "facts.json"
    facts.write_text(content)
    said = tunebook("advise", "--facts", str(facts))
    assert said.code == 2 and "cannot be read as facts" in said.err


def test_impossible_facts_are_named_and_the_rest_is_answered(tunebook):
    said = tunebook("advise", "--rows", "-3", "--gpu-memory-gib", "0", "--data-type", "preference", "--json")
    assert said.code == 0 and len(said.json["problems"]) == 2 and said.json["advised"]["objective"] == "dpo"


# --- fit -------------------------------------------------------------------------------------------------------------
@needs_starter
def test_fit_prints_the_parts_and_the_range(tunebook):
    said = tunebook("fit", "lora", "--base", "starter", "--set", "train.batch_size=4")
    assert said.code == 0 and "Optimizer" in said.out and "It needs" in said.out
    said = tunebook("fit", "full", "--json")
    assert said.code == 0 and said.json["parameters"] == bases.describe("starter", Workspace(Path("/x"))).parameters
    assert sum(said.json["parts"].values()) == said.json["total_bytes"]
    assert said.json["low_bytes"] < said.json["total_bytes"] < said.json["high_bytes"]


@needs_starter
def test_train_and_fit_say_of_a_rate_that_breaks_a_model_what_the_train_page_says(tunebook, started):
    asked = ("lora", "--data", "new-facts", "--set", "train.learning_rate=0.5")
    warned = "a learning rate of 0.5 is above what is known to work here, 0.000375 to 0.006, and can break the model"
    said = tunebook("train", *asked)
    assert said.code == 0 and f"warning: {warned}; set it to 0.003" in said.err and len(started) == 1
    assert warned in tunebook("fit", *asked).out
    assert "warning" not in tunebook("train", "lora", "--data", "new-facts").err


@needs_starter
def test_fit_says_when_it_cannot_fit_and_what_would(tunebook):
    said = tunebook("fit", "lora", "--set", "train.batch_size=65536")
    assert said.code == 1 and "does not fit" in said.out and "this would fit: train.batch_size = " in said.out


def test_fit_says_what_it_does_not_know_and_what_is_wrong(tunebook):
    said = tunebook("fit", "lora", "--base", "owner/name")
    assert said.code == 1 and "cannot be estimated" in said.out
    assert tunebook("fit", "lora", "--base", "owner/name", "--json").json["parts"] is None
    for words in (
        ["lora", "--base", "/nowhere"],
        ["nope"],
        ["lora", "--set", "train.batch_size=0"],
        ["lora", "--set", "x"],
    ):
        said = tunebook("fit", *words)
        assert said.code == 2 and "cannot start" in said.err


# --- the estimates, and facts that cannot be -----------------------------------------------------------------------------
def test_fit_says_time_for_the_data_and_advise_says_what_each_way_takes(tunebook):
    said = tunebook("fit", "lora", "--data", "new-facts", "--json")
    assert said.code == 0 and said.json["time"]["basis"] == "assumed" and said.json["time"]["low_s"] > 0
    assert "It takes" in tunebook("fit", "lora", "--data", "new-facts").out
    assert "--data" in tunebook("fit", "lora").out
    said = tunebook("advise", "--rows", "5000", "--data-type", "prompt-completion", "--gpu-memory-gib", "24",
                    "--base-parameters", "7e9", "--json")  # fmt: skip
    ways = {way["title"]: way for way in said.json["alternatives"]}
    assert ways["LoRA"]["fits"] and not ways["full fine-tuning"]["fits"]
    assert ways["LoRA"]["low_bytes"] < ways["LoRA"]["high_bytes"] and ways["LoRA"]["time"]["low_s"] > 0
    assert {one["rule"] for one in said.json["mentioned"]} == {"K2", "G7", "C7"}


def test_a_base_that_cannot_be_read_or_is_not_known_is_said_and_the_advisor_answers(tunebook, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    for base, words in (
        ("owner/../x", "owner/../x"),
        (str(folder), "safetensors"),
        (str(tmp_path / "no"), "no"),
        ("owner/not-here", "! owner/not-here is not on this machine yet"),
    ):
        said = tunebook("advise", "--rows", "5000", "--data-type", "prompt-completion", "--base", base)
        assert said.code == 0 and "LoRA" in said.out and words in said.out, base
    header = b'{"w": {"dtype": "F32", "shape": [8, 4], "data_offsets": [0, 128]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(128))
    (folder / "tokenizer.json").write_text("{}")
    said = tunebook("advise", "--rows", "5000", "--data-type", "prompt-completion", "--base", str(folder))
    assert said.code == 0 and "LoRA" in said.out and "architecture is not known" in said.out
    said = tunebook("advise", "--rows", "-3", "--gpu-memory-gib", "0", "--base-parameters", "nan")
    assert said.code == 0 and "LoRA" in said.out and said.out.count("  ! ") == 3


def test_a_reader_that_goes_early_ends_a_command_quietly(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(pair) for pair in PAIRS))
    command = [sys.executable, "-m", "engine.cli", "check", str(file)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    here, pipe = processes.PROJECT_DIR, subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=here, env=buffered) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
