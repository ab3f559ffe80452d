"""One run in several processes, one a device, on one machine or several: `accelerate launch` starts them, and the first
speaks for all."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine import machine, peers
from engine.events import Failed
from engine.runs import environment, failures
from engine.spec import RunSpec
from engine.words import Problem

# The others wait while the first scores the base or writes a checkpoint; a process that is gone is noticed at once
# all the same, since its connection closes.
TIMEOUT = datetime.timedelta(days=7)
# What computes; another version of it computes otherwise.
_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")
# Failures that may only say that another process is gone.
_OF_OTHERS = ("peer", "killed")


def launched() -> bool:
    """Whether this process is one of several, rather than the one that starts them."""
    return "LOCAL_RANK" in os.environ


def first() -> bool:
    """Whether this process writes the events, the checkpoints and what is made. The only one always does."""
    return int(os.environ.get("RANK", "0")) == 0


def launch(run_dir: Path, run_spec: RunSpec) -> None:
    """Become `accelerate launch`, which waits until a person has started it on each of the other machines, and starts one
    process a device. Does not return.

    The same process goes on under another program, so it still dies with its supervisor (PR_SET_PDEATHSIG survives
    execve(2)), and the processes it starts die with it. Without a GPU they speak over gloo.
    """
    os.environ["TUNEBOOK_SUPERVISOR"] = str(os.getpid())
    words = ["-m", "accelerate.commands.launch", *peers.launch_words(run_dir, run_spec)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *words])  # noqa: S606 - a list, never a shell


def begin(run_dir: Path) -> peers.Heart | None:
    """Let the others know that this process lives and what it stands on, where it is one of several."""
    if not launched():
        return None
    rank, number = peers.this_process()
    if number:
        threading.Thread(target=_leave_with_the_first, args=(run_dir,), daemon=True).start()
    return peers.Heart(run_dir, rank, number, _stands_on())


def take_environment(run_dir: Path, run_spec: RunSpec) -> None:
    """Take on the environment that a supervisor would have given this process, where it is on another machine. Before the
    libraries that read it."""
    if launched() and peers.this_process()[1]:
        os.environ.update(environment.environment(run_dir, run_spec))


def _stands_on() -> dict[str, str]:
    """Return the device, the code and the versions of the libraries. The code by its content: a checkout has a version for
    all its states."""
    code, here = hashlib.sha256(), Path(environment.__file__).parents[1]
    for path in sorted(here.rglob("*.py")):
        code.update(str(path.relative_to(here)).encode() + path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"device": machine.facts().device, "tunebook": code.hexdigest()[:12], **versions}


def _leave_with_the_first(run_dir: Path) -> None:
    """End this process when the first one is gone, or is that of a later attempt: over NCCL it would wait as long as its
    patience lasts, and stand for a machine that has come."""
    watch, heard = peers.Watch(run_dir), 0
    while not any(peer.rank == 0 for peer in watch.silent(peers.SILENT_S, ended_s=peers.SILENT_S)):
        first = peers.read(run_dir).get(0)
        if first is not None and first.beat < heard:
            break
        heard = first.beat if first is not None else heard
        time.sleep(peers.GONE_S)
    print("The first machine is gone: this process ends.", file=sys.stderr, flush=True)
    os._exit(1)


def wait_for_machines(run_dir: Path, run_spec: RunSpec, stopped: Callable[[], bool]) -> bool:
    """Wait until a process of every machine has begun, once their launchers have met; return False when stopped() says so
    first. Raises RunRefused, with the machines that did not come, or one that stands on other versions."""
    end_s = time.monotonic() + peers.ARRIVAL_S
    while launched() and first():
        if (unlike := peers.unlike(run_dir)) is not None:
            raise failures.RunRefused(unlike)
        if not (absent := peers.missing(run_dir, run_spec)):
            break
        if stopped():
            return False
        if time.monotonic() > end_s:
            numbers = ", ".join(str(machine + 1) for machine in absent)
            raise failures.RunRefused(Problem(rule="peer-machines-missing", parameters={"machines": numbers}))
        time.sleep(peers.POLL_S)
    return True


def reason(run_dir: Path, failed: Failed) -> Failed:
    """Return why a run failed where this process may only have noticed that another is gone: as the others tell."""
    if not launched() or failed.kind not in _OF_OTHERS:
        return failed
    return peers.reason(run_dir) or failed


def join(*, cuda: bool) -> None:
    """Meet the other processes. Before any of them works long by itself, so that nobody's patience ends."""
    if launched():
        import torch
        from accelerate import PartialState

        PartialState(cpu=not cuda, timeout=TIMEOUT)
        if not cuda:
            # accelerate 1.x calls the processor of a process "cpu:0", which torch.load knows no way to when a run goes on
            torch.serialization.register_package(
                0, lambda _: None, lambda storage, where: storage if where.startswith("cpu:") else None
            )


def meet() -> None:
    """Wait until every process has come here."""
    if launched():
        import torch

        torch.distributed.barrier()


@contextlib.contextmanager
def one_after_the_first() -> Iterator[None]:
    """Let the first process go in alone, and the others when it is out."""
    if not first():
        meet()
    yield
    if first():
        meet()


def any_of(asked: bool) -> bool:
    """Say whether any process was asked: all must stop after the same step, or one would wait for the others for ever."""
    if not launched():
        return asked
    import torch

    flag = torch.tensor([float(asked)], device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def of_first(number: float) -> float:
    """Return the number that the first process has: what all decide by must be the same to the last bit."""
    if not launched():
        return number
    import torch

    told = torch.tensor([number], dtype=torch.float64)
    told = told.cuda() if torch.distributed.get_backend() == "nccl" else told
    torch.distributed.broadcast(told, 0)
    return float(told.item())


class Silence:
    """The event log of a process that is not the first."""

    def append(self, event: Any) -> None:
        """Say nothing: the first process says the same."""
