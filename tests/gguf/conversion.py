"""Write tiny GGUF files and read each through the same code as the job's child, in one process of its own: what came of
it as JSON. For tests alone.

    python -m tests.gguf.conversion FOLDER
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import msgspec

from engine import starter
from engine.data import jobs
from engine.gguf import headers
from tests.gguf import files

CASES = (("llama", "F32"), ("llama", "Q8_0"), ("llama-31", "F16"), ("qwen2", "F16"), ("qwen3", "BF16"))


def read(folder: Path, path: Path, **how: Any) -> jobs.Result:
    """Carry out a job as the pages and the command line start it."""
    from engine.train import read_gguf

    job = folder / f"job-{path.stem}-{len(how)}"
    job.mkdir()
    call = jobs.Call(workspace=str(folder / "home"), gguf=str(path), **how)
    (job / "call.json").write_bytes(msgspec.json.encode(call))
    jobs.main(job, read_gguf.carry_out)
    return msgspec.json.decode((job / "result.json").read_bytes(), type=jobs.Result)


def differs(model: Any, folder: str) -> float:
    """The largest difference between the logits of the model that was written and of the one that was read."""
    import torch
    import transformers

    again: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(3, 67)[None]
    with torch.inference_mode():
        return float((model(ids).logits - again(ids).logits).abs().max())


def main() -> None:
    import transformers

    folder, told = Path(sys.argv[1]), {}
    # what lies beside a file is none of it
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder / "elsewhere")}))
    ours: Any = transformers.AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    asked = [{"role": "user", "content": "What is 12 plus 7?\n\n1."}, {"role": "assistant", "content": "It is 19."}]
    wanted = ours.apply_chat_template(asked, return_dict=False)
    for architecture, kind in CASES:
        name, _, stretched = architecture.partition("-")
        path, model = files.tiny(folder, name, kind, stretch=8.0 if stretched else None)
        result = read(folder, path)
        case: dict[str, Any] = {"problem": result.problem.sentence if result.problem else None, "folder": result.folder}
        if result.folder is not None:
            made: Any = transformers.AutoTokenizer.from_pretrained(result.folder)
            case["differs"] = differs(model, result.folder)
            case["same_ids"] = made.apply_chat_template(asked, return_dict=False) == wanted
            case["end"] = made.eos_token
            case["config"] = json.loads((Path(result.folder) / "config.json").read_text())
            case["ends"] = transformers.GenerationConfig.from_pretrained(result.folder).eos_token_id
        told[f"{architecture} {kind}"] = case
    other, _ = files.tiny(folder, "llama", "F16", pre="made-up")
    refused, taken = read(folder, other), read(folder, other, tokenizer=str(starter.MODEL_DIR))
    told["other rule"] = {"problem": refused.problem and refused.problem.rule, "folder": taken.folder}
    lacking = read(folder, without(folder / "tiny-llama-F32.gguf", "blk.1.attn_q.weight"))
    told["lacking"] = {"problem": lacking.problem and lacking.problem.sentence}
    far, _ = files.tiny(folder, "llama", "F16", stretch=32.0)
    factors = headers.read(far)
    assert factors.stretched is not None
    with far.open("r+b") as file:
        file.seek(factors.data_at + factors.stretched.offset)
        file.write(struct.pack("<8f", *range(1, 9)))
    told["other positions"] = {"problem": (found := read(folder, far).problem) and found.rule}
    print(json.dumps(told))


def without(path: Path, name: str) -> Path:
    """Rename a tensor of a file, so that its architecture lacks it."""
    other = path.with_stem(f"{path.stem}-lacking")
    other.write_bytes(path.read_bytes().replace(files.text(name), files.text(f"{name[:-2]}xx")))
    return other


if __name__ == "__main__":
    main()
