"""The guard: no other site, port or name reaches the server, and a shared one lets in who has the link, once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect, sync_playwright
from streamlit.proto.BackMsg_pb2 import BackMsg

from engine import guard
from engine.cli.parser import app, parser
from tests.browsers import CONTRAST, FLAGS, Server, settled
from tests.conftest import chromium

LOCAL = guard.rules_for([], ["/api/uploads"], demo=False, space=None)
SPACE = guard.rules_for([], ["/api/uploads"], demo=True, space="me-tunebook.hf.space")
OWN = "127.0.0.1:8501"


def ask(rules: guard.Rules, headers: list[tuple[str, str]], kind: str = "websocket", **more: Any) -> Any:
    """Send a request through a guard; return what reached the server (its scope), or what was answered."""
    reached, answered = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)
        if kind == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        answered.append(message)

    scope = {
        "type": kind, "method": "GET", "path": "/_stcore/stream", "query_string": b"", "scheme": "http",
        "headers": [(name.encode(), value.encode()) for name, value in headers], **more,
    }  # fmt: skip
    asyncio.run(guard.Guard(app, rules)(scope, receive, send))
    return reached, answered


ELSEWHERE = [
    [("host", OWN), ("origin", "http://evil.example")],
    [("host", OWN), ("origin", "http://127.0.0.1:9")],
    [("host", OWN), ("origin", "http://localhost:8501")],  # another name is another origin
    [("host", OWN), ("origin", "http://0.0.0.0:1")],
    [("host", OWN), ("origin", "http://0.0.0.0:8501")],
    [("host", OWN), ("origin", "null")],
    [("host", OWN), ("origin", "file://")],
    [("host", OWN), ("origin", f"http://{OWN}@evil.example")],
    [("host", OWN), ("origin", f"http://{OWN}.evil.example")],
    [("host", OWN)],
    [("origin", f"http://{OWN}")],
    [("host", "evil.example:8501"), ("origin", "http://evil.example:8501")],  # a name turned to this machine
    [("host", "192.0.2.2:8501"), ("origin", "http://192.0.2.2:8501")],  # the machine's own address
    [("host", "0.0.0.0:8501"), ("origin", "http://0.0.0.0:8501")],
    [("host", OWN), ("host", "evil.example"), ("origin", f"http://{OWN}")],
    [("host", OWN), ("origin", f"http://{OWN}"), ("origin", "http://evil.example")],
]


@pytest.mark.parametrize("rules", [LOCAL, SPACE])
@pytest.mark.parametrize("headers", ELSEWHERE)
def test_a_socket_and_a_writing_request_from_elsewhere_never_reach_the_server(
    rules: guard.Rules, headers: list[tuple[str, str]]
) -> None:
    assert ask(rules, headers) == ([], [{"type": "websocket.close", "code": 1008}])
    reached, answered = ask(rules, headers, "http", method="PUT", path="/api/uploads")
    assert not reached and answered[0]["status"] == 403


@pytest.mark.parametrize(
    ("rules", "host", "origin"),
    [
        (LOCAL, OWN, f"http://{OWN}"),
        (LOCAL, "localhost:8501", "http://localhost:8501"),
        (LOCAL, "LocalHost:8501", "http://localhost:8501"),
        (LOCAL, "[::1]:8501", "http://[::1]:8501"),
        (SPACE, OWN, f"http://{OWN}"),
        (SPACE, "me-tunebook.hf.space", "https://me-tunebook.hf.space"),
    ],
)
def test_its_own_pages_reach_it_and_streamlit_sees_an_origin_it_need_not_look_up(rules, host, origin):
    headers = [("host", host), ("origin", origin)]
    for reached, _ in (ask(rules, headers), ask(rules, headers, "http", method="PUT", path="/api/uploads")):
        seen = dict(reached[0]["headers"])
        assert seen[b"origin"].partition(b"://")[2] == seen[b"host"] == host.encode()


@pytest.mark.parametrize("path", ["/_stcore/upload_file/a/b", "/base/_stcore/upload_file/a/b", "/", "/api/health"])
@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "OPTIONS"])
def test_nothing_is_written_but_to_our_upload_route(path: str, method: str) -> None:
    reached, answered = ask(LOCAL, [("host", OWN), ("origin", f"http://{OWN}")], "http", method=method, path=path)
    assert not reached and answered[0]["status"] == 403


@pytest.mark.parametrize(("rules", "frame"), [(LOCAL, "'none'"), (SPACE, "https://huggingface.co")])
@pytest.mark.parametrize("path", ["/", "/api/health", "/_stcore/health", "/_stcore/metrics"])
def test_every_answer_says_who_may_frame_it_and_no_other_name_gets_one(rules, frame, path):
    _, answered = ask(rules, [("host", OWN)], "http", path=path)
    headers = dict(answered[0]["headers"])
    assert headers[b"content-security-policy"] == f"frame-ancestors {frame}".encode()
    assert headers[b"x-content-type-options"] == b"nosniff" and headers[b"referrer-policy"] == b"same-origin"
    assert (b"x-frame-options" in headers) == (rules is LOCAL)
    reached, answered = ask(rules, [("host", "evil.example")], "http", path=path)
    assert not reached and answered[0]["status"] == 403


def answer_to(rules: guard.Rules, *headers: tuple[str, str], **more: Any) -> str:
    _, answered = ask(rules, list(headers), "http", path="/", **more)
    return answered[1]["body"].decode()


PROXY = "8501-gpu-t4.colab.example"


@pytest.mark.parametrize(
    "headers", [[("host", PROXY)], [("host", f"{PROXY}:8501")], [("host", OWN), ("x-forwarded-host", PROXY)]]
)
def test_a_refused_name_is_told_the_exact_command_that_allows_it_and_that_command_does(headers) -> None:
    said = answer_to(LOCAL, *headers)
    command = said.rpartition("start it with: ")[2].rstrip(".").split()
    arguments = parser().parse_args(command[1:])
    assert command[0] == "tunebook" and arguments.function is app and arguments.share_host == [PROXY]
    allowed = guard.rules_for(arguments.share_host, [], demo=False, space=None)
    assert "has not logged in" in answer_to(allowed, *headers)


def test_the_servers_output_names_a_page_whose_socket_was_refused_once_and_a_hostile_one_has_no_end(capsys) -> None:
    async def nothing(*_: Any) -> Any:
        return {"type": "websocket.connect"}

    watching = guard.Guard(nothing, LOCAL)
    for name in [PROXY, PROXY, *(f"evil{n}.example" for n in range(100)), "a\x1b[2Jb", "x y", "<b>"]:
        headers = [(b"host", OWN.encode()), (b"origin", f"https://{name}".encode())]
        asyncio.run(watching({"type": "websocket", "path": "/", "headers": headers}, nothing, nothing))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == guard.MOST_TOLD and f"--share-host {PROXY};" in lines[0]
    assert sum(PROXY in line for line in lines) == 1


def test_a_name_that_is_none_is_not_repeated() -> None:
    for name in ("<script>", "a b", "x" * 3000 + "!", ""):
        said = answer_to(LOCAL, ("host", name))
        assert "under this name" in said and "<" not in said


def log_in(rules: guard.Rules, token: str, **more: Any) -> Any:
    path, query = guard.LOGIN_ROUTE, f"token={token}".encode()
    return ask(rules, [("host", "box.example")], "http", path=path, query_string=query, **more)[1][0]


def test_a_shared_host_lets_in_who_has_the_link_once() -> None:
    rules = guard.rules_for(["box.example"], [], demo=False, space=None)
    shared = [("host", "box.example"), ("origin", "https://box.example")]
    assert rules.login is not None and rules.login.token is not None
    token = rules.login.token
    assert ask(rules, shared)[0] == [] and ask(rules, shared, "http")[1][0]["status"] == 403
    assert ask(rules, [("host", OWN), ("origin", f"http://{OWN}")])[0] == []  # a proxy may call it so
    assert log_in(rules, "guessed")["status"] == log_in(rules, "")["status"] == 403
    assert log_in(rules, token, method="HEAD")["status"] == 403  # a look at the link does not use it up
    answer = log_in(rules, token)
    cookie = dict(answer["headers"])[b"set-cookie"].decode()
    assert answer["status"] == 303 and "HttpOnly" in cookie and token not in cookie
    assert log_in(rules, token)["status"] == 403
    known = ("cookie", cookie.partition(";")[0])
    assert ask(rules, [*shared, known])[0]
    assert ask(rules, [("host", OWN), ("origin", "https://box.example"), known])[0]
    assert ask(rules, [("host", "box.example"), ("origin", "https://evil.example"), known])[0] == []
    assert ask(rules, [*shared, ("cookie", f"{guard.COOKIE}=guessed")])[0] == []


@pytest.mark.parametrize("other", ['a={"x":1}', "a b", "=", "x[0]=1", '"', "path=/"])
def test_cookies_of_others_on_the_same_host_log_nobody_out_and_hand_out_no_new_mark(other: str) -> None:
    rules = guard.rules_for(["box.example"], [], demo=False, space=None)
    assert rules.login is not None and rules.login.token is not None
    cookie = dict(log_in(rules, rules.login.token)["headers"])[b"set-cookie"].decode().partition(";")[0]
    for sent in (f"{other}; {cookie}", f"{cookie}; {other}"):
        assert ask(rules, [("host", "box.example"), ("origin", "https://box.example"), ("cookie", sent)])[0]
    mark = "m" * 43
    assert f"{guard.MARK}={mark};" in cookies(DEMO, HTML, ("cookie", f"{other}; {guard.MARK}={mark}"))[0]


def test_a_demo_has_no_login_and_a_space_that_is_none_has_one() -> None:
    assert guard.rules_for(["box.example"], [], demo=True, space=None).login is None
    assert guard.rules_for([], [], demo=False, space="me-tunebook.hf.space").login is not None
    with pytest.raises(ValueError, match="a/b"):
        guard.rules_for(["a/b"], [], demo=False, space=None)


@pytest.mark.browser
def test_a_page_on_another_port_opens_no_socket_and_the_page_itself_does(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start()
    opens = """url => new Promise(done => { const socket = new WebSocket(url, ["streamlit"]);
        socket.onopen = () => done(true); socket.onerror = () => done(false); })"""
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
            page = browser.new_page()
            url = f"ws://127.0.0.1:{server.port}/_stcore/stream"
            page.route("http://localhost:9/**", lambda route: route.fulfill(body="<p>another</p>"))
            page.goto("http://localhost:9/")
            assert page.evaluate(opens, url) is False
            page.goto(server.url)
            assert page.evaluate(opens, url) is True
            browser.close()
    finally:
        server.kill()


def heard(rules: guard.Rules, *messages: bytes | str) -> list[bytes | str]:
    """Send messages on a socket; return those that reached the server."""
    reached: list[bytes | str] = []
    coming = iter([*({"type": "websocket.receive", "text" if isinstance(m, str) else "bytes": m} for m in messages)])

    async def app(_: Any, receive: Any, __: Any) -> None:
        while (message := await receive())["type"] == "websocket.receive":
            reached.append(message.get("bytes") or message["text"])

    async def receive() -> Any:
        return next(coming, {"type": "websocket.disconnect"})

    async def nothing(_: Any) -> None:
        pass

    headers = [(b"host", OWN.encode()), (b"origin", f"http://{OWN}".encode())]
    asyncio.run(guard.Guard(app, rules)({"type": "websocket", "headers": headers}, receive, nothing))
    return reached


def test_a_demo_hears_what_its_pages_send_and_nothing_else() -> None:
    rerun, stop, alive, wanted = BackMsg(), BackMsg(stop_script=True), BackMsg(app_heartbeat=True), BackMsg()
    rerun.rerun_script.query_string = "a=" + "1" * 1000
    wanted.backend_operation_request.deferred_file.file_id = "x"
    addresses, empty = BackMsg(), BackMsg(clear_cache=True)
    addresses.file_urls_request.file_names.extend(["a"] * 1000)
    sent = [one.SerializeToString() for one in (rerun, stop, alive, wanted, BackMsg(stop_script=False))]
    costly = [one.SerializeToString() for one in (addresses, empty, BackMsg(load_git_info=True))]
    odd = [*(sent[1] + one for one in costly), *(one + sent[1] for one in costly), sent[0] + sent[0], sent[0][:-1], b"",
           b"\xff" * 20, b"\x8b", "text"]  # fmt: skip
    own = {BackMsg.DESCRIPTOR.fields_by_name[name].number for name in guard.MESSAGES}
    rules = LOCAL._replace(messages=frozenset(own))
    assert heard(rules, *costly, *odd, *sent) == sent
    assert heard(LOCAL, *costly) == costly


def sockets_held(rules: guard.Rules, *clients: tuple[str, str]) -> list[bool]:
    """Open a socket for each (peer, X-Forwarded-For), one after the other; say which of them reached the server. All are
    closed then, and each could be opened again."""

    async def hold() -> list[bool]:
        end = asyncio.Event()
        reached: list[int] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            reached.append(scope["number"])
            await end.wait()

        async def nothing(*_: Any) -> Any:
            return {}

        held = guard.Guard(app, rules)
        tasks = []
        for number, (peer, forwarded) in enumerate(clients):
            headers = [(b"host", OWN.encode()), (b"origin", f"http://{OWN}".encode())]
            headers += [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
            scope = {"type": "websocket", "headers": headers, "client": (peer, 1), "number": number}
            tasks.append(asyncio.create_task(held(scope, nothing, nothing)))
            await asyncio.sleep(0)
        found = [number in reached for number in range(len(clients))]
        end.set()
        await asyncio.gather(*tasks)
        assert held._open.total() == 0
        return found

    return asyncio.run(hold())


def test_sockets_are_counted_for_each_client_and_in_all() -> None:
    rules = LOCAL._replace(sockets=4, sockets_per_client=2)
    assert sockets_held(LOCAL, *[("8.8.8.8", "")] * 20) == [True] * 20
    public = [("8.8.8.8", ""), ("8.8.4.4", ""), ("1.1.1.1", "")]
    assert sockets_held(rules, *[public[0]] * 3, public[1]) == [True, True, False, True]
    assert sockets_held(rules, public[0], public[0], public[1], public[1], public[2]) == [True] * 4 + [False]


def test_behind_a_proxy_a_client_is_who_the_proxy_says_and_not_who_it_says_itself() -> None:
    rules = LOCAL._replace(sockets=100, sockets_per_client=1)
    proxied = [("10.0.0.5", f"{made_up}, 8.8.8.8") for made_up in ("1.1.1.1", "9.9.9.9")]
    assert sockets_held(rules, *proxied, ("10.0.0.5", "8.8.4.4")) == [True, False, True]
    assert sockets_held(rules, ("8.8.8.8", "1.1.1.1"), ("8.8.8.8", "9.9.9.9")) == [True, False]
    assert sockets_held(rules, ("10.0.0.5", "x" * 50), ("10.0.0.5", "y")) == [True, False]


# --- the mark of a browser --------------------------------------------------------------------------------------------
DEMO = LOCAL._replace(mark_s=3600)
HTML = ("accept", "text/html,application/xhtml+xml")


def cookies(rules: guard.Rules, *headers: tuple[str, str], **more: Any) -> list[str]:
    _, answered = ask(rules, [("host", OWN), *headers], "http", path="/data", **more)
    return [value.decode() for name, value in answered[0]["headers"] if name == b"set-cookie"]


def test_a_page_of_a_demo_gives_each_browser_a_secret_mark_that_it_keeps() -> None:
    found = [cookies(DEMO, HTML)[0] for _ in range(20)]
    marks = {guard.mark_of(one.partition("=")[2].partition(";")[0]) for one in found}
    assert len(marks) == 20 and None not in marks
    assert all("; HttpOnly; SameSite=Lax" in one and "Max-Age=3600" in one and "Secure" not in one for one in found)
    mark = found[0].partition("=")[2].partition(";")[0]
    assert cookies(DEMO, HTML, ("cookie", f"a=b; {guard.MARK}={mark}")) == [found[0]]
    assert "; Secure" in cookies(DEMO, HTML, scheme="https")[0]
    _, answered = ask(DEMO, [("host", OWN), HTML], "http", path="/")
    assert dict(answered[0]["headers"])[b"cache-control"] == b"no-store"  # a cache would hand one mark to two
    for forged in ("", "x", "x" * 42, "x" * 44, "x" * 42 + "\\", '"', mark + ", x", "\xe9" * 43):
        assert cookies(DEMO, HTML, ("cookie", f"{guard.MARK}={forged}"))[0] not in (found[0], forged)


def test_the_mark_comes_along_in_a_frame_and_is_set_nowhere_else() -> None:
    framed = SPACE._replace(mark_s=3600)
    _, answered = ask(framed, [("host", "me-tunebook.hf.space"), HTML], "http", path="/")
    said = dict(answered[0]["headers"])[b"set-cookie"].decode()
    assert "; HttpOnly; SameSite=None; Secure; Partitioned" in said
    assert cookies(LOCAL, HTML) == [] and cookies(DEMO) == [] and cookies(DEMO, ("accept", "*/*")) == []
    _, refused = ask(DEMO, [("host", "evil.example"), HTML], "http", path="/")
    assert guard.MARK.encode() not in refused[1]["body"]


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_finds_its_own_workspace_again_and_another_one_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEBOOK_DEMO", "1")
    server = Server(tmp_path)
    server.start()
    places = server.home / "visitors"
    asked = "Open this workspace?"
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
            page = browser.new_page()
            page.goto(f"{server.url}/data")
            settled(page)
            assert not places.exists()  # nobody has stored anything
            assert guard.MARK not in page.evaluate("document.cookie")
            page.get_by_text("Try a sample").click()
            page.get_by_role("button", name="Use New facts").click()
            expect(page.get_by_role("heading", name="New facts")).to_be_visible()
            settled(page)
            page.reload()
            expect(page.get_by_role("heading", name="New facts")).to_be_visible()
            settled(page)
            link, folder = page.url, next(places.iterdir())
            assert folder.name in link
            mark = next(one.get("value", "") for one in page.context.cookies() if one.get("name") == guard.MARK)
            kept = [path.read_bytes() for path in server.home.rglob("*") if path.is_file()]
            assert mark not in page.content() and not any(mark.encode() in data for data in kept)
            forger = browser.new_context()
            forger.add_cookies([{"name": guard.MARK, "value": "x" * 43, "url": server.url}])
            for context in (forger, browser.new_context(color_scheme="dark")):
                other = context.new_page()
                other.goto(link)
                expect(other.get_by_role("heading", name=asked)).to_be_visible()
                assert "New facts" not in other.content()
            settled(other)
            assert other.evaluate(CONTRAST) == []
            other.get_by_role("button", name="Start one of my own").click()
            expect(other.get_by_text("No data yet")).to_be_visible()
            settled(other)
            assert folder.name not in other.url and [path.name for path in places.iterdir()] == [folder.name]
            browser.close()
    finally:
        server.kill()
