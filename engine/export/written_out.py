"""A run's rows written out as its base reads them, for a trainer that has chat templates of its own.

Such a trainer writes the marks around turns by a table or a guess, and leaves out what its table does not have. So it is
handed the texts themselves, what is only read and what is trained in turn, and told to add nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from engine import looker
from engine.data import datasets
from engine.export.artifacts import because, refused
from engine.export.portable_recipe import EVALUATE, TRAIN
from engine.models import bases
from engine.render import Coder, Encoded, Marked, NotWritten, Pair, encode
from engine.spec import RunSpec, split
from engine.workspace import Workspace

TEMPLATE = "chat_template.jinja"
_TOLD_EVERY = 10  # rows


def write(workspace: Workspace, run_spec: RunSpec, folder: Path) -> list[str]:
    """Write the rows of a run into a folder, and return what of them is not as in the run. Raises NotExportable when the
    tokenizer of the base cannot be used or the data is gone."""
    base = bases.describe(run_spec.base.ref, workspace, run_spec.base.revision)
    files = base.folder or base.looked_at
    for dataset_id in filter(None, (run_spec.dataset.id, run_spec.dataset.eval_id)):
        if not datasets.rows_path(workspace, dataset_id).is_file():
            raise refused("dataset-missing", id=dataset_id[:80])
    try:
        return looker.ask(
            _write, workspace, run_spec, files, folder,
            at=files, progress=looker.patiently, memory_bytes=looker.memory_for(None),
        )  # fmt: skip
    except looker.Refused as error:
        raise because(error.problem) from error


class _Written(NamedTuple):
    """A row as it is handed over, whether it comes to other tokens there, and how many tokens it trains where nothing
    stands before them (0: something does)."""

    row: dict[str, Any]
    differs: bool
    alone: int


def _write(
    workspace: Workspace, run_spec: RunSpec, files: Path | None, folder: Path, progress: looker.OnProgress
) -> list[str]:
    coder = Coder.of_folder(files, run_spec.base.ref, run_spec.day)
    train, out = split.divide(run_spec.dataset, lambda one: datasets.read_rows(workspace, one))
    rows, differ, alone, tokens = 0, 0, 0, 0
    for name, some in ((TRAIN, train), *([(EVALUATE, out)] if out else [])):
        with (folder / name).open("w", encoding="utf-8", newline="\n") as file:
            for at, row in enumerate(some):
                if at % _TOLD_EVERY == 0:
                    progress(at, len(some))
                if (one := _written(row, coder, run_spec.train.max_length)) is None:
                    continue
                file.write(json.dumps(one.row) + "\n")
                rows, differ = rows + 1, differ + one.differs
                alone, tokens = alone + (one.alone > 0), tokens + one.alone
    found = []
    if differ:
        found.append(
            f"{differ} of {rows} rows come to other tokens there, which reads each of their parts by itself: where a part "
            "begins, letters may be put together otherwise"
        )
    if alone:
        found.append(
            f"{alone} texts are trained from their first token, which nothing foretells but the mean there counts: their "
            f"losses are smaller by 1 in {tokens // alone}"
        )
    if coder.is_plain:
        (folder / TEMPLATE).write_text(coder.template.source, encoding="utf-8")
        found.append(f"its base has no chat template, and the rows are written in Tunebook's: copy {TEMPLATE} into out")
    return found


def _written(row: dict[str, Any], coder: Coder, max_length: int) -> _Written | None:
    """A row as it is handed over; None where the run left it out too."""
    try:
        texts = encode.texts(row, coder, max_length)
        coded = encode.encode_any(row, coder).within(max_length)
    except NotWritten:
        return None
    if not texts or coded is None:
        return None
    parts = [coder.code(text).ids for text in texts]
    first, second = _turn("user", texts[0]), _turn("assistant", texts[1])
    if isinstance(coded, Pair):
        made: dict[str, Any] = {"messages": [first], "chosen": second, "rejected": _turn("assistant", texts[2])}
        same = parts == [coded.prompt_ids, coded.chosen_ids, coded.rejected_ids]
    elif isinstance(coded, Marked):
        made = {"messages": [first, second], "label": coded.label}
        same = parts == [coded.prompt_ids, coded.completion_ids]
    else:
        made = {"messages": [_turn(("user", "assistant")[at % 2], text) for at, text in enumerate(texts)]}
        same = _same(parts, coded)
    return _Written(made, not same, 0 if texts[0] else coded.needed)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _same(parts: list[list[int]], coded: Encoded) -> bool:
    """Whether texts that are read one by one come to the tokens of the whole, trained where it is trained."""
    ids = [one for part in parts for one in part]
    labels = [one if at % 2 else encode.IGNORED for at, part in enumerate(parts) for one in part]
    told = [*labels[:1], *coded.labels[1:]]  # no token foretells the first
    return ids == coded.input_ids[: coded.needed] and labels == told[: coded.needed]
