"""Failures in words: exit status, signal, exception or last lines -> what kind it is, what happened, what to do.

A kind is one word: oom (out of memory), disk, data, model, access (to a model), network, version, driver, hardware,
kernel (of a card), compiler, busy (a card), peer (processes that do not meet), diverged, killed, setting, bug. Which message
of a library is of which kind stands in failure_signs.yaml. `remedies` names the changes of a spec that are safe to try.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engine.events import Failed
from engine.render import NotWritten
from engine.runs import holders
from engine.spec import RunSpec
from engine.words import Problem, t


class RunRefused(Exception):
    """The child found something that a person can mend; carries the problem."""

    def __init__(self, problem: Problem):
        super().__init__(problem.sentence)
        self.problem = problem


def _failed(kind: str, rule: str, **parameters: str) -> Failed:
    problem = Problem(rule=rule, parameters={k: v[:300] for k, v in parameters.items()})
    message, fix = problem.texts
    return Failed(kind=kind, message=message, fix=fix)


class _Sign(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a library's message, a whole one that has it, and where that was read."""

    sign: str
    message: str
    read: str


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Messages that mean the same: their kind, and the rule that says it in words."""

    rule: str
    kind: str
    signs: tuple[_Sign, ...]


@lru_cache(maxsize=1)
def groups() -> tuple[Group, ...]:
    """Return the table of messages (failure_signs.yaml), what is particular first."""
    import yaml  # most runs never fail

    table = Path(__file__).with_name("failure_signs.yaml").read_bytes()
    content = yaml.load(table, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - safe ones
    return msgspec.convert(content, tuple[Group, ...])


def _group(text: str) -> Group | None:
    """Return the group of the first sign of the table that stands in a text, small and capital letters alike."""
    lower = text.lower()
    return next((one for one in groups() if any(sign.sign.lower() in lower for sign in one.signs)), None)


def _classified(text: str, shown: str) -> Failed | None:
    """Return a failure that the table knows from a text, told with `shown`, or None."""
    found = _group(text)
    if found is None:
        return None
    if found.rule == "run-oom-gpu" and (others := holders.of_card(text)):
        return _failed(found.kind, "run-oom-gpu-shared", holders=others)
    return _failed(found.kind, found.rule, error=shown)


def from_exception(error: BaseException) -> Failed:
    """Classify an exception of the child or the supervisor."""
    if isinstance(error, RunRefused):
        message, fix = error.problem.texts
        return Failed(kind=error.problem.rule.partition("-")[0], message=message, fix=fix)
    if isinstance(error, NotWritten):  # a text that the base's chat template refuses
        message, fix = error.problem.texts
        return Failed(kind="data", message=message, fix=fix)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _failed("disk", "run-disk-full")
    # what a library wraps is often known where the wrapping is not
    for one in _with_causes(error):
        text, short = _told(one)
        if (found := _classified(text, short)) is not None:
            return found
    return _failed("bug", "run-bug", error=_told(error)[1])


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from, the outermost first."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__


def _told(error: BaseException) -> tuple[str, str]:
    """Return an exception as its name and text, and that in one line."""
    name, text = type(error).__name__, str(error).strip() or type(error).__name__
    return f"{name}: {text}", f"{name}: {text.splitlines()[0]}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal between SIGRTMIN and SIGRTMAX
        return str(number)


def memory_kills() -> int | None:
    """Return how many processes the kernel has killed for want of memory, in this control group (cgroup v2,
    memory.events) or on this machine (/proc/vmstat); None where neither can be read."""
    for path, name in (("/sys/fs/cgroup/memory.events", "oom_kill"), ("/proc/vmstat", "oom_kill")):
        try:
            counts = dict(line.split() for line in Path(path).read_text().splitlines() if len(line.split()) == 2)
            return int(counts[name])
        except (OSError, ValueError, KeyError):
            continue
    return None


# Where a log names an error: an exception's line, or what() of one in C++. A process of several says its rank first.
_RANK = r"^(?:\[(?:default|rank)?\d+\]:\s*)?"
_NAMED = re.compile(_RANK + r"(?:what\(\):|(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)\b(?:[:\[(]|$))")
# What stands in a log beside errors: frames of Python and C++, and marks under a line.
_BESIDE = re.compile(_RANK + r"(?:frame #\d+|File \"|Exception raised from|[\^~]+$)")
# What a library only warned of (CPython, warnings.formatwarning) ended nothing.
_WARNING = re.compile(r":\d+: \w*Warning: ")
_LAST_LINES, _LINES_OF_AN_ERROR = 5, 12
# What a process says of another's end, and not of a fault of its own.
_GONE = ("run-peer", "run-nccl", "run-meet", "run-port")


def last_words(log_tail: str) -> list[str]:
    """Return the lines of a log that tell of its end: from the last error that is named there on, without frames; else its
    last lines. A warning further up explains nothing. Where one process of several says that another is gone, or the one
    that started them does, the first error of another kind is the reason."""
    lines = [line.strip() for line in log_tail.splitlines()]
    lines = [line for line in lines if line and not _BESIDE.match(line)]
    named = [n for n, line in enumerate(lines) if _NAMED.match(line)]
    if not named:
        return [line for line in lines if not _WARNING.search(line)][-_LAST_LINES:]
    told = [lines[n : min(after, n + _LINES_OF_AN_ERROR)] for n, after in pairwise([*named, len(lines)])]
    kinds = [found.rule if (found := _group("\n".join(some))) is not None else "" for some in told]
    if kinds[-1] in _GONE:
        return next((some for some, rule in zip(told, kinds, strict=True) if rule not in _GONE), told[-1])
    return told[-1]


def from_exit(returncode: int | None, log_tail: str, *, out_of_memory: bool = False) -> Failed:
    """Classify a child that ended without a last event, from its exit status (negative: a signal) and its log.

    `out_of_memory` says that the kernel's count of processes killed for want of memory rose meanwhile.
    """
    if out_of_memory and (returncode == -signal.SIGKILL or "Signal 9 (SIGKILL) received by PID" in log_tail):
        if others := holders.of_main_memory():
            return _failed("oom", "run-oom-killed-shared", holders=others)
        return _failed("oom", "run-oom-killed")
    if returncode == -signal.SIGKILL:
        return _failed("killed", "run-killed")
    lines = last_words(log_tail)
    if lines and (found := _classified("\n".join(lines), _telling(lines))) is not None:
        return found
    if returncode is not None and returncode < 0:
        return _failed("killed", "run-signal", signal=_signal_name(-returncode))
    return _failed("bug", "run-bug", error=_telling(lines) if lines else f"exit status {returncode}")


def _telling(lines: list[str]) -> str:
    """Return the line of a log's last words that says most: the last one that the table knows, else the last."""
    return next((line for line in reversed(lines) if _group(line) is not None), lines[-1])


class Retry(NamedTuple):
    """A change that is safe to try: its words on the button, and the settings it changes."""

    title: str
    changes: dict[str, Any]


def remedies(kind: str, run_spec: RunSpec) -> list[Retry]:
    """Return what may help a run that failed so, the change that costs least first. None of them changes what is learned
    but the shorter window and the lower rate, and these say so."""
    train, found = run_spec.train, []
    if kind == "oom":
        if train.batch_size > 1:
            half = train.batch_size // 2
            passes = train.accumulation * train.batch_size // half
            found.append(
                Retry(
                    t("a smaller batch ({rows} rows, {passes} passes a step)", rows=half, passes=passes),
                    {"train.batch_size": half, "train.accumulation": passes},
                )
            )
        if not train.gradient_checkpointing:
            found.append(
                Retry(t("gradient checkpointing (about a third slower)"), {"train.gradient_checkpointing": True})
            )
        if run_spec.quantize == "none" and run_spec.adapter != "full":
            found.append(Retry(t("the base in 4 bits"), {"quantize": "4bit"}))
        if train.max_length > 128:
            shorter = train.max_length // 2
            found.append(
                Retry(t("a shorter window ({n} tokens; longer rows are cut)", n=shorter), {"train.max_length": shorter})
            )
    if kind == "diverged":
        rate = float(f"{train.learning_rate / 4:.1g}")
        found.append(Retry(t("a lower learning rate ({rate})", rate=f"{rate:g}"), {"train.learning_rate": rate}))
    return found
