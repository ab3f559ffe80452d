"""Looks at what somebody chose or sent, in a process that may fail: files and texts whose cost others decide (headers,
tokenizers, chat templates, tables). Torch-free; the model itself is counted by engine/train/outline.py, bounded alike.

ask(function, ...) calls a function of the engine there and returns what it returned. The process (`python -m
engine.looker`) is kept and serves one look after another through its pipes, so that a page waits for a new one only after
a look that ended it. Where that happens it is remembered for the file as it is, and said in a sentence.
"""

from __future__ import annotations

import importlib
import inspect
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, NoReturn

import msgspec
import psutil

from engine import machine, processes, starter
from engine.words import Problem, language, set_language
from engine.workspace import Workspace

# What a look may take, from one word of progress to the next: processor time, which counts on a busy machine too, and time
# by the clock. A tokenizer of 262,000 tokens took 1.4 s and 250 MiB, a header of 400,000 tensors 2.2 s and 600 MiB.
MOST_CPU_S, MOST_S = 10, 20
MEMORY_BYTES = 2 << 30
# What comes back may cost whoever asked as well.
MOST_ANSWER_BYTES = 32 << 20
# How long a process may take to come up, and after how long a look that ended one is tried again.
_START_S, AGAIN_S = 60, 600
# So many look at once, and so many are kept.
_AT_ONCE, _KEPT = 4, 2
# So many wait for their turn at most, and so long: a page that is asked for anew leaves its wait behind, and anybody may ask
# for it a thousand times.
_MOST_WAITING, _MOST_WAIT_S = 32, 60
_MOST_ENTRIES = 1_000
# By which a look finds what it is asked for; no token is passed on.
_ENVIRONMENT = ("HOME", "HF_HOME", "HF_HUB_CACHE", "TUNEBOOK_DEMO", "TUNEBOOK_DEMO_LIMITS", "SPACE_ID")

# Why nothing was found out: how a look can end the process that looks, and that it had no turn.
RULES = ("look-time", "look-memory", "look-failed", "look-busy")

OnProgress = Callable[[int, int], None]


class Refused(Exception):
    """What was asked for was not found out; `problem` says why."""

    def __init__(self, problem: Problem):
        self.problem = problem
        super().__init__(problem.sentence)


class Ended(Refused):
    """The process that looked was ended, or is not asked again so soon; `took_long` where it was for the time it took."""

    @property
    def took_long(self) -> bool:
        return self.problem.rule == "look-time"


def patiently(done: int, total: int) -> None:
    """A progress that nobody sees: for what may take long on honest files, as long as it says that it goes on."""


def memory_for(path: Path | None) -> int:
    """Return how much memory reading a file may take: eight times its size, MEMORY_BYTES at the least, and half of what
    this machine has at the most, which is also for one whose size is not known."""
    half = (machine.facts().memory_mib << 20) // 2
    try:
        return max(MEMORY_BYTES, half if path is None else min(8 * path.stat().st_size, half))
    except (OSError, ValueError):
        return MEMORY_BYTES


class _Request(msgspec.Struct, frozen=True):
    module: str
    function: str
    arguments: bytes
    language: str
    folder: str
    tells: bool
    environment: dict[str, str]
    cpu_s: int
    memory_bytes: int


def ask(
    function: Callable[..., Any],
    *arguments: Any,
    at: Path | None = None,
    progress: OnProgress | None = None,
    memory_bytes: int | None = None,
) -> Any:
    """Return function(*arguments), called in a process that is bounded in time and memory; `at` is what is looked at.

    A function that takes `progress` tells it where one is given, and has the whole time again after each word. Raises
    Ended, and Refused with the problem of an exception that has one. In a process of ours that may be lost, and for the
    starter's own files, it is called in place.
    """
    if processes.IS_CHILD or (at is not None and at.is_relative_to(starter.MODEL_DIR.parent)):
        return _in_place(function, arguments, progress)
    _refuse_remembered(function, at)
    try:
        told = _encoded(arguments)
    except UnicodeEncodeError as error:  # a name that is no text
        raise Refused(_problem("look-failed", at, 0, str(error)[:200])) from None
    request = _Request(
        module=function.__module__, function=function.__name__, arguments=told, language=language(), folder=_folder(),
        tells=progress is not None and _tells(function),
        environment={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        cpu_s=MOST_CPU_S, memory_bytes=memory_bytes or MEMORY_BYTES,
    )  # fmt: skip
    with _place(at):
        _refuse_remembered(function, at)  # it may have ended another look while this one waited
        try:
            process = _taken()
            answer = process.ask(msgspec.msgpack.encode(request), progress)
        except _Died as died:
            problem = _problem(died.rule, at, request.memory_bytes, str(died))
            if at is not None:
                _deaths[_key(function, at)] = _stamp(at), time.monotonic(), problem
            raise Ended(problem) from None
        if len(_idle) < _KEPT and not process.is_worn:
            _idle.append(process)
        else:
            process.end()
    if isinstance(answer, Problem):
        raise Refused(answer)
    return _read_as(function)[1].decode(answer)


@contextmanager
def _place(at: Path | None) -> Iterator[None]:
    """Wait for one's turn to look. Raises Refused where too many wait, or it takes too long."""
    if not _waiting.acquire(blocking=False):
        raise Refused(_problem("look-busy", at, 0, ""))
    try:
        if not _places.acquire(timeout=_MOST_WAIT_S):
            raise Refused(_problem("look-busy", at, 0, ""))
    finally:
        _waiting.release()
    try:
        yield
    finally:
        _places.release()


def prepare() -> None:
    """Start the process that the first look would wait for."""
    if not processes.IS_CHILD and not _idle:
        with suppress(OSError):
            _idle.append(_Process())


def _taken() -> _Process:
    """Return a process that waits for a look, or a new one. Raises _Died where there can be none."""
    with suppress(IndexError):
        process = _idle.pop()
        if process.is_alive:
            return process
    try:
        return _Process()
    except OSError as error:
        raise _Died("look-failed", str(error)) from None


def _in_place(function: Callable[..., Any], arguments: tuple[Any, ...], progress: OnProgress | None) -> Any:
    more = {"progress": progress} if progress is not None and _tells(function) else {}
    try:
        return function(*arguments, **more)
    except Exception as error:
        problem = getattr(error, "problem", None)
        if not isinstance(problem, Problem):
            raise
        raise Refused(problem) from error


@lru_cache(maxsize=64)
def _tells(function: Callable[..., Any]) -> bool:
    return "progress" in inspect.signature(function).parameters


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return os.sep


# --- looks that ended a process --------------------------------------------------------------------------------------
_deaths: dict[tuple[str, Path], tuple[Any, float, Problem]] = {}


def _key(function: Callable[..., Any], at: Path) -> tuple[str, Path]:
    """By package: that a base's tokenizer cannot be used is found out once, and not anew by each figure of a page."""
    return function.__module__.rpartition(".")[0], at


def _refuse_remembered(function: Callable[..., Any], at: Path | None) -> None:
    """Raise Ended where a look at the file, as it is, was ended lately."""
    known = _deaths.get(_key(function, at)) if at is not None else None
    if at is not None and known is not None:
        seen, when_s, problem = known
        if time.monotonic() - when_s < AGAIN_S and seen == _stamp(at):
            raise Ended(problem)


def _stamp(at: Path) -> Any:
    """Changes with a file, and with those that lie in a folder."""
    try:
        if not at.is_dir():
            return at.stat().st_mtime_ns, at.stat().st_size
        with os.scandir(at) as entries:
            return sorted(
                (one.name, one.stat().st_mtime_ns, one.stat().st_size) for one in islice(entries, _MOST_ENTRIES)
            )
    except (OSError, ValueError):
        return None


def _problem(rule: str, at: Path | None, memory_bytes: int, reason: str) -> Problem:
    place = os.fsencode(at or "?").decode("utf-8", "replace")[:300]
    most = {"seconds": MOST_CPU_S, "mib": memory_bytes >> 20, "minutes": AGAIN_S // 60}
    return Problem(rule=rule, where="base", parameters={"place": place, **most, "reason": reason})


# --- the process, and what goes through its pipes: a letter, eight bytes of length, and that much --------------------
_ANSWER, _PROBLEM, _PROGRESS, _MEMORY, _FAILED = b"APTMF"
_idle: list[_Process] = []
_places, _waiting = threading.Semaphore(_AT_ONCE), threading.Semaphore(_MOST_WAITING)


def _forked() -> None:
    """Leave the processes of whom this one was forked from to that one."""
    global _places, _waiting
    _idle.clear()
    _places, _waiting = threading.Semaphore(_AT_ONCE), threading.Semaphore(_MOST_WAITING)


os.register_at_fork(after_in_child=_forked)


class _Died(Exception):
    """The process was ended by a look; `rule` is how."""

    def __init__(self, rule: str, reason: str = ""):
        self.rule = rule
        super().__init__(reason)


class _Process:
    """One child that looks."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        self._child = processes.start(
            "engine.looker", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**environment, "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
        self._is_up = False

    @property
    def is_alive(self) -> bool:
        return self._child.poll() is None

    @property
    def is_worn(self) -> bool:
        """Whether it holds so much memory that the next look may lack it."""
        try:
            return psutil.Process(self._child.pid).memory_info().rss > MEMORY_BYTES // 4
        except psutil.Error:
            return True

    def ask(self, request: bytes, progress: OnProgress | None) -> bytes | Problem:
        """Return the answer. Raises _Died, after which there is no such process any more."""
        try:
            _send(self._child.stdin, _ANSWER, request)
            while True:
                most_s = MOST_S if self._is_up else _START_S
                kind, told = self._take(time.monotonic() + most_s)
                self._is_up = True
                if kind == _PROGRESS and progress is not None:
                    progress(*msgspec.msgpack.decode(told, type=tuple[int, int]))
                elif kind == _PROBLEM:
                    return msgspec.msgpack.decode(told, type=Problem)
                elif kind == _ANSWER:
                    return told
                elif kind in (_MEMORY, _FAILED):
                    raise _Died("look-memory" if kind == _MEMORY else "look-failed", told.decode("utf-8", "replace"))
        except _Died:
            self.end()
            raise
        except TimeoutError:
            self.end()
            raise _Died("look-time") from None
        except (OSError, EOFError, msgspec.MsgspecError):
            code = self.end()
            if code == -getattr(signal, "SIGXCPU", 0):
                raise _Died("look-time") from None
            raise _Died("look-failed", f"signal {-code}" if code and code < 0 else str(code)) from None
        except BaseException:  # whoever asked does not wait any more
            self.end()
            raise

    def _take(self, until_s: float) -> tuple[int, bytes]:
        head = self._read(9, until_s)
        size = int.from_bytes(head[1:], "little")
        if size > MOST_ANSWER_BYTES:
            raise _Died("look-memory")
        return head[0], self._read(size, until_s)

    def _read(self, count: int, until_s: float) -> bytes:
        source, found = self._child.stdout, bytearray()
        assert source is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(source, selectors.EVENT_READ)
            while len(found) < count:
                if not waiting.select(max(0.0, until_s - time.monotonic())):
                    raise TimeoutError
                more = os.read(source.fileno(), min(count - len(found), 1 << 20))
                if not more:
                    raise EOFError
                found += more
        return bytes(found)

    def end(self) -> int | None:
        """End it, at first so that it can clear up, and return its exit status: what it had ended with before."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(0.2)  # the kernel may be at it
        if self.is_alive:
            self._child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(2)
        self._child.kill()
        for pipe in (self._child.stdin, self._child.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        return self._child.wait()


def _send(out: IO[bytes] | None, kind: int, told: bytes) -> None:
    assert out is not None
    out.write(bytes([kind]) + len(told).to_bytes(8, "little") + told)
    out.flush()


def _encoded(value: Any) -> bytes:
    return msgspec.msgpack.encode(value, enc_hook=_as_plain)


def _as_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return os.fsencode(value)  # a name may be no text
    if isinstance(value, Workspace):
        return os.fsencode(value.root)
    raise TypeError(type(value).__name__)


@lru_cache(maxsize=64)
def _read_as(function: Callable[..., Any]) -> tuple[msgspec.msgpack.Decoder[Any], msgspec.msgpack.Decoder[Any]]:
    """What reads the arguments of a function, but for its progress, and what it returns, by how they are annotated."""
    hints = typing.get_type_hints(function)
    names = [name for name in inspect.signature(function).parameters if name != "progress"]
    kinds = (tuple[*(hints[name] for name in names)], hints["return"])
    arguments, returned = (msgspec.msgpack.Decoder(kind, dec_hook=_as_was) for kind in kinds)
    return arguments, returned


def _as_was(kind: type, value: Any) -> Any:
    return kind(os.fsdecode(value)) if kind in (Path, Workspace) else value


# --- in the process --------------------------------------------------------------------------------------------------
def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Carry out one request after another, until nobody asks any more or a look went wrong."""
    while len(head := requests.read(9)) == 9:
        request = msgspec.msgpack.decode(requests.read(int.from_bytes(head[1:], "little")), type=_Request)
        for name in _ENVIRONMENT:
            os.environ.pop(name, None)
        os.environ.update(request.environment)
        set_language(request.language)
        with suppress(OSError):
            os.chdir(request.folder)  # by which relative paths are meant
        processes.bound(cpu_s=request.cpu_s, memory_bytes=request.memory_bytes)
        try:
            _send(answers, *_carried_out(request, answers))
        except MemoryError:
            _give_up(answers, _MEMORY, "")
        except (SystemExit, KeyboardInterrupt, BrokenPipeError):
            raise
        except BaseException as error:  # a panic of Rust's is no Exception
            _give_up(answers, _FAILED, " ".join(f"{type(error).__name__}: {error}".split())[:200])


def _carried_out(request: _Request, answers: IO[bytes]) -> tuple[int, bytes]:
    function = getattr(importlib.import_module(request.module), request.function)

    def told(done: int, total: int) -> None:
        processes.bound(cpu_s=request.cpu_s)
        _send(answers, _PROGRESS, msgspec.msgpack.encode((done, total)))

    arguments = _read_as(function)[0].decode(request.arguments)
    try:
        found = function(*arguments, **({"progress": told} if request.tells else {}))
    except Exception as error:
        problem = getattr(error, "problem", None)
        if not isinstance(problem, Problem):
            raise
        return _PROBLEM, msgspec.msgpack.encode(problem)
    return _ANSWER, _encoded(found)


def _give_up(answers: IO[bytes], kind: int, reason: str) -> NoReturn:
    """Say what went wrong and end: what is left of it in this process is not known."""
    _send(answers, kind, reason.encode("utf-8", "replace"))
    os._exit(1)


def main() -> int:
    """Serve what started this process; what a library prints goes nowhere."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nothing, number)
    with suppress(BrokenPipeError):
        _serve(requests, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
