"""The rules for one row of each reading: every error and warning of a row, with its place inside the row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from operator import itemgetter
from typing import Any

from xxhash import xxh3_64_intdigest as hash64

from engine.check.ledger import Ledger
from engine.read import formats, lines, texts
from engine.words import Text, later, t

_LABEL_WORDS = {
    "true": "true", "yes": "true", "y": "true", "1": "true", "1.0": "true", "good": "true", "good answer": "true",
    "false": "false", "no": "false", "n": "false", "0": "false", "0.0": "false", "-1": "false", "bad": "false",
}  # fmt: skip


# An answer that begins with a question shorter than this may do so by chance.
LEAK_CHARACTERS = 20


class Lengths:
    """How much longer chosen answers are than rejected ones, as the mean difference over its standard deviation."""

    LEAST_PAIRS = 30
    LARGE = 0.5  # a medium effect by the usual reading (Cohen)

    def __init__(self) -> None:
        self.pairs = self.longer = 0
        self.total = self.squares = 0  # of whole numbers, so that parts of a file add up to the same

    def add(self, chosen: int, rejected: int) -> None:
        difference = chosen - rejected
        self.pairs += 1
        self.longer += difference > 0
        self.total += difference
        self.squares += difference * difference

    @property
    def effect(self) -> float:
        mean = self.total / self.pairs if self.pairs else 0.0
        spread = (self.squares / self.pairs - mean * mean) ** 0.5 if self.pairs else 0.0
        return mean / spread if spread > 1e-9 else 0.0 if abs(mean) < 1e-9 else 9.0 if mean > 0 else -9.0


def meant_label(value: object) -> bool | None:
    """What a label that is not a boolean clearly stands for, such as "yes" or 1, or None."""
    if value is True or value is False or not isinstance(value, str | int | float):
        return None
    word = _LABEL_WORDS.get(str(value).strip().lower())
    return None if word is None else word == "true"


def judgement(question: object, answer: object, label: bool) -> int:
    """A hash of an answer to a question; its lowest bit is the label. Never 0."""
    hashed = hash64(f"{question}\0{answer}".encode("utf-8", "surrogatepass"))
    return (hashed >> 1 & ~1 | label) or 2


class RowRules:
    """The rules for the rows of one reading. Each method returns None or False after noting an error."""

    def __init__(self, reading: formats.Reading, ledger: Ledger):
        self.reading = reading
        self.ledger = ledger
        self.error = ledger.error
        self.warn = ledger.warn
        self.role_key, self.content_key, self.roles = reading.style
        self.labels = {True: 0, False: 0}
        self.target_characters = 0
        self._sequences: dict[tuple[str, ...], tuple[str, list[int]]] = {}  # roles as written -> last, answers
        self._role_of, self._content_of = itemgetter(self.role_key), itemgetter(self.content_key)
        self.lengths = Lengths()
        self.judgements: tuple[int, ...] = ()  # of the latest good row: hashes of question and answer with the label
        self.label_changes: dict[str, int] = {}  # what converting the labels would do, and how often

    def row_rule(self) -> Callable[[dict[str, Any]], bool]:
        """Return the function that checks one row of this reading's type and returns whether it is good."""
        fields = self.reading.layout.fields
        if self.reading.prompts_only:
            return self._prompt_messages
        if "messages" in fields:
            return self._judged_messages if "label" in fields else self._messages
        if "steps" in fields:
            return self._steps
        if "chosen" in fields:
            return self._pair if "prompt" in fields else self._implicit_pair
        if "completion" in fields:
            return self._completion
        return self._text if "text" in fields else self._prompt_row

    # Rules by type.

    def _text(self, row: dict[str, Any]) -> bool:
        column = self.reading.layout.fields["text"]
        text = self._target_text(row[column], column)
        if text is None:
            return False
        self.target_characters += len(text)
        return True

    def _messages(self, row: dict[str, Any]) -> bool:
        column = self.reading.layout.fields["messages"]
        found = self.conversation(row[column], column)
        if found is None:
            return False
        last_role, answers, characters = found
        if not answers:
            self.error("no-assistant", column)
            return False
        if last_role != "assistant":
            self.warn("ends-without-assistant", column, role=last_role)
        if len(row) > 1 and not self._extras(row):
            return False
        self.target_characters += characters
        return True

    def _prompt_messages(self, row: dict[str, Any]) -> bool:
        column = self.reading.layout.fields["messages"]
        return self.conversation(row[column], column) is not None and self._extras(row)

    def _judged_messages(self, row: dict[str, Any]) -> bool:
        fields = self.reading.layout.fields
        column = fields["messages"]
        found = self.conversation(row[column], column)
        good = found is not None
        if found is not None and found[0] != "assistant":
            self.error("last-not-assistant" if found[1] else "no-assistant", column)
            good = False
        label = self._label(row[fields["label"]], fields["label"])
        if not good or label is None or not self._extras(row):
            return False
        self.labels[label] += 1
        self.judgements = (judgement(row[column][:-1], row[column][-1], label),)
        # Only the last message is judged.
        self.target_characters += len(formats.text_of(row[column][-1].get(self.content_key)))
        return True

    def _prompt_row(self, row: dict[str, Any]) -> bool:
        column = self.reading.layout.fields["prompt"]
        if self.reading.conversational:
            return self.conversation(row[column], column) is not None and self._extras(row)
        return self._target_text(row[column], column) is not None and self._extras(row)

    def _completion(self, row: dict[str, Any]) -> bool:
        fields = self.reading.layout.fields
        good = self._prompt(row, fields)
        characters = self._answer(row[fields["completion"]], fields["completion"], row[fields["prompt"]])
        if "label" in fields:
            label = self._label(row[fields["label"]], fields["label"])
            if not good or characters is None or label is None or not self._extras(row):
                return False
            self.labels[label] += 1
            self.judgements = (judgement(row[fields["prompt"]], row[fields["completion"]], label),)
        elif not good or characters is None or not self._extras(row):
            return False
        self.target_characters += characters
        self._leak(row[fields["prompt"]], row[fields["completion"]], fields["completion"])
        return True

    def _pair(self, row: dict[str, Any]) -> bool:
        fields = self.reading.layout.fields
        good = self._prompt(row, fields)
        prompt = row[fields["prompt"]]
        better, worse = fields["chosen"], fields["rejected"]
        chosen = self._answer(row[better], better, prompt)
        rejected = self._answer(row[worse], worse, prompt)
        if not good or chosen is None or rejected is None or not self._extras(row):
            return False
        if row[better] == row[worse]:
            self.error("equal-pair", worse, other=better)
            return False
        self._leak(prompt, row[better], better)
        self.judgements = (judgement(prompt, row[better], True), judgement(prompt, row[worse], False))
        self.lengths.add(chosen, rejected)
        self.target_characters += chosen + rejected
        return True

    def _implicit_pair(self, row: dict[str, Any]) -> bool:
        better, worse = self.reading.layout.fields["chosen"], self.reading.layout.fields["rejected"]
        chosen, rejected = row[better], row[worse]
        if self.reading.conversational:
            good = self._answer(chosen, better) is not None
            good = self._answer(rejected, worse) is not None and good
        else:
            good = self._target_text(chosen, better) is not None
            good = self._target_text(rejected, worse) is not None and good
        if not good or not self._extras(row):
            return False
        if chosen == rejected:
            self.error("equal-pair", worse, other=better)
            return False
        if self.reading.conversational:
            shared = shared_messages(chosen, rejected)
            tails = [chosen[shared:], rejected[shared:]] if isinstance(chosen, list) else []
            keys = {name for name, role in self.roles.items() if role == "assistant"}
            if not shared or not all(tail and tail[0][self.role_key] in keys for tail in tails):
                self.error("no-shared-prompt", chosen=better, rejected=worse)
                return False
            lengths = [self._characters(tail) for tail in tails]
            self.lengths.add(*lengths)
            self.judgements = (judgement(chosen[:shared], tails[0], True), judgement(chosen[:shared], tails[1], False))
            self.target_characters += sum(lengths)
            return True
        cut = shared_transcript(chosen, rejected)
        if cut is None:
            self.error("no-shared-prompt", chosen=better, rejected=worse)
            return False
        for text, name in ((chosen, better), (rejected, worse)):
            if texts.is_blank(text[cut:]):
                self.error("blank-field", name)
                return False
        self.lengths.add(len(chosen) - cut, len(rejected) - cut)
        asked = chosen[:cut]
        self.judgements = (judgement(asked, chosen[cut:], True), judgement(asked, rejected[cut:], False))
        self.target_characters += len(chosen) + len(rejected) - 2 * cut
        return True

    def _steps(self, row: dict[str, Any]) -> bool:
        fields = self.reading.layout.fields
        asked, told, marks = fields["prompt"], fields["steps"], fields["step_labels"]
        good = self._target_text(row[asked], asked) is not None
        steps, labels = row[told], row[marks]
        for value, name in ((steps, told), (labels, marks)):
            if type(value) is not list:
                self._wrong(value, name, later("a list"))
                good = False
            elif not value:
                self.error("empty-messages", name)
                good = False
        if not good:
            return False
        for index, step in enumerate(steps):
            good = self._target_text(step, f"{told}[{index}]") is not None and good
        for index, label in enumerate(labels):
            good = self._label(label, f"{marks}[{index}]") is not None and good
        if len(steps) != len(labels):
            self.error("steps-length", steps=len(steps), labels=len(labels))
            good = False
        if good:
            self.target_characters += sum(map(len, steps))
        return good

    # Rules by meaning.

    def _prompt(self, row: dict[str, Any], fields: dict[str, str]) -> bool:
        column = fields["prompt"]
        value = row[column]
        if type(value) is str:
            if texts.is_blank(value):
                self.warn("blank-prompt", column)
            return True
        if self.reading.conversational:
            # A conversation with nothing before the answer is a blank prompt.
            if value == [] and type(value) is list:
                self.warn("blank-prompt", column)
                return True
            return self.conversation(value, column) is not None
        self._wrong(value, column, later("text"))
        return False

    def _answer(self, value: object, where: str, prompt: object = None) -> int | None:
        """Return the characters of a good answer: text, or messages of which the last is the assistant's.

        An answer may repeat its `prompt` in front; without one (an implicit prompt) it may start as it likes.
        """
        if not self.reading.conversational:
            text = self._target_text(value, where)
            return None if text is None else len(text)
        if type(value) is dict:
            role = self._message(value, where)
            if role is None:
                return None
            if role != "assistant":
                self.error("no-assistant", where)
                return None
            return len(formats.text_of(value.get(self.content_key)))
        found = self.conversation(value, where)
        if found is None:
            return None
        if found[0] != "assistant":
            self.error("last-not-assistant" if found[1] else "no-assistant", where)
            return None
        if prompt is None or not isinstance(value, list):
            return found[2]
        cut = repeated_prompt(prompt, value, self.reading)
        if self.roles[value[cut][self.role_key]] != "assistant":
            self.error("not-an-answer", f"{where}[{cut}]", found=value[cut][self.role_key])
            return None
        return found[2] - self._characters(value[:cut])

    def _leak(self, asked: object, answer: object, where: str) -> None:
        """Warn when an answer begins with its whole question."""
        if not isinstance(asked, str) or not isinstance(answer, str) or not answer.startswith(asked):
            return
        if len(asked) >= LEAK_CHARACTERS and len(answer) > len(asked):
            self.warn("prompt-in-answer", where)

    def _target_text(self, value: object, where: str) -> str | None:
        if type(value) is str:
            if (value and value[0] not in texts.INVISIBLE_SET) or not texts.is_blank(value):
                if "\ufffd" in value:
                    self.warn("replacement-character", where)
                return value
            self.error("blank-field", where)
        else:
            self._wrong(value, where, later("text"))
        return None

    def _wrong(self, value: object, where: str, wanted: str | Text) -> None:
        if value is None:
            self.error("null-field", where, wanted=wanted)
        else:
            self.error("wrong-type", where, found=texts.kind_of(value), wanted=wanted)

    def _label(self, value: object, where: str) -> bool | None:
        if value is True or value is False:
            return value
        if value is None:
            self.error("null-field", where, wanted=later("true or false"))
            return None
        shown = (
            f'"{texts.short(value)}"'
            if isinstance(value, str)
            else (str(value)[:20] if isinstance(value, int | float) else texts.kind_of(value))
        )
        meant = meant_label(value)
        wanted = later("true or false") if meant is None else "true" if meant else "false"
        if meant is not None:
            change = t("{found} becomes {wanted}", found=shown, wanted=wanted)
            # Few: all ways to write the words of the table in upper and lower case.
            self.label_changes[change] = self.label_changes.get(change, 0) + 1
        self.error("label-not-boolean", where, found=shown, wanted=wanted)
        return None

    def _characters(self, messages: list[dict[str, Any]]) -> int:
        """Characters of the assistant's turns in messages that are good."""
        return sum(
            len(formats.text_of(message.get(self.content_key)))
            for message in messages
            if self.roles[message[self.role_key]] == "assistant"
        )

    def conversation(self, messages: object, where: str) -> tuple[str, int, int] | None:
        """Check a list of messages. Return the last role, the number of answers and their characters, or None."""
        if type(messages) is not list:
            self._wrong(messages, where, later("a list of messages"))
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
            plain = all(a != b or a == "tool" for a, b in pairwise(kinds)) and "system" not in kinds[1:]
            if plain:
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
                role = self._message(message, f"{where}[{index}]")
                if role is None:
                    good = False
                    previous = ""
                    continue
                content = formats.text_of(message.get(content_key))
            if role == "assistant":
                answers += 1
                characters += len(content)
                self._leak(asked, content, f"{where}[{index}].{content_key}")
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

    def _message(self, message: object, where: str) -> str | None:
        """Check one message with care and return its canonical role, or None after noting every error in it."""
        role_key, content_key = self.role_key, self.content_key
        if type(message) is not dict:
            self._wrong(
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
            self._wrong(written, f"{where}.{role_key}", later("text"))
        calls = message.get("tool_calls") or message.get("function_call")
        content = message.get(content_key)
        place = f"{where}.{content_key}"
        if type(content) is list and content and all(type(p) is dict and type(p.get("type")) is str for p in content):
            if not self._parts(content, place):
                return None
            content = formats.text_of(content)
        if calls is not None and not isinstance(calls, list | dict):
            self._wrong(calls, f"{where}.tool_calls", later("a list"))
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
            self._wrong(content, place, later("text"))
            return None
        name = message.get("name")
        if name is not None and type(name) is not str:
            self._wrong(name, f"{where}.name", later("text"))
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
                self._wrong(text, f"{where}[{index}].{'value' if 'value' in part else 'text'}", later("text"))
                good = False
        return good

    def _extras(self, row: dict[str, Any]) -> bool:
        """Check the optional columns that the layout knows and the row has."""
        fields = self.reading.layout.fields
        good = True
        for meaning in ("input", "system", "family"):
            column = fields.get(meaning)
            if column and (value := row.get(column)) is not None and type(value) is not str:
                self._wrong(value, column, later("text"))
                good = False
        column = fields.get("tools")
        if column and (tools := row.get(column)) is not None and not _is_tools(tools):
            self.error("tools-not-json", column)
            good = False
        column = fields.get("history")
        if column and (history := row.get(column)) is not None and not _is_history(history):
            self._wrong(history, column, later("a list of [question, answer] texts"))
            good = False
        column = fields.get("choices")
        if column and (choices := row.get(column)) is not None:
            reason = _choices_fault(choices, row[fields["completion"]])
            if reason:
                self.error("choices-invalid", column, reason=reason)
                good = False
        return good


def _is_tools(value: object) -> bool:
    if isinstance(value, list):
        return True
    return isinstance(value, str) and (not value.strip() or lines.parses(value.encode()))


def _is_history(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in value
    )


def _choices_fault(choices: object, completion: object) -> str | Text | None:
    """Say what is wrong with the choices of a row, or return None."""
    if not isinstance(choices, list):
        return later("this is {found}", found=texts.kind_of(choices))
    if len(choices) < 2:
        return later("there are fewer than two")
    if not all(isinstance(choice, str) for choice in choices):
        return later("one of them is not text")
    if len(set(choices)) < len(choices):
        return later("two of them are the same")
    if completion not in choices:
        return later("the completion is none of them")
    return None


def repeated_prompt(prompt: object, answer: list[Any], reading: formats.Reading) -> int:
    """How many messages at the start of an answer only repeat its prompt, which is text or a list of messages."""
    if isinstance(prompt, list):
        count = len(prompt)
        return count if count < len(answer) and answer[:count] == prompt else 0
    style, first = reading.style, answer[0]
    return int(
        len(answer) > 1 and style.roles[first[style.role_key]] == "user" and first.get(style.content_key) == prompt
    )


def shared_messages(chosen: object, rejected: object) -> int:
    """How many whole messages two conversations share at their start."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return 0
    count = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        count += 1
    return count


_ASSISTANT_TURN = "\n\nAssistant:"


def shared_transcript(chosen: str, rejected: str) -> int | None:
    """Where the shared prompt of two "\\n\\nHuman: ... \\n\\nAssistant: ..." transcripts ends, or None without one.

    The cut is after the last shared assistant turn mark, so that no character of an answer falls to the prompt.
    """
    low, high = 0, min(len(chosen), len(rejected))
    while low < high:  # the length of the longest common beginning
        middle = (low + high + 1) // 2
        if chosen[low:middle] == rejected[low:middle]:
            low = middle
        else:
            high = middle - 1
    found = chosen.rfind(_ASSISTANT_TURN, 0, low)
    return None if found < 0 else found + len(_ASSISTANT_TURN)
