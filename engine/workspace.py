"""Workspace: the folder of one person's datasets, drafts, chains, runs, evaluations and models, and the only maker of paths.

Every id that may have come from a user or a URL is checked by one expression here before any path is built from it; every
name a person gives is cleaned here; a home is its owner's alone; and what dead writers left behind goes.
The queue and the device locks are shared by all workspaces of a machine and lie outside (see machine_dir).
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
import unicodedata
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from engine import in_line

T = TypeVar("T")

# Run ids "20261124-201516-0a1b2c", sha256 dataset ids, evaluation keys and draft ids: lower case, digits, inner dashes.
_ID = re.compile(r"[0-9a-z](?:[0-9a-z-]{0,94}[0-9a-z])?", re.ASCII)


class BadId(ValueError):
    """An id that cannot name anything in a workspace."""


def checked(identifier: str) -> str:
    """Return `identifier` when it has the form of an id. Raises BadId for anything else, path tricks included."""
    if not isinstance(identifier, str) or not _ID.fullmatch(identifier):
        raise BadId(f"not an id: {str(identifier)[:60]!r}")
    return identifier


def new_run_id(now_s: float | None = None, random_bytes: int = 3) -> str:
    """Return a run id YYYYMMDD-HHMMSS-<hex>: sorts by time; a hosted demo asks for 16 random bytes."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now_s))
    return f"{stamp}-{secrets.token_hex(random_bytes)}"


class Workspace:
    """All of one person's files under `root`; folders are made when first written to."""

    def __init__(self, root: Path | str):
        self.root = Path(root).expanduser().resolve()

    def dataset_dir(self, dataset_id: str) -> Path:
        return self.root / "datasets" / checked(dataset_id)

    def run_dir(self, run_id: str) -> Path:
        return self.root / "runs" / checked(run_id)

    def eval_dir(self, key: str) -> Path:
        return self.root / "evals" / checked(key)

    def draft_path(self, draft_id: str) -> Path:
        return self.drafts_dir / f"{checked(draft_id)}.json"

    def deleted_path(self, run_id: str) -> Path:
        """Return the file that keeps, of a deleted run, what its adapter lay on, for those that trained it on."""
        return self.root / "deleted" / f"{checked(run_id)}.json"

    def chain_path(self, chain_id: str) -> Path:
        return self.chains_dir / f"{checked(chain_id)}.json"

    def shape_path(self, key: str) -> Path:
        """Return the file that keeps what was counted on the model of a config.json."""
        return self.root / "shapes" / f"{checked(key)}.json"

    @property
    def chains_dir(self) -> Path:
        """Where chains of runs are written down, one file each."""
        return self.root / "chains"

    @property
    def drafts_dir(self) -> Path:
        return self.root / "drafts"

    @property
    def datasets_dir(self) -> Path:
        return self.root / "datasets"

    @property
    def runs_dir(self) -> Path:
        return self.root / "runs"

    @property
    def models_dir(self) -> Path:
        """Where models read from GGUF files lie, each in a folder of its own."""
        return self.root / "models"

    @property
    def uploads_dir(self) -> Path:
        """Where an upload lies while it is checked; on the same disk, so that it can be moved into place."""
        return self.root / "uploads"


# The longest name a person gives, in characters.
NAME_CHARACTERS = 120


def one_line(text: str, most_characters: int = NAME_CHARACTERS) -> str:
    """Return a name as it is kept: one line, cut, of nothing but what can be seen, and what joins or parts two letters of a
    script or two signs of a picture. Characters that turn the direction of writing or control a terminal are left out."""
    text = text[: 20 * most_characters]  # what is far too long is cut before it is gone through
    seen = text if text.isprintable() else "".join(map(_seen, text))
    return _joined(" ".join(seen.split())[:most_characters]).strip()


def many_lines(text: str, most_characters: int) -> str:
    """Return a note as it is kept: as one_line, but line by line."""
    lines = text[:most_characters].splitlines()
    return "\n".join(_joined("".join(map(_seen, line))).rstrip() for line in lines).strip()


# ZERO WIDTH NON-JOINER and JOINER: Persian, the scripts of India and pictures of several people are spelled with them
# (Unicode 16, 23.2). Anywhere else, or several in a row, they would only make one name look like another.
_JOINERS = "\u200c\u200d"
_NO_JOINT = re.compile(
    rf"(?<![^\x00-\u02ff\s])[{_JOINERS}]+|[{_JOINERS}]+(?![^\x00-\u02ff\s])|(?<=[{_JOINERS}])[{_JOINERS}]+"
)


def _joined(text: str) -> str:
    return text if text.isprintable() else _NO_JOINT.sub("", text)


def _seen(character: str) -> str:
    # what this Python does not know yet may be a letter of a later Unicode, as in Chinese names
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Cn":
        return character
    return "" if unicodedata.category(character) == "Cf" else " "


# What lies in a home or in the folder of the queue.
_FOLDERS = {
    "datasets", "drafts", "runs", "uploads", "evals", "models", "chains", "shapes", "deleted", "chat", "benchmarks", "jobs",
    "visitors", "queue", "locks", "spare",
}  # fmt: skip
_FILES = {"folders.json", "precision.jsonl", "measurements.jsonl", "mlflow.db", ".arrived", ".browsers"}
_USUAL_HOME, _USUAL_MACHINE = "~/.tunebook", "~/.local/state/tunebook"


def _is_usual(folder: Path) -> bool:
    # os.path: a user of a container may have no home directory, of which pathlib makes an error
    return folder in (Path(os.path.expanduser(usual)).resolve() for usual in (_USUAL_HOME, _USUAL_MACHINE))


def _is_ours(folder: Path) -> bool:
    """Whether a folder is Tunebook's alone: one that nobody chose, or with nothing in it but what Tunebook makes. One that
    somebody chose may hold their own things too. Raises OSError."""
    names = os.listdir(folder)
    return _is_usual(folder) or all(name in _FOLDERS | _FILES or _SCRATCH.fullmatch(name) for name in names)


def _is_shared(folder: Path, found: os.stat_result) -> bool:
    """Whether a folder looks like one that others are meant to enter, or a drive."""
    return (
        bool(found.st_mode & (stat.S_ISVTX | stat.S_ISGID)) or found.st_gid != os.getegid() or os.path.ismount(folder)
    )


def private(folder: Path) -> Path:
    """Return a folder that its owner alone may enter: it is made so, and one that is Tunebook's alone and wider is narrowed.
    Never raises: one that cannot be made is what whoever writes there says, and one of another owner is left as it is."""
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        is_wide = found.st_mode & 0o077 and found.st_uid == os.geteuid()
        if is_wide and _is_ours(folder) and (_is_usual(folder) or not _is_shared(folder, found)):
            folder.chmod(stat.S_IMODE(found.st_mode) & ~0o077)
    return folder


def default_workspace() -> Workspace:
    """The workspace of the command line and of the pages: $TUNEBOOK_HOME, or ~/.tunebook, its owner's alone."""
    workspace = Workspace(os.environ.get("TUNEBOOK_HOME") or _USUAL_HOME)
    private(workspace.root)
    return workspace


def machine_dir() -> Path:
    """The folder of the queue and the device locks, one per user and machine: $TUNEBOOK_MACHINE_DIR,
    or ~/.local/state/tunebook, so that two homes do not train on one device at once."""
    chosen = os.environ.get("TUNEBOOK_MACHINE_DIR")
    return private(Path(chosen or _USUAL_MACHINE).expanduser())


class NotAFile(OSError):
    """A path that leads to no ordinary file: a pipe, a socket, a device, or what the system shows of itself as files."""

    def __init__(self, path: Path):
        super().__init__(errno.EINVAL, "no ordinary file", str(path))


def regular(path: Path) -> Path:
    """Return a path to an ordinary file, which is the only kind that is read: another may have no end, or never begin.
    Raises OSError: NotAFile, or what says that it is a folder, or not there."""
    _check_regular(path, path.stat())
    return path


def _check_regular(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a folder", str(path))
    if not stat.S_ISREG(found.st_mode) or found.st_dev in _of_the_system():
        raise NotAFile(path)


def is_regular(path: Path) -> bool:
    """Whether a path leads to an ordinary file."""
    try:
        return regular(path) == path
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=1)
def _of_the_system() -> set[int]:
    """Return the file systems in which the system shows itself: some of their files have no end."""
    found = set()
    for place in ("/proc", "/sys"):
        with suppress(OSError):
            found.add(os.stat(place).st_dev)
    return found - {os.stat("/").st_dev}


def nearest(path: Path) -> Path:
    """Return a path, or the nearest folder above it that is there: on the disk where it would be made."""
    return next(place for place in (path, *path.parents) if place.exists())


def open_regular(path: Path) -> BinaryIO:
    """Open an ordinary file to be read, and nothing that took its place meanwhile. Raises OSError, as regular() does."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # else a pipe would be waited at for ever
    try:
        _check_regular(path, os.fstat(number))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def read_regular(path: Path) -> bytes:
    """Return the bytes of an ordinary file. Raises OSError, as regular() does."""
    with open_regular(path) as file:
        return file.read()


class Unreadable(ValueError):
    """What a file holds is cut, damaged, or not what it should be."""


# What bytes that are no JSON raise, or no JSON of the type that is wanted: also what is nested too deep, and numbers and
# lists beyond measure. Bytes that are no UTF-8 and msgspec's own are ValueErrors.
MALFORMED = (ValueError, RecursionError, OverflowError, MemoryError)


# More digits than a number of 64 bits has: no figure of ours, and what is reckoned with it overflows.
# Told by digits made alike: a list of many runs reads thousands of files, and an expression takes ten times as long.
_ALIKE, _LONG = bytes.maketrans(b"123456789", b"0" * 9), b"0" * 20


def decoded(data: bytes, kind: type[T] | msgspec.json.Decoder[T]) -> T:
    """Return the value that JSON holds. Raises Unreadable, also where a number in it is beyond measure."""
    decoder = kind if isinstance(kind, msgspec.json.Decoder) else _decoder(kind)
    try:
        if _LONG in data.translate(_ALIKE) and _is_beyond_measure(msgspec.json.decode(data)):
            raise Unreadable("a number in it is beyond measure")
        return decoder.decode(data)
    except MALFORMED as error:
        raise Unreadable(str(error)[:200]) from error


@lru_cache(maxsize=64)  # a list of many runs decodes thousands of files of a few kinds
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _is_beyond_measure(node: Any) -> bool:
    if isinstance(node, dict | list):
        return any(map(_is_beyond_measure, node.values() if isinstance(node, dict) else node))
    return isinstance(node, int) and abs(node) >= 1 << 63


def read_struct(path: Path, kind: type[T]) -> T:
    """Return the value a JSON file holds. Raises OSError, and Unreadable where it holds none of its kind."""
    return decoded(read_regular(path), kind)


def find_struct(path: Path, kind: type[T]) -> T | None:
    """Return the value a JSON file holds; None where there is no such file, or none that can be read."""
    try:
        return read_struct(path, kind)
    except (OSError, Unreadable):
        return None


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """Return the values of a file that holds one a line; a line that was cut or damaged is passed over."""
    try:
        lines = read_regular(path).splitlines()
    except OSError:
        return []
    found, decoder = [], msgspec.json.Decoder(kind)
    for line in lines:
        with suppress(Unreadable):
            found.append(decoded(line, decoder))
    return found


def read_object(path: Path) -> dict[str, Any]:
    """Return the object a JSON file holds, or an empty one. NaN and Infinity are read too, which Python's writers write."""
    try:
        found = json.loads(read_regular(path))
    except (OSError, *MALFORMED):
        return {}
    return found if isinstance(found, dict) else {}


def append_line(path: Path, data: bytes) -> None:
    """Append one line in one write: two processes that do so at once both stay whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, data + b"\n")
    finally:
        os.close(file)


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside `path`, flush to disk, then rename over it: a reader sees the old or the new file, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=scratch(path.name))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# So long what may be another machine's or container's, or is of an earlier boot, is left where it is.
LEFT_S = 86_400.0
_SCRATCH = re.compile(r"\..+-w([0-9a-f]{8})\.([0-9]+)-.*", re.DOTALL)
# How such names began before they said whose they are, and what is renamed only to be deleted.
_UNSIGNED = re.compile(r"\.(new|old|mix|derived|hub|gguf|chat|deleted|gone)-.+|\.[^/]+\.json-[a-z0-9_]{8}")


def scratch(name: str) -> str:
    """Return how the name of what is not done yet begins. It says who writes it, so that it goes when its writer is dead."""
    short = os.fsencode(name)[:80].decode("utf-8", "ignore")
    return f".{short}-w{in_line.realm()}.{os.getpid()}-"


def clear_leftovers(home: Path) -> None:
    """Delete what writers that are dead have left half done in a home: right in it, and in and below the folders of ours.
    Never raises."""
    clear_scratch(home)
    try:
        ours = _is_ours(home)
    except OSError:
        return
    for name in _FOLDERS:
        for here, folders, _ in os.walk(home / name):
            gone = clear_scratch(Path(here), unsigned=ours)
            folders[:] = [folder for folder in folders if folder not in gone]


def clear_scratch(folder: Path, *, unsigned: bool = False) -> set[str]:
    """Delete what writers that are dead have left half done right in a folder, and return its names. What does not say who
    wrote it goes only where nobody else keeps files. Never raises."""
    gone = set()
    try:
        names = [name for name in os.listdir(folder) if name.startswith(".")]
    except OSError:
        return gone
    for path in (folder / name for name in names):
        if _is_left(path, unsigned=unsigned):
            gone.add(path.name)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()
    return gone


def _is_left(path: Path, *, unsigned: bool) -> bool:
    signed = _SCRATCH.fullmatch(path.name)
    if signed is not None and signed[1] == in_line.realm():
        return not _lives(int(signed[2]))
    if signed is None and not (unsigned and _UNSIGNED.fullmatch(path.name)):
        return False
    try:
        return time.time() - path.lstat().st_mtime > LEFT_S
    except OSError:
        return False


def _lives(pid: int) -> bool:
    try:
        if os.path.exists("/proc/self/stat"):
            return in_line.started(pid) is not None
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError, ValueError, IndexError):
        return False
    return True


def disk_bytes(place: Path) -> int:
    """Return how much a file or folder takes on disk, without what links in it lead to. What goes away meanwhile, such as a
    checkpoint that is renamed, takes nothing."""
    places = [place]
    if place.is_dir() and not place.is_symlink():
        places = [Path(folder, name) for folder, _, names in os.walk(place) for name in names]
    total = 0
    for one in places:
        with suppress(OSError):
            total += one.lstat().st_size
    return total
