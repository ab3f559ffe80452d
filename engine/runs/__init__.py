"""Runs: a folder each, a supervisor each, and every page a view of the files.

lifecycle.start(workspace, spec) begins one; store knows what it is and how it stands; follow watches it; device_queue is
the queue; failures says in words what went wrong; needs who else needs one; scored joins all that was asked of one.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.runs.scored import ScoredRun
    from engine.runs.store import Run
else:
    __getattr__ = lazily(__name__, scored="ScoredRun", store="Run")

__all__ = [
    "Run",
    "ScoredRun",
    "admission",
    "checkpoints",
    "device_queue",
    "environment",
    "failures",
    "follow",
    "lifecycle",
    "needs",
    "scored",
    "store",
]
