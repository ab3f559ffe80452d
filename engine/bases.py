"""Bases: what a base model is, read from its config and safetensors headers alone; no weights, no torch.

A base is `starter`, a local folder, a Hugging Face id (with @revision where one is meant), or `run:<id>` (go on from
what an earlier run made).
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import struct
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import yaml

from engine import fit, limits, starter
from engine.words import Problem, t
from engine.workspace import BadId, Workspace, write_atomically

# owner/name or a bare legacy name, as huggingface_hub's validator takes them
_HUB_ID = re.compile(r"(?:\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", re.ASCII)
# a branch, a tag, refs/pr/1 or a commit; git's rules are stricter still
_REVISION = re.compile(r"[\w][\w.-]*(?:/[\w][\w.-]*){0,4}", re.ASCII)
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")
_HEADER_LIMIT_BYTES = 100 * 2**20


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """`ref` as it was named; `folder` is set when all its files are on this machine; `adapter_of` is the base below
    when the folder holds only an adapter. Unknown facts are None.

    Of a hub model `revision` is the commit, once known, and `looked_at` the folder with its config and tokenizer
    settings, which may be here before the weights are.
    """

    ref: str
    kind: str  # starter, folder, hub or run
    title: str
    folder: Path | None = None
    looked_at: Path | None = None
    revision: str | None = None
    adapter_of: str | None = None
    parameters: int | None = None
    layers: int | None = None
    hidden: int | None = None
    window_tokens: int | None = None
    weights_bytes: int | None = None
    scores_only: bool = False  # a reward model, or another one with a head of scores: it writes no text
    shape: fit.Shape | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def is_toy(self) -> bool:
        """Whether this is the starter or was made from it: its numbers show the mechanics, not quality."""
        return self.kind == "starter" or self.adapter_of == "starter"

    @property
    def spec_ref(self) -> str:
        """The ref as it goes into the spec: a hub id without its revision, which has a field of its own."""
        return split_ref(self.ref)[0] if self.kind == "hub" else self.ref

    @property
    def template(self) -> str | None:
        """Which chat template is used: "own", "headings" (Tunebook's plain ones, templates.py), None while unknown."""
        place = self.folder or self.looked_at
        if place is None:
            return None
        own = (place / "chat_template.jinja").is_file() or bool(
            _read_json(place / "tokenizer_config.json").get("chat_template")
        )
        return "own" if own else "headings"

    @property
    def pads_with_end(self) -> bool:
        """Whether the tokenizer names no padding token, so that its end token stands in (engine/train/load.py)."""
        place = self.folder or self.looked_at
        if place is None or self.kind == "run":
            return False
        settings = _read_json(place / "tokenizer_config.json")
        pads, ends = (
            settings.get(n) or _read_json(place / "special_tokens_map.json").get(n) for n in ("pad_token", "eos_token")
        )
        return pads is None or pads == ends


def split_ref(ref: str) -> tuple[str, str | None]:
    """Return the id and the revision of owner/name@revision."""
    name, _, revision = ref.strip().partition("@")
    return (name, revision) if revision else (ref.strip(), None)


def is_revision(text: str) -> bool:
    """Whether a text can name a revision; it becomes part of a path, so .. never can."""
    return len(text) <= 100 and bool(_REVISION.fullmatch(text)) and ".." not in text


def describe(ref: str, workspace: Workspace, revision: str | None = None) -> Base:
    """Return what is known about a base and everything that is wrong with it. Never raises for a bad ref.

    `revision` is what a spec pinned; a ref may name one itself, as owner/name@revision.
    """
    text = ref.strip()
    refused = limits.base_problem(text)
    if refused is not None:  # before anything is looked up: whether a folder is there is nobody's business
        return Base(ref=text[:80], kind="hub", title=text[:80], problems=(refused,))
    if text == "starter":
        return _from_folder(starter.MODEL_DIR, ref="starter", kind="starter", title=t("Starter (toy model, built in)"))
    if text.startswith("run:"):
        return _from_run(text, workspace)
    if text.startswith(("/", "./", "../", "~")) or (text and _is_folder(Path(text))):
        folder = Path(os.path.expanduser(text)).absolute() if "\0" not in text else Path(text)
        return _from_folder(folder, ref=str(folder), kind="folder", title=folder.name)
    name, named = split_ref(text)
    if _HUB_ID.fullmatch(name) and not re.search(r"--|\.\.|\.git$", name) and (named is None or is_revision(named)):
        return _from_hub(text, name, named or revision)
    problem = Problem(rule="base-unknown", where="base", parameters={"ref": text[:80]})
    return Base(ref=text, kind="folder", title=text[:80], problems=(problem,))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long a name, no permission, a zero byte
        return False


def _short(ref: str) -> str:
    """Return owner/name@revision with no more of a commit than tells it apart."""
    name, revision = split_ref(ref)
    return f"{name}@{revision[:10]}" if revision and re.fullmatch(r"[0-9a-f]{40}", revision) else ref


def _from_hub(ref: str, name: str, revision: str | None) -> Base:
    """Describe a hub model from its cached snapshot: all of it when the weights are whole, else what its config says."""
    cached, title = _hub_snapshot(name, revision), _short(ref)
    if cached is None:
        pinned = revision if revision and re.fullmatch(r"[0-9a-f]{40}", revision) else None
        return Base(ref=ref, kind="hub", title=title, revision=pinned)
    if _has_all_weights(cached):
        found = _from_folder(cached, ref=ref, kind="hub", title=title)
        return msgspec.structs.replace(found, revision=cached.name, looked_at=cached)
    config = _read_json(cached / "config.json")
    if not config:
        return Base(ref=ref, kind="hub", title=title, revision=cached.name)
    problems = _config_problems(config, cached)
    shape = fit.read_shape(config)
    return Base(
        ref=ref,
        kind="hub",
        title=title,
        looked_at=cached,
        revision=cached.name,
        parameters=fit.count_parameters(shape) if shape is not None else None,
        problems=tuple(problems),
        **_dimensions(config),
    )


def short(ref: str, workspace: Workspace) -> str:
    """Return a ref as a person reads it: of a run its name and the end of its id, anything else as it is."""
    with suppress(BadId, OSError, ValueError, KeyError, TypeError):
        if ref.startswith("run:"):
            run = workspace.run_dir(ref.removeprefix("run:"))
            return f"{json.loads((run / 'meta.json').read_bytes())['name']} ({run.name[-6:]})"
    return ref


def _from_run(ref: str, workspace: Workspace) -> Base:
    title = short(ref, workspace)
    made, below, revision, objective = None, "", None, ""
    try:
        run = workspace.run_dir(ref.removeprefix("run:"))
        told = json.loads((run / "spec.json").read_bytes())
        below, revision = told["base"]["ref"], told["base"].get("revision")
        objective = told.get("objective", "")
        made = next((run / n for n in ("model", "adapter") if (run / n).is_dir()), None)
    except (BadId, OSError, ValueError, KeyError, TypeError):
        pass
    if made is None or below == ref:
        problem = Problem(rule="base-run", where="base", parameters={"ref": ref[:80]})
        return Base(ref=ref, kind="run", title=title, problems=(problem,))
    lowest = describe(below, workspace, revision)
    toy = "starter" if lowest.is_toy else None
    if made.name == "model":
        found = _from_folder(made, ref=ref, kind="run", title=title)
        return msgspec.structs.replace(found, adapter_of=toy, scores_only=objective == "reward" or found.scores_only)
    scores_only = objective == "reward" or lowest.scores_only
    problems = lowest.problems
    if _count_parameters(made / "adapter_model.safetensors") is None:
        problems = (*problems, Problem(rule="base-broken-weights", where="base", parameters={"folder": str(made)}))
    return msgspec.structs.replace(
        lowest, ref=ref, kind="run", title=title, folder=made, adapter_of=toy or below, scores_only=scores_only,
        problems=problems,
    )  # fmt: skip


def _from_folder(folder: Path, *, ref: str, kind: str, title: str) -> Base:
    problems: list[Problem] = []

    def bad(rule: str) -> Base:
        problem = Problem(rule=rule, where="base", parameters={"folder": str(folder)})
        return Base(ref=ref, kind=kind, title=title, folder=folder, problems=(*problems, problem))

    if not _is_folder(folder):
        return bad("base-missing")
    try:
        config = json.loads((folder / "config.json").read_bytes())
        if not isinstance(config, dict):
            raise ValueError
    except (OSError, ValueError, RecursionError):
        return bad("base-no-config")
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        return bad("base-pickle" if any(folder.glob("*.bin")) else "base-no-weights")
    problems += _config_problems(config, folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        problems.append(Problem(rule="base-no-tokenizer", where="base", parameters={"folder": str(folder)}))
    counts = [_count_parameters(path) for path in shards]
    if any(count is None for count in counts) or not _shards(folder) <= {path.name for path in shards}:
        problems.append(Problem(rule="base-broken-weights", where="base", parameters={"folder": str(folder)}))

    return Base(
        ref=ref,
        kind=kind,
        title=title,
        folder=folder,
        parameters=sum(c for c in counts if c) or None,
        weights_bytes=sum(p.stat().st_size for p in shards),
        problems=tuple(problems),
        **_dimensions(config),
    )


def _dimensions(config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a Base that a config.json gives."""

    def number(*names: str) -> int | None:
        return next((config[n] for n in names if isinstance(config.get(n), int)), None)

    return {
        "layers": number("num_hidden_layers", "n_layer"),
        "hidden": number("hidden_size", "n_embd"),
        "window_tokens": number("max_position_embeddings", "n_positions"),
        "scores_only": "ForSequenceClassification" in str(config.get("architectures")),
        "shape": fit.read_shape(config),
    }


def _config_problems(config: dict[str, Any], folder: Path) -> list[Problem]:
    """Return what a config.json and the settings of the tokenizer beside it rule out."""
    found = []
    if "auto_map" in config:
        found.append(Problem(rule="base-remote-code", where="base", parameters={"folder": str(folder)}))
    kind, known = config.get("model_type"), architectures()
    if isinstance(kind, str) and known and kind not in known:
        found.append(Problem(rule="base-architecture", where="base", parameters={"kind": kind[:60]}))
    settings = _read_json(folder / "tokenizer_config.json")
    # These classes bring no tokens of their own; others, such as GPT-2's, have an end token that no file names.
    plain = settings.get("tokenizer_class") in (None, "PreTrainedTokenizerFast", "TokenizersBackend")
    if settings and plain and not any(settings.get(name) for name in ("pad_token", "eos_token")):
        special = _read_json(folder / "special_tokens_map.json")
        if not any(special.get(name) for name in ("pad_token", "eos_token")):
            found.append(Problem(rule="base-no-end-token", where="base", parameters={"folder": str(folder)}))
    return found


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


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object a JSON file holds, or an empty one."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _shards(folder: Path) -> set[str]:
    """Return the files that the index of a model in several files names; none where there is no index."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_bytes())
        return set(index["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def is_whole(path: Path) -> bool:
    """Return whether a safetensors file is there to its last byte."""
    return _count_parameters(path) is not None


def _count_parameters(path: Path) -> int | None:
    """Count the numbers in a safetensors file from its header (8 bytes of length, then JSON); None when it is cut."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _HEADER_LIMIT_BYTES:
                return None
            header = json.loads(file.read(length))
        total, end = 0, 0
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for dimension in tensor["shape"]:
                    if not isinstance(dimension, int) or dimension < 0:
                        return None
                    size *= dimension
                total += size
                end = max(end, tensor["data_offsets"][1])
        return total if path.stat().st_size == 8 + length + end else None
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _has_all_weights(folder: Path) -> bool:
    """Whether a cached snapshot has every weights file its index or their names speak of."""
    here = {path.name for path in folder.glob("*.safetensors") if path.exists()}
    counted = [int(found[2]) for name in here if (found := _PART.search(name))]
    if counted and len([name for name in here if _PART.search(name)]) < max(counted):
        return False
    return bool(here) and _shards(folder) <= here


def hub_cache() -> Path:
    """Return the hub's cache, by the variables that huggingface_hub reads, as they are now."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _hub_snapshot(name: str, wanted: str | None = None) -> Path | None:
    """Return the cached snapshot of a hub id, without asking the network."""
    repository = hub_cache() / ("models--" + name.replace("/", "--"))
    revision = wanted or "main"
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        try:
            revision = (repository / "refs" / revision).read_text("utf-8").strip()
        except (OSError, ValueError):
            return None
    snapshot = repository / "snapshots" / revision
    return snapshot if re.fullmatch(r"[0-9a-f]{40}", revision) and snapshot.is_dir() else None


# --- what can be chosen -----------------------------------------------------------------------------------------------

MOST_CACHED = 200


def cached() -> list[str]:
    """Return the ids of models whose weights are whole in the hub's cache, newest first."""
    found = []
    for repository in hub_cache().glob("models--*"):
        name = repository.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = _hub_snapshot(name) if _HUB_ID.fullmatch(name) else None
        if snapshot is not None and (snapshot / "config.json").is_file() and _has_all_weights(snapshot):
            found.append((snapshot.stat().st_mtime, name))
    return [name for _, name in sorted(found, reverse=True)][:MOST_CACHED]


def begun(ref: str) -> bool:
    """Whether an earlier download of a hub model has left a part of a file."""
    blobs = hub_cache() / ("models--" + split_ref(ref)[0].replace("/", "--")) / "blobs"
    return any(blobs.glob("*.incomplete"))


def folders(workspace: Workspace) -> list[str]:
    """Return the folders with models that a person has named, those that are still there."""
    try:
        found = msgspec.json.decode((workspace.root / "folders.json").read_bytes(), type=list[str])
    except (OSError, msgspec.MsgspecError):
        return []
    return [folder for folder in found if _is_folder(Path(folder))]


def remember_folder(workspace: Workspace, folder: str) -> None:
    """Keep a folder for the list of models on this machine."""
    known = folders(workspace)
    if folder not in known:
        write_atomically(workspace.root / "folders.json", msgspec.json.encode([folder, *known][:MOST_CACHED]))


class Known(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model of the short list. `config` is what decides its shape in its config.json, `checked` where that was read;
    what could not be confirmed is None. What the hub says when it is chosen counts."""

    id: str
    kind: str  # base or instruct
    config: dict[str, str | int | bool]
    checked: str
    licence: str | None = None
    gated: bool = False

    @property
    def shape(self) -> fit.Shape:
        found = fit.read_shape(self.config)
        assert found is not None, self.id
        return found

    @property
    def parameters(self) -> int:
        return fit.count_parameters(self.shape)

    @property
    def window_tokens(self) -> int:
        return int(self.config["max_position_embeddings"])

    @property
    def weights_bytes(self) -> int:
        """The size of the weights in 16 bits, as such models are stored; the tokenizer adds a few MB."""
        return 2 * self.parameters


@lru_cache(maxsize=1)
def curated() -> tuple[Known, ...]:
    """Return the short list of open models, smallest first (engine/models.yaml)."""
    found = yaml.safe_load((Path(__file__).parent / "models.yaml").read_text("utf-8"))
    return tuple(msgspec.convert(found, list[Known]))
