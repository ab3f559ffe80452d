"""Pieces of one file checked by several processes: the parent's side (Pool) and `python -m engine.check.pool`.

Threads do not pay here, and a fork of a server with threads is not safe, so each worker is a process of its own. It
reads a job and then ranges of bytes from its input, one JSON line each, and answers each range with a Piece. The process
that asks works as well: it has begun long before the others have started.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any, BinaryIO

import msgspec

from engine import processes
from engine.check.piece import Piece
from engine.check.rows import HasAnswers, RowChecks
from engine.read import formats
from engine.read import lines as read_lines
from engine.words import set_language

# A worker's import costs about what checking this much does.
WORTH_BYTES = 16 << 20
MOST_WORKERS = 8


class Job(msgspec.Struct, kw_only=True):
    """What all pieces of a file have in common."""

    path: bytes  # a name may be no text
    reading: formats.Reading | None
    mapping: dict[str, str]
    example: dict[str, Any] | None
    language: str
    problems_folder: str | None


class PoolBroken(Exception):
    """A worker ended before its work was done; the file is checked in this process instead."""


def workers_for(size: int) -> int:
    """How many processes check a file of JSON Lines of `size` bytes: 1 means this one."""
    if size < WORTH_BYTES:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MOST_WORKERS, size // (WORTH_BYTES // 2)))


def check_range(checks: RowChecks, file: BinaryIO, start: int, end: int) -> Piece:
    """Check the rows in a range of bytes that begins and ends with a line."""
    count = 0
    try:
        for first, lines, block in read_lines.line_blocks(read_lines.range_chunks(file, start, end)):
            checks.block(range(first, first + len(lines)), lines, block)
            count = first + len(lines) - 1
    except HasAnswers:
        return Piece(has_answers=True)
    return checks.take(count)


def problems_path(folder: str, index: int) -> Path:
    return Path(folder) / f"piece-{index}.jsonl"


def serve(source: BinaryIO, out: BinaryIO) -> None:
    """Do the job that stands in `source`."""
    job = msgspec.json.decode(source.readline(), type=Job)
    set_language(job.language)
    checks = RowChecks(job.reading, mapping=job.mapping, example=job.example)
    with open(os.fsdecode(job.path), "rb") as file:
        for line in source:
            index, start, end = msgspec.json.decode(line, type=tuple[int, int, int])
            if job.problems_folder:
                with problems_path(job.problems_folder, index).open("wb") as every:
                    checks.ledger.every = every
                    piece = check_range(checks, file, start, end)
            else:
                piece = check_range(checks, file, start, end)
            answer = msgspec.msgpack.encode(piece)
            out.write(len(answer).to_bytes(8, "little") + answer)
            out.flush()


class Pool:
    """Worker processes for one job, beside this one. close() ends them."""

    # Ranges that a worker has at hand, so that it need not wait for this process, which has work of its own.
    IN_HAND = 2
    takes_part = True

    def __init__(self, job: Job, workers: int):
        self._processes = [
            processes.start(
                "engine.check.pool", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            for _ in range(workers)
        ]
        self._job = msgspec.json.encode(job) + b"\n"

    def pieces(
        self, ranges: Iterator[tuple[int, int]], here: Callable[[int, int, int], Piece], most_ahead: int = 8
    ) -> Iterator[tuple[int, int, Piece]]:
        """Yield (start, end, piece) of each range in the order of the file. Raises PoolBroken.

        `here` checks a range in this process: it is given its number, start and end.
        """
        todo: Queue[tuple[int, int, int]] = Queue()
        done: Queue[tuple[int, bytes | None]] = Queue()
        given: dict[int, tuple[int, int]] = {}
        held: dict[int, bytes | Piece] = {}
        numbered = enumerate(ranges)
        stop = threading.Event()

        def hand_out() -> None:
            for index, (start, end) in itertools.islice(numbered, 1):
                given[index] = (start, end)
                todo.put((index, start, end))

        def wait_or_work() -> None:
            """Take the answer of a worker; while there is none, check a range here."""
            with contextlib.suppress(Empty):
                if self.takes_part and done.empty():
                    index, start, end = todo.get_nowait()
                    held[index] = here(index, start, end)
                    return
            index, answer = done.get()
            if answer is None:
                raise PoolBroken
            held[index] = answer

        threads = [
            threading.Thread(target=self._talk, args=(process, todo, done, stop), daemon=True)
            for process in self._processes
        ]
        for _ in range((len(threads) + 1) * most_ahead):
            hand_out()
        for thread in threads:
            thread.start()
        following = 0
        try:
            while following in given:
                while following not in held:
                    wait_or_work()
                hand_out()
                piece = held.pop(following)
                yield *given.pop(following), piece if isinstance(piece, Piece) else _decode(piece)
                following += 1
        finally:
            stop.set()

    def _talk(
        self, process: subprocess.Popen[bytes], todo: Queue[Any], done: Queue[Any], stop: threading.Event
    ) -> None:
        """Give ranges to one worker and take its answers."""
        source, out = process.stdout, process.stdin
        assert source is not None and out is not None
        asked: deque[int] = deque()
        try:
            out.write(self._job)
            while not stop.is_set():
                with contextlib.suppress(Empty):
                    while len(asked) < self.IN_HAND:
                        one = todo.get(block=not asked, timeout=0.2)
                        out.write(msgspec.json.encode(one) + b"\n")
                        asked.append(one[0])
                out.flush()
                if not asked:
                    continue
                size = int.from_bytes(source.read(8), "little")
                answer = source.read(size)
                if not size or len(answer) < size:
                    raise OSError
                done.put((asked.popleft(), answer))
        except (OSError, ValueError):
            done.put((-1, None))

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            process.wait()


_decode = msgspec.msgpack.Decoder(Piece).decode


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
