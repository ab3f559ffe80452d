"""Models to choose from: a short list of open ones (models.yaml), and folders that a person has named."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import msgspec
import yaml

from engine.models import counted, shapes
from engine.models.bases import Base, describe, is_folder
from engine.models.cache import MOST_CACHED
from engine.words import Problem
from engine.workspace import Workspace, find_struct, write_atomically


def folders(workspace: Workspace) -> list[str]:
    """Return the folders with models that a person has named, those that are still there."""
    found = find_struct(workspace.root / "folders.json", list[str])
    return [folder for folder in found or () if is_folder(Path(folder))]


# What is wrong with the machine, or was only while it had much to do.
_PASSES = (*counted.RULES, "look-time", "look-busy")


def unreadable(workspace: Workspace) -> dict[Path, Problem]:
    """Return the models read from GGUF files of which something is damaged, each with what. One that only cannot be built
    here, or not be looked at in time, is not damaged."""
    found = {}
    for folder in sorted(workspace.models_dir.glob("[!.]*")):
        wrong = [one for one in describe(str(folder), workspace).problems if one.rule not in _PASSES]
        if wrong:
            found[folder] = wrong[0]
    return found


def remember_folder(workspace: Workspace, folder: str) -> None:
    """Keep a folder for the list of models on this machine, where the disk takes it."""
    known = folders(workspace)
    if folder not in known:
        with suppress(OSError):
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
    def shape(self) -> shapes.Shape:
        found = shapes.read_shape(self.config)
        assert found is not None, self.id
        return found

    @property
    def parameters(self) -> int:
        return shapes.count_parameters(self.shape)

    @property
    def base(self) -> Base:
        """The model as far as it is known without a look at the hub, to plan with."""
        shape = self.shape
        return Base(
            ref=self.id, kind="hub", title=self.id, parameters=self.parameters, layers=shape.layers,
            hidden=shape.hidden, window_tokens=self.window_tokens, shape=shape,
        )  # fmt: skip

    @property
    def window_tokens(self) -> int:
        return int(self.config["max_position_embeddings"])

    @property
    def weights_bytes(self) -> int:
        """The size of the weights in 16 bits, as such models are stored; the tokenizer adds a few MB."""
        return 2 * self.parameters


# So far from a size that somebody names may a model of it be: what is called 7B has up to 7.7 billion parameters.
_NEAR = math.log(1.15)


def of_size(parameters: float) -> Known | None:
    """Return the model of the short list that stands for a size somebody names, such as 7B: one that nobody must be asked
    for before one that asks, a base before one that follows instructions, then the nearest. None where none is near."""

    def apart(one: Known) -> float:
        return abs(math.log(one.parameters / parameters))

    near = [one for one in curated() if apart(one) <= _NEAR]
    return min(near, key=lambda one: (one.gated, one.kind != "base", apart(one)), default=None)


def as_listed(base: Base) -> Base:
    """Return a base of which neither file nor hub has told the shape with that of the short list, where it stands there."""
    if base.kind != "hub" or base.folder is not None or base.looked_at is not None:
        return base
    known = next((one.base for one in curated() if one.id == base.spec_ref), None)
    if known is None:
        return base
    return msgspec.structs.replace(
        known, ref=base.ref, title=base.title, revision=base.revision, problems=base.problems
    )


@lru_cache(maxsize=1)
def curated() -> tuple[Known, ...]:
    """Return the short list of open models, smallest first (engine/models/models.yaml)."""
    found = yaml.safe_load((Path(__file__).parent / "models.yaml").read_text("utf-8"))
    return tuple(msgspec.convert(found, list[Known]))
