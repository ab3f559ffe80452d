"""A report to take along: the figures as CSV and JSON, and one HTML file with everything in it.

The HTML (report.html.jinja) asks no other host for anything, holds no script, and says so in its own policy; charts are
SVG. Whatever comes from a person or a model is escaped.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine import __version__
from engine.report import items, paired, verdicts
from engine.words import language, t

if TYPE_CHECKING:
    import jinja2

# A spreadsheet takes a text that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
MOST_LETTERS = 44  # of a label of the chart


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the report: its heading, sentences, and a table whose cells are texts as they are shown; either may be
    left out."""

    title: str
    lines: list[str] = []
    header: list[str] = []
    rows: list[list[str]] = []


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the chart of changes: a value and its ends, in points."""

    label: str
    value: float
    low: float
    high: float


def records(
    rows: Sequence[paired.Comparison], judged: Sequence[verdicts.Judged] = (), titles: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return one flat record per line of a comparison, with the verdict on general benchmarks."""
    about = {one.row.benchmark: one for one in judged}
    found = []
    for row in rows:
        told = about.get(row.benchmark) if row.family == items.ALL else None
        found.append(
            {
                **{name: value for name, value in msgspec.structs.asdict(row).items() if name != "looks"},
                "title": verdicts.title(row.benchmark, titles),
                "unit": verdicts.unit(row),
                "verdict": told.verdict if told else None,
                "could_have_lost": told.could_have_lost if told else None,
                "detectable": told.detectable if told else None,
                "retention": told.retention if told else None,
                "chance": told.chance if told else None,
                "p": told.p if told else None,
                "p_holm": told.p_holm if told else None,
            }
        )
    return found


def as_csv(found: Sequence[Mapping[str, Any]]) -> bytes:
    """Return records as CSV with a byte-order mark, which spreadsheets need to read UTF-8; no text becomes a formula."""
    out = io.StringIO()
    if found:
        writer = csv.DictWriter(out, fieldnames=list(found[0]), lineterminator="\r\n")
        writer.writeheader()
        for record in found:
            writer.writerow({k: _cell(v) for k, v in record.items()})
    return out.getvalue().encode("utf-8-sig", "replace")


def _cell(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return None  # what has no bound
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def as_json(value: Any) -> bytes:
    """Return a value as JSON for people to read; what has no bound becomes null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1)


def as_html(
    *,
    heading: str,
    sentence: str,
    about: Sequence[str],
    first: Part,
    changes: Sequence[Interval],
    folds: Sequence[Part],
) -> bytes:
    """Return one HTML page in the language of this thread: the answer in a sentence, what it rests on in a table and a
    chart, and all else in folds, which are open on paper. A wide table is scrolled by itself, by keyboard too."""
    page = _page().render(
        heading=heading, sentence=sentence, about=about, first=first, chart=_chart(changes) if changes else None,
        folds=folds, version=__version__, lang=language(),
    )  # fmt: skip
    return page.encode("utf-8", "replace")


@cache
def _page() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.jinja")


def _chart(changes: Sequence[Interval]) -> dict[str, Any]:
    """Return where everything lies in the chart: values with their intervals against no change, one a line. Words stand
    above their line, so that a narrow screen shows both."""
    width, edge, step = 400.0, 8.0, 44.0
    ends = [0.0, *(x for one in changes for x in (one.low, one.high))]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0

    def x(value: float) -> str:
        return f"{edge + (width - 2 * edge) * (value - low) / span:.1f}"

    bars = [
        {
            "label": _labelled(one), "text_y": f"{step * index + 16:.0f}", "y": f"{step * index + 30:.0f}",
            "zero_top": f"{step * index + 21:.0f}", "zero_end": f"{step * index + 39:.0f}",
            "low": x(one.low), "high": x(one.high), "mark": x(one.value),
        }
        for index, one in enumerate(changes)
    ]  # fmt: skip
    title = t("Changes in points, with 95 % intervals")
    return {
        "title": title, "label": f"{title}. {'; '.join(map(_labelled, changes))}",
        "width": f"{width:.0f}", "height": f"{step * len(changes):.0f}", "zero": x(0), "bars": bars,
    }  # fmt: skip


def _labelled(one: Interval) -> str:
    label = one.label if len(one.label) <= MOST_LETTERS else one.label[: MOST_LETTERS - 1] + "…"
    return t("{name}: {text}", name=label, text=f"{one.value:+.1f}")
