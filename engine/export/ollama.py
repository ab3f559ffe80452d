"""For Ollama: a Modelfile, and the chat template in Ollama's language."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from engine import looker
from engine.export.artifacts import refused
from engine.render import Coder, NotWritten, coder
from engine.render.template import Template
from engine.runs import store
from engine.workspace import Workspace

# Ollama takes 80.
MOST_LETTERS = 60


def _template_of(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Return a saved tokenizer's chat template and its special tokens, as text."""
    return coder.own_template(folder), coder.special_tokens(folder)


class _Marks(NamedTuple):
    """What a chat template puts around the turns of each role, at the start of all, and the system prompt it adds by
    itself."""

    begin: str
    system_end: str
    user_start: str
    user_end: str
    answer_start: str
    answer_end: str
    system: str = ""


# Words that no template holds: a system prompt, two questions, two answers.
_SYSTEM, _ASKED, _ANSWERED, _ASKED_AGAIN, _ANSWERED_AGAIN = (f"tunebook0{letter}" for letter in "suavb")
_TALK = [
    {"role": "system", "content": _SYSTEM},
    {"role": "user", "content": _ASKED},
    {"role": "assistant", "content": _ANSWERED},
    {"role": "user", "content": _ASKED_AGAIN},
    {"role": "assistant", "content": _ANSWERED_AGAIN},
]


def _marks_of(show: Callable[..., str]) -> _Marks | None:
    """Read the marks off conversations that a template shows; None where it does more than put marks around turns."""
    begin, _, rest = show(_TALK[:2]).partition(_SYSTEM)
    between, _, user_end = rest.partition(_ASKED)
    opening, _, answer_end = show(_TALK[:3]).partition(_ASKED)[2].partition(_ANSWERED)
    following = show(_TALK[:4]).partition(_ANSWERED)[2].partition(_ASKED_AGAIN)[0]
    if not opening.startswith(user_end) or not following.startswith(answer_end):
        return None
    user_start = following[len(answer_end) :]
    if not between.endswith(user_start):
        return None
    marks = _Marks(
        begin, between[: len(between) - len(user_start)], user_start, user_end, opening[len(user_end) :], answer_end
    )
    if marks.answer_start != _asking(show) or _put_together(marks) != show(_TALK):
        return None
    return _with_system(marks, show(_TALK[1:2]))


def _asking(show: Callable[..., str]) -> str | None:
    """What a template writes to ask for an answer; None where it then shows the conversation otherwise."""
    asked, before = show(_TALK[:4], ask=True), show(_TALK[:4])
    return asked[len(before) :] if asked.startswith(before) else None


def _put_together(marks: _Marks) -> str:
    """The whole conversation as the marks alone make it."""
    text = f"{marks.begin}{_SYSTEM}{marks.system_end}"
    for turn in _TALK[1:]:
        if turn["role"] == "user":
            text += f"{marks.user_start}{turn['content']}{marks.user_end}"
        else:
            text += f"{marks.answer_start}{turn['content']}{marks.answer_end}"
    return text


def _with_system(marks: _Marks, alone: str) -> _Marks | None:
    """The marks with the system prompt that a template adds to a question that stands alone."""
    question = f"{marks.user_start}{_ASKED}{marks.user_end}"
    added = f"{marks.system_end}{question}"
    if alone.startswith(marks.begin) and alone.endswith(added):
        return marks._replace(system=alone[len(marks.begin) : len(alone) - len(added)])
    return marks if alone.endswith(question) else None


def template(source: str, tokens: dict[str, str], *, begins: bool = True) -> tuple[str, str, str] | None:
    """Return a chat template in Ollama's language, the system prompt it adds by itself, and what ends an answer; None
    where the template does more than put marks around turns.

    The marks are read off conversations of known words, put together again, and compared with longer conversations.
    `begins`: llama.cpp puts the first token of all in by itself, as the tokenizer does, so that the text is without it.
    """
    try:
        compiled = Template(source, tokens)
    except NotWritten:
        return None

    def show(messages: list[dict[str, str]], *, ask: bool = False) -> str:
        return compiled.render(messages, ask=ask)

    try:
        marks = _marks_of(show)
    except (NotWritten, KeyError, TypeError, AttributeError, ValueError):
        return None
    if marks is None:
        return None
    if begins:
        marks = marks._replace(begin=marks.begin.removeprefix(tokens.get("bos_token") or "\0"))
    if any(
        "{{" in part or part.endswith("{") or '"""' in part for part in marks
    ):  # nor would a brace before ours stay text
        return None
    content = "{{ .Content }}"
    made = (
        "{{ range .Messages }}"
        '{{ if eq .Role "system" }}' + marks.begin + content + marks.system_end +
        '{{ else if eq .Role "user" }}' + marks.user_start + content + marks.user_end +
        '{{ else if eq .Role "assistant" }}' + marks.answer_start + content + marks.answer_end +
        "{{ end }}{{ end }}" + marks.answer_start
    )  # fmt: skip
    return made, marks.system, marks.answer_end.strip()


def rendered(made: str, messages: list[dict[str, str]]) -> str:
    """Return what Ollama makes of messages with a template that was made here: the few words of Go's template language
    that `template` writes."""
    body, _, ask = made.removeprefix("{{ range .Messages }}").rpartition("{{ end }}{{ end }}")
    parts = {}
    for piece in re.split(r"\{\{ (?:else )?if eq \.Role ", body)[1:]:
        role, _, rest = piece.partition(" }}")
        parts[json.loads(role)] = rest
    return "".join(parts[one["role"]].replace("{{ .Content }}", one["content"]) for one in messages) + ask


def _found(folder: Path) -> tuple[str, str, str] | None:
    """Return what `template` makes of a model's own, where both give the same token ids."""
    source, tokens = _template_of(folder)
    own = Coder.of_folder(folder, folder.name) if (folder / "tokenizer.json").is_file() else None
    begins = own is None or own.starts_with_bos
    found = template(source, tokens, begins=begins) if source else None
    if found is None or own is None:
        return found
    begin, system = (tokens.get("bos_token") if begins else None) or "\0", {"role": "system", "content": found[1]}
    for messages in (_TALK[:2], _TALK[:4], _TALK[1:2]):
        # the system prompt that a template adds is the Modelfile's SYSTEM
        told = messages if messages[0]["role"] == "system" or not found[1] else [system, *messages]
        if own.code(rendered(found[0], told)).ids != own.code(own.ask(messages).removeprefix(begin)).ids:
            return None
    return found


def program() -> str | None:
    """Return where Ollama's program lies on this machine, or None."""
    return shutil.which("ollama")


def name_of(workspace: Workspace, run_id: str, quantization: str) -> str:
    """Return what a file of a run is called in Ollama, as "new-facts-lora-starter-2:q4_k_m": by the name of the run, and
    with the end of its id where that says nothing in these letters or another run's would come to the same."""
    names = store.all_names(workspace)
    own, end = _spelled(names.pop(run_id, "")), run_id[-6:]
    if not own:
        own = f"tunebook-{end}"
    elif own in map(_spelled, names.values()):
        own = f"{own}-{end}"
    return f"{own}:{quantization}"


def _spelled(name: str) -> str:
    """Return a name in small letters, digits and hyphens; whatever else is in it goes."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall("[a-z0-9]+", plain))[:MOST_LETTERS].strip("-")


def modelfile_of(file: Path) -> Path:
    """Return where the Modelfile of a GGUF file lies."""
    return file.with_suffix(".Modelfile")


def create(file: Path, name: str) -> str:
    """Let Ollama take in a GGUF file under a name, which is returned. Raises NotExportable."""
    where = program()
    if where is None:
        raise refused("export-no-ollama")
    command = [where, "create", name, "-f", modelfile_of(file).name]
    done = subprocess.run(command, cwd=file.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True)  # noqa: S603 - a list, no shell
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise refused("export-ollama", reason=said[-1][:300] if said else str(done.returncode))
    return name


def modelfile(folder: Path, source: str) -> str:
    """Return the Modelfile with which `ollama create NAME -f Modelfile` takes in `source`, a GGUF file or a folder of
    safetensors beside it. `folder` is where the tokenizer lies."""
    try:
        found = looker.ask(_found, folder, at=folder)
    except looker.Refused:
        found = None
    lines = [f"FROM {source}"]
    if found is None:
        lines += [
            "# The chat template does more than put marks around turns, so it is not written here in Ollama's language:",
            "# Ollama goes by the one inside the GGUF file where it knows it. Compare an answer with Tunebook's.",
        ]
    else:
        made, system, end = found
        lines.append(f'TEMPLATE """{made}"""')
        if system:
            lines.append(f'SYSTEM """{system}"""')
        if end:
            lines.append(f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
