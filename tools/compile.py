"""Compile what the children of runs import, once, where it was installed: `make setup` does.

pip installs without bytecode there, since compiling all of site-packages takes minutes; and where PYTHONDONTWRITEBYTECODE
is set, as in many containers, Python would compile the libraries anew in every run. A plain `pip install` compiles all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from engine import processes

# What a child imports, the parts that it asks for on its way too; the last line tells which files that were.
IMPORTS = """
from engine.train import libraries
libraries.load(quantizers=True)
import engine.worker, engine.train.__main__, engine.train.training, engine.train.adopted, engine.train.chat
import engine.train.export, engine.train.objectives.sft, engine.train.objectives.dpo, engine.train.objectives.kto
import engine.train.objectives.reward, engine.train.objectives.ppo, engine.train.scoring.lm, engine.plan.plans
import bitsandbytes, lm_eval.evaluator, lm_eval.tasks, torch._dynamo, transformers.models.llama.modeling_llama
import json, sys
specs = [vars(one).get("__spec__") for one in list(sys.modules.values()) if one is not None]
print(json.dumps([spec.cached for spec in specs if getattr(spec, "cached", None)]))
"""


def imported(imports: str = IMPORTS) -> list[Path]:
    """Import in a process that may write bytecode, and return where the bytecode of each module belongs. Ends the
    process where an import fails."""
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(  # noqa: S603 - a list, no shell
        [sys.executable, "-c", imports],
        cwd=processes.PROJECT_DIR,
        env={**settings, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return [Path(one) for one in json.loads(done.stdout.splitlines()[-1])]


def compiled(imports: str = IMPORTS) -> str:
    """Compile, and return in words what that took."""
    began_s = time.monotonic()
    files = [path for path in imported(imports) if path.is_file()]
    size_bytes, seconds = sum(path.stat().st_size for path in files), time.monotonic() - began_s
    return f"Bytecode of the {len(files):,} modules that runs import: {size_bytes / 1e6:.0f} MB, {seconds:.0f} s."


if __name__ == "__main__":
    print(compiled())
