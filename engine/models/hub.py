"""Models of the hub: search, look at one before it is fetched, fetch all that a training needs of it."""

from __future__ import annotations

import fnmatch
import re

import msgspec

from engine.models import download, refs
from engine.models.download import point
from engine.models.hub_client import TIMEOUT_S, File, HubError, Progress, api, told
from engine.words import Problem

# Files beside the weights that a tokenizer, a config or a template is read from; nothing here can run.
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
SMALL_FILE_BYTES = 64 << 20
# What a look fetches: enough for the memory estimate, the template and what the tokenizer lacks.
LOOK_FILES = ("config.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub says of a model. `commit` is what was current; `readable` is False when a permission is missing."""

    id: str
    commit: str
    gated: bool
    readable: bool
    licence: str | None
    parameters: int | None
    files: tuple[File, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def download_bytes(self) -> int:
        return sum(file.size for file in self.files)


class Found(msgspec.Struct, frozen=True):
    """One answer of a search."""

    id: str
    downloads: int
    gated: bool


def search(text: str, *, token: str | None = None, limit: int = 20) -> list[Found]:
    """Return text-writing models with safetensors whose id holds `text`, the most used first. Raises HubError."""
    with told(text[:80]):
        found = api(token).list_models(
            search=text, filter=["safetensors"], pipeline_tag="text-generation", sort="downloads", limit=limit,
            expand=["downloads", "gated"],
        )  # fmt: skip
        return [Found(one.id, int(one.downloads or 0), bool(one.gated)) for one in found]


def look(ref: str, *, token: str | None = None) -> Model:
    """Return what the hub says of a model, and fetch its config and the small files of its tokenizer into the cache,
    so that `bases.describe` knows its shape. No weights. Raises HubError."""
    name, revision = refs.split_ref(ref)
    with told(name, revision):
        info = api(token).model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    files = [
        File(one.rfilename, int(one.size or 0), one.lfs.sha256 if one.lfs else None, one.blob_id)
        for one in info.siblings or []
    ]
    wanted, problems = _wanted(name, files)
    readable = True
    try:
        download.fetch(name, info.sha, [f for f in wanted if f.name in LOOK_FILES], kind="models", token=token)
        point(name, revision, info.sha)
    except HubError as error:
        if not error.problem.rule.startswith("hub-gated"):
            raise
        problems.append(error.problem)
        readable = False
    card = info.card_data.to_dict() if info.card_data is not None else {}
    licence = card.get("license_name") if card.get("license") == "other" else card.get("license")
    return Model(
        id=name,
        commit=info.sha,
        gated=bool(info.gated),
        readable=readable,
        licence=str(licence)[:60] if licence else None,
        parameters=info.safetensors.total if info.safetensors is not None else None,
        files=tuple(wanted),
        problems=tuple(problems),
    )


def _wanted(name: str, files: list[File]) -> tuple[list[File], list[Problem]]:
    """Return the files a training needs, and why there can be none: weights as one file or by their index, the small
    files at the top. Copies in other formats (consolidated, onnx, gguf, .bin) stay where they are."""
    top = [file for file in files if "/" not in file.name and "\\" not in file.name and not file.name.startswith(".")]
    small = [
        file for file in top
        if file.size <= SMALL_FILE_BYTES and any(fnmatch.fnmatchcase(file.name, pattern) for pattern in SMALL_FILES)
    ]  # fmt: skip
    weights = [file for file in top if file.name == "model.safetensors"]
    weights = weights or [f for f in top if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", f.name)]
    weights = weights or [f for f in top if f.name.endswith(".safetensors") and not f.name.startswith("consolidated")]
    problems = []
    if not any(file.name == "config.json" for file in top):
        problems.append(Problem(rule="hub-no-config", where="base", parameters={"id": name}))
    if not weights:
        pickles = any(f.name.endswith((".bin", ".pt", ".pth", ".ckpt")) for f in files)
        rule = "hub-pickle" if pickles else "hub-no-weights"
        problems.append(Problem(rule=rule, where="base", parameters={"id": name}))
    return [*small, *weights], problems


def fetch(ref: str, *, token: str | None = None, progress: Progress | None = None) -> str:
    """Fetch all a training needs of a model and return its commit. What an earlier try brought is kept and gone on with;
    what arrives is held against its hash, and a file that is not what the hub promised is thrown away. Raises HubError."""
    model = look(ref, token=token)
    if model.problems:
        error = HubError("hub-file", id=model.id)
        error.problem = model.problems[0]
        raise error
    download.fetch(model.id, model.commit, list(model.files), kind="models", token=token, progress=progress)
    point(model.id, refs.split_ref(ref)[1], model.commit)
    return model.commit
