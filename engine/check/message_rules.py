"""The rules for messages: one by itself, what one has to do with the one before it, and a whole conversation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any

from engine.check.ledger import Ledger
from engine.check.value_rules import LEAK_CHARACTERS, ValueRules
from engine.read import formats, texts
from engine.words import later


def take_turns(roles: Sequence[str | None]) -> bool:
    """Whether the order of the roles of a conversation gives no reason for a warning."""
    return all(one != other or one == "tool" for one, other in pairwise(roles)) and "system" not in roles[1:]


class MessageRules:
    """The rules for messages of one style."""

    def __init__(self, style: formats.Style, ledger: Ledger, values: ValueRules):
        self.role_key, self.content_key, self.roles = style
        self.error, self.warn = ledger.error, ledger.warn
        self.values = values
        self._sequences: dict[tuple[str, ...], tuple[str, list[int]]] = {}  # roles as written -> last, answers
        self._role_of, self._content_of = itemgetter(self.role_key), itemgetter(self.content_key)

    def conversation(self, messages: object, where: str) -> tuple[str, int, int] | None:
        """Check a list of messages. Return the last role, the number of answers and their characters, or None."""
        if type(messages) is not list:
            self.values.wrong(messages, where, later("a list of messages"))
            return None
        if not messages:
            self.error("empty-messages", where)
            return None
        known, contents = None, []
        try:
            # Most conversations are of a sequence of roles that was met before, and of visible texts.
            sequence = tuple(map(self._role_of, messages))
            known = self._sequences.get(sequence)
            contents = list(map(self._content_of, messages))
        except (KeyError, TypeError, IndexError):
            sequence = known = None
        if known is not None:
            before = ""
            for content in contents:
                if type(content) is not str or not content or content[0] in texts.INVISIBLE_SET or "\ufffd" in content:
                    break
                if len(before) >= LEAK_CHARACTERS and content.startswith(before):
                    break
                before = content
            else:
                last, places = known
                return last, len(places), sum([len(contents[place]) for place in places])
        found = self._conversation(messages, where)
        if found and sequence is not None and len(self._sequences) < 1_000:
            kinds = [self.roles[name] for name in sequence]
            if take_turns(kinds):
                self._sequences[sequence] = (kinds[-1], [n for n, kind in enumerate(kinds) if kind == "assistant"])
        return found

    def _conversation(self, messages: list[Any], where: str) -> tuple[str, int, int] | None:
        """The same with care: says what is wrong or odd about each message."""
        roles, role_key, content_key = self.roles, self.role_key, self.content_key
        previous = asked = ""
        answers = characters = 0
        good = True
        for index, message in enumerate(messages):
            try:
                role = roles[message[role_key]]
                content = message[content_key]
                visible = type(content) is str and content[0] not in texts.INVISIBLE_SET
            except (KeyError, TypeError, IndexError):
                visible = False
                role = content = ""
            if not visible:
                # The slow way finds the reason, or that all is well after leading white space.
                role = self.message(message, f"{where}[{index}]")
                if role is None:
                    good = False
                    previous = ""
                    continue
                content = formats.text_of(message.get(content_key))
            if role == "assistant":
                answers += 1
                characters += len(content)
                self.values.leak(asked, content, f"{where}[{index}].{content_key}")
                if previous == "assistant":
                    self.warn("same-role-twice", f"{where}[{index}].{role_key}")
            elif role == previous and role != "tool":
                self.warn("same-role-twice", f"{where}[{index}].{role_key}")
            if "\ufffd" in content:
                self.warn("replacement-character", f"{where}[{index}].{content_key}")
            asked = content if role == "user" else ""
            if role == "system" and index:
                self.warn("system-not-first", f"{where}[{index}]")
            previous = role
        return (previous, answers, characters) if good else None

    def message(self, message: object, where: str) -> str | None:
        """Check one message with care and return its canonical role, or None after noting every error in it."""
        role_key, content_key = self.role_key, self.content_key
        if type(message) is not dict:
            self.values.wrong(
                message, where, later("an object with {role} and {content}", role=role_key, content=content_key)
            )
            return None
        role = None
        written = message.get(role_key)
        if type(written) is str:
            role = self.roles.get(written)
            if role is None:
                known = ", ".join(name for name in self.roles if name not in ("function", "developer"))
                self.error("unknown-role", f"{where}.{role_key}", found=texts.short(written), known=known)
        elif role_key not in message:
            self.error("missing-field", f"{where}.{role_key}", found=texts.column_list(message))
        else:
            self.values.wrong(written, f"{where}.{role_key}", later("text"))
        calls = message.get("tool_calls") or message.get("function_call")
        content = message.get(content_key)
        place = f"{where}.{content_key}"
        if type(content) is list and content and all(type(p) is dict and type(p.get("type")) is str for p in content):
            if not self._parts(content, place):
                return None
            content = formats.text_of(content)
        if calls is not None and not isinstance(calls, list | dict):
            self.values.wrong(calls, f"{where}.tool_calls", later("a list"))
            return None
        if type(content) is str:
            if texts.is_blank(content) and not calls:
                if role == "assistant":
                    self.error("empty-assistant", place)
                    return None
                if role is not None and role != "tool":
                    self.warn("blank-prompt", place)
        elif calls and content is None:
            pass
        elif content_key not in message:
            self.error("missing-field", place, found=texts.column_list(message))
            return None
        else:
            self.values.wrong(content, place, later("text"))
            return None
        name = message.get("name")
        if name is not None and type(name) is not str:
            self.values.wrong(name, f"{where}.name", later("text"))
            return None
        return role

    def _parts(self, parts: list[dict[str, Any]], where: str) -> bool:
        """Check content that is a list of parts, all of which must be text."""
        good = True
        for index, part in enumerate(parts):
            kind = part["type"]
            if kind not in formats.TEXT_PARTS:
                self.error("not-text-part", f"{where}[{index}]", found=texts.short(kind))
                good = False
            elif type(text := formats.part_text(part)) is not str:
                self.values.wrong(text, f"{where}[{index}].{'value' if 'value' in part else 'text'}", later("text"))
                good = False
        return good

    def is_answer(self, message: dict[str, Any]) -> bool:
        return self.roles[message[self.role_key]] == "assistant"

    def length(self, message: dict[str, Any]) -> int:
        """Characters of a message that is good."""
        return len(formats.text_of(message.get(self.content_key)))

    def characters(self, messages: list[dict[str, Any]]) -> int:
        """Characters of the assistant's turns in messages that are good."""
        return sum(
            len(formats.text_of(message.get(self.content_key)))
            for message in messages
            if self.roles[message[self.role_key]] == "assistant"
        )
