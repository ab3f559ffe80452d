"""python -m engine.serve.keeper RUN_DIR: serve one run until somebody ends it, or what answers ends.

The front listens from the beginning and says that the model is being loaded. What answers is moved to the processor when a
run wants the card that it is on, as Chat does; meanwhile the front says so again.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvicorn

from engine import machine
from engine.chat import child as chat_child
from engine.export import NotExportable, artifacts, job_runner
from engine.export import job as export_job
from engine.runs import device_queue
from engine.serve import front, programs, serving
from engine.serve.serving import Serving
from engine.workspace import Workspace

POLL_S, WATCH_S = 0.25, 1.0
END_S = 3.0


class Ended(Exception):
    """What answers has ended; `failure` says how."""

    def __init__(self, rule: str, **parameters: str | int):
        super().__init__(rule)
        self.failure = serving.failure(rule, **parameters)


def listen(port: int | None) -> socket.socket:
    """Return a socket that listens on this machine alone, at the port or, without one, at the first of ours that is free.
    Raises Ended."""
    for one in serving.PORTS if port is None else [port]:
        listening = socket.socket(socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", one))
            listening.listen(128)
            return listening
        except (OSError, OverflowError):
            listening.close()
    raise Ended("serve-port", port=port if port is not None else f"{serving.PORTS[0]}-{serving.PORTS[-1]}")


class Keeper:
    """Keeps one run served."""

    def __init__(self, workspace: Workspace, state: Serving, choice: programs.Choice):
        self._workspace, self._state, self._choice = workspace, state, choice
        self._front = front.Front(state.run, state.key)
        self._log = (workspace.run_dir(state.run) / serving.LOG).open("wb")
        config = uvicorn.Config(
            self._front.guarded(), lifespan="off", http="h11", ws="none", log_config=None, access_log=False,
            server_header=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)

    async def keep(self, port: int | None) -> None:
        """Serve until this process is told to end. Raises Ended when what answers has ended."""
        for number in (signal.SIGTERM, signal.SIGINT):  # also what uvicorn, done, raises again
            signal.signal(number, lambda *_: setattr(self._server, "should_exit", True))
        listening = listen(port)
        self._state.port = listening.getsockname()[1]
        self._tell("starting")
        serve = asyncio.create_task(self._server.serve([listening]))
        answer = asyncio.create_task(self._answer())
        try:
            await asyncio.wait([serve, answer], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._server.should_exit = True
            answer.cancel()
            results = await asyncio.gather(answer, serve, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _tell(self, phase: str) -> None:
        self._state.phase = phase
        serving.write(self._workspace, self._state)

    async def _answer(self) -> None:
        """Keep a program that answers: on a card while no run wants it."""
        if self._choice.program == "transformers" and artifacts.whole(self._workspace, self._state.run) is None:
            await self._merge()
        slot = chat_child.free_slot()
        while True:
            with tempfile.TemporaryDirectory(prefix="tunebook-", ignore_cleanup_errors=True) as folder:
                await self._answer_on(slot, Path(folder) / "model.sock")
            slot = "cpu"

    async def _merge(self) -> None:
        self._tell("merging")
        run_id = self._state.run
        try:
            job_runner.start(self._workspace, run_id, export_job.Job(what="merged"))
        except NotExportable as error:
            raise Ended("serve-merge", reason=str(error)) from error
        while (job := job_runner.progress(self._workspace, run_id)) is not None and not job.ended:
            await asyncio.sleep(POLL_S)
        if job is not None and job.failure is not None:
            raise Ended("serve-merge", reason=str(job.failure))
        job_runner.forget(self._workspace, run_id)
        if artifacts.whole(self._workspace, run_id) is None:  # it was stopped on the run's page
            raise Ended("serve-merge-stopped")

    async def _answer_on(self, slot: str, at: Path) -> None:
        """Let the program answer until a run wants the card it is on. Raises Ended when it ends by itself."""
        self._tell("loading")
        secret = secrets.token_urlsafe(32)
        process = programs.begin(self._workspace, self._state.run, self._choice, at, secret, slot, self._log)
        client = front.client_of(at, secret)
        try:
            while not await _is_ready(client):
                self._check(process)
                await asyncio.sleep(POLL_S)
            asked = partial(programs.asked, self._workspace, self._state.run, self._choice)
            self._front.behind = front.Behind(client, asked)
            self._tell("serving")
            while slot == "cpu" or not device_queue.wanted(machine.facts().device, slot):
                self._check(process)
                await asyncio.sleep(WATCH_S)
        finally:
            self._front.behind = None
            process.terminate()
            await client.aclose()
            try:
                await asyncio.to_thread(process.wait, END_S)
            except (subprocess.TimeoutExpired, asyncio.CancelledError):
                process.kill()
                process.wait()

    def _check(self, process: subprocess.Popen[Any]) -> None:
        """Raise Ended when the program is gone: with the last line that it said."""
        status = process.poll()
        if status is None:
            return
        if status == -signal.SIGKILL:
            raise Ended("serve-killed")
        said = (self._workspace.run_dir(self._state.run) / serving.LOG).read_text("utf-8", "replace")[-4000:]
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        raise Ended("serve-ended", reason=lines[-1][:300] if lines else str(status))


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get(front.HEALTH, timeout=5.0)).status_code == 200
    except httpx.HTTPError:
        return False


def main() -> int:
    """Serve what stands on stdin."""
    run_dir = Path(sys.argv[1]).resolve()
    asked = json.loads(sys.stdin.read())
    state, workspace = msgspec.convert(asked["serving"], Serving), Workspace(run_dir.parents[1])
    try:
        choice = serving.chosen(workspace, state.run, state.quantization or state.program)
        asyncio.run(Keeper(workspace, state, choice).keep(asked["port"]))
    except Ended as ended:
        state.failure = ended.failure
    except Exception as error:
        state.failure = f"{type(error).__name__}: {error}"[:300]
    if state.failure is None:
        (run_dir / serving.STATE).unlink(missing_ok=True)
        return 0
    serving.write(workspace, state)
    return 1


if __name__ == "__main__":
    sys.exit(main())
