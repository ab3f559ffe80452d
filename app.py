"""Tunebook's server: `streamlit run app.py`. No logic; the pages begin in pages/_frame.py.

The frame lives in pages/ so that the main script's folder has no pages/ of its own: beside one, a cold server would run
a deep-linked page alone, without the frame.
"""

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from streamlit.proto.BackMsg_pb2 import BackMsg

from engine import __version__, guard, limits, visitors
from engine.data import uploads
from engine.workspace import clear_leftovers, default_workspace, machine_dir
from pages import _preload

UPLOAD_ROUTE = "/api/uploads"


async def health(_: Request) -> JSONResponse:
    """Say that the server answers, for scripts and containers."""
    return JSONResponse({"status": "ok", "version": __version__})


async def upload(request: Request) -> Response:
    """Take a file from the Data page. POST asks whether there is room for the X-Tunebook-Size; PUT sends the bytes,
    which go to disk as they come."""
    try:
        workspace = uploads.admitted(request.headers)
        if request.method == "POST":
            uploads.check_room(workspace, request.headers.get("x-tunebook-size"))
            return Response(status_code=204)
        upload_id = await uploads.receive(workspace, request.headers.get("content-length"), request.stream())
    except uploads.UploadRefused as refused:
        return JSONResponse({"rule": refused.problem.rule, "parameters": refused.problem.parameters}, refused.status)
    except ClientDisconnect:
        return Response(status_code=400)
    return JSONResponse({"upload": upload_id}, 201)


@asynccontextmanager
async def lifespan(_: st.App) -> AsyncIterator[None]:
    """Get ready for the first visitor, and delete what dead writers left; while a hosted demo is served, also what visitors
    left when its time is over."""
    _preload.begin()
    for folder in (default_workspace().root, machine_dir()):
        threading.Thread(target=clear_leftovers, args=(folder,), name="leftovers", daemon=True).start()
    if RULES.login and RULES.login.token:
        for name in RULES.shared:
            at = name if ":" in name else f"{name}:{st.get_option('server.port')}"
            link = f"http://{at}{guard.LOGIN_ROUTE}?token={RULES.login.token}"
            print(f"Log in once with {link} (behind a proxy: its address, then the same ending)", flush=True)
    end = visitors.keep_clean() if limits.on() else None
    yield
    if end is not None:
        end()


RULES = guard.rules_for(
    os.environ.get("TUNEBOOK_SHARE_HOST", "").split(),
    [UPLOAD_ROUTE],
    demo=limits.on(),
    space=os.environ.get("SPACE_HOST") or None,
)
if limits.on():
    most = limits.limits()
    # A workspace may begin late in a visit: its browser is known for longer than it is kept.
    mark_s = round(2 * 3600 * most.hours_kept)
    RULES = RULES._replace(
        sockets=most.sockets,
        sockets_per_client=most.sockets_per_client,
        messages=frozenset(BackMsg.DESCRIPTOR.fields_by_name[name].number for name in guard.MESSAGES),
        mark_s=mark_s,
    )
app = st.App(
    Path(__file__).parent / "pages" / "_frame.py",
    routes=[Route("/api/health", health), Route(UPLOAD_ROUTE, upload, methods=["POST", "PUT"])],
    middleware=[Middleware(guard.Guard, rules=RULES)],  # type: ignore[arg-type]
    lifespan=lifespan,
)
uploads.served_at(UPLOAD_ROUTE)
