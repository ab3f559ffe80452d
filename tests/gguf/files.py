"""GGUF files for the tests: headers by hand, and a tiny random model written with the library `gguf`, and its folder."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from engine import starter


def text(value: str) -> bytes:
    coded = value.encode()
    return struct.pack("<Q", len(coded)) + coded


def header(
    values: dict[str, str | int | list[str] | list[int]], tensors: list[tuple[str, tuple[int, ...], int]], data: int
) -> bytes:
    """A GGUF file written by hand: `tensors` by name, shape and type, all at offset 0, then `data` bytes of zeros."""
    written = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for name, value in values.items():
        written += text(name)
        if isinstance(value, str):
            written += struct.pack("<I", 8) + text(value)
        elif isinstance(value, int):
            written += struct.pack("<II", 4, value)
        elif value and isinstance(value[0], int):
            written += struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
        else:
            written += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, map(str, value)))
    for name, shape, kind in tensors:
        written += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, 0)
    return written + bytes(-len(written) % 32) + bytes(data)


SOUND: dict[str, Any] = {
    "general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<|end|>", "a", "b"],
}  # fmt: skip


def small(path: Path, values: dict[str, Any] | None = None, kind: int = 3, data: int = 40) -> Path:
    """A file with one tensor of 64 numbers, which takes 40 bytes as Q4_1; `values` replace or add to its own."""
    path.write_bytes(header(SOUND | (values or {}), [("output.weight", (32, 2), kind)], data))
    return path


def tiny(
    folder: Path, architecture: str, kind: str = "F32", pre: str = "smollm", stretch: float | None = None
) -> tuple[Path, Any]:
    """Write a random model of two layers with the starter's tokens, as `architecture`.gguf; return the file and the
    transformers model. The starter splits digits off, as smollm's rule does; `stretch` is Llama 3.1's factor."""
    import gguf
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(starter.MODEL_DIR, trust_remote_code=False)
    size = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
        "tie_word_embeddings": architecture == "llama", "rope_theta": 5000.0, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    if stretch is not None:
        size["rope_parameters"] = {
            "rope_type": "llama3", "rope_theta": 5000.0, "factor": stretch, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }  # fmt: skip
    config = transformers.AutoConfig.for_model(architecture, **size)
    model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # norms and biases that do something
        for parameter in model.parameters():
            parameter.copy_((parameter + 0.05 * torch.randn_like(parameter)).half().float())
    path = folder / f"tiny-{architecture}{f'-x{stretch:.0f}' if stretch else ''}-{kind}.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(len(tokenizer))
    _tokens(writer, tokenizer, pre)
    if stretch is not None:
        usual = 1 / 5000.0 ** (torch.arange(0, 16, 2) / 16)
        writer.add_tensor("rope_freqs.weight", (usual / model.model.rotary_emb.inv_freq).numpy())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], 2)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            value = _interleaved(value, 4 if "q_proj" in name else 2)
        stem, _, ending = name.rpartition(".")
        held = gguf.GGMLQuantizationType[kind if value.ndim > 1 else "F32"]
        writer.add_tensor(f"{names.get_name(stem)}.{ending}", gguf.quantize(value.numpy(), held), raw_dtype=held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


def _tokens(writer: Any, tokenizer: Any, pre: str) -> None:
    import json

    told = json.loads(tokenizer.backend_tokenizer.to_str())
    known = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda one: one[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(known)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in known])
    writer.add_token_merges([" ".join(pair) for pair in told["model"]["merges"]])
    writer.add_eos_token_id(0)  # the padding token: what a turn ends with is said by the template alone
    writer.add_pad_token_id(0)
    writer.add_chat_template(
        tokenizer.chat_template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    )


def _interleaved(weight: Any, heads: int) -> Any:
    """The rows of a query or key weight as llama.cpp turns them: pairs that rotate together lie side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns).contiguous()
