"""Events: whole lines only, numbered through, and a last word even on a full disk."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import events


def written(run_dir: Path) -> list:
    return events.read(run_dir)[0]


def append_all(run_dir: Path, *what: events.Event) -> None:
    log = events.EventLog(run_dir)
    for event in what:
        log.append(event)
    log.close()


def step(number: int) -> events.Step:
    return events.Step(step=number, total_steps=10, epoch=0.5, loss=1.0)


# --- lines ------------------------------------------------------------------------------------------------------------
def test_an_event_is_one_line_and_one_write(tmp_path, monkeypatch):
    writes: list[bytes] = []
    write = os.write

    def noted(descriptor: int, data: bytes) -> int:
        writes.append(bytes(data))
        return write(descriptor, data)

    log = events.EventLog(tmp_path)
    monkeypatch.setattr(os, "write", noted)
    log.append(events.Log(text="two\nlines\r\n"))
    log.append(events.Sample(step=1, prompt="\u2028", text="\x00"))
    monkeypatch.undo()
    log.close()
    assert b"".join(writes) == (tmp_path / "events.jsonl").read_bytes()
    assert [line.count(b"\n") for line in writes] == [1, 1]
    assert all(line.endswith(b"\n") for line in writes)


def test_events_come_back_as_they_were_written(tmp_path):
    sent = [
        events.Queued(device="cpu"),
        events.Started(attempt=1, versions={"torch": "2"}, device="cpu", backend="plain", reason="no GPU"),
        events.Phase(phase="evaluating", detail="base"),
        events.Log(text="a sentence", level="warning"),
        events.Step(step=1, total_steps=2, epoch=0.5, loss=None, metrics={"entropy": 1.5}),
        events.Eval(step=1, loss=0.25),
        events.Sample(step=1, prompt="中文?", text="😀"),
        events.Saved(step=1, path="checkpoints/checkpoint-1", what="checkpoint"),
        events.Scored(model="base", benchmark="toy-world", items=3, cached=True),
        events.Finished(step=2),
        events.Stopped(step=1, resumable=True),
        events.Interrupted(reason="gone"),
        events.Failed(kind="oom", message="no memory", fix="less"),
    ]
    append_all(tmp_path, *sent)
    assert written(tmp_path) == sent


def test_every_event_has_its_number_the_time_and_monotonic_seconds(tmp_path):
    append_all(tmp_path, step(1), step(2), step(3))
    found = written(tmp_path)
    assert [event.seq for event in found] == [1, 2, 3]
    assert all(event.time > 1.7e9 for event in found)
    assert sorted(event.monotonic_s for event in found) == [event.monotonic_s for event in found]


def test_numbers_go_on_across_writers(tmp_path):
    append_all(tmp_path, step(1), step(2))
    append_all(tmp_path, step(3))
    append_all(tmp_path, step(4), step(5))
    assert [event.seq for event in written(tmp_path)] == [1, 2, 3, 4, 5]


def test_numbers_go_on_after_a_very_long_event(tmp_path):
    append_all(tmp_path, step(1), events.Log(text="x" * 200_000))
    append_all(tmp_path, step(2))
    assert [event.seq for event in written(tmp_path)] == [1, 2, 3]


def test_numbers_go_on_after_an_event_of_a_later_version(tmp_path):
    append_all(tmp_path, step(1))
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"event":"teleported","seq":2,"time":1.0,"monotonic_s":1.0}\n')
    append_all(tmp_path, step(2))
    assert [event.seq for event in written(tmp_path)] == [1, 3]


def test_the_last_line_without_an_end_is_ignored_by_readers(tmp_path):
    append_all(tmp_path, step(1), step(2))
    whole = (tmp_path / "events.jsonl").stat().st_size
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"event":"log","seq":3,"text":"ha')
    found, offset = events.read(tmp_path)
    assert [event.seq for event in found] == [1, 2]
    assert offset == whole


def test_the_last_line_without_an_end_is_cut_by_the_next_writer(tmp_path):
    append_all(tmp_path, step(1))
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"event":"log","seq":2,"text":"ha')
    append_all(tmp_path, step(2))
    assert [event.seq for event in written(tmp_path)] == [1, 2]
    assert (tmp_path / "events.jsonl").read_bytes().count(b"\n") == 2


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no json",
        b"{}",
        b"[1, 2]",
        b"null",
        b'{"event":"teleported","seq":9}',
        b'{"event":"step","step":"one"}',
        b'{"event":"log","text":"\xff\xfe"}',
        b"\x00" * 50,
        b'{"event":"log","text":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["empty", "text", "object", "list", "null", "later-version", "wrong-type", "not-utf-8", "zeros", "deep"],
)
def test_a_line_that_is_no_event_is_skipped(tmp_path, line):
    append_all(tmp_path, step(1))
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(line + b"\n")
    append_all(tmp_path, step(2))
    assert [event.step for event in written(tmp_path)] == [1, 2]


def test_a_text_with_half_a_character_is_written_all_the_same(tmp_path):
    """A path that is not UTF-8 comes with such characters, and so does the message of its error."""
    name = os.fsdecode(b"caf\xe9.jsonl")
    append_all(tmp_path, events.Failed(kind="bug", message=f"{name} is missing", fix="look for it"))
    (failed,) = written(tmp_path)
    assert failed.kind == "bug"


# --- reading while it grows -------------------------------------------------------------------------------------------
def test_reading_goes_on_from_an_offset(tmp_path):
    log = events.EventLog(tmp_path)
    seen: list[int] = []
    offset = 0
    for number in range(1, 6):
        log.append(step(number))
        new, offset = events.read(tmp_path, offset)
        seen += [event.step for event in new]
    log.close()
    assert seen == [1, 2, 3, 4, 5]
    assert events.read(tmp_path, offset) == ([], offset)


def test_a_missing_file_has_no_events(tmp_path):
    assert events.read(tmp_path) == ([], 0)
    assert events.read(tmp_path / "nowhere", 7) == ([], 7)


any_event = st.one_of(
    st.builds(events.Log, text=st.text(), level=st.sampled_from(["info", "warning"])),
    st.builds(events.Sample, step=st.integers(0, 2**31), prompt=st.text(), text=st.text()),
    st.builds(
        events.Step,
        step=st.integers(0, 2**31),
        total_steps=st.integers(0, 2**31),
        epoch=st.floats(0, 1e6),
        loss=st.none() | st.floats(-1e300, 1e300),
        metrics=st.dictionaries(st.text(), st.floats(-1e9, 1e9), max_size=3),
    ),
    st.builds(events.Failed, kind=st.text(), message=st.text(), fix=st.text()),
    st.builds(events.Finished, step=st.integers(0, 2**31)),
)


@settings(max_examples=60)
@given(sent=st.lists(any_event, max_size=6), share=st.floats(0, 1))
def test_any_beginning_of_a_file_reads_as_the_first_of_its_events(sent, share):
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        append_all(run_dir, *sent)
        path = run_dir / "events.jsonl"
        data = path.read_bytes()
        cut = round(share * len(data))
        path.write_bytes(data[:cut])
        found, offset = events.read(run_dir)
        assert found == sent[: len(found)]
        assert len(found) == data[:cut].count(b"\n")
        append_all(run_dir, events.Interrupted(reason="cut"))
        after = written(run_dir)
        assert after[:-1] == found
        assert after[-1].seq == len(found) + 1
        assert [event.reason for event in events.read(run_dir, offset)[0]] == ["cut"]


# --- a full disk ------------------------------------------------------------------------------------------------------
@contextmanager
def small_disk(run_dir: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let what is written through os.write to events.jsonl fail as on a disk of `size` bytes that holds `run_dir`."""
    write = os.write

    def limited(descriptor: int, data: bytes) -> int:
        if not os.path.samestat(os.fstat(descriptor), (run_dir / "events.jsonl").stat()):
            return write(descriptor, data)
        free = size - sum(path.stat().st_size for path in run_dir.iterdir())
        if free <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:free])  # a disk that fills up inside a write takes what fits

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", limited)
        yield


def test_on_a_full_disk_the_reason_still_fits(tmp_path, monkeypatch):
    events.make_reserve(tmp_path)
    assert (tmp_path / "reserve").stat().st_size == events.RESERVE_BYTES
    log = events.EventLog(tmp_path)
    with small_disk(tmp_path, events.RESERVE_BYTES + 1_000, monkeypatch):
        number = 0
        with pytest.raises(events.DiskFull) as raised:
            while number < 1_000:
                number += 1
                log.append(step(number))
        log.append(events.Failed(kind="disk", message="the disk is full", fix="free some space"))
    log.close()
    assert raised.value.errno == errno.ENOSPC
    assert not (tmp_path / "reserve").exists()
    found = written(tmp_path)
    assert [event.step for event in found[:-1]] == list(range(1, number + 1))  # the step that hit the wall, too
    assert found[-1].kind == "disk"
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    assert (tmp_path / "events.jsonl").read_bytes().count(b"\n") == len(found)


def test_without_a_reserve_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    log = events.EventLog(tmp_path)
    with small_disk(tmp_path, 1_000, monkeypatch):
        for number in range(1, 50):
            try:
                log.append(step(number))
            except events.DiskFull:
                continue
    log.append(events.Finished(step=50))
    log.close()
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") for line in lines)
    assert len(written(tmp_path)) == len(lines)


def test_the_numbers_have_no_gap_after_an_event_that_could_not_be_written(tmp_path, monkeypatch):
    log = events.EventLog(tmp_path)
    log.append(step(1))
    with small_disk(tmp_path, 0, monkeypatch), pytest.raises(events.DiskFull):
        log.append(step(2))
    log.append(step(3))
    log.close()
    assert [event.seq for event in written(tmp_path)] == [1, 2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_device_that_is_really_full_raises_disk_full(tmp_path):
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    events.make_reserve(tmp_path)
    log = events.EventLog(tmp_path)
    for _ in range(2):
        with pytest.raises(events.DiskFull):
            log.append(step(1))
    log.close()
    assert not (tmp_path / "reserve").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_used_up_quota_is_a_full_disk(tmp_path, monkeypatch, number):
    log = events.EventLog(tmp_path)

    def refused(descriptor: int, data: bytes) -> int:
        raise OSError(number, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refused)
        with pytest.raises(events.DiskFull):
            log.append(step(1))
    log.close()


def test_another_error_of_the_disk_is_not_taken_for_a_full_one(tmp_path, monkeypatch):
    events.make_reserve(tmp_path)
    log = events.EventLog(tmp_path)

    def broken(descriptor: int, data: bytes) -> int:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", broken)
        with pytest.raises(OSError, match="broken") as raised:
            log.append(step(1))
    log.close()
    assert not isinstance(raised.value, events.DiskFull)
    assert (tmp_path / "reserve").exists()


def test_the_reserve_does_not_shrink_on_a_disk_that_packs(tmp_path):
    import zlib

    events.make_reserve(tmp_path)
    assert len(zlib.compress((tmp_path / "reserve").read_bytes())) > events.RESERVE_BYTES * 0.99


def test_events_of_an_earlier_version_can_lack_fields_that_have_defaults(tmp_path):
    old = {"event": "scored", "seq": 1, "time": 1.0, "monotonic_s": 1.0, "model": "base", "benchmark": "b", "items": 1}
    (tmp_path / "events.jsonl").write_bytes(msgspec.json.encode(old) + b"\n")
    assert [event.cached for event in written(tmp_path)] == [False]
