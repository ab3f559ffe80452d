"""What a base does, and not only what it knows: questions whose answers are graded, shipped, one's own, the harness's."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from engine import graders, starter
from engine.benchmarks import library, shipped, speeds
from engine.forgetting import evaluations
from engine.report import statistics
from engine.spec import schema
from engine.workspace import Workspace

LEAST = {
    "instructions": 120, "json-on-request": 30, "ends-answers": 30, "keeps-language": 40, "refuses": 30,
    "answers-harmless": 30,
}  # fmt: skip
# An answer to each question that is right, and one that is not.
EXAMPLES = json.loads(Path(__file__).with_name("graded_answers.json").read_bytes())
GRADED = [one.name for one in shipped.shipped() if one.kind == "graded"]


def docs(name: str) -> list[dict]:
    one = library.find(name)
    assert one is not None
    return library.docs(one)


@pytest.mark.parametrize("name", GRADED)
def test_every_question_has_a_grader_that_tells_a_right_answer_from_a_wrong_one(name):
    asked = docs(name)
    assert {doc["item"] for doc in asked} == EXAMPLES[name].keys() and len(asked) >= LEAST[name]
    for doc in asked:
        grader = graders.make(msgspec.convert(doc["grader"], schema.GraderRef))
        right, wrong = EXAMPLES[name][doc["item"]]
        again = grader.grade(doc["question"], {"prompt": doc["question"], "ended": True}, fresh=True)
        assert not again.right or doc["family"] == "a greeting", f"saying the question again is no answer: {doc}"
        assert grader.grade(right, {"prompt": doc["question"], "ended": True}).right, doc
        assert not grader.grade(wrong, {"prompt": doc["question"], "ended": False}).right, doc
        assert 0 < len(right) < 4 * doc["most_tokens"], "a right answer has room"


def test_enough_is_asked_for_a_verdict_in_english_and_in_chinese_and_nothing_twice():
    assert set(GRADED) == set(LEAST) and min(LEAST.values()) >= statistics.LEAST_QUESTIONS
    asked = [doc["question"] for name in GRADED for doc in docs(name)]
    assert len(set(asked)) == len(asked)
    for name in set(GRADED) - {"keeps-language"}:
        chinese = sum(library.language_of([doc["question"]]) == "zh" for doc in docs(name))
        assert 0.25 * len(docs(name)) < chinese < 0.75 * len(docs(name)), name
    assert len({doc["family"] for doc in docs("instructions")}) >= 10
    assert len({doc["family"] for doc in docs("keeps-language")}) == 10


def test_a_real_base_is_asked_all_of_it_by_the_standard_set_and_the_shortest_by_the_quick_one():
    sets = library.sets(toy=False)
    assert set(GRADED) & set(sets["quick"].benchmarks) == {"keeps-language"}
    for name in ("standard", "full"):
        assert set(GRADED) <= set(sets[name].benchmarks)
        own = [one for one in sets[name].benchmarks if one in shipped.pack()]
        assert set(own[-len(GRADED) :]) == set(GRADED)  # what takes longest goes last
    assert not any(set(GRADED) & set(one.benchmarks) for one in library.sets(toy=True).values())


def test_answers_that_are_written_are_paid_for_in_an_estimate(workspace: Workspace):
    blimp = docs("blimp")
    told = speeds.Speed(device="cpu", base="a", parameters=100, benchmark="blimp", items=len(blimp), seconds=10.0,
                        characters=speeds.characters(blimp))  # fmt: skip
    speeds.note_speed(workspace, told)
    for name in GRADED:
        asked, most = docs(name), docs(name)[0]["most_tokens"]
        seconds = speeds.seconds(workspace, "cpu", "a", 100, [name])
        assert most > 0 and seconds is not None
        read_s = 10.0 * sum(len(doc["question"]) for doc in asked) / speeds.characters(blimp)
        assert seconds > 10 * read_s


# --- the harness's ifeval ------------------------------------------------------------------------------------------


def test_ifeval_is_offered_where_what_it_needs_is_installed_and_else_said_to_need_it(workspace, monkeypatch):
    monkeypatch.setattr(shipped, "find_spec", lambda name: None if name == "langdetect" else object())
    assert library.find("ifeval") is None and "ifeval" not in [one.name for one in library.available()]
    made, (problem,) = evaluations.build(workspace, "starter", ["ifeval"])
    assert made is None and problem.rule == "benchmark-needs" and "pip install langdetect," in problem.sentence
    monkeypatch.setattr(shipped, "find_spec", lambda name: object())
    one = library.find("ifeval")
    assert one is not None and (one.kind, one.template, one.most_tokens) == ("harness", "chat", 1280)
    assert evaluations.build(workspace, "starter", ["ifeval"])[1] == []


# --- a person's own ------------------------------------------------------------------------------------------------

FIVE = {"name": "length", "parameters": {"least": 5, "most": 5}}


def lines(*rows: dict) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_own_questions_may_name_their_grader(workspace):
    rows = [{"question": f"Say five words, {n}.", "grader": FIVE, "reference": "a b c d e"} for n in range(3)]
    made, problems = evaluations.add_questions(workspace, lines(*rows), "mine")
    assert made is not None and problems == [] and (made.kind, made.template) == ("graded", "chat")
    asked = library.docs(made)
    assert asked[0]["grader"] == FIVE and asked[0]["most_tokens"] == made.most_tokens > 0
    assert library.examples_and_questions(asked, 2)[0] == []  # what is right is not written down
    assert speeds.characters(asked) > 0 and made.name != starter.BENCHMARK_NAME


@pytest.mark.parametrize(
    ("grader", "rule"),
    [
        ({"name": "lenght"}, "grader-unknown"),
        ({"name": "length", "parameters": {"least": 9, "most": 2}}, "grader-bounds"),
        ({"name": "regex", "parameters": {"pattern": "(a+)+$"}}, "grader-explodes"),
        ({"name": "regex", "parameters": {"pattern": "("}}, "grader-pattern"),
        ("length", "bench-grader"),
        (None, "bench-grader"),
    ],
)
def test_a_grader_that_is_none_is_said_by_its_line_and_nothing_is_kept(workspace, grader, rule):
    rows = [
        {"question": "a?", "grader": FIVE},
        {"question": "b?", "grader": grader},
        {"question": "c?", "grader": FIVE},
    ]
    made, (problem,) = evaluations.add_questions(workspace, lines(*rows), "mine")
    assert made is None and (problem.rule, problem.line) == (rule, 2) and problem.sentence.startswith("line 2: ")
    assert not (workspace.root / "benchmarks").exists()


def test_a_reference_beside_a_grader_must_be_a_text(workspace):
    rows = [{"question": "a?", "grader": FIVE, "reference": 5}, {"question": "b?", "grader": FIVE}]
    _, (problem,) = evaluations.add_questions(workspace, lines(*rows), "mine")
    assert problem.sentence.startswith("line 1: reference is int instead of a text")


def test_thousands_of_slow_graders_are_not_tried_for_ever(workspace, monkeypatch):
    monkeypatch.setattr(evaluations, "GRADERS_S", -1.0)
    rows = [{"question": f"{n}?", "grader": FIVE} for n in range(3)]
    made, problems = evaluations.add_questions(workspace, lines(*rows), "mine")
    assert made is None and {one.rule for one in problems} == {"bench-graders-slow"}
