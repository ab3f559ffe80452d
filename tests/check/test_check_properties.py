"""Whatever bytes or rows come, the check ends with a Report, and what it says about lines is right."""

from __future__ import annotations

import gzip
import json
import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.check import Report, check_file, problem_to_json
from engine.check.canonical import canonical, schema, target_characters
from engine.read.formats import LAYOUTS, TYPES, Reading
from tests.helpers import examples

QUICK = settings(max_examples=examples(160), suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data"


class Kept:
    """Keeps the good rows of a check."""

    def start(self, reading: Reading) -> None:
        self.reading = reading
        self.rows: list[tuple[int, dict]] = []

    def add(self, line: int, row: dict, raw: bytes) -> None:
        self.rows.append((line, row))


def is_sound(report: Report) -> None:
    """What holds for any report at all."""
    assert 0 <= report.bad_rows <= report.rows
    assert report.type is None or report.type in TYPES
    assert bool(report.errors) == any(p.severity == "error" for p in report.problems)
    assert report.bad_rows == 0 or report.errors
    assert len(report.problems) <= min(1_000, report.problem_count)
    assert report.trainable is (not report.errors and report.type not in (None, "stepwise"))
    for problem in report.problems:
        shown = problem_to_json(problem)
        assert shown["message"] and shown["fix"] and problem.sentence.isprintable()
    json.dumps(report.to_json())
    "\n".join(report.lines()).encode()
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


PIECES = (
    b'{ } [ ] , : " \\ null NaN 1e999 "prompt" "completion" "messages" "\\ud800" a,b PK\x03\x04 \xef\xbb\xbf \0 '
    b"\xff\xfe \xe9 \x1f\x8b\x08"
).split(b" ")
RECORDS = (b'{"prompt": "a", "completion": "b"}', b'{"text": "x"}\n', b'[{"text": "x"}', b"a,b\n1,2\n")
fragments = st.sampled_from((*PIECES, *RECORDS, b" ", b"\n", b"\r\n"))


@QUICK
@given(data=st.one_of(st.binary(max_size=400), st.lists(fragments, max_size=30).map(b"".join)), packed=st.booleans())
def test_any_bytes_give_a_sound_report(path, data, packed):
    path.write_bytes(gzip.compress(data) if packed else data)
    is_sound(check_file(path, sink=Kept()))


columns = sorted(
    {column for layout in LAYOUTS for column in layout.fields.values()} | {"role", "from", "value", "content"}
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
)
part = st.dictionaries(st.sampled_from(["type", "text", "value", "thinking", "name", "input"]), scalars, max_size=3)
called = st.fixed_dictionaries(
    {}, optional={"id": scalars, "name": scalars, "arguments": scalars, "function": st.one_of(scalars, part)}
)
keys = {
    "tool_calls": st.one_of(scalars, called, st.lists(called, max_size=2)),
    "function_call": st.one_of(scalars, called),
    **dict.fromkeys(("weight", "loss", "reasoning_content", "tool_call_id", "name", "refusal", "call_text"), scalars),
}
content = st.one_of(st.text(max_size=5), scalars, st.lists(st.one_of(part, scalars), max_size=2))
roles = st.sampled_from(["user", "assistant", "system", "Model", "tool_call", "human", "observation", "x"])
call_texts = st.sampled_from(['{"name": "f", "arguments": {"a": 1}}', '{"name": "f"', "[1]", '[{"name": "f"}]'])
message = st.one_of(
    st.fixed_dictionaries({"role": roles, "content": content}, optional=keys),
    st.fixed_dictionaries({"from": roles, "value": st.one_of(content, call_texts)}, optional=keys),
    st.fixed_dictionaries({"human": content, "assistant": content}),
    scalars,
)
values = st.one_of(
    scalars,
    st.lists(message, max_size=4),
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(columns), inner, max_size=3),
    ),
)
rows_of_a_layout = st.sampled_from(LAYOUTS).flatmap(
    lambda layout: st.lists(
        st.fixed_dictionaries(dict.fromkeys(layout.required, values), optional=dict.fromkeys(layout.optional, values)),
        min_size=1,
        max_size=5,
    )
)
any_rows = st.lists(st.one_of(st.dictionaries(st.sampled_from(columns), values, max_size=4), values), max_size=5)


@QUICK
@given(rows=st.one_of(rows_of_a_layout, any_rows), indented=st.booleans())
def test_any_json_rows_give_a_sound_report_and_good_rows_convert(path, rows, indented):
    import pyarrow as pa

    path.write_text(json.dumps(rows, indent=1) if indented else "\n".join(map(json.dumps, rows)))
    kept = Kept()
    report = check_file(path, sink=kept)
    is_sound(report)
    assert check_file(path, quick=True) == check_file(path, quick=False) == report
    if report.type is None:
        return
    assert len(kept.rows) == report.rows - report.bad_rows
    converted = [canonical(row, kept.reading, line) for line, row in kept.rows]
    table = pa.Table.from_pylist(converted, schema(report.type)).to_pylist()
    assert sum(target_characters(row, report.type) for row in table) == report.target_characters


FAULTS = {
    "not-json": ['{"prompt": "a", "completion"', "{'a': 1}", "oops"],
    "missing-field": ['{"prompt": "a"}', "{}"],
    "null-field": ['{"prompt": "a", "completion": null}'],
    "wrong-type": ['{"prompt": "a", "completion": [1]}'],
    "blank-field": ['{"prompt": "a", "completion": "\\u200b"}'],
    "not-object": ["[1]", '"text"'],
    "nan": ['{"prompt": "a", "completion": NaN}'],
}


@QUICK
@given(
    plan=st.lists(st.sampled_from(["good", "good", "good", "blank", *FAULTS]), max_size=30),
    ending=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    seed=st.integers(0, 1_000),
)
def test_injected_faults_are_named_by_their_line(path, plan, ending, bom, seed):
    chooser = random.Random(seed)
    # Enough good rows that they decide the layout, at the end so that any fault may come first.
    plan = [*plan, *["good"] * (len(plan) + 2)]
    lines, expected = [], []
    for number, kind in enumerate(plan, start=1):
        if kind == "good":
            lines.append(json.dumps({"prompt": f"question {number}", "completion": "answer"}))
        elif kind == "blank":
            lines.append(chooser.choice(["", "  ", "\t"]))
        else:
            lines.append(chooser.choice(FAULTS[kind]))
            expected.append((number, kind))
    data = ending.join(lines) + chooser.choice(["", ending])
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + data.encode())
    report = check_file(path)
    errors = [(p.line, p.rule) for p in report.problems if p.severity == "error"]
    # An empty object misses two fields at once.
    assert list(dict.fromkeys(errors)) == expected
    assert report.rows == len(plan) - plan.count("blank") and report.bad_rows == len(expected)
    assert report.warnings.get("bom", 0) == bom


@QUICK
@given(
    rows=st.lists(
        st.tuples(st.text(), st.text(alphabet=st.characters(exclude_categories=["Cs"]))), min_size=1, max_size=5
    )
)
def test_conversion_keeps_every_character_of_good_rows(path, rows):
    written = [{"prompt": prompt, "completion": completion} for prompt, completion in rows]
    path.write_text(json.dumps(written))
    kept = Kept()
    check_file(path, sink=kept)
    for _, row in kept.rows:
        result = canonical(row, kept.reading)
        assert result["prompt"][0]["content"] == row["prompt"]
        assert result["completion"][0]["content"] == row["completion"]


@QUICK
@given(data=st.lists(fragments, max_size=20).map(b"".join), chunk=st.integers(1, 9))
def test_the_verdict_does_not_depend_on_the_chunk_size(path, data, chunk):
    from engine.read import lines as read_lines

    path.write_bytes(data)
    whole = check_file(path)
    size = read_lines.CHUNK_BYTES
    read_lines.CHUNK_BYTES = chunk
    try:
        assert check_file(path) == whole
    finally:
        read_lines.CHUNK_BYTES = size
