"""Drafts: the one hand-off between pages. A partial spec with reasons, opened as /train?draft=<id>."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import msgspec

from engine import limits
from engine.plan import plans
from engine.spec import RunSpec, schema, settings
from engine.words import Problem
from engine.workspace import BadId, Workspace, find_struct, write_atomically


class Draft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be run, as far as it is known. `overrides` are dotted paths of the spec; `rules` the advisor's."""

    recipe: str
    base: str = "starter"
    dataset: str | None = None
    overrides: dict[str, Any] = {}
    reasons: list[str] = []
    rules: list[str] = []
    came_from: str = ""


def save(workspace: Workspace, draft: Draft) -> str:
    """Write a draft and return its id. Raises limits.OverLimit where a demo has no room for one more visitor."""
    limits.settle(workspace)
    draft_id = secrets.token_hex(8)
    write_atomically(workspace.draft_path(draft_id), msgspec.json.encode(draft))
    return draft_id


def load(workspace: Workspace, draft_id: str) -> Draft | None:
    """Return a draft, or None when there is none of that id or it cannot be read."""
    try:
        return find_struct(workspace.draft_path(draft_id), Draft)
    except BadId:
        return None


def unreadable(workspace: Workspace) -> dict[Path, Problem]:
    """Return the files of drafts that cannot be read, each with the reason."""
    paths = sorted(workspace.drafts_dir.glob("*.json"))
    return {path: Problem(rule="draft-damaged") for path in paths if load(workspace, path.stem) is None}


def base_of(run_spec: RunSpec) -> str:
    """Return the base of a run as a draft names it: at the commit the run was made on, though its branch may have moved.
    A demo knows the bases of its list alone."""
    return run_spec.base.ref if limits.on() else run_spec.base.pinned


def of_spec(workspace: Workspace, run_spec: RunSpec, *, came_from: str, changes: dict[str, Any] | None = None) -> Draft:
    """Return a draft that repeats a run: the same recipe, base, data and every setting that its recipe did not give."""
    return Draft(
        recipe=run_spec.recipe.name,
        base=base_of(run_spec),
        dataset=run_spec.dataset.id,
        overrides={**changed_settings(run_spec, workspace), **(changes or {})},
        came_from=came_from,
    )


def set_words(overrides: dict[str, Any]) -> list[str]:
    """Return the words of a command that make these changes."""
    words: list[str] = []
    for path, value in overrides.items():
        none = path in settings.NAMES_DATA and value is None  # there "null" would be a name
        shown = "" if none else value if isinstance(value, str) else json.dumps(value)
        words += ["--set", f"{path}={shown}"]
    return words


def changed_settings(run_spec: RunSpec, workspace: Workspace) -> dict[str, Any]:
    """Return the settings of a spec that differ from what its recipe would give on its base now."""
    try:
        plain = plans.make(
            workspace, run_spec.recipe.name, base=base_of(run_spec), dataset=run_spec.dataset.id, overrides={}
        ).spec
    except plans.CannotPlan:
        return {}
    given = {path: schema.value_at(run_spec, path) for path in settings.fields()}
    changed = {path: value for path, value in given.items() if value != schema.value_at(plain, path)}
    return msgspec.to_builtins(changed)
