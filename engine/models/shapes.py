"""The shape of a dense decoder, read from its config.json alone, and the parameters that follow from it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec

_MOST = 10**7  # no dimension of a real model is larger


class Linear(NamedTuple):
    """One linear layer inside each transformer layer; names are those of `target_modules`."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + self.outputs * self.bias


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The dimensions of a dense decoder. `positions` is 0 unless positions are learned (GPT-2). `attention_dropout`: its
    attention is dropped in part while it trains; `gelu_in_steps`: its GELU is written as one operation after another.
    """

    layout: str
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    positions: int = 0
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: bool = False
    gelu_in_steps: bool = False

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part has a gate (SwiGLU, GeGLU) or is a plain GELU pair."""
        return self.layout not in ("gpt2", "gpt_neox")

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of one transformer layer, as transformers builds them."""
        d, f, wide, kv = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        bias, mlp = self.attention_bias, self.mlp_bias
        if self.layout == "gpt2":
            return (Linear("c_attn", d, 3 * d, True), Linear("c_proj", d, d, True),
                    Linear("c_fc", d, f, True), Linear("c_proj", f, d, True))  # fmt: skip
        if self.layout == "gpt_neox":
            return (Linear("query_key_value", d, 3 * d, bias), Linear("dense", d, d, bias),
                    Linear("dense_h_to_4h", d, f, True), Linear("dense_4h_to_h", f, d, True))  # fmt: skip
        if self.layout == "phi3":
            return (Linear("qkv_proj", d, wide + 2 * kv), Linear("o_proj", wide, d),
                    Linear("gate_up_proj", d, 2 * f), Linear("down_proj", f, d))  # fmt: skip
        return (Linear("q_proj", d, wide, bias), Linear("k_proj", d, kv, bias), Linear("v_proj", d, kv, bias),
                Linear("o_proj", wide, d, bias and self.layout != "qwen2"), Linear("gate_proj", d, f, mlp),
                Linear("up_proj", d, f, mlp), Linear("down_proj", f, d, mlp))  # fmt: skip

    @property
    def layer_parameters(self) -> int:
        """The parameters of one transformer layer with its norms."""
        norms = {"gpt2": 4, "gpt_neox": 4, "gemma2": 4}.get(self.layout, 2) * self.hidden
        norms += 2 * self.head_dim if self.layout == "qwen3" else 0
        return norms + sum(linear.parameters for linear in self.linears)

    @property
    def head_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def final_norm_parameters(self) -> int:
        return self.hidden * (1 if self.gated else 2)


# Of models as they are published (config.json of Qwen2.5): layers, width, feed-forward width, heads, key-value heads.
_TYPICAL = (
    (24, 896, 4864, 14, 2), (28, 1536, 8960, 12, 2), (36, 2048, 11008, 16, 2), (28, 3584, 18944, 28, 4),
    (48, 5120, 13824, 40, 8), (64, 5120, 27648, 40, 8), (80, 8192, 29568, 64, 8),
)  # fmt: skip
_TYPICAL_VOCABULARY = 128_256  # Llama 3's; Qwen's is 151,936, older ones have 32,000


def typical_shape(parameters: float) -> Shape | None:
    """Return the shape of a usual model of so many parameters, to plan for a base of which only the size is known.

    The published model of the nearest size, with as many layers more or fewer as make up the difference. None below
    100 million, where no shape is usual.
    """
    if not 1e8 <= parameters <= 1e12:
        return None

    def made(layers: int, dims: tuple[int, ...]) -> Shape:
        hidden, wide, heads, kv = dims
        return Shape(layout="llama", layers=layers, hidden=hidden, intermediate=wide, vocabulary=_TYPICAL_VOCABULARY,
                     heads=heads, kv_heads=kv, head_dim=hidden // heads, tied=parameters < 4e9)  # fmt: skip

    shapes = [made(layers, dims) for layers, *rest in _TYPICAL for dims in [tuple(rest)]]
    nearest = min(shapes, key=lambda one: abs(math.log(count_parameters(one) / parameters)))
    missing = (parameters - count_parameters(nearest)) / nearest.layer_parameters
    return msgspec.structs.replace(nearest, layers=max(1, nearest.layers + round(missing)))


# transformers writes only what differs from a layout's own defaults in older files; these are the ones that matter.
_TIED = {"gemma", "gemma2", "gpt2"}
_HEAD_DIM = {"gemma": 256, "gemma2": 256, "qwen3": 128}
LAYOUTS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "gpt2", "gpt_neox")


def read_shape(config: Any) -> Shape | None:
    """Return the shape a config.json describes, or None when its layout is not known or a dimension makes no sense.

    A model that reads pictures too keeps its text part under text_config; only that is counted.
    """
    if not isinstance(config, dict):
        return None
    if isinstance(config.get("text_config"), dict) and config.get("model_type") not in LAYOUTS:
        config = config["text_config"]
    layout = config.get("model_type")
    if layout not in LAYOUTS:
        return None

    def number(*names: str, default: int | None = None) -> int:
        """Return the first of these that is set; -1 for what is no count."""
        value = next((config[name] for name in names if config.get(name) is not None), default)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST else -1

    def flag(name: str, default: bool) -> bool:
        value = config.get(name)
        return value if isinstance(value, bool) else default

    hidden, heads = number("hidden_size", "n_embd"), number("num_attention_heads", "n_head")
    whole = layout in ("gpt2", "gpt_neox")  # as many key-value heads as heads, side by side as wide as the model
    found = Shape(
        layout=layout,
        layers=number("num_hidden_layers", "n_layer"),
        hidden=hidden,
        intermediate=number("intermediate_size", "n_inner", default=4 * hidden if layout == "gpt2" else None),
        vocabulary=number("vocab_size"),
        heads=heads,
        kv_heads=heads if whole else number("num_key_value_heads", default=heads),
        head_dim=hidden // heads if whole else number("head_dim", default=_HEAD_DIM.get(layout, hidden // heads)),
        tied=flag("tie_word_embeddings", layout in _TIED),
        positions=number("max_position_embeddings", "n_positions", default=1024) if layout == "gpt2" else 0,
        attention_bias=layout == "qwen2" or (layout != "mistral" and flag("attention_bias", layout == "gpt_neox")),
        mlp_bias=layout == "llama" and flag("mlp_bias", False),
        attention_dropout=_is_above_zero(config.get("attn_pdrop", 0.1 if layout == "gpt2" else 0))
        or _is_above_zero(config.get("attention_dropout", 0)),
        gelu_in_steps=layout == "gpt2" and config.get("activation_function", "gelu_new") == "gelu_new",
    )
    counts = (found.layers, hidden, found.intermediate, found.vocabulary, heads, found.kv_heads, found.head_dim)
    return None if min(counts) < 1 or found.positions < 0 else found


def _is_above_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def count_parameters(shape: Shape) -> int:
    """Return the exact number of parameters, each tensor once: checked against transformers on the meta device."""
    outside = (shape.vocabulary + shape.positions) * shape.hidden + shape.final_norm_parameters
    return outside + shape.layers * shape.layer_parameters + (0 if shape.tied else shape.head_parameters)
