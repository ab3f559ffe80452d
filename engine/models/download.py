"""Files of the hub, fetched so that a stop loses nothing, into the cache where every other tool finds them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engine.models import cache, hub_client, refs
from engine.models.hub_client import (
    CHUNK_BYTES,
    DATA_ENDINGS,
    PIECE_BYTES,
    SPARE_BYTES,
    TIMEOUT_S,
    File,
    HubError,
    Progress,
    endpoint,
)


def _repository(name: str, kind: str) -> Path:
    return cache.hub_cache() / f"{kind}--{name.replace('/', '--')}"


def point(name: str, revision: str | None, commit: str) -> None:
    """Remember which commit a branch stood for, as the hub's cache does."""
    revision = revision or "main"
    if revision != commit and refs.is_revision(revision):
        path = _repository(name, "models") / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)


def fetch(
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
    with hub_client.told(name, commit):
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
