"""Bytes -> records with the lines they start on, and the layouts that rows can have.

source.Source opens a file as a stream and tells what it is; lines, documents and tables cut it into records; formats
says what columns mean, detection which layout a file has, turns what a message says and tool_calls what it calls;
literals reads a list that stands in a text; faults says why a record cannot be read.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.read.source import OnProgress
else:
    __getattr__ = lazily(__name__, source="OnProgress")

__all__ = [
    "OnProgress",
    "detection",
    "documents",
    "faults",
    "formats",
    "lines",
    "literals",
    "source",
    "tables",
    "texts",
    "tool_calls",
    "turns",
]
