"""The same question to a base and to runs made from it, side by side, and votes that become data."""

__all__ = ["child", "protocol", "votes"]
