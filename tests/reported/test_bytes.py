"""Files whose bytes, containers or texts are odd in a way that people have met: each is read, or told in a true sentence.

Rows are the same rows whatever they are written as: each container and each way to write a list has a property test.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.check import Report, check_file, opened
from engine.check.canonical import canonical
from engine.read import lines as read_lines
from engine.read import literals
from tests.conftest import SHARED_DATA
from tests.helpers import examples

REPORTED = SHARED_DATA / "reported"
QUICK = settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])


class Kept:
    """Keeps the good rows of a check, as they are trained, without their lines."""

    def start(self, reading) -> None:
        self.reading = reading
        self.rows: list[dict[str, Any]] = []

    def add(self, line, row, raw) -> None:
        self.rows.append(canonical(row, self.reading))


def read(path: Path, data: str | bytes | None = None) -> tuple[Report, list[dict[str, Any]]]:
    """The report on a file, and its good rows; that on all of its rows without a sink must be the same."""
    if data is not None:
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    kept = Kept()
    kept.rows = []
    report = check_file(path, sink=kept)
    assert check_file(path, quick=True) == report == check_file(path, quick=False)
    return report, kept.rows


def reported(name: str) -> tuple[Report, list[dict[str, Any]]]:
    path = REPORTED / name
    if not path.exists():
        pytest.skip("the folder of reported files is not beside this checkout")
    return read(path)


def said(report: Report, severity: str = "warning") -> list[tuple[int | None, str]]:
    return [(p.line, p.rule) for p in report.problems if p.severity == severity]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


# The reported files.

PLAIN = [("Where does the tram to Ostrel leave?", "From the north gate."), ("What does a heron cost?", "Nine coins."),
         ("Who keeps the lamp?", "Old Mirre."), ("When is the tide low?", "At six."),
         ("Why is the bell green?", "Because of copper.")]  # fmt: skip
FAIRS = [f"A fair in {town}." for town in ("Oslo", "Lima", "Cairo", "Quito", "Hanoi")]


def turns(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


@pytest.mark.parametrize(
    ("name", "warnings"),
    [
        ("17_messages_as_json_text.jsonl", ["unpacked"]),
        ("17b_messages_in_csv.csv", ["unpacked"]),
        ("21_line_commas.jsonl", ["line-commas"]),
        ("26_lone_cr.jsonl", []),
        ("32_json_text_sequence.jsonl", []),
    ],
)
def test_conversations_are_read_out_of_any_container(name, warnings):
    report, rows = reported(f"faults/{name}")
    assert (report.type, report.rows, report.bad_rows, list(report.warnings)) == ("language-modeling", 5, 0, warnings)
    assert [turns(row["messages"]) for row in rows] == [[("user", q), ("assistant", a)] for q, a in PLAIN]


@pytest.mark.parametrize("name", ["csv_messages_json.csv", "csv_messages_repr.csv", "csv_text_conversation.csv"])
def test_conversations_in_cells_are_read_and_that_is_said_once(name):
    report, rows = reported(name)
    assert (report.type, report.rows, report.bad_rows) == ("language-modeling", 10, 0)
    assert report.warnings["unpacked"] == 1 and report.conversational
    assert [turns(row["messages"])[1] for row in rows][:5] == [("assistant", answer) for answer in FAIRS]


def test_the_line_that_tells_excel_the_separator_is_passed_over():
    report, rows = reported("excel_sep_line.csv")
    assert (report.container, report.type, report.rows, report.bad_rows) == ("csv", "prompt-completion", 10, 0)
    assert rows[0]["prompt"][0]["content"] == "Greet Oslo; politely."
    assert rows[0]["completion"][0]["content"] == "Good day,\nOslo!"


def test_a_spreadsheet_is_told_to_be_saved_as_csv():
    report, _ = reported("sheet.xlsx")
    assert report.rows == 0 and "a spreadsheet" in report.sentence
    assert report.problems[0].fix == "save it as CSV (UTF-8) and upload that"


def test_paths_written_with_single_backslashes_are_warned_of_by_line():
    report, _ = reported("windows_paths.jsonl")
    assert (report.rows, report.bad_rows) == (10, 3)
    assert said(report, "error") == [(line, "not-json") for line in (3, 6, 9)]
    assert said(report) == [(line, "drive-letter") for line in (1, 4, 7, 10)]


def test_text_with_the_marks_of_a_template_is_trained_whole_and_so_it_is_said():
    report, rows = reported("text_templated_llama.jsonl")
    assert report.warnings == {"templated-text": 10} and len(rows) == 10
    assert "the user's words too" in report.problems[0].message and "remove" not in report.problems[0].fix
    report, _ = reported("faults/31_nemo_marks.jsonl")
    assert report.warnings == {"special-token": 5} and "one text row" in report.problems[0].fix


def test_a_ranking_is_no_contradiction_and_48_to_52_is_balanced():
    assert reported("faults/09_ranked_list_as_pairs.jsonl")[0].warnings == {}
    assert reported("faults/10_kto_48_52.jsonl")[0].warnings == {}


def test_a_number_that_is_none_costs_no_row_where_it_is_not_used():
    report, rows = reported("faults/19_nan_in_unused_column.jsonl")
    assert (report.rows, report.bad_rows, report.warnings) == (5, 0, {"unused-columns": 1}) and len(rows) == 5


def test_a_blank_in_the_name_of_a_column_is_shown_and_said():
    report, _ = reported("faults/23_blank_in_column_name.jsonl")
    assert "prompt␣, ␣completion are none" in report.sentence
    assert "without the blank in prompt␣, ␣completion they would be" in report.sentence


def test_columns_instead_of_rows_are_said_with_how_to_turn_them():
    report, _ = reported("faults/25_columns_not_rows.json")
    assert report.errors == {"columns-not-rows": 1} and "(instruction, output), not rows" in report.sentence
    assert 'orient="records"' in report.problems[0].fix


def test_conversations_without_answers_are_called_questions_alone():
    report, _ = reported("faults/27_prompts_only.jsonl")
    assert (report.type, report.bad_rows, report.warnings) == ("prompt-only", 0, {"no-answers": 1})


def test_a_column_of_images_is_one_error_a_row_without_a_word_to_the_contrary():
    report, _ = reported("faults/30_images_column.jsonl")
    assert report.errors == {"media-column": 5} and report.warnings == {}


# Rows are the same however they are written.

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
words = st.text(characters, max_size=12).map(lambda text: f"x{text}")
roles = st.lists(st.sampled_from(["user", "assistant", "system"]), max_size=3)
conversations = roles.flatmap(
    lambda names: st.tuples(*[st.fixed_dictionaries({"role": st.just(n), "content": words}) for n in [*names, "assistant"]])
).map(list)  # fmt: skip
exchanges = st.lists(st.fixed_dictionaries({"prompt": words, "completion": words}), min_size=2, max_size=6)
chats = st.lists(conversations.map(lambda messages: {"messages": messages}), min_size=2, max_size=6)


def as_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_table(rows: list[dict[str, Any]], separator: str = ",", quoting: Any = csv.QUOTE_MINIMAL) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=separator, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


@QUICK
@given(rows=exchanges | chats, indented=st.booleans(), chunk=st.sampled_from([3, 50, 1 << 18]))
def test_a_json_text_sequence_holds_the_rows_of_json_lines(path, rows, indented, chunk):
    _, wanted = read(path, as_lines(rows))
    held = read_lines.CHUNK_BYTES
    read_lines.CHUNK_BYTES = chunk
    try:
        report, found = read(path, "".join(f"\x1e{json.dumps(row, indent=1 if indented else None)}\n" for row in rows))
        broken, _ = read(path, "\x1e" + "\x1e".join([*map(json.dumps, rows), '{"prompt": "x', json.dumps(rows[0])]))
    finally:
        read_lines.CHUNK_BYTES = held
    assert found == wanted and report.container == "json-seq"
    assert (broken.rows, broken.bad_rows) == (len(rows) + 2, 1)  # one that breaks off costs itself alone


@QUICK
@given(rows=exchanges | chats)
def test_lines_that_end_with_cr_alone_hold_the_same_rows(path, rows):
    _, wanted = read(path, as_lines(rows))
    report, found = read(path, as_lines([*rows, {"prompt": 1, "messages": 1}]).replace("\n", "\r"))
    assert found == wanted and said(report, "error")[0][0] == len(rows) + 1


@QUICK
@given(rows=exchanges | chats, last=st.booleans())
def test_commas_behind_the_lines_are_one_warning(path, rows, last):
    _, wanted = read(path, as_lines(rows))
    report, found = read(path, ",\n".join(map(json.dumps, rows)) + ",\n" * last)
    assert found == wanted and said(report).count((1, "line-commas")) == 1 and not report.errors


@QUICK
@given(rows=exchanges, separator=st.sampled_from(",;\t|"), bom=st.booleans(), quoted=st.booleans())
def test_a_table_that_tells_its_separator_holds_the_same_rows(path, rows, separator, bom, quoted):
    _, wanted = read(path, as_table(rows))
    told = f'"sep={separator}"' if quoted else f"sep={separator}"
    report, found = read(
        path, "\ufeff" * bom + f"{told}\r\n" + as_table([*rows, {"prompt": "x", "completion": ""}], separator)
    )
    assert found == wanted and report.container == "csv"
    [(line, rule)] = said(report, "error")
    assert rule == "blank-field" and line == 3 + sum(as_table([row]).count("\n") - 1 for row in rows)


def numpy_shows(messages: list[dict[str, Any]]) -> str:
    return str(numpy.array(messages, dtype=object))


WRITTEN = {"json": json.dumps, "twice": lambda value: json.dumps(json.dumps(value)), "python": repr,
           "tuple": lambda value: repr(tuple(value)), "numpy": numpy_shows}  # fmt: skip


@QUICK
@given(
    rows=chats,
    written=st.sampled_from(sorted(WRITTEN)),
    column=st.sampled_from(["messages", "text"]),
    table=st.booleans(),
)
def test_conversations_written_as_text_are_read_as_conversations(path, rows, written, column, table):
    _, wanted = read(path, as_lines(rows))
    texts = [{column: WRITTEN[written](row["messages"])} for row in rows]
    report, found = read(path, as_table(texts, quoting=csv.QUOTE_ALL) if table else as_lines(texts))
    assert found == wanted and report.warnings["unpacked"] == 1 and report.layout == "messages"


@QUICK
@given(rows=st.lists(st.tuples(conversations, words, words), min_size=2, max_size=4))
def test_pairs_and_prompts_written_as_text_are_read_too(path, rows):
    def answer(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    asked = {"role": "user", "content": "?"}
    pairs = [
        {"prompt": [*prompt, asked], "chosen": answer("a" + one), "rejected": answer("b" + other)}
        for prompt, one, other in rows
    ]
    _, wanted = read(path, as_lines(pairs))
    report, found = read(path, as_table([{name: repr(value) for name, value in pair.items()} for pair in pairs]))
    assert found == wanted and report.type == "preference" and report.conversational


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
)


@given(value=st.lists(values, max_size=4))
def test_a_list_is_read_as_python_and_json_write_it(value):
    assert literals.list_in(repr(value)) == literals.list_in(json.dumps(value)) == json.loads(json.dumps(value))


@pytest.mark.parametrize(
    "text",
    ["[", "[1", "[1]]", "[print(1)]", "[1 for x in y]", "[__import__('os')]", "[a]", "['a' + 'b']", "['a", "text", "",
     "{'a': 1}", "[1, 2] and more", "[" * 100_000, "[[" * 5_000 + "]]" * 5_000, "['\\ud800']", "a bc", "array(", "()("],
)  # fmt: skip
def test_what_is_no_literal_list_stays_a_text(text):
    assert literals.list_in(text) is None


def test_a_text_among_lists_is_an_error_of_its_row_and_lists_among_texts_stay_texts(path):
    rows = [{"messages": json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])}] * 3
    report, found = read(path, as_lines([*rows, {"messages": "[{'role': 'user', "}]))
    assert said(report, "error") == [(4, "wrong-type")] and len(found) == 3
    texts = [{"prompt": f"as JSON {n}", "completion": "plain"} for n in range(3)]
    report, found = read(path, as_lines([*texts, {"prompt": "as JSON", "completion": rows[0]["messages"]}]))
    assert report.warnings == {} and found[3]["completion"][0]["content"] == rows[0]["messages"]


@pytest.mark.parametrize("orient", ["list", "columns", "split", "index"])
def test_a_table_in_one_object_is_no_row(path, orient):
    import pandas

    frame = pandas.DataFrame({"prompt": ["a", "b", "c"], "completion": ["d", "e", "f"]})
    data = json.dumps(frame.to_dict("list")) if orient == "list" else frame.to_json(orient=orient)
    report, _ = read(path, data)
    assert report.errors == {"columns-not-rows": 1} and "(prompt, completion)" in report.sentence
    told = {"list": "columns"}.get(orient, orient)
    assert f'orient="{told}"' in report.problems[0].fix
    turned = pandas.read_json(io.StringIO(data), orient=told).to_json(orient="records", lines=True)
    assert read(path, turned)[0].errors == {} and len(read(path)[1]) == 3


def test_rows_that_hold_lists_are_rows(path):
    for row in (
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
        {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ):
        assert read(path, as_lines([row]))[0].errors == {}


def archive(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name in names:
            made.writestr(name, "application/vnd.oasis.opendocument.spreadsheet" if name == "mimetype" else "x" * 99,
                          zipfile.ZIP_STORED if name == "mimetype" else None)  # fmt: skip
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "fix"),
    [
        (archive("[Content_Types].xml", "_rels/.rels", "xl/workbook.xml"), "save it as CSV (UTF-8)"),
        (archive("docProps/app.xml", "xl/worksheets/sheet1.xml", "[Content_Types].xml"), "save it as CSV (UTF-8)"),
        (archive("mimetype", "content.xml"), "save it as CSV (UTF-8)"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "save it as CSV (UTF-8)"),
        (archive("[Content_Types].xml", "word/document.xml"), "save it as plain text"),
        (archive("rows.jsonl"), "unpack it"),
    ],
)
def test_an_office_document_is_told_by_its_bytes(path, data, fix):
    assert read(path, data)[0].problems[0].fix.startswith(fix)


@pytest.mark.parametrize("zeros", [1, 3, 4, 4096, 200_000])
@pytest.mark.parametrize("whole", [True, False])
def test_a_tail_of_zero_bytes_is_one_bad_row_and_no_encoding(path, zeros, whole):
    data = as_lines([{"prompt": "a", "completion": "b"}] * 2)
    report, rows = read(path, (data if whole else data[:-5]).encode() + b"\0" * zeros)
    assert (report.rows, report.bad_rows, len(rows)) == ((3, 1, 2) if whole else (2, 1, 1))
    assert not whole or "zero bytes" in report.problems[-1].message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["a", "模型"])
def test_wide_encodings_are_still_named(path, encoding, text):
    data = as_lines([{"prompt": text * 20, "completion": "b"}] * 9)
    data = data.encode().decode("unicode_escape") if text != "a" else data
    assert read(path, data.encode(encoding))[0].problems[0].parameters["found"] == encoding[:6].upper()


@QUICK
@given(word=st.sampled_from(["NaN", "Infinity", "-Infinity"]), nested=st.booleans(), every=st.booleans())
def test_nan_costs_a_row_only_where_it_is_used(path, word, nested, every):
    held = f'{{"a": [{word}]}}' if nested else word
    good = '{"prompt": "a%d", "completion": "b", "score": %s}'
    report, rows = read(path, "\n".join(good % (n, held if every or n == 1 else "1") for n in range(4)))
    assert report.errors == {} and len(rows) == 4
    used = f'{{"prompt": "a", "completion": {held}}}'
    report, rows = read(path, "\n".join([used, *(good % (n, 1) for n in range(4))]))
    assert said(report, "error") == [(1, "nan")] and len(rows) == 4
    twice = good.replace('"score"', '"prompt": "c", "score"') % (1, held)
    assert said(read(path, "\n".join([twice, *(good % (n, 1) for n in range(4))]))[0], "error") == [
        (1, "duplicate-key")
    ]


@pytest.mark.parametrize("empty", [[], None, "", [""], [None], {}, "[]"])
def test_a_column_of_images_that_is_empty_is_no_fault(path, empty):
    report, rows = read(path, as_lines([{"prompt": f"a{n}", "completion": "b", "images": empty} for n in range(3)]))
    assert report.errors == {} and report.warnings == {} and len(rows) == 3


def one(answer: str, prompt: str = "q") -> str:
    return as_lines(
        [{"prompt": prompt, "completion": answer}, *({"prompt": f"q{n}", "completion": "a"} for n in range(3))]
    )


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        ("<think>\nI add", "unclosed-think"),
        ("<think>a</think> b <think> c", "unclosed-think"),
        ("<think>a</think> b", None),
        ("a</think> b", None),
        ("In C:\temp", "drive-letter"),
        ("See D:\new\report.txt", "drive-letter"),
        ("See D:\new", "drive-letter"),
        ("E:\backup", "drive-letter"),
        ("Options:\nA:\nParis\nC:\nRome", None),
        ("C:\nthe capital of Italy. D:\tRome", None),
        ("C:\\temp", None),
        ("http:\nthere", None),
        ("ab " * 10_922 + "x", "cell-cut"),
        ("😀" * 16_383 + "x", "cell-cut"),
        ("x" * 32_766, None),
        ("x" * 32_768, None),
        ("<｜Assistant｜>yes", "special-token"),
        ("<extra_id_1>", "special-token"),
    ],
)
def test_what_spoils_a_text_is_warned_of_with_its_line(path, answer, rule):
    report, _ = read(path, one(answer))
    assert said(report) == ([(1, rule)] if rule else [])


def test_reasoning_is_looked_at_where_it_is_trained(path):
    assert said(read(path, one("x</think> y", "q<think>"))[0]) == []
    for place in (0, 1):
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        messages[place]["content"] = "<think> c"
        good = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
        assert said(read(path, as_lines([{"messages": messages}, good]))[0]) == [(1, "unclosed-think")] * place


def test_blanks_in_names_are_seen_wherever_columns_are_named(path):
    report, _ = read(
        path, as_lines([{"prompt": "a", "completion": "b", " note ": 1}, {"prompt": "c", "completion ": "d"}])
    )
    shown = " ".join(report.lines())
    assert "␣note␣" in shown and "completion␣" in shown


def test_the_rows_of_an_odd_container_can_be_read_again(path):
    with opened(path_with(path, b'\x1e{"text": "a"}\n\x1e{\n"text": "b"}\n')) as file:
        assert list(file.records()) == [(1, b'{"text": "a"}'), (2, b'{\n"text": "b"}')]
    with opened(path_with(path, b'{"text": "a"}\r{"text": "b"}\r')) as file:
        assert list(file.records()) == [(1, b'{"text": "a"}'), (2, b'{"text": "b"}')]


def path_with(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
