"""A job that makes something to take along: what is wanted, how far it is, and whether the disk has room."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from engine import machine, processes
from engine.estimate import memory
from engine.runs import needs
from engine.words import Problem, Text, t
from engine.workspace import nearest

STATE = needs.EXPORTED
SPARE_BYTES = 50 * 2**20
# Before, what is left of a phase is a guess.
LEAST_TOLD_S = 2.0


def phase_words() -> dict[str, str]:
    """Return what each phase of a job is called."""
    return {
        "starting": t("Starting"),
        "loading": t("Loading the base"),
        "merging": t("Merging"),
        "saving": t("Saving"),
        "comparing": t("Comparing it with what was trained"),
        "converting": t("llama.cpp is converting"),
        "cutting": t("Finding out how llama.cpp must cut texts"),
        "quantizing": t("llama.cpp is quantising"),
        "reading": t("Reading the file back"),
        "asking": t("The file is there; measuring what it lost"),
        "creating": t("Ollama is taking it in"),
        "uploading": t("Uploading"),
        "committing": t("Publishing all files at once"),
    }


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be made. `to` is a folder that is not there yet; None keeps it beside the run. `quantization` is a GGUF
    file's, which is asked what it lost unless `ask` is off, and goes into Ollama where `into_ollama`; `checkout` is a folder
    of llama.cpp in place of the one of `make gguf`, `repository` the hub's owner/name."""

    what: Literal["merged", "gguf", "ask", "ollama", "push"]
    to: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: Literal["f16", "q8_0", "q4_k_m"] = "q4_k_m"
    ask: bool = True
    into_ollama: bool = False
    checkout: str | None = None
    repository: str | None = None
    public: bool = False
    only_adapter: bool = False


class State(msgspec.Struct, kw_only=True):
    """How far a job is: its phase, the bytes done in it, when the job and the counting of these bytes began
    (time.monotonic()), and at the end where the result lies (by its name alone when that is beside the run) or what went
    wrong.

    A token is never part of it.
    """

    job: Job
    phase: str = "starting"
    done_bytes: int = 0
    total_bytes: int = 0
    made: str | None = None
    failure: str | Text | None = None
    process: processes.Identity | None = None
    began_s: float = 0.0
    counted_from_s: float = 0.0

    @property
    def ended(self) -> bool:
        return self.made is not None or self.failure is not None

    @property
    def share(self) -> float:
        """How much of the phase is done; 0 where it does not tell."""
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else 0.0

    def left_s(self, now_s: float) -> float | None:
        """Return how long the phase still takes if it goes on so; None where that cannot be told yet."""
        took_s = now_s - self.counted_from_s
        return took_s * (1 - self.share) / self.share if self.share and took_s > LEAST_TOLD_S else None


def memory_too_small(needed_bytes: int) -> Problem | None:
    """Return what to say when main memory has not so much free: the kernel would end the process halfway."""
    free = machine.free_bytes()
    if free >= needed_bytes:
        return None
    shown = {"free": memory.size_words(free), "needed": memory.size_words(needed_bytes)}
    return Problem(rule="export-memory", parameters=dict(shown))


Told = Callable[[State], None]


def too_small(target: Path, needed_bytes: int) -> Problem | None:
    """Return what to say when a disk has not so much room, and some to spare."""
    there = nearest(target)
    free = shutil.disk_usage(there).free
    if free >= needed_bytes + SPARE_BYTES:
        return None
    shown = {"free": free // 2**20, "needed": (needed_bytes + SPARE_BYTES) // 2**20, "folder": str(there)}
    return Problem(rule="export-disk", parameters=shown)
