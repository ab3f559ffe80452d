"""Models that were tuned elsewhere: what a folder brings, whether it can be trusted and fits a base, and how it is copied.

folder.look(path) says what can be taken; adapters reads what an adapter is; folder.take(...) copies it into a run.
"""

__all__ = ["adapters", "folder"]
