"""Runs: a folder each, a supervisor each, and every page a view of the files.

lifecycle.start(workspace, spec) begins one; store knows what it is and how it stands; follow watches it; turns is the
queue; failures says in words what went wrong.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.runs.store import Run
else:
    __getattr__ = lazily(__name__, store="Run")

__all__ = ["Run", "admission", "checkpoints", "environment", "failures", "follow", "lifecycle", "store", "turns"]
