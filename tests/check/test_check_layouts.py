"""Layouts beyond the plain ones, and columns a person says the meaning of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.check import DatasetError, Report, check_file
from engine.data import copies, datasets, fixes
from engine.workspace import Workspace


def written(tmp_path: Path, rows: list) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def report_of(tmp_path: Path, rows: list, mapping: dict[str, str] | None = None) -> Report:
    return check_file(written(tmp_path, rows), mapping=mapping)


def faults(report: Report) -> list[tuple[int | None, str, str | None]]:
    return [(p.line, p.rule, p.where) for p in report.problems]


def user(text) -> dict:
    return {"role": "user", "content": text}


def assistant(text) -> dict:
    return {"role": "assistant", "content": text}


def stored_rows(tmp_path: Path, rows: list, **more) -> list[dict]:
    workspace = Workspace(tmp_path / "home")
    dataset = datasets.add(workspace, written(tmp_path, rows), "data", **more)
    assert dataset.trainable, dataset.report.lines()
    return datasets.preview(workspace, dataset.id)


def test_the_preference_layout_of_openai_keeps_its_prompt_apart(tmp_path):
    row = {
        "input": {"messages": [user("Hi")], "tools": [{"name": "f"}], "parallel_tool_calls": True},
        "preferred_output": [assistant("Hello")],
        "non_preferred_output": [assistant("Go")],
    }
    [stored] = stored_rows(tmp_path, [row])
    assert [m["content"] for m in stored["prompt"]] == ["Hi"]
    assert (stored["chosen"][0]["content"], stored["rejected"][0]["content"]) == ("Hello", "Go")
    assert json.loads(stored["tools"]) == [{"type": "function", "function": {"name": "f"}}]
    bad = [
        row | {"input": {}},
        row | {"input": 3},
        row | {"input": {"messages": [user(None)]}},
        row | {"non_preferred_output": [assistant("Hello")]},
        row | {"non_preferred_output": [user("Hello")]},
    ]
    assert faults(report_of(tmp_path, [row, row | {"input": {"messages": [user("a")]}}, *bad])) == [
        (3, "null-field", "input.messages"),
        (4, "wrong-type", "input.messages"),
        (5, "null-field", "input.messages[0].content"),
        (6, "equal-pair", "non_preferred_output"),
        (7, "no-assistant", "non_preferred_output"),
    ]


def test_rows_may_be_bare_lists_of_messages(tmp_path):
    rows = [
        [user("a"), assistant("b")],
        [user("c"), assistant(None)],
        {"messages": []},
        [],
        [user("d"), assistant("e")],
    ]
    report = report_of(tmp_path, rows)
    assert (report.layout, report.type, report.rows, report.bad_rows) == ("bare_messages", "language-modeling", 5, 3)
    assert faults(report) == [
        (2, "null-field", "messages[1].content"),
        (3, "other-layout", None),
        (4, "empty-messages", "messages"),
    ]
    first, _ = stored_rows(tmp_path, [[user("a"), assistant("b")], [user("c"), assistant("d")]])
    assert [m["content"] for m in first["messages"]] == ["a", "b"]


def test_bare_lists_without_an_answer_are_prompts_until_one_has_an_answer(tmp_path):
    rows = [[user(str(n))] for n in range(1_100)]
    assert report_of(tmp_path, rows).type == "prompt-only"
    report = report_of(tmp_path, [*rows, [user("a"), assistant("b")]])
    assert (report.type, report.bad_rows) == ("language-modeling", 1_100)


@pytest.mark.parametrize("key", ["text", "value"])
def test_content_in_text_parts_is_joined_without_a_loss(tmp_path, key):
    parts = [{"type": "text", key: "one "}, {"type": "text", key: "two"}]
    row = {"messages": [user([{"type": "text", key: "q"}]), assistant(parts)]}
    report = report_of(tmp_path, [row])
    assert report.errors == {} and report.target_characters == len("one two")
    [stored] = stored_rows(tmp_path, [row])
    assert [m["content"] for m in stored["messages"]] == ["q", "one two"]


@pytest.mark.parametrize(
    ("rule", "content", "where"),
    [
        ("not-text-part", [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}], "[1]"),
        ("not-text-part", [{"type": "input_audio"}], "[0]"),
        ("null-field", [{"type": "text"}], "[0].text"),
        ("wrong-type", [{"type": "text", "value": 3}], "[0].value"),
        ("wrong-type", [{"source": "no text"}], "[0]"),
        ("empty-assistant", [{"type": "text", "text": " "}], ""),
    ],
)
def test_a_part_that_is_no_text_is_named(tmp_path, rule, content, where):
    good = {"messages": [user("a"), assistant("b")]}
    report = report_of(tmp_path, [good, {"messages": [user("a"), assistant(content)]}])
    assert faults(report) == [(2, rule, f"messages[1].content{where}")]


def test_a_row_with_images_is_an_error_and_one_with_an_empty_list_is_not(tmp_path):
    good = {"prompt": "a", "completion": "b", "images": []}
    report = report_of(tmp_path, [good, good | {"prompt": "c", "images": ["x.png"]}, good | {"prompt": "d"}])
    assert (2, "media-column", "images") in faults(report) and report.bad_rows == 1


def test_names_of_preference_columns_are_told_as_the_file_has_them(tmp_path):
    good = {"question": "a", "response_j": "b", "response_k": "c"}
    report = report_of(tmp_path, [good, good | {"response_k": "b"}, good | {"response_j": ""}])
    assert faults(report) == [(2, "equal-pair", "response_k"), (3, "blank-field", "response_j")]
    assert "response_k and response_j are the same" in report.problems[0].message


# --- a mapping ---------------------------------------------------------------------------------------------------

ROWS = [{"id": n, "ask": f"q{n}", "reply": f"a{n}"} for n in range(4)]


def test_an_unknown_layout_is_mapped_and_named_by_its_own_columns(tmp_path):
    assert report_of(tmp_path, ROWS).errors == {"unknown-layout": 1}
    mapping = {"ask": "prompt", "reply": "completion"}
    report = report_of(tmp_path, [*ROWS, {"id": 5, "ask": "x", "reply": None}, {"text": "y"}], mapping)
    assert (report.layout, report.type, report.rows, report.bad_rows) == (
        "prompt_completion",
        "prompt-completion",
        6,
        2,
    )
    assert [f for f in faults(report) if f[0]] == [(5, "null-field", "reply"), (6, "other-layout", None)]
    stored = stored_rows(tmp_path, ROWS, mapping=mapping)
    assert [row["completion"][0]["content"] for row in stored] == ["a0", "a1", "a2", "a3"]


def test_a_known_column_can_be_ignored_or_mean_something_else(tmp_path):
    rows = [{"prompt": "a", "completion": "old", "reply": "new", "label": "gold"}]
    mapping = {"reply": "completion", "label": "ignore"}
    [stored] = stored_rows(tmp_path, rows, mapping=mapping)
    assert stored["completion"][0]["content"] == "new"
    assert report_of(tmp_path, rows, mapping).layout == "prompt_completion"


@pytest.mark.parametrize(
    ("rows", "mapping", "kind"),
    [
        ([{"chat": [user("a"), assistant("b")]}], {"chat": "messages"}, "language-modeling"),
        ([{"body": "a text"}], {"body": "text"}, "language-modeling"),
        ([{"good": "b", "bad": "c", "q": "a"}], {"good": "chosen", "bad": "rejected", "q": "prompt"}, "preference"),
        ([{"q": "a", "r": "b", "ok": True}], {"q": "prompt", "r": "completion", "ok": "label"}, "unpaired-preference"),
        ([{"good": [user("a"), assistant("b")], "bad": [user("a"), assistant("c")]}],
         {"good": "chosen", "bad": "rejected"}, "preference"),
        ([{"good": "\n\nHuman: a\n\nAssistant: b", "bad": "\n\nHuman: a\n\nAssistant: c"}],
         {"good": "chosen", "bad": "rejected"}, "preference"),
    ],
)  # fmt: skip
def test_every_type_can_be_mapped_to(tmp_path, rows, mapping, kind):
    assert report_of(tmp_path, rows, mapping).type == kind
    assert stored_rows(tmp_path, rows, mapping=mapping)


def test_steps_can_be_mapped_to(tmp_path):
    rows = [{"q": "a", "s": ["b"], "l": [True]}]
    report = report_of(tmp_path, rows, {"q": "prompt", "s": "completions", "l": "labels"})
    assert (report.type, report.errors) == ("stepwise", {})


def test_a_mapping_that_cannot_be_is_a_sentence(tmp_path):
    report = report_of(tmp_path, ROWS, {"answer": "completion"})
    assert report.errors == {"mapping-column": 1} and 'no column "answer" (the file has: id, ask' in report.sentence
    with pytest.raises(DatasetError) as raised:
        report_of(tmp_path, ROWS, {"ask": "nonsense"})
    assert raised.value.problem.rule == "mapping-target"
    with pytest.raises(DatasetError) as raised:
        report_of(tmp_path, ROWS, {"ask": "prompt", "id": "prompt"})
    assert raised.value.problem.rule == "mapping-twice"


def test_a_mapping_is_part_of_what_a_dataset_is(tmp_path):
    workspace = Workspace(tmp_path / "home")
    plain = datasets.add(workspace, written(tmp_path, ROWS), "data")
    mapping = {"ask": "prompt", "reply": "completion"}
    mapped = copies.mapped(workspace, plain.id, mapping)
    assert mapped.id != plain.id and (mapped.parent, mapped.mapping) == (plain.id, mapping)
    assert not plain.trainable and mapped.trainable
    assert datasets.load(workspace, mapped.id).mapping == mapping
    bad = datasets.add(workspace, written(tmp_path, [*ROWS, {"id": 9, "ask": "x", "reply": ""}]), "b", mapping=mapping)
    fixed = copies.fixed(workspace, bad.id)
    assert fixed.trainable and fixed.mapping == mapping and fixed.good_rows == 4


# --- repairs -----------------------------------------------------------------------------------------------------


def test_labels_that_are_clear_are_converted_and_the_rest_stays_an_error(tmp_path):
    labels = ["true", 1, "no", 0, True, "maybe", None]
    rows = [{"prompt": f"p{n}", "completion": "c", "label": label} for n, label in enumerate(labels)]
    workspace = Workspace(tmp_path / "home")
    dataset = datasets.add(workspace, written(tmp_path, rows), "data")
    assert dataset.report.label_changes == {
        '"true" becomes true': 1, "1 becomes true": 1, '"no" becomes false': 1, "0 becomes false": 1,
    }  # fmt: skip
    assert '"no" becomes false in 1 row' in fixes.offers(dataset.report)["convert_labels"]
    fixed = copies.fixed(workspace, dataset.id, fixes=["convert_labels"])
    assert fixed.parent == dataset.id and fixed.report.bad_rows == 2 and fixed.report.rows == 7
    assert fixed.report.label_counts == {"true": 3, "false": 2}
    both = copies.fixed(workspace, dataset.id, fixes=["drop_bad_rows", "convert_labels"])
    assert both.trainable and both.good_rows == 5 and both.fixes == ("convert_labels", "drop_bad_rows")


def test_labels_of_a_table_and_of_steps_are_converted(tmp_path):
    workspace = Workspace(tmp_path / "home")
    source = tmp_path / "rows.csv"
    source.write_text('prompt,completion,label\na,b,true\nc,"d\ne",no\nf,g\nh,i,yes\n')
    dataset = datasets.add(workspace, source, "rows.csv")
    fixed = copies.fixed(workspace, dataset.id, fixes=["convert_labels"])
    assert (fixed.report.rows, fixed.report.bad_rows, fixed.report.label_counts) == (4, 1, {"true": 2, "false": 1})
    rows = [{"prompt": "a", "completions": ["b", "c"], "labels": ["good", 0]}]
    dataset = datasets.add(workspace, written(tmp_path, rows), "steps")
    assert copies.fixed(workspace, dataset.id, fixes=["convert_labels"]).report.errors == {}


def test_a_byte_order_mark_is_stripped_and_nothing_else(tmp_path):
    workspace = Workspace(tmp_path / "home")
    source = tmp_path / "rows.jsonl"
    body = b'{"prompt": "a",  "completion": "\xef\xbb\xbfb"}\r\n'
    source.write_bytes(b"\xef\xbb\xbf" + body)
    dataset = datasets.add(workspace, source, "rows")
    fixed = copies.fixed(workspace, dataset.id, fixes=["strip_bom"])
    assert (fixed.folder / "original").read_bytes() == body and "bom" not in fixed.report.warnings


def test_plain_text_becomes_a_row_for_each_paragraph(tmp_path):
    workspace = Workspace(tmp_path / "home")
    source = tmp_path / "book"
    source.write_bytes("Once upon a time\r\nthere was a file.\r\n\r\n\n  The end – é.\n".encode())
    dataset = datasets.add(workspace, source, "book")
    assert not dataset.trainable and list(fixes.offers(dataset.report)) == ["as_text"]
    fixed = copies.fixed(workspace, dataset.id, fixes=["as_text"])
    assert fixed.trainable and fixed.report.type == "language-modeling"
    texts = [row["text"] for row in datasets.preview(workspace, fixed.id)]
    assert texts == ["Once upon a time\r\nthere was a file.", "  The end – é."]


def test_what_needs_no_repair_is_offered_none(tmp_path):
    assert fixes.offers(report_of(tmp_path, [{"prompt": "a", "completion": "b"}])) == {}
