"""Run by Axolotl's own Python: start it on each of some folders as its command does, and write beside the settings what its
first step read, how many weights train, and what was logged. One process for all, since what it imports takes long."""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import transformers
from axolotl.cli.train import do_cli  # pyright: ignore[reportMissingImports]

steps: list[dict[str, Any]] = []
logs: list[dict[str, Any]] = []
step, log = transformers.Trainer.training_step, transformers.Trainer.log


def noted_step(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
    seen: dict[str, Any] = {name: value.tolist() for name, value in inputs.items() if hasattr(value, "tolist")}
    steps.append(seen | {"trained": sum(one.numel() for one in model.parameters() if one.requires_grad)})
    return step(self, model, inputs, *more)


def noted_log(self: Any, said: dict[str, Any], *more: Any) -> Any:
    logs.append(said)
    return log(self, said, *more)


if __name__ == "__main__":
    trainer: Any = transformers.Trainer
    trainer.training_step, trainer.log = noted_step, noted_log
    folders = [Path(one).resolve() for one in sys.argv[1:]]
    del sys.argv[1:]
    for folder in folders:
        steps.clear()
        logs.clear()
        error = None
        os.chdir(folder)
        try:
            do_cli("train.yaml")
        except BaseException:
            error = traceback.format_exc()
        Path("seen.json").write_text(json.dumps({"steps": steps, "logs": logs, "error": error}))
