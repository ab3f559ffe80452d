"""python -m engine.gguf.quantize BINDINGS LIBRARIES SOURCE TARGET KIND THREADS: a GGUF file of 16 bits in fewer.

Each line on stdout is a JSON object, {"done": 12, "total": 272}: which tensor it is at. Exits 1 where it failed; what
llama.cpp says of it stands on stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engine import processes
from engine.gguf import bindings


def main() -> int:
    processes.die_with_parent()
    where, libraries, source, target, kind, threads = sys.argv[1:7]
    library = bindings.load(Path(where), Path(libraries))

    def told(done: int, total: int) -> None:
        print(json.dumps({"done": done, "total": total}), flush=True)

    try:
        bindings.quantize(library, Path(source), Path(target), kind, int(threads), told)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
