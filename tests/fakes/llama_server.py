"""A program with the command line of llama.cpp's server that answers with what it was asked, on a unix socket.

A prompt of "for ever" is answered until the client goes away, which is written to the file it is told in its model's file.
"""

from __future__ import annotations

import argparse
import json
import os
import socketserver
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

FOR_EVER = "for ever"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = Path()

    def address_string(self) -> str:
        return "-"

    def do_GET(self) -> None:
        self._say({"status": "ok", "asked": self.path})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body.get("prompt") == FOR_EVER:
            self._for_ever()
            return
        self._say({"asked": self.path, "headers": dict(self.headers), "body": body})

    def _say(self, value: Any) -> None:
        allowed = self.headers["authorization"] == f"Bearer {os.environ['LLAMA_API_KEY']}"
        data = json.dumps(value).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("content-type", "application/json")
        self.send_header("access-control-allow-origin", "*")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _for_ever(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b'data: {"word": "again"}\n\n')
                time.sleep(0.01)
        except OSError:
            self.model.with_suffix(".left").touch()


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--model", type=Path)
    known, others = parser.parse_known_args()
    Handler.model = known.model
    known.model.with_suffix(".told").write_text(json.dumps([others, sorted(os.environ)]))
    if known.model.read_bytes() == b"broken":
        raise SystemExit("this file is broken")
    Server(known.host, Handler).serve_forever()
