"""Uploads of any size: a stream of bytes from the browser becomes a whole file in the workspace's uploads folder.

The bytes go to disk as they come and are never held in memory. A file is written as `<id>.part` and renamed when every
byte that was announced is there, so that what has no ".part" is whole; one that breaks off is removed at once. Its name
is drawn here: what the browser calls a file is only ever shown. Who may send is decided by two things: the request
comes from a page of this server (Origin), and it carries a ticket that such a page was given for its workspace.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from engine import limits
from engine.words import Problem
from engine.workspace import BadId, Workspace, checked, nearest, scratch

LIMIT_MIB = 20 * 1024
WRITE_BYTES = 1 << 20
# The stored copy, its canonical rows and what a run writes come on top of the upload itself.
SPARE_BYTES = 200 << 20
COPIES = 2
TICKETS = 10_000
TICKET_AGE_S = 24 * 3600
# What a killed server or a closed page left behind is removed when it is older than this.
LEFTOVER_AGE_S = 24 * 3600
TICKET_HEADER = "X-Tunebook-Ticket"


class UploadRefused(Exception):
    """An upload that cannot be taken. `status` is the HTTP status; `problem` has the sentence for a person."""

    def __init__(self, status: int, rule: str, **parameters: str | int):
        self.problem = Problem(rule=rule, parameters=dict(parameters))
        super().__init__(self.problem.sentence)
        self.status = status


class _Ticket(NamedTuple):
    workspace: Workspace
    until_s: float


class _Coming:
    """An upload that is being sent: what of its announced bytes is not on the disk yet is kept free for it."""

    def __init__(self, root: Path, size: int):
        self.root, self.left = root, size


_tickets: dict[str, _Ticket] = {}
_coming: list[_Coming] = []
_counting = threading.RLock()
_route: list[str] = []


def served_at(path: str) -> None:
    """Called by the server once its upload route exists; without one the pages fall back on Streamlit's uploader."""
    _route[:] = [path]


def route() -> str | None:
    """The path of the upload route, or None where there is none."""
    return _route[0] if _route else None


def limit_bytes() -> int:
    """The largest upload: 20 GiB, or $TUNEBOOK_UPLOAD_LIMIT_MIB; in a hosted demo its own limit."""
    if limits.on():
        return limits.limits().upload_mib << 20
    given = os.environ.get("TUNEBOOK_UPLOAD_LIMIT_MIB", "")
    return (int(given) if given.isdecimal() else LIMIT_MIB) << 20


def ticket(workspace: Workspace, known: str | None = None) -> str:
    """Return a ticket that lets a page send files into `workspace`: the `known` one while it is good there, else a new one:
    that of a workspace whose time is over leads into none that a page shows."""
    now_s, held = time.monotonic(), _tickets.get(known or "")
    if known and held is not None and held.until_s > now_s + 3600 and held.workspace.root == workspace.root:
        return known
    for old in [name for name, one in _tickets.items() if one.until_s < now_s]:
        _tickets.pop(old, None)
    while len(_tickets) >= TICKETS:
        _tickets.pop(next(iter(_tickets)), None)
    made = secrets.token_urlsafe(32)
    _tickets[made] = _Ticket(workspace, now_s + TICKET_AGE_S)
    return made


def admitted(headers: Mapping[str, str]) -> Workspace:
    """Return the workspace that a request may send files into. Raises UploadRefused (403) for one from elsewhere."""
    origin = urlsplit(headers.get("origin", ""))
    known = _tickets.get(headers.get(TICKET_HEADER, ""))
    # A browser always says where a PUT comes from. Another site may send, but never under our Origin.
    if not origin.netloc or origin.netloc != headers.get("host") or known is None or known.until_s < time.monotonic():
        raise UploadRefused(403, "upload-not-allowed")
    return known.workspace


def check_room(workspace: Workspace, announced: str | None) -> int:
    """Return the size of an upload of `announced` bytes that can be taken. Raises UploadRefused when it cannot.

    A page asks this before it sends: an answer in the middle of a long body would not reach it.
    """
    if announced is None or not announced.isdecimal():
        raise UploadRefused(411, "upload-broken")
    size = int(announced)
    if size > limit_bytes():
        raise UploadRefused(413, "upload-too-large", limit_mib=limit_bytes() >> 20)
    if limits.on():
        with _counting:
            own = [one.left for one in _coming if one.root == workspace.root]
            others = sum(one.left for one in _coming) - sum(own)
        most = limits.limits().uploads_per_visitor
        if len(own) >= most:
            raise UploadRefused(429, "upload-busy", most=most)
        try:
            limits.check_disk(workspace, size + sum(own), others)
        except limits.OverLimit as refused:
            raise UploadRefused(507, refused.problems[0].rule, **refused.problems[0].parameters) from refused  # type: ignore[arg-type]
    try:
        free = shutil.disk_usage(nearest(workspace.uploads_dir)).free
    except OSError as error:
        raise UploadRefused(507, "upload-not-written", reason=error.strerror or str(error)) from error
    needed = COPIES * size + SPARE_BYTES
    if free < needed:
        raise UploadRefused(507, "upload-no-room", free_mib=free >> 20, needed_mib=-(-needed >> 20))
    return size


async def receive(workspace: Workspace, announced: str | None, pieces: AsyncIterator[bytes]) -> str:
    """Write a stream of `announced` bytes (the Content-Length) to disk and return the id of the upload.

    Raises UploadRefused when it is too large, does not fit the disk or breaks off; nothing is left of it then.
    """
    with _reserved(workspace, announced) as coming:
        return await _receive(workspace, coming, _in_time(pieces) if limits.on() else pieces)


@contextmanager
def _reserved(workspace: Workspace, announced: str | None) -> Iterator[_Coming]:
    """Keep the announced bytes free while they come. Raises UploadRefused."""
    with _counting:  # nobody is promised the same room meanwhile
        coming = _Coming(workspace.root, check_room(workspace, announced))
        _coming.append(coming)
    try:
        yield coming
    finally:
        with _counting:
            _coming.remove(coming)


async def _in_time(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces of a body until the time is up that a hosted demo gives it. Raises UploadRefused."""
    most_s = limits.limits().upload_s
    until_s = asyncio.get_running_loop().time() + most_s
    while True:
        try:
            async with asyncio.timeout_at(until_s):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise UploadRefused(408, "upload-slow", most_s=most_s) from error
        yield piece


async def _receive(workspace: Workspace, coming: _Coming, pieces: AsyncIterator[bytes]) -> str:
    size = coming.left
    remove_leftovers(workspace)
    folder = workspace.uploads_dir
    upload_id = secrets.token_hex(16)
    partial = folder / f"{scratch('upload')}{upload_id}.part"
    try:
        limits.settle(workspace)
        folder.mkdir(parents=True, exist_ok=True)
        written = await _write(partial, pieces, coming)
        if written != size:
            raise UploadRefused(400, "upload-broken")
        os.replace(partial, folder / upload_id)
    except limits.OverLimit as refused:  # other visitors came since there was room
        raise UploadRefused(507, refused.problems[0].rule) from refused
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UploadRefused(507, "disk-full") from error
        raise UploadRefused(507, "upload-not-written", reason=error.strerror or str(error)) from error
    finally:
        partial.unlink(missing_ok=True)
    return upload_id


async def _write(path: Path, pieces: AsyncIterator[bytes], coming: _Coming) -> int:
    """Write pieces in larger blocks, off the event loop, so that a slow disk holds up nobody else's page."""
    size, written = coming.left, 0
    held = bytearray()
    with path.open("xb", buffering=0) as file:
        async for piece in pieces:
            held += piece
            if written + len(held) > size:
                raise UploadRefused(400, "upload-broken")
            if len(held) >= WRITE_BYTES:
                await asyncio.to_thread(_write_all, file, held)
                written += len(held)
                coming.left = size - written
                held = bytearray()
        await asyncio.to_thread(_write_all, file, held)
    return written + len(held)


def _write_all(file: io.RawIOBase, data: bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def path_of(workspace: Workspace, upload_id: object) -> Path | None:
    """The whole file of an upload, or None: an id may come from anywhere and is looked up, never trusted."""
    try:
        path = workspace.uploads_dir / checked(str(upload_id))
    except BadId:
        return None
    return path if path.is_file() else None


def refusal(answer: object) -> Problem:
    """The problem in a refused request's answer, as the page handed it on; anything else means that it broke off."""
    if isinstance(answer, dict):
        rule, parameters = answer.get("rule"), answer.get("parameters")
        known = {
            "upload-not-allowed": (),
            "upload-several": (),
            "upload-too-large": ("limit_mib",),
            "upload-no-room": ("free_mib", "needed_mib"),
            "upload-not-written": ("reason",),
            "disk-full": (),
            "upload-busy": ("most",),
            "upload-slow": ("most_s",),
            "demo-disk": ("used", "most"),
            "demo-full": (),
        }
        if rule in known and isinstance(parameters, dict) and parameters.keys() == set(known[rule]):
            return Problem(rule=rule, parameters={name: str(value)[:200] for name, value in parameters.items()})
    return Problem(rule="upload-broken")


def remove_leftovers(workspace: Workspace) -> None:
    """Remove uploads that nobody came back for."""
    for path in workspace.uploads_dir.glob("*"):
        try:
            if path.is_file() and time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
                path.unlink()
        except OSError:
            continue
