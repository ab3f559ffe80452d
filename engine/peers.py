"""A run that several processes share, on one machine or on several: how they are started, and what each tells of itself.

They meet through `accelerate launch`. Beside that each has a file in the run's folder, which all machines see: who it is, a
count that goes up while it lives, and why it failed. So a machine that is gone has a name, whatever the others notice first.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from engine.events import Failed
from engine.spec import RunSpec, counts
from engine.words import Problem, later
from engine.workspace import find_struct, write_atomically

BEAT_S = 1.0
# A process that was killed is taken for gone after so long; one that may only be slow (a swapping machine, a network folder
# that hangs) after the longer time.
GONE_S, SILENT_S = 4.0, 90.0
POLL_S = 0.2
# So long the first machine waits for the others to be started by hand.
ARRIVAL_S = 3600


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """One of the processes of a run. `machine` counts the machines from 0, which is the one with the supervisor; `beat`
    goes up while it lives; `ended`: it has done its part, or told why not; `stands_on`: device, code and libraries, which
    must be the same on all machines (name -> version)."""

    rank: int
    machine: int
    host: str
    stands_on: dict[str, str] = {}
    beat: int = 0
    ended: bool = False
    failed: Failed | None = None

    @property
    def place(self) -> str:
        """The machine, as a person names it."""
        return f"{self.machine + 1} ({self.host})"


def _folder(run_dir: Path) -> Path:
    return run_dir / "processes"


def clear(run_dir: Path) -> None:
    """Forget the processes of an earlier attempt."""
    shutil.rmtree(_folder(run_dir), ignore_errors=True)


def read(run_dir: Path) -> dict[int, Peer]:
    """Return what the processes of a run have told, by rank."""
    found = {}
    for path in _folder(run_dir).glob("*.json"):
        one = find_struct(path, Peer)
        if one is not None:
            found[one.rank] = one
    return found


class Heart:
    """Tells that this process lives, from its making to end()."""

    def __init__(self, run_dir: Path, rank: int, machine: int, stands_on: dict[str, str] | None = None):
        self._path = _folder(run_dir) / f"{rank}.json"
        self._peer = Peer(rank=rank, machine=machine, host=socket.gethostname(), stands_on=stands_on or {})
        self._ended = threading.Event()
        self._path.parent.mkdir(exist_ok=True)
        self._write()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        with suppress(OSError):  # a full disk is told of where something is lost by it
            write_atomically(self._path, msgspec.json.encode(self._peer))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._peer = msgspec.structs.replace(self._peer, beat=self._peer.beat + 1)
            self._write()

    def end(self, failed: Failed | None = None) -> None:
        """Tell that this process has done its part, or why not."""
        self._ended.set()
        self._thread.join()
        self._peer = msgspec.structs.replace(self._peer, ended=True, failed=failed)
        self._write()


class Watch:
    """Notices which processes have fallen silent. The clock is that of who watches, since those of machines differ."""

    def __init__(self, run_dir: Path):
        self._run_dir = run_dir
        self._heard: dict[int, tuple[int, float]] = {}

    def silent(self, for_s: float, ended_s: float = math.inf) -> list[Peer]:
        """Return the processes that have not ended and of which nothing was heard for so long, and those that ended so long
        ago."""
        now_s, found = time.monotonic(), []
        for rank, peer in sorted(read(self._run_dir).items()):
            beat, since_s = self._heard.get(rank, (-1, now_s))
            if peer.beat != beat:
                self._heard[rank] = (peer.beat, now_s)
            elif now_s - since_s >= (ended_s if peer.ended else for_s):
                found.append(peer)
        return found


def watch(run_dir: Path, spec: RunSpec) -> Watch | None:
    """Return what notices that other machines of a run are silent; None where it has none."""
    return Watch(run_dir) if _machines(spec) > 1 else None


def gone(peers: list[Peer]) -> Failed:
    """Return the failure of a run some of whose machines have fallen silent, or have failed."""
    if (first := next((peer for peer in peers if peer.failed is not None), None)) is not None:
        return _elsewhere(first)
    places = ", ".join(sorted({peer.place for peer in peers}))
    message, fix = Problem(rule="run-machine-gone", parameters={"machines": places}).texts
    return Failed(kind="peer", message=message, fix=fix)


def reason(run_dir: Path, within_s: float = 2 * GONE_S, own: int = 0) -> Failed | None:
    """Return why a run's processes parted, as far as the others tell within a time: what one of them failed of, or that
    another machine is silent. None when nobody tells more. `own` is the rank of who asks."""
    watch, end_s = Watch(run_dir), time.monotonic() + within_s
    while True:
        others = [peer for rank, peer in sorted(read(run_dir).items()) if rank != own]
        if (first := next((peer for peer in others if _tells(peer)), None)) is not None:
            return _elsewhere(first) if first.machine else first.failed
        if silent := [peer for peer in watch.silent(GONE_S) if peer.rank != own and peer.machine]:
            return gone(silent)
        if not others or time.monotonic() > end_s:
            return None
        time.sleep(POLL_S)


def _tells(peer: Peer) -> bool:
    """Whether a process failed of itself, and not because others were gone."""
    return peer.failed is not None and peer.failed.kind not in ("peer", "killed")


def _elsewhere(peer: Peer) -> Failed:
    assert peer.failed is not None
    message = later("on machine {machine}: {message}", machine=peer.place, message=peer.failed.message)
    return Failed(kind=peer.failed.kind, message=message, fix=peer.failed.fix)


def unlike(run_dir: Path) -> Problem | None:
    """Return what is wrong with a machine that stands on something else than the first: what they compute would differ, or
    they would wait for each other for ever. Signs after a version's + say for which card it was built."""
    found = read(run_dir)
    if (first := found.get(0)) is None:
        return None
    for peer in found.values():
        told = [
            f"{name} {peer.stands_on.get(name, '-')} ({version})"
            for name, version in first.stands_on.items()
            if peer.stands_on.get(name, "-").partition("+")[0] != version.partition("+")[0]
        ]
        if told:
            return Problem(rule="peer-unlike", parameters={"machine": peer.place, "differences": ", ".join(told)})
    return None


# --- how they are started ---
def launch_words(run_dir: Path, spec: RunSpec, machine: int = 0) -> list[str]:
    """Return the arguments of `accelerate launch` on one of a run's machines, counted from 0 (accelerate 1.15,
    commands/launch.py)."""
    chosen, processes = spec.machine, counts.processes(spec)
    words = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", str(chosen.nodes)]
    if chosen.nodes > 1:
        # torch's launcher begins nothing before every machine has come, and waits 15 minutes unless it is told
        words += ["--machine_rank", str(machine), "--main_process_ip", address(spec)]
        words += ["--rdzv_conf", f"timeout={ARRIVAL_S}"]
    port = chosen.port if chosen.nodes > 1 else 0
    # All is named that a file of `accelerate config` would decide otherwise, such as the cards: those that are visible are
    # the run's.
    return [
        *words, "--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no", "--gpu_ids", "all",
        "-m", "engine.train", str(run_dir),
    ]  # fmt: skip


def _machines(spec: RunSpec) -> int:
    """Return how many machines share a run. What only asks, or tries a batch, keeps the settings and is done on one."""
    return spec.machine.nodes if spec.kind == "train" else 1


def lines(run_dir: Path, spec: RunSpec) -> list[str]:
    """Return what is to be typed on each of the other machines, where Tunebook is installed as here and the folder of the
    run is seen by the same name."""
    return [
        shlex.join(["accelerate", "launch", *launch_words(run_dir, spec, machine)])
        for machine in range(1, _machines(spec))
    ]


def address(spec: RunSpec) -> str:
    """Return the address by which the other machines reach this one: as asked for, else the one of the network that leads
    out. No packet is sent: connecting a socket of UDP only chooses a way (udp(7)), and 192.0.2.1 is nobody's (RFC 5737)."""
    if spec.machine.address:
        return spec.machine.address
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("192.0.2.1", 9))
        return str(way.getsockname()[0])
    return socket.gethostname()


def missing(run_dir: Path, spec: RunSpec) -> list[int]:
    """Return the machines of a run of which no process has come yet, counted from 0."""
    return sorted(set(range(_machines(spec))) - {peer.machine for peer in read(run_dir).values()})


def this_process() -> tuple[int, int]:
    """Return the rank of this process and its machine, as torch's launcher tells it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("GROUP_RANK", "0"))
