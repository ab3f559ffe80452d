"""What stands before the program that answers for a run, as plain ASGI: it lets four addresses through and nothing else.

Who asks brings the key of this serving, from this machine, and no page of another site. What is asked is read, bounded
and written anew: no path and no header of a client reaches the program, and no field that is not known, for it would load
any model that is named (transformers), or change its settings (llama.cpp). Answers pass through as they are written, and a
client that goes away ends its answer.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from engine import guard
from engine.words import Problem
from engine.workspace import Unreadable, decoded

MODELS, HEALTH = "/v1/models", "/health"
ASKED = ("/v1/chat/completions", "/v1/completions")
ROUTES = {MODELS: "GET", HEALTH: "GET", **dict.fromkeys(ASKED, "POST")}
MOST_BODY_BYTES = 4 * 2**20
# Requests that are answered or wait at one time; a further one is told to come again.
MOST_AT_ONCE = 32
BODY_S = 30.0
# What OpenAI's two calls know. Another field could be one by which the program behind does something else.
FIELDS = {
    "model", "messages", "prompt", "suffix", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop",
    "stream", "stream_options", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs",
    "response_format", "tools", "tool_choice", "parallel_tool_calls", "user", "echo", "best_of", "metadata", "store",
    "reasoning_effort",
}  # fmt: skip
_NUMBERS = {"temperature": (int, float), "top_p": (int, float), "max_tokens": (int,), "max_completion_tokens": (int,)}


class Refused(Exception):
    """A request that is answered here: with a status, and OpenAI's word for what it is."""

    def __init__(self, status: int, rule: str, code: str | None = None, **parameters: str | int):
        super().__init__(rule)
        self.status, self.code = status, code
        self.problem = Problem(rule=rule, parameters=dict(parameters))


class Behind(NamedTuple):
    """The program behind: who speaks to it, and how it is asked (programs.asked)."""

    client: httpx.AsyncClient
    asked: Callable[[dict[str, Any]], dict[str, Any]]


def client_of(socket: Path, secret: str) -> httpx.AsyncClient:
    """Return what speaks to a program at a unix socket, each time on a connection of its own: closed, it ends the answer."""
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_keepalive_connections=0)),
        base_url="http://model",
        headers={
            "authorization": f"Bearer {secret}",
            "content-type": "application/json",
            "accept-encoding": "identity",
        },
        timeout=httpx.Timeout(None, connect=5.0),
        trust_env=False,
    )


class Front:
    """The front of one model. `behind` is None while its program is not ready."""

    def __init__(self, name: str, key: str):
        self.behind: Behind | None = None
        self._name, self._key, self._open = name, key, 0

    def guarded(self) -> guard.App:
        """Return it behind the guard of the pages: the Host is this machine, and an Origin is this very address."""
        return guard.Guard(self, guard.Rules(programs=True))

    async def __call__(self, scope: guard.Scope, receive: guard.Receive, send: guard.Send) -> None:
        if scope["type"] == "lifespan":
            return
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            path = self._admitted(scope)
            if path == MODELS:
                await _send(send, 200, {"object": "list", "data": [self._model()]})
                return
            self._open += 1
            try:
                if self._open > MOST_AT_ONCE:
                    raise Refused(503, "serve-many")
                await self._ask(path, scope, receive, send)
            finally:
                self._open -= 1
        except Refused as refused:
            await _refuse(send, refused)

    def _model(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": 0, "owned_by": "tunebook"}

    def _admitted(self, scope: guard.Scope) -> str:
        """Return the one of our addresses that is asked for, by whoever has the key. Raises Refused."""
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if len(given) != 1 or not hmac.compare_digest(given[0], f"Bearer {self._key}".encode()):
            raise Refused(401, "serve-key", "invalid_api_key")
        path, raw = scope["path"], scope.get("raw_path") or scope["path"].encode()
        if path not in ROUTES or raw.partition(b"?")[0] != path.encode():  # written in one way alone
            raise Refused(404, "serve-path")
        if scope["method"] != ROUTES[path]:
            raise Refused(405, "serve-method", method=ROUTES[path])
        return path

    async def _ask(self, path: str, scope: guard.Scope, receive: guard.Receive, send: guard.Send) -> None:
        """Put a request to the program behind, until it is answered or nobody waits for it any more."""
        body = None
        if path in ASKED:
            try:
                body = self._checked(await asyncio.wait_for(_read(scope, receive), BODY_S))
            except TimeoutError:
                raise Refused(408, "serve-slow") from None
        if self.behind is None:
            raise Refused(503, "serve-loading")
        tasks = [asyncio.create_task(_pass_on(self.behind, path, body, send)), asyncio.create_task(_left(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    def _checked(self, data: bytes) -> dict[str, Any]:
        """Return a body that asks this model in fields that are known. Raises Refused."""
        try:
            body = decoded(data, dict[str, Any])
        except Unreadable:
            raise Refused(400, "serve-json") from None
        if body.get("model", self._name) != self._name:
            raise Refused(404, "serve-model", "model_not_found", name=self._name)
        if unknown := sorted(body.keys() - FIELDS):
            raise Refused(400, "serve-field", names=", ".join(unknown)[:200])
        for name, kinds in _NUMBERS.items():
            value = body.get(name)
            if value is not None and (type(value) not in kinds or value < 0):
                raise Refused(400, "serve-number", name=name)
        messages = body.get("messages")
        if messages is not None and not (isinstance(messages, list) and all(map(_is_text, messages))):
            raise Refused(400, "serve-text")
        return body


def _is_text(message: Any) -> bool:
    """Whether a turn is of words alone: an address of a picture would be opened by the program behind."""
    content = message.get("content") if isinstance(message, dict) else 0
    parts = content if isinstance(content, list) else []
    return (content is None or isinstance(content, str | list)) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts
    )


async def _read(scope: guard.Scope, receive: guard.Receive) -> bytes:
    """Return the body, of a size that is bounded while it comes. Raises Refused."""
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    data, more = bytearray(), True
    while more:
        if len(data) > MOST_BODY_BYTES or (announced.isdigit() and int(announced[:20]) > MOST_BODY_BYTES):
            raise Refused(413, "serve-large", most=MOST_BODY_BYTES // 2**20)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "serve-json")  # nobody reads it
        data += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(data)


async def _left(receive: guard.Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _pass_on(behind: Behind, path: str, body: dict[str, Any] | None, send: guard.Send) -> None:
    """Ask the program behind, and send what it answers as it comes. Raises Refused when it cannot be asked."""
    data = None if body is None else json.dumps(behind.asked(body)).encode()
    request = behind.client.build_request(ROUTES[path], path, content=data)
    try:
        response = await behind.client.send(request, stream=True)
    except httpx.TransportError:
        raise Refused(502, "serve-gone") from None
    try:
        await _start(send, response.status_code, response.headers.get("content-type", "application/json").encode())
        async for part in response.aiter_raw():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except httpx.TransportError:
        return  # left without an end, the connection is closed, by which the client knows
    finally:
        await response.aclose()


async def _start(send: guard.Send, status: int, kind: bytes, more: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    headers = [(b"content-type", kind), (b"cache-control", b"no-store"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send(send: guard.Send, status: int, value: Any, *more: tuple[bytes, bytes]) -> None:
    data = json.dumps(value, ensure_ascii=False).encode()
    await _start(send, status, b"application/json", ((b"content-length", str(len(data)).encode()), *more))
    await send({"type": "http.response.body", "body": data})


async def _refuse(send: guard.Send, refused: Refused) -> None:
    """Answer in the form in which OpenAI's clients look for what went wrong."""
    more = {
        401: (b"www-authenticate", b"Bearer"),
        405: (b"allow", str(refused.problem.parameters.get("method", "")).encode()),
        503: (b"retry-after", b"1"),
    }.get(refused.status)
    error = {"message": refused.problem.sentence, "type": "invalid_request_error", "code": refused.code}
    await _send(send, refused.status, {"error": error}, *([more] if more else []))
