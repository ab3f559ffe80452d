"""The files of an adapter, from whatever trainer: peft's layout, which they all write, and what tells who wrote it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from engine.workspace import read_object, regular

CONFIG = "adapter_config.json"
# What can be laid over a base here: both are linear maps beside a layer, and can be merged into it.
METHODS = ("LORA", "OFT")
_README_BYTES = 20_000


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """What adapter_config.json says: `method` is peft's name of it (LORA, OFT, IA3 ...), `base` the model it was trained on
    as its trainer named it, a folder of that machine or an id, and `revision` that model's, where it says so. `weights` is
    None where none lie beside."""

    method: str
    base: str | None
    revision: str | None
    weights: Path | None

    @property
    def is_readable(self) -> bool:
        """Whether it is of a method that can be laid on, in a file that runs no code."""
        return self.method in METHODS and self.weights is not None and self.weights.suffix == ".safetensors"

    @property
    def is_pickle(self) -> bool:
        """Whether all that keeps it from being read is the file it is in, which may run code."""
        return self.method in METHODS and self.weights is not None and self.weights.suffix != ".safetensors"


def read(folder: Path) -> Adapter | None:
    """Read what a folder says of the adapter in it; None where there is none."""
    config = folder / CONFIG
    if not config.is_file():
        return None
    told = read_object(config)
    files = [folder / name for name in ("adapter_model.safetensors", "adapter_model.bin")]
    return Adapter(
        method=str(told.get("peft_type") or "?")[:40].upper(),
        base=_text(told.get("base_model_name_or_path")),
        revision=_text(told.get("revision")),
        weights=next((one for one in files if one.is_file()), None),
    )


def _text(value: object) -> str | None:
    return value[:500] if isinstance(value, str) and value.strip() else None


# Each trainer by files of its own, by tags of the card it writes, and by a key of adapter_config.json's auto_mapping.
_TOOLS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("LLaMA-Factory", ("llamaboard_config.yaml", "training_args.yaml", "running_log.txt"), ("llama-factory",)),
    ("Axolotl", ("axolotl_config.yaml", "axolotl_config.yml"), ("axolotl",)),
    ("torchtune", ("torchtune_config.yaml", "recipe_state.pt"), ("torchtune",)),
    ("ms-swift", ("args.json", "sft_args.json"), ("ms-swift", "swift")),
    ("Unsloth", (), ("unsloth",)),
    ("TRL", (), ("trl",)),
)


def tool(folder: Path, names: set[str]) -> str | None:
    """Name the trainer that wrote a folder, where its files tell: those above, the newer layer first, as each of these
    stands on peft or TRL; None where nothing does."""
    tags = _tags(folder / "README.md")
    mapping = read_object(folder / CONFIG).get("auto_mapping")
    if isinstance(mapping, dict) and ("unsloth_fixed" in mapping or "unsloth" in str(mapping.get("parent_library"))):
        tags.add("unsloth")
    for name, files, marks in _TOOLS:
        if tags & set(marks) or any(one in names and _is_its_own(folder / one) for one in files):
            return name
    return "peft" if "peft" in tags or CONFIG in names else None


def _is_its_own(path: Path) -> bool:
    """Whether a file with a plain name is that of the trainer it is taken for: ms-swift's names itself."""
    return path.name != "args.json" or "swift_version" in read_object(path)


def _tags(card: Path) -> set[str]:
    """The tags and the library that the front matter of a model card names, in lower case, and axolotl's badge."""
    try:
        with regular(card).open("rb") as file:
            text = file.read(_README_BYTES).decode("utf-8", "replace")
    except OSError:
        return set()
    found = re.match(r"---\s*\n(.*?)\n---", text, re.S)
    front = found[1] if found else ""
    marks = {one.strip("'\"").lower() for one in re.findall(r"^\s*-\s*(\S+)\s*$", front, re.M)}
    marks |= {one.strip("'\"").lower() for one in re.findall(r"^library_name:\s*(\S+)\s*$", front, re.M)}
    if "axolotl-ai" in text or "OpenAccess-AI-Collective/axolotl" in text:
        marks.add("axolotl")
    return marks
