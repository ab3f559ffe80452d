"""What a run is: one typed spec of two axes, and the recipes that fill it in.

RunSpec is spec.json; settings.fields() lists the paths that may be set; recipes.resolve(recipe, ...) makes a spec;
ranges says which values are known to work;
counts and split say what follows from one; versions tells a spec of a later version; OBJECTIVES what a run can optimise.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.spec.objectives import OBJECTIVES
    from engine.spec.schema import RunSpec
else:
    __getattr__ = lazily(__name__, objectives="OBJECTIVES", schema="RunSpec")

__all__ = [
    "OBJECTIVES",
    "RunSpec",
    "counts",
    "groups",
    "objectives",
    "ranges",
    "recipes",
    "schema",
    "settings",
    "split",
    "tolerances",
    "versions",
]
