"""Weights that are stored rounded: what the quantization_config of a config.json says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from engine.words import Problem, Text, later


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """`method` is the name of transformers for how the weights are kept (bitsandbytes, gptq, awq, fp8, mlx ...), `bits` to
    how many bits they are rounded, where that is told."""

    method: str
    bits: int | None

    @property
    def is_trainable(self) -> bool:
        """Whether an adapter can be trained on it here: bitsandbytes in 4 or 8 bits, which QLoRA holds a base in anyway."""
        return self.method == "bitsandbytes" and self.bits in (4, 8)

    @property
    def setting(self) -> str:
        """What the setting `quantize` calls it."""
        return f"{self.bits}bit"

    @property
    def note(self) -> Text:
        return later(
            "Its weights are stored in {bits} bits (bitsandbytes). Adapters train on it as QLoRA does, nothing else can; "
            "merging unpacks it to 16 bits, which are no finer than what is stored.",
            bits=self.bits,
        )

    def problem(self, folder: Path) -> Problem:
        """Why it cannot be trained."""
        told = {"folder": str(folder), "method": self.method, "bits": self.bits or "?"}
        return Problem(rule="folder-quantized", where="base", parameters=told)


def read(config: dict[str, Any]) -> Stored | None:
    """Read how a model's weights are kept; None where they are not rounded. MLX writes `quantization`, all others
    `quantization_config` (for models that read pictures too, below text_config)."""
    told = config.get("quantization_config")
    inner = config.get("text_config")
    if told is None and isinstance(inner, dict):
        told = inner.get("quantization_config")
    if not isinstance(told, dict):
        told = config.get("quantization")
        return Stored(method="mlx", bits=_bits(told)) if isinstance(told, dict) else None
    method = str(told.get("quant_method") or "").lower().replace("_", "-")
    eight, four = told.get("load_in_8bit") is True, told.get("load_in_4bit") is True
    if method.startswith("bitsandbytes") or method == "bnb" or (not method and (four or eight)):
        return Stored(method="bitsandbytes", bits=4 if four else 8 if eight else None)
    return Stored(method=method[:40] or "?", bits=8 if "fp8" in method else _bits(told))


def _bits(told: dict[str, Any]) -> int | None:
    found = next((told[name] for name in ("bits", "w_bit", "nbits", "weight_bits") if name in told), None)
    return found if isinstance(found, int) and 0 < found <= 16 else None
