"""llama.cpp's libraries, called from Python: the tokens that a GGUF file makes of texts, and files with fewer bits.

Only processes of their own use this (tokens.py, quantize.py): an assertion in C ends whoever called. A file that cannot be
read raises ValueError.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.gguf.kinds import KINDS

_STRING = 3  # enum llama_model_kv_override_type
_ON_IT = re.compile(rb"\[\s*(\d+)/\s*(\d+)\]")


def load(bindings: Path, libraries: Path) -> Any:
    """Return the plain bindings, a module whose functions are llama.h's. The package's own __init__ is left out: it wants
    other packages and offers what is not needed."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(libraries)
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(bindings / "llama_cpp")]
    sys.modules["llama_cpp"] = package
    library = importlib.import_module("llama_cpp.llama_cpp")
    library.llama_backend_init()
    return library


class Vocabulary:
    """The tokens of a GGUF file, as llama.cpp reads them."""

    def __init__(self, library: Any, vocabulary: Any):
        self._library, self._vocabulary = library, vocabulary

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text that holds its special tokens already."""
        said = text.encode()
        room = len(said) + 16
        found = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(self._vocabulary, said, len(said), found, room, False, True)
        if count < 0:
            raise ValueError(f"{-count} tokens of {len(said)} bytes")
        return list(found[:count])

    @property
    def begins(self) -> bool:
        """Whether a text is given a beginning-of-text token."""
        return bool(self._library.llama_vocab_get_add_bos(self._vocabulary))

    def ends(self, number: int) -> bool:
        """Whether an answer is over at a token."""
        return bool(self._library.llama_vocab_is_eog(self._vocabulary, number))


@contextmanager
def vocabulary(library: Any, file: Path, pre_tokenizer: str | None = None) -> Iterator[Vocabulary]:
    """Read the tokens of a file, as if it named another pre-tokenizer where one is given. Raises ValueError."""
    parameters = library.llama_model_default_params()
    parameters.vocab_only = True
    if pre_tokenizer is not None:
        overrides = (library.llama_model_kv_override * 2)()  # the last one, which is empty, ends the list
        overrides[0].tag, overrides[0].key = _STRING, b"tokenizer.ggml.pre"
        overrides[0].value.val_str = pre_tokenizer.encode()
        parameters.kv_overrides = overrides
    model = library.llama_model_load_from_file(str(file).encode(), parameters)
    if not model:
        raise ValueError(f"{file.name} cannot be read")
    try:
        yield Vocabulary(library, library.llama_model_get_vocab(model))
    finally:
        library.llama_model_free(model)


def quantize(
    library: Any, source: Path, target: Path, kind: str, threads: int, told: Callable[[int, int], None]
) -> None:
    """Write `source`, in 16 bits, as `target` in the kind of kinds.KINDS, telling which tensor of how many it is at. Raises
    ValueError."""

    @library.llama_log_callback
    def hear(_level: int, text: bytes, _data: Any) -> None:
        sys.stderr.buffer.write(text)
        at = _ON_IT.match(text)
        if at is not None:
            told(int(at[1]), int(at[2]))

    library.llama_log_set(hear, ctypes.c_void_p(0))
    parameters = library.llama_model_quantize_default_params()
    parameters.nthread, parameters.ftype = threads, KINDS[kind].number
    if library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)):
        raise ValueError(f"{source.name} could not be quantised")
