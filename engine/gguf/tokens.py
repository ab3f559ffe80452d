"""python -m engine.gguf.tokens BINDINGS LIBRARIES FILE: the token ids that llama.cpp makes of texts.

On stdin {"texts": [...], "ends": [ids], "pre_tokenizers": [names]}, without names for the file as it is; on stdout a line
of JSON for each: {"pre_tokenizer", "ids": [[...], ...], "begins", "ends": [ids at which an answer is over]}, or {"failed"}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engine import processes
from engine.gguf import bindings


def main() -> int:
    processes.die_with_parent()
    library = bindings.load(Path(sys.argv[1]), Path(sys.argv[2]))
    asked = json.loads(sys.stdin.read())
    for name in asked.get("pre_tokenizers") or [None]:
        answer: dict[str, Any] = {"pre_tokenizer": name}
        try:
            with bindings.vocabulary(library, Path(sys.argv[3]), name) as found:
                answer |= {
                    "ids": [found.ids(text) for text in asked["texts"]],
                    "begins": found.begins,
                    "ends": [one for one in asked["ends"] if found.ends(one)],
                }
        except ValueError as error:
            answer["failed"] = str(error)
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
