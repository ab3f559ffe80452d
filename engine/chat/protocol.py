"""What is said through the pipes of the child that chats: questions there, pieces of answers back, as JSON lines."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import msgspec

from engine.words import Text

Message = dict[str, str]


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are drawn, the same for every model. A temperature of 0 always takes the likeliest token."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.7
    top_p: Annotated[float, msgspec.Meta(ge=0.05, le=1)] = 0.95
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0
    most_tokens: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256


class Named(NamedTuple):
    """What a turn's model names: a base or run, and of a run where on its way back to its base, None for the run itself;
    `intruders`: how much of each intruder dimension is taken away instead."""

    ref: str
    at: float | None = None
    intruders: bool = False


def at_point(ref: str, at: float, *, intruders: bool = False) -> str:
    """Return the name of a model on the way back from a run, run:<id>@0.5, or with its intruder dimensions reduced."""
    return f"{ref}@{'intruders-' if intruders else ''}{at:g}"


def named(model: str) -> Named:
    """Return what a model's name says. Raises ValueError for a run at a point that is none."""
    ref, mark, point = model.partition("@")
    if not (mark and ref.startswith("run:")):  # of a base, what follows is its commit
        return Named(model)
    part = float(point.removeprefix("intruders-"))
    if not 0 <= part <= 1:
        raise ValueError(f"no part of the way: {point[:20]}")
    return Named(ref, part, point.startswith("intruders-"))


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One model and the conversation it is to go on with: messages of role and content, the last of the user."""

    model: str
    messages: list[Message]


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag="ask"):
    """A question to several models, answered one after another."""

    id: str
    turns: list[Turn]
    sampling: Sampling = Sampling()


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """Write no further for that question."""

    id: str


class State(msgspec.Struct, frozen=True, kw_only=True, tag="state"):
    """What a model is at."""

    id: str
    model: str
    state: Literal["loading", "writing"]


class AnswerPart(msgspec.Struct, frozen=True, kw_only=True, tag="piece"):
    """Some more of an answer."""

    id: str
    model: str
    text: str


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """A whole answer is there. `ended`: the model came to an end, ran into the longest answer, or was stopped."""

    id: str
    model: str
    tokens: int
    seconds: float
    ended: Literal["end", "length", "stopped"]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """A model gave no answer: what is wrong and what to do, to be read later."""

    id: str
    model: str
    message: str | Text
    fix: str | Text


Request = Ask | Stop
Reply = State | AnswerPart | Done | Failed
read_request = msgspec.json.Decoder(Request).decode
read_reply = msgspec.json.Decoder(Reply).decode
