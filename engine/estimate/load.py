"""What other programs take of the processor at this moment: an estimate is that of a machine which does nothing else."""

from __future__ import annotations

import os

import msgspec
import psutil

from engine.estimate.duration import Time
from engine.words import joined, t


def times_longer(threads: int, own_threads: int = 0) -> int:
    """Return how many times as long a run of so many threads (0: all cores) takes while the load of the last minute lasts;
    1 where there is room. `own_threads` are those of runs that are over when it starts: they do not count."""
    cores = os.cpu_count() or 1
    others = max(0.0, psutil.getloadavg()[0] - own_threads)
    return max(1, int((others + (threads or cores)) / cores + 0.5))  # a load wanders: whole numbers stand still


def beside_others(time: Time, times: int) -> Time:
    """Return a time whose upper ends are so many times as long, and that says why; as it is where that is once."""
    if times == 1:
        return time
    said = t("Other programs use this machine now, so the longer time counts {n} times as long.", n=times)
    lines = tuple(msgspec.structs.replace(one, high_s=times * one.high_s) for one in time.lines)
    return msgspec.structs.replace(
        time, high_s=times * time.high_s, lines=lines, is_busy=True, sentence=joined(time.sentence, said)
    )
