"""Make GGUF files of finished runs and tell what each lost against the model it was made of.

    python -m bench.measure.quantised RUN [RUN ...]

The runs lie in $TUNEBOOK_HOME, and `make gguf` has built llama.cpp. A file that was asked already is not made again; the
page is written anew after every file.
"""

from __future__ import annotations

import argparse
import sys

import msgspec

from bench.measure import table
from engine.export import NotExportable, gguf, job_runner
from engine.export.job import Job
from engine.gguf import kinds
from engine.models import bases
from engine.quantised import lost
from engine.report import Comparison, paired
from engine.runs import store
from engine.workspace import Workspace, append_line, default_workspace

ROWS, PAGE = table.TABLES / "quantised.jsonl", table.PAGES / "quantised.md"


class Figure(msgspec.Struct, frozen=True):
    """A change with the ends of its 95 % interval, of `n` questions, or rows and texts."""

    change: float
    low: float
    high: float
    n: int


class Row(msgspec.Struct, frozen=True):
    """What a file of a run lost."""

    run: str
    base: str
    recipe: str
    name: str
    mb: float
    share: float | None
    points: Figure | None
    nats: Figure | None
    same: int
    prompts: int
    in_16_bits: int | None
    minutes: float
    rounded_bits: int | None
    versions: dict[str, str]


def read() -> list[Row]:
    """Return the files that were asked."""
    lines = ROWS.read_bytes().splitlines() if ROWS.is_file() else []
    return [msgspec.json.decode(line, type=Row) for line in lines]


def measure(workspace: Workspace, run_id: str, kind: str) -> Row | str:
    """Make a file, ask it, and return its row; in words why there is none."""
    file = gguf.file_of(workspace, run_id, kind)
    if lost.read(file) is None:
        try:
            job_runner.run(workspace, run_id, msgspec.convert({"what": "gguf", "quantization": kind}, Job))
        except NotExportable as error:
            return str(error)
    found = lost.read(file)
    same = found.lost.same if found is not None else None
    if found is None or same is None:
        return str(found.lost.failure) if found is not None else "it was not asked"
    told, spec = found.lost, store.load_spec(workspace, run_id)
    in_16_bits = same if kind == lost.PLAIN else told.same_in_16_bits
    return Row(
        run=run_id, base=bases.describe(spec.base.ref, workspace).title, recipe=spec.recipe.name, name=found.name,
        mb=told.size_bytes / 1e6, share=told.size_bytes / told.plain_bytes if told.plain_bytes else None,
        points=_figure(found.points, 100), nats=_figure(found.nats, 1), same=same.n - len(same.differences),
        prompts=same.n, in_16_bits=None if in_16_bits is None else in_16_bits.n - len(in_16_bits.differences),
        minutes=told.seconds / 60, rounded_bits=told.rounded_bits, versions=told.versions,
    )  # fmt: skip


def _figure(row: Comparison | None, scale: float) -> Figure | None:
    if row is None or paired.too_few(row):
        return None
    return Figure(scale * row.change, scale * row.low, scale * row.high, row.n)


def page(rows: list[Row]) -> str:
    """Return the table as a person reads it."""
    versions = sorted({f"{name} {version}" for row in rows for name, version in row.versions.items()})
    lines = [
        "# What a quantised file lost",
        "",
        "Finished runs as GGUF files, each asked what its run was asked, and the whole model the same, in pairs: points "
        "over all questions that are right or wrong, nats per token over rows and texts (more is worse), 95 % intervals "
        "and, in brackets, how many. The model answers through transformers in fp32, the file through llama.cpp with keys "
        "and values in fp32, both on the processor. Same answers: greedy ones of 32 tokens to 20 prompts, word by word; in "
        "16 bits: of the file before it was rounded further.",
        "Made by `python -m bench.measure.quantised RUN ...`; one seed each; minutes were taken on cores that other work "
        "shared, and count only answers that were not kept from before. "
        f"{', '.join(versions)}.",
        "",
        "| base | recipe | file | MB | of 16 bits | points | nats a token | same answers | in 16 bits | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(_line, rows),
        "",
    ]
    if any(row.rounded_bits for row in rows):
        lines += [
            "† The base had been rounded to 4 bits before it was trained, and is easily rounded once more: its losses are "
            "flattered.",
            "",
        ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    share = "" if row.share is None else f"{row.share:.2f}"
    in_16_bits = "" if row.in_16_bits is None else f"{row.in_16_bits} of {row.prompts}"
    flattered = " †" if row.rounded_bits else ""
    return (
        f"| {row.base}{flattered} | {row.recipe} | {row.name} | {row.mb:.1f} | {share} "
        f"| {_told(row.points, 1)} | {_told(row.nats, 3)} | {row.same} of {row.prompts} | {in_16_bits} | {row.minutes:.1f} |"
    )


def _told(figure: Figure | None, digits: int) -> str:
    if figure is None:
        return ""
    return f"{figure.change:+.{digits}f} [{figure.low:+.{digits}f}, {figure.high:+.{digits}f}] ({figure.n})"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.measure.quantised", description="Tell what the GGUF files of runs lost."
    )
    parser.add_argument("runs", nargs="*", help="finished runs of this home; none: write the page alone")
    failed = 0
    for run_id in parser.parse_args().runs:
        for kind in reversed(kinds.KINDS):
            if any((row.run, row.name) == (run_id, kinds.KINDS[kind].title) for row in read()):
                continue
            found = measure(default_workspace(), run_id, kind)
            if isinstance(found, str):
                failed += 1
                print(f"{run_id}, {kind}: {found}", file=sys.stderr, flush=True)
                continue
            append_line(ROWS, msgspec.json.encode(found))
            PAGE.write_text(page(read()), "utf-8")
            print(f"{run_id}, {found.name}: {found.minutes:.1f} minutes", flush=True)
    PAGE.write_text(page(read()), "utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
