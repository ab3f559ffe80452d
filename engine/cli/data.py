"""tunebook check, download, open."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.cli import shared
from engine.cli.shared import EXIT_FAILED, EXIT_OK, EXIT_REFUSED, mapping, print_json, refuse
from engine.words import Problem, language, rules, t
from engine.workspace import Workspace


def register(command: shared.Command) -> None:
    sub = command("check", check)
    sub.set_defaults(parser=sub)
    sub.add_argument("file", nargs="?")
    sub.add_argument("--base", help="name rows that this base refuses or cuts: starter, a folder, a Hugging Face id")
    sub.add_argument(
        "--max-length", type=int, metavar="TOKENS", help="with --base: where rows are cut; 1024 by default"
    )
    sub.add_argument("--eval-data", metavar="FILE", help="name rows that ask what a row of this validation data asks")
    sub.add_argument("--rules", action="store_true", help="list the rules instead")
    shared.take_map(sub)
    sub.add_argument(
        "--problems", metavar="FILE", type=Path, help="write every problem to FILE, one JSON object a line"
    )
    sub = command("download", download)
    sub.add_argument("ref", help="owner/name, or owner/name@revision, or a GGUF file to be read once")
    sub.add_argument("--name", default="", help="what to call the model of a GGUF file")
    sub.add_argument("--tokenizer", metavar="FOLDER", help="the folder with the tokenizer a GGUF file was made with")
    sub = command("open", take_in)
    sub.add_argument("file", type=Path, help='what "Take this along" on Train made, here or in a demo')


def take_in(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Store the data and settings of a file that was taken along from another Tunebook, and say how to go on."""
    from engine.check import DatasetError
    from engine.plan import drafts, take_along

    try:
        opened = take_along.unpack(workspace, arguments.file)
    except DatasetError as error:
        print(error.problem.sentence, file=sys.stderr)
        return EXIT_REFUSED
    except OSError as error:
        print(f"{arguments.file}: {error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED
    draft, dataset = opened.draft, opened.dataset
    words = ["tunebook", "train", draft.recipe, "--base", draft.base, "--data", dataset.id if dataset else "FILE"]
    words += drafts.set_words(draft.overrides)
    command = shlex.join(words)
    if arguments.json:
        print_json({"draft": opened.draft_id, "dataset": dataset.id if dataset else None, "command": command})
        return EXIT_OK
    for reason in draft.reasons:
        print(reason)
    print(t("Train it:  {command}", command=command))
    print(
        t("Or on the pages (tunebook app): {address}", address=f"http://127.0.0.1:8501/train?draft={opened.draft_id}")
    )
    return EXIT_OK


def check(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Check a file, or a folder of texts (.md, .txt), and name every bad row; exit 0 when it can be trained on."""
    import tempfile

    from engine.check import DatasetError, apart, problem_to_json
    from engine.models import bases
    from engine.spec import settings
    from engine.workspace import write_atomically

    if arguments.rules:
        return _list_rules(as_json=arguments.json)
    file, target = Path(arguments.file or ""), arguments.problems
    if not arguments.file:
        arguments.parser.error(t("name the file to check, or --rules"))
    if target and target.exists() and file.exists() and target.samefile(file):
        print(t("{path} is the data itself; choose another file for the problems.", path=target), file=sys.stderr)
        return EXIT_REFUSED
    if arguments.max_length is not None:
        length = settings.convert_setting("train.max_length", arguments.max_length)
        if isinstance(length, Problem):
            return refuse([length])
    with tempfile.TemporaryDirectory() as folder:
        every = Path(folder) / "problems.jsonl"
        try:
            report = apart.report_of(
                file,
                mapping=mapping(arguments),
                problems_path=every if target else None,
                base=bases.describe(arguments.base, workspace) if arguments.base else None,
                max_length=arguments.max_length,
                progress=_percent(),
                against=Path(arguments.eval_data) if arguments.eval_data else None,
            )
        except DatasetError as error:
            print(error.problem.sentence, file=sys.stderr)
            return EXIT_FAILED
        if target:
            lines = [json.dumps(problem_to_json(p), ensure_ascii=False) + "\n" for p in report.problems]
            write_atomically(target, every.read_bytes() if every.exists() else "".join(lines).encode())
            report = msgspec.structs.replace(report, problems_file=str(target))
    if arguments.json:
        print_json(report.to_json())
    else:
        print("\n".join(report.lines()))
    return EXIT_OK if report.trainable else EXIT_FAILED


def _list_rules(*, as_json: bool) -> int:
    """Print the id of every rule of the check with a line of help: errors first, then warnings."""
    helped = {name: rule.help for name, rule in rules.rules().items() if rule.help}
    order = sorted(helped, key=lambda name: (helped[name].partition(".")[0], name))
    told = {name: t(helped[name]) for name in order}
    if as_json:
        print_json(told)
    else:
        width = max(map(len, told))
        print("\n".join(f"{name:<{width}}  {text}" for name, text in told.items()))
    return EXIT_OK


def download(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Fetch a model from the hub, or read a GGUF file; what was stopped on the hub goes on. A token comes from HF_TOKEN or
    the hub's own login."""
    from engine.models import hub, hub_client

    told = _percent()
    if arguments.ref.lower().endswith(".gguf"):
        return _read_gguf(arguments, workspace, told)
    try:
        commit = hub.fetch(arguments.ref, progress=told)
    except hub_client.HubError as error:
        print(error.problem.sentence, file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(t("Stopped. The same command goes on where it ended."), file=sys.stderr)
        return EXIT_FAILED
    if arguments.json:
        print_json({"ref": arguments.ref, "commit": commit})
    else:
        print(t("{ref} is on this machine, at commit {commit}.", ref=arguments.ref, commit=commit))
    return EXIT_OK


def _percent() -> Callable[[int, int], None]:
    """Return what shows a growing percentage on a terminal."""
    shown = -1

    def told(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(1, total)
        if percent != shown and sys.stderr.isatty():
            shown = percent
            print(f"\r{percent} %", end="", file=sys.stderr, flush=True)

    return told


def _read_gguf(arguments: argparse.Namespace, workspace: Workspace, told: Callable[[int, int], None]) -> int:
    """Read a GGUF file into the workspace, in a child, since that needs torch."""
    from engine.data import jobs
    from engine.gguf import tokenizers
    from engine.models import bases

    mended = ("gguf-unread", *(tokenizers.MENDED_BY_A_FOLDER if arguments.tokenizer else ()))
    for problem in bases.describe(arguments.ref, workspace).problems:
        if problem.rule not in mended:
            print(problem.sentence, file=sys.stderr)
            return EXIT_FAILED
    call = jobs.Call(
        workspace=str(workspace.root), name=arguments.name,
        gguf=str(Path(os.path.expanduser(arguments.ref.removeprefix("gguf:"))).absolute()),
        tokenizer=str(Path(os.path.expanduser(arguments.tokenizer)).absolute()) if arguments.tokenizer else None,
        language=language(),
    )  # fmt: skip
    job = jobs.start(call)
    try:
        while (result := jobs.result(job)) is None:
            now = jobs.progress(job)
            told(now.done, now.total)
            time.sleep(0.1)
    except BaseException:
        jobs.stop(job)
        raise
    jobs.forget(job)
    if result.problem is not None or result.folder is None:
        print(result.problem.sentence if result.problem else "", file=sys.stderr)
        return EXIT_FAILED
    if arguments.json:
        print_json({"ref": result.folder})
    else:
        title = bases.describe(result.folder, workspace).title
        print(t("{name} is on this machine: --base {folder}", name=title, folder=result.folder))
    return EXIT_OK
