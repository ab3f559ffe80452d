"""A base's tokenizer and chat template without torch or transformers: how long a row becomes, for pages and checks.

Rendering follows transformers (utils/chat_template_utils.py, 5.17): jinja2 in its sandbox, since a template comes with
a model and is not trusted. What is trained is not decided here but in engine/train/tokenize.py.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.models.bases import Base
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
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def for_template(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of a canonical row as templates expect them: no nulls, tool calls as objects."""
    shown = []
    for message in messages:
        kept = {key: value for key, value in message.items() if value is not None}
        if isinstance(kept.get("tool_calls"), str):
            kept["tool_calls"] = json.loads(kept["tool_calls"])
        shown.append(kept)
    return shown


class NoTokenizer(Exception):
    """The tokens of a base cannot be counted here; `problem` says why."""

    def __init__(self, rule: str, **parameters: str):
        self.problem = Problem(rule=rule, parameters=dict(parameters))
        super().__init__(self.problem.sentence)


class Coder:
    """Counts the tokens of canonical rows as a base would read them. Raises NoTokenizer when the base has no files here."""

    def __init__(self, base: Base):
        from tokenizers import Tokenizer

        folder = base.folder
        if folder is None or not (folder / "tokenizer.json").is_file():
            raise NoTokenizer("tokenizer-none", base=base.ref[:80])
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exceptions
            raise NoTokenizer("tokenizer-broken", base=base.ref[:80]) from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        settings = _settings(folder)
        self.special = {name: text for name in SPECIAL if (text := _token(settings.get(name)))}
        own = _template(folder, settings)
        self.is_plain = not own
        self._template = _compiled(own or PLAIN_TEMPLATE, base)

    def render(self, messages: list[dict[str, Any]], tools: str | None = None) -> str:
        """The text of a conversation. Raises jinja2.TemplateError when the template refuses it."""
        return self._template.render(
            messages=for_template(messages),
            tools=json.loads(tools) if tools else None,
            documents=None,
            add_generation_prompt=False,
            **self.special,
        )

    def lengths(self, rows: list[dict[str, Any]]) -> list[int | None]:
        """Tokens of each canonical row, of the longer side of a pair; None where the template refuses the row."""
        import jinja2

        texts: list[tuple[int, str, bool]] = []
        found: list[int | None] = [None] * len(rows)
        for index, row in enumerate(rows):
            if row.get("text") is not None:
                texts.append((index, row["text"], True))
                continue
            try:
                for messages in conversations(row):
                    texts.append((index, self.render(messages, row.get("tools")), False))
            except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, RecursionError):
                found[index] = None
                texts = [one for one in texts if one[0] != index]
        # A plain text ends in the end-of-text token, and the tokenizer marks its start; templates write both themselves.
        ends = int("eos_token" in self.special)
        for whole in (True, False):
            of_kind = [one for one in texts if one[2] == whole]
            coded = self.tokenizer.encode_batch([text for _, text, _ in of_kind], add_special_tokens=whole)
            for (index, _, _), one in zip(of_kind, coded, strict=True):
                found[index] = max(found[index] or 0, len(one.ids) + (ends if whole else 0))
        return found


def conversations(row: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The conversations of a canonical row: both answers of a pair, else one."""
    if row.get("messages"):
        return [row["messages"]]
    prompt = row.get("prompt") or []
    if isinstance(prompt, str):  # steps
        answer = "".join(row.get("completions") or [])
        return [[{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]]
    answers = [row[name] for name in ("completion", "chosen", "rejected") if row.get(name)]
    return [[*prompt, *answer] for answer in answers] or [prompt]


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _token(value: object) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _template(folder: Path, settings: dict[str, Any]) -> str:
    try:
        return (folder / "chat_template.jinja").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        pass
    own = settings.get("chat_template")
    if isinstance(own, list):  # several by name
        own = next((one.get("template") for one in own if isinstance(one, dict) and one.get("name") == "default"), None)
    return own if isinstance(own, str) else ""


def _compiled(source: str, base: Base) -> Any:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} only marks the answer for trainers; its body is written as it is."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own way to name them

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, ensure_ascii=False, indent=None, separators=None, sort_keys=False: (
        json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise NoTokenizer("tokenizer-broken", base=base.ref[:80]) from error
