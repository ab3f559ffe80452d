"""The command line: tunebook check, advise, fit, train, evaluate, sweep, runs, show, stop, resume, compare, export,
app."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from engine import __version__, processes
from engine.words import Problem, environment_language, languages, set_language, t
from engine.workspace import Workspace, default_workspace

EXIT_OK, EXIT_FAILED, EXIT_REFUSED, EXIT_STOPPED = 0, 1, 2, 3


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False) + "\n")


def _refuse(problems: list[Problem]) -> int:
    print(t("This run cannot start:"), file=sys.stderr)
    for problem in problems:
        print(f"  - {problem.sentence}", file=sys.stderr)
    return EXIT_REFUSED


def _known_run(workspace: Workspace, run_id: str) -> bool:
    from engine.runs import store

    if store.exists(workspace, run_id):
        return True
    print(t("There is no run {id}; `tunebook runs` lists them.", id=run_id[:80]), file=sys.stderr)
    return False


def check(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Check a file and name every bad row; exit 0 when it can be trained on."""
    import tempfile

    from engine.check import DatasetError, check_file, problem_to_json
    from engine.models import bases
    from engine.workspace import write_atomically

    if arguments.rules:
        return _list_rules(as_json=arguments.json)
    file, target = Path(arguments.file or ""), arguments.problems
    if not arguments.file:
        parser().error(t("name the file to check, or --rules"))
    if target and target.exists() and file.exists() and target.samefile(file):
        print(t("{path} is the data itself; choose another file for the problems.", path=target), file=sys.stderr)
        return EXIT_REFUSED
    with tempfile.TemporaryDirectory() as folder:
        every = Path(folder) / "problems.jsonl"
        try:
            report = check_file(
                file,
                mapping=_mapping(arguments),
                problems_path=every if target else None,
                base=bases.describe(arguments.base, workspace) if arguments.base else None,
                against=Path(arguments.eval_data) if arguments.eval_data else None,
            )
        except DatasetError as error:
            print(error.problem.sentence, file=sys.stderr)
            return EXIT_FAILED
        if target:
            lines = [json.dumps(problem_to_json(p), ensure_ascii=False) + "\n" for p in report.problems]
            write_atomically(target, every.read_bytes() if every.exists() else "".join(lines).encode())
            report = msgspec.structs.replace(report, problems_file=str(target))
    if arguments.json:
        _print_json(report.to_json())
    else:
        print("\n".join(report.lines()))
    return EXIT_OK if report.trainable else EXIT_FAILED


def _list_rules(*, as_json: bool) -> int:
    """Print the id of every rule of the check with a line of help."""
    from engine.words import CHECK_HELP

    if as_json:
        _print_json({rule: t(text) for rule, text in CHECK_HELP.items()})
    else:
        width = max(map(len, CHECK_HELP))
        print("\n".join(f"{rule:<{width}}  {t(text)}" for rule, text in CHECK_HELP.items()))
    return EXIT_OK


def _mapping(arguments: argparse.Namespace) -> dict[str, str]:
    """Return what --map COLUMN=NAME says; without "=" nothing is named, which the check refuses."""
    return {column: name for column, _, name in (text.rpartition("=") for text in arguments.map or [])}


def _add_data(arguments: argparse.Namespace, workspace: Workspace) -> str:
    """Return the id of the data named on the command line: a stored id, a sample, a file that is stored now, a data set
    of the hub (hf:owner/name[:config][:split]), or several of these mixed by weight (mix:A=3,B=1)."""
    from engine import starter
    from engine.check import DatasetError
    from engine.data import datasets, jobs, mix
    from engine.models import hub_client

    how = {"drop_bad_rows": arguments.drop_bad_rows, "fixes": arguments.fix or (), "mapping": _mapping(arguments)}
    if arguments.data.startswith("mix:"):
        parts = []
        for text in arguments.data.removeprefix("mix:").split(","):
            name, _, weight = text.rpartition("=")
            try:
                share = float(weight)
            except ValueError:
                raise DatasetError(Problem(rule="mix-weights")) from None
            one = argparse.Namespace(**{**vars(arguments), "data": name})
            parts.append((_add_data(one, workspace), share))
        return mix.add(workspace, parts, arguments.data[:100]).id
    if arguments.data.startswith("hf:"):
        try:
            return jobs.add_from_hub(workspace, arguments.data, **how).id
        except hub_client.HubError as error:
            raise DatasetError(error.problem) from error
    source = Path(arguments.data)
    if not source.exists():
        if arguments.data in {sample.name for sample in starter.SAMPLES}:
            return datasets.add_sample(workspace, starter.sample(arguments.data)).id
        if any(d.id == arguments.data for d in datasets.list_all(workspace)):
            return arguments.data
    return datasets.add(
        workspace,
        source,
        source.name,
        **how,
    ).id


def _overrides(texts: list[str] | None) -> tuple[dict[str, Any], list[Problem]]:
    """Return the settings of all --set, and what is wrong with the others."""
    from engine.spec import settings as spec_settings

    overrides: dict[str, Any] = {}
    problems: list[Problem] = []
    for text in texts or []:
        parsed = spec_settings.parse_setting(text)
        if isinstance(parsed, Problem):
            problems.append(parsed)
        else:
            overrides[parsed[0]] = parsed[1]
    return overrides, problems


def fit(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Estimate the memory and time of a run; exit 0 when it may fit, 1 when it cannot or nothing is known."""
    from engine import machine
    from engine.check import DatasetError
    from engine.data import datasets
    from engine.estimate import memory
    from engine.models import bases
    from engine.plan import build, takes
    from engine.spec import recipes as spec_recipes

    overrides, problems = _overrides(arguments.set)
    data, dataset = arguments.data, None
    recipe = spec_recipes.recipes().get(arguments.recipe)
    if arguments.probe and data is None and recipe is not None:
        data = recipe.sample
    if data is not None:
        try:
            arguments.data = data
            dataset = datasets.load(workspace, _add_data(arguments, workspace))
        except DatasetError as error:
            problems.append(error.problem)
    run_spec, found = build.build(
        workspace,
        arguments.recipe,
        base_ref=arguments.base,
        dataset_id=dataset.id if dataset else None,
        overrides=overrides,
    )
    # what no memory hangs on does not matter here: the data, the disk, whether this version trains it
    unimportant = {"dataset-none", "disk-too-small", "memory-too-small", "not-built", "benchmark-unknown"}
    problems += [p for p in found if p.rule not in unimportant]
    if run_spec is None or problems:
        return _refuse(problems)
    base, facts = bases.describe(arguments.base, workspace), machine.facts()
    one = takes.memory_of(run_spec, base, dataset, workspace)
    time = takes.duration_of(run_spec, base, dataset, workspace) if dataset is not None else None
    have_bytes = facts.device_memory_bytes
    sentence = memory.verdict(one, have_bytes)
    probed = _probe(workspace, run_spec) if arguments.probe else None
    if arguments.json:
        answer = {
            "base": base.ref,
            "device": one.device,
            "memory_bytes": have_bytes,
            "parameters": one.parameters or base.parameters,
            "trained_parameters": one.trained_parameters,
            "parts": one.parts,
            "total_bytes": one.total_bytes if one.parts else None,
            "low_bytes": one.low_bytes if one.parts else None,
            "high_bytes": one.high_bytes if one.parts else None,
            "runs": one.runs,
            "sentence": sentence,
            "time": time,
            "probe": probed,
        }
        _print_json(answer)
    else:
        words = memory.part_words()
        for name, size_bytes in (one.parts or {}).items():
            print(f"{words[name]:<28} {memory.size_words(size_bytes):>10}")
        print(sentence)
        if one.runs:
            print(t("Corrected by {n} finished runs of this kind on this machine.", n=one.runs))
        print(time.sentence if time else t("Name data with --data to see how long it takes."))
        if probed is not None:
            print(probed["sentence"])
        for problem in found:
            if problem.rule == "memory-too-small":
                print(f"  - {problem.fix}")
    if probed is not None:
        return EXIT_OK if probed["status"] == "finished" else EXIT_FAILED
    return EXIT_OK if one.parts and one.low_bytes <= have_bytes else EXIT_FAILED


def _probe(workspace: Workspace, run_spec: Any) -> dict[str, Any]:
    """Let a child try the longest batch once, when the device is free; return what it took. Nothing of it is kept."""
    import shutil

    from engine import events
    from engine.estimate import memory
    from engine.runs import follow, lifecycle

    run_id = lifecycle.start(workspace, msgspec.structs.replace(run_spec, kind="probe"), name=t("Memory probe"))
    run_dir = workspace.run_dir(run_id)
    try:
        status = follow.wait(workspace, run_id)
    except KeyboardInterrupt:
        lifecycle.stop(workspace, run_id)
        raise
    found, _ = events.read(run_dir)
    measured = next((event for event in found if isinstance(event, events.Measured)), None)
    failed = next((event for event in reversed(found) if isinstance(event, events.Failed)), None)
    if measured is not None:
        sentence = t(
            "Tried: the longest batch ({tokens} tokens a row) takes {size}.",
            tokens=measured.longest_tokens,
            size=memory.size_words(measured.peak_bytes),
        )
    else:
        sentence = t("Tried: {what}; {fix}", what=failed.message, fix=failed.fix) if failed else status
    follow.wait_for_end(run_dir)
    shutil.rmtree(run_dir, ignore_errors=True)
    return {
        "status": status,
        "peak_bytes": measured.peak_bytes if measured else None,
        "longest_tokens": measured.longest_tokens if measured else None,
        "sentence": sentence,
    }


def train(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Start a run; with --wait follow it to its end."""
    from engine.check import DatasetError
    from engine.data import datasets
    from engine.plan import build
    from engine.runs import lifecycle, store

    overrides, problems = _overrides(arguments.set)
    dataset_id = None
    try:
        dataset_id = _add_data(arguments, workspace)
        if arguments.eval_data:
            evaluation = Path(arguments.eval_data)
            overrides["dataset.eval_id"] = datasets.add(workspace, evaluation, evaluation.name).id
        general = overrides.get("train.replay_data")
        if isinstance(general, str) and general and Path(general).exists():
            overrides["train.replay_data"] = datasets.add(workspace, Path(general), Path(general).name).id
    except DatasetError as error:
        problems.append(error.problem)
    run_spec, found = build.build(
        workspace, arguments.recipe, base_ref=arguments.base, dataset_id=dataset_id, overrides=overrides
    )
    problems += [p for p in found if dataset_id is not None or p.rule != "dataset-none"]
    if run_spec is None or problems:
        return _refuse(problems)
    run_id = lifecycle.start(workspace, run_spec, name=arguments.name)
    if not arguments.wait:
        if arguments.json:
            _print_json({"id": run_id, "status": store.status(workspace, run_id)})
        else:
            print(t("Started {id}. Follow it with: tunebook show {id}", id=run_id))
        return EXIT_OK
    return _follow(workspace, run_id, as_json=arguments.json)


def _follow(workspace: Workspace, run_id: str, *, as_json: bool) -> int:
    from engine.runs import follow, store

    print(run_id, file=sys.stderr)
    try:
        status = follow.wait(workspace, run_id, _print_event)
    except KeyboardInterrupt:
        print(t("\nThe run goes on. Stop it with: tunebook stop {id}", id=run_id), file=sys.stderr)
        status = store.status(workspace, run_id)
    if as_json:
        _print_json({"id": run_id, "status": status})
    else:
        print(f"{run_id} {status}")
    return {"finished": EXIT_OK, "stopped": EXIT_STOPPED}.get(status, EXIT_OK if status in store.LIVE else EXIT_FAILED)


def _print_event(event: Any) -> None:
    from engine import events

    match event:
        case events.Started():
            text = f"{event.device}: {event.reason}"
        case events.Phase():
            text = f"{event.phase} {event.detail}".rstrip()
        case events.Log():
            text = event.text
        case events.Step():
            if event.step % max(1, event.total_steps // 10) and event.step != 1:
                return
            loss = "-" if event.loss is None else f"{event.loss:.4f}"
            text = f"step {event.step}/{event.total_steps}  loss {loss}  left {event.left_s or 0:.0f} s"
        case events.Progress():
            left = "" if event.left_s is None else f"  left {event.left_s:.0f} s"
            text = f"{event.done}/{event.total}  {event.detail}{left}"
        case events.Eval():
            text = f"step {event.step}  held-out loss {event.loss:.4f}"
        case events.Failed():
            text = f"failed: {event.message}; {event.fix}"
        case _:
            return
    print(text, file=sys.stderr, flush=True)


def chain(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Run SFT, a reward model and PPO in turn, each on the run before it, and follow them to the end."""
    from engine.check import DatasetError
    from engine.plan import chains
    from engine.runs import follow, lifecycle, store

    given = {"sft": arguments.sft_data, "reward": arguments.preference_data, "ppo": arguments.prompts}
    try:
        data = {
            name: _add_data(argparse.Namespace(data=source, drop_bad_rows=False, fix=None, map=None), workspace)
            for name, source in given.items()
            if source
        }
    except DatasetError as error:
        return _refuse([error.problem])
    settings, wrong = _stage_settings(arguments.set)
    if wrong:
        return _refuse(wrong)
    policy, judge = arguments.base, None
    made: dict[str, str] = {}
    for name in [name for name in chains.STAGES if name in data]:
        run_spec, problems = chains.build(workspace, name, policy, data[name], judge, settings.get(name, {}))
        if run_spec is None or problems:
            return _refuse(problems)
        run_id = made[name] = lifecycle.start(workspace, run_spec, name=t("chain: {stage}", stage=name))
        print(f"{name}: {run_id}", file=sys.stderr)
        try:
            status = follow.wait(workspace, run_id, _print_event)
        except KeyboardInterrupt:
            print(t("\nThe run goes on. Stop it with: tunebook stop {id}", id=run_id), file=sys.stderr)
            status = store.status(workspace, run_id)
        if status != "finished":
            print(t("The chain ends here: {stage} is {status}.", stage=name, status=status), file=sys.stderr)
            return EXIT_STOPPED if status == "stopped" else EXIT_FAILED
        if name == "sft":
            policy = f"run:{run_id}"
        elif name == "reward":
            judge = f"run:{run_id}"
    if arguments.json:
        _print_json(made)
    else:
        for name, run_id in made.items():
            print(f"{name:<7} {run_id}")
    return EXIT_OK


def _stage_settings(texts: list[str] | None) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """Return what --set STAGE:PATH=VALUE says for each stage, and what is wrong with the others."""
    from engine.plan import chains

    by_stage: dict[str, list[str]] = {}
    problems = []
    for text in texts or []:
        stage, _, setting = text.partition(":")
        if stage in chains.STAGES:
            by_stage.setdefault(stage, []).append(setting)
        else:
            problems.append(Problem(rule="setting-unknown", where=text[:80]))
    settings = {}
    for stage, listed in by_stage.items():
        settings[stage], wrong = _overrides(listed)
        problems += wrong
    return settings, problems


def list_runs(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """List all runs, newest first."""
    from engine.runs import store

    found = store.list_all(workspace)
    if arguments.json:
        _print_json(found)
    elif not found:
        print(t("No runs yet. Start one with: tunebook train lora --data new-facts --wait"))
    for run in [] if arguments.json else found:
        print(f"{run.id}  {run.status:<11} {run.progress:4.0%}  {run.name}")
    return EXIT_OK


def show(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Show one run with its spec, its summary and what it took."""
    from engine.estimate import memory
    from engine.runs import store

    if not _known_run(workspace, arguments.run):
        return EXIT_FAILED
    try:
        store.load_spec(workspace, arguments.run)
    except msgspec.MsgspecError as error:
        print(f"{arguments.run}: {error}", file=sys.stderr)
        return EXIT_FAILED
    line = msgspec.to_builtins(store.describe(workspace, arguments.run))
    run_spec = msgspec.to_builtins(store.load_spec(workspace, arguments.run))
    found = store.summary(workspace, arguments.run)
    if found.failure:  # in the reader's language
        found.failure = {key: str(value) for key, value in found.failure.items()}
    summary = msgspec.to_builtins(found)
    if arguments.json:
        _print_json({**line, "spec": run_spec, "summary": summary})
        return EXIT_OK
    measured = summary.pop("measured")
    for key, value in {**line, **{k: v for k, v in summary.items() if k not in line and v is not None}}.items():
        print(f"{key:<13} {value}")
    if measured is not None:
        print(f"{'peak_memory':<13} {memory.size_words(measured['peak_bytes'])}")
        if measured["estimated_bytes"]:
            print(f"{'estimated':<13} {memory.size_words(measured['estimated_bytes'])}")
    print(repeat_command(workspace, arguments.run))
    return EXIT_OK


def repeat_command(workspace: Workspace, run_id: str) -> str:
    """Return the command that repeats a run."""
    import shlex

    from engine.plan import drafts
    from engine.runs import store
    from engine.spec import settings as spec_settings

    run_spec = store.load_spec(workspace, run_id)
    if run_spec.kind == "evaluate":
        asked = run_spec.evaluate
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
    if run_spec.kind == "sweep":
        return shlex.join(["tunebook", "resume", run_id, "--wait"])
    words = ["tunebook", "train", run_spec.recipe.name, "--data", run_spec.dataset.id, "--base", run_spec.base.pinned]
    for path, value in drafts.changed_settings(run_spec, workspace).items():
        shown = (
            ""
            if path in spec_settings.NAMES_DATA and value is None
            else value
            if isinstance(value, str)
            else json.dumps(value)
        )
        words += ["--set", f"{path}={shown}"]
    return shlex.join([*words, "--wait"])


def stop(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Ask a run to stop after a checkpoint."""
    from engine.runs import lifecycle

    if not _known_run(workspace, arguments.run):
        return EXIT_FAILED
    lifecycle.stop(workspace, arguments.run)
    print(t("Asked {id} to stop; it saves a checkpoint first.", id=arguments.run))
    return EXIT_OK


def resume(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Let a stopped, interrupted or failed run go on from its last checkpoint."""
    from engine.runs import lifecycle

    if not _known_run(workspace, arguments.run):
        return EXIT_FAILED
    try:
        lifecycle.resume(workspace, arguments.run)
    except lifecycle.CannotResume as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    return _follow(workspace, arguments.run, as_json=arguments.json) if arguments.wait else EXIT_OK


def compare(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Print what runs gained and lost on the same items, with 95 % intervals."""
    from engine import evaluations, sweeps
    from engine.benchmarks import library
    from engine.report import Comparison, paired, verdicts
    from engine.runs import store

    rows: list[Comparison] = []
    judged: list[verdicts.Judged] = []
    titles = {one.name: one.title for one in library.available(workspace)}
    for run_id in arguments.runs:
        if not _known_run(workspace, run_id):
            return EXIT_FAILED
        try:
            if store.load_spec(workspace, run_id).kind == "sweep":
                found = sweeps.result(workspace, run_id)
                if not arguments.json:
                    print(sweeps.markdown(found))
                    continue
                ended = [one for configuration in found.configurations for one in configuration.point.runs]
                rows += [row for one in ended for row in evaluations.rows(workspace, one)[0]]
                continue
            new, chance = evaluations.rows(workspace, run_id)
            rows += new
            judged += verdicts.judge(new, chance, titles=titles)
        except (paired.ItemsDiffer, OSError, msgspec.MsgspecError) as error:
            print(f"{run_id}: {error}", file=sys.stderr)
            return EXIT_FAILED
    if arguments.json:
        _print_json(rows)
        return EXIT_OK
    if not rows and not any(store.load_spec(workspace, one).kind == "sweep" for one in arguments.runs):
        print(t("Nothing was scored yet: the scores come at the end of a run."))
    for row in rows:
        unit = verdicts.unit(row)
        scale = 1 if paired.is_loss(row) else 100
        print(
            f"{row.run}  {row.benchmark:<19} {row.family:<12} n={row.n:<5} "
            f"{row.base * scale:8.2f} -> {row.tuned * scale:8.2f} {unit:<10} "
            f"change {row.change * scale:+.2f} [{row.low * scale:+.2f}, {row.high * scale:+.2f}]"
        )
    for one in judged:
        print(one.sentence)
    return EXIT_OK


EXPORTS = ("merged", "adapter", "gguf", "modelfile", "card", "push", "trl", "llama-factory", "axolotl")


def export(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Take along what a run made, or its recipe for another trainer; --to names a folder that is new or empty."""
    from engine import export as exports

    if not _known_run(workspace, arguments.run):
        return EXIT_FAILED
    if arguments.what != "push" and arguments.to is None:
        print(t("Say where with --to FOLDER."), file=sys.stderr)
        return EXIT_REFUSED
    try:
        made = _export(arguments, workspace)
    except (exports.NotExportable, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    for line in made:
        print(line)
    return EXIT_OK


def _export(arguments: argparse.Namespace, workspace: Workspace) -> list[str]:
    """Make one export and return what to print."""
    from engine import elsewhere
    from engine import export as exports

    run_id, what, to = arguments.run, arguments.what, Path(arguments.to).absolute() if arguments.to else None
    if what in ("merged", "gguf", "push"):
        job = exports.Job(
            what=what, to=None if to is None else str(to), dtype=arguments.dtype, checkout=arguments.llama_cpp,
            repository=arguments.repository, public=arguments.public, only_adapter=arguments.only_adapter,
        )  # fmt: skip
        last = ""

        def told(state: exports.State) -> None:
            nonlocal last
            if state.phase != last or state.total_bytes:
                share = f" {state.done_bytes / state.total_bytes:.0%}" if state.total_bytes else ""
                print(f"{exports.phase_words().get(state.phase, state.phase)}{share}", file=sys.stderr)
            last = state.phase

        made = exports.carry_out(workspace, run_id, job, told=told)  # a token: the user's own login, or HF_TOKEN
        folder = to if what == "merged" and to is not None else exports.whole(workspace, run_id)
        found = exports.parity(folder) if folder is not None else None
        return [made, *(found.lines() if found is not None else [])]
    assert to is not None
    if what in elsewhere.TOOLS:
        return [str(path) for path in elsewhere.write(workspace, run_id, what, to)]
    found = exports.take(workspace, run_id, what, to)
    parity = exports.parity(workspace.run_dir(run_id))
    return [str(found), *(parity.lines() if parity is not None and what == "adapter" else [])]


def evaluate(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Ask a run and its base, or any two models, a set of benchmarks, without training."""
    from engine import evaluations
    from engine.benchmarks import library
    from engine.models import bases
    from engine.runs import store

    toy = bases.describe(evaluations.reference(workspace, arguments.ref), workspace).is_toy
    chosen = library.sets(toy=toy)[arguments.set]
    names, limit = (list(chosen.benchmarks), chosen.limit) if arguments.benchmarks is None else ([], 0)
    problems: list[Problem] = []
    for name in (arguments.benchmarks or "").split(","):
        name = name.strip()
        if library.find(name, workspace) is None and Path(name).is_file():
            own, found = library.add(workspace, Path(name).read_bytes(), Path(name).name)
            for problem in found:
                print(f"{name}: {problem.sentence}", file=sys.stderr)
            if own is None:
                return EXIT_REFUSED
            name = own.name
        names += [name] if name else []
    limit = limit if arguments.limit is None else arguments.limit
    run_spec, found = evaluations.build(
        workspace, arguments.ref, names, limit=limit, shots=arguments.shots, template=arguments.template,
        against=arguments.against,
    )  # fmt: skip
    problems += found
    if run_spec is None:
        return _refuse(problems)
    left_s = evaluations.seconds(workspace, arguments.ref, names, limit)
    if left_s is not None:
        print(t("About {minutes} minutes, by what was measured here before.", minutes=f"{left_s / 60:.1f}"),
              file=sys.stderr)  # fmt: skip
    run_id = evaluations.start(workspace, run_spec, name=arguments.name)
    if arguments.wait:
        return _follow(workspace, run_id, as_json=arguments.json)
    return _started(run_id, store.status(workspace, run_id), as_json=arguments.json)


def _started(run_id: str, status: str, *, as_json: bool) -> int:
    if as_json:
        _print_json({"id": run_id, "status": status})
    else:
        print(t("Started {id}. Follow it with: tunebook show {id}", id=run_id))
    return EXIT_OK


def sweep(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Run several recipes, settings and seeds on one data set, and see the frontier of gain against forgetting."""
    from engine import sweeps
    from engine.check import DatasetError
    from engine.spec import recipes as spec_recipes

    try:
        ready = sweeps.ready_made()
    except spec_recipes.RecipeError as error:
        return _refuse([Problem(rule="sweep-broken", parameters={"reason": str(error)})])
    if arguments.list:
        for name, one in ready.items():
            print(f"{name:<10} {one.title}: {one.about}")
        return EXIT_OK
    problems: list[Problem] = []
    settings: dict[str, list[Any]] = {}
    recipes, also, seeds, title = [], [], 1, ""
    if arguments.ready is not None:
        chosen = ready.get(arguments.ready)
        if chosen is None:
            told = {"name": arguments.ready[:80], "names": ", ".join(ready)}
            problems.append(Problem(rule="sweep-unknown", parameters=told))
        else:
            recipes, also, seeds, title = list(chosen.recipes), list(chosen.also), chosen.seeds, chosen.title
            settings = {path: list(values) for path, values in chosen.settings.items()}
    if arguments.recipes:
        recipes, also = [name.strip() for name in arguments.recipes.split(",") if name.strip()], []
    for text in arguments.set or []:
        parsed = sweeps.parse_values(text)
        if isinstance(parsed, Problem):
            problems.append(parsed)
        else:
            settings[parsed[0]] = parsed[1]
    data = ""
    try:
        data = _add_data(arguments, workspace) if arguments.data else ""
    except DatasetError as error:
        problems.append(error.problem)
    made, found = sweeps.plan(
        workspace, title=arguments.name or title or "sweep", data=data, base=arguments.base, recipes=recipes,
        settings=settings, also=also, seeds=seeds if arguments.seeds is None else arguments.seeds,
    )  # fmt: skip
    problems += found
    if problems:
        return _refuse(problems)
    sweep_id = sweeps.start(workspace, made)
    if not arguments.wait:
        return _started(sweep_id, "running", as_json=arguments.json)
    status = _follow(workspace, sweep_id, as_json=arguments.json)
    if not arguments.json:
        print(sweeps.markdown(sweeps.result(workspace, sweep_id)))
    return status


def advise(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Say which recipe suits some data, a machine and a goal, by which rules, and what would change that."""
    from engine import machine
    from engine.advise import Facts, otherwise, outlook, ways
    from engine.advise import advice as advise_advice
    from engine.advise import fits as advise_fits
    from engine.models import Base, bases
    from engine.plan import judges
    from engine.spec import schema

    try:
        given = json.loads(Path(arguments.facts).read_bytes()) if arguments.facts else {}
        facts = msgspec.convert(given, Facts)
    except (OSError, ValueError, RecursionError) as error:
        print(t("{path} cannot be read as facts: {reason}", path=arguments.facts, reason=error), file=sys.stderr)
        return EXIT_REFUSED
    known: dict[str, Any] = {}
    base = None
    if arguments.data:
        known |= _facts_of(Path(arguments.data))
    if arguments.base:
        base = bases.describe(arguments.base, workspace)
        known |= {"base_parameters": base.parameters, "base_is_tuned": base.kind == "run"}
        known["has_reward_model"] = (
            judges.newest(workspace, base, schema.ObjectiveArgs().least_reward_accuracy) is not None
        )
    gpus = machine.facts().gpus
    if not arguments.facts and gpus:
        known["gpu_memory_gib"] = gpus[0].memory_mib / 1024
    flags = {name: getattr(arguments, name) for name in _FACTS if getattr(arguments, name) is not None}
    facts = msgspec.structs.replace(facts, **{**known, **flags})
    shape = advise_fits.shape_for(base, facts.base_parameters)
    planned = base or Base(ref="", kind="hub", title="")
    fits = advise_fits.fits(planned, facts.gpu_memory_gib, facts.base_parameters)
    need = advise_fits.need(planned, facts.gpu_memory_gib, facts.base_parameters)
    tight = advise_fits.tight(planned, facts.gpu_memory_gib, facts.base_parameters)
    advice = advise_advice.advise(facts, runnable=ways.runnable_now, fits=fits, need=need, tight=tight)
    outlooks = outlook.of(advice, shape, workspace, row_tokens=None)
    problems = [*advice.problems, *_base_problems(base)]
    if arguments.json:
        mentioned = [one._asdict() for one in otherwise.mentioned()]
        found = {**msgspec.to_builtins(advice), "problems": problems, "outlook": outlooks, "mentioned": mentioned}
        _print_json(found)
        return EXIT_OK
    print(advice.headline)
    for problem in problems:
        print(f"  ! {problem.sentence}")
    if base is not None and base.shape is None and base.folder is not None and not base.problems:
        print(f"  ! {t('Its memory cannot be estimated: Tunebook does not know this architecture.')}")
    for reason in [*advice.reasons, *([advice.nearest_reason] if advice.nearest_reason else [])]:
        print(f"  - {reason}")
    print(t("Rules of the guide: {rules}", rules=", ".join(advice.rules) or "-"))
    for overruled in advice.overruled:
        print(f"  x {overruled.rule}: {overruled.why}")
    print(t("Confidence: {level}. {reason}", level=advice.confidence, reason=advice.confidence_reason))
    for sentence in advice.would_change:
        print(f"  ? {sentence}")
    for one in outlooks:
        print(f"  {one.title:<28} {_range_words(one)}")
    for number, stage in enumerate(advice.plan, 1):
        print(f"  {number}. {stage.title}: {stage.text}")
    return EXIT_OK


def _base_problems(base: Any) -> list[Problem]:
    """Return why the size of a base is not known; one of the hub that is not here is no problem before it is named."""
    if base is None or base.problems or base.parameters is not None or base.kind != "hub":
        return list(base.problems) if base is not None else []
    return [Problem(rule="base-not-here", where="base.ref", parameters={"ref": base.ref})]


def _range_words(one: Any) -> str:
    """Return what an alternative takes, in one line."""
    from engine.estimate import duration, memory

    parts = [t("fits") if one.fits else t("does not fit")]
    if one.low_bytes is not None:
        parts.append(f"{memory.size_words(one.low_bytes)} - {memory.size_words(one.high_bytes)}")
    if one.time is not None:
        parts.append(f"{duration.duration_words(one.time.low_s)} - {duration.duration_words(one.time.high_s)}")
    return ", ".join(parts)


_FACTS = ("rows", "data_type", "good_rows", "bad_rows", "gpu_memory_gib", "base_parameters", "goal", "alignment_data",
          "forgetting_tolerance", "has_reward_model", "base_is_tuned", "time_budget_minutes")  # fmt: skip


def _facts_of(file: Path) -> dict[str, Any]:
    """Return what a file says to the advisor."""
    from engine.check import DatasetError, check_file

    try:
        report = check_file(file)
    except DatasetError as error:
        print(error.problem.sentence, file=sys.stderr)
        return {}
    labels = report.label_counts or {}
    return {
        "rows": report.rows - report.bad_rows,
        "data_type": report.type,
        "good_rows": labels.get("true"),
        "bad_rows": labels.get("false"),
    }


def download(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Fetch a model from the hub; one that was stopped goes on. A token comes from HF_TOKEN or the hub's own login."""
    from engine.models import hub, hub_client

    shown = -1

    def told(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(1, total)
        if percent != shown and sys.stderr.isatty():
            shown = percent
            print(f"\r{percent} %", end="", file=sys.stderr, flush=True)

    try:
        commit = hub.fetch(arguments.ref, progress=told)
    except hub_client.HubError as error:
        print(error.problem.sentence, file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(t("Stopped. The same command goes on where it ended."), file=sys.stderr)
        return EXIT_FAILED
    if arguments.json:
        _print_json({"ref": arguments.ref, "commit": commit})
    else:
        print(t("{ref} is on this machine, at commit {commit}.", ref=arguments.ref, commit=commit))
    return EXIT_OK


def app(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Open the pages; further arguments go to streamlit, such as --server.port 8600."""
    root = processes.PROJECT_DIR
    flags = [] if (root / ".streamlit" / "config.toml").exists() else _FLAGS
    command = [sys.executable, "-m", "streamlit", "run", str(root / "app.py"), *flags, *arguments.streamlit]
    os.execv(sys.executable, command)  # noqa: S606 - a list, no shell; this process becomes the server


# What .streamlit/config.toml says, for an installation that lacks the file: a wheel does not carry it.
_FLAGS = [
    "--server.address=127.0.0.1", "--server.showEmailPrompt=false", "--browser.gatherUsageStats=false",
    "--server.fileWatcherType=none", "--server.allowedHosts=localhost", "--server.allowedHosts=127.0.0.1",
    "--server.allowedHosts=::1",
    "--server.maxUploadSize=200", "--global.disableWidgetStateDuplicationWarning=true",
    "--runner.postScriptGC=false",
]  # fmt: skip


def parser() -> argparse.ArgumentParser:
    from engine.data import fixes

    main_parser = argparse.ArgumentParser(
        prog="tunebook", description="Fine-tune language models, and see what they forget."
    )
    main_parser.add_argument("--version", action="version", version=__version__)
    main_parser.add_argument(
        "--lang", choices=languages(), help="the language of sentences; else TUNEBOOK_LANG or LANG"
    )
    commands = main_parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, *, as_json: bool = True) -> argparse.ArgumentParser:
        # argparse fills in the percent signs of `help`, and leaves those of `description` alone
        sub = commands.add_parser(name, help=function.__doc__.replace("%", "%%"), description=function.__doc__)
        sub.set_defaults(function=function)
        if as_json:
            sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    sub = command("check", check)
    sub.add_argument("file", nargs="?")
    sub.add_argument("--base", help="name rows longer than this base's window: starter, a folder, a Hugging Face id")
    sub.add_argument("--eval-data", metavar="FILE", help="name rows that ask what a row of this validation data asks")
    sub.add_argument("--rules", action="store_true", help="list the rules instead")
    sub.add_argument("--map", action="append", metavar="COLUMN=NAME", help="what a column is, such as reply=completion")
    sub.add_argument(
        "--problems", metavar="FILE", type=Path, help="write every problem to FILE, one JSON object a line"
    )
    sub = command("train", train)
    sub.add_argument("recipe", help="a file of recipes/, without .yaml")
    sub.add_argument(
        "--data",
        required=True,
        help="a file, a stored id, a sample such as new-facts, hf:owner/name[:config][:split], or mix:A=3,B=1",
    )
    sub.add_argument("--eval-data", help="a file that is only scored, never trained on")
    sub.add_argument("--base", default="starter", help="starter, a folder, a Hugging Face id, or run:<id>")
    sub.add_argument("--set", action="append", metavar="PATH=VALUE", help="a setting, such as train.epochs=3")
    sub.add_argument("--name", help="what to call the run")
    sub.add_argument("--drop-bad-rows", action="store_true", help="leave rows with errors out")
    sub.add_argument("--map", action="append", metavar="COLUMN=NAME", help="what a column is, such as reply=completion")
    sub.add_argument("--fix", action="append", choices=fixes.FIXES, help="repair the file first")
    sub.add_argument("--wait", action="store_true", help="follow the run to its end")
    sub = command("fit", fit)
    sub.add_argument("recipe", help="a file of recipes/, without .yaml")
    sub.add_argument("--data", help="a file, a stored data set's id, or a sample; for its rows and for the time")
    sub.add_argument("--probe", action="store_true", help="try the longest batch for one step; needs the device")
    sub.set_defaults(drop_bad_rows=True, fix=None, map=None)
    sub.add_argument("--base", default="starter", help="starter, a folder, a Hugging Face id, or run:<id>")
    sub.add_argument("--set", action="append", metavar="PATH=VALUE", help="a setting, such as train.batch_size=1")
    sub = command("download", download)
    sub.add_argument("ref", help="owner/name, or owner/name@revision")
    sub = command("chain", chain)
    sub.add_argument("--sft-data", help="questions with answers; left out, the base is taken as it is")
    sub.add_argument("--preference-data", required=True, help="pairs of a better and a worse answer")
    sub.add_argument("--prompts", required=True, help="questions alone, for PPO")
    sub.add_argument("--set", action="append", metavar="STAGE:PATH=VALUE", help="such as ppo:train.epochs=3")
    sub.add_argument("--base", default="starter", help="starter, a folder, a Hugging Face id, or run:<id>")
    command("runs", list_runs)
    command("show", show).add_argument("run")
    command("stop", stop, as_json=False).add_argument("run")
    sub = command("resume", resume)
    sub.add_argument("run")
    sub.add_argument("--wait", action="store_true", help="follow the run to its end")
    command("compare", compare).add_argument("runs", nargs="+", metavar="RUN")
    sub = command("export", export, as_json=False)
    sub.add_argument("run")
    sub.add_argument("--what", choices=EXPORTS, default="merged")
    sub.add_argument("--to", metavar="FOLDER")
    sub.add_argument("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto",
                     help="merged: numbers of this kind; auto is what the base is stored in")  # fmt: skip
    sub.add_argument("--llama-cpp", metavar="FOLDER", default=os.environ.get("LLAMA_CPP_DIR"), help="gguf: a checkout")
    sub.add_argument("--repository", metavar="OWNER/NAME", help="push: where on the hub; it is private")
    sub.add_argument("--public", action="store_true", help="push: let everybody see it")
    sub.add_argument("--only-adapter", action="store_true", help="push: the adapter without its base")
    sub = command("evaluate", evaluate)
    sub.add_argument("ref", help="a run's id, or a base: starter, a folder, a Hugging Face id")
    sub.add_argument("--benchmarks", metavar="A,B", help="names, or JSON Lines files of your own questions")
    sub.add_argument("--set", choices=("quick", "standard", "full"), default="standard", help="when none is named")
    sub.add_argument("--against", help="compare with this base; a run is compared with the one it was made from")
    sub.add_argument("--limit", type=int, help="questions per benchmark; 0 means all")
    sub.add_argument("--shots", type=int, default=0, help="worked examples before each question")
    sub.add_argument("--template", choices=("auto", "chat", "none"), default="auto")
    sub.add_argument("--name", help="what to call the run")
    sub.add_argument("--wait", action="store_true", help="follow the run to its end")
    sub = command("sweep", sweep)
    sub.add_argument("ready", nargs="?", help="a ready-made sweep; --list shows them")
    sub.add_argument("--list", action="store_true", help="show the ready-made sweeps")
    sub.add_argument("--recipes", metavar="A,B", help="recipes, such as full,lora")
    sub.add_argument("--set", action="append", metavar="PATH=V1,V2", help="values of a setting, all combined")
    sub.add_argument("--seeds", type=int, help="how often each is run, with seeds 0, 1, ...")
    sub.add_argument("--data", help="a file, a stored data set's id, or a sample such as new-facts")
    sub.add_argument("--base", default="starter", help="starter, a folder, a Hugging Face id, or run:<id>")
    sub.add_argument("--name", help="what to call the sweep")
    sub.add_argument("--drop-bad-rows", action="store_true", help="leave rows with errors out")
    sub.add_argument("--map", action="append", metavar="COLUMN=NAME", help="what a column is")
    sub.add_argument("--fix", action="append", choices=fixes.FIXES, help="repair the file first")
    sub.add_argument("--wait", action="store_true", help="follow the sweep to its end")
    sub = command("advise", advise)
    sub.add_argument("--facts", metavar="FILE", help="a JSON object of facts, by the names below with _ for -")
    sub.add_argument("--data", metavar="FILE", help="read rows, kind and labels from this file")
    sub.add_argument("--base", help="read the size of this base")
    for name, kind in (("rows", int), ("good-rows", int), ("bad-rows", int), ("gpu-memory-gib", float),
                       ("base-parameters", float), ("time-budget-minutes", float)):  # fmt: skip
        sub.add_argument(f"--{name}", type=kind)
    from engine.advise import facts as advise_facts

    sub.add_argument("--data-type", choices=advise_facts.DATA_TYPES)
    sub.add_argument("--goal", choices=advise_facts.GOALS)
    sub.add_argument(
        "--alignment-data", choices=advise_facts.ALIGNMENT_DATA, help="what people have said about answers"
    )
    sub.add_argument("--forgetting-tolerance", choices=advise_facts.TOLERANCES)
    sub.add_argument("--has-reward-model", action="store_true", default=None)
    sub.add_argument("--base-is-tuned", action="store_true", default=None)
    command("app", app, as_json=False).set_defaults(streamlit=[])
    return main_parser


def main(argv: list[str] | None = None) -> None:
    """Entry point of `tunebook` and of `python -m engine.cli`."""
    arguments, rest = parser().parse_known_args(argv)
    if rest and arguments.function is not app:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    set_language(arguments.lang or environment_language())
    if arguments.function is app:
        arguments.streamlit = rest
    sys.exit(arguments.function(arguments, default_workspace()))


if __name__ == "__main__":
    main()
