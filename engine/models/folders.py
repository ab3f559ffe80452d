"""What a folder is that somebody gives as a base, told from names and headers alone: a model, an adapter, what a trainer
left, or something else, with what to give instead.

look(path) says it; nothing is loaded, no weight is read, and no path, whatever it is, raises.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from engine.models import adapter_files, stored, token_rows, weights
from engine.models.adapter_files import Adapter
from engine.models.stored import Stored
from engine.models.token_rows import TokenRows
from engine.words import Problem, Text, later
from engine.workspace import read_object

# What a folder can be, and what it is called. "model": of the layout of transformers, and the only one that can be a base.
KINDS = (
    "model",
    "adapter",
    "output",
    "gguf",
    "pointer",
    "pickle",
    "runtime",
    "file",
    "run",
    "cache",
    "other",
    "missing",
)

_GGUF_MAGIC = b"GGUF"
_POINTER = b"version https://git-lfs.github.com/spec/"
# Left by transformers' Trainer, torchtune and DeepSpeed beside the weights of a training that can go on.
_STATE = ("trainer_state.json", "optimizer.pt", "optimizer.bin", "scheduler.pt", "recipe_state.pt", "training_state.pt")
_CHECKPOINT = re.compile(r"(?:checkpoint|epoch|step|iter|global_step)[-_]?(\d+)", re.IGNORECASE)
# What trainers leave that split a model over their processes: the files that tell each, in the folder itself or in a
# checkpoint inside (Megatron-LM, checkpointing.py; DeepSpeed, engine.py; accelerate, fsdp_utils.py).
_SPLIT = {
    "folder-megatron": ("latest_checkpointed_iteration.txt", "mp_rank_*/model_optim_rng.pt", "mp_rank_*/distrib_optim.pt",
                        "common.pt"),
    "folder-deepspeed": ("zero_to_fp32.py", "global_step*/*_states.pt", "mp_rank_*_model_states.pt",
                         "*zero_pp_rank_*_optim_states.pt"),
    "folder-fsdp": ("pytorch_model_fsdp_*/", "*.distcp", "*/*.distcp"),
}  # fmt: skip
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# No weights of a model, though they end as such.
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state*.pth", "recipe_state.pt",
               "training_state.pt", "openvino_*.bin")  # fmt: skip
# What runs a model and cannot train it: the files it is told by.
_RUNTIMES = {
    "ONNX": ("*.onnx", "onnx/*.onnx"),
    "OpenVINO": ("openvino_*.xml",),
    "TensorRT-LLM": ("*.engine",),
    "Core ML": ("*.mlpackage", "*.mlmodel", "*.mlmodelc"),
    "TensorFlow": ("tf_model*.h5", "saved_model.pb", "*.ckpt.index"),
    "Flax": ("flax_model*.msgpack",),
}
_ARCHIVES = {b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z",
             b"\x28\xb5\x2f\xfd": "zstd", b"Rar!": "rar"}  # fmt: skip
# How many folders inside one are looked at, and how many names are told.
MOST_INSIDE, MOST_NAMED = 200, 5
# Where code beside a model is named.
CODE_IN = ("config.json", "tokenizer_config.json")
# Settings by which transformers 5.17 would run something else than itself, or read other files than those that were looked
# at: code of one's own, kernels of the hub, other names for the weights and the tokenizer. And those that cut what is read.
_ELSEWHERE = re.compile(
    r"auto_map|_?(attn|experts)_implementation.*|transformers_weights|fast_tokenizer_files|"
    r"tokenizer_(truncation|padding)|split_special_tokens"
)


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """What lies at `path`: its `kind` is one of KINDS. `problems` say why it is no base and what to give instead, or what
    keeps a model from being one; `notes` what is to be known of it.

    `adapter`: what adapter_config.json says, of an adapter and of one that lies beside a model. `tool`: what made it,
    where that is told. `weights`: the files that are read, each tensor once. `stored`: the bits of weights that are kept
    rounded. `tokens`: the tokenizer's tokens against the rows of the embedding. `checkpoints`: the folders of a training
    inside, the newest first. `step`: of a checkpoint, how far its training was.
    """

    path: Path
    kind: str
    adapter: Adapter | None = None
    tool: str | None = None
    weights: tuple[Path, ...] = ()
    stored: Stored | None = None
    tokens: TokenRows | None = None
    checkpoints: tuple[Path, ...] = ()
    step: int | None = None
    problems: tuple[Problem, ...] = ()
    notes: tuple[Text, ...] = ()

    @property
    def is_model(self) -> bool:
        return self.kind == "model"


def look(path: Path) -> Folder:
    """Say what lies at a path. Never raises."""
    try:
        if path.is_file():
            return _file(path)
        if not path.is_dir():
            return _other(path, "missing", "base-missing")
        names = {one.name for one in path.iterdir()}
    except PermissionError:
        return _other(path, "other", "folder-permission")
    except (OSError, ValueError):  # too long a name, a zero byte
        return _other(path, "missing", "base-missing")
    try:
        return _folder(path, names)
    except PermissionError:
        return _other(path, "other", "folder-permission")
    except OSError:
        return _other(path, "other", "base-no-config")


def problem(rule: str, path: Path, /, **parameters: str | int | None) -> Problem:
    """A problem of what was given as a base."""
    return Problem(rule=rule, where="base", parameters={"folder": str(path), **parameters})


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves in place of one that was not fetched (git-lfs, docs/spec.md)."""
    return path.is_file() and path.stat().st_size < 1024 and _head(path, len(_POINTER)) == _POINTER


def _other(path: Path, kind: str, rule: str, /, **parameters: str | int | None) -> Folder:
    return Folder(path=path, kind=kind, problems=(problem(rule, path, **parameters),))


def _head(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _quoted(path: Path | str) -> str:
    """A path or an id as it is written on a command line."""
    return shlex.quote(str(path))


def _named(paths: list[Path]) -> str:
    shown = [path.name for path in paths[:MOST_NAMED]]
    return ", ".join(shown) + (", ..." if len(paths) > MOST_NAMED else "")


# --- files -----------------------------------------------------------------------------------------------------------
def _file(path: Path) -> Folder:
    """Say what a single file is, where a folder was wanted."""
    head, parent = _head(path, 8), str(path.parent)
    if is_pointer(path):
        return _other(path, "pointer", "folder-pointer", file=path.name, place=_quoted(parent))
    if head[:4] == _GGUF_MAGIC:  # one that ends in .gguf is read before anybody asks what it is
        return _other(path, "gguf", "folder-gguf-name")
    archive = next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), None)
    if path.name.lower().endswith((".bin", ".pt", ".pth", ".ckpt")):  # torch's own are zip archives too
        return _other(path, "pickle", "folder-pickle-file")
    if archive is not None or path.name.lower().endswith(".tar"):
        return _other(path, "file", "folder-archive", format=archive or "tar")
    if path.suffix == ".safetensors" or path.name in ("config.json", "adapter_config.json", "tokenizer.json"):
        return _other(path, "file", "folder-one-file", parent=parent)
    return _other(path, "file", "folder-file")


# --- folders ---------------------------------------------------------------------------------------------------------
def _folder(path: Path, names: set[str]) -> Folder:
    """Say what a folder is by the names in it: an adapter first, which may carry the config.json of its base, then what
    has weights of a model, then what has none."""
    adapter, files = adapter_files.read(path), weights.files(path)
    kind = _run(path, names) or _other_model(path, names)
    if kind is not None:
        return kind
    if files.present or files.missing:
        return _model(path, names, adapter, files)
    if "adapters.safetensors" in names and "adapter_model.safetensors" not in names:
        return _other(path, "other", "folder-adapter-mlx", path=_quoted(path))
    if adapter is not None:
        return _adapter(path, names, adapter)
    return _without_weights(path, names)


def _run(path: Path, names: set[str]) -> Folder | None:
    """A folder of one of our own runs, and the hub's folder of a model, have names to be called by."""
    run = next(
        (one for one in (path, path.parent) if (one / "spec.json").is_file() and (one / "events.jsonl").is_file()), None
    )
    if run is not None and (run == path or path.name == "adapter"):
        return _other(path, "run", "folder-run", run=run.name)
    if path.name.startswith("models--") and "snapshots" in names:
        snapshots = sorted((path / "snapshots").iterdir(), key=lambda one: one.stat().st_mtime)
        inside = str(snapshots[-1] if snapshots else path / "snapshots")
        name = path.name.removeprefix("models--").replace("--", "/", 1)
        return _other(path, "cache", "folder-cache", id=name, inside=inside)
    return None


def _other_model(path: Path, names: set[str]) -> Folder | None:
    """Models that write no text, told by the files that their libraries put beside them."""
    if "model_index.json" in names:
        return _other(path, "other", "folder-diffusers")
    if "modules.json" in names or "config_sentence_transformers.json" in names:
        return _other(path, "other", "folder-vectors")
    if "pytorch_lora_weights.safetensors" in names and "config.json" not in names:
        return _other(path, "other", "folder-diffusers-adapter")
    return None


def _adapter(path: Path, names: set[str], adapter: Adapter) -> Folder:
    """An adapter alone: its base is named, and the command that takes both."""
    base, tool = adapter.base, adapter_files.tool(path, names)
    told = {"method": adapter.method, "tool": tool or "peft", "base": base or "?", "path": _quoted(path)}
    if adapter.weights is not None and is_pointer(adapter.weights):
        found = problem("folder-pointer", path, file=adapter.weights.name, place=_quoted(path))
    elif adapter.weights is None:
        found = problem("folder-adapter-empty", path, **told)
    elif adapter.is_pickle:
        found = problem("folder-adapter-pickle", path, **told)
    elif not adapter.is_readable:
        found = problem("folder-adapter-method", path, **told)
    elif base is None:
        found = problem("folder-adapter-no-base", path, **told)
    else:
        found = problem("folder-adapter", path, **{**told, "named": _quoted(base)})
    return Folder(
        path=path, kind="adapter", adapter=adapter, tool=tool, step=_step(path, names),
        checkpoints=tuple(_checkpoints(path)), problems=(found,),
    )  # fmt: skip


def _model(path: Path, names: set[str], adapter: Adapter | None, files: weights.Files) -> Folder:
    """A model of the layout of transformers, with all that is to be known of it."""
    config, found, notes = read_object(path / "config.json"), [], []
    if not config:
        return _no_config(path, names, files)
    pointers = [one for one in (*files.present, *(path / n for n in token_rows.FILES)) if is_pointer(one)]
    if pointers:
        found.append(problem("folder-pointer", path, file=_named(pointers), place=_quoted(path)))
        return Folder(path=path, kind="pointer", adapter=adapter, problems=tuple(found))
    if files.missing and not files.index:
        found.append(problem("folder-no-index", path))
    elif files.missing:
        told = {"missing": len(files.missing), "total": len(files.missing) + len(files.present)}
        found.append(problem("folder-missing-shards", path, **told, file=min(files.missing)))
    vocabulary = config.get("vocab_size")
    held = token_rows.held(files.present)
    if held is not None and isinstance(vocabulary, int) and held != vocabulary:
        found.append(problem("folder-shape", path, rows=held, vocabulary=vocabulary))
    if files.misnamed:
        found.append(problem("folder-weights-name", path, file=_named(list(files.present))))
    kept = stored.read(config)
    if kept is not None:
        notes.append(kept.note) if kept.is_trainable else found.append(kept.problem(path))
    rows = token_rows.read(path, files.present, config)
    if rows is not None and rows.note is not None:
        notes.append(rows.note)
    if adapter is not None:
        notes.append(_beside(adapter))
    step = _step(path, names)
    if step is not None:
        notes.append(
            later("A checkpoint of a training, at step {step}: the weights as they were there.", step=f"{step:,}")
        )
    elif names & set(_STATE):
        notes.append(later("A checkpoint of a training: the weights as they were there."))
    return Folder(
        path=path, kind="model", adapter=adapter, tool=adapter_files.tool(path, names), weights=files.present, stored=kept,
        tokens=rows, checkpoints=tuple(_checkpoints(path)), step=step, problems=tuple(found), notes=tuple(notes),
    )  # fmt: skip


def brings_code(folder: Path) -> bool:
    """Whether a model or its tokenizer names code of its own, which lies beside it."""
    return any("auto_map" in read_object(folder / name) for name in CODE_IN)


def kept_settings(settings: Any) -> Any:
    """Return settings, at any depth, without those that name code, kernels or other files, or cut what is read."""
    if isinstance(settings, dict):
        return {name: kept_settings(told) for name, told in settings.items() if not _ELSEWHERE.fullmatch(name)}
    return [kept_settings(one) for one in settings] if isinstance(settings, list) else settings


def code_note() -> Text:
    """What is said of code beside a model of a kind that transformers has: it is passed over, the tokenizer's too."""
    return later("Code of its own is named in this folder. It is not run: transformers itself has what it needs.")


def _beside(adapter: Adapter) -> Text:
    """What is said of an adapter beside a model, which transformers would lay over it: trainers that merge leave it there,
    and the model holds it already."""
    return later(
        "An adapter ({method}) lies beside this model. The model is used alone: such folders hold the merged model and "
        "what was merged into it, which must not be laid on twice.",
        method=adapter.method,
    )


def _no_config(path: Path, names: set[str], files: weights.Files) -> Folder:
    """Weights without a config.json that can be read."""
    if files.misnamed and all(one.name.startswith("consolidated") for one in files.present):
        return _other(path, "other", "folder-consolidated")
    inside = [] if "config.json" in names else _inside(path)
    return _several(path, inside) if inside else _other(path, "other", "base-no-config")


def _without_weights(path: Path, names: set[str]) -> Folder:
    """A folder in which no weights in safetensors lie: say what lies there."""
    ggufs = sorted(one for one in path.glob("*.gguf") if not one.name.startswith("mmproj"))
    if ggufs:
        return _other(path, "gguf", "folder-gguf", files=_named(ggufs), file=str(ggufs[0]))
    checkpoints = _checkpoints(path)
    if checkpoints:
        return _output(path, names, checkpoints)
    split = _split(path)
    if split is not None:
        return _other(path, "output", split, path=_quoted(path))
    pickles = sorted(one for pattern in _PICKLES for one in path.glob(pattern) if not any(map(one.match, _NO_WEIGHTS)))
    if any(map(is_pointer, pickles)):
        return _other(path, "pointer", "folder-pointer", file=_named(pickles), place=_quoted(path))
    runtime = next((name for name, files in _RUNTIMES.items() if any(any(path.glob(one)) for one in files)), None)
    if runtime is not None and not pickles:
        return _other(path, "runtime", "folder-runtime", format=runtime)
    if pickles:
        return _other(path, "pickle", "base-pickle", files=_named(pickles))
    if "config.json" in names:
        return _other(path, "other", "base-no-weights" if read_object(path / "config.json") else "base-no-config")
    inside = _inside(path)
    return _several(path, inside) if inside else _other(path, "other", "base-no-config")


# --- what lies inside ------------------------------------------------------------------------------------------------
def _output(path: Path, names: set[str], checkpoints: list[Path]) -> Folder:
    """The output folder of a trainer: its newest checkpoint is what can be given."""
    newest = look(checkpoints[0])
    rule = "folder-output-adapters" if newest.kind == "adapter" else "folder-output"
    told: dict[str, str | int | None] = {"n": len(checkpoints), "newest": str(newest.path)}
    if newest.adapter is not None:
        told |= {
            "base": newest.adapter.base or "?",
            "named": _quoted(newest.adapter.base or "BASE"),
            "path": _quoted(newest.path),
        }
    return Folder(
        path=path, kind="output", adapter=newest.adapter, tool=adapter_files.tool(path, names) or newest.tool,
        checkpoints=tuple(checkpoints), problems=(problem(rule, path, **told),),
    )  # fmt: skip


def _split(path: Path) -> str | None:
    """The rule of the trainer that left a model split over its processes in a folder, or in a checkpoint inside."""
    places = [
        path,
        *sorted(one for one in path.iterdir() if _CHECKPOINT.fullmatch(one.name) and one.is_dir())[:MOST_INSIDE],
    ]
    if path.name.startswith("pytorch_model_fsdp_"):
        return "folder-fsdp"
    return next((r for r, files in _SPLIT.items() for one in places if any(any(one.glob(f)) for f in files)), None)


def _several(path: Path, inside: list[Path]) -> Folder:
    """A folder one level too high."""
    if len(inside) == 1:
        return _other(path, "other", "folder-inside", inside=str(inside[0]))
    return _other(path, "other", "folder-several", n=len(inside), names=_named(inside))


def _inside(path: Path) -> list[Path]:
    """The folders in this one that hold a model or an adapter."""
    found = sorted(one for one in path.iterdir() if one.is_dir())[:MOST_INSIDE]
    return [one for one in found if adapter_files.read(one) is not None or _holds_model(one)]


def _holds_model(path: Path) -> bool:
    return (path / "config.json").is_file() and bool(weights.files(path).present)


def _checkpoints(path: Path) -> list[Path]:
    """The checkpoints of a training in its output folder, the newest first."""
    numbered = [
        (int(number[1]), one)
        for one in path.iterdir()
        if (number := _CHECKPOINT.fullmatch(one.name)) and len(number[1]) < 12 and one.is_dir()
    ]
    return [
        one for _, one in sorted(numbered, reverse=True) if adapter_files.read(one) is not None or _holds_model(one)
    ]


def _step(path: Path, names: set[str]) -> int | None:
    """How many steps the training of a checkpoint had made, from its state or its name; None of what is no checkpoint, and
    where neither says it: torchtune's epoch_3 counts epochs."""
    if not names & set(_STATE):
        return None
    step = read_object(path / "trainer_state.json").get("global_step")
    if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
        return step
    named = _CHECKPOINT.fullmatch(path.name)
    counts = named is not None and not path.name.lower().startswith("epoch")
    return int(named[1]) if named is not None and counts and len(named[1]) < 12 else None


@lru_cache(maxsize=1)
def architectures() -> frozenset[str]:
    """Return the model types that the installed transformers can load as writers of text, read from its source: importing
    it takes seconds. Empty when the table is not where it was in 5.17."""
    try:
        found = importlib.util.find_spec("transformers")
        place = Path(next(iter((found.submodule_search_locations if found else None) or [])))
        source = (place / "models" / "auto" / "modeling_auto.py").read_text("utf-8")
        table = re.search(r"^MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict\(\s*(\[.*?^    \])", source, re.S | re.M)
        return frozenset(kind for kind, _ in ast.literal_eval(table[1])) if table else frozenset()
    except (OSError, ValueError, SyntaxError, TypeError, StopIteration):
        return frozenset()
