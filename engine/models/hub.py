"""Models of the hub: search, look at one before it is fetched, fetch all that a training needs of it."""

from __future__ import annotations

import fnmatch
import re

import msgspec

from engine.models import download, hub_client, refs
from engine.models.hub_client import File, HubError, told
from engine.read import OnProgress
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
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        # The library's list_models waits for ever for a hub that says nothing.
        answer = get_session().get(
            f"{hub_client.endpoint()}/api/models",
            params={
                "search": text, "filter": "safetensors", "pipeline_tag": "text-generation", "sort": "downloads",
                "limit": limit, "expand": ["downloads", "gated"],
            },
            headers=build_hf_headers(token=token or None), timeout=hub_client.TIMEOUT_S,
        )  # fmt: skip
        hf_raise_for_status(answer)
        return [Found(one["id"], int(one["downloads"] or 0), bool(one["gated"])) for one in answer.json()]


def look(ref: str, *, token: str | None = None) -> Model:
    """Return what the hub says of a model, and fetch its config and the small files of its tokenizer into the cache,
    so that `bases.describe` knows its shape. No weights. Raises HubError."""
    name, revision = refs.split_ref(ref)
    found = hub_client.ask(name, revision, "model", token)
    wanted, problems = _wanted(name, found.files)
    readable = True
    try:
        download.fetch(name, found.commit, [f for f in wanted if f.name in LOOK_FILES], kind="model", token=token)
        download.point(name, revision, found.commit)
    except HubError as error:
        if not error.problem.rule.startswith("hub-gated"):
            raise
        problems.append(error.problem)
        readable = False
    licence = found.card.get("license_name" if found.card.get("license") == "other" else "license")
    return Model(
        id=name,
        commit=found.commit,
        gated=found.gated,
        readable=readable,
        licence=str(licence)[:60] if licence else None,
        parameters=found.parameters,
        files=tuple(wanted),
        problems=tuple(problems),
    )


def _wanted(name: str, files: tuple[File, ...]) -> tuple[list[File], list[Problem]]:
    """Return the files a training needs, and why there can be none: weights as one file or by their index, the small
    files at the top. Copies in other formats (consolidated, onnx, gguf, .bin) stay where they are."""
    top = [file for file in files if "/" not in file.name and "\\" not in file.name and not file.name.startswith(".")]
    small = [
        file for file in top
        if file.size <= SMALL_FILE_BYTES and any(fnmatch.fnmatchcase(file.name, pattern) for pattern in SMALL_FILES)
    ]  # fmt: skip
    weights = [file for file in top if file.name == "model.safetensors"]
    weights = weights or [f for f in top if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", f.name)]
    others = [f for f in top if f.name.endswith(".safetensors") and not f.name.startswith(("consolidated", "adapter"))]
    weights = weights or others
    problems = []
    if not weights and any(file.name == "adapter_config.json" for file in top):
        return small, [Problem(rule="hub-adapter", where="base", parameters={"id": name})]
    if not any(file.name == "config.json" for file in top):
        problems.append(Problem(rule="hub-no-config", where="base", parameters={"id": name}))
    if not weights:
        pickles = any(f.name.endswith((".bin", ".pt", ".pth", ".ckpt")) for f in files)
        rule = "hub-pickle" if pickles else "hub-no-weights"
        problems.append(Problem(rule=rule, where="base", parameters={"id": name}))
    return [*small, *weights], problems


def fetch(ref: str, *, token: str | None = None, progress: OnProgress | None = None) -> str:
    """Fetch all a training needs of a model and return its commit. What an earlier try brought is kept and gone on with;
    what arrives is held against its hash, and a file that is not what the hub promised is thrown away. Raises HubError."""
    model = look(ref, token=token)
    for problem in model.problems:
        raise HubError(problem.rule, **problem.parameters)
    download.fetch(model.id, model.commit, list(model.files), kind="model", token=token, progress=progress)
    return model.commit
