"""A turn of a conversation as files write it -> a message of a canonical row.

Two styles of keys (role/content and from/value), any known name of a role, content as text or as a list of parts,
reasoning beside the words or among them, calls of tools under a key or as a turn of their own, and the keys that say
that a turn is not to be trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from engine.read import texts, tool_calls
from engine.read.tool_calls import CALL_PARTS, CALL_ROLES, Malformed

Message = dict[str, Any]  # as the schema of engine.check.canonical has it


class Style(NamedTuple):
    """How messages are written: under which keys a role and a text stand, the roles as they are written -> roles of a
    canonical row, and the roles that are named to a person."""

    role_key: str
    content_key: str
    roles: dict[str, str]
    shown: str


_NAMES = {
    "system": "system developer",
    "user": "user human prompter",
    "assistant": f"assistant gpt model bot chatbot ai {' '.join(CALL_ROLES)}",
    "tool": "tool function observation tool_response function_response ipython",
}
# Every name in lower case, with a capital, and in capitals.
ROLES = {
    spelled: role
    for role, names in _NAMES.items()
    for name in names.split()
    for spelled in (name, name.capitalize(), name.upper())
}
OPENAI = Style("role", "content", ROLES, "system, user, assistant, tool")
SHAREGPT = Style("from", "value", ROLES, "system, human, user, gpt, assistant, function_call, observation, tool")

# Parts of a message's content that are text, or reasoning; images, sound and video are not trained on.
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
REASONING_PARTS = ("thinking", "reasoning")
# Keys of a message with the reasoning before its words, and those that say whether a turn is trained: weight is OpenAI's,
# loss ms-swift's, training and train Axolotl's, loss_weight LLaMA-Factory's.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
TRAIN_KEYS = ("weight", "loss", "training", "train", "loss_weight", "loss_mask")
# Keys that say what is trained in ways that are not read.
UNREAD_KEYS = ("train_detail", "training_detail", "mask", "masked", "prefix", "reasoning_details")

# Pairs of a question and its answer that some write for two turns.
PAIR_KEYS = (
    ("human", "assistant"),
    ("user", "assistant"),
    ("human", "gpt"),
    ("input", "output"),
    ("question", "answer"),
    ("prompt", "response"),
)


def is_call_role(written: str) -> bool:
    """Whether the turns of a role, as it is written, are calls of tools as text."""
    return written.lower() in CALL_ROLES


def part_text(part: Any) -> Any:
    """What stands where a part of a message's content has its text, whatever that is."""
    if not isinstance(part, dict):
        return part
    for key in ("text", "value", part.get("type")):
        if isinstance(key, str) and part.get(key) is not None:
            return part[key]
    return None


def kind_of_part(part: object) -> str:
    """The kind of a part: text, reasoning, call, or what it says that it is ("" when it says nothing)."""
    if isinstance(part, str):
        return "text"
    if not isinstance(part, dict):
        return ""
    kind = part.get("type")
    if kind is None:
        return "text" if "text" in part or "value" in part else ""
    if kind in TEXT_PARTS:
        return "text"
    if kind in REASONING_PARTS:
        return "reasoning"
    return "call" if kind in CALL_PARTS else str(kind)


def text_of(content: object, kind: str = "text") -> str:
    """The text of a message's content, which may be a list of parts, or nothing. `kind`: of the parts."""
    if isinstance(content, list):
        return "".join(text_of(part_text(part)) for part in content if kind_of_part(part) == kind)
    return content if isinstance(content, str) and kind == "text" else ""


def words_of(message: dict[str, Any], style: Style) -> str:
    """The text of a good message as it is written: a refusal where OpenAI's answers have one instead."""
    words = text_of(message.get(style.content_key))
    return words or (text_of(message.get("refusal")))


def reasoning_of(message: dict[str, Any], style: Style) -> str | None:
    """The reasoning of a good message."""
    content = message.get(style.content_key)
    found = [text_of(content, "reasoning")] if isinstance(content, list) else []
    found += [message[key] for key in REASONING_KEYS if isinstance(message.get(key), str)]
    return "\n".join(dict.fromkeys(text for text in found if not texts.is_blank(text))) or None


def calls_in(message: dict[str, Any], style: Style, drop_nulls: bool) -> list[dict[str, Any]]:
    """The calls of a message: under its keys, among its parts, or as its text. Raises Malformed."""
    calls = tool_calls.calls_of(message, drop_nulls=drop_nulls)
    content = message.get(style.content_key)
    if isinstance(content, list):
        for index, part in enumerate(content):
            if kind_of_part(part) == "call":
                try:
                    calls.append(tool_calls.call_of_part(part, drop_nulls=drop_nulls))
                except Malformed as fault:
                    raise Malformed(fault.reason, f"{style.content_key}[{index}]") from None
    if not calls and is_call_role(message[style.role_key]):
        try:
            calls = tool_calls.calls_of_text(text_of(content), drop_nulls=drop_nulls) or []
        except Malformed as fault:
            raise Malformed(fault.reason, style.content_key) from None
    return calls


def train_of(message: dict[str, Any]) -> bool | None:
    """False when a key says that a turn is not trained, None when it is as usual. Raises Malformed for a weight that is
    neither: tokens are trained or they are not."""
    off = None
    for key in TRAIN_KEYS:
        value = message.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            shown = texts.short(str(value)) if isinstance(value, str | int | float) else texts.kind_of(value)
            raise Malformed(shown, key)
        if not value:
            off = False
    return off


def message_of(
    role: str,
    content: str,
    calls: list[dict[str, Any]] | None = None,
    *,
    name: str | None = None,
    tool_call_id: str | None = None,
    reasoning: str | None = None,
    call_text: str | None = None,
    train: bool | None = None,
) -> Message:
    """A canonical message; `calls` becomes JSON text."""
    return {
        "role": role,
        "content": content,
        "tool_calls": msgspec.json.encode(calls).decode() if calls else None,
        "name": name,
        "tool_call_id": tool_call_id,
        "reasoning_content": reasoning,
        "call_text": call_text,
        "train": train,
    }


def canonical_messages(messages: Iterable[dict[str, Any]], style: Style, *, drop_nulls: bool = False) -> list[Message]:
    """Canonical messages of good ones. A call that stands as a turn of its own after words is joined with them: as two
    turns the model would learn to end its answer before the call."""
    result: list[Message] = []
    joins = False  # the message before takes a call
    for message in messages:
        one, is_call = _canonical(message, style, drop_nulls)
        if is_call and joins and result[-1]["train"] == one["train"]:
            result[-1] = _joined(result[-1], one)
        else:
            result.append(one)
        joins = takes_call(message, style)
    return result


def takes_call(message: dict[str, Any], style: Style) -> bool:
    """Whether a call that stands as the next turn is part of this one: of words, or of calls of the same kind."""
    written = message[style.role_key]
    return style.roles[written] == "assistant" and (is_call_role(written) or not has_calls(message, style))


def is_call_text(message: dict[str, Any], style: Style) -> bool:
    """Whether a good message is a call written as its text."""
    return (
        is_call_role(message[style.role_key])
        and not has_calls(message, style)
        and bool(tool_calls.calls_of_text(text_of(message.get(style.content_key))))
    )


def has_calls(message: dict[str, Any], style: Style) -> bool:
    """Whether a message has calls under its keys or among its parts."""
    content = message.get(style.content_key)
    among = isinstance(content, list) and any(kind_of_part(part) == "call" for part in content)
    return bool(message.get("tool_calls") or message.get("function_call") or among)


def _canonical(message: dict[str, Any], style: Style, drop_nulls: bool) -> tuple[Message, bool]:
    """A canonical message, and whether it is a call written as text."""
    written = message[style.role_key]
    role = style.roles[written]
    content = words_of(message, style)
    if role != "assistant":
        name, number = message.get("name"), message.get("tool_call_id")
        return message_of(role, content, name=name, tool_call_id=number), False
    calls = calls_in(message, style, drop_nulls)
    as_text = bool(calls) and is_call_text(message, style)
    return message_of(
        role,
        "" if as_text else content,
        calls,
        name=message.get("name"),
        reasoning=reasoning_of(message, style),
        call_text=content if as_text else message.get("call_text"),
        train=train_of(message),
    ), as_text


def _joined(words: Message, call: Message) -> Message:
    """Words or calls, and the call that stands as the next turn, as one message."""
    calls = msgspec.json.decode(words["tool_calls"] or "[]") + msgspec.json.decode(call["tool_calls"])
    said = words["call_text"] if words["call_text"] is not None else words["content"]
    thoughts = [thought for thought in (words["reasoning_content"], call["reasoning_content"]) if thought]
    return message_of(
        "assistant",
        words["content"],
        calls,
        name=words["name"],
        reasoning="\n".join(thoughts) or None,
        call_text=f"{said}\n{call['call_text']}" if said else call["call_text"],
        train=words["train"],
    )


def expanded(value: object) -> object:
    """Turns of a list of [question, answer] objects such as {"human", "assistant"}, which may begin with a system text;
    any other value as it is."""
    if not isinstance(value, list) or pair_keys(value) is None:
        return value
    asked, answered = pair_keys(value) or ("", "")
    turns: list[Any] = []
    for pair in value:
        if not isinstance(pair, dict) or not {asked, answered} & set(pair):
            turns.append(pair)  # the check says what is wrong with it
            continue
        if isinstance(pair.get("system"), str) and not texts.is_blank(pair["system"]):
            turns.append({"role": "system", "content": pair["system"]})
        for role, key in (("user", asked), ("assistant", answered)):
            more = {word: pair[word] for word in TRAIN_KEYS if role == "assistant" and word in pair}
            turns.append({"role": role, "content": pair.get(key)} | more)
    return turns


def pair_keys(value: object) -> tuple[str, str] | None:
    """Under which keys the first object of a list has a question and its answer; None when it is no such pair."""
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(first, dict) or {"role", "from", "content"} & set(first):
        return None
    return next((keys for keys in PAIR_KEYS if set(keys) <= set(first)), None)


def is_message_list(row: object) -> bool:
    """True when a row is a list of messages by itself."""
    return (
        isinstance(row, list) and bool(row) and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in row)
    )


def has_assistant(messages: object) -> bool:
    """True when a list of messages, in either style, has a turn of the assistant."""
    if not isinstance(messages, list):
        return False
    for message in messages:
        if isinstance(message, dict):
            role = message.get("role", message.get("from"))
            if isinstance(role, str) and ROLES.get(role) == "assistant":
                return True
    return False
