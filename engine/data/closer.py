"""A closer look at the rows of a data set together: which are nearly alike, what they are about, the longest and the oddest
of them, and in which languages they are.

scikit-learn is imported where it is used, which is in the process of a job alone. At most MOST_ROWS are looked at, spread
over the file, and what is found is kept beside the data.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import msgspec

from engine.check import DatasetError, opened
from engine.data import datasets
from engine.data.fixes import broken_rows
from engine.read import OnProgress
from engine.words import Problem
from engine.workspace import Workspace, find_struct, write_atomically

VERSION = 1
NAME = "closer.json"
MOST_ROWS = 5_000
# Of a row so much is read.
ROW_CHARACTERS = 4_000
MOST_WORDS = 50_000
# Two rows are nearly alike when the words they use are, weighted by how rare each is among the rows.
ALIKE = 0.9
# So many are kept of what is a list of examples; of rows that are alike all are, for they can be left out.
MOST_SHOWN = 5
GROUPS = range(2, 9)
FEWEST_FOR_GROUPS = 30
# Below, the groups that are found lie as close to each other as to themselves.
CLEAR_GROUPS = 0.05
# How many usual deviations from the middle make a row odd.
ODD = 5.0
_BLOCK_ROWS = 500


class Place(msgspec.Struct, frozen=True):
    """A row by its number, counted from 1, and the line it begins on where its file has lines."""

    row: int
    line: int | None


class Alike(msgspec.Struct, frozen=True):
    """A row that is nearly like an earlier one; `share` is how alike, up to 1."""

    place: Place
    first: Place
    share: float


class Group(msgspec.Struct, frozen=True):
    """Rows that are about one thing: how many, the words that set them apart, and the one most like the others."""

    rows: int
    words: tuple[str, ...]
    typical: Place


class Odd(msgspec.Struct, frozen=True):
    """A row that stands out, by being "short", by "marks" instead of letters, or by "words" that no other row has."""

    place: Place
    why: str


class Spoken(msgspec.Struct, frozen=True):
    """Rows in one language (an ISO code), or in letters of which it is not known ("latin", "none" ...), and the first."""

    language: str
    rows: int
    first: tuple[Place, ...]


class Closer(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in `seen` of `rows` rows without errors. `longest` is place and characters."""

    version: int = VERSION
    rows: int
    seen: int
    alike: tuple[Alike, ...] = ()
    groups: tuple[Group, ...] = ()
    longest: tuple[tuple[Place, int], ...] = ()
    odd: tuple[Odd, ...] = ()
    languages: tuple[Spoken, ...] = ()


class _Row(msgspec.Struct):
    place: Place
    text: str
    characters: int


def kept(workspace: Workspace, dataset_id: str) -> Closer | None:
    """Return what a look at a data set has found, or None where none was taken yet."""
    found = find_struct(workspace.dataset_dir(dataset_id) / NAME, Closer)
    return found if found is not None and found.version == VERSION else None


def look(workspace: Workspace, dataset_id: str, progress: OnProgress | None = None) -> Closer:
    """Look at a stored data set, and keep what is found. Raises DatasetError when it has no good row or is damaged."""
    import pyarrow

    dataset = datasets.load(workspace, dataset_id)
    try:
        rows, total = _rows(workspace, dataset, _part(progress, 0))
        repeated = _repeated(dataset)
    except (OSError, pyarrow.ArrowException) as error:
        raise DatasetError(Problem(rule="dataset-damaged", parameters={"dataset": dataset_id[:12]})) from error
    said = [_words(row.text) for row in rows]
    alike, groups = _by_words(rows, said, repeated, progress)
    longest = sorted(rows, key=lambda row: -row.characters)[:MOST_SHOWN]
    found = Closer(
        rows=total,
        seen=len(rows),
        alike=alike,
        groups=groups,
        longest=tuple((row.place, row.characters) for row in longest),
        odd=_odd(rows, said),
        languages=_languages(rows),
    )
    with suppress(OSError):  # on a disk that takes nothing it is looked for anew each time
        write_atomically(dataset.folder / NAME, msgspec.json.encode(found))
    return found


def _rows(workspace: Workspace, dataset: datasets.Dataset, progress: OnProgress) -> tuple[list[_Row], int]:
    """Good rows spread over the file, with their texts and places, and how many there are in all."""
    import pyarrow.parquet as parquet

    texts: dict[int, tuple[str, int]] = {}  # the line, or the row where lines say nothing -> text
    with parquet.ParquetFile(datasets.rows_path(workspace, dataset.id)) as file:
        total = file.metadata.num_rows
        count = min(total, MOST_ROWS)
        wanted, first = [at * total // count for at in range(count)], 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            inside = [at - first for at in wanted if first <= at < first + size]
            if inside:
                for row in file.read_row_group(group).take(inside).to_pylist():
                    texts.setdefault(row["line"], _text(row))
            first += size
    found = []
    with opened(dataset.folder / "original", dataset.mapping) as file:
        for number, (line, _) in enumerate(file.records(), start=1):
            if not number % 1000:
                progress(number, dataset.report.rows)
            text = texts.get(line or 0 if file.has_lines else number)
            if text is not None:
                found.append(_Row(Place(number, line if file.has_lines else None), *text))
    return found, total


def _part(progress: OnProgress | None, number: int) -> OnProgress:
    """Tell the progress of one of three parts of the look as that of all of it."""

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress(1_000 * number + 1_000 * done // max(1, total), 3_000)

    return told


def _text(row: dict[str, Any]) -> tuple[str, int]:
    """What is said in a row by itself, and its length in characters: without a system message, which says the same to all,
    and of a question that comes after others without these, which may be rows of their own."""
    said = [row[name] for name in ("text", "prompt") if isinstance(row.get(name), str)]
    length = sum(map(len, said))
    for name in ("messages", "prompt", "completion", "chosen", "rejected"):
        turns = row[name] if isinstance(row.get(name), list) else []
        texts = [turn.get("content") or turn.get("tool_calls") or "" for turn in turns if turn.get("role") != "system"]
        length += sum(map(len, texts))
        said += texts[-1:] if name == "prompt" else texts
    steps = row.get("completions") or ()
    return "\n".join([*said, *steps])[:ROW_CHARACTERS], length + sum(map(len, steps))


def _repeated(dataset: datasets.Dataset) -> set[int]:
    """The rows that the check has named as repetitions: they stand there already."""
    every = dataset.folder / (dataset.report.problems_file or "problems.jsonl")
    rules = ("duplicate-row", "near-duplicate")
    return {row for rule, _, row in broken_rows(dataset.report, every) if rule in rules}


_WORD = re.compile(r"[^\W\d_]+|\d+")
# Written without spaces between words: kana, Chinese, Thai.
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f]")


def _words(text: str) -> list[str]:
    """The words of a text; where there are no spaces between them, pairs of characters."""
    found = []
    for word in _WORD.findall(text.casefold()):
        if _UNSPACED.match(word) and len(word) > 1:
            found += [word[at : at + 2] for at in range(len(word) - 1)]
        else:
            found.append(word)
    return found


def _by_words(
    rows: list[_Row], said: list[list[str]], repeated: set[int], progress: OnProgress | None
) -> tuple[tuple[Alike, ...], tuple[Group, ...]]:
    """The rows that are nearly like an earlier one, and the groups that the rows fall into."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    chosen = [at for at, row in enumerate(rows) if row.place.row not in repeated and said[at]]
    if len(chosen) < 2:
        return (), ()
    settings: Any = {"analyzer": lambda at: said[at], "max_features": MOST_WORDS, "sublinear_tf": True}
    counting = TfidfVectorizer(**settings)
    weights = counting.fit_transform(chosen)
    places = [rows[at].place for at in chosen]
    alike = tuple(
        Alike(places[later], places[earlier], min(1.0, round(share, 3)))
        for later, earlier, share in _pairs(weights, _part(progress, 1))
    )  # fmt: skip
    return alike, tuple(_groups(weights, counting.get_feature_names_out(), places, _part(progress, 2)))


def _pairs(weights: Any, progress: OnProgress) -> Iterator[tuple[int, int, float]]:
    """Yield each row that is nearly like an earlier one that is none itself, with that one and how alike they are."""
    others = weights.T.tocsc()
    left_out: set[int] = set()
    for start in range(0, weights.shape[0], _BLOCK_ROWS):
        progress(start, weights.shape[0])
        block = (weights[start : start + _BLOCK_ROWS] @ others).tocsr()
        for at in range(block.shape[0]):
            inside = slice(block.indptr[at], block.indptr[at + 1])
            likely = [
                (float(share), int(other))
                for other, share in zip(block.indices[inside], block.data[inside], strict=True)
                if share >= ALIKE and other < start + at and int(other) not in left_out
            ]
            if likely:
                share, other = max(likely)
                left_out.add(start + at)
                yield start + at, other, share


def _groups(weights: Any, names: Any, places: list[Place], progress: OnProgress) -> Iterator[Group]:
    """Yield the groups that the rows fall into, the largest first; none where there are no clear ones."""
    import numpy
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.metrics import silhouette_score
    from sklearn.preprocessing import normalize

    if weights.shape[0] < FEWEST_FOR_GROUPS or weights.shape[1] < 3:
        return
    reduced: Any = normalize(TruncatedSVD(min(50, weights.shape[1] - 1), random_state=0).fit_transform(weights))
    best: tuple[float, Any] = (CLEAR_GROUPS, None)
    for count in GROUPS:
        progress(count - GROUPS.start, len(GROUPS))
        if len(numpy.unique(reduced.round(6), axis=0)) <= count:
            break
        found = KMeans(count, random_state=0).fit(reduced)
        clear = float(silhouette_score(reduced, found.labels_, sample_size=1_000, random_state=0))
        best = max(best, (clear, found), key=lambda one: one[0])
    found = best[1]
    if found is None:
        return
    middle = numpy.asarray(weights.mean(axis=0)).ravel()
    for group in numpy.argsort(-numpy.bincount(found.labels_)):
        members = numpy.flatnonzero(found.labels_ == group)
        apart = numpy.asarray(weights[members].mean(axis=0)).ravel() - middle
        likely = (str(names[at]) for at in numpy.argsort(-apart)[: 8 * MOST_SHOWN] if apart[at] > 0)
        words = tuple(islice((word for word in likely if len(word) > 1 and word not in _EVERYWHERE), MOST_SHOWN))
        near = members[numpy.argmax(reduced[members] @ found.cluster_centers_[group])]
        yield Group(len(members), words, places[int(near)])


def _odd(rows: list[_Row], said: list[list[str]]) -> tuple[Odd, ...]:
    """The rows that stand out most, each by what it stands out in."""
    import numpy

    if len(rows) < FEWEST_FOR_GROUPS:
        return ()
    held = Counter(word for words in said for word in set(words))
    short = [-numpy.log1p(row.characters) for row in rows]
    marks = [sum(not (c.isalnum() or c.isspace()) for c in row.text) / max(1, len(row.text)) for row in rows]
    own = [sum(held[word] == 1 for word in set(words)) / max(5, len(set(words))) for words in said]
    found: dict[int, tuple[float, str]] = {}
    for why, values, least in (("short", short, 0.3), ("marks", marks, 0.03), ("words", own, 0.08)):
        middle = numpy.median(values)
        spread = max(least, 1.4826 * float(numpy.median(numpy.abs(numpy.array(values) - middle))))
        for at, value in enumerate(values):
            far = float(value - middle) / spread
            if far >= ODD and far > found.get(at, (0.0, ""))[0]:
                found[at] = far, why
    most = sorted(found, key=lambda at: (-found[at][0], at))[:MOST_SHOWN]
    return tuple(Odd(rows[at].place, found[at][1]) for at in most)


# --- languages ----------------------------------------------------------------------------------------------------

_LETTERS = {
    "ja": re.compile("[\u3040-\u30ff]"),
    "zh": re.compile("[\u3400-\u4dbf\u4e00-\u9fff]"),
    "ko": re.compile("[\u1100-\u11ff\uac00-\ud7af]"),
    "cyrillic": re.compile("[\u0400-\u04ff]"),
    "arabic": re.compile("[\u0600-\u06ff]"),
    "devanagari": re.compile("[\u0900-\u097f]"),
    "th": re.compile("[\u0e00-\u0e7f]"),
    "el": re.compile("[\u0370-\u03ff]"),
    "he": re.compile("[\u0590-\u05ff]"),
    "latin": re.compile("[A-Za-z\u00c0-\u024f]"),
}
# The commonest words of languages that share their letters, those left out that several of them have.
_COMMON = {
    "en": "the of and to is that it for was with are this you what how which not have from by",
    "de": "der die und das ist nicht ein eine mit auf für von dem den sich auch werden wie oder zu",
    "fr": "le les des est et une dans pour que qui pas sur avec du au vous nous ce sont plus",
    "es": "el los las que una por con para es del como más pero sus se al lo está son y",
    "it": "il di che è per una sono con non della gli nel anche più come questo dei alla ed ma",
    "pt": "o os que uma não para com por mais como dos ao são você também em seu foi mas ou",
    "nl": "het een van en niet dat op te zijn voor met aan ook naar door wordt bij deze wat er",
}
_COMMON_WORDS = {language: frozenset(words.split()) for language, words in _COMMON.items()}
# What says nothing of a group.
_ALSO = "me my your i he she they his her their its an as at if be been do does can will has had in or but am"
_EVERYWHERE = frozenset().union(_ALSO.split(), *_COMMON_WORDS.values())
# So many characters of a row tell its language, where so large a share of them are letters.
_TELLING, _FEWEST_LETTERS = 1_000, 0.3
# Of Japanese text at least so many letters are kana.
_KANA = 0.05


def language_of(text: str) -> str:
    """Return a guess at the language of a text: an ISO code, or its letters where they leave it open, or "none" where
    there are hardly any."""
    text = text[:_TELLING]
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    total = sum(counts.values())
    if total < max(3, _FEWEST_LETTERS * len(re.sub(r"\s", "", text))):
        return "none"
    if counts["ja"] > _KANA * (counts["ja"] + counts["zh"]) and counts["ja"] + counts["zh"] > total / 2:
        return "ja"
    letters = max(counts, key=lambda name: counts[name])
    if letters != "latin":
        return letters
    words = re.findall(r"[^\W\d_]+", text.casefold())
    hits = {language: len(common.intersection(words)) for language, common in _COMMON_WORDS.items()}
    best, second = sorted(hits.values(), reverse=True)[:2]
    return max(hits, key=lambda language: hits[language]) if best > max(1, second) else "latin"


def _languages(rows: list[_Row]) -> tuple[Spoken, ...]:
    found: dict[str, list[Place]] = {}
    for row in rows:
        found.setdefault(language_of(row.text), []).append(row.place)
    spoken = (Spoken(language, len(places), tuple(places[:MOST_SHOWN])) for language, places in found.items())
    return tuple(sorted(spoken, key=lambda one: -one.rows))
