"""The events of a run: what is written to runs/<id>/events.jsonl, by whom, and how it is read while it grows.

One event is one line and one write. The supervisor and its child write in turn, never at once. A last line without its
end is ignored by readers and cut off by the next writer, so a kill in the middle of a write harms nothing.
"""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from engine.words import Text
from engine.workspace import Unreadable, decoded


class Event(msgspec.Struct, kw_only=True, tag_field="event"):
    """What every event carries: its number in the run, wall time in seconds since 1970, monotonic seconds."""

    seq: int = 0
    time: float = 0.0
    monotonic_s: float = 0.0


class Queued(Event, tag="queued", kw_only=True):
    """The run waits for its device."""

    device: str


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine decided where the spec left it open (estimate/machine_choices.py): dotted path, value, reason."""

    setting: str
    value: str | Text
    reason: str | Text


class Started(Event, tag="started", kw_only=True):
    """The child has loaded its libraries. `reason` says why this device and backend were chosen, `choices` what else
    follows from the machine."""

    attempt: int
    versions: dict[str, str]
    device: str
    backend: str
    reason: str | Text
    choices: list[Choice] = []


class Phase(Event, tag="phase", kw_only=True):
    """copying, loading, replay (the base writes general rows), training, saving or evaluating. `detail` says what of: of
    loading model, rows or base again, of training samples or probe, of evaluating base, tuned, check (both), divergence or
    a step. `what` names the question set that is being asked.

    It comes again as the phase goes on: `done` of `total` parts, `left_s` seconds to go, None while that is not known.
    `next` is the phase after it, which is expected to take `next_s` seconds.
    """

    phase: str
    detail: str = ""
    what: str = ""
    done: int = 0
    total: int = 0
    left_s: float | None = None
    next: str = ""
    next_s: float | None = None


class Log(Event, tag="log", kw_only=True):
    """A sentence for the reader of the run; `level` is info, result (shown beside the charts), scores (said wherever the
    run's scores are shown) or warning."""

    text: str | Text
    level: str = "info"


class Step(Event, tag="step", kw_only=True):
    """An optimizer step. Loss in nats per trained token (SFT), or what the objective calls so; memory of the
    process or of the device in MiB."""

    step: int
    total_steps: int
    epoch: float
    loss: float | None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    memory_mib: float | None = None
    left_s: float | None = None
    metrics: dict[str, float] = {}


class Eval(Event, tag="eval", kw_only=True):
    """The loss on held-out rows, in nats per trained token."""

    step: int
    loss: float
    metrics: dict[str, float] = {}


class Watched(Event, tag="watched", kw_only=True):
    """How general text stood before the first step: nats per token over so many `texts` (engine/train/watch.py), which every
    Eval after it has as `general_loss` among its metrics; and the most nats by which it may rise, None where nothing hangs
    on it."""

    step: int
    general_loss: float
    texts: int
    limit: float | None = None


class Sample(Event, tag="sample", kw_only=True):
    """The model's answer to a fixed prompt at a step (0: before training)."""

    step: int
    prompt: str
    text: str


class Saved(Event, tag="saved", kw_only=True):
    """A checkpoint, adapter or model is complete on disk; `path` is relative to the run's folder."""

    step: int
    path: str
    what: str


class Scored(Event, tag="scored", kw_only=True):
    """The items of one benchmark are on disk; `model` is base or tuned."""

    model: str
    benchmark: str
    items: int
    cached: bool = False


class Measured(Event, tag="measured", kw_only=True):
    """What training took. `peak_bytes`: on a card what torch allocated, else the process; `baseline_bytes` is what the
    process held of it before a model was there. `step_s`: seconds of an optimizer step without evaluations."""

    peak_bytes: int
    baseline_bytes: int
    step_s: float | None
    longest_tokens: int
    estimated_bytes: int | None = None


class Progress(Event, tag="progress", kw_only=True):
    """So much of a run without optimizer steps is done: items of an evaluation, runs of a sweep. `left_s` is None until
    the pace is known."""

    done: int
    total: int
    left_s: float | None = None
    detail: str = ""


class Finished(Event, tag="finished", kw_only=True):
    """It ended as it was to. `moved`: False of a training that changed no weight."""

    step: int
    moved: bool = True


class Stopped(Event, tag="stopped", kw_only=True):
    """Stopped on request; `resumable` when a checkpoint was saved."""

    step: int
    resumable: bool


class Interrupted(Event, tag="interrupted", kw_only=True):
    """An earlier attempt ended without a word: its processes were killed or the machine went down."""

    reason: str | Text


class Failed(Event, tag="failed", kw_only=True):
    """`kind` is one word (data, model, disk, oom, killed, bug ...); message says what happened, fix what to do."""

    kind: str
    message: str | Text
    fix: str | Text


AnyEvent = (
    Queued
    | Started
    | Phase
    | Log
    | Step
    | Eval
    | Watched
    | Sample
    | Saved
    | Scored
    | Measured
    | Progress
    | Finished
    | Stopped
    | Interrupted
    | Failed
)
TERMINAL = (Finished, Stopped, Failed)

_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(AnyEvent)
_encoder = msgspec.json.Encoder()


class _Numbered(msgspec.Struct):
    """The number of an event, known or of a later version."""

    seq: int


RESERVE_BYTES = 64 * 1024


class DiskFull(OSError):
    """The disk is full: the run must end, and say so with what the reserve has freed."""


class EventLog:
    """Append events to a run's folder. One process at a time may hold one."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / "events.jsonl"
        self._reserve = run_dir / "reserve"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._seq = self._prepare()

    def _prepare(self) -> int:
        """Cut off an unfinished last line and return the number of the last event."""
        data = self.path.read_bytes() if self.path.is_file() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)
        for line in reversed(data[:whole].split(b"\n")):
            with suppress(Unreadable):
                return decoded(line, _Numbered).seq
        return 0

    def append(self, event: Any) -> None:
        """Write one event. Raises DiskFull when the disk is full; the reserve is freed first, so that the event and
        the Failed event that must follow it still fit."""
        event.seq, event.time, event.monotonic_s = self._seq + 1, time.time(), time.monotonic()
        line = _encode(event) + b"\n"
        try:
            self._write(line)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if self._reserve.exists():
                self._reserve.unlink(missing_ok=True)
                with suppress(OSError):
                    self._write(line)
            raise DiskFull(errno.ENOSPC, "the disk is full", str(self.path)) from error

    def _write(self, line: bytes) -> None:
        written = os.write(self._file, line)
        if written < len(line):
            # A short write happens when the disk fills up inside the line: take it back so that no half line stays.
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, "the disk is full", str(self.path))
        self._seq += 1

    def close(self) -> None:
        os.close(self._file)


def make_reserve(run_dir: Path) -> None:
    """Keep 64 KiB that are freed on a full disk, so that the reason still fits."""
    (run_dir / "reserve").write_bytes(os.urandom(RESERVE_BYTES))


def _encode(event: Any) -> bytes:
    try:
        return _encoder.encode(event)
    except UnicodeEncodeError:  # half a character, as in a path that is not UTF-8: "?" stands for it
        return json.dumps(msgspec.to_builtins(event), ensure_ascii=False).encode("utf-8", "replace")


def _parse(data: bytes) -> list[Any]:
    found = []
    for line in data.split(b"\n"):
        with suppress(Unreadable):  # a torn line, or an event of a later version
            found.append(decoded(line, _decoder))
    return found


def read(run_dir: Path, offset: int = 0) -> tuple[list[Any], int]:
    """Return the complete events after byte `offset` and the offset to go on from. A missing file has none."""
    try:
        with (run_dir / "events.jsonl").open("rb") as file:
            file.seek(offset)
            data = file.read()
    except OSError:
        return [], offset
    whole = data.rfind(b"\n") + 1
    return _parse(data[:whole]), offset + whole


class _Tagged(msgspec.Struct):
    """The kind of an event, known or of a later version."""

    event: str


def later_kinds(run_dir: Path) -> list[str]:
    """Return the kinds of events in a run's file that only a later version knows."""
    known, found = {one.__struct_config__.tag for one in AnyEvent.__args__}, set()
    with suppress(OSError):
        for line in (run_dir / "events.jsonl").read_bytes().split(b"\n"):
            with suppress(Unreadable):
                found.add(decoded(line, _Tagged).event)
    return sorted(found - known)


def size(run_dir: Path) -> int:
    """Return how many bytes of events there are; 0 without a file."""
    try:
        return (run_dir / "events.jsonl").stat().st_size
    except OSError:
        return 0
