"""The two programs that can answer for a run, and how each is started and asked: llama.cpp's server, with a GGUF file of the
run, and transformers' own, with its whole model.

Each listens on a unix socket in a folder that its user alone may enter, and asks for a secret of its own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from engine import processes
from engine.export import artifacts
from engine.gguf import kinds, llama_cpp
from engine.runs import environment
from engine.words import t
from engine.workspace import Workspace, read_object

# What transformers' server wants beside transformers (transformers 5.17, is_serve_available): the extra [serve].
MODULES = ("fastapi", "openai", "pydantic", "uvicorn")
DEFAULT_TOKENS = 1024
# A prompt that was read stays in memory for the next question, up to so much; llama.cpp keeps 8 GiB where nothing is said.
CACHE_MIB = 256
# Variables that change what the programs do or listen on, were they set for something else.
_THEIRS = ("LLAMA_", "AIP_", "UVICORN_")


class Choice(NamedTuple):
    """A program that can answer for a run: with a GGUF `file`, of one quantization, or with the whole model."""

    program: Literal["llama.cpp", "transformers"]
    quantization: str | None = None
    file: Path | None = None

    @property
    def title(self) -> str:
        if self.program == "llama.cpp":
            return t("the GGUF file {name} by llama.cpp", name=(self.quantization or "").upper())
        return t("the whole model by transformers")


def choices(workspace: Workspace, run_id: str) -> list[Choice]:
    """Return what can answer for a run on this machine; the first does where nobody chooses."""
    found: list[Choice] = []
    built = llama_cpp.found()
    if built is not None and built.server is not None:
        files = {name: kinds.file_of(workspace.run_dir(run_id), name) for name in kinds.KINDS}
        found = [Choice("llama.cpp", name, path) for name, path in files.items() if path.is_file()]
    if all(importlib.util.find_spec(name) is not None for name in MODULES):
        found.append(Choice("transformers"))
    return found


def needed_bytes(workspace: Workspace, run_id: str, choice: Choice) -> int:
    """Return about how much memory the weights take; 0 where that is not known."""
    return choice.file.stat().st_size if choice.file is not None else artifacts.size_bytes(workspace, run_id) or 0


def begin(
    workspace: Workspace, run_id: str, choice: Choice, socket: Path, secret: str, slot: str, log: BinaryIO
) -> subprocess.Popen[Any]:
    """Start the program, which ends with this process. Raises OSError."""
    kept = {name: value for name, value in environment.of_any_run().items() if not name.startswith(_THEIRS)}
    settings = {
        **kept,
        **environment.of_cards((slot,)),
        "HF_HUB_OFFLINE": "1",
        "LLAMA_API_KEY": secret,
        "TUNEBOOK_SERVE_SECRET": secret,
    }
    how: dict[str, Any] = {
        "env": settings, "stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "cwd": processes.PROJECT_DIR,
        "preexec_fn": _die_with_us if sys.platform == "linux" else None,
    }  # fmt: skip
    return subprocess.Popen(_command(workspace, run_id, choice, socket, slot), **how)  # noqa: S603 - a list, no shell


def _command(workspace: Workspace, run_id: str, choice: Choice, socket: Path, slot: str) -> list[str]:
    if choice.program == "transformers":
        whole = artifacts.whole(workspace, run_id)
        device = {"cpu": "cpu", "mps": "mps"}.get(slot, "cuda")
        return [sys.executable, "-m", "engine.train.serve", str(whole), run_id, str(socket), device]
    built = llama_cpp.found()
    threads = max(1, (os.cpu_count() or 2) // 2)  # a run that trains needs the rest
    return [
        str(built.server if built is not None else None), "--model", str(choice.file), "--alias", run_id,
        "--host", str(socket), "--offline", "--no-ui", "--no-slots", "--no-mmproj", "--threads", str(threads),
        "--cache-ram", str(CACHE_MIB), "--temp", "0", "--top-k", "0", "--top-p", "1", "--min-p", "0",
    ]  # fmt: skip


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_us() -> None:
    """Ask Linux to end this process with the one that started it (prctl(2), PR_SET_PDEATHSIG = 1)."""
    if _libc is not None:
        _libc.prctl(1, signal.SIGKILL)


def asked(workspace: Workspace, run_id: str, choice: Choice, body: dict[str, Any]) -> dict[str, Any]:
    """Return a request as the program understands it, so that both answer alike: the likeliest answer where no temperature
    is asked for, else drawn from all that the model holds possible, and no answer without an end."""
    said = {"temperature": 0.0, "max_tokens": DEFAULT_TOKENS, **{name: v for name, v in body.items() if v is not None}}
    said["max_tokens"] = said.pop("max_completion_tokens", said["max_tokens"])
    said["model"] = run_id
    if choice.program == "transformers":
        # its own reading of a temperature leaves a model greedy that is so by itself
        own = read_object((artifacts.whole(workspace, run_id) or workspace.run_dir(run_id)) / "generation_config.json")
        said["generation_config"] = json.dumps({**own, "do_sample": said["temperature"] != 0, "top_k": 0})
    return said
