"""What llama.cpp makes of which architecture: docs/gguf.md, of a tiny random model of each. `make gguf-architectures`.

Each is converted to 16 bits, and asked by llama.cpp and by transformers, whose weights are rounded to 16 bits too. All have
the starter's tokens, which are written the same way for each: `python -m tools.gguf_architectures LLAMA_CPP FOLDER OUTFILE`.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine import processes
from engine.gguf import llama_cpp
from tools import gguf_asked, tables
from tools.architectures import ARCHITECTURES, Architecture, make

PAGE = processes.PROJECT_DIR / "docs" / "gguf.md"
QUESTIONS = ("What is the capital of France?", "The opposite of hot is", "Two plus two is", "a b c d e f g")
STEPS = 8
# Room for tokens that the tokenizer class of an architecture adds to the starter's.
VOCABULARY = 1040
# llama.cpp scales Gemma's attention by the size of a head, as the real ones do, leaves these no such room, and parts the
# positions of Qwen3.5 as in a head of the real size.
_SCALED = {"query_pre_attn_scalar": 16}
MORE: dict[str, dict[str, int]] = {
    "gemma2": _SCALED,
    "gemma3": {**_SCALED, "vocab_size": 1024},
    "gemma3_text": {**_SCALED, "vocab_size": 1024},
    "gemma4_text": {"vocab_size": 1024},
    "qwen3_5_text": {"head_dim": 256},
    "qwen3_moe": {"norm_topk_prob": True},
}
# ggml multiplies 16-bit weights with inputs that it rounds to 16 bits as well.
ALLOWED = 0.01


def converted(there: llama_cpp.LlamaCpp, folder: Path, file: Path) -> None:
    """Convert a folder. Raises ValueError with the converter's last words."""
    done = subprocess.run(  # noqa: S603 - a list, no shell
        [sys.executable, "-m", "tools.gguf_architectures", str(there.folder), str(folder), str(file)],
        cwd=processes.PROJECT_DIR, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode or not file.is_file():
        told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        refusal = next((one["refused"] for one in told if "refused" in one), "")
        said = [line.partition(":hf-to-gguf:")[2] or line for line in done.stderr.splitlines() if line.strip()]
        raise ValueError(refusal or (said[-1] if said else "?"))


def convert() -> int:
    """Convert as the engine does, but for the tokens."""
    from engine.train import gguf

    sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/gguf-py"]
    conversion: Any = importlib.import_module("conversion")
    known = conversion.get_model_class

    def with_plain_tokens(*which: Any, **how: Any) -> Any:
        found = known(*which, **how)
        found.set_vocab = lambda self: self._set_vocab_gpt2()
        return found

    conversion.get_model_class = with_plain_tokens
    sys.argv += ["f16", "gpt-2"]
    return gguf.main()


def row(one: Architecture, there: llama_cpp.LlamaCpp, scratch: Path) -> list[str]:
    """One line of the table."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sizes = {**(one.more or {}), "vocab_size": VOCABULARY, **MORE.get(one.kind, {})}
    folder, file = make(one._replace(more=sizes), scratch / one.kind / "model"), scratch / f"{one.kind}.gguf"
    told = [one.known_as, f"`{one.kind}`"]
    try:
        converted(there, folder, file)
    except ValueError as error:
        return [*told, f"no: {' '.join(str(error).split())[:120]}", "", ""]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    questions = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in QUESTIONS]
    try:
        found = gguf_asked.ask(file, questions, STEPS)
    except ValueError as error:
        return [*told, "yes", f"no: {' '.join(str(error).split())[:120]}", ""]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).float().eval()
    worst, same = 0.0, 0
    for question, logits, answer in zip(questions, found["logits"], found["answers"], strict=True):
        with torch.no_grad():
            ours = model(torch.tensor([question])).logits[0, -1]
            said = question + answer[:-1]
            right = model(torch.tensor([said])).logits[0, len(question) - 1 :].argmax(-1).tolist()
        theirs = torch.tensor(logits)[: len(ours)]
        worst = max(worst, ((ours - theirs).abs().max() / ours.abs().max()).item())
        same += right == answer
    return [*told, "yes", f"{'yes' if worst <= ALLOWED else 'no'}: {worst:.1e}", f"{same} of {len(questions)}"]


HEADER = ("Known by", "`model_type`", "Converted", "Same logits (largest difference)", "Same greedy answers")


def words() -> list[str]:
    """What stands above the table."""
    return [
        "# What llama.cpp makes of which architecture",
        "",
        f"Made by `make gguf-architectures` with transformers {version('transformers')} and the llama.cpp that `make gguf`",
        "builds, on a processor: a tiny random model of each with the starter's tokenizer is converted to 16 bits and asked",
        f"four questions, {STEPS} tokens each. The difference of the first token's logits is a share of the largest; up to",
        f"{ALLOWED:.0%} comes of 16 bits. Random weights make near ties, so that an answer may differ where logits agree.",
        "Each model's tokens are written as GPT-2's here, so that this says nothing of tokenizers: families whose",
        "converter wants a `tokenizer.model` (Gemma 1 and 2, Phi-3) or a Llama tokenizer (Gemma 4) are refused, in words,",
        "where the folder has none.",
    ]


def main() -> None:
    if sys.argv[1:]:
        raise SystemExit(convert())
    there = llama_cpp.found()
    if there is None:
        raise SystemExit("make gguf first")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for one in ARCHITECTURES:
            rows.append(row(one, there, Path(scratch)))
            print(rows[-1], file=sys.stderr, flush=True)
    tables.write(PAGE, tables.page(words(), HEADER, rows), __doc__)


if __name__ == "__main__":
    main()
