"""Who may talk to the server: one guard before every request and socket, as plain ASGI.

A page of any other site, or of another port of this machine, can send to 127.0.0.1. So the Host must be a name the
server was given, and an Origin must be that same host and port; sockets and writing methods must have one. What is
refused never reaches Streamlit, which would ask an address service on the internet about an Origin it does not know.
A name that is refused is told, on the page and in the server's output, with the command that allows it: a proxy's name is
known only when it is there.
Where other people can reach the server (`--share-host`), a browser logs in once with a link that the server prints.
In a hosted demo each browser gets a mark, a secret cookie by which its own workspace knows it (engine/visitors.py).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from engine.words import Problem

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
HUB_ORIGIN = "https://huggingface.co"
LOGIN_ROUTE = "/login"
COOKIE = "tunebook_login"
MARK = "tunebook_browser"
_MARK = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)  # token_urlsafe(32)
_READS = ("GET", "HEAD")
_TO_PROGRAMS = {"guard-host": "guard-host-program", "guard-origin": "guard-origin-program"}
# What Streamlit's pages send on a socket, by its names. In a demo nothing else is heard: some of it costs the server much,
# as a request for the addresses of a million files to upload, or everybody something, as one that empties the caches.
MESSAGES = ("rerun_script", "stop_script", "app_heartbeat", "backend_operation_request")
# So many refused names are said in the server's output: anybody may send any name.
MOST_TOLD = 20
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?(?::([0-9]{1,5}))?", re.ASCII)
_ORIGIN = re.compile(r"(https?)://(.+)", re.ASCII)
_USUAL_PORTS = {"http": "80", "https": "443"}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Rules(NamedTuple):
    """What a guard lets through: `shared` hosts beside those of this machine, each a name with or without a port; the
    only paths that anything may be written to; the `frame` that may show the pages; and who has logged in, or None
    where nobody has to. Not more sockets than these are open, in all and for one client; None: any number. On them nothing
    is heard but `messages`, by the numbers of their fields; None: all is. Each browser gets a mark that it keeps for
    `mark_s` seconds after a visit; None: none does. `programs`: it is programs that ask, which send no Origin; what they may
    ask, and with which key, is said by what stands behind the guard (engine/serve/front.py)."""

    shared: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    frame: str = "'none'"
    login: Login | None = None
    sockets: int | None = None
    sockets_per_client: int | None = None
    messages: frozenset[int] | None = None
    mark_s: int | None = None
    programs: bool = False


class Login:
    """A link that lets one browser in: its token is good once, and is exchanged for a cookie."""

    def __init__(self) -> None:
        self.token: str | None = secrets.token_urlsafe(32)
        self._cookie = secrets.token_urlsafe(32)

    def exchange(self, token: str) -> str | None:
        """Return the cookie for the token, which is then used up; None for any other."""
        if self.token is None or not hmac.compare_digest(token.encode(), self.token.encode()):
            return None
        self.token = None
        return self._cookie

    def knows(self, cookies: str) -> bool:
        """Whether a Cookie header has the cookie of a browser that has logged in."""
        return hmac.compare_digest((_cookie(cookies, COOKIE) or "").encode(), self._cookie.encode())


def split_host(text: str) -> tuple[str, str | None] | None:
    """Return the name in lower case and the port, or None, of a Host header; None when it is no host."""
    found = _HOST.fullmatch(text.lower())
    return (found[1], found[2]) if found else None


def client_of(scope: Scope) -> str:
    """Return the address that a connection comes from. Where that is a private one, as of a proxy, it is the last that
    X-Forwarded-For names: the proxy has written that one, and a client can only write those before."""
    peer = str((scope.get("client") or ("",))[0])
    try:
        if ipaddress.ip_address(peer).is_private:
            named = [value for name, value in scope["headers"] if name.lower() == b"x-forwarded-for"]
            last = b",".join(named).decode("latin-1").rpartition(",")[2].strip()
            return str(ipaddress.ip_address(last))
    except ValueError:
        pass
    return peer


def rules_for(shared: Iterable[str], written: Iterable[str], *, demo: bool, space: str | None) -> Rules:
    """Return the rules of a server. `space` is the host name a Space has on the hub, whose pages alone may frame it.
    Raises ValueError for a shared host that is no name."""
    names = tuple(name.lower() for name in (*shared, *([space] if space else [])))
    for name in names:
        if split_host(name) is None:
            raise ValueError(name)
    needs_login = bool(names) and not demo
    return Rules(names, tuple(written), HUB_ORIGIN if space else "'none'", Login() if needs_login else None)


class Guard:
    """The guard as ASGI middleware: `Middleware(Guard, rules=...)`."""

    def __init__(self, app: App, rules: Rules):
        self.app, self.rules = app, rules
        self._open: Counter[str] = Counter()  # sockets of each client
        self._told: set[str] = set()  # names that were refused, each said once
        self._answered = [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
            (b"content-security-policy", f"frame-ancestors {rules.frame}".encode()),
        ]
        if rules.frame == "'none'":
            self._answered.append((b"x-frame-options", b"DENY"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "http":
            send = self._with_headers(send, scope)
        refused = self._refusal(scope)
        if refused is None and self.rules.login and scope["type"] == "http" and scope["path"] == LOGIN_ROUTE:
            await self._log_in(scope, send)
        elif refused is None and self.rules.login and not self.rules.login.knows(_header(scope, b"cookie") or ""):
            await _refuse(scope, receive, send, "guard-login")
        elif refused is not None:
            await _refuse(scope, receive, send, *self._named(refused, scope))
        elif scope["type"] == "websocket":
            await self._socket(_same_origin(scope), receive, send)
        else:
            await self.app(_same_origin(scope), receive, send)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a socket through and count it while it is open."""
        client, rules = client_of(scope), self.rules
        too_many = rules.sockets is not None and self._open.total() >= rules.sockets
        if too_many or (rules.sockets_per_client is not None and self._open[client] >= rules.sockets_per_client):
            await _refuse(scope, receive, send, "")
            return

        async def heard() -> MutableMapping[str, Any]:
            while True:
                message = await receive()
                if rules.messages is None or message["type"] != "websocket.receive":
                    return message
                if _field_of(message.get("bytes") or b"") in rules.messages:
                    return message

        self._open[client] += 1
        try:
            await self.app(scope, heard, send)
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    def _refusal(self, scope: Scope) -> str | None:
        """Return the rule that a request breaks, or None."""
        host, origin = _header(scope, b"host"), _header(scope, b"origin")
        here = split_host(host) if host else None
        if here is None or not self._is_ours(*here):
            return "guard-host"
        passed_on = split_host(_header(scope, b"x-forwarded-host") or "")
        if passed_on is not None and not self.rules.shared and not self._is_ours(*passed_on):
            return "guard-host"  # a proxy that nobody has named: the page would open, and its socket would not
        writes = scope["type"] == "http" and scope["method"] not in _READS
        if origin is None and (scope["type"] == "websocket" or writes) and not self.rules.programs:
            return "guard-origin"
        if origin is not None and not self._is_same(origin, here):
            return "guard-origin"
        is_closed = writes and scope["path"] not in self.rules.written and not self.rules.programs
        return "guard-closed" if is_closed else None

    def _named(self, rule: str, scope: Scope) -> tuple[str, str]:
        """Return what is said of a refused request, with the name it came under where that was wrong. The command that
        allows the name is written to the server's output too: a page whose socket is refused says nothing."""
        if self.rules.programs:
            return _TO_PROGRAMS[rule], ""
        name = self._unknown_name(scope)
        if name is None or rule == "guard-closed":
            return rule, ""
        if name not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(name)
            told = "guard-host-named" if rule == "guard-host" else "guard-origin-named"
            print(Problem(rule=told, parameters={"name": name}).sentence, flush=True)
        return ("guard-host-named" if rule == "guard-host" else rule), name

    def _unknown_name(self, scope: Scope) -> str | None:
        """Return the first name of a request that is a host's and none of ours: in Host, as a proxy passes it on, or in the
        Origin of a page that a proxy shows while it calls the server by a name of loopback."""
        origin = _ORIGIN.fullmatch(_header(scope, b"origin") or "")
        for text in (_header(scope, b"host"), _header(scope, b"x-forwarded-host"), origin[2] if origin else None):
            found = split_host(text) if text else None
            if found is not None and not self._is_ours(*found):
                return found[0]
        return None

    def _is_ours(self, name: str, port: str | None) -> bool:
        return name in LOOPBACK or name in self.rules.shared or f"{name}:{port}" in self.rules.shared

    def _is_same(self, origin: str, here: tuple[str, str | None]) -> bool:
        """Whether an Origin is the Host itself, or a shared one whose proxy calls the server by a name of loopback."""
        found = _ORIGIN.fullmatch(origin)
        there = split_host(found[2]) if found else None
        if not found or there is None:
            return False
        usual = _USUAL_PORTS[found[1]]
        if there[0] == here[0]:
            return (there[1] or usual) == (here[1] or usual)
        port = there[1] or usual
        shared = there[0] in self.rules.shared and port in _USUAL_PORTS.values()
        return here[0] in LOOPBACK and (shared or f"{there[0]}:{port}" in self.rules.shared)

    def _with_headers(self, send: Send, scope: Scope) -> Send:
        added, more = self._answered, []
        if self.rules.mark_s is not None and "text/html" in (_header(scope, b"accept") or ""):
            # A page that is opened. The mark it has is given again, to be kept as long from now on.
            value = mark_of(_cookie(_header(scope, b"cookie") or "", MARK)) or secrets.token_urlsafe(32)
            added = [*added, (b"cache-control", b"no-store")]  # a cache would hand one mark to two
            more = [self._set_cookie(f"{MARK}={value}; Max-Age={self.rules.mark_s}", scope)]
        ours = {name for name, _ in added}

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message.get("headers", []) if name.lower() not in ours]
                message = {**message, "headers": [*kept, *added, *more]}
            await send(message)

        return answer

    async def _log_in(self, scope: Scope, send: Send) -> None:
        """Exchange the token of the address for a cookie, and lead on to the pages."""
        assert self.rules.login is not None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        cookie = self.rules.login.exchange(given) if scope["method"] == "GET" else None
        if cookie is None:
            await _answer(send, 403, Problem(rule="guard-login").sentence)
            return
        more = [(b"location", b"./"), self._set_cookie(f"{COOKIE}={cookie}", scope)]
        await _answer(send, 303, "", more)

    def _set_cookie(self, cookie: str, scope: Scope) -> tuple[bytes, bytes]:
        """Return the header that sets a cookie which no script reads; one that comes along where the page is framed."""
        framed = self.rules.frame != "'none'"
        kind = "SameSite=None; Secure; Partitioned" if framed else "SameSite=Lax"
        secure = "; Secure" if scope.get("scheme") == "https" and not framed else ""
        return b"set-cookie", f"{cookie}; Path=/; HttpOnly; {kind}{secure}".encode()


def mark_of(text: object) -> str | None:
    """Return a browser's mark when the text has the form of one."""
    return text if isinstance(text, str) and _MARK.fullmatch(text) else None


def _cookie(cookies: str, name: str) -> str | None:
    """Return a cookie of a Cookie header, or None. The header is split as Streamlit does it: http.cookies gives up all of
    it for one cookie with a quote or bracket, as others on the same host may set."""
    found = None
    for one in cookies.split(";"):
        key, _, value = one.partition("=")
        found = value.strip() if key.strip() == name else found
    return found


def _field_of(message: bytes) -> int | None:
    """Return the number of the one field of a protobuf message, a number or bytes; None where it has none or several."""
    tag, at = _varint(message, 0)
    value, end = _varint(message, at)
    kind = tag & 7
    is_whole = end > at and kind in (0, 2) and end + (value if kind == 2 else 0) == len(message)
    return tag >> 3 if is_whole else None


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number that stands there, and where it ends: where it begins when there is none."""
    value = 0
    for place, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    return 0, at


def _header(scope: Scope, wanted: bytes) -> str | None:
    """Return a header's one value; an empty text, which is neither host nor origin, when it is there twice."""
    found = [value for name, value in scope["headers"] if name.lower() == wanted]
    if wanted == b"cookie":  # browsers may send several
        return "; ".join(value.decode("latin-1") for value in found)
    return None if not found else found[0].decode("latin-1") if len(found) == 1 else ""


def _same_origin(scope: Scope) -> Scope:
    """Write an Origin as its Host is written: Streamlit compares the two letter by letter, and looks elsewhere when they
    differ."""
    origin, host = _header(scope, b"origin"), _header(scope, b"host")
    if origin is None:
        return scope
    same = f"{origin.partition('://')[0]}://{host}".encode("latin-1")
    return {**scope, "headers": [(n, same if n.lower() == b"origin" else v) for n, v in scope["headers"]]}


async def _refuse(scope: Scope, receive: Receive, send: Send, rule: str, name: str = "") -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})  # before it was accepted: 403
        return
    parameters = {"name": name} if rule == "guard-host-named" else {}
    await _answer(send, 403, Problem(rule=rule, parameters=dict(parameters)).sentence)


async def _answer(send: Send, status: int, text: str, more: Iterable[tuple[bytes, bytes]] = ()) -> None:
    body = text.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
