"""One run in several processes, one a device: `accelerate launch` starts them, and the first speaks for all."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The others wait while the first scores the base or writes a checkpoint; a process that is gone is noticed at once
# all the same, since its connection closes.
TIMEOUT = datetime.timedelta(days=7)


def launched() -> bool:
    """Whether this process is one of several, rather than the one that starts them."""
    return "LOCAL_RANK" in os.environ


def first() -> bool:
    """Whether this process writes the events, the checkpoints and what is made. The only one always does."""
    return int(os.environ.get("RANK", "0")) == 0


def launch(run_dir: Path, devices: int) -> None:
    """Become `accelerate launch`, which starts one process a device. Does not return.

    The same process goes on under another program, so it still dies with its supervisor (PR_SET_PDEATHSIG survives
    execve(2)), and the processes it starts die with it. Without a GPU they speak over gloo.
    """
    os.environ["TUNEBOOK_SUPERVISOR"] = str(os.getpid())
    words = [
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(devices), "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        "-m", "engine.train", str(run_dir),
    ]  # fmt: skip
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *words])  # noqa: S606 - a list, never a shell


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


class Silence:
    """The event log of a process that is not the first."""

    def append(self, event: Any) -> None:
        """Say nothing: the first process says the same."""
