"""A run that stands in line, `in_line.py TICKET RUN_DIR MODULE`: next to no memory, next to no work.

Many may wait for days, so this is the standard library alone, and without what is installed (python -I -S). It looks at
two files a few times a second, reads the queue again only when something in it has changed, and becomes the supervisor of
its run, under the same pid, once that is the next or was asked to stop (engine/runs/device_queue.py has the queue).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress

LOOK_S = 0.4
# Whether who stands before still lives is asked less often, for it takes longest.
ALIVE_S = 1.0
# A file system's clock ticks so coarsely that a change right after a look may bear the same time.
SETTLED_NS = 100_000_000
# So often the queue is read though nothing seems to have changed.
AGAIN_S = 10.0

# Which process waits, as in engine.processes: its pid, when it was started, in which boot of the machine.
Who = tuple[int, float, str]


def boot() -> str:
    """Return which boot of the machine this is. Raises OSError where there is no /proc."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def started(pid: int) -> float | None:
    """Return when a process was started, in clock ticks since boot; None for a zombie. Raises OSError where it is gone, or
    there is no /proc, and ValueError or IndexError where that says nothing of the kind."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # proc(5): the name in field 2 may hold spaces and brackets, so fields are counted from the last ")"
        fields = file.read().rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else float(fields[19])


def realm() -> str:
    """Return in eight digits where the number of a process is its own: in this boot of this machine, and among the
    processes that can be seen from here, which in a container are not the machine's."""
    try:
        text = f"{boot()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        text = os.uname().nodename
    return f"{zlib.crc32(text.encode()):08x}"


class Changes:
    """Tells whether a folder may have changed since it was last asked: files made, renamed or taken away."""

    def __init__(self, folder: str):
        self._folder = folder
        self._seen_ns = -1
        self._read_s = float("-inf")

    def found(self) -> bool:
        now_s, changed_ns = time.monotonic(), self._changed_ns()
        if changed_ns == self._seen_ns and now_s - self._read_s < AGAIN_S:
            return False
        settled = abs(time.time_ns() - changed_ns) > SETTLED_NS
        self._seen_ns, self._read_s = changed_ns if settled else -1, now_s
        return True

    def _changed_ns(self) -> int:
        try:
            return os.stat(self._folder).st_mtime_ns
        except OSError:
            return 0


def run_of(ticket: str) -> str:
    """Return the id of the run a ticket is of, by its file's name."""
    return os.path.basename(ticket).removesuffix(".json").partition("-")[2]


def tickets(folder: str) -> list[str]:
    """Return the names of the tickets in a queue's folder, the oldest first."""
    try:
        return sorted(name for name in os.listdir(folder) if name[:1].isdigit() and name.endswith(".json"))
    except OSError:
        return []


def _alive(who: Who) -> bool:
    try:
        return started(who[0]) == who[1]
    except (OSError, ValueError, IndexError):
        return False


class Place:
    """Where a run stands: behind whom, of those that live and have no device yet."""

    def __init__(self, ticket: str, me: Who, home: str):
        self._folder, self._run, self._me, self._home = os.path.dirname(ticket), run_of(ticket), me, home
        self._changes = Changes(self._folder)
        self._before: Who | None = None
        self._asked_s = float("-inf")
        self._drawn = os.path.basename(ticket)

    def is_next(self) -> bool:
        """Whether nobody who waits stands before the run. Reads the queue when it has changed, or who stood before has
        gone."""
        now_s = time.monotonic()
        asks = now_s - self._asked_s >= ALIVE_S
        if asks:
            self._asked_s = now_s
        if self._changes.found() or (asks and self._before is not None and not _alive(self._before)):
            self._before = self._read()
        return self._before is None

    def _read(self) -> Who | None:
        """Return who stands right before the run; see to it that its own ticket is there, in its own name."""
        there = tickets(self._folder)
        mine = next((name for name in there if run_of(name) == self._run), None)
        if mine is None:  # swept away with old files, or by a reader that could not see this process
            self.draw(self._drawn)
            return self._me
        holder = _waiting(os.path.join(self._folder, mine))
        if holder != self._me:  # moved while it stood in the server's name
            self.draw(mine)
        for name in reversed(there[: there.index(mine)]):
            who = _waiting(os.path.join(self._folder, name))
            if who is not None and who[2] == self._me[2] and _alive(who):
                return who
        return None

    def draw(self, name: str) -> None:
        """Write the run's ticket in the name of this process."""
        pid, ticks, booted = self._me
        told = {"pid": pid, "started": ticks, "boot": booted, "holds": [], "home": self._home}
        write(os.path.join(self._folder, name), json.dumps(told))


def _waiting(ticket: str) -> Who | None:
    """Return who waits with a ticket; None where it has its device, or cannot be read."""
    try:
        with open(ticket, "rb") as file:
            told = json.load(file)
        return None if told.get("holds") else (int(told["pid"]), float(told["started"]), str(told["boot"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def write(path: str, text: str) -> None:
    """Write beside the path and rename, as engine.workspace does; where the disk takes nothing the file stays as it is."""
    folder, name = os.path.split(path)
    beside = os.path.join(folder, f".{name}-w{realm()}.{os.getpid()}-")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except OSError:  # a run does not lose its place by that
        with suppress(OSError):
            os.unlink(beside)


def wait(is_next: Callable[[], bool], run_dir: str, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Return when the run is the next, or is asked to stop, or is no more: False."""
    stop = os.path.join(run_dir, "stop")
    while _is_there(run_dir):
        if os.path.exists(stop) or is_next():
            return True
        sleep(LOOK_S)
    return False


def _is_there(folder: str) -> bool:
    try:
        os.stat(folder)
    except FileNotFoundError:
        return False
    except OSError:  # a disk that does not answer just now
        return True
    return True


def main() -> None:
    ticket, run_dir, module = sys.argv[1:]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        me = (os.getpid(), started(os.getpid()) or 0.0, boot())
    except OSError:  # no /proc: to tell a reused pid takes libraries, and the supervisor waits by itself
        me = None
    if me is not None:
        home = os.path.dirname(os.path.dirname(run_dir))
        pid, ticks, booted = me
        if _is_there(run_dir):
            write(os.path.join(run_dir, "pid.json"), json.dumps({"pid": pid, "started": ticks, "boot": booted}))
        if not wait(Place(ticket, me, home).is_next, run_dir):
            return  # and whoever reads the queue next clears the ticket away
    os.execv(sys.executable, [sys.executable, "-m", module, run_dir])  # noqa: S606 - no shell, and the module is ours


if __name__ == "__main__":
    main()
