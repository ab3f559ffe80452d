"""Libraries and data that the pages need, loaded while the server waits for its first visitor."""

from __future__ import annotations

import gc
import importlib
import pkgutil
import threading
from contextlib import suppress

import pages
from engine import looker
from engine.advise import guide
from engine.benchmarks import shipped
from engine.spec import recipes


def begin() -> None:
    """Load them in a thread of its own, so that the server answers meanwhile; a page waits for what it needs itself."""
    threading.Thread(target=_load, name="preload", daemon=True).start()


def _load() -> None:
    parts = [f"pages.{one.name}" for one in pkgutil.iter_modules(pages.__path__) if one.name.startswith("_")]
    parts.remove("pages._frame")  # it is the page itself
    # What is wrong with a file is said by the page that needs it.
    with suppress(Exception):
        looker.prepare()
        for name in ["pyarrow", "pandas", "plotly.graph_objects", "PIL.Image", "scipy.special", *parts]:
            importlib.import_module(name)
        recipes.recipes()
        guide.rules()
        shipped.shipped()
        # What is there now stays: a collection of garbage need not go through it, and so comes more often and costs less.
        gc.collect()
        gc.freeze()
        gc.collect()
