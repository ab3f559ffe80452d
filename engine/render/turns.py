"""Where the turns of the assistant stand in a rendered conversation: words, reasoning, calls, and the mark that ends each.

No template says so itself. A turn is found by rendering the conversation again with other words in its place: what
changes is the turn, and what stands before and after it is not. It begins where the base would begin to write, and ends
with the mark after which the base stops. How a template ends turns is found out once, on a made-up conversation.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

from engine.render.template import Form, Message, NotWritten, Template, for_template
from engine.words import Problem

# Words that share no first and no last character, and mean nothing to any template.
_ONE, _OTHER = "kv1w", "zj2q"
_QUESTION, _ANSWER, _SECOND_QUESTION, _SECOND_ANSWER = "ub3h", "na4f", "ic5y", "oe6d"
_RESULT, _TOOL, _VALUE = "gd7s", "tm8p", "rx9l"
_ID = "call12345"  # some templates want nine characters
_THINKING = ("<think", "</think")


class Turn(NamedTuple):
    """The characters of one assistant turn, as far as it would be trained; `mark` ends it ("" where nothing does)."""

    index: int
    start: int
    end: int
    mark: str


class Written(NamedTuple):
    """A rendered conversation, its assistant turns, and what of the row the template leaves out, with how often:
    reasoning, words (beside a call), system, result, tools."""

    text: str
    turns: list[Turn]
    dropped: dict[str, int]


class Known(NamedTuple):
    """What surrounds a plain answer after a question: `head` before it, of which the last `gap` characters belong to the
    answer (a template may write an empty <think> there), and the mark after it."""

    head: str
    gap: int
    mark: str


class Turns:
    """Finds the turns that one template writes. `tokens`: what the tokenizer takes for one token, whatever is around."""

    def __init__(self, template: Template, tokens: Iterable[str]):
        self.template = template
        ordered = sorted(filter(None, tokens), key=len, reverse=True)
        self._any_mark = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

    def render(self, messages: list[Message], tools: Any = None, *, ask: bool = False) -> str:
        """The text of messages of canonical rows. Raises NotWritten."""
        return self.template.render(for_template(messages, self.form), tools, ask=ask)

    def find(self, messages: list[Message], tools: Any = None) -> Written:
        """Return the rendered conversation and its assistant turns. Raises NotWritten when the template refuses the
        conversation, leaves out a call of it, or when a turn cannot be found in what it writes."""
        whole = self.render(messages, tools)
        turns: list[Turn] = []
        simple = not any(self._any_mark.search(text) or any(t in text for t in _THINKING) for text in _texts(messages))
        position = 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            turn = self._quickly(whole, messages, index, position) if simple else None
            turn = turn or self._carefully(whole, messages, index, tools)
            turns.append(turn)
            position = turn.end
        return Written(whole, turns, _dropped(whole, messages, tools))

    # What is known of the template.

    @cached_property
    def form(self) -> Form:
        """What the template takes messages as. Raises NotWritten when it writes the words of no message."""
        form = Form()
        written = ""
        for form in (Form(), Form(parts=True)):
            try:
                written = self.template.render(for_template(_conversation(), form))
            except NotWritten:
                if form.parts:
                    raise
            if all(words in written for words in (_QUESTION, _ANSWER, _SECOND_QUESTION, _SECOND_ANSWER)):
                break
        else:
            raise NotWritten(Problem(rule="template-no-words"))
        form = form._replace(thought=self._thought(form))
        asked = [_user(_QUESTION), _called()]
        for text_arguments, no_words in product((False, True), ("", None)):
            tried = form._replace(text_arguments=text_arguments, no_words=no_words)
            with suppress(NotWritten):
                written = self.template.render(for_template(asked, tried))
                # Python's own way to write an object is no JSON, and an object that is text already is quoted twice.
                quoted = f"{{'{_VALUE}'" in written or f'\\"{_VALUE}' in written
                if _TOOL in written and _VALUE in written and not quoted and "None" not in written:
                    return tried
        return form._replace(calls=False)

    def _thought(self, form: Form) -> str:
        """The key under which the template looks for reasoning; the usual one where it finds none."""
        for key in ("reasoning_content", "reasoning", "thinking"):
            message = {"role": "assistant", "content": _ANSWER, "reasoning_content": _RESULT}
            tried = for_template([_user(_QUESTION), message], form._replace(thought=key))
            with suppress(NotWritten):
                if _RESULT in self.template.render(tried):
                    return key
        return form.thought

    @cached_property
    def asks(self) -> str:
        """What the template writes where an answer begins, after a question."""
        messages = [_user(_QUESTION)]
        plain, asked = self.render(messages), self.render(messages, ask=True)
        same, _ = self._whole_marks(asked, _shared(plain, asked), len(asked))
        return asked[same:]

    @cached_property
    def _begins(self) -> list[str]:
        """Where an answer can begin, best first: after all of that, or after less of it, up to a mark or a line's end."""
        cuts = {match.end() for match in self._any_mark.finditer(self.asks)}
        cuts |= {match.end() for match in re.finditer("\n", self.asks)} | {len(self.asks)}
        return [self.asks[:cut] for cut in sorted(cuts, reverse=True) if cut]

    @cached_property
    def answer_marks(self) -> tuple[str, str]:
        """The marks after an answer: of a conversation's last one, and before the next question. "" where none is.

        Where no mark is a token of the base, it is the text that follows every answer."""
        whole = self.render(_conversation())
        last = self._first_mark(whole[_after(whole, _SECOND_ANSWER) :])
        between = whole[_after(whole, _ANSWER) : whole.index(_SECOND_QUESTION)]
        first = self._first_mark(between)
        if not last and not first:
            following = whole[_after(whole, _SECOND_ANSWER) :]
            last = first = following[: _shared(following, between)].strip()
        return last, first

    @cached_property
    def call_marks(self) -> tuple[str, ...]:
        """The mark after a tool call; () where there is none, or the template writes no calls."""
        messages = [_user(_QUESTION), _called()]
        result = {"role": "tool", "content": _RESULT, "tool_call_id": _ID, "name": _TOOL}
        if not self.form.calls:
            return ()
        alone = self.render(messages)
        closing = self._marks(alone[_after(alone, _VALUE) :])
        following: list[str] = []
        with suppress(NotWritten):
            more = self.render([*messages, result])
            if _VALUE in more and _RESULT in more:
                following = self._marks(more[_after(more, _VALUE) : more.rindex(_RESULT)])
        same = next((mark for mark in (*closing, *following) if mark in self.answer_marks), "")
        if same or self.answer_marks[0]:
            return tuple(filter(None, [same])) or tuple(closing[-1:])
        # The mark of whoever speaks next ends a turn: what stands there beyond what closes the call.
        return tuple(following[len(closing) :][:1])

    @cached_property
    def _known(self) -> list[Known]:
        """How plain answers stand after a question: earlier ones, and the last."""
        messages = _conversation()
        whole = self.render(messages)
        found = []
        for index, words, before in ((1, _ANSWER, _QUESTION), (3, _SECOND_ANSWER, _SECOND_QUESTION)):
            turn = self._carefully(whole, messages, index, None)
            at = whole.index(words)
            found.append(Known(whole[_after(whole, before) : at], at - turn.start, turn.mark))
        return found

    def marks(self) -> set[str]:
        """Every mark that ends a turn with this template."""
        return set(filter(None, (*self.answer_marks, *self.call_marks)))

    def _first_mark(self, text: str) -> str:
        found = self._any_mark.match(text.lstrip())
        return found.group() if found else ""

    def _marks(self, text: str) -> list[str]:
        return self._any_mark.findall(text)

    # Finding one turn.

    def _quickly(self, whole: str, messages: list[Message], index: int, position: int) -> Turn | None:
        """Find a plain answer to a question by what stands around it: no text of the conversation holds a mark."""
        content, before = messages[index].get("content"), messages[index - 1] if index else None
        if not content or before is None or before["role"] != "user" or not before.get("content"):
            return None
        if messages[index].keys() - {"role", "content", "name"}:
            return None
        for known in self._known:
            if not known.mark or not self._any_mark.search(known.head):
                continue
            for words in dict.fromkeys((content, content.strip())):
                at = whole.find(known.head + words, position)
                if at < 0:
                    continue
                ends = at + len(known.head) + len(words)
                after = len(whole[ends : ends + 8]) - len(whole[ends : ends + 8].lstrip())
                if whole.startswith(known.mark, ends + after):
                    return Turn(index, at + len(known.head) - known.gap, ends + after + len(known.mark), known.mark)
        return None

    def _carefully(self, whole: str, messages: list[Message], index: int, tools: Any) -> Turn:
        """Find a turn by rendering the conversation with other words in its place."""
        calls = bool(messages[index].get("tool_calls"))
        if calls and not self.form.calls and not messages[index].get("call_text"):
            raise NotWritten(Problem(rule="calls-not-written", parameters={"turn": index + 1}))
        changed = self._changed(whole, messages, index, tools)
        if changed is None:
            raise NotWritten(Problem(rule="turn-not-found", parameters={"turn": index + 1}))
        start = self._start(whole, messages, index, tools, changed[0])
        end, mark = self._end(whole, messages, index, changed[1])
        turn = Turn(index, min(start, end), end, mark)
        if messages[index].get("tool_calls"):
            self._check_call(whole, messages, turn, tools)
        return turn

    def _check_call(self, whole: str, messages: list[Message], turn: Turn, tools: Any) -> None:
        """Raise NotWritten when a call is not in the turn, or something of another turn is."""
        written = whole[turn.start : turn.end]
        message = for_template([messages[turn.index]], self.form)[0]
        for call in message.get("tool_calls") or []:
            name = call["function"]["name"] if isinstance(call, dict) and isinstance(call.get("function"), dict) else ""
            if str(name) not in written:
                raise NotWritten(Problem(rule="calls-not-written", parameters={"turn": turn.index + 1}))
        if turn.index + 1 < len(messages):
            following = self._changed(whole, messages, turn.index + 1, tools)
            if following is not None and following[0] < turn.end:
                raise NotWritten(Problem(rule="turns-mixed", parameters={"turn": turn.index + 1}))

    def _changed(self, whole: str, messages: list[Message], index: int, tools: Any) -> tuple[int, int] | None:
        """The characters that are others when the turn has other words; None when none are."""
        # The name of a tool is changed only where nothing else can be: results may repeat it.
        for names in (False, True):
            start, end = len(whole), 0
            for words in (_ONE, _OTHER):
                other = self._other(messages, index, words, tools, names=names)
                if other is None or other == whole:
                    break
                same = _shared(whole, other)
                most = min(len(whole), len(other)) - same
                tail = _shared(whole[len(whole) - most :][::-1], other[len(other) - most :][::-1])
                start, end = min(start, same), max(end, len(whole) - tail)
            else:
                return self._whole_marks(whole, start, end)
        return None

    def _other(self, messages: list[Message], index: int, words: str, tools: Any, *, names: bool) -> str | None:
        try:
            return self.render(_with(messages, index, words, names=names), tools)
        except NotWritten:
            return None

    def _whole_marks(self, whole: str, start: int, end: int) -> tuple[int, int]:
        for match in self._any_mark.finditer(whole):  # a mark is one token: it changes as a whole
            if match.start() < start < match.end():
                start = match.start()
            if match.start() < end < match.end():
                end = match.end()
        return start, end

    def _start(self, whole: str, messages: list[Message], index: int, tools: Any, changed: int) -> int:
        """Where the base would begin to write."""
        try:
            before = self.render(messages[:index], tools, ask=True)
            if whole.startswith(before):
                return len(before)
        except NotWritten:
            pass  # some templates refuse what has no question in it
        # Written otherwise than asked for: as by templates that leave out earlier reasoning.
        least = self._least(whole, messages, index, changed)
        for begin in self._begins:
            at = whole.rfind(begin, least, changed)
            if at >= 0:
                return at + len(begin)
        return changed

    def _least(self, whole: str, messages: list[Message], index: int, changed: int) -> int:
        """A place in front of which the turn cannot begin: the last words of the message before it."""
        words = (messages[index - 1].get("content") or "").strip() if index else ""
        return max(0, whole.rfind(words, 0, changed)) + len(words) if words else 0

    def _end(self, whole: str, messages: list[Message], index: int, changed: int) -> tuple[int, str]:
        """Where the turn ends, and the mark that ends it."""
        marks = [*(self.call_marks if messages[index].get("tool_calls") else ()), *self.answer_marks]
        marks = list(filter(None, marks))
        for mark in marks:  # a mark may be another for other words: then it has changed too
            if self._first_mark(mark) and whole.endswith(mark, 0, changed):
                return changed, mark
        following = (messages[index + 1].get("content") or "").strip() if index + 1 < len(messages) else ""
        limit = whole.find(following, changed) if following else -1
        found = [(at, mark) for mark in marks if (at := whole.find(mark, changed, limit if limit >= 0 else None)) >= 0]
        if found:
            at, mark = min(found)
            return at + len(mark), mark
        is_last = index == len(messages) - 1
        return (max(changed, len(whole.rstrip())) if is_last else changed), ""


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if one[least:middle] == other[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _called() -> Message:
    """A turn that calls a tool and says nothing."""
    call = {"type": "function", "id": _ID, "function": {"name": _TOOL, "arguments": {_VALUE: _VALUE}}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _conversation() -> list[Message]:
    answers = ({"role": "assistant", "content": text} for text in (_ANSWER, _SECOND_ANSWER))
    questions = map(_user, (_QUESTION, _SECOND_QUESTION))
    return [message for pair in zip(questions, answers, strict=True) for message in pair]


def _dropped(whole: str, messages: list[Message], tools: Any) -> dict[str, int]:
    """What of a conversation does not stand in what was written, with how often."""
    found: Counter[str] = Counter()
    for message in messages:
        content, role = message.get("content") or "", message["role"]
        thought = message.get("reasoning_content") or ""
        if role == "assistant" and "</think>" in content:
            inside, _, content = content.partition("</think>")
            thought = thought or inside.partition("<think>")[2]
        if thought.strip() and thought.strip() not in whole:
            found["reasoning"] += 1
        content = content.strip()
        if content and content not in whole and json.dumps(content, ensure_ascii=False)[1:-1] not in whole:
            found[{"system": "system", "tool": "result"}.get(role, "words")] += 1
    for tool in tools or []:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        if isinstance(function, dict) and str(function.get("name")) not in whole:
            found["tools"] += 1
    return dict(found)


def _after(text: str, words: str) -> int:
    return text.rindex(words) + len(words)


def _texts(messages: list[Message]) -> Iterable[str]:
    for message in messages:
        yield message.get("content") or ""


def _with(messages: list[Message], index: int, words: str, *, names: bool) -> list[Message]:
    """The conversation with other words in one turn, which keeps its shape: calls stay calls, of the same ids."""
    message = dict(messages[index])
    for key in ("content", "reasoning_content", "call_text"):
        if message.get(key):
            message[key] = words
    calls = message.get("tool_calls")
    calls = json.loads(calls) if isinstance(calls, str) else calls
    if calls:
        message["tool_calls"] = [_other_call(call, words, names=names) for call in calls]
    return [*messages[:index], message, *messages[index + 1 :]]


def _other_call(call: Any, words: str, *, names: bool) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    name = words if names else function.get("name")
    arguments = {words: words} if function.get("arguments") else function.get("arguments")
    return {**call, "function": {**function, "name": name, "arguments": arguments}}
