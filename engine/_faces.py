"""How the face of a package finds what it names: when it is first asked for, so that naming much costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazily(package: str, **names_in: str) -> Callable[[str], Any]:
    """Return a module's `__getattr__` (PEP 562) that takes each name from its module of the package, given as
    module="Name other_name"."""
    homes = {name: module for module, names in names_in.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"{package} has no {name}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return find
