"""What to type, or to write in a program, to ask a run that is served: each with its true address, key and name."""

from __future__ import annotations

import json
import shlex

from engine.export.usage import QUESTION
from engine.serve.serving import Serving
from engine.workspace import Workspace


def curl(serving: Serving) -> str:
    """Return the command that asks it with curl."""
    ask = {"model": serving.run, "messages": [{"role": "user", "content": QUESTION}]}
    words = [
        "curl", f"{serving.address}/chat/completions", "-H", f"Authorization: Bearer {serving.key}",
        "-H", "Content-Type: application/json", "-d", json.dumps(ask),
    ]  # fmt: skip
    return shlex.join(words)


def python(serving: Serving) -> str:
    """Return the Python that asks it with OpenAI's client (pip install openai)."""
    return "\n".join(
        [
            "from openai import OpenAI",
            "",
            f"client = OpenAI(base_url={serving.address!r}, api_key={serving.key!r})",
            "answer = client.chat.completions.create(",
            f"    model={serving.run!r}, messages=[{{'role': 'user', 'content': {QUESTION!r}}}]",
            ")",
            "print(answer.choices[0].message.content)",
        ]
    )


def ollama(workspace: Workspace, run_id: str) -> str | None:
    """Return the commands that take the run into Ollama, which serves it by itself; None where it has no Modelfile yet."""
    modelfile = workspace.run_dir(run_id) / "gguf" / "Modelfile"
    if not modelfile.is_file():
        return None
    name = f"tunebook-{run_id}"
    return "\n".join(
        [shlex.join(["ollama", "create", name, "-f", str(modelfile)]), shlex.join(["ollama", "run", name, QUESTION])]
    )
