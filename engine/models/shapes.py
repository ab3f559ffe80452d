"""The shape of a decoder, read from its config.json alone, and the parameters that follow from it.

Ten layouts are known to the last number. Of any other the usual arithmetic answers at once, and what was counted on the
model itself (counted.py) takes its place.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec

_MOST = 10**7  # no dimension of a real model is larger

# A value of adapter_args.target_modules: the linear layers of the feed-forward part, whatever the base calls them.
FEED_FORWARD = "feed-forward"
# What they are called in transformers 5.17; GPT-2's c_proj is told by where it stands.
_FEED_FORWARD_NAMES = {
    "gate_proj", "up_proj", "down_proj", "gate_up_proj", "c_fc", "dense_h_to_4h", "dense_4h_to_h", "fc1", "fc2", "fc_in",
    "fc_out", "w1", "w2", "w3",
}  # fmt: skip


def is_feed_forward(module: str) -> bool:
    """Whether a module is a linear layer of a feed-forward part, by its full name."""
    return module.rpartition(".")[2] in _FEED_FORWARD_NAMES or f".{module}".endswith(".mlp.c_proj")


def feed_forward_target(module: str) -> str:
    """Return what peft knows such a module by: its last name, with the part it is in where GPT-2 gives one name twice."""
    name = module.rpartition(".")[2]
    return name if name in _FEED_FORWARD_NAMES else f"mlp.{name}"


class Linear(NamedTuple):
    """One linear layer inside a transformer layer; names are those of `target_modules`. `per_layer`: how many of it an
    average layer has, where layers differ."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    per_layer: float = 1.0

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + self.outputs * self.bias


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What the model itself has, each tensor once. `in_layers`: the parameters of all transformer layers, with those of
    their `expert_parameters` that stand in stacked tensors and are no linear layer; of `experts` a token uses
    `experts_used`. `other_parameters`: of parts that read pictures or sound. `per_rank`: what LoRA on all linear layers
    trains for each unit of its rank. So many layers see only the last `window_tokens` tokens (`sliding_layers`) or keep a
    state and see no tokens at all (`state_layers`). `writes_attention`: its scores of each pair of tokens are written out
    (gpt-oss). `is_estimated`: by the usual arithmetic, and not on the model."""

    parameters: int
    in_layers: int
    linears: tuple[Linear, ...]
    other_parameters: int = 0
    expert_parameters: int = 0
    experts: int = 0
    experts_used: int = 0
    per_rank: int = 0
    window_tokens: int = 0
    sliding_layers: int = 0
    state_layers: int = 0
    writes_attention: bool = False
    is_estimated: bool = False


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The dimensions of a decoder. `positions` is 0 unless positions are learned (GPT-2). `attention_dropout`: its
    attention is dropped in part while it trains; `gelu_in_steps`: its GELU is written as one operation after another.
    `counted`: of a layout that is none of LAYOUTS.
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
    counted: Counted | None = None

    @property
    def is_estimated(self) -> bool:
        """Whether this is the usual arithmetic of a layout that is not known."""
        return self.counted is not None and self.counted.is_estimated

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part has a gate (SwiGLU, GeGLU) or is a plain GELU pair."""
        return self.layout not in ("gpt2", "gpt_neox")

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of one transformer layer, as transformers builds them; of an average one where they differ."""
        if self.counted is not None:
            return self.counted.linears
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
    def feed_forward(self) -> tuple[Linear, ...]:
        """The linear layers of the feed-forward part; none where they are not known by name, or are experts'."""
        if self.counted is not None and self.counted.experts:
            return ()
        both = any(
            one.name == "c_proj" and one.inputs == self.hidden for one in self.linears
        )  # GPT-2 has two of the name
        return tuple(
            one for one in self.linears
            if one.name in _FEED_FORWARD_NAMES or (one.name == "c_proj" and (one.inputs == self.intermediate or not both))
        )  # fmt: skip

    @property
    def layer_parameters(self) -> int:
        """The parameters of one transformer layer with its norms; of an average one where they differ."""
        if self.counted is not None:
            return self.counted.in_layers // self.layers
        norms = {"gpt2": 4, "gpt_neox": 4, "gemma2": 4}.get(self.layout, 2) * self.hidden
        norms += 2 * self.head_dim if self.layout == "qwen3" else 0
        return norms + sum(linear.parameters for linear in self.linears)

    @property
    def linear_parameters(self) -> int:
        """The weights of all linear layers inside transformer layers: those that are held in fewer bits."""
        return round(self.layers * sum(one.inputs * one.outputs * one.per_layer for one in self.linears))

    @property
    def other_parameters(self) -> int:
        """The parameters of parts that read pictures or sound, which are held and never trained."""
        return self.counted.other_parameters if self.counted is not None else 0

    @property
    def lora_per_rank(self) -> int:
        """What LoRA on all linear layers trains for each unit of its rank, experts included; 0 where it was not counted."""
        return self.counted.per_rank if self.counted is not None else 0

    @property
    def writes_attention(self) -> bool:
        """Whether transformers computes its attention with every score written out, for want of a kernel."""
        return self.counted is not None and self.counted.writes_attention

    @property
    def active_parameters(self) -> float:
        """The weights inside transformer layers that one token is multiplied with: of experts those that it uses."""
        if self.counted is None or not self.counted.experts:
            return self.linear_parameters
        used = self.counted.expert_parameters * self.counted.experts_used / self.counted.experts
        return self.linear_parameters + used

    def attended_tokens(self, row_tokens: float) -> float:
        """How many tokens of a row each one is compared with, summed over the layers."""
        if self.counted is None:
            return self.layers * row_tokens
        whole = self.layers - self.counted.sliding_layers - self.counted.state_layers
        return whole * row_tokens + self.counted.sliding_layers * min(row_tokens, self.counted.window_tokens)

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
_TIED = {"gemma", "gemma2", "gpt2", "smollm3"}
_HEAD_DIM = {"gemma": 256, "gemma2": 256, "qwen3": 128}
LAYOUTS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "gpt2", "gpt_neox", "smollm3")


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config.json that describes what writes text: of a model that reads pictures too, text_config."""
    part = config.get("text_config")
    return part if isinstance(part, dict) and config.get("model_type") not in LAYOUTS else config


def read_shape(config: Any) -> Shape | None:
    """Return the shape a config.json describes, or None when a dimension is not there or makes no sense. One whose layout
    is none of LAYOUTS is estimated: `Shape.is_estimated`.

    A model that reads pictures too keeps its text part under text_config; only that is counted.
    """
    if not isinstance(config, dict):
        return None
    config = text_config(config)
    layout = config.get("model_type")
    if not isinstance(layout, str):
        return None
    if layout not in LAYOUTS:
        return _usual(config, layout)

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
        mlp_bias=layout in ("llama", "smollm3") and flag("mlp_bias", False),
        attention_dropout=_is_above_zero(config.get("attn_pdrop", 0.1 if layout == "gpt2" else 0))
        or _is_above_zero(config.get("attention_dropout", 0)),
        gelu_in_steps=layout == "gpt2" and config.get("activation_function", "gelu_new") == "gelu_new",
    )
    counts = (found.layers, hidden, found.intermediate, found.vocabulary, heads, found.kv_heads, found.head_dim)
    return None if min(counts) < 1 or found.positions < 0 else found


# What a dimension is called in one config.json or another; transformers names the same as `attribute_map` of its own.
_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "block_ff_dim", "d_ff"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "used": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_k"),
    "expert_width": ("moe_intermediate_size", "expert_intermediate_size"),
}


def _usual(config: dict[str, Any], layout: str) -> Shape | None:
    """Return the shape of a layout that is not known, as if it were built as Llama is, its experts apart. Good for a
    first answer: what was counted on the model itself takes its place."""

    def number(what: str, default: int = 0) -> int:
        found = next((config[name] for name in _NAMES[what] if config.get(name) is not None), default)
        return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= _MOST else -1

    vocabulary = config.get("vocab_size")
    layers, hidden, heads = number("layers"), number("hidden"), number("heads")
    if min(layers, hidden, heads) < 1 or not isinstance(vocabulary, int) or not 0 < vocabulary <= _MOST:
        return None
    head_dim = config.get("head_dim")
    head_dim = head_dim if isinstance(head_dim, int) and 0 < head_dim <= _MOST else hidden // heads
    intermediate, kv_heads = number("intermediate", 4 * hidden), number("kv_heads", heads)
    experts, used = number("experts"), number("used", 1)
    if min(intermediate, kv_heads, head_dim, used) < 1 or experts < 0:
        return None
    width = number("expert_width", intermediate)
    plain = Shape(
        layout=layout, layers=layers, hidden=hidden, intermediate=used * width if experts else intermediate,
        vocabulary=vocabulary, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        tied=config.get("tie_word_embeddings", False) is True,
    )  # fmt: skip
    linears = plain.linears[: 4 if experts else None]
    in_experts = layers * experts * 3 * hidden * width
    in_layers = in_experts + layers * (2 * hidden + sum(one.parameters for one in linears))
    counted = Counted(
        parameters=in_layers + (1 if plain.tied else 2) * plain.head_parameters + hidden, in_layers=in_layers,
        linears=linears, expert_parameters=in_experts, experts=experts, experts_used=min(used, experts),
        is_estimated=True,
    )  # fmt: skip
    return msgspec.structs.replace(plain, counted=counted)


def _is_above_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def count_parameters(shape: Shape) -> int:
    """Return the exact number of parameters, each tensor once: checked against transformers on the meta device. Of a
    layout that is estimated a first guess."""
    if shape.counted is not None:
        return shape.counted.parameters
    outside = (shape.vocabulary + shape.positions) * shape.hidden + shape.final_norm_parameters
    return outside + shape.layers * shape.layer_parameters + (0 if shape.tied else shape.head_parameters)
