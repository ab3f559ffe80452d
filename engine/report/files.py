"""A report to take along: the figures as CSV and JSON, and one HTML file with everything in it.

The HTML asks no other host for anything, holds no script, and says so in its own policy; charts are SVG drawn here.
Whatever comes from a person or a model is escaped.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine import __version__
from engine.report import items, paired, verdicts
from engine.words import t

# A spreadsheet takes a text that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#14161a;background:#fff}
table{border-collapse:collapse;margin:1rem 0;width:100%;font-size:.9rem}
th,td{border-bottom:1px solid #c9cfdd;padding:.35rem .5rem;text-align:left;vertical-align:top;white-space:pre-wrap}
svg text{font:13px system-ui,sans-serif;fill:currentColor}svg{max-width:100%;height:auto}
.mark{fill:#3b5bdb}.bar{stroke:#3b5bdb;stroke-width:2}.zero{stroke:#888;stroke-dasharray:3 3}.grey{fill:#888}
@media(prefers-color-scheme:dark){body{background:#12151c;color:#f1f3f8}th,td{border-color:#3a4250}
.mark{fill:#91a7ff}.bar{stroke:#91a7ff}}
"""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table with its heading; cells are texts as they are shown."""

    title: str
    header: list[str]
    rows: list[list[str]]


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
                **msgspec.structs.asdict(row),
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
            writer.writerow(
                {k: f"'{v}" if isinstance(v, str) and v.startswith(_FORMULA) else v for k, v in record.items()}
            )
    return out.getvalue().encode("utf-8-sig", "replace")


def as_json(value: Any) -> bytes:
    """Return a value as JSON for people to read; what has no bound becomes null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1)


def as_html(
    *, heading: str, sentence: str, about: Sequence[str], changes: Sequence[Interval], tables: Sequence[Table]
) -> bytes:
    """Return one HTML page: a sentence first, the chart of changes, and every table."""
    said = html.escape
    parts = [
        '<!doctype html><html><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width">',
        f"<title>{said(heading)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{said(heading)}</h1><p><strong>{said(sentence)}</strong></p>",
        *(f"<p>{said(line)}</p>" for line in about),
    ]
    if changes:
        parts.append(f"<h2>{said(t('Changes in points, with 95 % intervals'))}</h2>{_chart(changes)}")
    for table in tables:
        parts.append(f"<h2>{said(table.title)}</h2><table><thead><tr>")
        parts += [f'<th scope="col">{said(name)}</th>' for name in table.header]
        parts.append("</tr></thead><tbody>")
        for row in table.rows:
            parts.append("<tr>" + "".join(f"<td>{said(cell)}</td>" for cell in row) + "</tr>")
        parts.append("</tbody></table>")
    parts.append(f"<p>Tunebook {said(__version__)}</p></body></html>")
    return "".join(parts).encode("utf-8", "replace")


def _chart(changes: Sequence[Interval]) -> str:
    """Draw values with their intervals against no change, one a line."""
    left, width, step = 300.0, 520.0, 28.0
    ends = [0.0, *(x for one in changes for x in (one.low, one.high))]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    low, span = low - 0.05 * span, 1.1 * span

    def x(value: float) -> float:
        return left + width * (value - low) / span

    height = step * len(changes) + 30
    parts = [
        f'<svg viewBox="0 0 {left + width + 70:.0f} {height:.0f}" role="img" '
        f'aria-label="{html.escape(t("Changes in accuracy with 95 % intervals"))}">',
        f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{height - 24:.0f}"/>',
    ]
    for index, one in enumerate(changes):
        y = step * index + step / 2
        label = one.label if len(one.label) <= 44 else one.label[:43] + "…"
        parts += [
            f'<text x="{left - 10:.0f}" y="{y + 4:.1f}" text-anchor="end">{html.escape(label)}</text>',
            f'<line class="bar" x1="{x(one.low):.1f}" x2="{x(one.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<circle class="mark" cx="{x(one.value):.1f}" cy="{y:.1f}" r="5"/>',
            f'<text x="{left + width + 8:.0f}" y="{y + 4:.1f}">{one.value:+.1f}</text>',
        ]
    parts.append(f'<text class="grey" x="{x(0):.1f}" y="{height - 8:.0f}" text-anchor="middle">0</text></svg>')
    return "".join(parts)
