"""What stands before a model that is served: only its four addresses, its key and its name come through."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn

from engine import guard
from engine.serve import front
from tests.helpers import wait_until

NAME, KEY, SECRET = "20260101-000000-abcdef", "the-key", "the-secret"
CHAT = "/v1/chat/completions"
TURN = {"role": "user", "content": "hello"}


class Model:
    """A program that answers, as ASGI: it says what it was asked, or, asked to stream, writes until nobody listens."""

    def __init__(self) -> None:
        self.reached: list[dict[str, Any]] = []
        self.left = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        body = json.loads(message["body"]) if message["body"] else None
        self.reached.append({"path": scope["path"], "headers": dict(scope["headers"]), "body": body})
        headers = [(b"content-type", b"text/event-stream"), (b"access-control-allow-origin", b"*")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if not (body or {}).get("stream"):
            await send({"type": "http.response.body", "body": json.dumps(body).encode()})
            return
        gone = asyncio.create_task(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": b"data: again\n\n", "more_body": True})
            await asyncio.sleep(0.005)
        self.left.set()


class Served(NamedTuple):
    port: int
    model: Model
    front: front.Front


def _in_background(app: Any, listening: socket.socket) -> tuple[uvicorn.Server, threading.Thread]:
    settings = uvicorn.Config(
        app, lifespan="off", http="h11", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    return server, thread


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A front on a port of this machine, as it is served, with a model behind it."""
    at = tmp_path_factory.mktemp("s") / "m.sock"
    inner = socket.socket(socket.AF_UNIX)
    inner.bind(str(at))
    outer = socket.socket()
    outer.bind(("127.0.0.1", 0))
    model, made = Model(), front.Front(NAME, KEY)
    made.behind = front.Behind(front.client_of(at, SECRET), lambda body: body)
    running = [_in_background(model, inner), _in_background(made.guarded(), outer)]
    yield Served(outer.getsockname()[1], model, made)
    for server, thread in running:
        server.should_exit = True
        thread.join()


def raw(served: Served, *lines: str, body: bytes = b"") -> bytes:
    """Send bytes as they are and return all that comes until the connection is closed, as it is asked to be."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def asked(
    served: Served,
    path: str = CHAT,
    *,
    method: str = "POST",
    host: str | None = None,
    headers: tuple[str, ...] = (),
    key: str | None = KEY,
    **body: Any,
) -> bytes:
    """Ask as a program does; `headers` come after its own."""
    data = json.dumps(body or {"messages": [TURN]}).encode() if method == "POST" else b""
    own = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host or f'127.0.0.1:{served.port}'}",
        *([f"Authorization: Bearer {key}"] if key is not None else []),
        *([f"Content-Length: {len(data)}"] if method == "POST" else []),
    ]
    return raw(served, *own, *headers, body=data)


@pytest.fixture
def reached(served: Served) -> list[dict[str, Any]]:
    served.model.reached.clear()
    return served.model.reached


def test_the_models_own_requests_reach_it_with_its_secret_and_nothing_else_of_the_clients(served, reached):
    answer = asked(served, headers=("X-Api-Key: mine", "Cookie: a=b", "X-Request-Id: 1"), model=NAME, messages=[TURN])
    assert status(answer) == 200 and b"access-control" not in answer.lower()
    (one,) = reached
    assert one["path"] == CHAT and one["body"] == {"model": NAME, "messages": [TURN]}
    assert one["headers"][b"authorization"] == f"Bearer {SECRET}".encode()
    assert one["headers"][b"accept-encoding"] == b"identity"  # what is passed on says of no other
    assert not {b"x-api-key", b"cookie", b"x-request-id"} & set(one["headers"])


def test_its_list_of_models_is_this_one_and_its_health_is_the_programs(served, reached):
    listed = asked(served, "/v1/models", method="GET")
    assert [one["id"] for one in json.loads(listed.split(b"\r\n\r\n")[1])["data"]] == [NAME] and not reached
    assert status(asked(served, "/health", method="GET")) == 200 and reached[0]["path"] == "/health"


@pytest.mark.parametrize(
    "headers",
    [
        ("Origin: http://evil.example",),
        ("Origin: http://127.0.0.1:9",),
        ("Origin: http://localhost:8501",),
        ("Origin: null",),
        ("Origin: file://",),
        ("X-Forwarded-Host: evil.example",),
        ("Host: evil.example",),
    ],
)
def test_a_page_of_another_address_is_refused_though_it_has_the_key(served, reached, headers):
    assert status(asked(served, headers=headers)) in (400, 403) and not reached


@pytest.mark.parametrize("host", ["evil.example", "192.0.2.2", "0.0.0.0", "127.0.0.1.evil.example", "[::2]", "a b"])
def test_a_name_that_leads_to_this_machine_and_is_not_its_own_is_refused(served, reached, host):
    answer = asked(served, host=host)
    assert status(answer) in (400, 403) and b"share-host" not in answer and not reached


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/health", "/load_model", "/"])
@pytest.mark.parametrize("key", [None, "", "the-kez", "the-keys", SECRET, "schlüssel"])
def test_without_the_key_nothing_is_told_apart(served, reached, path, key):
    answer = asked(served, path, key=key)
    said = json.loads(answer.split(b"\r\n\r\n")[1])
    assert status(answer) == 401 and said["error"]["code"] == "invalid_api_key" and not reached


def test_two_keys_are_none(served, reached):
    assert status(asked(served, headers=("Authorization: Bearer wrong",))) == 401 and not reached
    assert status(asked(served, key=None, headers=(f"Authorization: Basic {KEY}",))) == 401 and not reached


@pytest.mark.parametrize(
    "path",
    [
        "/load_model", "/reset", "/v1/responses", "/v1/audio/transcriptions", "/docs", "/openapi.json", "/props", "/slots",
        "/completion", "/tokenize", "/lora-adapters", "/v1/embeddings", "/tools", "/cors-proxy", "/v1/stream",
        "/v1/../load_model", "/v1/chat/completions/../../../load_model", "/v1/%2e%2e/load_model", "//load_model",
        "//v1/chat/completions", "/v1//chat/completions", "/v1/chat/completions/", "/v1/chat%2fcompletions",
        "/%761/chat/completions", "/v1/chat/completions;x", "/V1/chat/completions", "/v1/chat/completions%00",
        "http://model/load_model", "http://127.0.0.1/v1/chat/completions", "*",
    ],
)  # fmt: skip
def test_no_other_address_is_reached_however_it_is_written(served, reached, path):
    assert status(asked(served, path)) in (400, 404) and not reached


def test_what_follows_a_question_mark_reaches_nobody(served, reached):
    assert status(asked(served, f"{CHAT}?model=other/one")) == 200
    assert reached[0]["path"] == CHAT


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"])
def test_a_question_is_posted_and_nothing_is_allowed_to_other_pages(served, reached, method):
    answer = asked(served, method=method)
    assert status(answer) in (400, 403, 404, 405) and b"access-control" not in answer.lower() and not reached


def test_a_list_and_the_health_are_only_read(served, reached):
    for path in ("/v1/models", "/health"):
        assert status(asked(served, path)) == 405 and status(asked(served, path, method="HEAD")) == 405
    assert not reached


@pytest.mark.parametrize("model", ["other/one", f"{NAME}@main", "/etc", "", None, 3, ["x"]])
def test_no_other_model_is_asked(served, reached, model):
    assert status(asked(served, model=model, messages=[TURN])) == 404 and not reached


def test_of_two_models_in_a_body_the_program_sees_the_one_that_was_checked(served, reached):
    def body(first: str, second: str) -> bytes:
        return f'{{"model": "{first}", "model": "{second}", "prompt": "x"}}'.encode()

    for data in (body("other/one", NAME), body(NAME, "other/one")):
        lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}"]
        raw(served, *lines, f"Content-Length: {len(data)}", body=data)
    assert {one["body"]["model"] for one in reached} <= {NAME}


@pytest.mark.parametrize(
    "field",
    [
        "generation_config",
        "lora",
        "chat_template_kwargs",
        "grammar",
        "id_slot",
        "file",
        "samplers",
        "trust_remote_code",
    ],
)
def test_fields_that_only_the_program_behind_knows_are_refused_by_name(served, reached, field):
    body: dict[str, Any] = {"messages": [TURN], field: "x"}
    answer = asked(served, **body)
    assert status(answer) == 400 and field.encode() in answer and not reached


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
        [{"type": "text", "text": "a"}, {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}],
        [{"type": "text", "text": {"url": "x"}}],
        ["text"],
        {"url": "http://127.0.0.1:9"},
        7,
    ],
)
def test_turns_are_of_text_alone_so_that_nothing_is_fetched(served, reached, content):
    assert status(asked(served, messages=[{"role": "user", "content": content}])) == 400 and not reached


def test_turns_of_text_in_parts_and_of_tool_calls_pass(served, reached):
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    called = {"role": "assistant", "content": None, "tool_calls": []}
    assert status(asked(served, messages=[parts, called])) == 200 and len(reached) == 1


@pytest.mark.parametrize("value", ["0.5", True, -1, [1], {}, "x" * 9])
@pytest.mark.parametrize("name", ["temperature", "max_tokens", "max_completion_tokens"])
def test_a_number_that_is_none_is_refused(served, reached, name, value):
    assert status(asked(served, messages=[TURN], **{name: value})) == 400 and not reached


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{", b'{"a": 1' + b"[" * 5000, b"\xff", b'{"seed": 1' + b"0" * 40 + b"}"]
)
def test_a_body_that_is_no_object_is_refused(served, reached, data):
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}"]
    assert status(raw(served, *lines, f"Content-Length: {len(data)}", body=data)) == 400 and not reached


def test_a_body_of_any_size_takes_no_more_memory_than_is_allowed(served, reached, monkeypatch):
    monkeypatch.setattr(front, "MOST_BODY_BYTES", 1000)
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}"]
    assert status(raw(served, *lines, f"Content-Length: {10**15}")) == 413  # announced
    assert status(raw(served, *lines, f"Content-Length: {'9' * 60}")) in (400, 413)
    chunks = b"3e8\r\n" + b" " * 1000 + b"\r\n" + b"3e8\r\n" + b" " * 1000 + b"\r\n"  # never ends
    assert status(raw(served, *lines, "Transfer-Encoding: chunked", body=chunks)) == 413 and not reached


@pytest.mark.parametrize(
    "lengths",
    [
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5, 6",),
        ("Content-Length: -1",),
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding : chunked",),
        ("Content-Length:\x0b5",),
    ],
)
def test_no_second_request_is_smuggled_in_the_body_of_a_first(served, reached, lengths):
    inner = "POST /load_model HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    body = b"0\r\n\r\n" + inner.encode()
    answer = raw(
        served, f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}", *lengths, body=body
    )
    # what is read as a second request has no key
    assert not reached and b" 200 " not in answer


def test_a_socket_is_refused(served, reached):
    upgrade = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
    )
    answer = asked(served, method="GET", headers=upgrade)
    assert status(answer) in (400, 403, 404, 405) and not reached
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": CHAT,
        "headers": [(b"host", b"localhost"), (b"authorization", b"Bearer the-key")],
    }
    asyncio.run(front.Front(NAME, KEY)(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_an_answer_comes_as_it_is_written_and_ends_with_whoever_asked(served, reached):
    served.model.left.clear()
    data = json.dumps({"messages": [TURN], "stream": True}).encode()
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}", f"Content-Length: {len(data)}"]
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)
        heard = b""
        while heard.count(b"data: again") < 3:  # it has no end: what is heard was passed on while it was written
            heard += connection.recv(65536)
        assert not served.model.left.is_set()
    assert served.model.left.wait(10)
    wait_until(lambda: not served.front._open)


def test_so_many_at_once_and_the_next_is_told_to_come_again(served, reached, monkeypatch):
    monkeypatch.setattr(served.front, "_open", front.MOST_AT_ONCE)
    answer = asked(served)
    assert status(answer) == 503 and b"retry-after" in answer.lower() and not reached


def test_while_the_model_is_loaded_and_when_its_program_is_gone_that_is_said(served, reached, monkeypatch, tmp_path):
    monkeypatch.setattr(served.front, "behind", None)
    assert status(asked(served)) == 503 and status(asked(served, "/health", method="GET")) == 503
    assert status(asked(served, "/v1/models", method="GET")) == 200
    gone = front.Behind(front.client_of(tmp_path / "none.sock", SECRET), lambda body: body)
    monkeypatch.setattr(served.front, "behind", gone)
    assert status(asked(served)) == 502 and not reached


def test_a_slow_body_is_waited_for_no_longer_than_that(served, reached, monkeypatch):
    monkeypatch.setattr(front, "BODY_S", 0.05)
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}", "Content-Length: 9"]
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "", "{"]).encode())
        assert status(connection.recv(65536)) == 408 and not reached


def test_the_guard_lets_programs_in_that_send_no_origin_and_nothing_else_changes() -> None:
    assert front.Front(NAME, KEY).guarded().rules == guard.Rules(programs=True)  # type: ignore[attr-defined]
    assert not guard.rules_for([], [], demo=False, space=None).programs


def test_the_keys_file_is_its_owners_alone(tmp_path: Path) -> None:
    from engine.serve import serving
    from engine.workspace import Workspace

    workspace = Workspace(tmp_path)
    workspace.run_dir("r1").mkdir(parents=True)
    serving.write(workspace, serving.Serving(run="r1", program="llama.cpp", key=KEY))
    assert (workspace.run_dir("r1") / serving.STATE).stat().st_mode & 0o077 == 0
