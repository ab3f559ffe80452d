"""Adapters that were written elsewhere, by their config and their safetensors header alone: what they are, and whether
they fit a base. Nothing in them is trusted; what peft is to read is written anew from what was understood.

Field names and tensor names are those of peft 0.21 (`LoraConfig`, `OFTConfig`, `get_peft_model_state_dict`).
"""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import msgspec

from engine import looker
from engine.models import shapes
from engine.words import Problem
from engine.workspace import open_regular, read_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Tensors = dict[str, tuple[int, ...]]

_MOST_HEADER_BYTES, _MOST_CONFIG_BYTES, _MOST_TENSORS = 32 * 2**20, 4 * 2**20, 200_000
_MOST_RANK = 65_536
_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>[\w.]+?)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector(?:\.weight)?|oft_R\.weight|weight|bias)"
)
# Of a layer that is named in a pattern of ranks or alphas: names alone, since peft takes them for expressions.
_NAME = re.compile(r"[\w.]{1,200}")
# Fields that say how an adapter was begun, or where; they change nothing once it is trained.
_IDLE = frozenset(
    ("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
     "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "megatron_core",
     "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "qalora_group_size",
     "lora_dropout", "module_dropout", "init_weights", "modules_to_save")
)  # fmt: skip
_READ = {
    "LORA": frozenset(
        ("r", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "bias", "init_lora_weights", "fan_in_fan_out")
    ),
    "OFT": frozenset(
        ("r", "oft_block_size", "bias", "coft", "eps", "block_share", "use_cayley_neumann", "num_cayley_neumann_terms",
         "fan_in_fan_out")
    ),
}  # fmt: skip
# How a trained adapter may have begun; the others (PiSSA, OLoRA, CorDA, LoftQ) change the base, which is not here then.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that can be loaded. `config` is what peft is given, written by us: its layers by their full names, each
    with its own rank. `rank`, `alpha` and `block_size` are None where it has none, or not one for all layers; `whole` are
    modules stored whole; `base` what it names its base."""

    kind: str  # lora or oft
    config: dict[str, Any]
    tensors: Tensors
    modules: tuple[str, ...]
    whole: tuple[str, ...]
    base: str = ""
    rank: int | None = None
    alpha: float | None = None
    block_size: int | None = None
    scaled_by_root: bool = False  # rsLoRA
    decomposed: bool = False  # DoRA


def figures(adapter: Adapter) -> dict[str, str]:
    """Return what an adapter's files say of it, as (name: value): rank, alpha, block size, and how many modules it has."""
    told = {"rank": adapter.rank, "alpha": adapter.alpha, "block size": adapter.block_size}
    found = {name: f"{value:g}" for name, value in told.items() if value is not None}
    return {**found, "modules": str(len(adapter.modules))}


def names(adapter: Adapter) -> str:
    """Return what kind of adapter it is, by the names of the field."""
    if adapter.kind == "oft":
        return "OFT"
    kinds = [name for name, so in (("rsLoRA", adapter.scaled_by_root), ("DoRA", adapter.decomposed)) if so]
    return " + ".join(kinds) or "LoRA"


def header(path: Path, most_bytes: int = _MOST_HEADER_BYTES) -> Tensors | None:
    """Return the shapes of the tensors of a whole safetensors file, or None when it is cut off or no such file."""
    try:
        size = path.stat().st_size
        with open_regular(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(most_bytes, size):
                return None
            told = json.loads(file.read(length))
        told.pop("__metadata__", None)
        if len(told) > _MOST_TENSORS:
            return None
        end, found = 0, {}
        for name, tensor in told.items():
            shape = tuple(tensor["shape"])
            if not all(type(one) is int and one >= 0 for one in shape):
                return None
            start, stop = tensor["data_offsets"]
            if not 0 <= start <= stop:
                return None
            end, found[name] = max(end, stop), shape
        return found if size == 8 + length + end else None
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read(folder: Path) -> tuple[Adapter | None, list[Problem]]:
    """Return what an adapter folder holds, or everything that keeps it from being loaded."""
    try:
        return looker.ask(_read, folder, at=folder)
    except looker.Refused as error:
        return None, [error.problem]


def _read(folder: Path) -> tuple[Adapter | None, list[Problem]]:
    problems: list[Problem] = []

    def bad(rule: str, **parameters: Any) -> None:
        problems.append(Problem(rule=rule, where="adapter", parameters={"folder": str(folder)[:300], **parameters}))

    config = _config(folder / CONFIG)
    if not config:
        bad("adapter-no-config")
        return None, problems
    kind = str(config.get("peft_type"))
    if kind not in _READ:
        bad("adapter-kind", kind=kind[:40])
        return None, problems
    for name in _unusual(config, kind):
        bad("adapter-field", field=name[:60])
    if config.get("init_lora_weights", True) not in _BEGINNINGS:
        bad("adapter-changed-base", how=str(config["init_lora_weights"])[:40])
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        bad("adapter-task", task=str(config["task_type"])[:40])
    if not (folder / WEIGHTS).is_file():
        bad("adapter-pickle" if (folder / "adapter_model.bin").exists() else "adapter-no-weights")
        return None, problems
    tensors = header(folder / WEIGHTS)
    if not tensors:
        bad("adapter-broken")
        return None, problems
    if problems:
        return None, problems
    made = _understood(config, kind, tensors)
    if isinstance(made, str):
        bad("adapter-tensor", name=made[:120])
        return None, problems
    return made, []


def _config(path: Path) -> dict[str, Any]:
    try:
        small = path.stat().st_size <= _MOST_CONFIG_BYTES
    except OSError:
        return {}
    return read_object(path) if small else {}


def _unusual(config: dict[str, Any], kind: str) -> list[str]:
    """Return the fields that would make of an adapter another thing than is known here, or are no value of theirs."""
    found = [name for name, value in config.items() if value and name not in _IDLE | _READ[kind]]
    found += [name for name in ("megatron_config",) if config.get(name) and name not in found]
    if config.get("bias") not in (None, "none"):
        found.append("bias")
    flags = ("use_rslora", "use_dora", "fan_in_fan_out", "coft", "block_share", "use_cayley_neumann")
    found += [name for name in flags if config.get(name) not in (None, True, False)]
    counts = ("r", "oft_block_size", "num_cayley_neumann_terms")
    found += [name for name in counts if not _is_count(config.get(name, 0), _MOST_RANK)]
    number = "lora_alpha" if kind == "LORA" else "eps"
    found += [number] if not _is_number(config.get(number, 1.0)) else []
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(
        _NAME.fullmatch(str(key)) and _is_number(value) for key, value in patterns.items()
    ):
        found.append("alpha_pattern")
    return found


def _is_count(value: Any, most: int) -> bool:
    return value is None or (type(value) is int and 0 <= value <= most)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1e9  # no NaN, no infinity


def _understood(config: dict[str, Any], kind: str, tensors: Tensors) -> Adapter | str:
    """Return the adapter that these tensors make, or the name of one that is no part of it."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in tensors.items():
        found = _PART.fullmatch(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
        if found is None:
            return name
        module = found["module"].removesuffix(".base_layer")
        parts.setdefault(module, {})[found["part"].removesuffix(".weight")] = shape
    ranks: dict[str, int] = {}
    whole = []
    for module, held in parts.items():
        if set(held) <= {"weight", "bias"}:
            whole.append(module)
            continue
        rank = _rank(held, kind)
        if rank is None:
            return f"{_PREFIX}{module}"
        ranks[module] = rank
    if not ranks:
        return next(iter(tensors))
    base = str(config.get("base_model_name_or_path") or "")[:300]
    common = max(sorted(set(ranks.values())), key=list(ranks.values()).count)
    told: dict[str, Any] = {
        "peft_type": kind, "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "bias": "none", "target_modules": sorted(ranks), "fan_in_fan_out": bool(config.get("fan_in_fan_out")),
        "modules_to_save": whole or None,
    }  # fmt: skip
    if re.fullmatch(r"[\w.+-]{1,40}", version := str(config.get("peft_version"))):
        told["peft_version"] = version  # peft warns of series of rotations by its earlier ones
    same = len(set(ranks.values())) == 1
    if kind == "OFT":
        told |= {
            "r": 0, "oft_block_size": common, "coft": bool(config.get("coft")), "eps": config.get("eps", 6e-5),
            "block_share": bool(config.get("block_share")),
            "use_cayley_neumann": bool(config.get("use_cayley_neumann", True)),
            "num_cayley_neumann_terms": config.get("num_cayley_neumann_terms", 5),
        }  # fmt: skip
        return Adapter(
            kind="oft", config=told, tensors=tensors, modules=tuple(ranks), whole=tuple(whole), base=base,
            block_size=common if same else None,
        )  # fmt: skip
    alpha, pattern = config.get("lora_alpha", 8), config.get("alpha_pattern") or {}
    told |= {
        "r": common, "lora_alpha": alpha, "lora_dropout": 0.0, "alpha_pattern": pattern, "init_lora_weights": True,
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != common},
        "use_rslora": bool(config.get("use_rslora")), "use_dora": bool(config.get("use_dora")),
    }  # fmt: skip
    return Adapter(
        kind="lora", config=told, tensors=tensors, modules=tuple(ranks), whole=tuple(whole), base=base,
        rank=common if same else None, alpha=None if pattern else float(alpha),
        scaled_by_root=told["use_rslora"], decomposed=told["use_dora"],
    )  # fmt: skip


def _rank(held: dict[str, tuple[int, ...]], kind: str) -> int | None:
    """Return the rank of a layer's LoRA, or the block size of its rotations; None when its tensors do not go together."""
    held = {part: shape for part, shape in held.items() if part != "weight"}  # the frozen weights below, saved along
    if kind == "OFT":
        shape = held.get("oft_R", ())
        if set(held) != {"oft_R"} or len(shape) != 2:
            return None
        size = round((1 + math.sqrt(1 + 8 * shape[1])) / 2)  # size (size - 1) / 2 numbers above the diagonal
        return size if size >= 2 and size * (size - 1) // 2 == shape[1] else None
    down, up = ("lora_embedding_A", "lora_embedding_B") if "lora_embedding_A" in held else ("lora_A", "lora_B")
    one, other = held.get(down, ()), held.get(up, ())
    if not set(held) <= {down, up, "lora_magnitude_vector"} or len(one) != 2 or len(other) != 2:
        return None
    return one[0] if one[0] == other[1] and 0 < one[0] <= _MOST_RANK else None


def misfits(adapter: Adapter, base: Tensors, shape: shapes.Shape | None) -> list[str]:
    """Return the layers of an adapter that a base of these tensors does not have, or has in another size, in words of the
    two sizes: "q_proj: 576 to 576, here 960 to 960". GPT-2 stores its layers transposed."""
    found = []
    for module in (*adapter.modules, *adapter.whole):
        there = _there(module, base, shape)
        if there is None:
            found.append(module)
            continue
        if len(there) != 2 and module in adapter.modules:
            found.append(module)
            continue
        wrong = _unlike(adapter, module, there, transposed=shape is not None and shape.layout == "gpt2")
        if wrong:
            found.append(f"{module}: {wrong}")
    return found


def _there(module: str, base: Tensors, shape: shapes.Shape | None) -> tuple[int, ...] | None:
    """Return the shape of a module's weight in the base; of a tied output layer, the embedding's. Files of GPT-2 leave out
    the first part of the names."""
    names = (f"{module}.weight", f"{module.partition('.')[2]}.weight")
    found = next((base[name] for name in names if name in base), None)
    if found is None and module == "lm_head" and (shape is None or shape.tied or shape.is_estimated):
        return next((s for n, s in base.items() if n.endswith(("embed_tokens.weight", "wte.weight"))), None)
    return found


def _unlike(adapter: Adapter, module: str, there: tuple[int, ...], *, transposed: bool) -> str:
    """Return in numbers how a module of an adapter differs from the base's, or nothing."""
    tensors = adapter.tensors

    def of(part: str) -> tuple[int, ...]:
        return tensors.get(f"{_PREFIX}{module}.{part}", ())

    if module in adapter.whole:
        mine = of("weight")
        return "" if mine in ((), there) else f"{_size(mine)}, here {_size(there)}"
    if adapter.kind == "oft":
        blocks, numbers = of("oft_R.weight")
        size = round((1 + math.sqrt(1 + 8 * numbers)) / 2)
        inputs = there[0] if transposed else there[1]
        fits = inputs % size == 0 if adapter.config["block_share"] else blocks * size == inputs
        return "" if fits else f"{blocks * size}, here {inputs}"
    down = of("lora_A.weight") or of("lora_embedding_A")
    up = of("lora_B.weight") or of("lora_embedding_B")
    mine = (up[0], down[1])
    # An embedding's two matrices go from tokens to width, and its weight is stored the other way round.
    here = there[::-1] if transposed or of("lora_embedding_A") else there
    magnitude = of("lora_magnitude_vector.weight") or of("lora_magnitude_vector")
    below = of("base_layer.weight") or there  # the frozen weights, saved along
    if mine != here or below != there:
        return f"{_size(mine)}, here {_size(here)}"
    return "" if magnitude in ((), (here[0],), (1, here[0])) else f"{_size(magnitude)}, here {here[0]}"


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
