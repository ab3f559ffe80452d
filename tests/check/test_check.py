"""The check names every bad row by line, says what the bytes are when they are no rows, and never guesses silently."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.check import DatasetError, Report, check_file, groups, repeats
from engine.read import lines as read_lines
from engine.read import source
from engine.read.formats import LAYOUTS, WORSE, layout_of
from engine.read.texts import is_blank
from engine.words import Problem
from tests.conftest import SHARED_DATA


def report_of(tmp_path: Path, data: bytes | str | list, name: str = "data.jsonl") -> Report:
    """Check bytes, text, or a list of rows written as JSON Lines."""
    if isinstance(data, list):
        data = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in data)
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return check_file(path)


def faults(report: Report) -> list[tuple[int | None, str, str | None]]:
    return [(p.line, p.rule, p.where) for p in report.problems]


PAIR = {"prompt": "What is red?", "completion": "A colour."}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str | None) -> dict:
    return {"role": "assistant", "content": text}


# --- layouts -----------------------------------------------------------------------------------------------------

GOOD = {
    "messages": (CHAT, "language-modeling", True),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        "language-modeling",
        True,
    ),
    "text": ({"text": "Once."}, "language-modeling", False),
    "prompt_completion": (PAIR, "prompt-completion", False),
    "alpaca": ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, "prompt-completion", False),
    "instruction_response": ({"instruction": "Add.", "response": "3"}, "prompt-completion", False),
    "question_answer": ({"question": "Why?", "answer": "So."}, "prompt-completion", False),
    "query_response": ({"query": "Why?", "response": "So."}, "prompt-completion", False),
    "prompt_response": ({"prompt": "Why?", "response": "So."}, "prompt-completion", False),
    "question_response": ({"question": "Why?", "response": "So."}, "prompt-completion", False),
    "input_output": ({"input": "Why?", "output": "So."}, "prompt-completion", False),
    "preference": ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, "preference", False),
    "alpaca_ranking": ({"instruction": "Why?", "chosen": "So.", "rejected": "No."}, "preference", False),
    "sharegpt_ranking": (
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "Go"},
        },
        "preference",
        True,
    ),
    "preference_implicit": (
        {"chosen": "\n\nHuman: a\n\nAssistant: I am", "rejected": "\n\nHuman: a\n\nAssistant: I was"},
        "preference",
        False,
    ),
    "openai_preference": (
        {
            "input": {"messages": [user("Hi")], "tools": []},
            "preferred_output": [assistant("Hello")],
            "non_preferred_output": [assistant("Go")],
        },
        "preference",
        True,
    ),
    "question_ranking": ({"question": "Why?", "chosen": "So.", "rejected": "No."}, "preference", False),
    "chosen_response": (
        {"prompt": "Why?", "chosen_response": "So.", "rejected_response": "No."},
        "preference",
        False,
    ),
    "instruction_chosen_response": (
        {"instruction": "Why?", "chosen_response": "So.", "rejected_response": "No."},
        "preference",
        False,
    ),
    "question_chosen_response": (
        {"question": "Why?", "chosen_response": "So.", "rejected_response": "No."},
        "preference",
        False,
    ),
    "response_jk": ({"question": "Why?", "response_j": "So.", "response_k": "No."}, "preference", False),
    "prompt_response_jk": ({"prompt": "Why?", "response_j": "So.", "response_k": "No."}, "preference", False),
    "messages_ranking": (
        {
            "chosen_messages": [user("Hi"), assistant("Hello")],
            "rejected_messages": [user("Hi"), assistant("Go")],
        },
        "preference",
        True,
    ),
    "unpaired": ({**PAIR, "label": True}, "unpaired-preference", False),
    "seed_kto": ({"prompt": "Why?", "response": "So.", "is_good": False}, "unpaired-preference", False),
    "messages_kto": ({**CHAT, "label": True}, "unpaired-preference", True),
    "sharegpt_kto": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "label": True},
        "unpaired-preference",
        True,
    ),
    "conversation": ({"conversation": [user("Hi"), assistant("Hello")]}, "language-modeling", True),
    "messages_chosen_rejected": (
        {"messages": [user("Hi")], "chosen": assistant("Hello"), "rejected": assistant("Go")},
        "preference",
        True,
    ),
    "conversation_winner": (
        {
            "conversation_a": [user("Hi"), assistant("Hello")],
            "conversation_b": [user("Hi"), assistant("Go")],
            "winner": "model_a",
        },
        "preference",
        True,
    ),
    **{
        f"{asked}_{first}_{by}": ({asked: "Why?", first: "So.", second: "No.", by: said}, "preference", False)
        for asked in ("prompt", "question", "instruction")
        for first, second, by, said in (
            ("response_a", "response_b", "winner", "model_b"),
            ("answer_a", "answer_b", "winner", "A"),
            ("response_0", "response_1", "better_response_id", 1),
        )
    },
    "stepwise": ({"prompt": "1+1", "completions": ["one", "two"], "labels": [True, False]}, "stepwise", False),
    "prompt_only": ({"prompt": "Why?"}, "prompt-only", False),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_layout_is_recognised_from_its_keys(tmp_path, name):
    row, kind, conversational = GOOD[name]
    report = report_of(tmp_path, [row])
    assert (report.layout, report.type, report.conversational) == (name, kind, conversational)
    assert (report.rows, report.bad_rows, report.errors) == (1, 0, {})
    assert report.trainable is (kind != "stepwise")


def test_the_examples_cover_the_table_of_layouts():
    # These have tests of their own: those made of others by one more column, and those known by their values.
    made = {
        layout.name
        for layout in LAYOUTS
        if layout.name.endswith(("_kto", "_kto_tag", *WORSE, "rejected_messages", "_ranked"))
    }
    assert {*GOOD, "bare_messages"} | made == {layout.name for layout in LAYOUTS}


def test_conversations_without_any_assistant_are_prompts(tmp_path):
    report = report_of(tmp_path, [{"messages": [user("Hi")]}] * 3)
    assert (report.layout, report.type, report.bad_rows) == ("prompt_only_messages", "prompt-only", 0)


def test_one_answer_far_down_makes_all_conversations_count_as_chats(tmp_path):
    rows = [{"messages": [user(f"Question {n}")]} for n in range(1_500)] + [CHAT]
    report = report_of(tmp_path, rows)
    assert (report.layout, report.type, report.bad_rows) == ("messages", "language-modeling", 1_500)
    assert report.errors == {"no-assistant": 1_500}


def test_an_unknown_layout_is_said_once_and_spoils_every_row(tmp_path):
    report = report_of(tmp_path, [{"id": n, "foo": "x"} for n in range(30)])
    assert (report.layout, report.type, report.rows, report.bad_rows) == (None, None, 30, 30)
    [problem] = report.problems
    assert problem.rule == "unknown-layout" and problem.line is None and report.errors == {"unknown-layout": 1}
    assert "id, foo" in problem.message and "prompt+completion" in problem.fix


def test_the_majority_decides_and_rows_of_another_layout_are_named(tmp_path):
    report = report_of(tmp_path, [{"text": "odd one"}, PAIR, PAIR | {"prompt": "b"}, PAIR | {"label": False}])
    assert report.layout == "prompt_completion"
    assert faults(report) == [(1, "other-layout", None), (4, "other-layout", None)]


def test_the_verdict_does_not_depend_on_the_extension(tmp_path):
    reports = [report_of(tmp_path, [PAIR], name) for name in ("a.jsonl", "a.json", "a.csv", "a.png", "a")]
    assert {(r.container, r.layout, r.rows) for r in reports} == {("jsonl", "prompt_completion", 1)}


def test_null_columns_of_an_export_do_not_change_the_layout(tmp_path):
    rows = [{**PAIR, "prompt": str(n), "label": None, "text": None} for n in range(3)]
    report = report_of(tmp_path, rows)
    assert (report.layout, report.errors) == ("prompt_completion", {})


def test_columns_that_are_not_used_are_said_once(tmp_path):
    report = report_of(tmp_path, [{**PAIR, "source": "web"}, {**PAIR, "prompt": "b", "source": "web"}])
    assert report.warnings == {"unused-columns": 1} and "source" in report.problems[0].message
    assert report.columns == ("prompt", "completion", "source")


# --- rows --------------------------------------------------------------------------------------------------------

# rule -> (line 2 of a file whose other rows are good, where)
PROMPT_FAULTS = [
    ("missing-field", {"prompt": "x"}, "completion"),
    ("missing-field", {}, "prompt"),
    ("null-field", {"prompt": "x", "completion": None}, "completion"),
    ("wrong-type", {"prompt": "x", "completion": 144}, "completion"),
    ("wrong-type", {"prompt": ["x"], "completion": "y"}, "prompt"),
    ("blank-field", {"prompt": "x", "completion": " \n\u200b\ufeff"}, "completion"),
    ("blank-field", {"prompt": "x", "completion": ""}, "completion"),
    ("not-object", ["prompt", "completion"], None),
    ("not-object", "just text", None),
    ("other-layout", {"question": "x", "answer": "y"}, None),
    ("choices-invalid", {"prompt": "x", "completion": "y", "choices": ["y"]}, "choices"),
    ("choices-invalid", {"prompt": "x", "completion": "y", "choices": ["a", "b"]}, "choices"),
    ("choices-invalid", {"prompt": "x", "completion": "y", "choices": ["y", "y"]}, "choices"),
    ("choices-invalid", {"prompt": "x", "completion": "y", "choices": ["y", 1]}, "choices"),
    ("choices-invalid", {"prompt": "x", "completion": "y", "choices": "y"}, "choices"),
    ("wrong-type", {"prompt": "x", "completion": "y", "family": 3}, "family"),
    ("tools-not-json", {"prompt": "x", "completion": "y", "tools": "{oops"}, "tools"),
]


@pytest.mark.parametrize(("rule", "row", "where"), PROMPT_FAULTS)
def test_a_bad_prompt_row_is_named_by_line_and_place(tmp_path, rule, row, where):
    report = report_of(tmp_path, [PAIR, json.dumps(row), PAIR | {"prompt": "c"}])
    assert (2, rule, where) in faults(report)
    assert report.bad_rows == 1 and report.rows == 3 and not report.trainable


MESSAGE_FAULTS = [
    ("null-field", [user("a"), assistant(None)], "messages[1].content"),
    ("wrong-type", [user("a"), {"role": "assistant", "content": [3]}], "messages[1].content[0]"),
    ("wrong-type", "hello", "messages"),
    ("wrong-type", [user("a"), "b"], "messages[1]"),
    ("wrong-type", [{"role": 1, "content": "a"}, assistant("b")], "messages[0].role"),
    ("null-field", None, "messages"),
    ("unknown-role", [user("a"), {"role": "assitant", "content": "b"}], "messages[1].role"),
    ("missing-field", [{"content": "a"}, assistant("b")], "messages[0].role"),
    ("missing-field", [user("a"), {"role": "assistant"}], "messages[1].content"),
    ("empty-messages", [], "messages"),
    ("no-assistant", [user("a")], "messages"),
    ("empty-assistant", [user("a"), assistant(" ")], "messages[1].content"),
]


@pytest.mark.parametrize(("rule", "messages", "where"), MESSAGE_FAULTS)
def test_a_bad_message_is_named_by_line_and_place(tmp_path, rule, messages, where):
    report = report_of(tmp_path, [CHAT, {"messages": messages}, {"messages": [user("x"), assistant("y")]}])
    assert faults(report) == [(2, rule, where)]
    assert report.bad_rows == 1


def test_all_faults_of_a_row_are_said_at_once(tmp_path):
    bad = {"messages": [{"role": "narrator", "content": "a"}, assistant(None), user("c"), assistant("")]}
    report = report_of(tmp_path, [CHAT, bad])
    assert [p.rule for p in report.problems] == ["unknown-role", "null-field", "empty-assistant"]
    assert report.bad_rows == 1


def test_tool_calls_stand_for_content(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        user("a"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": ""},
    ]
    report = report_of(tmp_path, [{"messages": [*messages, assistant("done")], "tools": "[]"}])
    assert report.errors == {} and report.warnings == {} and report.target_characters == 4


MESSAGE_WARNINGS = [
    ("ends-without-assistant", [user("a"), assistant("b"), user("c")], "messages"),
    ("system-not-first", [user("a"), {"role": "system", "content": "s"}, assistant("b")], "messages[1]"),
    ("same-role-twice", [user("a"), user("b"), assistant("c")], "messages[1].role"),
    ("blank-prompt", [user(" "), assistant("c")], "messages[0].content"),
]


@pytest.mark.parametrize(("rule", "messages", "where"), MESSAGE_WARNINGS)
def test_an_odd_conversation_is_a_warning_and_stays_trainable(tmp_path, rule, messages, where):
    report = report_of(tmp_path, [CHAT, {"messages": messages}])
    assert faults(report) == [(2, rule, where)]
    assert report.problems[0].severity == "warning" and report.trainable and report.bad_rows == 0


def test_a_blank_prompt_beside_an_answer_is_a_warning(tmp_path):
    report = report_of(tmp_path, [PAIR, {"prompt": "", "completion": "y"}])
    assert faults(report) == [(2, "blank-prompt", "prompt")] and report.trainable


def test_a_bad_row_is_not_warned_about_too(tmp_path):
    report = report_of(tmp_path, [CHAT, {"messages": [user("a"), user("b"), assistant(None)]}])
    assert report.warnings == {} and report.errors == {"null-field": 1}


def test_rows_that_repeat_name_the_first_line(tmp_path):
    data = "\n".join(
        [json.dumps(PAIR), "", json.dumps(PAIR | {"prompt": "b"}), json.dumps(PAIR) + "\r", json.dumps(PAIR)]
    )
    report = report_of(tmp_path, data)
    assert faults(report) == [(4, "duplicate-row", None), (5, "duplicate-row", None)]
    assert "repeats line 1 exactly" in report.problems[1].message


def test_repetitions_are_found_the_same_way_in_many_rows(tmp_path, monkeypatch):
    rows = [PAIR | {"prompt": str(n % 70)} for n in range(100)]
    few = report_of(tmp_path, rows)
    monkeypatch.setattr(repeats, "SMALL_ROWS", 10)
    assert report_of(tmp_path, rows).problems == few.problems and few.warnings == {"duplicate-row": 30}


def test_a_pair_of_equal_answers_is_an_error(tmp_path):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    report = report_of(tmp_path, [good, {"prompt": "a", "chosen": "b", "rejected": "b"}])
    assert faults(report) == [(2, "equal-pair", "rejected")]


def test_an_implicit_pair_needs_a_shared_prompt(tmp_path):
    good = GOOD["preference_implicit"][0]
    report = report_of(tmp_path, [good, {"chosen": "abc", "rejected": "abd"}])
    assert faults(report) == [(2, "no-shared-prompt", None)]
    assert report.target_characters == len(" I am") + len(" I was")


def test_an_answer_to_judge_must_be_the_assistants(tmp_path):
    rows = [{**CHAT, "label": True}, {"messages": [user("x"), assistant("y")], "label": False}]
    rows.append({"messages": [user("a"), assistant("b"), user("c")], "label": True})
    report = report_of(tmp_path, rows)
    assert faults(report) == [(3, "last-not-assistant", "messages")]


def test_an_answer_may_repeat_its_prompt_but_not_start_with_another(tmp_path):
    row = {"prompt": "Q", "chosen": [user("Q"), assistant("yes")], "rejected": [user("Q"), assistant("no")]}
    other = {**row, "rejected": [user("R"), assistant("no")]}
    report = report_of(tmp_path, [row, other])
    assert faults(report) == [(2, "not-an-answer", "rejected[0]")] and report.target_characters == 5


@pytest.mark.parametrize(
    ("value", "found", "wanted"),
    [("yes", '"yes"', "write true "), (0, "0", "write false "), ("maybe", '"maybe"', "write true or false ")],
)
def test_a_label_that_is_not_boolean_comes_with_an_offer(tmp_path, value, found, wanted):
    good = {"prompt": "a", "response": "b", "is_good": True}
    report = report_of(tmp_path, [good, good | {"prompt": "c", "is_good": False}, good | {"is_good": value}])
    assert faults(report) == [(3, "label-not-boolean", "is_good")]
    assert found in report.problems[0].message and wanted in report.problems[0].fix
    assert report.label_counts == {"true": 1, "false": 1}


def test_labels_of_one_kind_only_are_a_warning(tmp_path):
    report = report_of(tmp_path, [{"prompt": str(n), "response": "b", "is_good": True} for n in range(3)])
    assert report.warnings == {"one-sided-labels": 1} and report.label_counts == {"true": 3, "false": 0}


def test_each_step_needs_one_label(tmp_path):
    good = GOOD["stepwise"][0]
    report = report_of(tmp_path, [good, {"prompt": "a", "completions": ["x", "y"], "labels": [True]}])
    assert faults(report) == [(2, "steps-length", None)] and "2 steps" in report.problems[0].message


LINE_FAULTS = [
    ("not-json", b'{"prompt": "a", "completion": "b"', "breaks off"),
    ("not-json", b'{"prompt": "a", "completion": "b",}', "comma"),
    ("not-json", b"{'prompt': 'a', 'completion': 'b'}", "single quotes"),
    ("not-json", b'{"prompt": "a", "completion": None}', "Python word"),
    ("not-json", b'{"prompt": "a", "completion": "b"} {"prompt": "c"}', "more text follows"),
    ("not-json", b'{"prompt": "a", "completion": "b\tc"}', "raw line break, tab"),
    ("not-json", b'{"prompt": "a", "completion": "\\x"}', "backslash"),
    ("not-json", b'{"prompt" "a"}', "unexpected"),
    ("not-json", b"\xef\xbb\xbf{}", "byte order mark"),
    ("nan", b'{"prompt": "a", "completion": NaN}', "NaN"),
    ("nan", b'{"prompt": "a", "completion": -Infinity, "score": 1}', "-Infinity"),
    ("number-range", b'{"prompt": "a", "completion": "b", "score": 1e400}', "too large"),
    ("number-range", b'{"prompt": "a", "completion": "b", "score": ' + b"9" * 5000 + b"}", "too large"),
    ("too-deep", b'{"prompt": ' + b"[" * 100_000, "nested"),
    ("lone-surrogate", b'{"prompt": "a", "completion": "\\ud800"}', "half of a character"),
    ("lone-surrogate", b'{"prompt": "a", "completion": "\xed\xa0\x80"}', "half of a character"),
    ("encoding-row", b'{"prompt": "a", "completion": "caf\xe9 noir"}', "looks like Latin-1"),
]


@pytest.mark.parametrize(("rule", "line", "says"), LINE_FAULTS)
def test_a_line_that_does_not_parse_says_why(tmp_path, rule, line, says):
    good = json.dumps(PAIR).encode()
    report = report_of(tmp_path, good + b"\n" + line + b"\n" + good.replace(b"red", b"blue") + b"\n")
    assert [(p.line, p.rule) for p in report.problems] == [(2, rule)]
    assert says in report.problems[0].sentence and report.problems[0].sentence.startswith("line 2: ")
    assert (report.rows, report.bad_rows) == (3, 1)


def test_a_record_beyond_all_sense_is_skipped_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(read_lines, "MAX_ROW_BYTES", 1 << 20)
    long = json.dumps(PAIR | {"completion": "x" * (3 << 20)})
    rows = [PAIR, long, PAIR | {"prompt": "b"}]
    assert faults(report_of(tmp_path, rows)) == [(2, "too-long", None)]
    array = "[\n" + ",\n".join([json.dumps(PAIR), long, json.dumps(PAIR | {"prompt": "b"})]) + "\n]"
    report = report_of(tmp_path, array)
    assert faults(report) == [(3, "too-long", None)] and report.rows == 3


def test_one_broken_line_among_a_thousand_is_found(tmp_path):
    rows: list = [PAIR | {"prompt": str(n)} for n in range(1_000)]
    rows[616] = '{"prompt": "oops", "completion": '
    report = report_of(tmp_path, rows)
    assert (report.rows, report.bad_rows) == (1_000, 1)
    assert faults(report) == [(617, "not-json", None)]
    assert report.sentence == "1,000 questions with answers, 1 with errors: correct or drop these rows before training"


@pytest.mark.parametrize("first", ['{"prompt": "oops', "oops", "{'prompt': 'a', 'completion': 'b'}", "{"])
def test_a_broken_first_line_does_not_hide_the_rest(tmp_path, first):
    report = report_of(tmp_path, [first, *[PAIR | {"prompt": str(n)} for n in range(9)]])
    assert (report.container, report.rows, report.bad_rows) == ("jsonl", 10, 1)
    assert faults(report)[0][:2] == (1, "not-json")


@pytest.mark.parametrize("first", ["[1]", '"text"', "[1, 2"])
def test_a_first_line_that_is_no_object_does_not_make_an_array_of_the_rest(tmp_path, first):
    report = report_of(tmp_path, [first, "oops", *[PAIR | {"prompt": str(n)} for n in range(4)]])
    assert (report.container, report.rows, report.bad_rows) == ("jsonl", 6, 2)


# --- lines and containers ----------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_accepted_and_noted(tmp_path):
    report = report_of(tmp_path, b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\r\n\r\n")
    assert (report.rows, report.bad_rows, report.warnings) == (1, 0, {"bom": 1}) and report.trainable


def test_only_line_feeds_end_lines(tmp_path):
    row = json.dumps(PAIR | {"prompt": "a\u2028b\u0085c"}, ensure_ascii=False)
    report = report_of(tmp_path, row + "\r\n\n  \n" + '{"prompt": "x"}' + "\n")
    assert faults(report) == [(4, "missing-field", "completion")] and report.rows == 2


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
def test_the_verdict_is_the_same_whatever_the_chunk_size(tmp_path, monkeypatch, chunk):
    rows = [PAIR, {"prompt": 'quote " \\ brace } é'}, PAIR | {"prompt": "[,]"}]
    lines = b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows)).encode()
    array = json.dumps(rows, indent=1).encode()
    wrapped = b'{"version": 1.5, "note": "a \\" [ {",\n "data": ' + array + b', "more": null}'
    files = (lines, array, gzip.compress(array), wrapped)
    whole = [report_of(tmp_path, data) for data in files]
    monkeypatch.setattr(read_lines, "CHUNK_BYTES", chunk)
    assert [report_of(tmp_path, data) for data in files] == whole
    assert [faults(report)[-1][1:] for report in whole[1:]] == [("missing-field", "completion")] * 3


def test_an_array_gives_the_line_where_each_record_starts(tmp_path):
    text = (
        '[\n  {"prompt": "a",\n   "completion": "b"},\n\n  {"prompt": "c"},\n  {"prompt": "d", "completion": "e"}\n]\n'
    )
    report = report_of(tmp_path, text)
    assert (report.container, report.rows) == ("json", 3)
    assert faults(report) == [(5, "missing-field", "completion")] and report.problems[0].row == 2


def test_a_broken_element_of_an_array_costs_only_itself(tmp_path):
    text = '[\n{"prompt": "a", "completion": "b},\n{"prompt": "c", "completion": "d"},\n{"prompt": "e"}\n]'
    report = report_of(tmp_path, text)
    assert [fault[:2] for fault in faults(report)] == [(2, "not-json"), (4, "missing-field")] and report.rows == 3


def test_an_array_that_breaks_off_is_not_taken_as_whole(tmp_path):
    for end in ("", ',\n{"prompt": "c", "comp'):
        report = report_of(tmp_path, '[\n{"prompt": "a", "completion": "b"}' + end)
        assert report.errors == {"not-json": 1} and "breaks off" in report.problems[0].message


def test_one_indented_document_is_one_row(tmp_path):
    report = report_of(tmp_path, json.dumps(CHAT, indent=2))
    assert (report.container, report.layout, report.rows, report.errors) == ("json", "messages", 1, {})


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["data", "examples", "rows"])
def test_a_document_that_holds_its_rows_in_a_list_is_read_as_that_list(tmp_path, name, indent):
    text = json.dumps({"version": 2, "source": "a [{", name: [PAIR, {"prompt": "x"}], "licence": "MIT"}, indent=indent)
    report = report_of(tmp_path, text, "data.json")
    assert (report.container, report.layout, report.rows) == ("json", "prompt_completion", 2)
    assert faults(report) == [(9 if indent else 1, "missing-field", "completion")]


@pytest.mark.parametrize(
    "end", ["", "]", '], "test": [{"prompt": "a", "completion": "b"}]}', "]}\n[]", "]}]", "]} " + "x" * 70_000]
)
def test_what_follows_the_list_of_rows_is_never_dropped_unseen(tmp_path, end):
    report = report_of(tmp_path, '{"data": [\n' + json.dumps(PAIR) + end)
    assert report.container == "json" and report.errors == {"not-json": 1} and report.bad_rows == 1


def test_rows_that_hold_a_list_are_no_documents_around_it(tmp_path):
    rows = [{"data": [PAIR]}, {"data": [PAIR]}]
    assert report_of(tmp_path, rows).rows == 2 and report_of(tmp_path, rows).errors == {"unknown-layout": 1}
    assert report_of(tmp_path, json.dumps(CHAT)).layout == "messages"


def test_gzip_is_read_as_what_it_holds(tmp_path):
    lines = "".join(json.dumps(PAIR | {"prompt": str(n)}) + "\n" for n in range(50)).encode()
    report = report_of(tmp_path, gzip.compress(lines[:777]) + gzip.compress(lines[777:]))
    assert (report.container, report.rows, report.bad_rows) == ("jsonl.gz", 50, 0)
    report = report_of(tmp_path, gzip.compress(lines)[:-30])
    assert report.errors == {"bad-gzip": 1} and not report.trainable


def test_a_gzip_bomb_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "GZIP_FREE_BYTES", 1 << 20)
    report = report_of(tmp_path, gzip.compress(json.dumps(PAIR).encode() + b"\n" + b" " * (8 << 20)))
    assert report.errors == {"gzip-bomb": 1}


REFUSED = {
    "a PNG image": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
    "a zip archive": b"PK\x03\x04" + b"\0" * 100,
    "a web page (HTML)": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "an XML file": b"<?xml version='1.0'?><a/>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
    "a Parquet file inside a gzip archive": gzip.compress(b"PAR1" + b"\0" * 100),
    "plain text": b"Once upon a time\nthere was a file.\n",
    "a binary file": bytes(range(256)) * 20,
    "a gzip archive inside another": gzip.compress(gzip.compress(b"{}")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_data_is_named_with_a_way_out(tmp_path, what):
    report = report_of(tmp_path, REFUSED[what])
    assert (report.container, report.type, report.rows, report.errors) == (None, None, 0, {"not-data": 1})
    assert what in report.sentence and not report.trainable
    assert len(report.problems[0].fix) > 20


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_named(tmp_path, encoding):
    report = report_of(tmp_path, "".join(json.dumps(PAIR) + "\n" for _ in range(3)).encode(encoding))
    assert report.errors == {"encoding": 1} and encoding[:6].upper() in report.sentence
    assert "save it again as UTF-8" in report.sentence


@pytest.mark.parametrize("data", [b"", b"\n \n\n", b"\xef\xbb\xbf", b"[]", b"[\n]\n"])
def test_an_empty_file_is_said_to_be_empty(tmp_path, data):
    report = report_of(tmp_path, data)
    assert report.errors == {"empty-file": 1} and report.rows == 0 and "at least one row" in report.sentence


def test_a_file_that_cannot_be_opened_has_a_sentence(tmp_path):
    with pytest.raises(DatasetError, match=r"there is no file .*; check the path"):
        check_file(tmp_path / "nowhere.jsonl")
    with pytest.raises(DatasetError, match=r"is a folder without texts .*; name one file in it"):
        check_file(tmp_path)


# --- the report --------------------------------------------------------------------------------------------------


def test_the_json_contract_is_whole_and_in_order(tmp_path):
    report = report_of(tmp_path, [CHAT, {"messages": [user("a"), assistant(None)]}])
    data = json.loads(json.dumps(report.to_json()))
    contract = "file container layout type conversational rows bad_rows errors warnings problems problems_file"
    assert list(data)[:11] == contract.split()
    assert data["problems"] == [
        {
            "severity": "error",
            "line": 2,
            "row": 2,
            "rule": "null-field",
            "where": "messages[1].content",
            "message": "messages[1].content is null",
            "fix": "add text or delete the row",
        }
    ]


def test_rows_of_an_array_on_one_line_are_named_by_their_number(tmp_path):
    rows = [PAIR, PAIR, {**PAIR, "completion": None}]
    assert [problem.sentence[:6] for problem in report_of(tmp_path, json.dumps(rows), "a.json").problems] == [
        "row 2:",
        "row 3:",
    ]
    assert "repeats row 1" in report_of(tmp_path, json.dumps(rows), "a.json").problems[0].message
    by_line = report_of(tmp_path, json.dumps(rows, indent=1), "b.json")
    assert by_line.problems[1].line == 10 and "repeats line 2" in by_line.problems[0].message


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ({"text": "Whole."}, "texts", "2 texts, ready"),
        (CHAT, "conversations", "2 conversations, ready"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "conversations",
         "2 conversations, ready"),
        ({"prompt": "a", "completion": "b"}, "prompt-completion", "2 questions with answers, ready"),
    ],
)  # fmt: skip
def test_chats_are_conversations_and_never_texts(tmp_path, row, kind, words):
    report = report_of(tmp_path, [row, row])
    assert report.kind == kind and report.sentence.startswith(words)


def test_how_many_are_marked_good_is_not_how_many_are_ready(tmp_path):
    rows = [{"prompt": f"q{n}", "completion": "a", "label": n % 50 < 27} for n in range(100)]
    said = "100 answers with labels, ready to train on: 54 marked good, 46 marked bad"
    assert report_of(tmp_path, rows).sentence == said


def test_many_like_problems_are_one_line_with_a_heading_true_of_all(tmp_path):
    rows = [{"prompt": f"question {n % 9}", "completion": "a"} for n in range(446)]
    assert report_of(tmp_path, rows).lines()[1:] == [
        "warning: 437 rows repeat an earlier row: lines 10-446",
        "  the first: line 10: this row repeats line 1 exactly; delete it unless the repetition is meant",
    ]
    alike = [{"prompt": f"### Instruction: {n}", "completion": "a"} for n in range(30)]
    (group,) = groups.grouped(report_of(tmp_path, alike))
    assert group.heading == report_of(tmp_path, alike).problems[0].message and group.places == "lines 1-30"


def test_of_groups_as_large_the_one_that_the_file_has_first_comes_first(tmp_path):
    good = [{"prompt": f"question {n}", "completion": "a"} for n in range(5)]
    blank, missing = {"prompt": "q", "completion": ""}, {"prompt": "q"}
    for rows in ([missing, blank], [blank, missing]):
        found = groups.grouped(report_of(tmp_path, [*good, *rows]))
        assert [group.problems[0].row for group in found] == [6, 7]


@given(st.lists(st.integers(1, 60), min_size=1))
def test_ranges_of_lines_name_every_line_and_no_other(numbers):
    shown = groups.places(Problem(rule="not-json", line=n) for n in numbers)
    ranges = [
        part.split("-") for part in shown.removeprefix("lines ").removeprefix("line ").removesuffix(" …").split(", ")
    ]
    named = {n for part in ranges for n in range(int(part[0]), int(part[-1]) + 1)}
    assert named == set(numbers) if " …" not in shown else named < set(numbers)


def test_the_lines_for_a_terminal_say_where_what_and_what_to_do(tmp_path):
    rows: list = [CHAT] * 16 + [{"messages": [user("a"), assistant(None)]}]
    lines = report_of(tmp_path, rows).lines()
    assert "line 17: messages[1].content is null; add text or delete the row" in lines
    assert lines[0].startswith("data.jsonl: 17 conversations, 1 with errors")


def test_more_than_a_thousand_problems_are_counted_and_kept_in_a_file(tmp_path):
    path = tmp_path / "data.jsonl"
    good = [json.dumps(PAIR | {"prompt": str(n)}) for n in range(1_600)]
    path.write_text("\n".join([*["{oops"] * 1_500, *good, *good]))
    report = check_file(path, problems_path=tmp_path / "all.jsonl")
    assert len(report.problems) == 1_000 and report.errors == {"not-json": 1_500}
    assert report.problem_count == 3_100 and report.lines()[1:] == [
        "1,500 rows are not JSON: lines 1-1,000 and 500 more",
        f"  the first: {report.problems[0].sentence}",
        "warning: 1,600 rows repeat an earlier row",
    ]
    assert report.problems_file == str(tmp_path / "all.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert len(kept) == 3_100 and kept[1_499]["line"] == 1_500


def test_errors_are_kept_before_warnings(tmp_path):
    report = report_of(tmp_path, [*[PAIR] * 2_000, "{oops"])
    assert report.problems[-1].rule == "not-json" and len(report.problems) == 1_000


def test_braces_in_user_text_stay_text(tmp_path):
    report = report_of(tmp_path, [CHAT, {"messages": [{"role": "{where}{0}", "content": "x"}, assistant("y")]}])
    assert '"{where}{0}"' in report.problems[0].sentence


def test_text_from_a_file_is_one_short_line_in_messages(tmp_path):
    role = "<script>\n" + "x" * 500
    report = report_of(tmp_path, [CHAT, {"messages": [{"role": role, "content": "x"}, assistant("y")]}])
    assert len(report.problems[0].message) < 150 and "\n" not in report.problems[0].message


def test_nothing_in_a_message_can_steer_a_terminal(tmp_path):
    report = report_of(tmp_path, [CHAT, {"messages": [{"role": "\x1b[2J\u202e", "content": "x"}, assistant("y")]}])
    assert report.problems[0].sentence.isprintable() and "\\x1b[2J" in report.problems[0].message


def test_a_file_without_one_good_row_says_so(tmp_path):
    report = report_of(tmp_path, [{"prompt": "a", "completion": ""}])
    assert report.sentence == "1 question with its answer, none without errors: correct the file before training"


def test_a_file_name_that_is_no_text_is_shown_all_the_same(tmp_path):
    path = tmp_path / "caf\udce9.jsonl"
    path.write_text(json.dumps(PAIR))
    assert json.dumps(check_file(path).to_json(), ensure_ascii=False).encode()


def test_progress_reaches_the_end(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(PAIR))
    seen: list[tuple[int, int]] = []
    check_file(path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (path.stat().st_size,) * 2


def test_what_cannot_be_seen_is_blank():
    assert all(map(is_blank, ["", " ", "\u200b", "\n\t\ufeff\u3000", "\u2060\u00ad"]))
    assert not any(map(is_blank, ["a", " a", "\u200b.", "0"]))


def test_the_layout_with_most_required_columns_wins():
    found = layout_of(["prompt", "completion", "label", "extra"])
    assert found is not None and found.name == "unpaired"
    assert layout_of(["nothing"]) is None


# --- real files --------------------------------------------------------------------------------------------------

# file -> container, layout, type, conversational, rows, lines of bad rows, repetitions, good and bad labels
REAL = {
    "alpaca_en_200.jsonl": ("jsonl", "alpaca", "prompt-completion", False, 200, [], 0, None),
    "alpaca_en_200.csv": ("csv", "alpaca", "prompt-completion", False, 200, [], 0, None),
    "alpaca_en_200.parquet": ("parquet", "alpaca", "prompt-completion", False, 200, [], 0, None),
    "alpaca_en_demo.json": ("json", "alpaca", "prompt-completion", False, 999, [], 14, None),
    "c4_demo.jsonl": ("jsonl", "text", "language-modeling", False, 300, [], 0, None),
    "codegen-instruct.json": ("json", "instruction_response", "prompt-completion", False, 4535, [], 0, None),
    "conversations.jsonl": ("jsonl", "messages", "language-modeling", True, 128, [], 0, None),
    "dpo_en_demo.json": ("json", "sharegpt_ranking", "preference", True, 300, [], 5, None),
    "dummy_conversation.json": ("json", "sharegpt", "language-modeling", True, 500, [], 0, None),
    "glaive_toolcall_en_demo.json": ("json", "sharegpt", "language-modeling", True, 300, [], 35, None),
    "gsm8k_pairs.jsonl": ("jsonl", "preference", "preference", False, 208, [], 0, None),
    "gsm8k_seed_kto.jsonl": ("jsonl", "seed_kto", "unpaired-preference", False, 1200, [], 1, (472, 728)),
    "gsm8k_test.jsonl": ("jsonl", "question_answer", "prompt-completion", False, 1319, [], 0, None),
    "gsm8k_unpaired.jsonl": ("jsonl", "unpaired", "unpaired-preference", False, 400, [], 0, (143, 257)),
    "hh_harmless_first600.jsonl": ("jsonl", "preference_implicit", "preference", False, 600, [87, 517], 0, None),
    "identity.json": ("json", "alpaca", "prompt-completion", False, 91, [], 0, None),
    "kto_en_demo_first100.json": ("json", "messages_kto", "unpaired-preference", True, 100, [], 0, (54, 46)),
    "oaast_sft_zh.json": ("json", "alpaca", "prompt-completion", False, 689, [], 5, None),
    "rlvr_test.jsonl": ("jsonl", "prompt_only_messages", "prompt-only", True, 100, [], 0, None),
    "stepwise_math_shepherd.jsonl": ("jsonl", "stepwise", "stepwise", False, 7, [], 0, None),
    "toy_chat_fine_tuning.jsonl": ("jsonl", "messages", "language-modeling", True, 5, [], 0, None),
    "wwdc25_train.jsonl": ("jsonl", "prompt_completion", "prompt-completion", False, 1800, [], 437, None),
}


# question sets, which are no training data: container and rows of each
BENCH = {
    **{f"bbh_{name}.json": ("json", 250) for name in (
        "boolean_expressions", "date_understanding", "disambiguation_qa", "hyperbaton", "sports_understanding",
    )},
    "bbh_snarks.json": ("json", 178),
    "truthfulqa_mc_task.json": ("json", 817),
    **{f"{name}.jsonl": ("jsonl", rows) for name, rows in {
        "arc_challenge": 1172, "arc_easy": 2376, "bigbench_conceptual_combinations": 103, "bigbench_misconceptions": 219,
        "bigbench_novel_concepts": 32, "bigbench_strange_stories": 174, "bigbench_strategy_qa": 2289,
        "bigbench_understanding_fables": 189, "blimp_67x10": 670, "commonsense_qa": 1221, "copa": 100,
        "openbook_qa": 500, "piqa": 1838, "winograd_wsc": 273, "winogrande": 1267,
    }.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_as_their_sources_say(name):
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip("the folder of real data files is not beside this checkout")
    container, layout, kind, conversational, rows, bad, repeated, labels = REAL[name]
    report = check_file(path)
    assert (report.container, report.layout, report.type) == (container, layout, kind)
    assert (report.conversational, report.rows, report.bad_rows) == (conversational, rows, len(bad))
    assert [p.line for p in report.problems if p.severity == "error"] == bad
    assert report.warnings.get("duplicate-row", 0) == repeated
    if labels:
        assert report.label_counts == {"true": labels[0], "false": labels[1]}


def test_every_real_data_file_is_in_the_table():
    if not SHARED_DATA.exists():
        pytest.skip("the folder of real data files is not beside this checkout")
    there = {path.name for path in SHARED_DATA.iterdir() if path.is_file() and path.name != "README.md"}
    assert there == {*REAL, "seed_tasks.jsonl"}
    assert {path.name for path in (SHARED_DATA / "bench").iterdir()} == set(BENCH)


@pytest.mark.parametrize(
    ("name", "container", "rows"),
    [("seed_tasks.jsonl", "jsonl", 175), *((f"bench/{name}", *told) for name, told in BENCH.items())],
)
def test_a_real_file_of_an_unknown_layout_is_refused_once(name, container, rows):
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip("the folder of real data files is not beside this checkout")
    report = check_file(path)
    assert (report.container, report.layout, report.type) == (container, None, None)
    assert (report.rows, report.bad_rows, report.errors) == (rows, rows, {"unknown-layout": 1})
    assert [problem.line for problem in report.problems if problem.severity == "error"] == [None]
