"""A chat template, compiled and rendered without transformers, as transformers would (utils/chat_template_utils.py, 5.17).

Rendering is jinja2 in its sandbox, since a template comes with a model and is not trusted. What a template raises, and
what goes wrong in it because a row is not as it expects, comes out as one error.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import date, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from engine.words import Problem

# For bases without a chat template. Plain words, so that no new token has to be learned; saved with the tokenizer.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "### Answer:\n{{ message['content'] }}{{ eos_token }}\n"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% else %}### Question:\n{{ message['content'] }}\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Answer:\n{% endif %}"
)
# The same where the tokenizer puts a mark in front of every text: a template writes its special tokens itself.
PLAIN_TEMPLATE_WITH_BOS = "{{ bos_token }}" + PLAIN_TEMPLATE
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Message = dict[str, Any]


class NotWritten(Exception):
    """A template does not write a row; `problem` says why."""

    def __init__(self, problem: Problem):
        self.problem = problem
        super().__init__(problem.sentence)


def plain_template(*, starts_with_bos: bool) -> str:
    """Return the template of a base that has none."""
    return PLAIN_TEMPLATE_WITH_BOS if starts_with_bos else PLAIN_TEMPLATE


def is_plain(source: str | None) -> bool:
    """Whether a template is one of ours for bases that have none."""
    return source in (PLAIN_TEMPLATE, PLAIN_TEMPLATE_WITH_BOS)


class Form(NamedTuple):
    """What a template takes messages as: `calls` whether it writes tool calls at all; `text_arguments` their arguments as
    JSON text instead of objects; `no_words` what stands for the words of a call without any; `parts` words as a list of
    parts, as templates of models that also see pictures want them; `thought` the key it looks for reasoning under."""

    calls: bool = True
    text_arguments: bool = False
    no_words: str | None = ""
    parts: bool = False
    thought: str = "reasoning_content"


def for_template(messages: list[Message], form: Form) -> list[Message]:
    """Messages of canonical rows as a template expects them: no nulls, tool calls as objects. Where it writes no calls,
    a turn that stood as text in the file, words and call, is that text again."""
    shown = []
    for message in messages:
        kept = {key: value for key, value in message.items() if value is not None and key not in ("train", "call_text")}
        if "reasoning_content" in kept:
            kept[form.thought] = kept.pop("reasoning_content")
        if "tool_calls" in kept:
            if message.get("call_text") and not form.calls:
                del kept["tool_calls"]
                kept["content"] = message["call_text"]
            else:
                kept["tool_calls"] = _calls(kept["tool_calls"], form)
                kept["content"] = kept.get("content") or form.no_words
        if form.parts and kept.get("content") is not None:
            kept["content"] = [{"type": "text", "text": kept["content"]}]
        shown.append(kept)
    return shown


def _calls(calls: Any, form: Form) -> Any:
    """Tool calls with their arguments as objects (or text), whichever the row has."""
    if isinstance(calls, str):
        calls = json.loads(calls)
    shown = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            arguments = function.get("arguments")
            if form.text_arguments and not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            elif not form.text_arguments and isinstance(arguments, str):
                with suppress(ValueError):  # of data that was checked before such arguments were named: they stay text
                    arguments = json.loads(arguments)
            call = {**call, "function": {**function, "arguments": arguments}}
        shown.append(call)
    return shown


class Template:
    """A compiled chat template with the special tokens it may name, and the day it may write."""

    def __init__(self, source: str, special: dict[str, str], day: str | None = None):
        """`day` as 2026-01-31; today where it is None. Raises NotWritten when the template cannot be compiled."""
        import jinja2

        self.source, self.special = source, special
        try:
            self._compiled = _compiled(source)
        except (jinja2.TemplateError, RecursionError, ValueError) as error:
            raise NotWritten(Problem(rule="template-broken", parameters={"reason": _first_line(error)})) from error
        self.now = writes_day(day)
        self.day = day if "strftime_now" in source else None  # what it writes depends on

    def render(self, messages: list[Message], tools: Any = None, *, ask: bool = False) -> str:
        """The text of messages as for_template() gives them; with `ask` it ends where the answer begins. Raises
        NotWritten with the template's own words when it refuses them."""
        try:
            return self._compiled.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=ask,
                strftime_now=self.now,
                **self.special,
            )
        except Exception as error:  # whatever a template does with what it did not expect
            raise NotWritten(Problem(rule="template-refuses", parameters={"reason": _first_line(error)})) from error


def writes_day(day: str | None) -> Any:
    """What templates call to write the date: of one fixed day, or of today."""
    fixed = None if day is None else date.fromisoformat(day)

    def strftime_now(form: str) -> str:
        now = datetime.now()
        return (now if fixed is None else datetime.combine(fixed, now.time())).strftime(form)

    return strftime_now


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


@lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} only marks the answer for trainers; its body is written as it is."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own way to name them

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # a block of its own, as transformers has it: what is set inside does not reach out of it
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source)
