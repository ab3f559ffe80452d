"""The window of a base, and which rows are longer than it."""

from __future__ import annotations

from engine.check.report import DatasetError
from engine.models import Base

# Rows that may be too long for a model are counted token by token when they are no more than this.
WINDOW_BYTES = 8 << 20


class Window:
    """The window of a base, and what counts the tokens of a row. Raises DatasetError when they cannot be counted."""

    def __init__(self, base: Base):
        from engine.models import templates

        try:
            self.coder = templates.Coder(base)
        except templates.NoTokenizer as error:
            raise DatasetError(error.problem) from None
        self.tokens = base.window_tokens or 1 << 62
        # What a template adds to the shortest exchange. Each further turn brings more bytes of JSON than tokens.
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        [added] = self.coder.lengths([{"messages": turns}])
        self.least_bytes = max(0, self.tokens - (added or 64))
