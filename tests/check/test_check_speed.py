"""A file gives one verdict: whether its rows go the quick or the careful way, in what pieces and by how many processes;
and memory does not grow with it."""

from __future__ import annotations

import json
import random
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.check import Report, check_file, content_rules, pool, repeats
from engine.check import file as whole_file
from engine.check.scan import Scan
from engine.read import lines as read_lines
from tests.helpers import examples, peak_mib_of

QUICK = settings(max_examples=examples(160), suppress_health_check=[HealthCheck.function_scoped_fixture])

# ruff: noqa: E501
# Pieces of JSON texts, as they are written, that some rule or the search for them may stumble on.
TEXTS = (
    "", " ", "\\n", "\\t x", "\\u200b", "\u200b", "\u3000", "a", "Hello", "naïve 模型", "\\u6a21\\u578b", "\\u00e9",
    "\ufffd", "\\ufffd", "\\uFFFD", "\\ud83d\\ude00", "\\ud800", "x <|im_end|>", "\\u003c|im_end|>", "<\\/s>", "[INST] do", "[x]",
    "\\u005bINST]", "INST]", "{{name}}", "\\u007b{name}}", "{ {x} }", "}{", "### Input:", "\\u0023## Input:", "## no",
    "me@mail.org", "me\\u0040mail.org", "@", "4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111", "1 2 3",
    "\\u0034111111111111111", "1234567890123", "              ", "AKIAIOSFODNN7EXAMPLQ", "KI AIz", "sk-" + "a1" * 12,
    "sk\\u002d" + "a1" * 12, "hf_" + "a1" * 20, "ghp_" + "a1" * 20, "github_pat_" + "a1" * 20, "AIza" + "a1" * 20,
    "xoxb-" + "1a-" * 9, "-----BEGIN PRIVATE KEY-----", "exotic desk-top -B f_ p_ t_", '\\"', '\\\\', '\\\\\\"',
    '\\"a\\": 1', "C:\\temp", "d:\\new\\report.txt", "x C:\\b", "A:\\n", "\\u0043:\\temp", "<think>", "</think>", "<extra_id_1>",
    "A question that is long enough to leak", "A question that is long enough to leak: yes", "\x01", "\\x", "e\u0301", "--",
)  # fmt: skip
texts = st.sampled_from(TEXTS) | st.lists(st.sampled_from(TEXTS), min_size=2, max_size=3).map("".join)
roles = st.sampled_from(["user", "assistant"] * 6 + ["system", "tool", "developer", "narrator", "As\\u0073istant"])
turn = st.one_of(
    *[st.builds('{{"role": "{}", "content": "{}"}}'.format, roles, texts)] * 5,
    st.builds('{{"content": "{1}","role" : "{0}"}}'.format, roles, texts),
    st.builds('{{"role": "{0}", "role": "{0}", "content": "{1}"}}'.format, roles, texts),
    st.builds('{{"role": "{0}", "content": "{1}", "content" : 3}}'.format, roles, texts),
    st.builds('{{"role": "{0}", "content": "{1}", "name": "{1}"}}'.format, roles, texts),
    st.builds('{{"role": "{0}", "content": [{{"type": "text", "text": "{1}"}}]}}'.format, roles, texts),
    st.builds('{{"role": "{0}", "content": null, "tool_calls": [{{"a": "{1}"}}]}}'.format, roles, texts),
    st.sampled_from(["null", "3", "[]", "{}", '{"role": "user"}', '"x"']),
)
exchange = st.builds(
    '{{"role": "user", "content": "{}"}}, {{"role": "assistant", "content": "{}"}}'.format, texts, texts
)
turns = st.one_of(exchange, st.lists(turn, max_size=3).map(", ".join))
row = st.one_of(
    *[st.builds('{{"messages": [{}]}}'.format, turns)] * 6,
    st.builds('{{"messages": [{}], "messages": [{}]}}'.format, turns, turns),
    st.builds('{{"id": {1}, "messages": [{0}]}}'.format, turns, st.sampled_from(["1", '"a"', "null", "[1]", "1e999"])),
    st.builds('{{"messages": [{0}], "images": {1}}}'.format, turns, st.sampled_from(["[]", '["x"]'])),
    st.sampled_from(["", "  ", "\t", "{", "[]", "null", '{"text": "x"}', '{"messages": "x"}', "\\", '{"messages": [']),
)
GOOD = '{"messages": [{"role": "user", "content": "Hi %d"}, {"role": "assistant", "content": "Hello"}]}'


def parses(text: str) -> bool:
    return read_lines.parses(f'"{text}"'.encode("utf-8", "surrogatepass"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data"


@QUICK
@given(
    rows=st.lists(row, max_size=12),
    more=st.sampled_from(["", '"id": "a", ', '"id": 1, ', '"source": null, "n": 0.5, ']),
    chunk=st.sampled_from([1 << 18, 4_000, 300]),
    piece=st.sampled_from([1 << 23, 700, 90]),
)
@example(rows=['{"messages": [{"role": "user", "role" : "assistant", "content": "x"}]}'], more="", chunk=300, piece=90)
def test_the_quick_way_says_what_the_careful_way_says(path, rows, more, chunk, piece):
    # Enough good rows that conversations are what the file holds, and that the quick way is open.
    good = [(GOOD % n).replace("{", "{" + more, 1) for n in range(len(rows) + 2)]
    rows = [row.replace('{"messages"', "{" + more + '"messages"', 1) for row in rows]
    chooser = random.Random(len(rows))
    lines = [*good[:2], *chooser.sample(rows + good[2:], len(rows) + len(good) - 2)]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    careful = check_file(path, quick=False)
    held = read_lines.CHUNK_BYTES, whole_file.PIECE_BYTES
    read_lines.CHUNK_BYTES, whole_file.PIECE_BYTES = chunk, piece
    try:
        assert check_file(path, quick=True) == careful
    finally:
        read_lines.CHUNK_BYTES, whole_file.PIECE_BYTES = held


@QUICK
@given(records=st.lists(st.lists(texts, max_size=3).map("".join).filter(parses), min_size=1, max_size=8))
def test_whatever_a_record_may_hold_is_a_hit_of_the_scan(records):
    lines = [f'{{"a": "{record}"}}'.encode() for record in records]
    suspects, quotes, _ = Scan().look(lines, b"\n".join(lines))
    found = (
        content_rules.SPECIAL,
        content_rules.PLACEHOLDER,
        content_rules.EMAIL,
        content_rules.KEY,
        content_rules.CARD,
        content_rules.THINK,
        content_rules.DRIVE,
    )
    for line, suspect, counted in zip(lines, suspects, quotes, strict=True):
        text = json.loads(line)["a"]
        assert suspect or not ("\ufffd" in text or any(pattern.search(text) for pattern in found))
        assert suspect or not content_rules.is_cell_long(text)
        assert suspect or counted == 4


def chats(count: int, faults: bool) -> list[str]:
    chooser = random.Random(5)
    lines = []
    for n in range(count):
        line = GOOD % n
        if faults and n % 7 == 0:
            line = chooser.choice(
                ["", "{oops", line.replace("assistant", "narrator"), '{"text": "a"}', line.replace("Hello", ""),
                 line.replace("Hello", "<|im_end|>"), GOOD % 3, line.replace('"}]', '"} ]'), '{"id": 1, "a": 2}']
            )  # fmt: skip
        lines.append(line)
    return lines


def test_several_processes_give_the_report_of_one(path, tmp_path, monkeypatch):
    path.write_text("\ufeff" + "\n".join(chats(15_000, faults=True)))
    one = check_file(path, processes=1, problems_path=tmp_path / "one")
    monkeypatch.setattr(whole_file, "PIECE_BYTES", 60_000)
    monkeypatch.setattr(pool.Pool, "takes_part", False)
    done: list[tuple[int, int]] = []
    two = check_file(path, processes=2, problems_path=tmp_path / "two", progress=lambda *now: done.append(now))
    assert two.problems_file == str(tmp_path / "two") and one.bad_rows > 500
    assert one == msgspec.structs.replace(two, problems_file=one.problems_file)
    assert sorted((tmp_path / "one").read_bytes().splitlines()) == sorted((tmp_path / "two").read_bytes().splitlines())
    assert done == sorted(done) and done[-1] == (path.stat().st_size,) * 2


def test_the_asking_process_works_beside_the_others_and_hashes_as_they_do(path, monkeypatch):
    path.write_text("\n".join([*chats(2_000, faults=True), *chats(2_000, faults=False)]))
    one = check_file(path, processes=1)
    monkeypatch.setattr(whole_file, "PIECE_BYTES", 5_000)
    here: list[int] = []
    first, check_range = threading.Event(), pool.check_range
    talk = pool.Pool._talk

    def answered(self, process, todo, done, stop):
        put = done.put
        done.put = lambda answer: (put(answer), first.set())
        talk(self, process, todo, done, stop)

    def slow(checks, file, start, end):
        here.append(start)
        assert len(here) < 2 or first.wait(30), "no other process has answered"
        return check_range(checks, file, start, end)

    monkeypatch.setattr(pool.Pool, "_talk", answered)
    monkeypatch.setattr(whole_file, "check_range", slow)
    two = check_file(path, processes=2)
    assert two == one and one.warnings["duplicate-row"] > 1_000
    assert 0 < len(here) < path.stat().st_size // 5_000


def test_a_worker_that_dies_costs_nothing_but_time(path, monkeypatch):
    path.write_text("\n".join(chats(3_000, faults=True)))
    one = check_file(path, processes=1)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert check_file(path, processes=2) == one


def test_workers_that_die_while_prompts_are_read_anew_cost_nothing_but_time(path, monkeypatch):
    prompt = '{"messages": [{"role": "user", "content": "%d"}]}'
    path.write_text("\n".join([*[prompt % n for n in range(1_200)], GOOD % 1]))
    one = check_file(path, processes=1)
    reads: list[int] = []
    pieces = pool.Pool.pieces

    def dying(self, ranges, here):
        reads.append(len(reads))
        if len(reads) == 2:
            raise pool.PoolBroken
        return pieces(self, ranges, here)

    monkeypatch.setattr(pool.Pool, "pieces", dying)
    assert check_file(path, processes=2) == one and len(reads) == 3 and one.bad_rows == 1_200


def test_prompts_that_turn_out_to_have_answers_are_read_anew_by_all_processes(path, monkeypatch):
    prompt = '{"messages": [{"role": "user", "content": "%d"}]}'
    path.write_text("\n".join([*[prompt % n for n in range(3_000)], GOOD % 1]))
    one = check_file(path, processes=1)
    monkeypatch.setattr(whole_file, "PIECE_BYTES", 30_000)
    monkeypatch.setattr(pool.Pool, "takes_part", False)
    report = check_file(path, processes=2)
    assert (report.type, report.bad_rows) == ("language-modeling", 3_000) and report == one


def pairs(count: int) -> list[dict]:
    return [{"prompt": f"q{n % 50}", "chosen": f"a{n % 30}", "rejected": f"b{n % 20}"} for n in range(count)]


@pytest.mark.parametrize("spilled", [False, True])
def test_what_repeats_is_the_same_in_memory_and_on_disk(path, monkeypatch, spilled):
    rows = pairs(900)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:40]]
    spaced = [{**row, "chosen": row["chosen"] + " "} for row in rows[100:110]]
    path.write_text("\n".join(map(json.dumps, [*rows, *swapped, *spaced, {"chosen": 1}])))
    few = check_file(path)
    assert few.warnings["contradiction"] == 40 and few.warnings["near-duplicate"] == 10
    assert few.warnings["duplicate-row"] == 600
    monkeypatch.setattr(repeats, "SMALL_ROWS", 10)
    monkeypatch.setattr(repeats, "SORT_ROWS", 64)
    monkeypatch.setattr(whole_file, "PIECE_BYTES", 9_000)
    if spilled:
        monkeypatch.setattr(repeats, "SPILL_ROWS", 150)
    assert check_file(path) == few


def test_past_a_number_of_rows_hashes_are_on_disk_and_no_longer_in_memory(path, monkeypatch):
    monkeypatch.setattr(repeats, "SPILL_ROWS", 200)
    most: list[int] = []
    extend = repeats.Repeats.extend

    def watched(self, more, offset):
        extend(self, more, offset)
        held = self.hashes
        per_row = held.ends.itemsize + held.exact.itemsize + held.lines.itemsize + held.per_row * held.judged.itemsize
        assert per_row <= 32
        most.append(len(held.ends))

    monkeypatch.setattr(repeats.Repeats, "extend", watched)
    monkeypatch.setattr(whole_file, "PIECE_BYTES", 5_000)
    path.write_text("\n".join(map(json.dumps, pairs(3_000))))
    assert check_file(path).rows == 3_000 and max(most) < 200 and len(most) > 20


def peak_mib(path: Path) -> float:
    """Peak memory of a check in a process of its own, in MiB."""
    return peak_mib_of("import sys; from engine.check import check_file; check_file(sys.argv[1], processes=1)", path)


@pytest.mark.slow
def test_memory_does_not_grow_with_a_file_beyond_32_bytes_a_row(path):
    sizes = {}
    for count in (600_000, 1_600_000):  # both sort with numpy in parts of the same size, which is no growth
        with path.open("w") as out:
            for n in range(count):
                out.write(json.dumps({"prompt": f"question {n}", "chosen": f"yes {n}", "rejected": f"no {n}"}) + "\n")
        sizes[count] = peak_mib(path)
    print(sizes)
    assert sizes[1_600_000] - sizes[600_000] < 1_000_000 * 32 / 2**20 + 8


@pytest.mark.slow
def test_one_line_of_fifty_megabytes_is_a_row_and_one_beyond_the_limit_is_an_error(path):
    path.write_text(json.dumps({"prompt": "a", "completion": "b" * 50_000_000}) + "\n" + json.dumps({"prompt": "c"}))
    report: Report = check_file(path)
    assert (report.rows, report.errors) == (2, {"missing-field": 1})
    with path.open("wb") as out:
        out.write(b'{"prompt": "a", "completion": "')
        for _ in range(160):
            out.write(b"b" * (1 << 20))
        out.write(b'"}\n{"prompt": "c", "completion": "d"}\n')
    report = check_file(path)
    assert (report.rows, report.errors) == (2, {"too-long": 1})
    peak = peak_mib(path)
    print(peak)
    assert peak < 200
