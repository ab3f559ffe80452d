"""The rules for one row of each reading: every error and warning of a row, with its place inside the row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xxhash import xxh3_64_intdigest as hash64

from engine.check.ledger import Ledger
from engine.check.message_rules import Found, MessageRules
from engine.check.piece import Lengths, Piece
from engine.check.prompts import (
    ASSISTANT_MARK,
    Side,
    prompt_value,
    repeated_prompt,
    shared_messages,
    shared_transcript,
    sides,
    transcript,
)
from engine.check.value_rules import ValueRules
from engine.read import formats, texts, turns
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
            if "rejected" in fields:
                return self._messages_pair
            return self._judged_messages if "label" in fields else self._messages
        if "steps" in fields:
            return self._steps
        if self.reading.layout.type == "preference":
            return self._pair
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
        good = self._beside(row) if len(row) > 1 or self.messages.tools else True
        found = self.messages.conversation(row[column], column)
        if found is None or not good:
            return False
        if not found.answers:
            self.error("no-assistant", column)
            return False
        if not found.trained:
            self.error("nothing-trained", column)
            return False
        if found.last != "assistant":
            self.warn("ends-without-assistant", column, role=found.last)
        self._two_systems(row, row[column])
        self.target_characters += found.characters
        return True

    def _prompt_messages(self, row: dict[str, Any]) -> bool:
        column = self.fields["messages"]
        good = self._beside(row)
        if self.messages.conversation(row[column], column) is None or not good:
            return False
        self._two_systems(row, row[column])
        return True

    def _judged_messages(self, row: dict[str, Any]) -> bool:
        fields = self.fields
        column = fields["messages"]
        good = self._beside(row)
        good = self._ends_with_answer(row[column], column) and good
        label = self.values.label(row[fields["label"]], fields["label"])
        if not good or label is None:
            return False
        self._two_systems(row, row[column])
        self.labels[label] += 1
        self.judgements = (judgement(row[column][:-1], row[column][-1], label),)
        # Only the last message is judged.
        self.target_characters += self.messages.length(row[column][-1])
        return True

    def _ends_with_answer(self, messages: object, where: str) -> bool:
        """Check a conversation whose last message is judged or compared."""
        found = self.messages.conversation(messages, where)
        if found is None or not isinstance(messages, list):
            return False
        if found.last != "assistant":
            self.error("last-not-assistant" if found.answers else "no-assistant", where)
            return False
        if not self.messages.is_trained(messages[-1:]):
            self.error("nothing-trained", f"{where}[{len(messages) - 1}]")
            return False
        return True

    def _messages_pair(self, row: dict[str, Any]) -> bool:
        """A conversation, and a worse answer than its last beside it."""
        column, worse = self.fields["messages"], self.fields["rejected"]
        good = self._beside(row)
        good = self._ends_with_answer(row[column], column) and good
        prompt = row[column][:-1] if good else None
        rejected = self._answer(row[worse], worse, prompt)
        if not good or rejected is None:
            return False
        self._two_systems(row, row[column])
        last = row[column][-1]
        return self._compared(
            prompt, Side(last, f"{column}[-1]"), Side(row[worse], worse), (self.messages.length(last), rejected)
        )

    def _prompt_row(self, row: dict[str, Any]) -> bool:
        column = self.fields["prompt"]
        good = self._beside(row)
        if not self.reading.conversational:
            return self.values.text(row[column], column) is not None and good
        if self.messages.conversation(row[column], column) is None or not good:
            return False
        self._two_systems(row, row[column])
        return True

    def _completion(self, row: dict[str, Any]) -> bool:
        fields = self.fields
        good = self._beside(row)
        good = self._prompt(row) and good
        characters = self._answer(row[fields["completion"]], fields["completion"], row[fields["prompt"]])
        if "label" in fields:
            label = self.values.label(row[fields["label"]], fields["label"])
            if not good or characters is None or label is None:
                return False
            self.labels[label] += 1
            self.judgements = (judgement(row[fields["prompt"]], row[fields["completion"]], label),)
        elif not good or characters is None:
            return False
        self.target_characters += characters
        self._two_systems(row, prompt_value(row, self.reading))
        self.values.leak(row[fields["prompt"]], row[fields["completion"]], fields["completion"])
        return True

    def _pair(self, row: dict[str, Any]) -> bool:
        fields = self.fields
        good = self._beside(row)
        pair = sides(row, fields)
        if pair is None:
            self._no_pair(row)
            return False
        if "ranking" in fields and len(row[fields["ranking"]]) > 2:
            self.warn("ranking-ends", fields["ranking"])
        if "prompt" not in fields:
            good = self._implicit_pair(pair) and good
            if good:
                self._two_systems(row, pair[0].value)
            return good
        good = self._prompt(row) and good
        prompt = row[fields["prompt"]]
        lengths = [self._answer(side.value, side.where, prompt) for side in pair]
        if not good or lengths[0] is None or lengths[1] is None:
            return False
        if isinstance(prompt, str) and self.reading.conversational and not self._same_start(prompt, pair):
            return False
        self._two_systems(row, prompt_value(row, self.reading))
        return self._compared(prompt, *pair, (lengths[0], lengths[1]))

    def _no_pair(self, row: dict[str, Any]) -> None:
        """Note that a row of two answers does not say which is the better one, or has no two."""
        if "ranking" in self.fields:
            column = self.fields["ranking"]
            self.values.wrong(row[column], column, later("a list of answers, the best first"))
            return
        column = self.fields["winner"]
        said = row[column]
        if said is None:
            self.values.wrong(None, column, later("the better of the two"))
        elif isinstance(said, str) and texts.is_blank(said):
            self.error("blank-field", column)
        else:
            shown = texts.short(str(said)) if isinstance(said, str | int | float) else texts.kind_of(said)
            self.error("no-winner", column, found=shown)

    def _same_start(self, prompt: str, pair: tuple[Side, Side]) -> bool:
        """Check that what two answers repeat of a prompt that is text, with system turns before it, is the same."""
        lists = [side.value for side in pair if isinstance(side.value, list)]
        starts = [value[: repeated_prompt(prompt, value, self.reading)] for value in lists]
        if len(starts) == 2 and starts[0] != starts[1]:
            self.error("no-shared-prompt", chosen=pair[0].where, rejected=pair[1].where)
            return False
        return True

    def _compared(self, prompt: object, better: Side, worse: Side, lengths: tuple[int, int]) -> bool:
        """Check that two good answers differ, and count them."""
        one, other = self._words(better.value), self._words(worse.value)
        if better.value == worse.value or one == other != "":
            self.error("equal-pair", worse.where, other=better.where)
            return False
        if one.split() == other.split() != []:
            self.warn("nearly-equal-pair", worse.where, other=better.where)
        self.values.leak(prompt, better.value, better.where)
        self.judgements = (pair_judgement(prompt, better.value, worse.value),)
        self.lengths.add(*lengths)
        self.target_characters += sum(lengths)
        return True

    def _words(self, answer: object) -> str:
        """The text of an answer that is text or a single message without calls of tools; "" for any other."""
        if isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        if isinstance(answer, dict) and not turns.has_calls(answer, self.reading.style):
            return turns.words_of(answer, self.reading.style)
        return answer if isinstance(answer, str) else ""

    def _implicit_pair(self, pair: tuple[Side, Side]) -> bool:
        (chosen, better), (rejected, worse) = pair
        if self.reading.conversational:
            good = self._answer(chosen, better) is not None
            good = self._answer(rejected, worse) is not None and good
        else:
            good = self.values.text(chosen, better) is not None
            good = self.values.text(rejected, worse) is not None and good
        if not good:
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
            for tail, where in zip(tails, (better, worse), strict=True):
                if not self.messages.is_trained(tail):
                    self.error("nothing-trained", where)
                    return False
            lengths = [self.messages.characters(tail) for tail in tails]
            self.lengths.add(*lengths)
            self.judgements = (pair_judgement(chosen[:shared], *tails),)
            self.target_characters += sum(lengths)
            return True
        return self._transcripts(*pair)

    def _transcripts(self, chosen: Side, rejected: Side) -> bool:
        """Two conversations that are told as one text each."""
        cut = shared_transcript(chosen.value, rejected.value)
        if cut is None:
            self.error("no-shared-prompt", chosen=chosen.where, rejected=rejected.where)
            return False
        lengths = []
        for text, where in (chosen, rejected):
            told = transcript(text[cut:])
            if told and told[-1][0] != "assistant":
                self.error("last-not-assistant", where)
                return False
            if not told or texts.is_blank(told[-1][1]):
                self.error("blank-field", where)
                return False
            lengths.append(sum(len(words) for role, words in told if role == "assistant"))
        asked = chosen.value[:cut]
        if texts.is_blank(asked.removesuffix(ASSISTANT_MARK)):
            self.warn("blank-prompt", chosen.where)
        self.lengths.add(*lengths)
        better, worse = chosen.value[cut:], rejected.value[cut:]
        self.judgements = (pair_judgement(asked, better, worse),)
        self.target_characters += sum(lengths)
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

    def _beside(self, row: dict[str, Any]) -> bool:
        """Check the optional columns of a row, and hold the names of its tools for the calls in it."""
        good = self.values.extras(row)
        self.messages.tools = self.values.tool_names
        return good

    def _two_systems(self, row: dict[str, Any], messages: object) -> None:
        """Warn where a row has a system text and, first of its good messages, another."""
        text = row.get(self.fields.get("system", ""))
        if not text or texts.is_blank(text) or not isinstance(messages, list) or not messages:
            return
        style = self.reading.style
        if style.roles[messages[0][style.role_key]] == "system" and turns.words_of(messages[0], style) != text:
            self.warn("two-systems", self.fields["system"])

    def _prompt(self, row: dict[str, Any]) -> bool:
        column = self.fields["prompt"]
        value = row[column]
        if type(value) is str:
            if texts.is_blank(value):
                self.warn("blank-prompt", column)
            return True
        if not self.reading.conversational:
            self.values.wrong(value, column, later("text"))
            return False
        for meaning in ("input", "context"):
            if row.get(self.fields.get(meaning, "")):
                self.warn("unread-column", self.fields[meaning])
        # A conversation with nothing before the answer is a blank prompt.
        if value == [] and type(value) is list:
            self.warn("blank-prompt", column)
            return True
        return self.messages.conversation(value, column) is not None

    def _answer(self, value: object, where: str, prompt: object = None) -> int | None:
        """Return the characters of a good answer: text, or messages of which the last is the assistant's.

        An answer may repeat its `prompt` in front; without one (an implicit prompt) it may start as it likes.
        """
        if not self.reading.conversational or type(value) is str:
            text = self.values.text(value, where)
            return None if text is None else len(text)
        if type(value) is dict:
            role = self.messages.message(value, where)
            if role is None:
                return None
            if role != "assistant":
                self.error("no-assistant", where)
                return None
            return self._trained([value], where)
        found: Found | None = self.messages.conversation(value, where)
        if found is None or not isinstance(value, list):
            return None
        if found.last != "assistant":
            self.error("last-not-assistant" if found.answers else "no-assistant", where)
            return None
        if prompt is None:
            return found.characters
        cut = repeated_prompt(prompt, value, self.reading)
        if not self.messages.is_answer(value[cut]):
            self.error("not-an-answer", f"{where}[{cut}]", found=value[cut][self.messages.role_key])
            return None
        return self._trained(value[cut:], where)

    def _trained(self, messages: list[dict[str, Any]], where: str) -> int | None:
        """The trained characters of an answer, or None after noting that none of its turns is trained."""
        if not self.messages.is_trained(messages):
            self.error("nothing-trained", where)
            return None
        return self.messages.characters(messages)
