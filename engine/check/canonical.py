"""canonical(): a checked row of any layout -> the one form that training reads, and the writer of rows.parquet.

Conversations, pairs and answers all become lists of messages (schema() has their fields); nothing is stripped or
normalised, so every character that was a target in the upload is one here. Rows must have passed engine.check: nothing
is checked a second time. The schemas are explicit, because loaders that infer types turn "144" into a number.

Of a message, `tool_calls` is the JSON text of a list of calls whose arguments are objects; `call_text` what a turn said
that is a call written as text (a base whose template prints no calls is shown that); `train` is False where the turn is
context only and null where it is trained as usual.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pyarrow

from engine.check.prompts import (
    ASSISTANT_MARK,
    prompt_value,
    repeated_prompt,
    shared_messages,
    shared_transcript,
    sides,
    transcript,
)
from engine.read import formats, texts, tool_calls, turns
from engine.read.turns import Message, message_of

# Rows are written in groups, so that memory does not grow with the file.
GROUP_ROWS = 2_000
GROUP_BYTES = 16 << 20


def schema(kind: str) -> pyarrow.Schema:
    """The columns of rows.parquet for a dataset type of formats.TYPES."""
    import pyarrow as pa

    words = ("role", "content", "tool_calls", "name", "tool_call_id", "reasoning_content", "call_text")
    message = pa.struct([*((name, pa.string()) for name in words), ("train", pa.bool_())])
    messages = pa.list_(message)
    own: dict[str, list[tuple[str, pa.DataType]]] = {
        "language-modeling": [("text", pa.string()), ("messages", messages)],
        "prompt-only": [("prompt", messages)],
        "prompt-completion": [("prompt", messages), ("completion", messages)],
        "preference": [("prompt", messages), ("chosen", messages), ("rejected", messages)],
        "unpaired-preference": [("prompt", messages), ("completion", messages), ("label", pa.bool_())],
        "stepwise": [("prompt", pa.string()), ("completions", pa.list_(pa.string())), ("labels", pa.list_(pa.bool_()))],
    }
    common = [
        ("line", pa.int32()),
        ("family", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("tools", pa.string()),
    ]
    return pa.schema([pa.field(name, type_) for name, type_ in own[kind] + common])


def canonical(row: dict[str, Any], reading: formats.Reading | formats.Layout, line: int = 0) -> dict[str, Any]:
    """Return the canonical row of a good row: the columns of schema(reading.type). `line` is its physical line."""
    if isinstance(reading, formats.Layout):
        reading = formats.Reading(layout=reading, conversational=bool(reading.conversational))
    fields = reading.layout.fields
    result: dict[str, Any] = {
        "line": line,
        "family": row.get(fields["family"]) if "family" in fields else None,
        "choices": row.get(fields["choices"]) if "choices" in fields else None,
        "tools": _tools(row, reading),
    }
    if "steps" in fields:
        result |= {
            "prompt": row[fields["prompt"]],
            "completions": row[fields["steps"]],
            "labels": row[fields["step_labels"]],
        }
    elif "text" in fields:
        result |= {"text": row[fields["text"]], "messages": None}
    elif "messages" in fields:
        messages = _with_system(row, fields, _messages(row[fields["messages"]], reading))
        if "rejected" in fields:
            prompt = row[fields["messages"]][:-1]
            result |= {
                "prompt": messages[:-1],
                "chosen": messages[-1:],
                "rejected": _answer(row[fields["rejected"]], prompt, reading),
            }
        elif "label" in fields:
            result |= {"prompt": messages[:-1], "completion": messages[-1:], "label": row[fields["label"]]}
        elif reading.prompts_only:
            result |= {"prompt": messages}
        else:
            result |= {"text": None, "messages": messages}
    elif "prompt" not in fields:
        result |= _implicit_pair(row, reading)
    else:
        result["prompt"] = _prompt(row, reading)
        pair = sides(row, fields)
        if pair is not None:
            for meaning, side in zip(("chosen", "rejected"), pair, strict=True):
                result[meaning] = _answer(side.value, row[fields["prompt"]], reading)
        elif "completion" in fields:
            result["completion"] = _answer(row[fields["completion"]], row[fields["prompt"]], reading)
        if "label" in fields:
            result["label"] = row[fields["label"]]
    return result


def target_characters(row: dict[str, Any], kind: str) -> int:
    """Characters of a canonical row that are trained on: the texts of answers that are not switched off; reasoning and
    calls of tools are not counted."""
    if kind == "stepwise":
        return sum(map(len, row["completions"]))
    if kind == "language-modeling" and row["text"] is not None:
        return len(row["text"])
    columns = {"language-modeling": ["messages"], "preference": ["chosen", "rejected"], "prompt-only": []}
    return sum(
        len(message["content"])
        for column in columns.get(kind, ["completion"])
        for message in row[column]
        if message["role"] == "assistant" and message.get("train") is not False
    )


def _messages(messages: list[dict[str, Any]] | dict[str, Any], reading: formats.Reading) -> list[Message]:
    """Canonical messages of a list in either style, or of a single message."""
    held = messages if isinstance(messages, list) else [messages]
    return turns.canonical_messages(held, reading.style, drop_nulls=reading.drop_nulls)


def _tools(row: dict[str, Any], reading: formats.Reading) -> str | None:
    """The tools of a row as JSON text, or None where there is none."""
    held = (row.get(reading.layout.fields.get(meaning, "")) for meaning in ("tools", "functions"))
    tools = tool_calls.tools_of(*held, drop_nulls=reading.drop_nulls)
    return msgspec.json.encode(tools).decode() if tools else None


def _with_system(row: dict[str, Any], fields: dict[str, str], messages: list[Message]) -> list[Message]:
    """Messages after the system text of their row. A system turn of their own becomes one with it: most templates take a
    single one."""
    text = row.get(fields["system"]) if "system" in fields else None
    if not text or texts.is_blank(text):
        return messages
    if messages and messages[0]["role"] == "system":
        own = messages[0]["content"]
        both = own if own == text else f"{text}\n\n{own}"
        return [messages[0] | {"content": both}, *messages[1:]]
    return [message_of("system", text), *messages]


def _prompt(row: dict[str, Any], reading: formats.Reading) -> list[Message]:
    """System text, earlier turns, then the question, with its input and its context after an empty line each."""
    fields = reading.layout.fields
    earlier: list[Message] = []
    for question, answer in (row.get(fields["history"]) or []) if "history" in fields else []:
        earlier += [message_of("user", question), message_of("assistant", answer)]
    value = prompt_value(row, reading)
    if isinstance(value, str):
        more = [row.get(fields[meaning]) for meaning in ("input", "context") if meaning in fields]
        parts = [part for part in [value, *more] if part and not texts.is_blank(part)]
        asked = [message_of("user", "\n\n".join(parts) if len(parts) > 1 or not value else value)]
    else:
        asked = _messages(value, reading)
    if earlier and asked and asked[0]["role"] == "system":
        asked[0:1], earlier = [], [asked[0], *earlier]
    return _with_system(row, fields, [*earlier, *asked])


def _answer(value: Any, prompt: Any, reading: formats.Reading) -> list[Message]:
    if isinstance(value, str):
        return [message_of("assistant", value)]
    if isinstance(value, list):
        value = value[repeated_prompt(prompt, value, reading) :]
    return _messages(value, reading)


def _implicit_pair(row: dict[str, Any], reading: formats.Reading) -> dict[str, list[Message]]:
    """Cut the shared prompt off two answers: at whole messages, or after the last shared assistant mark of a text."""
    fields = reading.layout.fields
    pair = sides(row, fields)
    assert pair is not None, "a pair without a better answer is an error of the check"
    chosen, rejected = (side.value for side in pair)
    if reading.conversational:
        shared = shared_messages(chosen, rejected)
        return {
            "prompt": _with_system(row, fields, _messages(chosen[:shared], reading)),
            "chosen": _messages(chosen[shared:], reading),
            "rejected": _messages(rejected[shared:], reading),
        }
    cut = shared_transcript(chosen, rejected)
    assert cut is not None, "a pair without a shared prompt is an error of the check"
    asked = chosen[:cut].removesuffix(ASSISTANT_MARK)
    said = {
        "prompt": transcript(asked, "user"),
        "chosen": transcript(chosen[cut:]),
        "rejected": transcript(rejected[cut:]),
    }
    result = {column: [message_of(*turn) for turn in told] for column, told in said.items()}
    return result | {"prompt": _with_system(row, fields, result["prompt"])}


class ParquetSink:
    """Writes the good rows of a check to `path` as canonical rows. Use as a context manager."""

    def __init__(self, path: Path):
        self.path = path
        self.reading: formats.Reading | None = None
        self.target_characters = 0
        self._writer: Any = None
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> ParquetSink:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def start(self, reading: formats.Reading) -> None:
        """Begin anew: what was written before does not count."""
        import pyarrow.parquet

        if self._writer is not None:
            self._writer.close()
        self.reading = reading
        self._schema = schema(reading.type)
        self._writer = pyarrow.parquet.ParquetWriter(self.path, self._schema, compression="zstd")
        self._rows.clear()
        self._bytes = self.target_characters = 0

    def add(self, line: int, row: dict[str, Any], raw: bytes) -> None:
        assert self.reading is not None
        converted = canonical(row, self.reading, min(line, 2**31 - 1))
        self.target_characters += target_characters(converted, self.reading.type)
        self._rows.append(converted)
        self._bytes += len(raw)
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        """Write what is left and close the file. Raises OSError when the disk is full."""
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer = None

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
            self._rows.clear()
            self._bytes = 0
