"""python -m engine.train.serve FOLDER NAME SOCKET DEVICE: transformers' own server for the whole model in FOLDER.

It listens on a unix socket, to whoever brings the secret that its environment holds: what stands before it is
engine/serve/front.py. The model is called NAME and no other is ever loaded. A client that has gone frees the model at once:
transformers 5.17 ends what it streams, and writes any other answer to its end.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import torch
import uvicorn
from transformers import StoppingCriteriaList
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import GenerateManager, GenerationState


class _OneModel(ModelManager):
    """The model of this folder, under its own name: answers name it, and a path of this machine is in none."""

    @staticmethod
    def process_model_name(model_id: str) -> str:
        return model_id

    def load_model_and_processor(self, model_id_and_revision: str, *_: Any, **__: Any) -> Any:
        if model_id_and_revision != self.force_model:
            raise ValueError(model_id_and_revision)
        return super().load_model_and_processor(".@main")  # the folder it is started in


class _Leaving(GenerateManager):
    """Ends an answer that is not streamed, too, when nobody waits for it any more."""

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> Any:
        gone = threading.Event()

        def is_over(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return torch.full((ids.shape[0],), gone.is_set(), device=ids.device)

        told = {**inputs, "stopping_criteria": StoppingCriteriaList([is_over])}
        try:
            # shielded: the thread that writes still has to say that it has ended
            return await asyncio.shield(super().generate_non_streaming(model, processor, told, gen_config, request_id))
        finally:
            gone.set()


class _State(GenerationState):
    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        return self._generate_managers.setdefault(model_id, _Leaving())


def guarded(app: Any, secret: str) -> Any:
    """Return the application for those who bring the secret; a request ends with whoever asked."""
    wanted = f"Bearer {secret}".encode()

    async def answer(scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        if not hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), wanted):
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body"})
            return
        heard: asyncio.Queue[Any] = asyncio.Queue()

        async def listen() -> None:
            while True:
                heard.put_nowait(message := await receive())
                if message["type"] == "http.disconnect":
                    return

        tasks = [asyncio.create_task(app(scope, heard.get, send)), asyncio.create_task(listen())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    return answer


def main() -> int:
    """Serve until the process is ended."""
    folder, name, socket, device = sys.argv[1:5]
    secret = os.environ.pop("TUNEBOOK_SERVE_SECRET")
    os.chdir(folder)
    if device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))  # a run that trains needs the rest
    models, state = _OneModel(device=device, force_model=name), _State()
    app = build_server(
        models,
        ChatCompletionHandler(models, state),
        CompletionHandler(models, state),
        ResponseHandler(models, state),
        TranscriptionHandler(models, state),
        state,
    )
    uvicorn.run(guarded(app, secret), uds=socket, http="h11", ws="none", access_log=False, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
