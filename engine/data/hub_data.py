"""Data sets of the hub: their configs and splits, and the files of one."""

from __future__ import annotations

import fnmatch
import re
import shutil
from pathlib import Path, PurePosixPath

import msgspec

from engine import looker
from engine.models import download, hub_client
from engine.read import OnProgress


class Part(msgspec.Struct, frozen=True):
    """One choice within a data set: a config and a split, and the files that are it, on one revision."""

    config: str
    split: str
    files: tuple[hub_client.File, ...]
    commit: str


_ENDINGS = (".parquet", ".jsonl", ".json", ".csv")
_ABOUT = ("dataset_infos.json", "dataset_info.json")  # they speak of the data and hold none
_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip


def data_parts(name: str, *, token: str | None = None) -> tuple[Part, ...]:
    """Return configs and splits of a data set on the hub: as its card names them, else as its files are called, else the
    copy in Parquet that the hub keeps of it. A script is never run. Raises HubError."""
    for revision in (None, "refs/convert/parquet"):
        try:
            found = hub_client.ask(name, revision, "dataset", token)
        except hub_client.HubError as error:
            if revision is not None and error.problem.rule in ("hub-revision", "hub-not-found"):
                break  # the hub keeps no copy of this one
            raise
        files = [
            file for file in found.files if file.name.endswith(_ENDINGS) and PurePosixPath(file.name).name not in _ABOUT
        ]
        if files:
            groups = _by_card(found.card.get("configs"), files) or _by_name(files)
            return tuple(Part(config, split, tuple(group), found.commit) for (config, split), group in groups.items())
    raise hub_client.HubError("hub-data-none", id=name)


def _by_card(configs: object, files: list[hub_client.File]) -> dict[tuple[str, str], list[hub_client.File]]:
    """The hub's own form: configs: [{config_name, data_files: path, or [{split, path}]}]; paths may hold * and **."""
    found: dict[tuple[str, str], list[hub_client.File]] = {}
    for one in configs if isinstance(configs, list) else []:
        if not isinstance(one, dict):
            continue
        given = one.get("data_files")
        entries = given if isinstance(given, list) else [given]
        for entry in entries:
            entry = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
            paths = entry.get("path")
            for pattern in paths if isinstance(paths, list) else [paths]:
                matched = [f for f in files if isinstance(pattern, str) and fnmatch.fnmatchcase(f.name, pattern)]
                key = (str(one.get("config_name") or "default"), str(entry.get("split") or "train"))
                if matched:
                    found.setdefault(key, []).extend(matched)
    return found


def _by_name(files: list[hub_client.File]) -> dict[tuple[str, str], list[hub_client.File]]:
    """config/split/0000.parquet, data/train-00000-of-00002.parquet, test.jsonl: the first word that names a split does."""
    found: dict[tuple[str, str], list[hub_client.File]] = {}
    for file in files:
        path = PurePosixPath(file.name)
        words = re.split(r"[^a-z]+", file.name.lower())
        split = next((_SPLITS[word] for word in words if word in _SPLITS), "train")
        folders = [part for part in path.parts[:-1] if part != "data" and part.lower() not in _SPLITS]
        found.setdefault(("/".join(folders) or "default", split), []).append(file)
    return found


def split_data_ref(text: str) -> tuple[str, str | None, str | None]:
    """Return id, config and split of hf:owner/name[:config][:split]; with one part more, it may be either."""
    name, *rest = text.removeprefix("hf:").split(":")
    config, split = (rest[0], rest[1]) if len(rest) > 1 else (None, rest[0] if rest else None)
    return name.strip(), config or None, split or None


def choose_part(parts: tuple[Part, ...], name: str, config: str | None, split: str | None) -> Part:
    """Return the part that was asked for: train and the first config where nothing is said. Raises HubError."""
    names = ", ".join(f"{part.config}:{part.split}" for part in parts)[:400]
    fitting = [p for p in parts if config in (None, p.config) and split in (None, p.split)]
    if not fitting and config is None and split is not None:  # the one word was a config
        fitting = [p for p in parts if p.config == split]
    usual = [p for p in fitting if p.config == "default"] or fitting
    usual = [p for p in usual if p.split == "train"] or usual
    if not usual:
        raise hub_client.HubError("hub-data-part", id=name, names=names)
    return usual[0]


def fetch_data(
    ref: str, into: Path, *, token: str | None = None, progress: OnProgress | None = None
) -> tuple[Path, str]:
    """Fetch the files of hf:owner/name[:config][:split] as one file in the folder `into`; return it and its name. The
    check that every file goes through comes after. Raises HubError."""
    name, config, split = split_data_ref(ref)
    part = choose_part(data_parts(name, token=token), name, config, split)
    snapshot = download.fetch(name, part.commit, list(part.files), kind="dataset", token=token, progress=progress)
    title = f"{name} ({part.config}, {part.split})"
    paths = [snapshot / file.name for file in part.files]
    endings = {path.suffix for path in paths}
    if len(paths) > 1 and (len(endings) > 1 or not endings <= {".parquet", ".jsonl"}):
        raise hub_client.HubError("hub-data-kinds", id=name, names=", ".join(file.name for file in part.files)[:200])
    into.mkdir(parents=True, exist_ok=True)
    target = into / f"fetched{paths[0].suffix}"
    if paths[0].suffix == ".parquet" and len(paths) > 1:
        try:
            looker.ask(_join_parquet, name, paths, target, at=snapshot, progress=progress or looker.patiently)
        except looker.Refused as error:
            raise hub_client.HubError.of(error.problem) from error
        return target, title
    with target.open("wb") as out:
        for path in paths:
            with path.open("rb") as content:
                shutil.copyfileobj(content, out)
            if len(paths) > 1:
                out.write(b"\n")  # a file may lack its last line break; an empty line is no row
    return target, title


def _join_parquet(name: str, paths: list[Path], target: Path, progress: OnProgress) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(paths[0])
        with pyarrow.parquet.ParquetWriter(target, schema) as writer:
            for number, path in enumerate(paths):
                for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
                    progress(number, len(paths))
                    writer.write_table(pyarrow.Table.from_batches([batch]).cast(schema))
    except (pyarrow.ArrowException, ValueError) as error:
        target.unlink(missing_ok=True)
        raise hub_client.HubError(
            "hub-data-kinds", id=name, names=", ".join(path.name for path in paths)[:200]
        ) from error
