"""For llama.cpp and Ollama: a GGUF file, a Modelfile, and the chat template in Ollama's language."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

from engine.export.artifacts import refused
from engine.export.job import Job, State, Told
from engine.models import Base, templates


def gguf_command(folder: Path, checkout: Path | str, outfile: Path, python: str = "python") -> list[str]:
    """Return the command with which llama.cpp turns a whole model into one GGUF file of the same precision."""
    script = str(Path(checkout) / "convert_hf_to_gguf.py")
    return [python, script, str(folder), "--outfile", str(outfile), "--outtype", "auto"]


def _template_of(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Return a saved tokenizer's chat template and its special tokens, as text."""
    told = templates._settings(folder)
    return templates._template(folder, told) or None, {
        name: templates._token(told.get(name)) for name in templates.SPECIAL
    }


def template(source: str, tokens: dict[str, str]) -> tuple[str, str, str] | None:
    """Return a chat template in Ollama's language, the system prompt it adds by itself, and what ends an answer; None
    where the template does more than put marks around turns.

    The marks are read off conversations of known words, put together again, and compared with longer conversations.
    """
    import jinja2

    try:
        compiled = templates._compiled(source, Base(ref="export", kind="folder", title=""))
    except templates.NoTokenizer:
        return None
    s, u, a, v, b = ("tunebook0s", "tunebook0u", "tunebook0a", "tunebook0v", "tunebook0b")
    roles = [("system", s), ("user", u), ("assistant", a), ("user", v), ("assistant", b)]
    talk = [{"role": role, "content": content} for role, content in roles]

    def show(messages: list[dict[str, str]], *, ask: bool = False) -> str:
        return compiled.render(messages=messages, add_generation_prompt=ask, tools=None, **tokens)

    try:
        begin, _, rest = show(talk[:2]).partition(s)
        between, _, user_end = rest.partition(u)
        answered = show(talk[:3]).partition(u)[2]
        opening, _, answer_end = answered.partition(a)
        if not opening.startswith(user_end):
            return None
        answer_start = opening[len(user_end) :]
        following = show(talk[:4]).partition(a)[2].partition(v)[0]
        if not following.startswith(answer_end):
            return None
        user_start = following[len(answer_end) :]
        if not between.endswith(user_start):
            return None
        system_end = between[: len(between) - len(user_start)]
        ask = show(talk[:4], ask=True)
        if not ask.startswith(show(talk[:4])):
            return None
        prompt = ask[len(show(talk[:4])) :]
        together = f"{begin}{s}{system_end}"
        for role, content in roles[1:]:
            start, end = (user_start, user_end) if role == "user" else (answer_start, answer_end)
            together += f"{start}{content}{end}"
        alone, usual = show(talk[1:2]), ""
        if alone.startswith(begin) and alone.endswith(f"{system_end}{user_start}{u}{user_end}"):
            usual = alone[len(begin) : len(alone) - len(f"{system_end}{user_start}{u}{user_end}")]
        elif not alone.endswith(f"{user_start}{u}{user_end}"):
            return None
        if together != show(talk) or prompt != answer_start:
            return None
    except (jinja2.TemplateError, KeyError, TypeError, AttributeError, ValueError):
        return None
    # llama.cpp puts the first token of all in by itself.
    begin = begin.removeprefix(tokens.get("bos_token") or "\0")
    parts = (begin, system_end, user_start, user_end, answer_start, answer_end, usual)
    if any("{{" in part or '"""' in part for part in parts):
        return None
    made = (
        "{{ range .Messages }}"
        f'{{{{ if eq .Role "system" }}}}{begin}{{{{ .Content }}}}{system_end}'
        f'{{{{ else if eq .Role "user" }}}}{user_start}{{{{ .Content }}}}{user_end}'
        f'{{{{ else if eq .Role "assistant" }}}}{answer_start}{{{{ .Content }}}}{answer_end}'
        "{{ end }}{{ end }}"
        f"{answer_start}"
    )
    return made, usual, answer_end.strip()


def modelfile(folder: Path, source: str) -> str:
    """Return the Modelfile with which `ollama create NAME -f Modelfile` takes in `source`, a GGUF file or a folder of
    safetensors beside it. `folder` is where the tokenizer lies."""
    source_template, tokens = _template_of(folder)
    found = template(source_template, tokens) if source_template else None
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


def to_gguf(folder: Path, target: Path, run_id: str, job: Job, state: State, tell: Told) -> Path:
    """Let llama.cpp convert the whole model; the Modelfile for Ollama lies beside it."""
    state.phase = "converting"
    tell(state)
    target.mkdir(parents=True, exist_ok=True)
    outfile = target / f"{run_id}.gguf"
    partial = outfile.with_suffix(".partial")
    checkout = Path(job.checkout or "").expanduser().absolute()
    command = gguf_command(folder, checkout, partial, sys.executable)
    done = subprocess.run(command, cwd=checkout, stdin=subprocess.DEVNULL, capture_output=True, text=True)  # noqa: S603 - a list, no shell
    if done.returncode != 0 or not partial.is_file():
        partial.unlink(missing_ok=True)
        said = [line for line in (done.stderr.strip() or done.stdout).splitlines() if line.strip()]
        shown = {"reason": said[-1][:300] if said else str(done.returncode), "command": shlex.join(command)}
        raise refused("export-gguf", **shown)
    partial.replace(outfile)
    (target / "Modelfile").write_text(modelfile(folder, f"./{outfile.name}"), encoding="utf-8")
    return outfile
