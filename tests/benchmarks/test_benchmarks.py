"""Benchmarks: what ships is whole and licensed, a person's own is checked by line, and evaluations survive a kill."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from engine import events, starter
from engine.benchmarks import forms, library, own, shipped, speeds
from engine.forgetting import evaluations
from engine.report import items, paired
from engine.runs import follow, lifecycle, scored, store
from engine.words import Problem
from engine.workspace import Workspace
from tests import forked
from tests.conftest import ROOT, tunebook
from tests.helpers import identity_in, kill, wait_until

PACK = shipped.pack()


def no_grader(told: object) -> list[Problem]:
    raise AssertionError("no row names a grader")


def lines(*rows: object) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


# --- what ships ----------------------------------------------------------------------------------------------------


def test_the_pack_has_about_2650_items_under_600_kb():
    found = [library.find(name) for name in PACK]
    assert 2_500 <= sum(one.size for one in found if one is not None) <= 2_800
    size = sum(path.stat().st_size for path in shipped.HERE.iterdir() if path.suffix in (".jsonl", ".yaml", ".md"))
    assert size < 600_000


@pytest.mark.parametrize("name", PACK)
def test_each_shipped_benchmark_is_whole_and_names_licence_and_source(name):
    one = library.find(name)
    assert one is not None and one.licence in ("CC BY 4.0", "MIT", "AFL-3.0", "Apache-2.0", "CC0-1.0") and one.source
    assert f"| {name} | {one.size} | {one.licence} |" in (shipped.HERE / "README.md").read_text("utf-8")
    docs = library.docs(one)
    assert len(docs) == one.size == len({doc["item"] for doc in docs})
    for doc in docs:
        if one.kind == "text":
            assert doc["text"].strip()
            continue
        if one.kind == "graded":
            assert doc["question"].strip() and doc["grader"]["name"] and doc["most_tokens"] == one.most_tokens > 0
            continue
        choices = doc.get("choices") or doc["contexts"]
        assert len(set(choices)) == len(choices) >= 2 and 0 <= doc["gold"] < len(choices)


@pytest.mark.parametrize("name", [one.name for one in shipped.shipped() if one.kind == "choices"])
def test_the_right_answer_is_not_always_in_the_same_place(name):
    one = library.find(name)
    assert one is not None
    golds = [doc["gold"] for doc in library.docs(one)]
    assert max(golds.count(g) for g in set(golds)) < 0.62 * len(golds)


def test_a_limit_spreads_over_the_whole_set():
    one = library.find("blimp")
    assert one is not None
    docs = library.docs(one, 67)
    assert len(docs) == 67 and len({doc["item"].rpartition("-")[0] for doc in docs}) == 67


def test_the_sets_name_benchmarks_that_exist():
    for toy in (True, False):
        for name, one in library.sets(toy=toy).items():
            assert one.name == name and all(library.find(b) for b in one.benchmarks)
    assert starter.BENCHMARK_NAME not in library.sets(toy=False)["full"].benchmarks


def test_worked_examples_are_not_asked_again():
    docs = [{"item": str(i), "question": "q"} for i in range(10)]
    shown, asked = library.examples_and_questions(docs, 3)
    assert [d["item"] for d in shown] == ["0", "1", "2"] and not {d["item"] for d in shown} & {d["item"] for d in asked}
    assert len(library.examples_and_questions(docs, 50)[0]) == 5
    assert library.examples_and_questions([{"item": "a", "choices": ["x", "y"]}], 5)[0] == []


# --- a person's own ------------------------------------------------------------------------------------------------

GOOD = {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**GOOD, "answer": 2}, "line 2: the answer 2 is none of the 2 choices; write the number of the right one, 0 to 1"),
        ({**GOOD, "answer": -1}, "line 2: the answer -1 is none of"),
        ({**GOOD, "answer": True}, "line 2: the answer true is none of"),
        ({**GOOD, "answer": "five"}, 'line 2: the answer "five" is none of'),
        ({**GOOD, "answer": float("nan")}, "line 2: the answer NaN is none of"),
        ({"question": "a?", "answer": 0}, "line 2: choices is missing"),
        ({"question": "a?", "choices": ["x", "y"]}, "line 2: answer is missing"),
        ({**GOOD, "choices": ["4"]}, "line 2: choices must be a list of at least two different texts; it has 1"),
        ({**GOOD, "choices": ["4", "4"]}, "line 2: choices must be a list of at least two different texts; two of them"),
        ({**GOOD, "choices": "3 4"}, "line 2: choices must be a list of at least two different texts; it is no list"),
        ({**GOOD, "question": " "}, "line 2: question is blank"),
        ({**GOOD, "question": 7}, "line 2: question is int instead of a text"),
        ({"question": "a?"}, "line 2: the question has no choices, reference, form or grader"),
        ({"question": "a?", "reference": "b"}, "line 2: this row is scored by its reference, the rows before by their"),
        ({"question": "a?", "form": {"regex": "("}}, "line 2: form cannot be used: the regular expression"),
        ({"question": "a?", "form": {"schema": {"type": 5}}}, "line 2: form cannot be used: the schema"),
        ([1], "line 2: this is list, not an object"),
        (b"{not json", "line 2: this is not JSON"),
        (b'{"question": "\xff"}', "line 2: the line is not UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_is_said_by_its_line_and_nothing_is_kept(row, said, workspace: Workspace):
    data = lines({**GOOD, "question": "1 + 1?"}, row, GOOD)
    made, problems = evaluations.add_questions(workspace, data, "mine")
    assert made is None and len(problems) == 1
    assert problems[0].sentence.startswith(said)
    assert not (workspace.root / "benchmarks").exists()


def test_all_problems_are_named_at_once():
    _, problems = own.check(lines({**GOOD, "answer": 9}, b"x", {"question": "a?"}), no_grader)
    assert [problem.line for problem in problems] == [1, 2, 3]


@pytest.mark.parametrize("data", [b"", lines(GOOD), lines(GOOD, GOOD)])
def test_one_item_cannot_show_a_change(data):
    _, problems = own.check(data, no_grader)
    assert problems[-1].rule == "bench-one-item" and "100 questions show" in problems[-1].sentence


def test_a_persons_own_questions_are_kept_and_found_by_name(workspace: Workspace):
    rows = [{**GOOD, "question": f"{i} + 2?", "passage": "Sums." if i < 2 else "More."} for i in range(4)]
    rows[3]["answer"] = "3"
    made, problems = evaluations.add_questions(workspace, lines(*rows), "My sums.jsonl")
    assert made is not None and problems == [] and made.title == "My sums.jsonl" and made.size == 4
    assert library.find(made.name, workspace) == made and library.find(made.name) is None
    docs = library.docs(made)
    assert [doc["gold"] for doc in docs] == [1, 1, 1, 0] and docs[0]["question"] == "Sums.\n\n0 + 2?"
    assert docs[0]["cluster"] == docs[1]["cluster"] != docs[2]["cluster"]
    assert evaluations.add_questions(workspace, lines(*rows), "again")[0] is not None
    assert len(list((workspace.root / "benchmarks").iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "form", "right"),
    [
        ('{"a": 1}', "json", True),
        ("{a: 1}", "json", False),
        ("", "json", False),
        (' {"a": 1} ', {"schema": {"required": ["a"]}}, True),
        ('{"b": 1}', {"schema": {"required": ["a"]}}, False),
        ("[" * 5000, "json", False),
        ('{"a": 1}', {"schema": {"$ref": "http://127.0.0.1:1/never-fetched"}}, False),
        ("42 kg", {"regex": r"\d+ kg"}, True),
        ("42 kg!", {"regex": r"\d+ kg"}, False),
        (" yes\n", {"choices": ["yes", "no"]}, True),
        ("maybe", {"choices": ["yes", "no"]}, False),
    ],
)
def test_the_form_of_an_answer_is_told(text, form, right):
    assert forms.form_problem(form) == ""
    assert forms.has_form(text, form) == right


def test_right_answers_that_are_all_json_give_the_form_of_a_data_set():
    form = forms.form_of(['{"answer": "a", "x": 1}', '{"answer": "b"}'])
    assert forms.has_form('{"answer": "c"}', form) and not forms.has_form('{"other": "c"}', form)
    assert forms.form_of(["[1]", '{"a": 1}']) == "json"
    assert forms.form_of(["free text"]) is None is forms.form_of([]) and forms.form_of(["42"]) is None


# --- how long it takes ---------------------------------------------------------------------------------------------


def test_minutes_come_from_what_was_measured_and_from_nothing_else(workspace: Workspace):
    def ask(base: str, parameters: int | None, name: str, limit: int = 0) -> float | None:
        return speeds.seconds(workspace, "cpu", base, parameters, [name], limit)

    assert ask("a", 100, "blimp") is None
    blimp = library.find("blimp")
    assert blimp is not None
    read = speeds.characters(library.docs(blimp))
    told = {"device": "cpu", "base": "a", "parameters": 100, "benchmark": "blimp"}
    speeds.note_speed(workspace, speeds.Speed(**told, items=670, seconds=67.0, characters=read))
    assert ask("a", 100, "blimp") == pytest.approx(67) and ask("a", 100, "blimp", 67) == pytest.approx(6.7)
    near, larger = ask("a", 100, "piqa-150"), ask("b", 300, "piqa-150")
    assert near is not None and larger == pytest.approx(3 * near)
    assert speeds.seconds(workspace, "cuda:0", "a", 100, ["blimp"]) is None
    assert ask("a", 100, "mmlu") is None  # what it reads is not known before it is fetched
    path = workspace.root / "evals" / "speeds.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"version":2', b'"version":1'))  # by another way of scoring
    assert speeds.seconds(workspace, "cpu", "a", 100, ["blimp"]) is None


def test_what_choices_begin_with_is_counted_once_for_an_estimate():
    asked = [{"question": "Q?", "choices": ["a b c", "a b d", "x"]}, {"contexts": ["abc", "abd"], "continuation": "e"}]
    assert speeds.characters(asked) == 2 + (5 + 1) + 1 + (5 + 3) and speeds.characters([{"text": "abc"}]) == 3


# --- evaluations ---------------------------------------------------------------------------------------------------


def test_an_evaluation_names_everything_that_is_wrong_at_once(workspace: Workspace):
    made, problems = evaluations.build(workspace, "run:nothing", ["x", "blimp"], limit=-1, against="no such base!")
    assert made is None
    assert {p.rule for p in problems} == {"base-run", "base-unknown", "benchmark-unknown", "setting-value"}
    assert [p.rule for p in evaluations.build(workspace, "starter", [])[1]] == ["evaluate-none"]


def test_an_evaluation_of_a_base_is_a_run_of_its_own_kind(workspace: Workspace):
    made, problems = evaluations.build(workspace, "starter", ["blimp", "blimp"], shots=2)
    assert made is not None and problems == []
    assert (made.kind, made.evaluate.benchmarks, made.evaluate.shots, made.evaluate.against) == (
        "evaluate",
        ["blimp"],
        2,
        "",
    )


def evaluate(home: Path, *arguments: str) -> tuple[int, str, str]:
    done = tunebook("evaluate", *arguments, "--wait", "--json", home=home, machine=home.parent / "machine",
                    module=forked.module("cli"))  # fmt: skip
    told = json.loads(done.stdout) if done.stdout.strip() else {}
    return done.returncode, told.get("id", ""), done.stderr


@pytest.mark.slow
@pytest.mark.train
def test_ours_and_the_harnesss_own_reading_of_the_shipped_tasks_by_its_own_model_class_agree_on_every_choice():
    code = """
import json, os
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer
from engine import starter
from engine.models import bases
from engine.benchmarks import shipped
from engine.spec import RunSpec, schema
from engine.train.scoring import evaluation, harness, scores, written
from engine.words import Problem
from engine.workspace import Workspace
import torch
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(starter.MODEL_DIR)
model = AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR).eval()
workspace = Workspace("/nonexistent")
names = shipped.pack()
made = RunSpec(kind="evaluate", recipe=schema.RecipeRef("evaluate", "0"), base=schema.BaseRef("starter"),
               dataset=schema.DatasetRef(""), evaluate=schema.Evaluate(benchmarks=names, limit=0))
os.chdir(shipped.HERE)
told = {}
for question in scores.general(made, workspace, bases.describe("starter", workspace)):
    name, first = question.benchmark, question.asked[:12]
    if question.is_written:  # the harness has no graders, and its own answers end otherwise: it asks the same
        (task,) = TaskManager(include_path=".", include_defaults=False).load(["tunebook_" + name.replace("-", "_")])[
            "tasks"].values()
        told[name] = [[task.doc_to_text(doc) for doc in task.test_docs()] == [doc["question"] for doc in question.asked],
                      task.get_config("generation_kwargs")["max_gen_toks"] == question.asked[0]["most_tokens"]]
        continue
    ours = question.score(model, tokenizer, first)
    task = "tunebook_" + name.replace("-", "_")
    shared, harness._harness = harness._harness, lambda model, tokenizer, length, bos, answered: HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=16, max_length=length, add_bos_token=bos)
    harness._drawn = lambda tasks, limit, seed: {one: list(range(limit)) for one in tasks}  # the first, as ours
    theirs = harness.score_harness(model, tokenizer, task, limit=12, shots=0, chat=False, max_length=1024,
                                    include_path=str(shipped.HERE))
    harness._harness = shared
    told[name] = [len(ours), [i.choice for i in ours] == [i.choice for i in theirs],
                  [i.correct for i in ours] == [i.correct for i in theirs],
                  max(abs(a - b) for i, j in zip(ours, theirs) for a, b in zip(i.loglikelihoods, j.loglikelihoods))]
other = AutoTokenizer.from_pretrained(starter.MODEL_DIR)
same = evaluation.same_tokens(tokenizer, other)
other.add_tokens(["<new>"])
bleu, rouge = written.text_figures("我爱北京天安门", "我爱北京", unspaced=True)
print(json.dumps({"told": told, "same": same, "differ": evaluation.same_tokens(tokenizer, other), "rouge": rouge,
                  "bleu": bleu, "unspaced": [written.is_unspaced(["我爱北京"]), written.is_unspaced(["I love it"])]}))
"""
    ended = forked.run_python(code, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert sorted(found["told"]) == sorted(PACK)
    written = {name: found["told"].pop(name) for name, one in list(found["told"].items()) if len(one) == 2}
    assert written and all(one == [True, True] for one in written.values())
    for name, (n, choices, right, difference) in found["told"].items():
        assert n == 12 and choices and right and difference < 1e-3, name
    assert found["same"] and not found["differ"] and found["unspaced"] == [True, False]
    assert found["rouge"] == pytest.approx(
        2 * (4 / 7) / (4 / 7 + 1)
    )  # 4 of 7 characters in order, all of the reference
    assert found["bleu"][:3] == [7, 4, 4]


@pytest.mark.train
@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_gives_the_figures_of_an_unbroken_one(tmp_path: Path):
    made, _ = evaluations.build(Workspace(tmp_path), "starter", ["blimp", "toy-world"])
    assert made is not None
    whole = Workspace(tmp_path / "whole")
    unbroken = evaluations.start(whole, made)
    assert follow.wait(whole, unbroken) == "finished"
    broken = Workspace(tmp_path / "broken")
    run_id = evaluations.start(broken, made)
    run_dir = broken.run_dir(run_id)
    part = run_dir / "items" / "base-blimp.part"
    wait_until(lambda: part.exists() and part.read_bytes().count(b"\n") >= 3, timeout_s=240)
    kill(identity_in(run_dir / "pid.json"))  # the child dies with its supervisor
    wait_until(lambda: store.status(broken, run_id) == "interrupted")
    before = part.read_bytes()
    part.write_bytes(before + b'{"key": "torn')
    lifecycle.resume(broken, run_id)
    assert follow.wait(broken, run_id) == "finished"
    for name in ("blimp", "toy-world"):
        first, second = (
            w.run_dir(r) / "items" / f"base-{name}.jsonl" for w, r in ((whole, unbroken), (broken, run_id))
        )
        assert items.read_items(first) == items.read_items(second)
    told = [e for e in events.read(run_dir)[0] if isinstance(e, events.Progress)]
    resumed = [e.done for e in told][[e.done for e in told].index(64 * before.count(b"\n")) :]
    assert resumed[-1] == 670 + 452 and not part.exists()


@pytest.mark.train
@pytest.mark.slow
def test_a_run_and_its_base_are_asked_more_questions_later_and_stand_in_the_runs_own_report(
    trained_home: Path, tmp_path: Path
):
    home = tmp_path / "home"
    shutil.copytree(trained_home, home)
    workspace = Workspace(home)
    run_id = store.list_all(workspace)[0].id
    status, evaluation, said = evaluate(home, run_id, "--benchmarks", "general-text,winogrande-200", "--limit", "20")
    assert status == 0, said
    assert {row.benchmark for row in paired.compare_run(workspace.run_dir(evaluation))} == {
        "general-text", "general-text:bits-per-byte", "winogrande-200",
    }  # fmt: skip
    found = scored.of(workspace, run_id)
    assert {"toy-world", "general-text", "winogrande-200"} <= {row.benchmark for row in found.rows}
    assert {row.run for row in found.rows} == {run_id} and found.chance["winogrande-200"] == 0.5
    assert [run.id for run in found.evaluations] == [evaluation]
    used = found.settings()["winogrande-200"]
    assert (used["shots"], used["template"], used["window_tokens"]) == (0, "none", 1024)
    # the same model against itself: no real drop, and nothing is scored twice
    status, again, said = evaluate(home, "starter", "--against", "starter", "--benchmarks", "toy-world")
    assert status == 0, said
    (judged,) = scored.of(workspace, again).judged()
    assert judged.verdict == "equivalent"


@pytest.mark.train
@pytest.mark.slow
def test_a_base_that_splits_text_otherwise_is_refused_in_a_sentence(tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(starter.MODEL_DIR, other)
    told = json.loads((other / "tokenizer.json").read_bytes())
    first, second = list(told["model"]["vocab"])[300:302]
    vocab = told["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(told))
    status, run_id, _ = evaluate(tmp_path / "home", "starter", "--against", os.fspath(other), "--benchmarks", "blimp")
    assert status == 1
    failure = store.summary(Workspace(tmp_path / "home"), run_id).failure
    assert failure is not None and "split text into tokens differently" in str(failure["message"])


@pytest.mark.train
@pytest.mark.slow
def test_a_run_that_is_scored_on_its_way_has_the_losses_of_one_that_is_not(tmp_path: Path):
    losses = []
    for points in (2, 0):
        home = tmp_path / str(points)
        done = tunebook(
            "train", "lora", "--data", "new-facts", "--base", "starter", "--set", f"evaluate.along={points}", "--wait",
            "--json", home=home, machine=tmp_path / "machine", module=forked.module("cli"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        folder = Workspace(home).run_dir(json.loads(done.stdout)["id"])
        losses.append([(e.step, e.loss) for e in events.read(folder)[0] if isinstance(e, events.Step)])
        assert len(items.steps_scored(folder)) == points
    assert losses[0] == losses[1]
