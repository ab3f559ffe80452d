"""A model that was tuned elsewhere, brought as a folder: an adapter or a whole model. What of it is taken, whether that
can be trusted, and how it is copied. From its files alone; no weights, no torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine import looker
from engine.brought import adapters
from engine.models import folders, weights
from engine.words import Problem, Text
from engine.workspace import read_object

# What is taken of a folder, and nothing else: no code, no pickles, no optimizer.
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip
_MODEL = ("config.json", "generation_config.json", weights.INDEX)
_MOST_FILE_BYTES = 128 * 2**20  # of a file that is no weights; Gemma's tokenizer.json has 33 MB
# What an embedding is called, in Llama and those after it, and in GPT-2.
EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
_CHUNK_BYTES = 8 * 2**20
SPARE_BYTES = 100 * 2**20


class Refused(Exception):
    """It cannot be taken; `problem` says why."""

    def __init__(self, rule: str, **parameters: Any):
        self.problem = Problem(rule=rule, where="adapter", parameters=parameters)
        super().__init__(rule)


class Brought(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that can be taken. `what` is adapter or model; `files` are what is taken of it, by name; `adapter` is set
    where it is one; `own_tokenizer` whether it brings a tokenizer; `tool` is what wrote it, as far as its files say; `notes`
    are what is to be known of a model's folder."""

    folder: Path
    what: str
    files: tuple[str, ...]
    adapter: adapters.Adapter | None
    own_tokenizer: bool
    tool: str = ""
    notes: tuple[Text, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.files)


def look(path: Path) -> tuple[Brought | None, list[Problem]]:
    """Return what a folder brings, or everything that keeps it from being taken. Never raises for what lies there."""
    try:
        return looker.ask(_looked, path, at=path)
    except looker.Refused as error:
        return None, [error.problem]


def _looked(path: Path) -> tuple[Brought | None, list[Problem]]:
    seen = folders.look(path)
    if seen.kind not in ("adapter", "model"):
        return None, list(seen.problems)
    is_adapter = seen.kind == "adapter"

    def bad(rule: str, **more: Any) -> tuple[None, list[Problem]]:
        return None, [Problem(rule=rule, where="adapter", parameters={"folder": str(path)[:300], **more})]

    kept = [adapters.WEIGHTS] if is_adapter else [one.name for one in seen.weights]
    plain = [name for name in (*(() if is_adapter else _MODEL), *_TOKENIZER) if os.path.lexists(path / name)]
    taken = [*kept, *([adapters.CONFIG] if is_adapter else []), *plain]
    for name in taken:
        if os.path.lexists(path / name) and not _is_own(path, name):
            return bad("adopt-link", name=name[:80])
    if large := [name for name in plain if (path / name).stat().st_size > _MOST_FILE_BYTES]:
        return bad("adopt-large", name=large[0])
    brings_code = folders.brings_code(path)
    kinds = folders.architectures()
    if brings_code and not is_adapter and read_object(path / "config.json").get("model_type") not in kinds:
        return bad("base-remote-code")
    if is_adapter and folders.is_pointer(path / adapters.WEIGHTS):
        return None, list(seen.problems)
    if seen.stored is not None:
        return bad("adopt-quantized", bits=seen.stored.bits)
    adapter, problems = adapters.read(path) if is_adapter else (None, list(seen.problems))
    if problems:
        return None, problems
    own = any(name in plain for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    files = tuple(name for name in taken if own or name not in _TOKENIZER)
    found = Brought(
        folder=path, what=seen.kind, files=files, adapter=adapter, own_tokenizer=own, tool=seen.tool or "",
        notes=(*(() if is_adapter else seen.notes), *((folders.code_note(),) if brings_code else ())),
    )  # fmt: skip
    return found, []


def _is_own(folder: Path, name: str) -> bool:
    """Whether a file lies in the folder: no link to elsewhere, but for the hub's cache, which links to blobs beside."""
    place = folder.resolve()
    home = place.parents[1] if place.parent.name == "snapshots" else place
    try:
        target = (folder / name).resolve(strict=True)
        return target.is_relative_to(home) and stat.S_ISREG(target.stat().st_mode)
    except OSError:
        return False


def tensors(folder: Path) -> adapters.Tensors:
    """Return the shapes of all tensors of a model, over its files. Raises looker.Refused."""
    return looker.ask(_tensors, folder, at=folder)


def _tensors(folder: Path) -> adapters.Tensors:
    return {name: shape for file in weights.files(folder).present for name, shape in weights.shapes(file).items()}


def unlike(mine: adapters.Tensors, base: adapters.Tensors) -> list[str]:
    """Return the tensors in which a whole model is of another build than its base. Rows of embedding and output layer may
    be more or fewer: tokens are added and taken away; a tied output layer may be stored or not."""
    found = []
    for name in sorted(set(mine) | set(base)):
        one, other = mine.get(name), base.get(name)
        words = name.endswith((*EMBEDDINGS, "lm_head.weight"))
        if one is None or other is None:
            found += [] if name == "lm_head.weight" else [name]
        elif one != other and not (words and one[1:] == other[1:]):
            found.append(f"{name}: {' × '.join(map(str, one))}, here {' × '.join(map(str, other))}")
    return found


def tokens_of(folder: Path) -> int | None:
    """Return one more than the largest token id of a tokenizer.json; None when it cannot be told. Raises
    looker.Refused."""
    return looker.ask(_tokens_of, folder, at=folder)


def _tokens_of(folder: Path) -> int | None:
    told = read_object(folder / "tokenizer.json")
    try:
        ids = [one["id"] for one in told.get("added_tokens", [])]
        vocabulary = told["model"]["vocab"]
        ids += vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return max(ids) + 1
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def digest(brought: Brought, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Return the sha256 over names and contents of all that is taken. Raises OSError."""
    whole = hashlib.sha256()
    for name in sorted(brought.files):
        whole.update(f"{name}\0{(brought.folder / name).stat().st_size}\0".encode())
        for chunk in _chunks(brought.folder / name):
            whole.update(chunk)
            on_bytes(len(chunk))
    return whole.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def take(brought: Brought, run_dir: Path, sha256: str, on_bytes: Callable[[int], None] = lambda _: None) -> Path:
    """Copy what is taken of a folder into a run, beside its place and renamed when it is whole, and return the folder.

    What was looked at must be what is copied: raises Refused when the sha256 is another, or the disk has no room, and
    OSError. Nothing is left behind then.
    """
    target, partial = run_dir / brought.what, run_dir / f"{brought.what}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    needed, free = brought.size_bytes + SPARE_BYTES, shutil.disk_usage(run_dir).free
    if free < needed:
        raise Refused("adopt-disk", free=free // 2**20, needed=needed // 2**20)
    partial.mkdir()
    try:
        whole = hashlib.sha256()
        for name in sorted(brought.files):
            source = brought.folder / name
            whole.update(f"{name}\0{source.stat().st_size}\0".encode())
            with (partial / name).open("wb") as file:
                for chunk in _chunks(source):
                    whole.update(chunk)
                    file.write(chunk)
                    on_bytes(len(chunk))
                file.flush()
                os.fsync(file.fileno())
        if whole.hexdigest() != sha256:
            raise Refused("adopt-changed", folder=str(brought.folder)[:300])
        _write_settings(brought, partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _write_settings(brought: Brought, folder: Path) -> None:
    """Write the settings that libraries read as we understood them."""
    if brought.adapter is not None:
        (folder / adapters.CONFIG).write_text(json.dumps(brought.adapter.config, indent=2), "utf-8")
        return
    config = folders.kept_settings(read_object(folder / "config.json"))
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
