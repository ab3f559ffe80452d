"""What a test lets happen to a real child, named by TUNEBOOK_TEST_FAULT: killed or out of something, at one point.

`often` writes a checkpoint at every evaluation, as a long run does. The others strike at the point they are named for.
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import msgspec

MIB = 2**20
AT_STEP = 8


def die(*_: Any, **__: Any) -> None:
    """Be killed here, as by the kernel."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_with_supervisor(*_: Any, **__: Any) -> None:
    """Be killed together with the supervisor, as when a machine goes down."""
    found = msgspec.json.decode((Path(os.environ["TUNEBOOK_TEST_RUN"]) / "pid.json").read_bytes())
    os.kill(found["pid"], signal.SIGKILL)
    die()


def no_room(*_: Any, **__: Any) -> None:
    """Write to a disk that has no room: the kernel's own error."""
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def little_memory() -> None:
    """Leave this process hardly more address space than it has, and let it want more: the kernel refuses."""
    import torch

    held_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit_bytes = held_pages * resource.getpagesize() + MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    torch.empty(256 * MIB)


def install(names: str, run_dir: str) -> None:
    """Prepare the faults that are named, separated by commas."""
    from transformers import Trainer
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from engine.train import callback, load
    from engine.train.scoring import scores

    os.environ["TUNEBOOK_TEST_RUN"] = run_dir
    for name in names.split(","):
        match name:
            case "often":
                callback.CHECKPOINT_EVERY_S = 0.0
            case "loading":
                load.load = die
            case "training":
                _at_step(callback, lambda _: die())
            case "memory":
                _at_step(callback, lambda _: little_memory())
            case "events":
                _at_step(callback, lambda log: os.dup2(os.open("/dev/full", os.O_WRONLY), log._file))
            case "no-number":
                _at_step(callback, None)
            case "checkpoint":
                _second_time(Trainer, "_save_optimizer_and_scheduler", die)
            case "machine":
                _second_time(Trainer, "_save_optimizer_and_scheduler", die_with_supervisor)
            case "checkpoint-disk":
                _second_time(Trainer, "_save_optimizer_and_scheduler", no_room)
            case "saving":
                _of_the_result(PreTrainedTokenizerBase, die)
            case "saving-disk":
                _of_the_result(PreTrainedTokenizerBase, no_room)
            case "evaluating":
                scores.ask_all = die
            case _:
                raise ValueError(f"no such fault: {name}")


def _at_step(callback: Any, strike: Any) -> None:
    usual = callback.EventCallback.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == AT_STEP:
            if strike is None:
                for parameter in more["model"].parameters():
                    parameter.data.fill_(float("nan"))
            else:
                strike(self._log)
        usual(self, args, state, control, **more)

    callback.EventCallback.on_step_end = on_step_end


def _second_time(owner: Any, name: str, strike: Any) -> None:
    """Let the first checkpoint be, and strike in the middle of the second: its weights are written, the rest is not."""
    usual, calls = getattr(owner, name), []

    def struck(self: Any, *given: Any) -> Any:
        calls.append(name)
        if len(calls) == 2:
            strike()
        return usual(self, *given)

    setattr(owner, name, struck)


def _of_the_result(tokenizer: Any, strike: Any) -> None:
    """Strike when the weights of what was made are written and its tokenizer is not."""
    usual = tokenizer.save_pretrained

    def save_pretrained(self: Any, folder: Any, *given: Any, **more: Any) -> Any:
        if Path(folder).parent == Path(os.environ["TUNEBOOK_TEST_RUN"]):
            strike()
        return usual(self, folder, *given, **more)

    tokenizer.save_pretrained = save_pretrained
