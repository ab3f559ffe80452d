"""tunebook serve."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from engine.cli import shared
from engine.cli.shared import EXIT_FAILED, EXIT_OK, EXIT_REFUSED, known_run, print_json
from engine.gguf import kinds
from engine.words import t
from engine.workspace import Workspace

if TYPE_CHECKING:
    from engine.serve.serving import Serving

POLL_S = 0.3


def register(command: shared.Command) -> None:
    sub = command("serve", serve)
    sub.add_argument("run", nargs="?", help="left out: what is served is listed")
    sub.add_argument("--port", type=int, help="of 127.0.0.1; else the first of 8701 to 8720 that is free")
    sub.add_argument(
        "--quantization", choices=(*kinds.KINDS, "transformers"),
        help="which GGUF file of the run llama.cpp takes, or transformers with the whole model; else the first there is",
    )  # fmt: skip
    sub.add_argument("--stop", action="store_true", help="end it")


def serve(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Let other programs ask a run on 127.0.0.1, as they ask OpenAI; it goes on until it is ended with --stop."""
    from engine.serve import serving

    if arguments.run is None:
        found = serving.all_now(workspace)
        if arguments.json:
            print_json({run_id: _told(one) for run_id, one in found.items()})
        elif not found:
            print(t("Nothing is served."))
        for run_id, one in {} if arguments.json else found.items():
            print(f"{run_id}  {one.sentence}")
        return EXIT_OK
    if not known_run(workspace, arguments.run):
        return EXIT_FAILED
    if arguments.stop:
        stopped = serving.stop(workspace, arguments.run)
        print(t("It is served no more.") if stopped else t("It was not served."))
        return EXIT_OK
    try:
        serving.start(workspace, arguments.run, port=arguments.port, quantization=arguments.quantization)
    except serving.NotServed as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    return _follow(arguments, workspace)


def _follow(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Wait until it answers, and say how to ask it."""
    from engine.serve import lines, serving

    said = ""
    try:
        while (one := serving.now(workspace, arguments.run)) is not None and one.failure is None and not one.is_ready:
            if one.phase != said:
                print(serving.phase_words().get(one.phase, one.phase), file=sys.stderr)
            said = one.phase
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        serving.stop(workspace, arguments.run)
        return EXIT_FAILED
    if one is None or one.failure is not None:
        print(t("It was not served.") if one is None else one.failure, file=sys.stderr)
        return EXIT_FAILED
    if arguments.json:
        print_json(_told(one))
        return EXIT_OK
    print(t("address: {address}", address=one.address))
    print(t("key: {key}", key=one.key))
    print(t("model: {name}", name=one.run))
    print(f"\n{lines.curl(one)}\n\n{lines.python(one)}\n")
    if (ollama := lines.ollama(workspace, one)) is not None:
        print(f"{ollama}\n")
    print(t("It goes on until: tunebook serve --stop {id}", id=one.run), file=sys.stderr)
    return EXIT_OK


def _told(one: Serving) -> dict[str, object]:
    told = msgspec.to_builtins(one)
    return {"address": one.address, **{name: told[name] for name in ("key", "run", "program", "quantization", "phase")}}
