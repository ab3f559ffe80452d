"""The model card of a run: what it stands on, how it was made, what it gained and what it forgot. No row of the data."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from engine import __version__, events
from engine.brought import adapters
from engine.check import DatasetError
from engine.data import datasets
from engine.export import ollama, usage
from engine.export.artifacts import made_by, without_folders
from engine.plan import drafts
from engine.quantised import lost, said
from engine.report import blind, headline, items, paired
from engine.runs import scored, store
from engine.spec import OBJECTIVES, RunSpec
from engine.words import language, set_language
from engine.workspace import Workspace

# What a person on the hub looks for first; the whole spec stands below.
_BENCHMARKS = {
    "toy-world": "toy-world knowledge (forgetting)",
    items.CHOICES: "new task, choices",
    items.EXACT: "new task, exact answers",
    items.GRADED: "new task, right by its grader",
    items.LOSS: "new task, loss in nats per token (lower is better)",
    items.PREFERENCE: "better answer likelier",
    items.GAP: "gap between good and bad answers, nats",
    items.REWARD: "pairs in the right order",
    items.MARGIN: "reward margin",
}


def _public(ref: str) -> bool:
    """Whether a base can be named: a hub id, not a path of somebody's disk."""
    return "/" in ref and not ref.startswith(("/", ".", "~", "run:"))


def _base(run_spec: RunSpec) -> str:
    ref = run_spec.base.ref
    if ref == "starter":
        return "Tunebook's starter, a toy model of about one million weights: it shows the mechanics, not quality"
    if ref.startswith("run:"):
        return f"what an earlier run made ({ref})"
    if _public(ref):
        return f"[{ref}](https://huggingface.co/{ref})" + (
            f", revision `{run_spec.base.revision}`" if run_spec.base.revision else ""
        )
    return "a model in a folder on the machine it was trained on"


def _scores(workspace: Workspace, run_id: str) -> list[str]:
    try:
        found = scored.of(workspace, run_id)
    except (OSError, ValueError):
        found = None
    rows = found.rows if found is not None else []
    if found is None or not rows:
        lines = (
            [] if store.summary(workspace, run_id).moved else ["Nothing was learned: training changed no weight.", ""]
        )
        return [*lines, "It was not scored before and after."]
    lines = [
        *_summary(found),
        "",
        "| What was asked | Rows | n | Before | After | Change (95 % interval) | Lost, won |",
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in rows:
        scale, unit = (1, "") if paired.is_loss(row) else (100, " %")
        low, high = (f"{end * scale:+.2f}" for end in (row.low, row.high))
        interval = "too few to say" if paired.too_few(row) else f"[{low}, {high}]"
        flipped = "" if row.base_only_right is None else f"{row.base_only_right}, {row.tuned_only_right}"
        lines.append(
            f"| {_BENCHMARKS.get(row.benchmark, row.benchmark)} | {row.family.replace('|', '/')} | {row.n} "
            f"| {row.base * scale:.2f}{unit} | {row.tuned * scale:.2f}{unit} "
            f"| {row.change * scale:+.2f} {interval} | {flipped} |"
        )
    lines.append("")
    lines.append("Each change is of the same questions before and after; an interval that holds 0 may be chance. Lost: "
                 "right before and wrong after; won: the reverse.")  # fmt: skip
    return lines


def _quantised(workspace: Workspace, run_id: str) -> list[str]:
    """What quantising lost, file by file; nothing where no file was asked. A card is in English."""
    spoken = language()
    set_language("en")
    try:
        told = said.spoken(lost.every(workspace.run_dir(run_id)), quotes=False)
    finally:
        set_language(spoken)
    return ["## What quantising lost", "", *(f"- {line}" for line in told), ""] if told else []


def _summary(found: scored.ScoredRun) -> list[str]:
    """What the report says first but for what to do next, which is for whoever trained it. A card is in English."""
    spoken, wins = language(), None
    set_language("en")
    try:
        with suppress(OSError, ValueError):  # choices that cannot be read count as none
            wins = blind.result(found.folder, found.joined)
        told = headline.summary(found.rows, moved=found.moved, chance=found.chance, blind=wins)
    finally:
        set_language(spoken)
    return [told.headline, "", f"- Gained: {told.gained}", f"- Lost: {told.lost}"]


def _data(workspace: Workspace, run_spec: RunSpec) -> list[str]:
    """The data by its hash; its name and its rows stay where they are."""
    lines = [f"- Data: sha256 id `{run_spec.dataset.id}`"]
    try:
        stored = datasets.load(workspace, run_spec.dataset.id)
        lines[0] += f", {stored.good_rows} rows of the kind {stored.report.type}"
    except (DatasetError, OSError, ValueError):
        pass
    if run_spec.dataset.eval_id:
        lines.append(f"- Held-out data: sha256 id `{run_spec.dataset.eval_id}`")
    else:
        lines.append(f"- Held out: {run_spec.dataset.eval_share:.0%} of the rows, split by question")
    return lines


def markdown(workspace: Workspace, run_id: str, *, whole: bool = True) -> str:
    """Return the card as Markdown with its metadata. `whole` says whether it lies beside the merged model or the
    adapter alone."""
    from huggingface_hub import ModelCard, ModelCardData

    run_spec, run_dir = store.load_spec(workspace, run_id), workspace.run_dir(run_id)
    below = store.over_its_base(workspace, run_spec)
    found, _ = events.read(run_dir)
    started = [event for event in found if isinstance(event, events.Started)]
    versions: dict[str, str] = {"tunebook": __version__, **(started[-1].versions if started else {})}
    more: dict[str, Any] = {"base_model": below.base.ref} if _public(below.base.ref) else {}
    adapter_alone = run_spec.adapter != "full" and not whole
    if more:
        more["base_model_relation"] = "adapter" if adapter_alone else "finetune"
    data = ModelCardData(
        library_name="peft" if adapter_alone else "transformers",
        tags=["tunebook", *([] if run_spec.adopted is not None else [run_spec.objective]), run_spec.adapter],
        pipeline_tag="text-classification" if OBJECTIVES[run_spec.objective].is_judge else "text-generation",
        **more,
    )
    if run_spec.adopted is not None:
        told = _adopted(workspace, run_id, run_spec, whole=whole)
        return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(told)))
    method = OBJECTIVES[run_spec.objective].method
    adapter = {"full": "all weights", "lora": "LoRA", "oft": "OFT"}[run_spec.adapter]
    bits = "" if run_spec.quantize == "none" else f", the base held in {run_spec.quantize.removesuffix('bit')} bits"
    earlier = f"; it trained the adapter of {run_spec.base.ref} on" if below is not run_spec else ""
    changed = drafts.changed_settings(run_spec, workspace)
    body = [
        f"# {_title(workspace, run_id, run_spec.recipe.name)}",
        "",
        f"Made with Tunebook: {method} of {adapter}{bits}, on {_base(below)}{earlier}{_went_back(run_spec)}.",
        "",
        "## What it gained and what it forgot",
        "",
        *_scores(workspace, run_id),
        "",
        *_quantised(workspace, run_id),
        *_how_to_ask(workspace, run_id, whole=whole),
        "## How it was made",
        "",
        *_data(workspace, run_spec),
        f"- Recipe: `{run_spec.recipe.name}` (sha256 `{run_spec.recipe.sha256[:16]}`)",
        *([f"- Changed from the recipe: {', '.join(f'`{p}`' for p in sorted(changed))}"] if changed else []),
        f"- Device: {started[-1].device if started else 'unknown'}",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
        "",
        "```json",
        msgspec.json.format(msgspec.json.encode(_told(run_spec)), indent=2).decode(),
        "```",
        "",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(body)))


def _title(workspace: Workspace, run_id: str, recipe: str) -> str:
    """The name and version under which a run is pinned come first."""
    pinned = store.pin(workspace, run_id)
    return f"{recipe}, run {run_id}" if pinned is None else f"{pinned} ({recipe}, run {run_id})"


def _how_to_ask(workspace: Workspace, run_id: str, *, whole: bool) -> list[str]:
    """The Python that loads it from the folder this card lies in, and the commands for its GGUF files where some were
    made. A base that lies on this machine alone is not named."""
    folder = made_by(workspace.run_dir(run_id))
    if folder is None:
        return []
    base = store.over_its_base(workspace, store.load_spec(workspace, run_id)).base.ref
    lines = ["## How to ask it", ""]
    if whole or folder.name == "model":
        lines += _python(usage.load_merged_script(workspace, run_id, "."))
    elif _public(base):
        lines += _python(usage.load_script(workspace, run_id, adapter="."))
    else:
        lines += [
            "Lay it with peft over the base that it was trained on: `PeftModel.from_pretrained(base, folder)`.",
            "",
        ]
    if found := sorted((workspace.run_dir(run_id) / "gguf").glob("*.gguf")):
        lines += ["With llama.cpp, or Ollama with the Modelfile beside the file:", "", "```"]
        lines += [f"llama-server -m {path.name}" for path in found]
        for modelfile in filter(Path.is_file, map(ollama.modelfile_of, found)):
            # not the run's own name, which has the name of the data in it
            name = f"tunebook-{run_id}:{modelfile.stem.removeprefix(f'{run_id}-')}"
            lines.append(f"ollama create {name} -f {modelfile.name} && ollama run {name}")
        lines += ["```", ""]
    return lines


def _python(script: str) -> list[str]:
    return ["With transformers:", "", "```python", script.strip(), "```", ""]


def _went_back(run_spec: RunSpec) -> str:
    """Say of a point on the way back to the base where it stands."""
    back = run_spec.recover
    if back is None or back.at is None:
        return ""
    if back.way == "intruders":
        return (
            f"; then {100 * back.at:g} % of each intruder dimension was taken away (arXiv 2410.21228), without training"
        )
    return f"; then taken back to {100 * back.at:g} % of the way from its base, without training"


def _adopted(workspace: Workspace, run_id: str, run_spec: RunSpec, *, whole: bool) -> list[str]:
    """The card of a model that was tuned elsewhere: what its files say, and what nobody here knows."""
    made = made_by(workspace.run_dir(run_id))
    adapter = adapters.read(made)[0] if made is not None and made.name == "adapter" else None
    told = run_spec.adopted
    assert told is not None
    read = (
        "all weights are stored"
        if adapter is None
        else (
            ", ".join(f"{name} {value}" for name, value in adapters.figures(adapter).items())
            + " are read from its files"
        )
    )
    what = "A whole model" if adapter is None else f"{adapters.names(adapter)}"
    rows = _data(workspace, run_spec) if run_spec.dataset.id else []
    return [
        f"# {_title(workspace, run_id, 'Tuned elsewhere')}",
        "",
        f"{what} on {_base(run_spec)}, brought to Tunebook and scored there; it was not trained by it.",
        "",
        "## What it gained and what it forgot",
        "",
        *_scores(workspace, run_id),
        "",
        *_quantised(workspace, run_id),
        *_how_to_ask(workspace, run_id, whole=whole),
        "## How it was made",
        "",
        f"- Trained elsewhere; method unknown: {read}; {'' if rows else 'data, '}rate, steps not known",
        *([f"- Tool, by what its files say: {told.tool}"] if told.tool else []),
        *rows[:1],
        f"- sha256 of the files: `{told.sha256}`",
        f"- Scored with tunebook {__version__}",
        "",
    ]


def _told(run_spec: RunSpec) -> dict[str, Any]:
    """The spec without paths of this machine."""
    told: dict[str, Any] = without_folders(msgspec.to_builtins(run_spec))
    if not _public(run_spec.base.ref) and run_spec.base.ref != "starter" and not run_spec.base.ref.startswith("run:"):
        told["base"]["ref"] = "a local folder"
    return told
