"""What chat templates do with a conversation: docs/templates.md, made from the templates that TRL ships. `make templates`.

Each is put beside a tokenizer of single bytes that knows the template's marks as tokens, since only what the template
writes is asked about here. Templates of models that also see pictures are left out.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine import processes
from engine.render import Coder, NotWritten
from engine.render.template import Message
from tools import tables

PAGE = processes.PROJECT_DIR / "docs" / "templates.md"
BOS, EOS = "<s>", "</s>"
# What stands for one token in templates: <|name|>, <name|>, <|name>, [NAME], and a few words in angle brackets.
MARK = re.compile(
    r"<[|｜][^<>|｜{}' \n]*[|｜]?>|<[a-z_]+\|>|<(?:end|start)_of_turn>|<end_of_utterance>|</?(?:tool_call|think)>"
    r"|\[/?(?:INST|TOOL_CALLS)\]"
)
SEES_PICTURES = re.compile(r"_vl$|^idefics|^llava")

_ASKED = [{"role": "user", "content": "How deep is it?"}]
_CALL = {"type": "function", "id": "call12345", "function": {"name": "tide", "arguments": {"place": "Oslo"}}}
_TOOL = {"type": "function", "function": {"name": "tide", "description": "Tells the tide.", "parameters": {}}}


def sources() -> dict[str, str]:
    """TRL's templates for text, by name, without the ones it patches for training. Empty where TRL is not installed."""
    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        return {}
    found = sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja"))
    return {
        path.stem: path.read_text("utf-8")
        for path in found
        if not path.stem.endswith("_training") and not SEES_PICTURES.search(path.stem)
    }


@cache
def byte_tokenizer(source: str, *, starts_with_bos: bool = False) -> Any:
    """A tokenizer of single bytes that knows a template's marks as tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = [BOS, EOS, *sorted(set(MARK.findall(source)) - {BOS, EOS})]
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    if starts_with_bos:
        bos = tokenizer.token_to_id(BOS)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    return tokenizer


def coder(source: str | None, day: str = "2026-01-31", **settings: Any) -> Coder:
    """A base that has this template and a tokenizer of single bytes."""
    tokenizer = byte_tokenizer(source or "", **settings)
    return Coder(tokenizer, {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS}, source, day=day)


def _answer(content: str, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def _written(made: Coder, messages: list[Message], tools: Any = None) -> str | None:
    """What the template writes; None where it refuses."""
    try:
        return made.turns.find(messages, tools).text
    except NotWritten:
        return None


def _calls(made: Coder) -> str:
    conversation = [*_ASKED, _answer("", tool_calls=[_CALL])]
    text = _written(made, conversation, [_TOOL])
    if text is None:
        return "not written"
    described = "Tells the tide." in text
    result = {"role": "tool", "content": "5 m", "tool_call_id": "call12345", "name": "tide"}
    more = _written(made, [*conversation, result, _answer("Five.")], [_TOOL])
    words = ["written"]
    if not described:
        words.append("tools are not described")
    if more is None or "5 m" not in more:
        words.append("results refused")
    return ", ".join(words)


def _reasoning(made: Coder) -> str:
    last = _written(made, [*_ASKED, _answer("Five.", reasoning_content="It is low water.")])
    both = [*_ASKED, _answer("Five.", reasoning_content="It is low water."), *_ASKED, _answer("Six.")]
    earlier = _written(made, both)
    if last is None or "low water" not in last:
        return "left out"
    return "kept" if earlier and "low water" in earlier else "only of the last answer"


def _said(made: Coder, messages: list[Message], words: str) -> str:
    text = _written(made, messages)
    return "refused" if text is None else "written" if words in text else "left out"


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("\n", "\\n") + "`"


def row(name: str, source: str) -> list[str]:
    """One line of the table."""
    made = coder(source)
    two = [*_ASKED, _answer("Five."), *_ASKED, _answer("Six.")]
    written = made.write(two)
    ends = ["".join(_code(turn.mark)) if turn.mark else "no" for turn in written.turns]
    ids = [made.tokenizer.token_to_id(turn.mark) for turn in written.turns]
    return [
        name,
        ends[0] if len(set(ends)) == 1 else f"{ends[0]}, last {ends[-1]}",
        "yes" if all(one in made.stops for one in ids) else "no",
        str(made.written_starts),
        _calls(made),
        _reasoning(made),
        _said(made, [{"role": "system", "content": "Be brief."}, *two], "Be brief."),
        _said(made, [*_ASKED, *_ASKED, _answer("Five.")], "Five."),
    ]


HEADER = (
    "Template",
    "End mark trained",
    "Stops there",
    "BOS",
    "Tool calls",
    "Reasoning",
    "System",
    "Two users in a row",
)


def page() -> str:
    """The page, from what is installed."""
    from importlib.metadata import version

    words = [
        "# What chat templates do",
        "",
        f"The templates for text that TRL {version('trl')} ships, read by `engine/render`; made by `make templates`.",
        "The end mark belongs to the answer, is trained with it, and generation stops there; where a template has none of",
        "its own, the mark of whoever speaks next ends an answer, and the last one gets the end-of-text token.",
        f"{_code(EOS)} stands for that token, whatever a base calls it. Rows that a template refuses, or with a call that",
        "it does not write, are named and left out.",
    ]
    return tables.page(words, HEADER, (row(name, source) for name, source in sources().items()))


def main() -> None:
    tables.write(PAGE, page(), __doc__)


if __name__ == "__main__":
    main()
