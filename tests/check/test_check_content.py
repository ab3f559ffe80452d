"""Warnings about the texts themselves, and about answers and labels as a whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.check import Report, check_file, content_rules, file_rules, repeats, totals
from engine.read import lines
from engine.spec import counts

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def report_of(tmp_path: Path, rows: list) -> Report:
    path = tmp_path / "data.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return check_file(path)


def faults(report: Report) -> list[tuple[int | None, str, str | None]]:
    return [(p.line, p.rule, p.where) for p in report.problems]


def chat(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


TEXTS = [
    ("special-token", "done<|im_end|>", "<|im_end|>"),
    ("special-token", "<|user|> hello", "<|user|>"),
    ("special-token", "done<|endoftext|>", "<|endoftext|>"),
    ("special-token", "the end</s>", "</s>"),
    ("special-token", "[INST] do it [/INST]", "[INST]"),
    ("special-token", "### Instruction: add", "### Instruction:"),
    ("placeholder", "I am {{name}}", "{{name}}"),
    ("replacement-character", "na�ve", "letters that were lost"),
    ("personal-data", "write to jo.doe@mail.org", "an e-mail address"),
    ("personal-data", "the key is AKIAIOSFODNN7EXAMPLQ", "a key or password"),
    ("personal-data", "-----BEGIN RSA PRIVATE KEY-----", "a key or password"),
    ("personal-data", "pay with 4111 1111 1111 1111 today", "a card number"),
    ("personal-data", "pay with 4111111111111111 today", "a card number"),
]


@pytest.mark.parametrize(("rule", "text", "says"), TEXTS)
def test_a_text_that_holds_what_it_should_not_is_named(tmp_path, rule, text, says):
    for row, where in (
        (chat("Hi", text), "messages[1].content"),
        (chat(text, "x"), "messages[0].content"),
        ({"prompt": "a", "completion": text}, "completion"),
        ({"text": text}, "text"),
    ):
        report = report_of(tmp_path, [row])
        # A text with a mark that begins a turn is a conversation that is trained whole.
        whole = where == "text" and content_rules.TURN.search(text)
        assert faults(report) == [(1, "templated-text" if whole else rule, where)] and report.trainable
        assert says in report.problems[0].message


def test_what_was_found_is_not_repeated_when_it_is_personal(tmp_path):
    [problem] = report_of(tmp_path, [chat("Hi", "jo.doe@mail.org")]).problems
    assert "doe" not in problem.sentence


@pytest.mark.parametrize(
    "text",
    ["a < b and c > d | e", "{{}} { {x} }", "me@example.com", "@handle", "1234 5678 9012 3456", "4111-1111",
     "3.14159265358979323846", "### Heading", "sk-ip", "x" * 40, "0000 0000 0000 0000", "[a list]"],
)  # fmt: skip
def test_what_only_looks_like_it_is_left_alone(tmp_path, text):
    assert report_of(tmp_path, [chat("Hi", text), {**chat("a", "b"), "tools": [{"a": [{}]}]}]).warnings == {}


@pytest.mark.parametrize("chunk", [1, 5, 64, 1 << 20])
def test_texts_are_found_whatever_the_chunk_size(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(lines, "CHUNK_BYTES", chunk)
    rows = [chat(f"q{n}", text) for n, (_, text, _) in enumerate(TEXTS)]
    assert [p.line for p in report_of(tmp_path, [chat("Hi", "x"), *rows, chat("a", "b")]).problems] == list(
        range(2, 15)
    )


def test_rows_that_differ_in_white_space_alone_are_near_duplicates(tmp_path, monkeypatch):
    rows = [chat(f"question {n}", f"an answer of several words, number {n}") for n in range(30)]
    near = chat("question 3", "an answer  of several words,\nnumber 3 ")
    report = report_of(tmp_path, [*rows, near, rows[4], chat("question 3", "an answer of several words, number 33")])
    assert faults(report) == [(31, "near-duplicate", None), (32, "duplicate-row", None)]
    assert "repeats line 4 but for white space" in report.problems[0].message
    monkeypatch.setattr(repeats, "SMALL_ROWS", 3)
    assert report_of(tmp_path, [*rows, near]).warnings == {"near-duplicate": 1}


def test_the_same_answer_judged_both_ways_is_a_contradiction(tmp_path):
    row = {"prompt": "a", "completion": "b", "label": True}
    report = report_of(tmp_path, [row, row | {"completion": "c", "label": False}, row | {"label": False}])
    assert faults(report) == [(3, "contradiction", None)] and "row 1" in report.problems[0].message
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    report = report_of(tmp_path, [pair, {"prompt": "a", "chosen": "c", "rejected": "b"}])
    assert (2, "contradiction", None) in faults(report)
    assert report_of(tmp_path, [pair, pair | {"rejected": "d"}]).warnings == {}
    ranking = [pair, {"prompt": "a", "chosen": "c", "rejected": "d"}, {"prompt": "a", "chosen": "b", "rejected": "d"}]
    assert report_of(tmp_path, ranking).warnings == {}


def test_an_answer_that_begins_with_its_question_is_named(tmp_path):
    question = "What is the tallest mountain of all?"
    report = report_of(tmp_path, [chat("x", "y"), chat(question, question + " Everest."), chat("Hi", "Hi there")])
    assert faults(report) == [(2, "prompt-in-answer", "messages[1].content")]
    report = report_of(tmp_path, [{"prompt": question, "completion": question + " Everest."}])
    assert faults(report) == [(1, "prompt-in-answer", "completion")]


def test_better_answers_that_are_nearly_always_longer_are_said_with_the_effect_size(tmp_path):
    rows = [{"prompt": str(n), "chosen": "long " * (9 + n % 3), "rejected": f"short {n}"} for n in range(40)]
    report = report_of(tmp_path, rows)
    [problem] = [p for p in report.problems if p.rule == "length-bias"]
    assert "longer in 100 % of pairs, so length" in problem.message
    even = [{"prompt": str(n), "chosen": f"c{n}" * (1 + n % 2), "rejected": f"r{n}" * (2 - n % 2)} for n in range(40)]
    assert "length-bias" not in report_of(tmp_path, even).warnings


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        (30, 10, "a weight of 2.609 for the undesirable answers"),
        (10, 30, "a weight of 3.45 for the desirable answers"),
    ],
)
def test_labels_out_of_balance_come_with_the_weight_that_follows(tmp_path, good, bad, says):
    rows = [{"prompt": str(n), "completion": f"c{n}", "label": n < good} for n in range(good + bad)]
    report = report_of(tmp_path, rows)
    assert report.warnings == {"label-balance": 1} and says in report.problems[0].fix
    rows = [{"prompt": str(n), "completion": f"c{n}", "label": n % 2 == 0} for n in range(40)]
    assert report_of(tmp_path, rows).warnings == {}


@given(st.integers(1, 100_000), st.integers(1, 100_000))
@example(300, 100)
@example(1, 99_999)
@example(99_999, 1)
def test_the_weight_that_the_check_advises_is_the_one_that_a_run_uses(good, bad):
    found = totals.Totals(1, None)
    found.labels = [good, bad]
    file_rules._labels(found)
    assert bool(found.kept_warnings) == (good + bad >= 20 and max(good, bad) > min(good, bad) * 4 / 3)
    desirable, undesirable = counts.kto_weights(good, bad)
    for problem in found.kept_warnings:
        said = re.search(r"weight of ([\d.]+) for the (\w+) answers", problem.fix)
        assert said and float(said[1]) == {"desirable": desirable, "undesirable": undesirable}[said[2]] > 1


def test_card_numbers_are_told_by_their_check_sum():
    assert content_rules.is_card_number("5555-5555-5555-4444") and not content_rules.is_card_number(
        "5555-5555-5555-4445"
    )
