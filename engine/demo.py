"""A hosted demo: strangers on one machine, each in a workspace of their own, within the limits of demo.toml.

TUNEBOOK_DEMO=1 turns it on, and so does SPACE_ID, which Hugging Face sets in a Space (TUNEBOOK_DEMO=0 keeps it off).
Who a visitor is, is a random number of 128 bits that this server has drawn; it stands in the page's address, and
whoever has the address has the workspace. The pages say the limits; here and at the callers in the engine they hold:
preflight and runs.start for a run, the supervisor for its time, uploads and datasets for files, bases for models.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
import time
import tomllib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from filelock import FileLock

from engine import machine, processes, starter, turns
from engine.words import Problem, t
from engine.workspace import Workspace, default_workspace, machine_dir

if TYPE_CHECKING:
    from engine.spec import RunSpec

ID_BYTES = 16
_VISITOR = re.compile(r"[0-9a-f]{32}", re.ASCII)
# Its time of change is when the visitor came; the workspace itself changes with every file.
_ARRIVED = ".arrived"
# What stands in a run's stop file when its time was up and nobody has asked.
TIME_IS_UP = b"time is up"
SWEEP_EVERY_S = 3600.0
# Processes that work beside the queue have tickets here; nobody waits for them.
BESIDE = "beside"


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of demo.toml, where each is explained."""

    models: list[str]
    kinds: list[str]
    upload_mib: int
    rows: int
    unpacked_mib: int
    check_cpu_s: int
    steps: int
    minutes: float
    batch_rows: int
    row_tokens: int
    live_runs_per_visitor: int
    live_runs: int
    visitors: int
    disk_mib_per_visitor: int
    free_disk_mib: int
    hours_kept: float


class Refused(ValueError):
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
    return _read(os.environ.get("TUNEBOOK_DEMO_LIMITS") or str(Path(__file__).with_name("demo.toml")))


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


# --- visitors ---------------------------------------------------------------------------------------------------------
def visitors_dir() -> Path:
    return default_workspace().root / "visitors"


def workspace_of(visitor: str) -> Workspace | None:
    """Return the workspace of a visitor who was here, or None. `visitor` may come from anywhere: only a number that was
    drawn here, and whose folder is still there, is one."""
    if not isinstance(visitor, str) or not _VISITOR.fullmatch(visitor):
        return None
    folder = visitors_dir() / visitor
    return Workspace(folder) if (folder / _ARRIVED).is_file() else None


def new_visitor() -> str:
    """Make a workspace for a new visitor and return the number. Raises Refused when the demo is full."""
    folder = visitors_dir()
    folder.mkdir(parents=True, exist_ok=True)
    if sum(1 for _ in folder.iterdir()) >= limits().visitors:
        sweep()
        _make_room()
        if sum(1 for _ in folder.iterdir()) >= limits().visitors:
            raise Refused(Problem(rule="demo-full"))
    visitor = secrets.token_hex(ID_BYTES)
    (folder / visitor).mkdir(mode=0o700)
    (folder / visitor / _ARRIVED).touch()
    return visitor


def _make_room() -> None:
    """Remove the workspaces in which nothing was ever done, but for those of the last minutes."""
    for folder in visitors_dir().iterdir():
        if {path.name for path in folder.iterdir()} <= {_ARRIVED} and _age_s(folder) > 600:
            shutil.rmtree(folder, ignore_errors=True)


def _age_s(folder: Path) -> float:
    try:
        mark = folder / _ARRIVED
        return time.time() - (mark if mark.is_file() else folder).stat().st_mtime
    except OSError:
        return 0.0  # it is gone


def hours_left(workspace: Workspace) -> float:
    """Return how long a visitor's workspace is still kept."""
    return max(0.0, limits().hours_kept - _age_s(workspace.root) / 3600)


def sweep() -> int:
    """Delete the workspaces whose time is over and return how many. A run that still goes on is stopped first; its
    workspace goes with the next sweep."""
    gone = 0
    for folder in sorted(visitors_dir().glob("*")):
        if not folder.is_dir() or _age_s(folder) <= 3600 * limits().hours_kept:
            continue
        live = set(turns.live(machine.facts().device))
        going = [path for path in (folder / "runs").glob("[0-9a-z]*") if path.name in live]
        for run in going:
            (run / "stop").touch()
        if not going:
            # Renamed first, out of every address, so that nothing new is written into what is being deleted.
            grave = folder.with_name(f".gone-{folder.name.removeprefix('.gone-')}")
            if folder != grave:
                folder.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)
            gone += 1
    return gone


def keep_clean() -> Callable[[], None]:
    """Sweep now and every hour, in a thread of its own; return what ends it. The server calls this when it starts."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            sweep()
            ended.wait(SWEEP_EVERY_S)

    threading.Thread(target=run, name="demo-sweep", daemon=True).start()
    return ended.set


# --- models and files -------------------------------------------------------------------------------------------------
def allows_base(ref: str) -> bool:
    """Whether a base may be looked at: one of the list, or what a run made (looked up in the visitor's own runs)."""
    return ref in limits().models or ref.startswith("run:")


def check_source(workspace: Workspace, source: Path) -> None:
    """Refuse a file to store that is not the visitor's own upload or a sample, is too large, or unpacks beyond measure.
    Raises Refused; OSError where the file cannot be read."""
    most, real = limits(), source.resolve()
    if not (real.is_relative_to(workspace.root) or real.is_relative_to(starter.SAMPLES_DIR)):
        raise Refused(Problem(rule="demo-path"))
    size = source.stat().st_size
    if size > most.upload_mib << 20:
        raise Refused(Problem(rule="upload-too-large", parameters={"limit_mib": most.upload_mib}))
    check_disk(workspace, size)
    with source.open("rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        # A page of a Parquet file can name one long text any number of times: a few bytes fill the memory.
        raise Refused(Problem(rule="demo-parquet"))
    if start[:2] == b"\x1f\x8b" and _unpacks_beyond(source, most.unpacked_mib << 20):
        raise Refused(Problem(rule="demo-unpacked", parameters={"most_mib": most.unpacked_mib}))


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
    """Refuse a file of too many rows. Raises Refused."""
    if rows > limits().rows:
        raise Refused(Problem(rule="demo-rows", parameters={"rows": rows, "most": limits().rows}))


def check_disk(workspace: Workspace, more_bytes: int = 0) -> None:
    """Refuse what would take a visitor over their share of the disk, or the disk near its end. Raises Refused."""
    most = limits()
    used = 0
    for path in workspace.root.rglob("*"):
        try:
            used += path.lstat().st_size
        except OSError:  # a file of a run that is just renamed
            continue
    if used + more_bytes > most.disk_mib_per_visitor << 20:
        raise Refused(Problem(rule="demo-disk", parameters={"used": used >> 20, "most": most.disk_mib_per_visitor}))
    workspace.root.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(workspace.root).free < most.free_disk_mib << 20:
        raise Refused(Problem(rule="demo-full"))


# --- runs -------------------------------------------------------------------------------------------------------------
def problems(run_spec: RunSpec, workspace: Workspace) -> list[Problem]:
    """Return everything in a spec that is beyond the limits; nothing where this is no demo."""
    if not on():
        return []
    from engine import datasets, preflight
    from engine.benchmarks import shipped

    most, train, found = limits(), run_spec.train, []

    def over(path: str, value: int, limit: int) -> None:
        if value > limit:
            found.append(Problem(rule="demo-limit", where=path, parameters={"value": value, "most": limit}))

    if run_spec.kind not in most.kinds:
        found.append(Problem(rule="demo-kind", parameters={"kind": run_spec.kind}))
    for ref in {run_spec.base.ref, run_spec.evaluate.against} - {""}:
        if not allows_base(ref):
            found.append(_model_problem())
    for name in run_spec.evaluate.benchmarks:
        if name in shipped.HARNESS:
            found.append(Problem(rule="demo-benchmark", where="evaluate.benchmarks", parameters={"name": name}))
    over("train.batch_size", train.batch_size * train.accumulation, most.batch_rows)
    over("train.max_length", train.max_length, most.row_tokens)
    over("train.threads", train.threads, os.cpu_count() or 1)
    over("machine.devices", run_spec.machine.devices, 1)
    if run_spec.kind == "train":
        try:
            dataset = datasets.load(workspace, run_spec.dataset.id)
        except (datasets.DatasetError, OSError, ValueError):
            over("train.max_steps", train.max_steps, most.steps)  # that the data is missing is said elsewhere
        else:
            rows, _ = preflight.split_rows(run_spec, dataset, workspace)
            steps = preflight.steps(run_spec, rows)
            if steps > most.steps:
                found.append(
                    Problem(rule="demo-steps", where="train.max_steps", parameters={"steps": steps, "most": most.steps})
                )
    return found


def _model_problem() -> Problem:
    return Problem(rule="demo-model", where="base", parameters={"models": ", ".join(limits().models)})


def base_problem(ref: str) -> Problem | None:
    """Return why a base may not be looked at in a demo, or None when it may."""
    return None if not on() or allows_base(ref) else _model_problem()


@contextmanager
def gate() -> Iterator[Callable[[Workspace, RunSpec], None]]:
    """Let one run in at a time and hand out what refuses a run beyond the limits: raises Refused. Two visitors who
    click at once must not both be the last one. Where this is no demo, nothing is held and nothing refused."""
    if not on():
        yield lambda workspace, run_spec: None
        return
    with _one_at_a_time():
        yield _admit


def _one_at_a_time() -> FileLock:
    locks = machine_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / "demo.lock")


def _admit(workspace: Workspace, run_spec: RunSpec) -> None:
    found = problems(run_spec, workspace) + _too_many(workspace)
    if found:
        raise Refused(*found)
    check_disk(workspace)


def _too_many(workspace: Workspace) -> list[Problem]:
    """Return why no more of a visitor's work may go on or wait: runs, and what goes on beside them."""
    most = limits()
    live = [*turns.live(machine.facts().device), *turns.live(BESIDE)]
    own = sum((workspace.runs_dir / run_id).is_dir() for run_id in live)
    if own >= most.live_runs_per_visitor:
        return [Problem(rule="demo-own-runs", parameters={"n": own, "most": most.live_runs_per_visitor})]
    return [Problem(rule="demo-queue", parameters={"n": len(live)})] if len(live) >= most.live_runs else []


@contextmanager
def beside(workspace: Workspace, run_id: str) -> Iterator[Callable[[int], None]]:
    """Let a process begin that works on a run beside the queue, such as a merge, counted as a run is. Raises Refused, and
    hands out what takes the process's id once it is there. Where this is no demo, nothing is held and nothing refused."""
    if not on():
        yield lambda pid: None
        return

    def begun(pid: int) -> None:
        turns.draw(BESIDE, run_id, time.time_ns(), processes.identify(pid))

    with _one_at_a_time():
        if found := _too_many(workspace):
            raise Refused(*found)
        yield begun


def limit_this_process() -> None:
    """Take the time of a run from a process that works beside the queue, and from its children: the kernel ends it."""
    if on():
        import resource

        most_s = round(60 * limits().minutes)
        resource.setrlimit(resource.RLIMIT_CPU, (most_s, most_s + 5))


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
