"""A process that waits its turn on a device, writes that it has it, and gives it back when a file lets it.

python -m tests.fakes.holder DEVICE RUN_ID DRAWN_NS FOLDER: appends "enter RUN_ID" and "leave RUN_ID" to FOLDER/log.
"""

from __future__ import annotations

import sys
from pathlib import Path

from engine.runs import device_queue
from tests.fakes import _child


def main() -> None:
    device, run_id, drawn_ns, folder = sys.argv[1:]
    here = Path(folder)

    def say(word: str) -> None:
        with (here / "log").open("a") as file:
            file.write(f"{word} {run_id}\n")

    turn = device_queue.Turn(device, run_id, int(drawn_ns))
    if turn.wait((here / f"give-up-{run_id}").exists, poll_s=0.02):
        say("enter")
        _child.wait_for(here / f"go-{run_id}")
        say("leave")
    turn.close()


if __name__ == "__main__":
    main()
