"""Files made to break a checker: each in tests/cases/hostile has the verdict that its table says, however it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.check import Report, check_file, file
from engine.read import lines
from tests.helpers import peak_mib_of

HOSTILE = Path(__file__).parent / "cases" / "hostile"
# file -> container, layout, rows, bad_rows, and of the first 12 errors the line (in Parquet the row) and the rule
TABLE: dict[str, dict] = json.loads((HOSTILE / "index.json").read_text())
# Reading a large file a few bytes at a time would only take long.
SMALL_BYTES = 25_000


def verdict(report: Report) -> dict:
    errors = [[p.row if p.line is None else p.line, p.rule] for p in report.problems if p.severity == "error"]
    return {
        "container": report.container,
        "layout": report.layout,
        "rows": report.rows,
        "bad_rows": report.bad_rows,
        "errors": errors[:12],
    }


@pytest.mark.parametrize("name", TABLE)
def test_a_hostile_file_has_its_verdict_however_it_is_read(name, monkeypatch):
    path = HOSTILE / name
    report = check_file(path)
    assert verdict(report) == TABLE[name]
    assert all(problem.sentence.isprintable() and problem.fix for problem in report.problems)
    small = path.stat().st_size < SMALL_BYTES and not name.endswith(".gz")
    for chunk_bytes in (7, 250) if small else (50_000,) if report.rows else ():
        monkeypatch.setattr(lines, "CHUNK_BYTES", chunk_bytes)
        monkeypatch.setattr(file, "PIECE_BYTES", 10 * chunk_bytes)
        assert check_file(path, quick=chunk_bytes == 250) == report


@pytest.mark.parametrize("depth", [450, 600, 900, 1500])
def test_a_row_too_deep_for_what_comes_after_the_parser_costs_only_itself(tmp_path, depth):
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"a": "DEEP"}}}]
    asked = [{"role": "user", "content": "go"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    deep = json.dumps({"messages": asked}).replace('"DEEP"', "[" * depth + "]" * depth)
    (tmp_path / "rows.jsonl").write_text(f"{deep}\n" + '{"messages": [{"role": "user", "content": "a"}, '
                                         '{"role": "assistant", "content": "b"}]}\n')  # fmt: skip
    report = check_file(tmp_path / "rows.jsonl")
    assert report.rows == 2 and report.errors == ({"too-deep": 1} if report.bad_rows else {})


def test_every_hostile_file_is_in_the_table_and_small():
    files = {path.name: path.stat().st_size for path in HOSTILE.iterdir() if path.name != "index.json"}
    assert files.keys() == TABLE.keys() and sum(files.values()) < 1 << 20


@pytest.mark.slow
def test_all_hostile_files_together_need_little_memory():
    peak = peak_mib_of(
        "import sys; from engine.check import check_file; [check_file(name) for name in sys.argv[1:]]",
        *(HOSTILE / name for name in TABLE),
    )
    # The longest record has 10 MB; a few copies of it, and of its text, are made while its fault is explained.
    assert peak < 250, peak
