"""Data sets: stored, divided, mended, mixed, counted; and the files they come from."""

__all__ = ["division", "hub_data"]
