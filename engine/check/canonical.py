"""canonical(): a checked row of any layout -> the one form that training reads, and the writer of rows.parquet.

Conversations, pairs and answers all become lists of messages {role, content, tool_calls, name}; nothing is stripped or
normalised, so every character that was a target in the upload is one here. Rows must have passed engine.check: nothing
is checked a second time. The schemas are explicit, because loaders that infer types turn "144" into a number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pyarrow

from engine.check.prompts import ASSISTANT_MARK, repeated_prompt, shared_messages, shared_transcript
from engine.read import formats, texts

Message = dict[str, Any]

# Rows are written in groups, so that memory does not grow with the file.
GROUP_ROWS = 2_000
GROUP_BYTES = 16 << 20


def schema(kind: str) -> pyarrow.Schema:
    """The columns of rows.parquet for a dataset type of formats.TYPES."""
    import pyarrow as pa

    message = pa.struct(
        [("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.string()), ("name", pa.string())]
    )
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
        "tools": _json_text(row.get(fields["tools"])) if "tools" in fields else None,
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
        messages = _system(row, fields) + _messages(row[fields["messages"]], reading)
        if "label" in fields:
            result |= {"prompt": messages[:-1], "completion": messages[-1:], "label": row[fields["label"]]}
        elif reading.prompts_only:
            result |= {"prompt": messages}
        else:
            result |= {"text": None, "messages": messages}
    elif "prompt" not in fields:
        result |= _implicit_pair(row, reading)
    else:
        prompt = _prompt(row, reading)
        result["prompt"] = prompt
        for meaning in ("completion", "chosen", "rejected"):
            if meaning in fields:
                result[meaning] = _answer(row[fields[meaning]], row[fields["prompt"]], reading)
        if "label" in fields:
            result["label"] = row[fields["label"]]
    return result


def target_characters(row: dict[str, Any], kind: str) -> int:
    """Characters of a canonical row that are trained on: the texts of answers; tool calls are not counted."""
    if kind == "stepwise":
        return sum(map(len, row["completions"]))
    if kind == "language-modeling" and row["text"] is not None:
        return len(row["text"])
    columns = {"language-modeling": ["messages"], "preference": ["chosen", "rejected"], "prompt-only": []}
    return sum(
        len(message["content"])
        for column in columns.get(kind, ["completion"])
        for message in row[column]
        if message["role"] == "assistant"
    )


def _message(role: str, content: str, tool_calls: str | None = None, name: str | None = None) -> Message:
    return {"role": role, "content": content, "tool_calls": tool_calls, "name": name}


def _messages(messages: list[dict[str, Any]] | dict[str, Any], reading: formats.Reading) -> list[Message]:
    """Canonical messages of a list in either style, or of a single message."""
    result = []
    role_key, content_key, roles = reading.style
    for message in messages if isinstance(messages, list) else [messages]:
        content = formats.text_of(message.get(content_key))
        role = roles[message[role_key]]
        calls = message.get("tool_calls")
        if not calls and message.get("function_call"):
            calls = [{"type": "function", "function": message["function_call"]}]
        result.append(_message(role, content, _json_text(calls) if calls else None, message.get("name")))
    return result


def _json_text(value: object) -> str | None:
    """JSON text of a value that may be JSON text already; blank means none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _system(row: dict[str, Any], fields: dict[str, str]) -> list[Message]:
    text = row.get(fields["system"]) if "system" in fields else None
    return [_message("system", text)] if text and not texts.is_blank(text) else []


def _prompt(row: dict[str, Any], reading: formats.Reading) -> list[Message]:
    """System text, earlier turns, then the question: instruction and input are joined with an empty line."""
    fields = reading.layout.fields
    result = _system(row, fields)
    for question, answer in (row.get(fields["history"]) or []) if "history" in fields else []:
        result += [_message("user", question), _message("assistant", answer)]
    value = row[fields["prompt"]]
    if not isinstance(value, str):
        return result + _messages(value, reading)
    more = row.get(fields["input"]) if "input" in fields else None
    if more and not texts.is_blank(more):
        value = f"{value}\n\n{more}" if not texts.is_blank(value) else more
    return [*result, _message("user", value)]


def _answer(value: Any, prompt: Any, reading: formats.Reading) -> list[Message]:
    if isinstance(value, str):
        return [_message("assistant", value)]
    if isinstance(value, list):
        value = value[repeated_prompt(prompt, value, reading) :]
    return _messages(value, reading)


def _implicit_pair(row: dict[str, Any], reading: formats.Reading) -> dict[str, list[Message]]:
    """Cut the shared prompt off two answers: at whole messages, or after the last shared assistant mark of a text."""
    chosen, rejected = (row[reading.layout.fields[meaning]] for meaning in ("chosen", "rejected"))
    if reading.conversational:
        shared = shared_messages(chosen, rejected)
        return {
            "prompt": _messages(chosen[:shared], reading),
            "chosen": _messages(chosen[shared:], reading),
            "rejected": _messages(rejected[shared:], reading),
        }
    cut = shared_transcript(chosen, rejected)
    assert cut is not None, "a pair without a shared prompt is an error of the check"
    return {
        "prompt": _transcript(chosen[:cut]),
        "chosen": [_message("assistant", chosen[cut:])],
        "rejected": [_message("assistant", rejected[cut:])],
    }


def _transcript(text: str) -> list[Message]:
    """The turns of "\\n\\nHuman: ... \\n\\nAssistant: ..." up to the open assistant mark at the end of `text`."""
    pieces = re.split(r"\n\n(Human|Assistant):", text.removesuffix(ASSISTANT_MARK))
    result = [_message("user", pieces[0])] if pieces[0] else []
    for mark, content in zip(pieces[1::2], pieces[2::2], strict=True):
        result.append(_message("user" if mark == "Human" else "assistant", content))
    return result


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
