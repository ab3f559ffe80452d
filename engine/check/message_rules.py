"""The rules for messages: one by itself, what one has to do with the one before it, and a whole conversation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

from engine.check.ledger import Ledger
from engine.check.value_rules import LEAK_CHARACTERS, ValueRules
from engine.read import texts, turns
from engine.read.tool_calls import Malformed, name_of
from engine.words import later


def take_turns(roles: Sequence[str | None]) -> bool:
    """Whether the order of the roles of a conversation gives no reason for a warning."""
    return all(one != other or one == "tool" for one, other in pairwise(roles)) and "system" not in roles[1:]


class Found(NamedTuple):
    """What a good conversation has: its last role, its answers, how many of these are trained, and their characters."""

    last: str
    answers: int
    trained: int
    characters: int


class MessageRules:
    """The rules for messages of one style."""

    def __init__(self, style: turns.Style, ledger: Ledger, values: ValueRules):
        self.style = style
        self.role_key, self.content_key, self.roles, _ = style
        self.tools: frozenset[str] = frozenset()  # names of the tools of the row that is checked
        self.error, self.warn = ledger.error, ledger.warn
        self.values = values
        self._sequences: dict[tuple[str, ...], tuple[str, list[int]]] = {}  # roles as written -> last, answers
        self._role_of, self._content_of = itemgetter(self.role_key), itemgetter(self.content_key)

    def conversation(self, messages: object, where: str) -> Found | None:
        """Check a list of messages. Return what it has, or None after noting every error in it."""
        if type(messages) is not list:
            self.values.wrong(messages, where, later("a list of messages"))
            return None
        if not messages:
            self.error("empty-messages", where)
            return None
        known, contents = None, []
        try:
            # Most conversations are of a sequence of roles that was met before, and of visible texts and nothing else.
            sequence = tuple(map(self._role_of, messages))
            known = self._sequences.get(sequence) if max(map(len, messages)) == 2 else None
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
                return Found(last, len(places), len(places), sum([len(contents[place]) for place in places]))
        found = self._conversation(messages, where)
        if found and sequence is not None and len(self._sequences) < 1_000:
            kinds = [self.roles[name] for name in sequence]
            if take_turns(kinds) and not any(map(turns.is_call_role, sequence)):
                self._sequences[sequence] = (kinds[-1], [n for n, kind in enumerate(kinds) if kind == "assistant"])
        return found

    def _conversation(self, messages: list[Any], where: str) -> Found | None:
        """The same with care: says what is wrong or odd about each message."""
        roles, role_key, content_key = self.roles, self.role_key, self.content_key
        previous = asked = ""
        before: dict[str, Any] | None = None  # the message before, where it can take a call that is a turn of its own
        answers = trained = characters = 0
        good = True
        for index, message in enumerate(messages):
            place = f"{where}[{index}]"
            try:
                role = roles[message[role_key]]
                content = message[content_key]
                visible = type(content) is str and content[0] not in texts.INVISIBLE_SET and len(message) == 2
            except (KeyError, TypeError, IndexError):
                visible = False
                role = content = ""
            if not visible or turns.is_call_role(message[role_key]):
                # The slow way finds the reason, or that all is well after leading white space.
                role = self.message(message, place)
                if role is None:
                    good = False
                    previous = ""
                    before = None
                    continue
                content = turns.words_of(message, self.style)
            joined = before is not None and self._joins(before, message, place)
            if role == "assistant":
                answers += not joined
                if turns.train_of(message) is None:
                    trained += not joined
                    characters += 0 if turns.is_call_text(message, self.style) else len(content)
                self.values.leak(asked, content, f"{place}.{content_key}")
                if previous == "assistant" and not joined:
                    self.warn("same-role-twice", f"{place}.{role_key}")
            elif role == previous and role != "tool":
                self.warn("same-role-twice", f"{place}.{role_key}")
            if "\ufffd" in content:
                self.warn("replacement-character", f"{place}.{content_key}")
            asked = content if role == "user" else ""
            if role == "system" and index:
                self.warn("system-not-first", place)
            previous = role
            before = message if turns.takes_call(message, self.style) else None
        return Found(previous, answers, trained, characters) if good else None

    def _joins(self, before: dict[str, Any], message: dict[str, Any], where: str) -> bool:
        """Whether a message is a call that is read as part of the one before it; said where that has words."""
        joined = turns.is_call_text(message, self.style) and turns.train_of(before) == turns.train_of(message)
        if joined and not turns.is_call_text(before, self.style):
            self.warn("joined-turns", where)
        return joined

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
                self.error("unknown-role", f"{where}.{role_key}", found=texts.short(written), known=self.style.shown)
        elif role_key not in message:
            self.error("missing-field", f"{where}.{role_key}", found=texts.column_list(message))
        else:
            self.values.wrong(written, f"{where}.{role_key}", later("text"))
        good = self._content(message, role, where)
        for key in ("name", "tool_call_id", "call_text", *turns.REASONING_KEYS):
            value = message.get(key)
            if value is not None and type(value) is not str:
                self.values.wrong(value, f"{where}.{key}", later("text"))
                good = False
        good = self._train(message, role, where) and good
        return role if good else None

    def _content(self, message: dict[str, Any], role: str | None, where: str) -> bool:
        """Check what a message says, and what it calls."""
        content = message.get(self.content_key)
        place = f"{where}.{self.content_key}"
        if type(content) is list and content:
            if not self._parts(content, place):
                return False
        elif type(content) is not str and (content is not None or not self._has_other(message)):
            if self.content_key not in message:
                self.error("missing-field", place, found=texts.column_list(message))
            else:
                self.values.wrong(content, place, later("text"))
            return False
        if role is None:
            return False
        calls = self._calls(message, where) if role == "assistant" else []
        if calls is None:
            return False
        if texts.is_blank(turns.words_of(message, self.style)) and not calls:
            if role == "assistant":
                self.error("empty-assistant", place)
                return False
            if role != "tool":
                self.warn("blank-prompt", place)
        return True

    def _has_other(self, message: dict[str, Any]) -> bool:
        """Whether a message says something where it has no content."""
        return turns.has_calls(message, self.style) or not texts.is_blank(turns.words_of(message, self.style))

    def _calls(self, message: dict[str, Any], where: str) -> list[dict[str, Any]] | None:
        """The calls of an answer, or None after noting that one cannot be read."""
        try:
            calls = turns.calls_in(message, self.style, False)
        except Malformed as fault:
            self.error("bad-call", f"{where}.{fault.key}", reason=fault.reason)
            return None
        if not calls and turns.is_call_role(message[self.role_key]):
            self.warn("call-not-read", f"{where}.{self.content_key}")
        for call in calls:
            if self.tools and name_of(call) not in self.tools:
                self.warn("unknown-tool", where, found=texts.short(name_of(call)))
        return calls

    def _train(self, message: dict[str, Any], role: str | None, where: str) -> bool:
        """Check the keys that say whether a turn is trained."""
        try:
            turns.train_of(message)
        except Malformed as fault:
            self.error("bad-weight", f"{where}.{fault.key}", found=fault.reason)
            return False
        unread = [key for key in turns.UNREAD_KEYS if message.get(key)]
        if role != "assistant":
            unread += [key for key in (*turns.TRAIN_KEYS, *turns.REASONING_KEYS) if message.get(key)]
        for key in unread:
            self.warn("unread-key", f"{where}.{key}")
        return True

    def _parts(self, parts: list[Any], where: str) -> bool:
        """Check content that is a list of parts: text, reasoning or calls of tools."""
        good = True
        for index, part in enumerate(parts):
            kind = turns.kind_of_part(part)
            if kind == "call":
                continue
            if not kind:
                self.values.wrong(part, f"{where}[{index}]", later("a part with text"))
                good = False
            elif kind not in ("text", "reasoning"):
                self.error("not-text-part", f"{where}[{index}]", found=texts.short(kind))
                good = False
            elif type(text := turns.part_text(part)) is not str and (kind == "text" or type(text) is not list):
                self.values.wrong(text, f"{where}[{index}].{'value' if 'value' in part else 'text'}", later("text"))
                good = False
        return good

    def is_answer(self, message: dict[str, Any]) -> bool:
        return self.roles[message[self.role_key]] == "assistant"

    def length(self, message: dict[str, Any]) -> int:
        """Characters of a message that is good and trained."""
        return self.characters([message])

    def characters(self, messages: list[dict[str, Any]]) -> int:
        """Characters of the assistant's turns that are trained in messages that are good."""
        return sum(
            len(turns.words_of(message, self.style))
            for message in messages
            if self.is_answer(message)
            and turns.train_of(message) is None
            and not turns.is_call_text(message, self.style)
        )

    def is_trained(self, messages: list[dict[str, Any]]) -> bool:
        """Whether one of messages that are good is trained."""
        return any(self.is_answer(message) and turns.train_of(message) is None for message in messages)
