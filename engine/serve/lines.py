"""What to type, or to write in a program, to ask a run that is served: each with its true address, key and name."""

from __future__ import annotations

import json
import shlex

from engine.export import ollama as modelfiles
from engine.export.usage import QUESTION
from engine.gguf import kinds
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
            "client = OpenAI(",
            f"    base_url={serving.address!r},",
            f"    api_key={serving.key!r},",
            ")",
            "answer = client.chat.completions.create(",
            f"    model={serving.run!r},",
            f"    messages=[{{'role': 'user', 'content': {QUESTION!r}}}],",
            ")",
            "print(answer.choices[0].message.content)",
        ]
    )


def ollama(workspace: Workspace, serving: Serving) -> str | None:
    """Return the commands that take the run into Ollama, which serves it by itself: with the GGUF file that is served, or
    the first there is; None where none has a Modelfile beside it."""
    for kind in filter(None, (serving.quantization, *kinds.KINDS)):
        file = modelfiles.modelfile_of(kinds.file_of(workspace.run_dir(serving.run), kind))
        if file.is_file():
            name = modelfiles.name_of(workspace, serving.run, kind)
            create = shlex.join(["ollama", "create", name, "-f", str(file)])
            return "\n".join([create, shlex.join(["ollama", "run", name, QUESTION])])
    return None
