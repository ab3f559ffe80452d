"""Turns: one run per device, first come first served, whether or not a server lives.

A ticket is a file in queue/<kind>/, named by the time it was drawn, that holds the identity of the waiting process, the
home of its run and, once it has its turn, the devices it holds. The oldest living ticket without devices is the next: it
takes as many as it needs as soon as they are free, and nobody overtakes it. Whoever stands behind it is a process that
costs next to nothing (engine/in_line.py). The locks are the kernel's (flock through filelock), one a device, and go when
their holder dies, however it dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from engine import in_line, processes, workspace

# Processes that chat have tickets here; runs do not stand in line behind them.
LENT = "lent"
# So long a run waits for an answer to end.
LENT_S = 120.0


class Ticket(msgspec.Struct, frozen=True):
    """Who waits, which devices it holds already, none while it waits, and the home its run lies in, where it is known."""

    pid: int
    started: float
    boot: str
    holds: tuple[str, ...] = ()
    home: str = ""

    @property
    def identity(self) -> processes.Identity:
        return processes.Identity(self.pid, self.started, self.boot)


def _safe(device: str) -> str:
    return device.replace(":", "-").replace("/", "-")  # a slice of a card may be named MIG-GPU-x/1/0


def _folder(device: str) -> Path:
    """The queue of a kind of device: one for all cards."""
    return workspace.machine_dir() / "queue" / device.partition(":")[0]


def draw(
    device: str,
    run_id: str,
    drawn_ns: int,
    identity: processes.Identity | None,
    holds: tuple[str, ...] = (),
    home: str = "",
) -> Path:
    """Write the ticket of a run in the name of a process and return it. A run's place is kept from the click on: the
    server draws it, and the supervisor, which comes up later, draws it again in its own name."""
    folder = _folder(device)
    folder.mkdir(parents=True, exist_ok=True)
    ticket = folder / f"{drawn_ns:020d}-{workspace.checked(run_id)}.json"
    _write(ticket, identity, holds, home)
    return ticket


def _write(ticket: Path, identity: processes.Identity | None, holds: tuple[str, ...], home: str) -> None:
    who = Ticket(identity.pid, identity.started, identity.boot, holds, home) if identity is not None else None
    workspace.write_atomically(ticket, msgspec.json.encode(who))


def hand_over(ticket: Path, identity: processes.Identity) -> None:
    """Put a ticket in the name of the supervisor, unless that has done so itself by now."""
    with suppress(OSError):
        drawn = workspace.find_struct(ticket, Ticket)
        if drawn is not None and drawn.pid == os.getpid():
            _write(ticket, identity, (), drawn.home)


class Turn:
    """A place in the queue for a device, by the time the run was asked for; close() gives back what it has got.

    `slots` are the devices to choose from and `needed` how many of them the run wants; without slots, the device itself.
    `home` is the folder of the workspace that the run lies in.
    """

    def __init__(
        self, device: str, run_id: str, drawn_ns: int, slots: tuple[str, ...] = (), needed: int = 1, home: str = ""
    ):
        root = workspace.machine_dir()
        (root / "locks").mkdir(parents=True, exist_ok=True)
        self._locks = {slot: FileLock(root / "locks" / f"{_safe(slot)}.lock") for slot in slots or (device,)}
        self._needed = min(needed, len(self._locks))
        self._run, self._me, self._home = run_id, processes.identify(os.getpid()), home
        self.holds: tuple[str, ...] = ()
        self._ticket = draw(device, run_id, drawn_ns, self._me, home=home)

    def wait(self, give_up: Callable[[], bool], poll_s: float = 0.2) -> bool:
        """Wait until the devices are ours; return False when give_up() says so first. The tickets are read again when
        one has changed, or who stood before is gone."""
        changes, before = in_line.Changes(str(self._ticket.parent)), None
        while not give_up():
            if changes.found() or (before is not None and not processes.alive(before)):
                before = self._before()
            if before is None and self._take():
                _write(self._ticket, self._me, self.holds, self._home)
                self._sweep(keep=self._ticket)
                return True
            time.sleep(poll_s)
        return False

    def _before(self) -> processes.Identity | None:
        """Return who stands right before this run, of those that have no device; see to it that its ticket is there."""
        there = living(self._ticket.parent)
        self._ticket = next((path for path in there if _run_of(path) == self._run), self._ticket)
        found = there.get(self._ticket)
        if found is None or found.identity != self._me:
            # swept away with old files, or by a reader that could not see this process; or moved in the server's name
            _write(self._ticket, self._me, (), self._home)
        before = [ticket.identity for path, ticket in there.items() if path < self._ticket and not ticket.holds]
        return before[-1] if before else None

    def _take(self) -> bool:
        """Take as many free devices as are needed, or none."""
        taken = []
        for slot, lock in self._locks.items():
            if len(taken) == self._needed:
                break
            with suppress(Timeout):
                lock.acquire(timeout=0)
                taken.append(slot)
        if len(taken) < self._needed:
            for slot in taken:
                self._locks[slot].release()
            return False
        self.holds = tuple(taken)
        return True

    def _tickets(self) -> list[Path]:
        return list(self._ticket.parent.glob(f"*-{self._run}.json"))

    def _sweep(self, keep: Path | None = None) -> None:
        for path in self._tickets():
            if path != keep:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        self._sweep()
        for lock in self._locks.values():
            lock.release()


def living(folder: Path) -> dict[Path, Ticket]:
    """Return the tickets of living processes, oldest first, and clear away those of dead ones.

    A run counts once, by its oldest ticket: one that was moved to the front before its supervisor came up has two, since
    the supervisor draws the place it was given.
    """
    found: dict[Path, Ticket] = {}
    runs: set[str] = set()
    for path in (folder / name for name in in_line.tickets(str(folder))):
        ticket = workspace.find_struct(path, Ticket)
        if ticket is None:
            continue
        if processes.alive(ticket.identity):
            if _run_of(path) not in runs:
                found[path] = ticket
                runs.add(_run_of(path))
        else:
            path.unlink(missing_ok=True)
    return found


def move_first(device: str, run_id: str) -> None:
    """Let a waiting run be the next: its ticket goes right before the first that waits. The supervisor finds it under
    its new name."""
    there = living(_folder(device))
    without = [path for path, ticket in there.items() if not ticket.holds]
    mine = next((path for path in without if _run_of(path) == workspace.checked(run_id)), None)
    if mine is None or mine == without[0]:  # it has its turn, or is the next already, or does not wait
        return
    first_ns = int(without[0].name.partition("-")[0])
    with suppress(OSError):  # it has got its turn meanwhile
        mine.rename(mine.with_name(f"{first_ns - 1:020d}-{run_id}.json"))


def _run_of(ticket: Path) -> str:
    return in_line.run_of(ticket.name)


def waiting(device: str) -> list[str]:
    """Return the ids of the runs that wait for a device, the next one first."""
    return [_run_of(path) for path, ticket in living(_folder(device)).items() if not ticket.holds]


def live(device: str) -> list[str]:
    """Return the ids of the runs that have a device or wait for it, of all workspaces, the first in line first."""
    return [_run_of(path) for path in living(_folder(device))]


def wanted(device: str, slot: str) -> bool:
    """Whether a run has a device, or waits for one of its kind and may be given it."""
    return any(not ticket.holds or slot in ticket.holds for ticket in living(_folder(device)).values())


def lend(slot: str, process: processes.Identity | None) -> None:
    """Write down that a process other than a run's, one that chats, holds models on a device for as long as it lives."""
    if process is not None:
        draw(LENT, f"chat-{process.pid}", time.time_ns(), process, (slot,))


def wait_for_lent(slots: tuple[str, ...], give_up: Callable[[], bool], poll_s: float = 0.1) -> None:
    """Wait until what was lent of a run's devices is given back: an answer that is being written comes to its end first.
    Not for ever: after LENT_S the run begins all the same."""
    until_s = time.monotonic() + LENT_S
    while time.monotonic() < until_s and not give_up():
        if not any(set(ticket.holds) & set(slots) for ticket in living(_folder(LENT)).values()):
            return
        time.sleep(poll_s)


class Standing(msgspec.Struct, frozen=True):
    """Where a run stands: the `n`th of `waiting` that wait, and the run it waits for, which has the device or is the next;
    that is known by its id and its home, and empty where there is none."""

    n: int
    waiting: int
    run: str = ""
    home: str = ""


def standings(device: str) -> dict[str, Standing]:
    """Return where each run that waits stands, the next one first."""
    there = living(_folder(device))
    waits = [path for path, ticket in there.items() if not ticket.holds]
    ahead = next((path for path, ticket in there.items() if ticket.holds), waits[0] if waits else None)
    found = {}
    for n, path in enumerate(waits, 1):
        run, home = (_run_of(ahead), there[ahead].home) if ahead is not None and ahead != path else ("", "")
        found[_run_of(path)] = Standing(n, len(waits), run, home)
    return found
