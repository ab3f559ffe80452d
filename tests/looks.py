"""What tests let a process do that looks at something: end well, and in each other way (tests/test_looker.py)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from engine import looker
from engine.words import Problem
from engine.workspace import Workspace


class NotHere(Exception):
    problem = Problem(rule="tokenizer-none", parameters={"base": "mine"})


def spins() -> int:
    while True:
        pass


def sleeps() -> int:
    time.sleep(600)
    return 0


def fills() -> int:
    return len(bytearray(1 << 30))


def crashes() -> int:
    os.abort()


def panics() -> int:
    raise BaseException("called `Option::unwrap()` on a `None` value")


def raises() -> int:
    raise OverflowError("beyond 64 bits")


def answers_too_much() -> bytes:
    return bytes(looker.MOST_ANSWER_BYTES + 1)


def refuses() -> int:
    raise NotHere


def echoes(path: Path, workspace: Workspace, problem: Problem | None) -> tuple[Path, Path, Problem | None, str]:
    return path, workspace.root, problem, os.getcwd()


def goes_on(progress: Any = None) -> int:
    for number in range(4):
        until_s = time.process_time() + 0.6
        while time.process_time() < until_s:
            pass
        if progress is not None:
            progress(number, 4)
    return os.getpid()


def process() -> int:
    return os.getpid()


def os_token() -> str:
    return os.environ.get("HF_TOKEN", "")
