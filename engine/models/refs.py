"""How a base is named: an id of the hub, with @revision where one is meant."""

from __future__ import annotations

import re

# owner/name or a bare legacy name, as huggingface_hub's validator takes them
HUB_ID = re.compile(r"(?:\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", re.ASCII)
# a branch, a tag, refs/pr/1 or a commit; git's rules are stricter still
_REVISION = re.compile(r"[\w][\w.-]*(?:/[\w][\w.-]*){0,4}", re.ASCII)
PART = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")


def split_ref(ref: str) -> tuple[str, str | None]:
    """Return the id and the revision of owner/name@revision."""
    name, _, revision = ref.strip().partition("@")
    return (name, revision) if revision else (ref.strip(), None)


def is_revision(text: str) -> bool:
    """Whether a text can name a revision; it becomes part of a path, so .. never can."""
    return len(text) <= 100 and bool(_REVISION.fullmatch(text)) and ".." not in text
