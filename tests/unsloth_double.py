"""What unsloth 2026.10.9 makes of a Llama's forward on a card, read in its models/llama.py and done here by transformers:
rows are cut at the window (LlamaModel_fast_forward), layers called past the model see what comes later, as where xformers
attends (CausalLM_fast_forward names the mask), and whatever tensor of columns is asked for, all come back. Unsloth itself
does not import without a GPU. For tests alone."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import transformers


def rewritten(model: Any, window: int) -> Any:
    """Let a Llama's class behave as Unsloth's does, and return the model."""
    kind, body_kind = type(model), type(model.model)

    class Body(body_kind):
        max_seq_length = window
        within = False

        def forward(self, input_ids: Any = None, attention_mask: Any = None, **more: Any) -> Any:
            input_ids = input_ids[:, : self.max_seq_length]
            if attention_mask is not None and attention_mask.dim() == 4:
                attention_mask = attention_mask[:, :, : self.max_seq_length, : self.max_seq_length]
            elif attention_mask is not None:
                attention_mask = attention_mask[:, : self.max_seq_length]
            elif not self.within:
                width = input_ids.shape[1]
                attention_mask = torch.ones(len(input_ids), 1, width, width, dtype=torch.bool)
            if more.get("position_ids") is not None:
                more["position_ids"] = more["position_ids"][:, : self.max_seq_length]
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **more)

    class Whole(kind):
        def forward(self, *args: Any, logits_to_keep: Any = 0, **more: Any) -> Any:
            if isinstance(logits_to_keep, torch.Tensor):
                logits_to_keep = 0
            self.model.within = True
            try:
                return super().forward(*args, logits_to_keep=logits_to_keep, **more)
            finally:
                self.model.within = False

        def generate(self, input_ids: Any, max_new_tokens: int = 20, **more: Any) -> Any:
            if input_ids.shape[-1] + max_new_tokens > self.config.max_position_embeddings:
                raise ValueError("Unsloth: input length + max_new_tokens exceeds the maximum sequence length")
            return super().generate(input_ids=input_ids, max_new_tokens=max_new_tokens, **more)

    Whole.forward.__module__ = "unsloth.models.llama"
    model.__class__, model.model.__class__ = Whole, Body
    return model


def module(asked: list[dict[str, Any]]) -> ModuleType:
    """Return a module to stand for `unsloth`, which notes how a model is loaded."""

    def from_pretrained(model_name: str, max_seq_length: int, **more: Any) -> tuple[Any, None]:
        asked.append({"max_seq_length": max_seq_length, **more})
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model_name, dtype=more["dtype"])
        return rewritten(loaded, max_seq_length), None

    made = ModuleType("unsloth")
    made.__spec__ = ModuleSpec("unsloth", None)
    made.FastLanguageModel = SimpleNamespace(from_pretrained=from_pretrained)  # pyright: ignore[reportAttributeAccessIssue]
    return made
