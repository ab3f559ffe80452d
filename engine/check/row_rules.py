"""The rules for one row of each reading: every error and warning of a row, with its place inside the row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xxhash import xxh3_64_intdigest as hash64

from engine.check.ledger import Ledger
from engine.check.message_rules import MessageRules
from engine.check.piece import Lengths, Piece
from engine.check.prompts import repeated_prompt, shared_messages, shared_transcript
from engine.check.value_rules import ValueRules
from engine.read import formats, texts
from engine.words import later


def judgement(question: object, answer: object, label: bool) -> int:
    """A hash of an answer to a question; its lowest bit is the label. Never 0."""
    hashed = hash64(f"{question}\0{answer}".encode("utf-8", "surrogatepass"))
    return (hashed >> 1 & ~1 | label) or 2


def pair_judgement(question: object, chosen: object, rejected: object) -> int:
    """The judgement of a pair: of the two answers in one order, whichever is the better one. (That an answer is better
    than one and worse than another is a ranking.)"""
    one, other = sorted((str(chosen), str(rejected)))
    return judgement(question, f"{one}\0{other}", str(chosen) == one)


def judgements(reading: formats.Reading | None) -> int:
    """How many judgements a row is: a pair or an answer with a label is one."""
    return int(reading is not None and reading.layout.type in ("preference", "unpaired-preference"))


class RowRules:
    """The rules for the rows of one reading. Each method returns None or False after noting an error."""

    def __init__(self, reading: formats.Reading, ledger: Ledger):
        self.reading, self.fields = reading, reading.layout.fields
        self.error, self.warn = ledger.error, ledger.warn
        self.values = ValueRules(self.fields, ledger)
        self.messages = MessageRules(reading.style, ledger, self.values)
        self.judgements: tuple[int, ...] = ()  # of the latest good row: hashes of question and answer with the label
        self._begin()

    def _begin(self) -> None:
        self.labels = {True: 0, False: 0}
        self.target_characters = 0
        self.lengths = Lengths()
        self.values.label_changes = {}

    def take(self, piece: Piece) -> None:
        """Put what was counted since the last time into a piece."""
        piece.good_labels, piece.bad_labels = self.labels[True], self.labels[False]
        piece.target_characters, piece.lengths = self.target_characters, self.lengths
        piece.label_changes = self.values.label_changes
        self._begin()

    def row_rule(self) -> Callable[[dict[str, Any]], bool]:
        """Return the function that checks one row of this reading's type and returns whether it is good."""
        fields = self.fields
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

    # Rows by type.

    def _text(self, row: dict[str, Any]) -> bool:
        column = self.fields["text"]
        text = self.values.text(row[column], column)
        if text is None:
            return False
        self.target_characters += len(text)
        return True

    def _messages(self, row: dict[str, Any]) -> bool:
        column = self.fields["messages"]
        found = self.messages.conversation(row[column], column)
        if found is None:
            return False
        last_role, answers, characters = found
        if not answers:
            self.error("no-assistant", column)
            return False
        if last_role != "assistant":
            self.warn("ends-without-assistant", column, role=last_role)
        if len(row) > 1 and not self.values.extras(row):
            return False
        self.target_characters += characters
        return True

    def _prompt_messages(self, row: dict[str, Any]) -> bool:
        column = self.fields["messages"]
        return self.messages.conversation(row[column], column) is not None and self.values.extras(row)

    def _judged_messages(self, row: dict[str, Any]) -> bool:
        fields = self.fields
        column = fields["messages"]
        found = self.messages.conversation(row[column], column)
        good = found is not None
        if found is not None and found[0] != "assistant":
            self.error("last-not-assistant" if found[1] else "no-assistant", column)
            good = False
        label = self.values.label(row[fields["label"]], fields["label"])
        if not good or label is None or not self.values.extras(row):
            return False
        self.labels[label] += 1
        self.judgements = (judgement(row[column][:-1], row[column][-1], label),)
        # Only the last message is judged.
        self.target_characters += self.messages.length(row[column][-1])
        return True

    def _prompt_row(self, row: dict[str, Any]) -> bool:
        column = self.fields["prompt"]
        if self.reading.conversational:
            return self.messages.conversation(row[column], column) is not None and self.values.extras(row)
        return self.values.text(row[column], column) is not None and self.values.extras(row)

    def _completion(self, row: dict[str, Any]) -> bool:
        fields = self.fields
        good = self._prompt(row, fields)
        characters = self._answer(row[fields["completion"]], fields["completion"], row[fields["prompt"]])
        if "label" in fields:
            label = self.values.label(row[fields["label"]], fields["label"])
            if not good or characters is None or label is None or not self.values.extras(row):
                return False
            self.labels[label] += 1
            self.judgements = (judgement(row[fields["prompt"]], row[fields["completion"]], label),)
        elif not good or characters is None or not self.values.extras(row):
            return False
        self.target_characters += characters
        self.values.leak(row[fields["prompt"]], row[fields["completion"]], fields["completion"])
        return True

    def _pair(self, row: dict[str, Any]) -> bool:
        fields = self.fields
        good = self._prompt(row, fields)
        prompt = row[fields["prompt"]]
        better, worse = fields["chosen"], fields["rejected"]
        chosen = self._answer(row[better], better, prompt)
        rejected = self._answer(row[worse], worse, prompt)
        if not good or chosen is None or rejected is None or not self.values.extras(row):
            return False
        if row[better] == row[worse]:
            self.error("equal-pair", worse, other=better)
            return False
        self.values.leak(prompt, row[better], better)
        self.judgements = (pair_judgement(prompt, row[better], row[worse]),)
        self.lengths.add(chosen, rejected)
        self.target_characters += chosen + rejected
        return True

    def _implicit_pair(self, row: dict[str, Any]) -> bool:
        better, worse = self.fields["chosen"], self.fields["rejected"]
        chosen, rejected = row[better], row[worse]
        if self.reading.conversational:
            good = self._answer(chosen, better) is not None
            good = self._answer(rejected, worse) is not None and good
        else:
            good = self.values.text(chosen, better) is not None
            good = self.values.text(rejected, worse) is not None and good
        if not good or not self.values.extras(row):
            return False
        if chosen == rejected:
            self.error("equal-pair", worse, other=better)
            return False
        if self.reading.conversational:
            shared = shared_messages(chosen, rejected)
            tails = [chosen[shared:], rejected[shared:]] if isinstance(chosen, list) else []
            if not shared or not all(tail and self.messages.is_answer(tail[0]) for tail in tails):
                self.error("no-shared-prompt", chosen=better, rejected=worse)
                return False
            lengths = [self.messages.characters(tail) for tail in tails]
            self.lengths.add(*lengths)
            self.judgements = (pair_judgement(chosen[:shared], *tails),)
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
        self.judgements = (pair_judgement(asked, chosen[cut:], rejected[cut:]),)
        self.target_characters += len(chosen) + len(rejected) - 2 * cut
        return True

    def _steps(self, row: dict[str, Any]) -> bool:
        fields = self.fields
        asked, told, marks = fields["prompt"], fields["steps"], fields["step_labels"]
        good = self.values.text(row[asked], asked) is not None
        steps, labels = row[told], row[marks]
        for value, name in ((steps, told), (labels, marks)):
            if type(value) is not list:
                self.values.wrong(value, name, later("a list"))
                good = False
            elif not value:
                self.error("empty-messages", name)
                good = False
        if not good:
            return False
        for index, step in enumerate(steps):
            good = self.values.text(step, f"{told}[{index}]") is not None and good
        for index, label in enumerate(labels):
            good = self.values.label(label, f"{marks}[{index}]") is not None and good
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
            return self.messages.conversation(value, column) is not None
        self.values.wrong(value, column, later("text"))
        return False

    def _answer(self, value: object, where: str, prompt: object = None) -> int | None:
        """Return the characters of a good answer: text, or messages of which the last is the assistant's.

        An answer may repeat its `prompt` in front; without one (an implicit prompt) it may start as it likes.
        """
        if not self.reading.conversational:
            text = self.values.text(value, where)
            return None if text is None else len(text)
        if type(value) is dict:
            role = self.messages.message(value, where)
            if role is None:
                return None
            if role != "assistant":
                self.error("no-assistant", where)
                return None
            return self.messages.length(value)
        found = self.messages.conversation(value, where)
        if found is None:
            return None
        if found[0] != "assistant":
            self.error("last-not-assistant" if found[1] else "no-assistant", where)
            return None
        if prompt is None or not isinstance(value, list):
            return found[2]
        cut = repeated_prompt(prompt, value, self.reading)
        if not self.messages.is_answer(value[cut]):
            self.error("not-an-answer", f"{where}[{cut}]", found=value[cut][self.messages.role_key])
            return None
        return found[2] - self.messages.characters(value[:cut])
