"""What a stored score belongs to: all that decides an answer, and nothing that does not, such as where a home lies."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import transformers

from engine.models import Base, bases
from engine.runs import store
from engine.train.tokenize import coder_of
from engine.workspace import Workspace, read_object

# How this package scores: one more whenever the same questions would give other items. Up to 3, a model that Unsloth had
# loaded could be read past its window, or past its own call: such scores may be wrong.
SCORING = 4
# lm-evaluation-harness's version; the package itself is imported where it is asked.
HARNESS = metadata.version("lm-eval")
# How it is said of a model that Unsloth computes it.
BY_UNSLOTH = ", by Unsloth"
# Keys of a config that say where it came from or who wrote it, and nothing of the model.
_ORIGIN = ("_name_or_path", "transformers_version", "base_model_name_or_path", "inference_mode", "revision")


class Model(NamedTuple):
    """What answers: `weights` and `settings` name the files of a model, `held` how they are held (load.held)."""

    weights: str
    settings: str
    held: str


def model(base: Base, workspace: Workspace, held: str) -> Model:
    """Return what names a base as it is asked."""
    return Model(weights_key(base, workspace), _settings(base, workspace), held)


def weights_key(base: Base, workspace: Workspace) -> str:
    """Return what names these weights: the commit of a hub snapshot, else the sha256 of the files, an adapter's with
    those of what lies below it."""
    if base.kind == "hub" and base.folder is not None:
        return f"hub:{base.ref}@{base.folder.name}"
    if base.folder is None:
        return f"ref:{base.ref}"
    below = _below(base, workspace)
    digest = hashlib.sha256(b"" if below is None else weights_key(below, workspace).encode())
    for path in sorted(base.folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _below(base: Base, workspace: Workspace) -> Base | None:
    """Return what an adapter lies on; None for whole weights."""
    if base.kind != "run" or base.folder is None or base.folder.name != "adapter":
        return None
    made = store.over_its_base(workspace, store.load_spec(workspace, base.ref.removeprefix("run:")))
    return bases.describe(made.base.ref, workspace, made.base.revision)


def _settings(base: Base, workspace: Workspace) -> str:
    """Return what names the settings beside the weights: the model's, those of what it writes by itself, an adapter's."""
    below = _below(base, workspace)
    found: list[Any] = [] if below is None else [_settings(below, workspace)]
    for name in ("config.json", "generation_config.json", "adapter_config.json"):
        found.append(_read(base.folder / name) if base.folder is not None else None)
    return _sha(found)


def _read(path: Path) -> Any:
    told = read_object(path)
    return {key: value for key, value in told.items() if key not in _ORIGIN} if told else None


def _tokens(tokenizer: Any) -> str:
    """Return what names how text becomes tokens; how a batch was last filled up or cut is no part of that."""
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    told.pop("padding", None)
    told.pop("truncation", None)
    return _sha([told, {name: str(token) for name, token in tokenizer.special_tokens_map.items()}])


def of_question(answers: Model, question: Any, tokenizer: Any, scoring: int = SCORING) -> str:
    """Return the key of what a model answers to a question (scores.Question): the model and how it is held, its tokens,
    what is asked under which settings in which template on which day, where an answer ends, and what scores it."""
    coder = coder_of(tokenizer)
    return _sha(
        [
            answers, _tokens(tokenizer), question.benchmark, question.settings, question.asked, tokenizer.chat_template,
            coder.template.day, coder.stops, scoring, HARNESS, transformers.__version__,
        ]
    )  # fmt: skip


def before(answers: Model, question: Any, tokenizer: Any) -> str:
    """Return the key under which the version before stored the same, which it may have scored wrongly."""
    held = answers._replace(held=answers.held.removesuffix(BY_UNSLOTH))
    return of_question(held, question, tokenizer, SCORING - 1)


def _sha(value: Any) -> str:
    said = json.dumps(msgspec.to_builtins(value, str_keys=True), sort_keys=True)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()
