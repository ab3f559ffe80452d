"""What each kind of folder is called and what can be done with it: docs/folders.md, made of an example of each kind, of
headers alone, as engine/models says of it. `make folders`.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import processes
from engine.models import bases, folders
from engine.workspace import Workspace
from tools import tables

PAGE = processes.PROJECT_DIR / "docs" / "folders.md"
VOCABULARY, HIDDEN = 8, 4
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1, "hidden_size": HIDDEN,
    "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
}  # fmt: skip
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "owner/base", "task_type": "CAUSAL_LM"}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 3744208\n"
_BYTES = {"F32": 4, "U8": 1, "I8": 1}
Tensors = dict[str, tuple[str, list[int]]]
EMBEDDING: Tensors = {"model.embed_tokens.weight": ("F32", [VOCABULARY, HIDDEN])}


def safetensors(tensors: Tensors) -> bytes:
    """A safetensors file of zeros."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = _BYTES[dtype]
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def write(folder: Path, files: dict[str, Any]) -> Path:
    """Write files into a folder: bytes as they are, text, and anything else as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        path.write_bytes(content)
    return folder


def tokenizer(*added: str) -> dict[str, Any]:
    """The parts of a tokenizer.json that name its tokens: a letter for each row of the embedding, and those added."""
    more = [{"id": VOCABULARY + at, "content": text} for at, text in enumerate(added)]
    return {"model": {"vocab": {chr(97 + at): at for at in range(VOCABULARY)}}, "added_tokens": more}


def model(**more: Any) -> dict[str, Any]:
    """The files of a model with nothing wrong."""
    return {"config.json": CONFIG | more, "model.safetensors": safetensors(EMBEDDING), "tokenizer.json": tokenizer()}


def adapter(**more: Any) -> dict[str, Any]:
    """The files of an adapter."""
    lora: Tensors = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ("F32", [2, HIDDEN])}
    return {"adapter_config.json": ADAPTER | more, "adapter_model.safetensors": safetensors(lora)}


def without(files: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: content for name, content in files.items() if name not in names}


def inside(folder: str, files: dict[str, Any]) -> dict[str, Any]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def _card(*tags: str) -> str:
    return "---\ntags:\n" + "".join(f"- {tag}\n" for tag in tags) + "---\n"


_INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
_BARE = without(model(), "model.safetensors")
_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}

# What a person may have, and the files that tell it.
EXAMPLES: dict[str, Callable[[], dict[str, Any]]] = {
    "a model": model,
    "a model, with an adapter beside it": lambda: model() | adapter(),
    "a model in 4 bits (bitsandbytes)": lambda: model(quantization_config=_BITS),
    "a model in 4 bits (GPTQ; AWQ, FP8 and others alike)": lambda: model(
        quantization_config={"quant_method": "gptq", "bits": 4}
    ),
    "a model in 4 bits (MLX)": lambda: model(quantization={"bits": 4, "group_size": 64}),
    "a model in two layouts (consolidated and model)": lambda: (
        model() | {"consolidated.safetensors": safetensors(EMBEDDING)}
    ),
    "a model in its makers' layout only": lambda: {
        "consolidated.safetensors": safetensors(EMBEDDING),
        "params.json": {},
    },
    "a checkpoint": lambda: model() | {"trainer_state.json": {"global_step": 500}, "optimizer.pt": b"PK\x03\x04"},
    "the output folder of a trainer": lambda: inside("checkpoint-500", model()) | inside("checkpoint-1000", model()),
    "the output folder of a trainer of adapters": lambda: inside("checkpoint-500", adapter()),
    "an adapter": adapter,
    "an adapter by Unsloth": lambda: adapter() | {"README.md": _card("unsloth")},
    "an adapter by LLaMA-Factory": lambda: adapter() | {"README.md": _card("llama-factory", "lora")},
    "an adapter by Axolotl, with a config.json": lambda: (
        adapter() | {"README.md": _card("axolotl"), "config.json": CONFIG}
    ),
    "an adapter that names no base": lambda: adapter(base_model_name_or_path=None),
    "an adapter that is neither LoRA nor OFT": lambda: adapter(peft_type="IA3"),
    "an adapter without its weights": lambda: without(adapter(), "adapter_model.safetensors"),
    "an adapter as a pickle": lambda: (
        without(adapter(), "adapter_model.safetensors") | {"adapter_model.bin": b"PK\x03\x04"}
    ),
    "an adapter by MLX": lambda: {
        "adapter_config.json": {"fine_tune_type": "lora"},
        "adapters.safetensors": safetensors(EMBEDDING),
    },
    "an adapter of a model that makes pictures (diffusers)": lambda: {
        "pytorch_lora_weights.safetensors": safetensors(EMBEDDING)
    },
    "a checkpoint by torchtune": lambda: model() | {"recipe_state.pt": b"PK\x03\x04"},
    "what DeepSpeed leaves": lambda: {
        "zero_to_fp32.py": "",
        "latest": "global_step10",
        "global_step10/mp_rank_00_model_states.pt": b"PK\x03\x04",
    },
    "what FSDP leaves": lambda: {
        "pytorch_model_fsdp_0/.metadata": b"",
        "pytorch_model_fsdp_0/__0_0.distcp": b"PK\x03\x04",
    },
    "what Megatron leaves": lambda: {
        "latest_checkpointed_iteration.txt": "100",
        "iter_0000100/mp_rank_00/model_optim_rng.pt": b"PK\x03\x04",
    },
    "a folder one level too high": lambda: inside("model", model()),
    "a folder of several models": lambda: inside("one", model()) | inside("two", model()),
    "a GGUF file in a folder": lambda: {"model.gguf": b"GGUF" + bytes(64)},
    "a clone without Git LFS": lambda: model() | {"model.safetensors": POINTER},
    "weights as pickles": lambda: _BARE | {"pytorch_model.bin": b"\x80\x04."},
    "weights of which a part is missing": lambda: (
        _BARE | {"model.safetensors.index.json": _INDEX, "model-00001-of-00002.safetensors": safetensors(EMBEDDING)}
    ),
    "weights in parts without their index": lambda: (
        _BARE | {"model-00001-of-00001.safetensors": safetensors(EMBEDDING)}
    ),
    "weights by another name": lambda: _BARE | {"weights.safetensors": safetensors(EMBEDDING)},
    "a config.json of another model": lambda: model(vocab_size=VOCABULARY + 2),
    "a tokenizer with more tokens than the model has rows": lambda: model() | {"tokenizer.json": tokenizer("<think>")},
    "a model for ONNX": lambda: {"config.json": CONFIG, "onnx/model.onnx": b"\x08"},
    "weights of TensorFlow": lambda: {"config.json": CONFIG, "tf_model.h5": b"\x89HDF"},
    "weights of Flax": lambda: {"config.json": CONFIG, "flax_model.msgpack": b"\x81"},
    "a model that makes pictures (diffusers)": lambda: {"model_index.json": {}, "unet/config.json": {}},
    "a model for vectors (sentence-transformers)": lambda: model() | {"modules.json": "[]"},
    "an encoder, such as BERT": lambda: model(model_type="bert", architectures=["BertForMaskedLM"]),
    "a model of another kind of code": lambda: model(
        model_type="own", auto_map={"AutoModelForCausalLM": "modeling.Own"}
    ),
    "a run of Tunebook": lambda: {"spec.json": {}, "events.jsonl": ""} | inside("adapter", adapter()),
    "a folder without any of these": lambda: {"notes.txt": "nothing"},
}
# Files that are given in place of a folder.
FILES: dict[str, tuple[str, bytes]] = {
    "a weights file": ("model.safetensors", safetensors(EMBEDDING)),
    "an archive": ("model.zip", b"PK\x03\x04" + bytes(16)),
    "a pickle": ("pytorch_model.bin", b"PK\x03\x04" + bytes(16)),
    "a GGUF file without its ending (Ollama's blobs)": ("sha256-0a1b", b"GGUF" + bytes(64)),
    "any other file": ("model.txt", b"a model"),
}


def row(what: str, given: Path) -> list[str]:
    """One line of the table."""
    base = bases.describe(str(given), Workspace(given.parent / "home"))
    seen = folders.look(given)
    found = [problem.sentence for problem in base.problems] or [str(note) for note in base.notes] or ["a base"]
    text = " ".join(one + ("" if one.endswith(".") else ".") for one in found)
    usable = "no" if base.problems else "adapters only" if base.stored is not None else "yes"
    return [what, usable, seen.tool or "", _here(text, given).replace("|", "\\|")]


def _here(text: str, given: Path) -> str:
    return text.replace(f"{given.parent}/", "").replace(str(given.parent), "folder")


HEADER = ("What lies there", "Can be trained", "By", "What Tunebook says")


def rows() -> list[list[str]]:
    """All lines of the table."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for at, (what, files) in enumerate(EXAMPLES.items()):
            found.append(row(what, write(Path(scratch) / str(at) / "folder", files())))
        for at, (what, (name, content)) in enumerate(FILES.items()):
            found.append(row(what, write(Path(scratch) / f"file-{at}", {name: content}) / name))
    return found


def page() -> str:
    """The page."""
    words = [
        "# What a folder is",
        "",
        "What people give as a base, told before anything is loaded from the names and headers of the files",
        "(`engine/models/folders.py`), and what is said of it; made by `make folders` from an example of each kind, here",
        "called `folder`. Weights are read when a run starts: those that are missing or hold no numbers end it with a",
        "sentence that names them.",
    ]
    return tables.page(words, HEADER, rows())


def main() -> None:
    tables.write(PAGE, page(), __doc__)


if __name__ == "__main__":
    main()
