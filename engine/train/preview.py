"""python -m engine.train.preview WORKSPACE DATASET BASE OUT: some rows as the base reads them, each token trained or not.

What is trained is decided by the functions that training itself uses. Only the tokenizer is loaded, no model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from engine.data import masks
from engine.models import bases
from engine.render import Coder, Marked, NotWritten, Pair, encode
from engine.runs import failures
from engine.train import rows
from engine.train.tokenize import coder_of, get_ready
from engine.words import Problem
from engine.workspace import Workspace, write_atomically


def parts(row: dict[str, Any], coder: Coder) -> tuple[list[tuple[str, list[int], list[bool]]], dict[str, int]]:
    """Return what a canonical row is read as: (name of the part, token ids, trained or not), and what the template
    leaves out of it. A pair is read twice. Raises NotWritten."""
    coded = encode.encode_any(row, coder)
    if isinstance(coded, Pair):
        found = [
            (name, [*coded.prompt_ids, *answer], [False] * len(coded.prompt_ids) + [True] * len(answer))
            for name, answer in (("chosen", coded.chosen_ids), ("rejected", coded.rejected_ids))
        ]
    elif isinstance(coded, Marked):
        ids = [*coded.prompt_ids, *coded.completion_ids]
        asked = len(coded.prompt_ids)
        found = [("good" if coded.label else "bad", ids, [at >= asked for at in range(len(ids))])]
    else:
        # The first token has no predecessor, so it is never predicted.
        trained = [at > 0 and label != encode.IGNORED for at, label in enumerate(coded.labels)]
        found = [("", coded.input_ids, trained)]
    return found, coded.dropped or {}


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return the text of each token; a character that several tokens share stands at the last of them."""
    shown: list[str] = []
    held: list[int] = []
    for one in ids:
        held.append(one)
        text = tokenizer.decode(held, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and len(held) < 8:
            shown.append("")
        else:
            shown.append(text)
            held = []
    return shown


def look(workspace: Workspace, dataset_id: str, base_ref: str) -> masks.Masks:
    """Return the preview of a data set. Raises RunRefused when the base cannot be used or its template refuses all."""
    from transformers import AutoTokenizer

    base = bases.describe(base_ref, workspace)
    if base.problems:
        raise failures.RunRefused(base.problems[0])
    source = str(base.folder) if base.folder is not None else base.ref
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise failures.RunRefused(Problem(rule="model-load", parameters={"reason": reason})) from error
    plain = get_ready(tokenizer, base.folder)
    coder = coder_of(tokenizer)
    window = base.window_tokens or 10**9
    every = rows.read_rows(workspace, dataset_id, masks.COUNTED_ROWS)
    shown: list[masks.Row] = []
    untrained = refused = tokens = trained = 0
    problem: Problem | None = None
    step = max(1, len(every) // masks.SHOWN_ROWS)
    for number, row in enumerate(every):
        try:
            found, _ = parts(row, coder)
        except NotWritten as error:
            refused, problem = refused + 1, problem or error.problem
            continue
        inside = sum(sum(flags[:window]) for _, _, flags in found)
        untrained += not inside
        tokens += sum(len(ids) for _, ids, _ in found)
        trained += inside
        if number % step == 0 and len(shown) < masks.SHOWN_ROWS:
            shown.append(
                masks.Row(
                    line=row["line"],
                    parts=tuple(
                        masks.Part(
                            name=name,
                            pieces=tuple(pieces(tokenizer, ids[: masks.SHOWN_TOKENS])),
                            trained=tuple(flags[: masks.SHOWN_TOKENS]),
                            tokens=len(ids),
                            trained_tokens=sum(flags[:window]),
                            cut=len(ids) > window,
                        )
                        for name, ids, flags in found
                    ),
                )
            )
    if refused == len(every) and problem is not None:
        raise failures.RunRefused(problem)
    if not trained:
        problem = Problem(rule="mask-nothing", parameters={"window": window})
    return masks.Masks(
        rows=tuple(shown), counted=len(every), untrained=untrained, refused=refused, tokens=tokens, trained=trained,
        plain_template=plain, problem=problem,
    )  # fmt: skip


def main() -> int:
    root, dataset_id, base_ref, out = sys.argv[1:5]
    try:
        found = look(Workspace(root), dataset_id, base_ref)
    except failures.RunRefused as error:
        found = masks.Masks(problem=error.problem)
    write_atomically(Path(out), msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
