"""Whether what is taken along says the same as what was trained: token ids and logits, compared."""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.words import t
from engine.workspace import find_struct

PARITY = "parity.json"


class Difference(msgspec.Struct, frozen=True):
    """Where a text becomes other tokens: the text, the first token that differs, and what stands there on both sides."""

    text: str
    token: int
    trained: str
    exported: str


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """Whether what is taken along says the same as what was trained.

    `tokens` of `texts` were compared. `logits` is the largest difference between the merged and the unmerged model, both
    asked in fp32, as a share of the largest logit, and `same_choice` the share of positions with the same likeliest token;
    None where nothing was merged. `rounded` and `kept_choice` are the same two between the merged model and what was
    written of it in the 16 bits `dtype`; None where nothing was rounded. `trained_in` names the bits the base was held in
    while training.
    """

    texts: int
    tokens: int
    differences: list[Difference] = []
    logits: float | None = None
    tolerance: float | None = None
    same_choice: float | None = None
    rounded: float | None = None
    kept_choice: float | None = None
    dtype: str = ""
    trained_in: str = "none"

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        if self.differences:
            found = [
                t(
                    "{n} of {texts} texts become other tokens with the exported tokenizer; give it the chat template of "
                    "training.",
                    n=len(self.differences),
                    texts=self.texts,
                )
            ]
            found += [
                t(
                    "At token {token} of “{text}”: “{trained}” in training, “{exported}” in the export.",
                    token=d.token, text=d.text[:60], trained=d.trained, exported=d.exported,
                )
                for d in self.differences[:3]
            ]  # fmt: skip
        else:
            found = [
                t(
                    "{texts} texts give the same {tokens} token ids as in training.",
                    texts=self.texts,
                    tokens=f"{self.tokens:,}",
                )
            ]
        if self.logits is not None:
            found.append(
                t(
                    "Merged and unmerged agree: logits differ by at most {off} % (allowed: {allowed} %), and {same} % of "
                    "the likeliest tokens are the same.",
                    off=_percent(self.logits), allowed=_percent(self.tolerance or 0),
                    same=f"{100 * (self.same_choice or 0):.4g}",
                )
            )  # fmt: skip
        if self.rounded is not None:
            found.append(
                t(
                    "Rounding the merged weights to {dtype} moves logits by at most {off} % and keeps {same} % of the "
                    "likeliest tokens; float32 keeps all.",
                    dtype=self.dtype, off=_percent(self.rounded), same=f"{100 * (self.kept_choice or 0):.4g}",
                )
            )  # fmt: skip
        if self.trained_in != "none":
            found.append(
                t(
                    "It was trained on a base held in {bits} bits and is merged into the unrounded one, so answers can "
                    "differ a little from the scores.",
                    bits=self.trained_in.removesuffix("bit"),
                )
            )
        return found


def _percent(share: float) -> str:
    """Return a small share as per cent, without an exponent."""
    return f"{100 * share:.6f}".rstrip("0").rstrip(".")


def read(folder: Path) -> Parity | None:
    """Return what was found when a run or an export was compared with its training; None when it never was."""
    return find_struct(folder / PARITY, Parity)
