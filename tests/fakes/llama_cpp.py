"""A folder that is laid out as llama.cpp's, whose converter and bindings are plain Python: jobs go through it in moments.

lay_out(folder, ...) writes it; `converting` is put in the place of processes.start, so that the converter is this file,
run as `python -m tests.fakes.llama_cpp LLAMA_CPP FOLDER OUTFILE WHAT [PRE_TOKENIZER]`. What it does stands in says.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from engine import processes
from tests.gguf import files

MODEL_BYTES = 4096
# The bindings: a text's tokens are those of the tokenizer where the file's way is right, else the first is another one.
BINDINGS = """
import ctypes, json, os, time, types
from pathlib import Path
from engine.gguf import headers

FOLDER = Path(os.environ["LLAMA_CPP_LIB_PATH"]).parent
SAYS = json.loads((FOLDER / "says.json").read_text())

class _Value(ctypes.Structure):
    _fields_ = [("val_str", ctypes.c_char * 128)]

class llama_model_kv_override(ctypes.Structure):
    _fields_ = [("tag", ctypes.c_int), ("key", ctypes.c_char * 128), ("value", _Value)]

class _Parameters(ctypes.Structure):
    _fields_ = [("nthread", ctypes.c_int32), ("ftype", ctypes.c_int)]

def llama_backend_init(): pass
def llama_model_default_params(): return types.SimpleNamespace(kv_overrides=None)
def llama_model_free(model): pass
def llama_model_get_vocab(model): return model
def llama_log_callback(function): return function
def llama_model_quantize_default_params(): return _Parameters()

def llama_log_set(function, data):
    global _hear
    _hear = function

def llama_model_load_from_file(path, parameters):
    from tokenizers import Tokenizer
    if parameters.kv_overrides is None:
        way = headers.read(Path(path.decode())).values["tokenizer.ggml.pre"]
    else:
        way = parameters.kv_overrides[0].value.val_str.decode()
    if way in SAYS.get("aborts", []):
        os.abort()
    return types.SimpleNamespace(way=way, tokenizer=Tokenizer.from_file(SAYS["tokenizer"]))

def llama_tokenize(vocabulary, text, size, found, room, special, parsed):
    ids = vocabulary.tokenizer.encode(text.decode(), add_special_tokens=False).ids
    if vocabulary.way != SAYS.get("right", "gpt-2"):
        ids = [0, *ids]
    found[: len(ids)] = ids
    return len(ids)

def llama_vocab_get_add_bos(vocabulary): return SAYS.get("begins", False)
def llama_vocab_is_eog(vocabulary, number): return number in SAYS.get("ends", [1])

def llama_model_quantize(source, target, parameters):
    if "writing" in SAYS:
        Path(SAYS["writing"]).write_text(str(os.getpid()))
        Path(target.decode()).write_bytes(b"half")
        time.sleep(60)
    if "quantizing" in SAYS:
        _hear(2, SAYS["quantizing"].encode() + b"\\n", None)
        return 1
    for at in (1, 2):
        _hear(2, f"[   {at}/   2] output.weight".encode(), None)
    Path(target.decode()).write_bytes(Path(source.decode()).read_bytes() + b" " * 64)
    return 0
"""


def lay_out(folder: Path, tokenizer: Path, **says: Any) -> Path:
    """Write the folder. `says`: the pre-tokenizer that is `right`, those that the library `aborts` at, ids that are `ends`,
    whether a text `begins` with a token, what the converter is `refusing` and whether the tokenizer is `unknown` to it,
    what fails in `quantizing`, or a file for its process to be named in, which goes on `writing`, a `template` in place of
    the model's, a number of the `signal` that ends the converter."""
    (folder / "lib").mkdir(parents=True)
    (folder / "python" / "llama_cpp").mkdir(parents=True)
    for name in ("libllama.so", "libllama.dylib", "llama.dll"):
        (folder / "lib" / name).touch()
    (folder / "convert_hf_to_gguf.py").write_text("raise SystemExit('the fake stands in tests/fakes/llama_cpp.py')")
    (folder / "python" / "llama_cpp" / "llama_cpp.py").write_text(BINDINGS)
    (folder / "says.json").write_text(json.dumps({"tokenizer": str(tokenizer), **says}))
    return folder


def converting(start: Any = processes.start) -> Any:
    """Return what to put in the place of processes.start, so that the converter is this file."""

    def started(module: str, *arguments: str, **how: Any) -> Any:
        return start("tests.fakes.llama_cpp" if module == "engine.train.gguf" else module, *arguments, **how)

    return started


def main() -> int:
    llama_cpp, folder, outfile, what, *way = sys.argv[1:]
    says = json.loads((Path(llama_cpp) / "says.json").read_text())
    if says.get("unknown"):
        print(json.dumps({"unknown": True}))
    if "refusing" in says:
        print(json.dumps({"refused": says["refusing"]}))
        return 1
    words = json.loads((Path(folder) / "tokenizer.json").read_text())
    tokens = sorted(words["model"]["vocab"], key=words["model"]["vocab"].__getitem__)
    kinds = [1] * len(tokens)
    for one in words["added_tokens"]:
        kinds[one["id"]] = 3
    template = says.get("template", (Path(folder) / "chat_template.jinja").read_text())
    values: dict[str, Any] = {
        "general.architecture": "llama", "tokenizer.ggml.pre": way[0] if way else "gpt-2",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds, "tokenizer.chat_template": template,
    }  # fmt: skip
    print(json.dumps({"done": MODEL_BYTES // 2, "total": MODEL_BYTES}), flush=True)
    Path(outfile).write_bytes(
        files.header(values, [("output.weight", (32, 32), 0)], MODEL_BYTES)[: -1 if what else None]
    )
    if "signal" in says:
        os.kill(os.getpid(), signal.Signals(says["signal"]))
    Path(outfile).write_bytes(files.header(values, [("output.weight", (32, 32), 0)], MODEL_BYTES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
