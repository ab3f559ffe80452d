"""The command line: tunebook check, grade, advise, fit, train, evaluate, sweep, runs, show, stop, resume, compare, export,
serve, app."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from engine import __version__, guard, limits, processes
from engine.cli import advise, data, export, fit, forgetting, grade, runs, serve, shared
from engine.cli.shared import EXIT_FAILED
from engine.spec import recipes
from engine.words import Problem, environment_language, languages, set_language
from engine.workspace import Unreadable, Workspace, default_workspace


def app(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Open the pages; further arguments go to streamlit, such as --server.port 8600."""
    root = processes.PROJECT_DIR
    names = arguments.share_host or []
    if wrong := [name for name in names if guard.split_host(name) is None]:
        return shared.refuse([Problem(rule="share-host", parameters={"name": wrong[0][:200]})])
    if names:  # else what the environment names, which a container sets
        os.environ["TUNEBOOK_SHARE_HOST"] = " ".join(names)
    flags = [] if (root / ".streamlit" / "config.toml").exists() else _FLAGS
    if os.environ.get("TUNEBOOK_SHARE_HOST"):
        flags = [*flags, "--server.allowedHosts=*"]  # engine/guard.py knows the names, and asks for a login
    if limits.on():  # a half-sent message is held in memory; the largest that a page sent was 5 kB
        flags = [*flags, f"--server.maxMessageSize={limits.limits().message_mb}"]
    command = [sys.executable, "-m", "streamlit", "run", str(root / "app.py"), *flags, *arguments.streamlit]
    os.execv(sys.executable, command)  # noqa: S606 - a list, no shell; this process becomes the server


# What .streamlit/config.toml says, for an installation that lacks the file: a wheel does not carry it.
_FLAGS = [
    "--server.address=127.0.0.1", "--server.showEmailPrompt=false", "--browser.gatherUsageStats=false",
    "--server.fileWatcherType=none", "--server.allowedHosts=localhost", "--server.allowedHosts=127.0.0.1",
    "--server.allowedHosts=::1",
    "--server.maxUploadSize=1", "--global.disableWidgetStateDuplicationWarning=true",
    "--runner.postScriptGC=false",
]  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each file beside this one adds its own."""
    made = argparse.ArgumentParser(prog="tunebook", description="Fine-tune language models, and see what they forget.")
    made.add_argument("--version", action="version", version=__version__)
    made.add_argument("--lang", choices=languages(), help="the language of sentences; else TUNEBOOK_LANG or LANG")
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, *, as_json: bool = True) -> argparse.ArgumentParser:
        # argparse fills in the percent signs of `help`, and leaves those of `description` alone
        sub = commands.add_parser(name, help=function.__doc__.replace("%", "%%"), description=function.__doc__)
        sub.set_defaults(function=function)
        if as_json:
            sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    for group in (data, grade, advise, fit, runs, forgetting, export, serve):
        group.register(command)
    pages = command("app", app, as_json=False)
    pages.set_defaults(streamlit=[])
    pages.add_argument(
        "--share-host", action="append", metavar="NAME", help="a name under which others reach the pages, after a login"
    )
    return made


def main(argv: list[str] | None = None) -> None:
    """Entry point of `tunebook` and of `python -m engine.cli`."""
    arguments, rest = parser().parse_known_args(argv)
    if rest and arguments.function is not app:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    set_language(arguments.lang or environment_language())
    if sys.platform == "win32":  # stopping, queueing and following a run stand on signals and locks that it has not
        print(Problem(rule="windows").sentence, file=sys.stderr)
        sys.exit(shared.EXIT_REFUSED)
    if arguments.function is app:
        arguments.streamlit = rest
    try:
        code = arguments.function(arguments, default_workspace())
        sys.stdout.flush()  # here, where a reader that has gone is met; at the exit it would be a traceback
        sys.exit(code)
    except recipes.RecipeError as error:
        sys.exit(shared.refuse([Problem(rule="recipe-broken", where="recipe", parameters={"reason": str(error)})]))
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is to be flushed there
        sys.exit(EXIT_FAILED)
    except (OSError, Unreadable) as error:  # a home that is full, may only be read, or is damaged
        sys.exit(shared.failed(error))
