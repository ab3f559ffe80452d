"""Where llama.cpp lies on this machine: what `make gguf` built of it, or a folder that somebody named.

https://github.com/ggml-org/llama.cpp: its converter makes a GGUF file of a model, its library quantises and asks one, its
server answers with one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

# A folder in the layout of `make gguf`, or a checkout of llama.cpp that was built in build/.
NAMED_BY = "LLAMA_CPP_DIR"


class LlamaCpp(NamedTuple):
    """The parts of llama.cpp that a folder has; None for one that it lacks. `libraries` is the folder of its libraries,
    `bindings` the one that Python finds the package llama_cpp in, which calls them."""

    folder: Path
    converter: Path | None
    libraries: Path | None
    server: Path | None
    bindings: Path | None = None


def built_at() -> Path:
    """Return the folder that `make gguf` fills: it belongs to this Python's environment."""
    return Path(sys.prefix) / "llama.cpp"


def found(named: str | None = None) -> LlamaCpp | None:
    """Return what there is in the folder `named`, else in the one of LLAMA_CPP_DIR, else in what `make gguf` built; None
    where that holds no part of llama.cpp."""
    name = named or os.environ.get(NAMED_BY)
    folder = Path(os.path.expanduser(name)).absolute() if name else built_at()
    there = LlamaCpp(
        folder,
        _file(folder, "convert_hf_to_gguf.py"),
        next((p.parent for p in (_file(folder, f"{d}/{_library()}") for d in ("lib", "build/bin")) if p), None),
        next((p for p in (_file(folder, f"{d}/{_program()}") for d in ("bin", "build/bin")) if p), None),
        folder / "python" if _file(folder, "python/llama_cpp/llama_cpp.py") else None,
    )
    return there if any(there[1:4]) else None


def _file(folder: Path, name: str) -> Path | None:
    path = folder / name
    return path if path.is_file() else None


def _library() -> str:
    return {"darwin": "libllama.dylib", "win32": "llama.dll"}.get(sys.platform, "libllama.so")


def _program() -> str:
    return "llama-server.exe" if sys.platform == "win32" else "llama-server"
