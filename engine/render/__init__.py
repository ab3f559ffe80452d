"""How a base reads a row: its chat template and tokenizer without torch, and which tokens of the row are trained.

Coder.of_folder(folder, name) is all that is known of a base's texts; encode(row, coder, max_length) gives ids and labels.
The check, the preview of the mask, the statistics and the run all use these, so they agree to the token.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.render.coder import Coder, NoTokenizer
    from engine.render.encode import Encoded, Marked, Pair
    from engine.render.template import NotWritten
else:
    __getattr__ = lazily(__name__, coder="Coder NoTokenizer", encode="Encoded Marked Pair", template="NotWritten")

__all__ = [
    "Coder", "Encoded", "Marked", "NoTokenizer", "NotWritten", "Pair",
    "coder", "encode", "outcome", "preview", "skipped", "template",
]  # fmt: skip
