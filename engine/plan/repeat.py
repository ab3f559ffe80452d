"""The command that repeats a run."""

from __future__ import annotations

from engine.workspace import Workspace


def repeat_command(workspace: Workspace, run_id: str) -> str:
    """Return the command that repeats a run."""
    import shlex

    from engine.benchmarks import shipped
    from engine.plan import drafts
    from engine.runs import store

    run_spec = store.load_spec(workspace, run_id)
    if run_spec.kind == "evaluate":
        asked = run_spec.evaluate
        if run_spec.dataset.id and not asked.against:
            words = ["tunebook", "evaluate", run_spec.base.pinned, "--data", run_spec.dataset.id]
            return shlex.join([*words, "--shots", str(asked.shots), "--wait"])
        if run_spec.dataset.id:
            what = "--texts" if asked.benchmarks == [shipped.HELD_OUT] else "--everything"
            return shlex.join(["tunebook", "evaluate", run_spec.base.ref.removeprefix("run:"), what, "--wait"])
        words = [
            "tunebook",
            "evaluate",
            run_spec.base.ref.removeprefix("run:"),
            "--benchmarks",
            ",".join(asked.benchmarks),
        ]
        words += ["--against", asked.against] if asked.against else []
        words += ["--limit", str(asked.limit), "--shots", str(asked.shots), "--template", asked.template]
        return shlex.join([*words, "--wait"])
    if (back := run_spec.recover) is not None:
        words = ["tunebook", "recover", back.run, *(["--intruders"] if back.way == "intruders" else [])]
        return shlex.join([*words, *(["--at", f"{back.at:g}", "--save"] if back.at is not None else []), "--wait"])
    if run_spec.adopted is not None:
        asked, rows = run_spec.evaluate, run_spec.dataset
        words = ["tunebook", "adopt", run_spec.base.pinned, run_spec.adopted.path]
        words += ["--benchmarks", ",".join(asked.benchmarks)] if asked.benchmarks else []
        words += ["--limit", str(asked.limit)] if asked.limit else []
        words += ["--data", rows.id] if rows.id else []
        words += ["--eval-data", rows.eval_id] if rows.eval_id else []
        return shlex.join([*words, "--wait"])
    if run_spec.kind == "sweep":
        return shlex.join(["tunebook", "resume", run_id, "--wait"])
    words = ["tunebook", "train", run_spec.recipe.name, "--data", run_spec.dataset.id, "--base", run_spec.base.pinned]
    words += drafts.set_words(drafts.changed_settings(run_spec, workspace))
    return shlex.join([*words, "--wait"])
