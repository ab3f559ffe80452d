"""Attention over rows that lie end to end, row by row: torch's, with nothing computed between one row and another.

transformers 5.17 masks what lies in other rows, but computes it: of 8 rows of 180 tokens 7 parts in 8. Here each row is
handed to the same function by itself. Any other batch goes through transformers' own, with its mask.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from engine.train import parts

NAME = "rows_apart"


def attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Return (batch, tokens, heads, width) as sdpa_attention_forward does; query, key and value have heads before tokens.
    Rows begin where `position_ids` are 0; with a window that slides only rows that lie inside of one are taken apart."""
    ends = _ends(settings.get("position_ids"), query, key)
    window = settings.get("sliding_window")
    if len(ends) < 2 or (window and max(b - a for a, b in zip([0, *ends], ends, strict=False)) > window):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    parts = [
        sdpa_attention_forward(
            module, query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], None, **{**settings, "is_causal": True}
        )[0]
        for a, b in zip([0, *ends], ends, strict=False)
    ]
    return torch.cat(parts, dim=1), None


def _ends(positions: Any, query: torch.Tensor, key: torch.Tensor) -> list[int]:
    """Return where each row of one batch ends; nothing where there are several, or some of it was read before."""
    if (
        positions is None
        or positions.shape != (1, query.shape[2])
        or query.shape[:1] + key.shape[2:3] != positions.shape
    ):
        return []
    found = getattr(positions, "row_ends", None)  # the same tensor goes through all layers
    if found is None:
        # whatever does not count on from one row's 0 to the next is no row, as a branch of a tree is none (scoring/trees.py)
        counts = ((positions[0].diff() == 1) | (positions[0, 1:] == 0)).all()
        found = [*positions[0].eq(0).nonzero().flatten().tolist()[1:], positions.shape[1]] if counts else []
        positions.row_ends = found
    return found


def use(model: Any, *, on: bool = True) -> None:
    """Let a model that uses torch's attention use this one, or that again."""
    inner = parts.below_adapter(model)
    now, then = ("sdpa", NAME) if on else (NAME, "sdpa")
    if inner.config._attn_implementation == now:
        inner.set_attn_implementation(then)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
