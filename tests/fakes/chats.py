"""A chat child without a model: says back what it was asked, in pieces; ends at once when asked to "die"."""

from __future__ import annotations

import os
import sys

import msgspec

from engine.chat import protocol


def say(reply: protocol.Reply) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    for line in sys.stdin.buffer:
        request = protocol.read_request(line)
        if isinstance(request, protocol.Stop):
            continue
        for turn in request.turns:
            asked = turn.messages[-1]["content"]
            if asked == "die":
                os._exit(1)
            told = {"id": request.id, "model": turn.model}
            say(protocol.State(**told, state="writing"))
            for piece in (f"{turn.model} heard ", asked):
                say(protocol.AnswerPart(**told, text=piece))
            say(protocol.Done(**told, tokens=2, seconds=0.1, ended="end"))


main()
