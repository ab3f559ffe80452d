"""python -m engine.train.outline CONFIG TARGET SECONDS BYTES: what a model has, counted on the model itself without
its weights.

Built from its config.json by transformers on torch's meta device, where tensors have a shape and no memory. Code that
came with a model is never run: only the file config.json is read, from a folder where nothing else lies, and not what it
says of code and kernels. Bounded in time and memory, since a config.json may ask for any number of layers;
engine/models/counted.py says so where it was ended. What was found is written to TARGET, a field each of that file's Found.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from engine import processes
from engine.models import folders, shapes
from engine.workspace import read_object, write_atomically

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def build(config: Path) -> Any:
    """Return the model that a config.json describes, on the meta device. Raises whatever transformers does."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / "config.json").write_text(json.dumps(folders.kept_settings(read_object(config))), "utf-8")
        found = AutoConfig.from_pretrained(alone, trust_remote_code=False)
    with suppress(AttributeError):  # weights that are stored in fewer bits have the same shapes
        delattr(found, "quantization_config")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(found, trust_remote_code=False)


def shape_of(model: Any) -> shapes.Shape:
    """Return the shape of a model as it stands, on whatever device."""
    from engine.train import parts

    config = model.config.get_text_config()
    layers = parts.layers(model)
    inside = {id(one): one for layer in layers for one in layer.parameters()}
    experts = [one for layer in layers for one in _stacked(layer)]
    depth = len(layers) or parts.count(config, "num_hidden_layers") or 1
    linears = _linears(model, depth)
    embedding = model.get_input_embeddings()
    output = model.get_output_embeddings()
    told = shapes.read_shape({**config.to_dict(), "model_type": config.model_type})
    vocabulary, hidden = embedding.weight.shape[0], parts.count(config, "hidden_size") or embedding.weight.shape[1]
    heads = parts.count(config, "num_attention_heads") or 1
    kinds = list(getattr(config, "layer_types", None) or [])
    sliding = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
    window = parts.count(config, "sliding_window") or parts.count(config, "attention_chunk_size")
    tied = output is not None and output.weight is embedding.weight
    counts = shapes.Counted(
        parameters=sum(one.numel() for one in model.parameters()),
        in_layers=sum(one.numel() for one in inside.values()),
        linears=tuple(linears),
        other_parameters=sum(one.numel() for one in parts.others(model)),
        expert_parameters=sum(one.numel() for one in experts),
        experts=max((one.shape[0] for one in experts), default=0),
        experts_used=(told.counted.experts_used if told is not None and told.counted is not None else 0) or 1,
        window_tokens=window if sliding else 0,
        sliding_layers=sliding,
        state_layers=sum(kind in STATES for kind in kinds),
        # by which transformers 5.17 chooses (modeling_utils.py, get_correct_attn_implementation)
        writes_attention=not model._supports_sdpa,
    )
    return shapes.Shape(
        layout=config.model_type,
        layers=depth,
        hidden=hidden,
        intermediate=told.intermediate if told is not None else 4 * hidden,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=parts.count(config, "num_key_value_heads") or heads,
        head_dim=parts.count(config, "head_dim") or hidden // heads,
        tied=tied,
        counted=msgspec.structs.replace(counts, per_rank=_per_rank(model)),  # which lays an adapter on the model
    )


# What config.layer_types calls layers that keep a state and compare no token with others (transformers 5.17,
# configuration_utils.py, ALLOWED_LAYER_TYPES).
STATES = ("linear_attention", "conv", "mamba", "moe")


def _stacked(layer: Any) -> list[Any]:
    """The parameters of a layer's experts that stand in one tensor of three dimensions, which is no linear layer."""
    return [one for name, one in layer.named_parameters() if one.dim() == 3 and "expert" in name]


def _linears(model: Any, depth: int) -> list[shapes.Linear]:
    """The linear layers of an average layer."""
    from engine.train import parts

    found: collections.Counter[shapes.Linear] = collections.Counter()
    for name, module in parts.all_linears(model).items():
        inputs, outputs = module.weight.shape[::-1] if hasattr(module, "in_features") else module.weight.shape
        found[shapes.Linear(name.rpartition(".")[2], inputs, outputs, module.bias is not None)] += 1
    return [one._replace(per_layer=count / depth) for one, count in found.items()]


def _per_rank(model: Any) -> int:
    """What LoRA of rank 1 on all linear layers trains, as peft lays it on: of some layouts on stacked experts too."""
    from peft import LoraConfig, get_peft_model

    from engine.train import adapters

    config = LoraConfig(r=1, target_modules=adapters.targets(model, "all-linear", None), task_type="CAUSAL_LM")
    try:
        made = get_peft_model(model, config, low_cpu_mem_usage=True)
    except (ValueError, RuntimeError):  # there is nothing it could be laid on
        return 0
    return sum(one.numel() for name, one in made.named_parameters() if "lora_" in name)


def main() -> int:
    config, target, most_s, most_bytes = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # a library sets memory aside for each of its threads
    processes.bound(cpu_s=most_s, memory_bytes=most_bytes)
    found: dict[str, Any] = {"begun_s": time.time()}
    try:
        found["shape"] = shape_of(build(config))
    except BaseException as error:
        found["reason"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    write_atomically(target, msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
