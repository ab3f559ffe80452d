"""Failures in words: exit status, signal, exception or last lines -> what kind it is, what happened, what to do.

A kind is one word: oom (out of memory), disk, data, model, access (to a model), network, version, driver, diverged, killed,
setting, bug. `remedies` names the changes of a spec that are safe to try for a kind.
"""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from typing import Any, NamedTuple

from engine.events import Failed
from engine.render import NotWritten
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


# What an exception's text, or the last lines of a log, say of the kind; the first that is found counts. `name` is the
# exception's own. Sources: torch 2.13 (c10/cuda), the CUDA runtime's error names, huggingface_hub 1.x (errors.py), urllib3.
_SIGNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    # torch.save only notes that fewer bytes were written than it gave (caffe2/serialize/inline_container.cc).
    ("disk", "run-disk-full", ("No space left on device", "Disk quota exceeded", "the disk is full", "unexpected pos ",
                               "PytorchStreamWriter failed writing")),
    ("oom", "run-oom-gpu", ("OutOfMemoryError", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")),
    ("oom", "run-oom", ("MemoryError", "allocate memory", "std::bad_alloc", "out of memory")),
    ("access", "run-access", ("GatedRepoError", "gated repo", "401 Client Error", "403 Client Error")),
    ("data", "run-token-rows", ("index out of range in self",)),  # torch's embedding, on a processor
    (
        "access", "run-not-found",
        ("RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError", "404 Client Error"),
    ),
    (
        "network", "run-network",
        ("OfflineModeIsEnabled", "NameResolutionError", "name resolution", "ConnectionError", "ConnectTimeout",
         "ReadTimeout", "Max retries exceeded", "Connection refused", "Network is unreachable"),
    ),
    (
        "killed", "run-peer",
        ("gloo/transport", "Connection closed by peer", "ChildFailedError", "received by PID"),
    ),
    (
        "driver", "run-driver",
        ("NVIDIA driver", "no kernel image is available", "CUDA driver version", "CUDA error", "cudaGetDeviceCount",
         "CUDNN_STATUS", "NCCL error", "libcuda.so", "device-side assert"),
    ),
    (
        "version", "run-version",
        ("ModuleNotFoundError", "ImportError", "undefined symbol", "DistributionNotFound", "incompatible with"),
    ),
)  # fmt: skip


def _kind(text: str) -> tuple[str, str] | None:
    lower = text.lower()
    return next(((kind, rule) for kind, rule, signs in _SIGNS if any(s.lower() in lower for s in signs)), None)


def from_exception(error: BaseException) -> Failed:
    """Classify an exception of the child or the supervisor."""
    if isinstance(error, RunRefused):
        message, fix = error.problem.texts
        return Failed(kind=error.problem.rule.partition("-")[0], message=message, fix=fix)
    if isinstance(error, NotWritten):  # a text that the base's chat template refuses
        message, fix = error.problem.texts
        return Failed(kind="data", message=message, fix=fix)
    name, text = type(error).__name__, str(error).strip() or type(error).__name__
    short = f"{name}: {text.splitlines()[0]}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _failed("disk", "run-disk-full")
    if found := _kind(f"{name}: {text}"):
        kind, rule = found
        return _failed(kind, rule, error=short)
    return _failed("bug", "run-bug", error=short)


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


def from_exit(returncode: int | None, log_tail: str, *, out_of_memory: bool = False) -> Failed:
    """Classify a child that ended without a last event, from its exit status (negative: a signal) and its log.

    `out_of_memory` says that the kernel's count of processes killed for want of memory rose meanwhile.
    """
    if returncode == -signal.SIGKILL:
        return _failed("oom", "run-oom-killed") if out_of_memory else _failed("killed", "run-killed")
    lines = [line for line in log_tail.splitlines() if line.strip()]
    # The last lines are where an exception is named; a warning further up explains nothing.
    found = _kind("\n".join(lines[-5:]))
    if found is not None:
        kind, rule = found
        return _failed(kind, rule, error=next((line for line in reversed(lines[-5:]) if _kind(line)), lines[-1]))
    if returncode is not None and returncode < 0:
        return _failed("killed", "run-signal", signal=_signal_name(-returncode))
    return _failed("bug", "run-bug", error=lines[-1] if lines else f"exit status {returncode}")


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
