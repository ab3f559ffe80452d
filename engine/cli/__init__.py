"""The command line: tunebook check, advise, fit, train, evaluate, sweep, runs, show, stop, resume, compare, export,
app.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.cli.parser import main
else:
    __getattr__ = lazily(__name__, parser="main")

__all__ = ["main"]
