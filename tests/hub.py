"""A hub of our own: a small server on this machine that speaks the endpoints Tunebook uses, from folders of files.

Model and data set info with the files' hashes, search, resolve with ETag and commit, large files in a store at another
host, ranges, 401/403/404 with the error codes of the real one; it can be slow, send other bytes than it promised, send
all where a part is asked for, or be a mirror that sends everybody to the real one. For tests alone.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LFS = (".safetensors", ".bin", ".parquet")
# A token like a real one: whatever is grepped for must be found if it were written anywhere.
TOKEN = "hf_TestTokenThatMayReadTheGatedModel00"


class Repository(NamedTuple):
    files: dict[str, bytes]
    gated: bool = False
    card: dict[str, Any] | None = None
    revisions: Mapping[str, str] = MappingProxyType({"main": COMMIT})


class Hub:
    """`models` and `datasets` by id; `delay_s` between pieces of a file; `corrupt` names files sent with a wrong byte;
    `has_ranges` whether a part of a file can be had; `is_mirror` whether a file is to be asked for at the other name of
    this host; `nonsense` what is said to every question; `requests` holds method and path of all that was asked, `ranges`
    the Range headers."""

    def __init__(self) -> None:
        self.models: dict[str, Repository] = {}
        self.datasets: dict[str, Repository] = {}
        self.delay_s = 0.0
        self.corrupt: set[str] = set()
        self.has_ranges = True
        self.is_mirror = False
        self.nonsense: bytes | None = None
        self.requests: list[str] = []
        self.ranges: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def send(self, status: int, data: bytes = b"", *, body: bool = True, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                if "Content_Length" not in headers:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def answer(self, *, body: bool) -> None:
                address = urlsplit(self.path)
                path = unquote(address.path).strip("/")
                hub.requests.append(f"{self.command} {path}")
                parts = path.split("/")
                if hub.nonsense is not None:
                    return self.send(200, hub.nonsense)
                is_store = parts[0] == "store"
                if is_store:
                    if "Authorization" in self.headers:  # the address is signed, and one way to be let in is enough
                        return self.send(400)
                    parts = parts[1:]
                elif "resolve" in parts and hub.is_mirror and self.headers["Host"] == urlsplit(hub.url).netloc:
                    return self.send(308, Location=hub.elsewhere + self.path)
                if path == "api/models":
                    words = parse_qs(address.query).get("search", [""])[0].lower()
                    found = [hub.info(n, r) for n, r in hub.models.items() if words in n.lower()]
                    return self.send(200, json.dumps(found).encode(), Content_Type="application/json")
                if parts[0] == "api":
                    store, name = (hub.models if parts[1] == "models" else hub.datasets), "/".join(parts[2:4])
                    revision = "/".join(parts[5:]) or "main"
                else:
                    store, parts = (hub.datasets, parts[1:]) if parts[0] == "datasets" else (hub.models, parts)
                    name, rest = "/".join(parts[:2]), "/".join(parts[3:])
                    revision = next((r for r in (*hub.known(store, name),) if rest.startswith(f"{r}/")), rest)
                repository = store.get(name)
                given = self.headers.get("Authorization", "").removeprefix("Bearer ")
                if given and not given.startswith("hf_"):
                    return self.send(401, X_Error_Message="Invalid credentials in Authorization header")
                if repository is None:
                    return self.send(404 if given else 401, X_Error_Code="RepoNotFound")
                if revision not in hub.known(store, name):
                    return self.send(404, X_Error_Code="RevisionNotFound")
                commit = repository.revisions.get(revision, revision)
                if parts[0] == "api":
                    info = json.dumps(hub.info(name, repository, commit)).encode()
                    return self.send(200, info, Content_Type="application/json")
                if repository.gated and given != TOKEN and not is_store:
                    return self.send(403 if given else 401, X_Error_Code="GatedRepo")
                file = rest.removeprefix(f"{revision}/")
                if file not in repository.files:
                    return self.send(404, X_Error_Code="EntryNotFound")
                etag, large = hub.hashes(file, repository.files[file])
                if large and not is_store:
                    return self.send(
                        302, Location=f"{hub.elsewhere}/store/{path}?signature=1", X_Repo_Commit=commit,
                        X_Linked_Etag=f'"{etag}"', X_Linked_Size=str(len(repository.files[file])),
                    )  # fmt: skip
                self.send_file(file, repository.files[file], {"ETag": f'"{etag}"', "X_Repo_Commit": commit}, body=body)

            def send_file(self, name: str, data: bytes, headers: dict[str, str], *, body: bool) -> None:
                begin, status = 0, 200
                if body and "Range" in self.headers and hub.has_ranges:
                    hub.ranges.append(self.headers["Range"])
                    begin, status = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")), 206
                    headers["Content_Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
                if name in hub.corrupt:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                self.send(status, b"", body=False, Content_Length=str(len(data) - begin), **headers)
                if body:
                    piece = 1 << 16
                    for at in range(begin, len(data), piece):
                        try:
                            self.wfile.write(data[at : at + piece])
                        except OSError:
                            return
                        time.sleep(hub.delay_s)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url, self.elsewhere = (
            f"http://{host}:{self.server.server_address[1]}" for host in ("127.0.0.1", "localhost")
        )
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def known(self, store: dict[str, Repository], name: str) -> list[str]:
        repository = store.get(name)
        return [*repository.revisions, *repository.revisions.values()] if repository else []

    @staticmethod
    def hashes(name: str, data: bytes) -> tuple[str, bool]:
        """Return the ETag of a file, and whether it is a large one: sha256 then, else git's hash of the blob."""
        if name.endswith(LFS):
            return hashlib.sha256(data).hexdigest(), True
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), False

    def info(self, name: str, repository: Repository, commit: str = COMMIT) -> dict[str, Any]:
        siblings = []
        for file, data in repository.files.items():
            etag, large = self.hashes(file, data)
            one: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            if large:
                one["lfs"] = {"sha256": etag, "size": len(data), "pointerSize": 130}
            else:
                one["blobId"] = etag
            siblings.append(one)
        return {
            "id": name, "modelId": name, "sha": commit, "private": False, "gated": "manual" if repository.gated else False,
            "downloads": 7, "likes": 0, "tags": ["safetensors"], "siblings": siblings, "cardData": repository.card or {},
        }  # fmt: skip
