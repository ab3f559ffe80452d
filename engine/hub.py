"""The Hugging Face hub: search, look at a model before it is fetched, fetch it so that a stop loses nothing.

Everything goes through huggingface_hub, so mirrors (HF_ENDPOINT), proxies and the user's own login count as everywhere
else. A token is an argument or the child's environment (HF_TOKEN); it is in no file, message or address. What is fetched
lies in the hub's own cache, where every other tool finds it: blobs/<hash>, and snapshots/<commit>/<name> pointing there.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import msgspec

from engine import bases
from engine.words import Problem

# A server that says nothing for so long is not there. huggingface_hub's own default waits as long, but tries five times.
TIMEOUT_S = 10.0
# Files beside the weights that a tokenizer, a config or a template is read from; nothing here can run.
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
SMALL_FILE_BYTES = 64 << 20
# What a look fetches: enough for the memory estimate, the template and what the tokenizer lacks.
LOOK_FILES = ("config.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
DATA_ENDINGS = (".parquet", ".jsonl", ".json", ".csv")
SPARE_BYTES = 100 << 20
CHUNK_BYTES = 4 << 20
PIECE_BYTES = 1 << 20

Progress = Callable[[int, int], None]


class HubError(Exception):
    """Something cannot be had from the hub; `problem` says what and what to do."""

    def __init__(self, rule: str, **parameters: str | int):
        self.problem = Problem(rule=rule, where="base", parameters=dict(parameters))
        super().__init__(self.problem.sentence)


class File(msgspec.Struct, frozen=True):
    """A file of a repository: `sha256` of large ones, else `blob`, git's hash of its content."""

    name: str
    size: int
    sha256: str | None = None
    blob: str | None = None


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


def endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT, read now and not when a library was imported."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def _api(token: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), token=token or None)


@contextmanager
def _told(what: str, revision: str | None = None) -> Iterator[None]:
    """Turn every way in which the hub can refuse into a HubError; none of the messages repeats what was sent."""
    import httpx
    from huggingface_hub import errors

    host = urlsplit(endpoint()).hostname or ""
    if offline():
        raise HubError("hub-offline-asked", id=what)
    try:
        yield
    except errors.GatedRepoError as error:
        status = error.response.status_code if error.response is not None else 403
        raise HubError("hub-gated-refused" if status == 403 else "hub-gated", id=what, host=host) from None
    except errors.RevisionNotFoundError:
        raise HubError("hub-revision", id=what, revision=str(revision or "main")[:60]) from None
    except errors.RepositoryNotFoundError:
        raise HubError("hub-not-found", id=what, host=host) from None
    except errors.EntryNotFoundError:
        raise HubError("hub-file", id=what) from None
    except errors.HFValidationError:
        raise HubError("hub-id", id=what) from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError):
        raise HubError("hub-unreachable", id=what, host=host) from None
    except (errors.HfHubHTTPError, httpx.HTTPStatusError) as error:
        status = error.response.status_code if error.response is not None else 0
        rules = {401: "hub-token", 403: "hub-forbidden", 404: "hub-not-found"}
        raise HubError(rules.get(status, "hub-status"), id=what, host=host, status=status) from None
    except httpx.HTTPError:
        raise HubError("hub-unreachable", id=what, host=host) from None
    except ValueError:  # an answer that is no JSON: a portal of a hotel, a mirror that is none
        raise HubError("hub-answer", id=what, host=host) from None


# --- search and look -------------------------------------------------------------------------------------------------


def search(text: str, *, token: str | None = None, limit: int = 20) -> list[Found]:
    """Return text-writing models with safetensors whose id holds `text`, the most used first. Raises HubError."""
    with _told(text[:80]):
        found = _api(token).list_models(
            search=text, filter=["safetensors"], pipeline_tag="text-generation", sort="downloads", limit=limit,
            expand=["downloads", "gated"],
        )  # fmt: skip
        return [Found(one.id, int(one.downloads or 0), bool(one.gated)) for one in found]


def look(ref: str, *, token: str | None = None) -> Model:
    """Return what the hub says of a model, and fetch its config and the small files of its tokenizer into the cache,
    so that `bases.describe` knows its shape. No weights. Raises HubError."""
    name, revision = bases.split_ref(ref)
    with _told(name, revision):
        info = _api(token).model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    files = [
        File(one.rfilename, int(one.size or 0), one.lfs.sha256 if one.lfs else None, one.blob_id)
        for one in info.siblings or []
    ]
    wanted, problems = _wanted(name, files)
    readable = True
    try:
        _fetch(name, info.sha, [f for f in wanted if f.name in LOOK_FILES], kind="models", token=token)
        _point(name, revision, info.sha)
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


# --- fetching --------------------------------------------------------------------------------------------------------


def fetch(ref: str, *, token: str | None = None, progress: Progress | None = None) -> str:
    """Fetch all a training needs of a model and return its commit. What an earlier try brought is kept and gone on with;
    what arrives is held against its hash, and a file that is not what the hub promised is thrown away. Raises HubError."""
    model = look(ref, token=token)
    if model.problems:
        error = HubError("hub-file", id=model.id)
        error.problem = model.problems[0]
        raise error
    _fetch(model.id, model.commit, list(model.files), kind="models", token=token, progress=progress)
    _point(model.id, bases.split_ref(ref)[1], model.commit)
    return model.commit


def _repository(name: str, kind: str) -> Path:
    return bases.hub_cache() / f"{kind}--{name.replace('/', '--')}"


def _point(name: str, revision: str | None, commit: str) -> None:
    """Remember which commit a branch stood for, as the hub's cache does."""
    revision = revision or "main"
    if revision != commit and bases.is_revision(revision):
        path = _repository(name, "models") / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)


def _fetch(
    name: str, commit: str, files: list[File], *, kind: str, token: str | None, progress: Progress | None = None
) -> Path:
    """Fetch files into the cache and return the snapshot's folder. Raises HubError."""
    if not re.fullmatch(r"[0-9a-f]{40}", commit or ""):
        raise HubError("hub-answer", id=name, host=urlsplit(endpoint()).hostname or "")
    repository = _repository(name, kind)
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    total = sum(file.size for file in files)
    # The index and the small files come first: what is there then says which weights are still missing.
    files = sorted(files, key=lambda file: (file.name.endswith((".safetensors", *DATA_ENDINGS[:1])), file.name))
    missing = [file for file in files if not _is_there(snapshot / file.name, file)]
    have = total - sum(file.size for file in missing)
    try:
        if missing:
            blobs.mkdir(parents=True, exist_ok=True)
            begun = sum(p.stat().st_size for f in missing if (p := _partial(blobs, f)).exists())
            free, needed = shutil.disk_usage(blobs).free, sum(f.size for f in missing) - begun + SPARE_BYTES
            if free < needed:
                raise HubError("hub-disk", id=name, free=free >> 20, needed=needed >> 20)
        for file in missing:
            told = None if progress is None else (lambda n, before=have: progress(min(before + n, total), total))
            _fetch_one(name, commit, file, blobs, kind, token, told)
            _link(snapshot / file.name, blobs / _key(file))
            have += file.size
            if progress is not None:
                progress(have, total)
    except OSError as error:
        import httpx

        if isinstance(error, httpx.HTTPError):
            raise
        raise HubError("hub-store", id=name, reason=error.strerror or type(error).__name__) from error
    return snapshot


def _key(file: File) -> str:
    """Return the name of a blob: the hash the hub gave, never a name it chose."""
    key = file.sha256 or file.blob or ""
    return key if re.fullmatch(r"[0-9a-f]{40,64}", key) else hashlib.sha256(file.name.encode()).hexdigest()


def _partial(blobs: Path, file: File) -> Path:
    return blobs / f"{_key(file)}.incomplete"


def _is_there(path: Path, file: File) -> bool:
    try:
        return path.stat().st_size == file.size
    except OSError:
        return False


def _fetch_one(
    name: str, commit: str, file: File, blobs: Path, kind: str, token: str | None, told: Callable[[int], None] | None
) -> None:
    """Bring one blob whole: go on where an earlier try ended, then hold it against its hash.

    huggingface_hub 1.33 begins every large file anew, in a file of its own (file_download.py, `_download_to_tmp_and_move`);
    its `http_get` takes a place to go on from."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars

    disable_progress_bars()
    constants.DOWNLOAD_CHUNK_SIZE = PIECE_BYTES  # its own 10 MiB say nothing for minutes on a slow line
    target, partial = blobs / _key(file), _partial(blobs, file)
    if _is_there(target, file):
        return
    with _told(name, commit):
        repo_type = "dataset" if kind == "datasets" else None
        url = hf_hub_url(name, file.name, revision=commit, repo_type=repo_type, endpoint=endpoint())
        metadata = get_hf_file_metadata(url, token=token or None, timeout=TIMEOUT_S, endpoint=endpoint())
        headers = build_hf_headers(token=token or None)
        if urlsplit(metadata.location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)  # the store behind the hub has an address signed for this file
        begun = partial.stat().st_size if partial.exists() else 0
        if begun > file.size:
            partial.unlink()
            begun = 0
        with partial.open("ab") as out:
            http_get(
                metadata.location,
                _Counted(out, begun, told),  # pyright: ignore[reportArgumentType]
                resume_size=begun,
                headers=headers,
                expected_size=file.size,
            )
    if not _matches(partial, file):
        partial.unlink(missing_ok=True)
        raise HubError("hub-corrupt", id=name, file=file.name)
    os.replace(partial, target)


class _Counted:
    """A file that says how much of it is there after each piece."""

    def __init__(self, file: Any, begun: int, told: Callable[[int], None] | None):
        self.file, self.told = file, told
        self.there = begun

    def write(self, piece: bytes) -> int:
        self.file.write(piece)
        self.there += len(piece)
        if self.told is not None:
            self.told(self.there)
        return len(piece)

    def truncate(self, size: int | None = None) -> int:
        """A server that cannot go on sends all of it again."""
        self.there = self.file.tell() if size is None else size
        return self.file.truncate(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _matches(path: Path, file: File) -> bool:
    """Whether a file is what the hub promised: sha256 of a large file, git's sha1 of a small one."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is None and file.blob is None:
        return True
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as content:
        while piece := content.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest() == (file.sha256 or file.blob)


def _link(path: Path, blob: Path) -> None:
    """Let a name of the snapshot point at its blob; where links are not to be had, the file itself goes there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:
        os.replace(blob, path)


# --- data ------------------------------------------------------------------------------------------------------------


class Part(msgspec.Struct, frozen=True):
    """One choice within a data set: a config and a split, and the files that are it, on one revision."""

    config: str
    split: str
    files: tuple[File, ...]
    commit: str


_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip


def data_parts(name: str, *, token: str | None = None) -> tuple[Part, ...]:
    """Return configs and splits of a data set on the hub: as its card names them, else as its files are called, else the
    copy in Parquet that the hub keeps of it. A script is never run. Raises HubError."""
    for revision in (None, "refs/convert/parquet"):
        try:
            with _told(name, revision):
                info = _api(token).dataset_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        except HubError as error:
            if revision is not None and error.problem.rule in ("hub-revision", "hub-not-found"):
                break  # the hub keeps no copy of this one
            raise
        files = [
            File(one.rfilename, int(one.size or 0), one.lfs.sha256 if one.lfs else None, one.blob_id)
            for one in info.siblings or []
            if one.rfilename.endswith(DATA_ENDINGS) and ".." not in PurePosixPath(one.rfilename).parts
            and PurePosixPath(one.rfilename).name not in ("dataset_infos.json", "dataset_info.json")
        ]  # fmt: skip
        if files:
            card = info.card_data.to_dict() if info.card_data is not None else {}
            named = _by_card(card.get("configs"), files)
            groups = named or _by_name(files)
            return tuple(Part(config, split, tuple(group), info.sha) for (config, split), group in groups.items())
    raise HubError("hub-data-none", id=name)


def _by_card(configs: object, files: list[File]) -> dict[tuple[str, str], list[File]]:
    """The hub's own form: configs: [{config_name, data_files: path, or [{split, path}]}]; paths may hold * and **."""
    found: dict[tuple[str, str], list[File]] = {}
    for one in configs if isinstance(configs, list) else []:
        if not isinstance(one, dict):
            continue
        given = one.get("data_files")
        entries = given if isinstance(given, list) else [given]
        for entry in entries:
            entry = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
            paths = entry.get("path")
            for pattern in paths if isinstance(paths, list) else [paths]:
                matched = [f for f in files if isinstance(pattern, str) and fnmatch.fnmatchcase(f.name, pattern)]
                key = (str(one.get("config_name") or "default"), str(entry.get("split") or "train"))
                if matched:
                    found.setdefault(key, []).extend(matched)
    return found


def _by_name(files: list[File]) -> dict[tuple[str, str], list[File]]:
    """config/split/0000.parquet, data/train-00000-of-00002.parquet, test.jsonl: the first word that names a split does."""
    found: dict[tuple[str, str], list[File]] = {}
    for file in files:
        path = PurePosixPath(file.name)
        words = re.split(r"[^a-z]+", file.name.lower())
        split = next((_SPLITS[word] for word in words if word in _SPLITS), "train")
        folders = [part for part in path.parts[:-1] if part != "data" and part.lower() not in _SPLITS]
        found.setdefault(("/".join(folders) or "default", split), []).append(file)
    return found


def split_data_ref(text: str) -> tuple[str, str | None, str | None]:
    """Return id, config and split of hf:owner/name[:config][:split]; with one part more, it may be either."""
    name, *rest = text.removeprefix("hf:").split(":")
    config, split = (rest[0], rest[1]) if len(rest) > 1 else (None, rest[0] if rest else None)
    return name.strip(), config or None, split or None


def choose_part(parts: tuple[Part, ...], name: str, config: str | None, split: str | None) -> Part:
    """Return the part that was asked for: train and the first config where nothing is said. Raises HubError."""
    names = ", ".join(f"{part.config}:{part.split}" for part in parts)[:400]
    fitting = [p for p in parts if config in (None, p.config) and split in (None, p.split)]
    if not fitting and config is None and split is not None:  # the one word was a config
        fitting = [p for p in parts if p.config == split]
    usual = [p for p in fitting if p.config == "default"] or fitting
    usual = [p for p in usual if p.split == "train"] or usual
    if not usual:
        raise HubError("hub-data-part", id=name, names=names)
    return usual[0]


def fetch_data(ref: str, into: Path, *, token: str | None = None, progress: Progress | None = None) -> tuple[Path, str]:
    """Fetch the files of hf:owner/name[:config][:split] as one file in the folder `into`; return it and its name. The
    check that every file goes through comes after. Raises HubError."""
    name, config, split = split_data_ref(ref)
    part = choose_part(data_parts(name, token=token), name, config, split)
    snapshot = _fetch(name, part.commit, list(part.files), kind="datasets", token=token, progress=progress)
    title = f"{name} ({part.config}, {part.split})"
    paths = [snapshot / file.name for file in part.files]
    endings = {path.suffix for path in paths}
    if len(paths) > 1 and (len(endings) > 1 or not endings <= {".parquet", ".jsonl"}):
        raise HubError("hub-data-kinds", id=name, names=", ".join(file.name for file in part.files)[:200])
    into.mkdir(parents=True, exist_ok=True)
    target = into / f"fetched{paths[0].suffix}"
    if paths[0].suffix == ".parquet" and len(paths) > 1:
        _join_parquet(name, paths, target)
        return target, title
    with target.open("wb") as out:
        for path in paths:
            with path.open("rb") as content:
                shutil.copyfileobj(content, out, CHUNK_BYTES)
            if len(paths) > 1:
                out.write(b"\n")  # a file may lack its last line break; an empty line is no row
    return target, title


def _join_parquet(name: str, paths: list[Path], target: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(paths[0])
        with pyarrow.parquet.ParquetWriter(target, schema) as writer:
            for path in paths:
                for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
                    writer.write_table(pyarrow.Table.from_batches([batch]).cast(schema))
    except (pyarrow.ArrowException, ValueError) as error:
        target.unlink(missing_ok=True)
        raise HubError("hub-data-kinds", id=name, names=", ".join(path.name for path in paths)[:200]) from error
