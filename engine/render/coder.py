"""A base's tokenizer and chat template together: conversations and texts as token ids, and what ends and begins them.

Made from the files of a base alone, for pages and checks, or from a tokenizer that a run has loaded; both give the same
ids for the same row.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from engine.render.template import SPECIAL, Message, NotWritten, Template, plain_template
from engine.render.turns import Turns, Written
from engine.words import Problem
from engine.workspace import read_object, read_regular, regular

# What ends a process whatever it reads.
NOT_OF_THE_FILE = (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)


class NoTokenizer(Exception):
    """The tokens of a base cannot be counted here; `problem` says why."""

    def __init__(self, rule: str, **parameters: str):
        self.problem = Problem(rule=rule, parameters=dict(parameters))
        super().__init__(self.problem.sentence)

    @classmethod
    def of(cls, problem: Problem) -> NoTokenizer:
        """The same for a problem that was told elsewhere."""
        made = cls(problem.rule)
        made.problem, made.args = problem, (problem.sentence,)
        return made


class Coded(NamedTuple):
    """Token ids with the characters of the text each stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Coder:
    """Turns canonical rows into what one base reads. `template` is None for a base without one, which gets ours; `stops`
    are the ids at which the base's own files say that generation stops; `day` is what a template takes for today."""

    def __init__(
        self,
        tokenizer: Any,
        special: dict[str, str],
        template: str | None,
        *,
        stops: tuple[int, ...] = (),
        day: str | None = None,
    ):
        """`tokenizer` is one of the tokenizers library. Raises NotWritten when the template cannot be compiled."""
        self.tokenizer, self.special = tokenizer, special
        self.is_plain = not template
        self.template = Template(template or plain_template(starts_with_bos=self.starts_with_bos), special, day)
        self.turns = Turns(self.template, self._added)
        self._own_stops = stops

    @classmethod
    def of_folder(cls, folder: Path | None, name: str, day: str | None = None) -> Coder:
        """The coder of the base whose files lie in a folder. Raises NoTokenizer when they cannot be used."""
        from tokenizers import Tokenizer

        if folder is None or not (folder / "tokenizer.json").is_file():
            raise NoTokenizer("tokenizer-none", base=name[:80])
        try:
            tokenizer = Tokenizer.from_file(str(regular(folder / "tokenizer.json")))
        except BaseException as error:  # the library raises bare Exceptions, and what is none when its own code panics
            if isinstance(error, NOT_OF_THE_FILE):
                raise
            raise NoTokenizer("tokenizer-broken", base=name[:80]) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        special = special_tokens(folder)
        _begin_as_told(tokenizer, special, read_object(folder / "tokenizer_config.json"))
        try:
            return cls(tokenizer, special, own_template(folder), stops=own_stops(folder), day=day)
        except NotWritten as error:
            raise NoTokenizer("tokenizer-broken", base=name[:80]) from error

    # What begins and ends a text.

    @cached_property
    def starts_with_bos(self) -> bool:
        """Whether the tokenizer puts its beginning-of-text token in front of every text."""
        bos = self.tokenizer.token_to_id(self.special.get("bos_token", ""))
        return bos is not None and self._encode("a").ids[:1] == [bos]

    @cached_property
    def end(self) -> int | None:
        """The id of the end-of-text token."""
        return self.tokenizer.token_to_id(self.special.get("eos_token", ""))

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Every id at which an answer is over: where the base's files say so, its end-of-text token, and the marks that
        its template ends turns with. A base that is stopped by the first two alone may write on after its turn."""
        marks = [] if self.is_plain else [self._added.get(mark) for mark in self.end_marks]
        return tuple(sorted({one for one in (*self._own_stops, self.end, *marks) if one is not None}))

    @cached_property
    def turn_end(self) -> int | None:
        """The id that ends an answer: of the mark that the template puts after the last one, where that is a token, else
        of the end-of-text token."""
        try:
            return self._added.get(self.turns.answer_marks[0], self.end)
        except NotWritten:
            return self.end

    @cached_property
    def closing(self) -> tuple[str, str]:
        """What ends the last answer of a conversation: the mark that the template writes, "" for none, and the
        end-of-text token that is put behind it where that mark is no token. Raises NotWritten."""
        mark = self.turns.answer_marks[0]
        return mark, "" if mark in self._added else self.special.get("eos_token", "")

    @cached_property
    def end_marks(self) -> set[str]:
        """The marks that end turns; none when the template does not write a plain conversation."""
        try:
            return self.turns.marks()
        except NotWritten:
            return set()

    @cached_property
    def written_starts(self) -> int:
        """How many beginning-of-text tokens stand in front of a conversation."""
        bos = self.special.get("bos_token")
        if not bos:
            return 0
        text = self.turns.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        count = 0
        while text.startswith(bos, count * len(bos)):
            count += 1
        return count

    # Rows.

    def write(self, messages: list[Message], tools: str | None = None) -> Written:
        """A conversation of canonical messages as the base reads it, with its assistant turns. Where no token
        ends its last answer, the end-of-text token is put there, so that stopping is learned. Raises NotWritten."""
        told = json.loads(tools) if tools else None
        written = self.turns.find(messages, told)
        end = self.special.get("eos_token", "")
        last = written.turns[-1] if written.turns else None
        if last is None or last.mark in self._added or last.index != len(messages) - 1 or not end:
            return written
        text = written.text[: last.end] + end
        return written._replace(text=text, turns=[*written.turns[:-1], last._replace(end=len(text), mark=end)])

    def ask(self, messages: list[Message], tools: str | None = None) -> str:
        """A conversation up to where the base's answer begins. Raises NotWritten."""
        return self.turns.render(messages, json.loads(tools) if tools else None, ask=True)

    def code(self, text: str) -> Coded:
        """The tokens of a rendered conversation, which holds its special tokens already."""
        coded = self._encode(text, add_special_tokens=False)
        return Coded(coded.ids, coded.offsets)

    def text_ids(self, text: str) -> list[int]:
        """The tokens of a plain text from its beginning to its end, each marked once, also where the text has the marks
        already."""
        ids = self._encode(text).ids
        bos = self.special.get("bos_token")
        if self.starts_with_bos and bos and text.startswith(bos):
            ids = ids[1:]
        if self.end is None:
            return ids
        while ids[-2:-1] == [self.end] == ids[-1:]:
            ids = ids[:-1]
        written = self._encode(text.rstrip(), add_special_tokens=False).ids[-1:]
        return ids if ids[-1:] == [self.end] or (written and written[0] in self.stops) else [*ids, self.end]

    def _encode(self, text: str, *, add_special_tokens: bool = True) -> Any:
        """The library's encoding of a text. Raises NotWritten where it fails, as an expression that it cannot match does."""
        try:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except BaseException as error:  # a panic of the library is no Exception
            if isinstance(error, NOT_OF_THE_FILE):
                raise
            raise NotWritten(Problem(rule="tokenizer-refuses", parameters={"reason": str(error)[:200]})) from error

    @cached_property
    def _added(self) -> dict[str, int]:
        """What is one token wherever it stands, with its id."""
        added = self.tokenizer.get_added_tokens_decoder().items()
        return {token.content: number for number, token in added if token.content.strip()}


def own_template(folder: Path) -> str | None:
    """The chat template that came with a base, or None."""
    try:
        return read_regular(folder / "chat_template.jinja").decode("utf-8") or None
    except (OSError, UnicodeDecodeError):
        pass
    own = read_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(own, list):  # several by name
        own = next((one.get("template") for one in own if isinstance(one, dict) and one.get("name") == "default"), None)
    return own if isinstance(own, str) and own else None


def own_stops(folder: Path) -> tuple[int, ...]:
    """The ids at which a base's own files say that generation stops."""
    for name in ("generation_config.json", "config.json"):
        found = read_object(folder / name).get("eos_token_id")
        ids = found if isinstance(found, list) else [found]
        if known := tuple(one for one in ids if type(one) is int and one >= 0):
            return known
    return ()


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that a template may name, as the files of a base give them."""
    settings = {**read_object(folder / "special_tokens_map.json"), **read_object(folder / "tokenizer_config.json")}
    return {kind: text for kind in SPECIAL if (text := _token(settings.get(kind)))}


def _token(value: object) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _begin_as_told(tokenizer: Any, special: dict[str, str], settings: dict[str, Any]) -> None:
    """Let the tokenizer mark beginnings and ends as its settings say, as transformers 5.17 does
    (TokenizersBackend.update_post_processor)."""
    from tokenizers.processors import TemplateProcessing

    if "add_bos_token" not in settings and "add_eos_token" not in settings and tokenizer.post_processor is not None:
        return
    wanted = [
        special[kind] if settings.get(told) is True and tokenizer.token_to_id(special.get(kind, "")) is not None else ""
        for kind, told in (("bos_token", "add_bos_token"), ("eos_token", "add_eos_token"))
    ]
    single = " ".join(filter(None, (wanted[0], "$A", wanted[1])))
    marks = [(mark, tokenizer.token_to_id(mark)) for mark in set(filter(None, wanted))]
    tokenizer.post_processor = TemplateProcessing(single=single, pair="$A $B", special_tokens=marks)
