"""tunebook export."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine.cli import shared
from engine.cli.shared import EXIT_FAILED, EXIT_REFUSED, made_something
from engine.gguf import kinds
from engine.words import t
from engine.workspace import Workspace

EXPORTS = ("merged", "adapter", "gguf", "modelfile", "card", "push", "trl", "unsloth", "llama-factory", "axolotl")


def register(command: shared.Command) -> None:
    sub = command("export", export, as_json=False)
    sub.add_argument("run")
    sub.add_argument("--what", choices=EXPORTS, default="merged")
    sub.add_argument("--to", metavar="FOLDER")
    sub.add_argument("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto",
                     help="merged: numbers of this kind; auto is what the base is stored in")  # fmt: skip
    sub.add_argument("--quantization", choices=tuple(kinds.KINDS), default="q4_k_m",
                     help="gguf: 16, 8 or about 5 bits a weight (%(default)s)")  # fmt: skip
    sub.add_argument("--without-asking", action="store_true",
                     help="gguf: do not ask it what the run was asked, to see what it lost")  # fmt: skip
    sub.add_argument("--llama-cpp", metavar="FOLDER", help="gguf: a llama.cpp in place of the one that make gguf built")
    sub.add_argument("--repository", metavar="OWNER/NAME", help="push: where on the hub; it is private")
    sub.add_argument("--public", action="store_true", help="push: let everybody see it")
    sub.add_argument("--only-adapter", action="store_true", help="push: the adapter without its base")


def export(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Take along what a run made, or its recipe for another trainer; --to names a folder that is new or empty."""
    if not made_something(workspace, arguments.run):
        return EXIT_FAILED
    if arguments.what != "push" and arguments.to is None:
        print(t("Say where with --to FOLDER."), file=sys.stderr)
        return EXIT_REFUSED
    return shared.written(lambda: _export(arguments, workspace))


def _export(arguments: argparse.Namespace, workspace: Workspace) -> list[str]:
    """Make one export and return what to print."""
    from engine.export import archive, artifacts, gguf, job_runner, other_trainers
    from engine.export import job as export_job
    from engine.export import parity as export_parity
    from engine.quantised import lost, said

    run_id, what, to = arguments.run, arguments.what, Path(arguments.to).absolute() if arguments.to else None
    if what in ("merged", "gguf", "push"):
        job = export_job.Job(
            what=what, to=None if to is None else str(to), dtype=arguments.dtype, checkout=arguments.llama_cpp,
            quantization=arguments.quantization, ask=not arguments.without_asking, repository=arguments.repository,
            public=arguments.public, only_adapter=arguments.only_adapter,
        )  # fmt: skip
        last = ""

        def told(state: export_job.State) -> None:
            nonlocal last
            share = f" {state.done_bytes / state.total_bytes:.0%}" if state.total_bytes else ""
            line = f"{export_job.phase_words().get(state.phase, state.phase)}{share}"
            if line != last:
                print(line, file=sys.stderr)
            last = line

        made = job_runner.run(workspace, run_id, job, told=told)  # a token: the user's own login, or HF_TOKEN
        if what == "gguf":
            written = gguf.read(Path(made))
            found = lost.read(Path(made))
            return [
                made,
                *([written.size(), *written.lines()] if written is not None else []),
                *([said.sentence(found), *said.notes(found)] if found is not None else []),
            ]
        folder = to if what == "merged" and to is not None else artifacts.whole(workspace, run_id)
        same = export_parity.read(folder) if folder is not None else None
        return [made, *(same.lines() if same is not None else [])]
    assert to is not None
    if what in other_trainers.TRAINERS:
        return [str(path) for path in other_trainers.write(workspace, run_id, what, to)]
    found = archive.write_part(workspace, run_id, what, to)
    parity = export_parity.read(workspace.run_dir(run_id))
    return [str(found), *(parity.lines() if parity is not None and what == "adapter" else [])]
