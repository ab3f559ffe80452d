"""CSV and Parquet are checked like any other rows: every bad one is named, and what was missing stays missing."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.check import Report, check_file
from engine.data import copies, datasets
from engine.read import lines as read_lines
from engine.workspace import Workspace
from tests.helpers import examples

QUICK = settings(max_examples=examples(120), suppress_health_check=[HealthCheck.function_scoped_fixture])


def report_of(tmp_path: Path, data: str | bytes) -> Report:
    path = tmp_path / "data"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return check_file(path)


def parquet(rows: list[dict], schema: pa.Schema | None = None) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), out, row_group_size=3)
    return out.getvalue()


class Kept:
    def start(self, reading) -> None:
        self.rows: list[dict] = []

    def add(self, line, row, raw) -> None:
        self.rows.append(row)


def faults(report: Report) -> list[tuple[int | None, int | None, str, str | None]]:
    return [(p.line, p.row, p.rule, p.where) for p in report.problems]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_record_is_named_by_the_line_it_starts_on(tmp_path, separator, end):
    rows = ["prompt,completion", 'a,"first', "second" + '"', "b,", "", "c,d"]
    data = end.join(rows).replace(",", separator)
    report = report_of(tmp_path, b"\xef\xbb\xbf" + data.encode())
    assert (report.container, report.layout, report.rows, report.bad_rows) == ("csv", "prompt_completion", 3, 1)
    assert faults(report) == [(1, None, "bom", None), (4, 2, "blank-field", "completion")]


def test_cells_keep_line_breaks_quotes_and_separators(tmp_path):
    rows = [{"prompt": 'he said "no",\nthen\r\nleft', "completion": " 144 "}, {"prompt": "b", "completion": "null"}]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["prompt", "completion"])
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "data").write_bytes(out.getvalue().encode())
    kept = Kept()
    check_file(tmp_path / "data", sink=kept)
    assert kept.rows == rows


CSV_FAULTS = [
    ("csv-cells", b"a,b,c"),
    ("csv-cells", b"a"),
    ("csv-broken", b'"a"x,b'),
    ("encoding-row", b"caf\xe9,b"),
    ("blank-field", b"a,"),
    ("blank-field", b",b"),
]


@pytest.mark.parametrize(("rule", "line"), CSV_FAULTS)
def test_a_bad_row_of_a_table_is_named_and_costs_only_itself(tmp_path, rule, line):
    report = report_of(tmp_path, b"prompt,completion\nx,y\n" + line + b"\nv,w\n")
    assert [(p.line, p.rule) for p in report.problems] == [(3, rule)]
    assert (report.rows, report.bad_rows) == (3, 1)


def test_a_quote_that_never_closes_is_an_error_not_a_long_cell(tmp_path):
    report = report_of(tmp_path, 'prompt,completion\nx,y\na,"b\nc,d\n')
    assert [(p.line, p.rule) for p in report.problems] == [(3, "csv-broken")]


@pytest.mark.parametrize(
    "header", ["prompt,completion,prompt", ",".join(["prompt", "completion", *map(str, range(3_000))])]
)
def test_a_header_that_cannot_name_columns_is_said_once(tmp_path, header):
    report = report_of(tmp_path, header + "\n" + ",".join("x" * (header.count(",") + 1)) + "\n")
    assert report.errors == {"csv-header": 1} and report.container == "csv" and not report.trainable


def test_an_unknown_table_is_a_table_with_columns_and_prose_is_text(tmp_path):
    report = report_of(tmp_path, "id,ask,reply\n1,a,b\n2,c,d\n")
    assert report.container == "csv" and report.errors == {"unknown-layout": 1} and "ask, reply" in report.sentence
    for prose in ("Roses are red, violets are blue\nSugar is sweet, and so are you\n", "One. Two\nThree, four\n"):
        report = report_of(tmp_path, prose)
        assert report.errors == {"not-data": 1} and "plain text" in report.sentence
        assert '{"text": "..."}' in report.problems[0].fix


def test_parquet_rows_have_numbers_instead_of_lines(tmp_path):
    rows = [{"prompt": f"q{n}", "completion": None if n == 4 else "a"} for n in range(8)] + [
        {"prompt": "q1", "completion": "a"}
    ]
    report = report_of(tmp_path, parquet(rows))
    assert (report.container, report.rows, report.bad_rows) == ("parquet", 9, 1)
    assert faults(report) == [(None, 5, "null-field", "completion"), (None, 9, "duplicate-row", None)]
    assert report.problems[1].sentence.startswith("row 9: this row repeats row 2 exactly")


def test_parquet_keeps_types(tmp_path):
    message = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "144"}]
    report = report_of(tmp_path, parquet([{"messages": message, "label": n % 2 == 0} for n in range(4)]))
    assert (report.layout, report.label_counts, report.errors) == ("messages_kto", {"true": 2, "false": 2}, {})


def test_bytes_of_parquet_are_the_text_they_hold_and_others_are_never_trained_as_text(tmp_path):
    columns = {"prompt": ["a", "b"], "completion": [b"caf\xc3\xa9", b"\xff\xd8"], "picture": [{"bytes": b"\xff"}, None]}
    kept = Kept()
    (tmp_path / "data").write_bytes(parquet(pa.table(columns).to_pylist(), pa.table(columns).schema))
    report = check_file(tmp_path / "data", sink=kept)
    assert (report.rows, report.bad_rows) == (2, 1)
    assert [row["completion"] for row in kept.rows] == ["café"]


def test_damaged_parquet_is_a_sentence(tmp_path):
    whole = parquet([{"prompt": "a", "completion": "b"}] * 10)
    for data in (whole[: len(whole) // 2], b"PAR1" + b"\0" * 50, whole[:20] + b"\xff" * 30 + whole[50:], b"PAR1"):
        report = report_of(tmp_path, data)
        assert report.errors == {"bad-parquet": 1} and not report.trainable


def test_a_table_is_stored_fixed_and_ready_like_any_file(tmp_path):
    workspace = Workspace(tmp_path / "home")
    source = tmp_path / "rows.csv"
    source.write_text('prompt,completion\n"a, ""b""",c\nd,\ne,"f\ng"\n')
    stored = datasets.add(workspace, source, "rows.csv")
    assert not stored.trainable and (stored.folder / "original").read_bytes() == source.read_bytes()
    fixed = copies.fixed(workspace, stored.id)
    assert fixed.trainable and fixed.parent == stored.id
    lines = (fixed.folder / "original").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": 'a, "b"', "completion": "c"},
        {"prompt": "e", "completion": "f\ng"},
    ]
    source.write_bytes(parquet([{"prompt": f"{n}", "completion": "" if n == 2 else "x"} for n in range(5)]))
    stored = datasets.add(workspace, source, "rows.parquet")
    assert copies.fixed(workspace, stored.id).good_rows == 4


@QUICK
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
            st.sampled_from(["a", '"', "x\ny"]),
        ),
        min_size=1,
        max_size=6,
    ),
    chunk=st.integers(1, 9),
)
def test_any_table_a_writer_makes_is_read_back_whatever_the_chunk_size(tmp_path, rows, chunk):
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerow(["prompt", "completion"])
    writer.writerows(rows)
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(out.getvalue().encode()))
    kept = Kept()
    whole = check_file(path, sink=kept)
    assert whole.container == "csv.gz" and whole.rows == len(rows)
    assert all((row["prompt"], row["completion"]) in rows for row in kept.rows)
    size, read_lines.CHUNK_BYTES = read_lines.CHUNK_BYTES, chunk
    try:
        assert check_file(path) == whole
    finally:
        read_lines.CHUNK_BYTES = size


@QUICK
@given(data=st.lists(st.sampled_from(["prompt,completion\n", "text\n", '"', ",", "a", "\r", "\n", "\0", "é", "1;2"])))
def test_any_text_like_a_table_gives_a_report(tmp_path, data):
    report = report_of(tmp_path, "".join(data))
    assert report.rows >= report.bad_rows and (report.trainable or report.errors)
