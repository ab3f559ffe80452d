"""tunebook compare, evaluate, sweep."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from engine.cli import shared
from engine.cli.shared import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_REFUSED,
    add_data,
    follow,
    made_something,
    print_json,
    refuse,
    started,
)
from engine.words import Problem, t
from engine.workspace import Workspace


def register(command: shared.Command) -> None:
    command("compare", compare).add_argument("runs", nargs="+", metavar="RUN")
    sub = command("evaluate", evaluate)
    sub.add_argument("ref", help="a run's id, or a base: starter, a folder, a Hugging Face id")
    sub.add_argument("--benchmarks", metavar="A,B", help="names, or JSON Lines files of your own questions")
    sub.add_argument("--set", choices=("quick", "standard", "full"), default="standard", help="when none is named")
    sub.add_argument("--against", help="compare with this base; a run is compared with the one it was made from")
    sub.add_argument("--limit", type=int, help="questions per benchmark; 0 means all")
    sub.add_argument("--shots", type=int, default=0, help="worked examples before each question")
    sub.add_argument("--template", choices=("auto", "chat", "none"), default="auto")
    shared.take_name_and_wait(sub)
    sub = command("sweep", sweep)
    sub.add_argument("ready", nargs="?", help="a ready-made sweep; --list shows them")
    sub.add_argument("--list", action="store_true", help="show the ready-made sweeps")
    sub.add_argument("--recipes", metavar="A,B", help="recipes, such as full,lora")
    sub.add_argument("--set", action="append", metavar="PATH=V1,V2", help="values of a setting, all combined")
    sub.add_argument("--seeds", type=int, help="how often each is run, with seeds 0, 1, ...")
    shared.take_data(sub)
    shared.take_base(sub)
    shared.take_name_and_wait(sub)


def compare(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Print what runs gained and lost on the same items, with 95 % intervals."""
    from engine.benchmarks import library
    from engine.forgetting import claims
    from engine.models import bases
    from engine.report import Comparison, paired, verdicts
    from engine.runs import scored, store

    rows: list[Comparison] = []
    judged: list[verdicts.Judged] = []
    titles, runs = library.titles(workspace), store.list_all(workspace)
    for run_id in arguments.runs:
        if not made_something(workspace, run_id):
            return EXIT_FAILED
        try:
            if store.load_spec(workspace, run_id).kind == "sweep":
                found = claims.result(workspace, run_id)
                if not arguments.json:
                    print(claims.markdown(found))
                    continue
                ended = [one for configuration in found.configurations for one in configuration.point.runs]
                rows += [row for one in ended for row in scored.of(workspace, one, runs).rows]
                continue
            found = scored.of(workspace, run_id, runs)
            rows += found.rows
            judged += found.judged(titles)
        except (OSError, ValueError) as error:
            print(f"{run_id}: {error}", file=sys.stderr)
            return EXIT_FAILED
    if arguments.json:
        print_json(rows)
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
    used = dict.fromkeys(store.load_spec(workspace, one).base.ref for one in arguments.runs)
    for note in dict.fromkeys(bases.describe(ref, workspace).rounding_note for ref in used):
        if note is not None:
            print(note)
    return EXIT_OK


def evaluate(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Ask a run and its base, or any two models, a set of benchmarks, without training."""
    from engine.benchmarks import library
    from engine.forgetting import evaluations
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
        return refuse(problems)
    left_s = evaluations.seconds(workspace, arguments.ref, names, limit)
    if left_s is not None:
        print(t("About {minutes} minutes, by what was measured here before.", minutes=f"{left_s / 60:.1f}"),
              file=sys.stderr)  # fmt: skip
    run_id = evaluations.start(workspace, run_spec, name=arguments.name)
    if arguments.wait:
        return follow(workspace, run_id, as_json=arguments.json)
    return started(run_id, store.status(workspace, run_id), as_json=arguments.json)


def sweep(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Run several recipes, settings and seeds on one data set, and see the frontier of gain against forgetting."""
    from engine.check import DatasetError
    from engine.forgetting import claims, sweep_drive, sweep_plan
    from engine.spec import recipes as spec_recipes

    try:
        ready = sweep_plan.ready_made()
    except spec_recipes.RecipeError as error:
        return refuse([Problem(rule="sweep-broken", parameters={"reason": str(error)})])
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
        parsed = sweep_plan.parse_values(text)
        if isinstance(parsed, Problem):
            problems.append(parsed)
        else:
            settings[parsed[0]] = parsed[1]
    data = ""
    try:
        data = add_data(arguments, workspace) if arguments.data else ""
    except DatasetError as error:
        problems.append(error.problem)
    made, found = sweep_plan.make(
        workspace, title=arguments.name or title or "sweep", data=data, base=arguments.base, recipes=recipes,
        settings=settings, also=also, seeds=seeds if arguments.seeds is None else arguments.seeds,
    )  # fmt: skip
    problems += found
    if problems:
        return refuse(problems)
    sweep_id = sweep_drive.start(workspace, made)
    if not arguments.wait:
        return started(sweep_id, "running", as_json=arguments.json)
    status = follow(workspace, sweep_id, as_json=arguments.json)
    if not arguments.json:
        print(claims.markdown(claims.result(workspace, sweep_id)))
    return status
