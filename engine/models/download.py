"""Files of the hub, fetched so that a stop loses nothing, into the cache where every other tool finds them.

Not by huggingface_hub's snapshot_download, which begins a file anew after a stop (docs/decisions.md); its http_get can go
on. What comes is held against the hash that the hub names, and files and links lie as the library lays them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from engine.models import cache, hub_client, refs
from engine.models.hub_client import File, HubError
from engine.read import OnProgress

SPARE_BYTES = 100 << 20
PIECE_BYTES = 1 << 20


def point(name: str, revision: str | None, commit: str) -> None:
    """Remember which commit a branch of a model stood for, as the hub's cache does."""
    revision = revision or "main"
    if revision != commit and refs.is_revision(revision):
        path = cache.folder(name) / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)


def fetch(
    name: str, commit: str, files: list[File], *, kind: str, token: str | None, progress: OnProgress | None = None
) -> Path:
    """Fetch files of a model or a data set (`kind`) into the cache and return the snapshot's folder. Raises HubError."""
    folder = cache.folder(name, kind)
    snapshot, blobs = folder / "snapshots" / commit, folder / "blobs"
    missing = [file for file in files if not _is_there(snapshot / file.name, file)]
    if not missing:
        return snapshot
    total = sum(file.size for file in files)
    have = total - sum(file.size for file in missing)
    tell = progress or (lambda done, total: None)
    try:
        blobs.mkdir(parents=True, exist_ok=True)
        begun = sum(path.stat().st_size for f in missing if (path := _partial(blobs, f)).exists())
        free, needed = shutil.disk_usage(blobs).free, total - have - begun + SPARE_BYTES
        if free < needed:
            raise HubError("hub-disk", id=name, free=free >> 20, needed=needed >> 20)
        # The index and the small files come first: what is there then says which weights are still missing.
        for file in sorted(missing, key=lambda file: (file.name.endswith(".safetensors"), file.name)):
            with _alone(blobs, file):  # two that fetch the same would write into one file
                if not _is_there(blobs / file.hash, file):
                    _bring(name, commit, file, blobs, kind, token, lambda n, before=have: tell(before + n, total))
                _link(snapshot / file.name, blobs / file.hash)
            have += file.size
            tell(have, total)
    except OSError as error:
        raise HubError("hub-store", id=name, reason=error.strerror or type(error).__name__) from error
    return snapshot


def _alone(blobs: Path, file: File) -> AbstractContextManager[Any]:
    """Hold the lock under which huggingface_hub, too, fetches this file."""
    from huggingface_hub.utils import WeakFileLock

    path = cache.hub_cache() / ".locks" / blobs.parent.name / f"{file.hash}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return WeakFileLock(path)


def _partial(blobs: Path, file: File) -> Path:
    return blobs / f"{file.hash}.incomplete"


def _is_there(path: Path, file: File) -> bool:
    try:
        return path.stat().st_size == file.size
    except OSError:
        return False


def _bring(
    name: str, commit: str, file: File, blobs: Path, kind: str, token: str | None, told: Callable[[int], None]
) -> None:
    """Bring one blob whole: go on where an earlier try ended, then hold it against its hash."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    constants.DOWNLOAD_CHUNK_SIZE = PIECE_BYTES  # its own 10 MiB say nothing for minutes on a slow line
    partial = _partial(blobs, file)
    with hub_client.told(name, commit):
        url = hf_hub_url(name, file.name, revision=commit, repo_type=kind, endpoint=hub_client.endpoint())
        location = get_hf_file_metadata(url, token=token or None, timeout=hub_client.TIMEOUT_S).location
        headers = build_hf_headers(token=token or None)
        if urlsplit(location).hostname not in (hub_client.host(), *constants.HF_URL_HOSTS):
            headers.pop("authorization", None)  # the store behind the hub has an address signed for this file
        with partial.open("ab") as out:
            bar: Any = functools.partial(_bar, out, told)
            if out.tell() < file.size:
                http_get(location, out, resume_size=out.tell(), headers=headers, tqdm_class=bar)
    if not _matches(partial, file):
        partial.unlink(missing_ok=True)
        raise HubError("hub-corrupt", id=name, file=file.name)
    os.replace(partial, blobs / file.hash)


@contextmanager
def _bar(out: BinaryIO, told: Callable[[int], None], **_: Any) -> Iterator[Any]:
    """Tell how much is in the file wherever the library would draw a bar."""
    yield SimpleNamespace(update=lambda _: told(out.tell()))


def _matches(path: Path, file: File) -> bool:
    """Whether a file is what the hub promised."""
    with path.open("rb") as content:
        if file.is_large:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.hash
        git = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        return hashlib.file_digest(content, lambda: git).hexdigest() == file.hash


def _link(path: Path, blob: Path) -> None:
    """Let a name of the snapshot point at its blob; where links are not to be had, the file itself goes there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:
        os.replace(blob, path)
