"""Base models: what one is, read from its files alone, and the hub they come from. No weights, no torch.

bases.describe(ref, workspace) says all that is known of starter, a folder, an id of the hub or run:<id>; shapes holds
its dimensions; folders.look(path) says what a folder is; hub searches, looks and fetches.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.models.bases import Base
else:
    __getattr__ = lazily(__name__, bases="Base")

__all__ = [
    "Base",
    "alike",
    "bases",
    "cache",
    "download",
    "folders",
    "hub",
    "hub_client",
    "made",
    "shapes",
    "shortlist",
    "weights",
]
