"""Storing a large file, or fetching a model or data from the hub, takes longer than a page may stand still: it is done in
a process of its own, and watched.

A job is a folder with call.json (what to do), progress.json (how far) and result.json (the data set, or what is wrong).
`python -m engine.data.jobs FOLDER` does it. Stopping it, or killing the server, leaves the stored data as it was.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from engine import limits, looker, processes, read
from engine.check import DatasetError, text_files
from engine.data import closer, copies, datasets, hub_data, making, readiness, recheck
from engine.data.fixes import Edit
from engine.models import bases, hub, hub_client
from engine.render import NoTokenizer
from engine.words import Problem, set_language
from engine.workspace import Workspace, find_struct, read_struct, scratch, write_atomically

# Below, a check is over in well under a second, and a process of its own would only cost its start.
SMALL_BYTES = 2 << 20
PROGRESS_EVERY_S = 0.2
LEFTOVER_AGE_S = 24 * 3600
# In a hosted demo a job ends when no page has asked for it so long.
UNWATCHED_S = 30.0
WATCHED = "watched"
# Scientific libraries set aside address space for each thread and for Arrow, 1.2 GiB of the 2 a job has; so 0.8 do.
SPARING = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
# Processor time that a job may take without a word while a base's tokenizer and template read rows.
SILENT_CPU_S = 60


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What a job does: store the file at `source`, or several `texts`, each a path and the name it is shown by; with
    `dataset` make a fixed or mapped copy of stored data, with `rows` the rows of a large file that training reads, with
    `again` a report by today's check, with `closer` a closer look at the rows, with `base` how that base reads every row;
    fetch the hub's `model` into its cache, or its `data` (hf:owner/name[:config][:split]) and store that; read a `gguf`
    file into a folder of the workspace, with the `tokenizer` of another folder where one is named
    (engine/train/read_gguf.py)."""

    workspace: str
    source: str | None = None
    texts: tuple[tuple[str, str], ...] = ()
    name: str = ""
    remove_source: bool = False
    dataset: str | None = None
    rows: bool = False
    again: bool = False
    closer: bool = False
    base: str | None = None
    fixes: tuple[str | Edit, ...] = ()
    mapping: dict[str, str] | None = None
    language: str = "en"
    model: str | None = None
    data: str | None = None
    gguf: str | None = None
    tokenizer: str | None = None


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
    """`done` of `total` bytes of one pass over the file; `passes` counts from 1. `left_s` is None when not known yet."""

    done: int = 0
    total: int = 1
    passes: int = 1
    left_s: float | None = None

    @property
    def share(self) -> float:
        return min(1.0, self.done / max(1, self.total))


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The id of the data set that was made, the commit of the model, or the folder of one read from a GGUF file; or the
    problem that kept it from being made."""

    dataset: str | None = None
    commit: str | None = None
    folder: str | None = None
    problem: Problem | None = None


_started: dict[str, subprocess.Popen[bytes]] = {}
_starting = threading.Lock()


def carry_out(call: Call, progress: read.OnProgress | None = None) -> Result:
    """Do what a call says, in this process."""
    workspace = Workspace(call.workspace)
    if call.model is not None or call.data is not None:
        return _from_hub(call, workspace, progress)
    try:
        if call.texts:
            made = _add_texts(call, workspace, progress)
        elif call.dataset is None:
            made = datasets.add(
                workspace,
                call.source or "",
                call.name,
                mapping=call.mapping,
                progress=progress,
                move=call.remove_source,
                wait_for_rows=False,
            )
        elif call.rows:
            datasets.make_rows(workspace, call.dataset, progress)
            made = datasets.load(workspace, call.dataset)
        elif call.base is not None:
            readiness.count(workspace, call.dataset, bases.describe(call.base, workspace), progress)
            made = datasets.load(workspace, call.dataset)
        elif call.closer:
            closer.look(workspace, call.dataset, progress)
            made = datasets.load(workspace, call.dataset)
        elif call.again:
            made = recheck.check_again(workspace, call.dataset, progress)
        elif call.mapping is not None:
            made = copies.mapped(workspace, call.dataset, call.mapping, progress, wait_for_rows=False)
        else:
            made = copies.fixed(workspace, call.dataset, progress, fixes=call.fixes, wait_for_rows=False)
    except (DatasetError, NoTokenizer) as error:
        return Result(problem=error.problem)
    finally:
        _remove_sources(call)
    return Result(dataset=made.id)


def at_once(call: Call) -> Result | None:
    """Do what a call on a small file says while a page waits, in a process that may fail; None where that takes longer than
    a page may stand still, as a few bytes can be made to: nothing has come of it then."""
    try:
        found = looker.ask(carry_out, msgspec.structs.replace(call, remove_source=False), at=_read_by(call))
    except looker.Refused as refused:
        if isinstance(refused, looker.Ended) and refused.took_long:
            return None
        found = Result(problem=refused.problem)
    _remove_sources(call)
    return found


def _remove_sources(call: Call) -> None:
    """Remove what a call was to take from where it lay."""
    if call.remove_source:
        for path in (*([call.source] if call.source else []), *(path for path, _ in call.texts)):
            Path(path).unlink(missing_ok=True)


def _add_texts(call: Call, workspace: Workspace, progress: read.OnProgress | None) -> datasets.Dataset:
    """Store the rows made of several texts that were brought together."""
    sources = [(Path(path), name) for path, name in call.texts]
    with making.told(workspace.uploads_dir), tempfile.TemporaryDirectory(prefix="tunebook-texts-") as folder:
        if limits.on():  # before they are written out: one text may be named any number of times
            limits.check_source(workspace, *(path for path, _ in sources))
        rows = Path(folder) / "rows.jsonl"
        text_files.write_rows(sources, rows)
        return datasets.add(workspace, rows, call.name, progress=progress, wait_for_rows=False)


def _from_hub(call: Call, workspace: Workspace, progress: read.OnProgress | None) -> Result:
    """Fetch what a call names; a token stands in the environment alone (HF_TOKEN), or is the user's own login."""
    try:
        if call.model is not None:
            return Result(commit=hub.fetch(call.model, progress=progress))
        made = add_from_hub(workspace, call.data or "", call.name, progress=progress, move=True, wait_for_rows=False)
        return Result(dataset=made.id)
    except (hub_client.HubError, DatasetError) as error:
        return Result(problem=error.problem)


def add_from_hub(
    workspace: Workspace, ref: str, name: str = "", *, progress: read.OnProgress | None = None, **how: Any
) -> datasets.Dataset:
    """Fetch hf:owner/name[:config][:split], check and store it as any file. Raises HubError and DatasetError."""
    workspace.uploads_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=scratch("hub"), dir=workspace.uploads_dir) as folder:
        file, title = hub_data.fetch_data(ref, Path(folder), progress=progress)
        return datasets.add(workspace, file, name or title, progress=progress, **how)


def start(call: Call, token: str | None = None) -> Path:
    """Begin a job and return its folder; a token is passed on by the environment and stands in no file. Raises
    limits.OverLimit where a hosted demo has as many as it carries."""
    with _starting:
        if limits.on():
            _check_count(call.workspace)
            limits.settle(Workspace(call.workspace))
        return _start(call, token)


def _check_count(workspace: str) -> None:
    """Refuse one more job for a visitor, or for all. Raises OverLimit."""
    most, root = limits.limits(), Workspace(workspace).root
    going = [Path(folder).parents[1] for folder, process in list(_started.items()) if process.poll() is None]
    if going.count(root) >= most.checks_per_visitor:
        raise limits.OverLimit(Problem(rule="demo-own-checks", parameters={"most": most.checks_per_visitor}))
    if len(going) >= most.checks:
        raise limits.OverLimit(Problem(rule="demo-checks"))


def _start(call: Call, token: str | None) -> Path:
    jobs_folder = Workspace(call.workspace).root / "jobs"
    for old in jobs_folder.glob("*"):  # of pages that were closed meanwhile; one that goes on writes its progress
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > LEFTOVER_AGE_S:
                shutil.rmtree(old, ignore_errors=True)
    folder, told = jobs_folder / secrets.token_hex(8), msgspec.json.encode(call)
    if limits.on():
        limits.check_disk(Workspace(call.workspace), len(told))
    folder.mkdir(parents=True)
    write_atomically(folder / "call.json", told)
    (folder / WATCHED).touch()
    with (folder / "log").open("wb") as log:
        # What it lays aside meanwhile lies in its folder: that counts as the visitor's, and goes with the job if it dies.
        environment = {**os.environ, "TMPDIR": str(folder), **({"HF_TOKEN": token} if token else {})}
        environment |= SPARING if call.closer else {}
        module = "engine.train.read_gguf" if call.gguf else "engine.data.jobs"  # which needs torch
        _started[str(folder)] = processes.start(module, str(folder), stdout=log, stderr=log, env=environment)
    return folder


def progress(folder: Path) -> JobProgress:
    """How far a job is."""
    return find_struct(folder / "progress.json", JobProgress) or JobProgress()


def result(folder: Path) -> Result | None:
    """What became of a job, or None while it goes on. One that ended without a word has failed."""
    process = _started.get(str(folder))
    with contextlib.suppress(OSError):  # it may be gone
        (folder / WATCHED).touch()
    ended = process is None or process.poll() is not None
    found = find_struct(folder / "result.json", Result)
    return Result(problem=Problem(rule="job-ended")) if found is None and ended else found


def stop(folder: Path) -> None:
    """End a job; what it had begun to write is removed."""
    process = _started.get(str(folder))
    if process is not None and process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    forget(folder)


def forget(folder: Path) -> None:
    """Remove what a job that is over has left."""
    process = _started.pop(str(folder), None)
    if process is not None:
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


class Meter:
    """Turns bytes read into a JobProgress with the time left, from the speed of this pass."""

    def __init__(self, told: Any, now_s: Any = time.monotonic):
        self.told, self.now_s = told, now_s
        self.passes, self.last = 1, 0
        self.began_s = self.told_s = now_s()
        self.began_at = 0

    def __call__(self, done: int, total: int) -> None:
        now_s = self.now_s()
        if done < self.last:  # the file is read once more
            self.passes += 1
            self.began_s, self.began_at, self.told_s = now_s, done, 0.0
        self.last = done
        if now_s - self.told_s < PROGRESS_EVERY_S and done < total:
            return
        self.told_s = now_s
        speed = (done - self.began_at) / max(1e-6, now_s - self.began_s)
        left_s = (total - done) / speed if speed > 0 and now_s - self.began_s > 0.5 else None
        self.told(JobProgress(done=done, total=total, passes=self.passes, left_s=left_s))


def _read_by(call: Call) -> Path | None:
    """Return the file that a job reads; None where it is not known, or several."""
    if call.dataset is not None:
        return Workspace(call.workspace).dataset_dir(call.dataset) / "original"
    return Path(call.source) if call.source is not None else None


def _end_unwatched(folder: Path) -> None:
    """End this process, as SIGTERM would, once no page has asked for its job for a while."""
    with contextlib.suppress(OSError):
        while time.time() - (folder / WATCHED).stat().st_mtime < UNWATCHED_S:
            time.sleep(min(1.0, UNWATCHED_S / 10))
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path, do: Callable[[Call, read.OnProgress], Result] = carry_out) -> int:
    """Carry out the call of a job folder; SIGTERM ends it as an exception would, so that nothing half made is left."""

    def told(now: JobProgress) -> None:
        if not folder.is_dir():  # nobody waits any more
            raise SystemExit(1)
        if call.base is not None and not limits.on():
            processes.bound(cpu_s=SILENT_CPU_S)
        # Renamed, but not forced to disk: it is written five times a second and worth nothing after a crash.
        beside = folder / "progress.new"
        beside.write_bytes(msgspec.json.encode(now))
        os.replace(beside, folder / "progress.json")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if limits.on():
        limits.limit_this_check()  # result() says that it ended
        threading.Thread(target=_end_unwatched, args=(folder,), daemon=True).start()
    call = read_struct(folder / "call.json", Call)
    if not limits.on() and call.gguf is None:  # a model that is read takes what it takes
        processes.bound(
            cpu_s=None if call.base is None else SILENT_CPU_S, memory_bytes=looker.memory_for(_read_by(call))
        )
    set_language(call.language)
    write_atomically(folder / "result.json", msgspec.json.encode(do(call, Meter(told))))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
