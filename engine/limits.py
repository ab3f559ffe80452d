"""What a hosted demo allows: its numbers (limits.toml), and what they say of files, bases and rows.

A demo is where TUNEBOOK_DEMO is set, as on a Space. Everywhere else nothing here refuses anything.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import tomllib
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec

from engine import processes, starter
from engine.words import Problem, t
from engine.workspace import Workspace, default_workspace, machine_dir, nearest, open_regular

ID_BYTES = 16
# Its time of change is that of a visitor's first write; the workspace itself changes with every file.
ARRIVED = ".arrived"
_settling = threading.Lock()
# What stands in a run's stop file when its time was up and nobody has asked.
TIME_IS_UP = b"time is up"


Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
Time = Annotated[float, msgspec.Meta(gt=0, le=10**6)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of limits.toml, where each is explained."""

    models: list[str]
    kinds: list[str]
    upload_mib: Count
    rows: Count
    unpacked_mib: Count
    check_cpu_s: Count
    check_memory_mib: Count
    checks_per_visitor: Count
    checks: Count
    questions_mib: Count
    uploads_per_visitor: Count
    upload_s: Count
    sockets_per_client: Count
    sockets: Count
    message_mb: Count
    steps: Count
    minutes: Time
    batch_rows: Count
    row_tokens: Count
    live_runs_per_visitor: Count
    live_runs: Count
    visitors: Count
    disk_mib_per_visitor: Count
    free_disk_mib: Count
    hours_kept: Time


class OverLimit(ValueError):
    """What a visitor asked for is beyond the demo's limits; `problems` says all of it."""

    def __init__(self, *problems: Problem):
        super().__init__(" ".join(problem.sentence for problem in problems))
        self.problems = problems


def on() -> bool:
    """Whether this process belongs to a hosted demo."""
    chosen = os.environ.get("TUNEBOOK_DEMO", "")
    return chosen != "0" if chosen else bool(os.environ.get("SPACE_ID"))


def limits() -> Limits:
    """Return the limits. Raises OSError, ValueError or msgspec.ValidationError when their file cannot be used: a demo
    without limits must not open."""
    return _read(os.environ.get("TUNEBOOK_DEMO_LIMITS") or str(Path(__file__).with_name("limits.toml")))


@lru_cache(maxsize=4)
def _read(path: str) -> Limits:
    return msgspec.convert(tomllib.loads(Path(path).read_text("utf-8")), Limits)


def sentences() -> list[str]:
    """Return every limit in words, for the page."""
    most = limits()
    return [
        t("Models: {models}, and what your own runs made.", models=", ".join(most.models)),
        t("Files: {mib} MiB and {rows} rows; JSON Lines, JSON or CSV.", mib=most.upload_mib, rows=f"{most.rows:,}"),
        t("A run: {steps} steps and {minutes} minutes.", steps=most.steps, minutes=f"{most.minutes:g}"),
        t(
            "A step: {rows} rows (batch size times accumulation) of {tokens} tokens.",
            rows=most.batch_rows,
            tokens=f"{most.row_tokens:,}",
        ),
        t(
            "One run trains at a time. {own} of yours may go on or wait, {all} of all visitors.",
            own=most.live_runs_per_visitor,
            all=most.live_runs,
        ),
        t("Disk: {mib} MiB for your data and runs.", mib=most.disk_mib_per_visitor),
    ]


def visitors_dir() -> Path:
    """Return the folder of all visitors' workspaces, each called by its number."""
    return default_workspace().root / "visitors"


def settle(workspace: Workspace) -> None:
    """Make a visitor's workspace before their first write: a page that is only looked at leaves nothing. Raises OverLimit
    where the demo has as many as it takes. Where this is no demo, folders are made as they are written to."""
    if not on() or workspace.root.parent != visitors_dir() or (workspace.root / ARRIVED).is_file():
        return
    with _settling:
        _check_place(workspace)
        visitors_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
        workspace.root.mkdir(mode=0o700, exist_ok=True)
        (workspace.root / ARRIVED).touch()


def _check_place(workspace: Workspace) -> None:
    if workspace.root.parent == visitors_dir() and not workspace.root.exists():
        taken = sum(1 for _ in visitors_dir().iterdir()) if visitors_dir().exists() else 0
        if taken >= limits().visitors:
            raise OverLimit(Problem(rule="demo-full"))


def unnamed(text: object, *, code: bool = False) -> str:
    """Return a text of a demo with the names alone of what lies in its home, and with `code` of Tunebook's own files, as a
    log has them: a folder is nobody's business, and a workspace's is the key to it."""
    if not on() or os.sep not in str(text):  # no path is without one, and every text of a page comes by here
        return str(text)
    places = [default_workspace().root, machine_dir(), *((processes.PROJECT_DIR, Path(sys.prefix)) if code else ())]
    return _inside(tuple(map(str, places))).sub(_name, str(text))


def _name(found: re.Match[str]) -> str:
    """The last part of a path, but for a visitor's number; dots at its end are those of a sentence."""
    last = found[1].rpartition("/")[2]
    name = last.rstrip(".")
    return ("..." if not name or re.fullmatch("[0-9a-f]{32}", name) else name) + last[len(name) :]


@lru_cache(maxsize=8)
def _inside(places: tuple[str, ...]) -> re.Pattern[str]:
    """The paths in these folders, each with what follows the folder as a group."""
    roots = "|".join(map(re.escape, sorted(places, key=len, reverse=True)))
    return re.compile(rf"(?:{roots})(?![\w-])((?:/[^\s/'\"`:,;()<>]+)*)")


def allows_base(ref: str) -> bool:
    """Whether a base may be looked at: one of the list, or what a run made (looked up in the visitor's own runs)."""
    return ref in limits().models or ref.startswith("run:")


def check_source(workspace: Workspace, *sources: Path) -> None:
    """Refuse files to store as one that are not the visitor's own uploads or a sample, are too large together, or unpack
    beyond measure. Raises OverLimit; OSError where one cannot be read."""
    most = limits()
    for real in (source.resolve() for source in sources):
        if not (real.is_relative_to(workspace.root) or real.is_relative_to(starter.SAMPLES_DIR)):
            raise OverLimit(Problem(rule="demo-path"))
    size = sum(source.stat().st_size for source in sources)
    if size > most.upload_mib << 20:
        raise OverLimit(Problem(rule="upload-too-large", parameters={"limit_mib": most.upload_mib}))
    check_disk(workspace, size)
    for source in sources:
        with source.open("rb") as file:
            start = file.read(4)
        if start == b"PAR1":
            # A page of a Parquet file can name one long text any number of times: a few bytes fill the memory.
            raise OverLimit(Problem(rule="demo-parquet"))
        if start[:2] == b"\x1f\x8b" and _unpacks_beyond(source, most.unpacked_mib << 20):
            raise OverLimit(Problem(rule="demo-unpacked", parameters={"most_mib": most.unpacked_mib}))


def _unpacks_beyond(path: Path, most_bytes: int) -> bool:
    """Whether a gzip file holds more than so many bytes, without holding them; damage is the check's to say."""
    total, unpacker = 0, zlib.decompressobj(zlib.MAX_WBITS | 16)
    with path.open("rb") as file:
        held = file.read(1 << 16)
        while held:
            try:
                total += len(unpacker.decompress(held, 1 << 20))
            except zlib.error:
                return False
            if total > most_bytes:
                return True
            held = unpacker.unconsumed_tail
            if unpacker.eof:  # the next member of the file
                held, unpacker = unpacker.unused_data, zlib.decompressobj(zlib.MAX_WBITS | 16)
            held = held or file.read(1 << 16)
    return False


def check_rows(rows: int) -> None:
    """Refuse a file of too many rows, of which nobody counts more than one too many. Raises OverLimit."""
    if rows > limits().rows:
        raise OverLimit(Problem(rule="demo-rows", parameters={"most": limits().rows}))


def read_questions(source: Path, most_bytes: int) -> bytes:
    """Return a file of a person's own questions, which the server itself goes through: of a larger one no more than
    shows that it is. Raises OverLimit where it has more bytes or lines than a demo takes."""
    if on():
        most_bytes = min(most_bytes, limits().questions_mib << 20)
    with open_regular(source) as file:
        data = file.read(most_bytes + 1)
    if on() and len(data) > most_bytes:
        raise OverLimit(Problem(rule="upload-too-large", parameters={"limit_mib": limits().questions_mib}))
    if on():
        check_rows(data.count(b"\n"))
    return data


def check_disk(workspace: Workspace, more_bytes: int = 0, others_bytes: int = 0) -> None:
    """Refuse what would take a visitor over their share of the disk, or the disk near its end, with `others_bytes` that
    other visitors were promised. Raises OverLimit."""
    most = limits()
    used = 0
    for path in workspace.root.rglob("*"):
        try:
            used += path.lstat().st_size
        except OSError:  # a file of a run that is just renamed
            continue
    if used + more_bytes > most.disk_mib_per_visitor << 20:
        raise OverLimit(Problem(rule="demo-disk", parameters={"used": used >> 20, "most": most.disk_mib_per_visitor}))
    _check_place(workspace)
    if shutil.disk_usage(nearest(workspace.root)).free - more_bytes - others_bytes < most.free_disk_mib << 20:
        raise OverLimit(Problem(rule="demo-full"))


def model_problem() -> Problem:
    return Problem(rule="demo-model", where="base", parameters={"models": ", ".join(limits().models)})


def base_problem(ref: str) -> Problem | None:
    """Return why a base may not be looked at in a demo, or None when it may."""
    return None if not on() or allows_base(ref) else model_problem()


def limit_this_process() -> None:
    """Take the time of a run from a process that works beside the queue, and from its children: the kernel ends it."""
    if on():
        processes.bound(cpu_s=60 * limits().minutes)


def limit_this_check() -> None:
    """Take the processor time and memory of a check from this process: SIGXCPU ends it, or a MemoryError."""
    if on():
        import resource

        most_s, most_bytes = limits().check_cpu_s, limits().check_memory_mib << 20
        resource.setrlimit(resource.RLIMIT_CPU, (most_s, most_s + 5))
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))


def run_id_bytes() -> int:
    """Random bytes of a run's id: it must not be guessed where strangers meet."""
    return ID_BYTES if on() else 3


def run_limit_s() -> float:
    """Return how long a run may take from its turn on; for ever where this is no demo."""
    return 60 * limits().minutes if on() else float("inf")


def time_was_up(run_dir: Path) -> bool:
    """Whether a run was stopped because its time was up."""
    try:
        return (run_dir / "stop").read_bytes() == TIME_IS_UP
    except OSError:
        return False
