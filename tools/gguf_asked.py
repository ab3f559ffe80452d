"""python -m tools.gguf_asked FILE STEPS: what a GGUF file answers in llama.cpp, greedily; on stdin [[ids], ...] as JSON, on
stdout {"logits": [[of the token after each question]], "answers": [[ids]]}. All is computed in 32 bits that the file allows.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy

from engine.gguf import bindings, llama_cpp
from engine.processes import PROJECT_DIR

WINDOW = 512


def ask(file: Path, questions: list[list[int]], steps: int) -> dict[str, Any]:
    """Ask a file in a process of its own, as an error in C ends whoever asks. Raises ValueError with what it said last."""
    done = subprocess.run(  # noqa: S603 - a list, no shell
        [sys.executable, "-m", "tools.gguf_asked", str(file), str(steps)],
        cwd=PROJECT_DIR, input=json.dumps(questions), capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower() or "GGML_ASSERT" in line]
        raise ValueError((said or [str(done.returncode)])[0].rpartition("/")[2][:200])
    return json.loads(done.stdout)


def answers(library: Any, model: Any, questions: list[list[int]], steps: int) -> dict[str, Any]:
    """Answer each question from an empty memory."""
    settings = library.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = WINDOW
    settings.n_threads = settings.n_threads_batch = os.cpu_count() or 1
    settings.type_k = settings.type_v = 0  # 32 bits
    settings.flash_attn_type = 0  # off
    context = library.llama_init_from_model(model, settings)
    if not context:
        raise SystemExit("error: no context")
    words = library.llama_model_get_vocab(model)
    size = library.llama_vocab_n_tokens(words)
    found: dict[str, Any] = {"logits": [], "answers": []}
    for question in questions:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        said: list[int] = []
        given = question
        for step in range(steps):
            ids = (ctypes.c_int32 * len(given))(*given)
            if library.llama_decode(context, library.llama_batch_get_one(ids, len(given))):
                raise SystemExit("error: it does not decode")
            logits = numpy.ctypeslib.as_array(library.llama_get_logits_ith(context, -1), (size,))
            if step == 0:
                found["logits"].append(logits.tolist())
            said.append(int(logits.argmax()))
            if library.llama_vocab_is_eog(words, said[-1]):
                break
            given = said[-1:]
        found["answers"].append(said)
    return found


def main() -> None:
    there = llama_cpp.found()
    if there is None or there.bindings is None or there.libraries is None:
        raise SystemExit("error: make gguf first")
    library = bindings.load(there.bindings, there.libraries)
    settings = library.llama_model_default_params()
    settings.use_extra_bufts = False  # no weights laid out anew in other digits
    model = library.llama_model_load_from_file(sys.argv[1].encode(), settings)
    if not model:
        raise SystemExit("error: it is not read")
    print(json.dumps(answers(library, model, json.loads(sys.stdin.read()), int(sys.argv[2]))))


if __name__ == "__main__":
    main()
