"""python -m tests.forked.parent SOCKET OWNER: import what a training imports, then fork a child for whoever connects.

A caller sends one JSON line {"run": folder} or {"code": Python}, with "env" and "cwd", and its stdout and stderr, and
where the child reads it its stdin, as file descriptors. It is told the child's pid, then its exit status. A caller that
goes away takes its child along; the parent ends with the process OWNER.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

LIMIT_BYTES = 1 << 20


def main() -> None:
    # Before fork no tensor is computed and no thread is started; numbers of threads are set anew in each child.
    import datasets
    import lm_eval.api.task  # noqa: F401
    import peft
    import torch
    import transformers
    import trl  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401
    from trl.experimental.kto import KTOTrainer  # noqa: F401

    from engine.train import adapters, load  # noqa: F401
    from engine.train.objectives import dpo, kto, reward, sft  # noqa: F401
    from engine.train.scoring import harness, scores  # noqa: F401

    assert torch and peft and datasets and transformers
    threads = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    # pyarrow's allocator has a thread of its own, and handlers that make it safe to fork.
    assert sum(name != "jemalloc_bg_thd" for name in threads) == 1, f"not safe to fork: {threads}"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{sys.argv[1]}.new")
        listener.listen(16)
        os.rename(f"{sys.argv[1]}.new", sys.argv[1])  # whoever sees it may connect
        owner = os.pidfd_open(int(sys.argv[2]))
        while owner not in select.select([listener, owner], [], [])[0]:
            caller, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _serve(caller)
                os._exit(0)
            caller.close()
    folder = Path(sys.argv[1]).parent
    shutil.rmtree(folder, ignore_errors=True)
    Path(f"{folder}.lock").unlink(missing_ok=True)


def _serve(caller: socket.socket) -> None:
    data, descriptors, _, _ = socket.recv_fds(caller, LIMIT_BYTES, 3)
    while not data.endswith(b"\n"):
        data += caller.recv(LIMIT_BYTES)
    request = json.loads(data)
    child = os.fork()
    if child == 0:
        caller.close()
        _become(request, descriptors)
    caller.sendall(f"{child}\n".encode())
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([caller, ended], [], [])
    if ended not in ready:  # the caller has gone
        os.killpg(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if ended in ready:
        caller.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Turn this fork into the child that was asked for. Does not return."""
    os.setsid()
    for target, descriptor in zip((1, 2, 0), descriptors, strict=False):
        os.dup2(descriptor, target)
    os.environ.clear()
    os.environ.update(request["env"])
    os.environ["TUNEBOOK_SUPERVISOR"] = str(os.getppid())
    os.chdir(request["cwd"])
    status = 1
    try:
        if "run" in request:
            from engine.train.__main__ import main as train

            sys.argv = ["engine.train", request["run"]]
            if names := os.environ.get("TUNEBOOK_TEST_FAULT"):
                from tests.forked import faults

                faults.install(names, request["run"])
            status = train()
        else:
            import torch

            torch.set_num_threads(1)
            sys.argv = ["-c", *request["arguments"]]
            exec(compile(request["code"], "<test>", "exec"), {"__name__": "__main__"})
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Child:
    """What `subprocess.Popen` is to the supervisor: pid, poll, returncode. Made by the parent that listens."""

    def __init__(self, output: tuple[int, ...] = (1, 2), **request: Any):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(os.environ["TUNEBOOK_TEST_PARENT"])
        message = (json.dumps(request) + "\n").encode()
        sent = socket.send_fds(self._socket, [message], [*output])
        self._socket.sendall(message[sent:])
        self._told = self._socket.makefile("r")
        self.pid = int(self._told.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._socket], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            line = self._told.readline()
            self.returncode = int(line) if line else -signal.SIGKILL
        return self.returncode


if __name__ == "__main__":
    main()
