"""tunebook compare, evaluate, adopt, recover, sweep."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from engine.workspace import Workspace, is_regular

if TYPE_CHECKING:
    from engine.forgetting import recovery_curve, stages
    from engine.report import Comparison
    from engine.runs import ScoredRun
    from engine.spec import RunSpec


def register(command: shared.Command) -> None:
    sub = command("compare", compare)
    sub.add_argument("runs", nargs="+", metavar="RUN")
    sub.add_argument("--lost", action="store_true", help="also show each question that was lost, with both answers")
    sub = command("evaluate", evaluate)
    sub.add_argument("ref", help="a run's id, or a base: starter, a folder, a Hugging Face id")
    sub.add_argument("--benchmarks", metavar="A,B", help="names, or JSON Lines files of your own questions")
    sub.add_argument("--set", choices=("quick", "standard", "full"), default="standard", help="when none is named")
    sub.add_argument(
        "--everything", action="store_true", help="ask a run the rest of what its check in bounded time asked"
    )
    sub.add_argument("--against", help="compare with this base; a run is compared with the one it was made from")
    sub.add_argument("--limit", type=int, help="questions per benchmark; 0 means all")
    sub.add_argument("--shots", type=int, help="worked examples before each question")
    sub.add_argument("--data", help="ask a base the held-out rows of a new task, without examples and after some")
    sub.add_argument(
        "--texts", action="store_true", help="let a run and its base answer held-out prompts, to be compared blind"
    )
    sub.add_argument("--template", choices=("auto", "chat", "none"), default="auto")
    shared.take_name_and_wait(sub)
    sub.set_defaults(drop_bad_rows=False, fix=None, map=None)
    sub = command("adopt", adopt)
    sub.add_argument("base", nargs="?", help="what it was made from; may be left out where an adapter names it")
    sub.add_argument("folder", help="the folder of an adapter, or of a whole model")
    sub.add_argument("--benchmarks", metavar="A,B", help="names, or JSON Lines files of your own questions")
    sub.add_argument("--limit", type=int, help="questions per benchmark; 0 means all")
    sub.add_argument("--data", help="the rows it was trained on, where they are known")
    sub.add_argument("--eval-data", help="rows of the same task that it has not seen")
    sub.set_defaults(set="standard", drop_bad_rows=False, fix=None, map=None)
    shared.take_name_and_wait(sub)
    sub = command("recover", recover)
    sub.add_argument("run")
    sub.add_argument("--intruders", action="store_true", help="take intruder dimensions of its LoRA away instead")
    sub.add_argument("--at", type=float, metavar="X", help="a part of the way: 0 the base, 1 the run")
    sub.add_argument("--save", action="store_true", help="keep that point, or the one suggested, as a run of its own")
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
    from engine.forgetting import claims, stages
    from engine.models import bases
    from engine.report import verdicts
    from engine.runs import scored, store

    rows: list[Comparison] = []
    judged: list[verdicts.Judged] = []
    lines: list[stages.Line | None] = []
    about: list[str] = []
    lost: list[str] = []
    first: list[str] = []
    titles, runs = library.titles(workspace), store.list_all(workspace)
    apart = False
    for run_id in arguments.runs:
        if not made_something(workspace, run_id):
            return EXIT_FAILED
        try:
            kind = store.load_spec(workspace, run_id).kind
            if not arguments.json and _printed_apart(workspace, run_id, kind):
                apart = True
                continue
            if kind == "sweep":
                configurations = claims.result(workspace, run_id).configurations
                ended = [one for configuration in configurations for one in configuration.point.runs]
                rows += [row for one in ended for row in scored.of(workspace, one, runs).rows]
                continue
            found = scored.of(workspace, run_id, runs)
            rows += found.rows
            judged += found.judged(titles)
            lines.append(stages.of(found, runs))
            first += shared.report_lines(found, runs)
            about += found.about
            lost += _lost(found) if arguments.lost else []
        except (OSError, ValueError) as error:
            print(f"{run_id}: {error}", file=sys.stderr)
            return EXIT_FAILED
    if arguments.json:
        print_json(rows)
        return EXIT_OK
    if not rows and not apart:
        print(t("Nothing was scored yet: the scores come at the end of a run."))
    for row in rows:
        print(f"{row.run}  {row.benchmark:<19} {row.family:<12} n={row.n:<5} {_figures(row)}")
    for said in first:
        print(said)
    for one in judged:
        print(one.sentence)
    for said in [*dict.fromkeys(about), *lost]:
        print(said)
    for line in lines:
        _print_stages(line)
    used = dict.fromkeys(store.load_spec(workspace, one).base.ref for one in arguments.runs)
    for note in dict.fromkeys(bases.describe(ref, workspace).rounding_note for ref in used):
        if note is not None:
            print(note)
    return EXIT_OK


def _printed_apart(workspace: Workspace, run_id: str, kind: str) -> bool:
    """Print what is not compared by itself: a sweep, the scored way back from a run, a base that was asked alone; return
    whether it was one."""
    from engine.forgetting import claims, recovery, recovery_curve
    from engine.runs import scored

    if kind == "sweep":
        print(claims.markdown(claims.result(workspace, run_id)))
        return True
    if kind == "evaluate" and scored.is_alone(run_dir := workspace.run_dir(run_id)):
        for one in scored.alone(run_dir):
            print(f"{run_id}  {one.benchmark:<19} n={one.n:<5} {one.told}")
        print(scored.alone_note())
        return True
    curve = recovery.scanned(workspace, run_id)
    _print_curve(curve, recovery_curve)
    return curve is not None


def _lost(found: ScoredRun) -> list[str]:
    """Return each question that the base answered right and the run does not, with both answers."""
    from engine.report import questions

    told = []
    for benchmark, joined in found.joined.items():
        for before, after in questions.flips(joined, "lost"):
            told += [
                f"\n{found.run_id}  {benchmark}  {after.item}: {after.prompt or ''}".rstrip(),
                t("Base: {answer}", answer=questions.said(before)), t("Tuned: {answer}", answer=questions.said(after)),
            ]  # fmt: skip
    return told


def _figures(row: Comparison) -> str:
    """Return before, after and the change of a line with its interval, and how many questions were lost and won."""
    from engine.report import paired, verdicts

    scale, digits = (1, 3) if paired.is_loss(row) else (100, 2)
    before, after = (f"{value * scale:8.{digits}f}" for value in (row.base, row.tuned))
    return f"{before} -> {after} {verdicts.unit(row):<10} change {_change(row)}  {verdicts.flipped(row)}".rstrip()


def _change(row: Comparison) -> str:
    from engine.report import paired

    scale, digits = (1, 3) if paired.is_loss(row) else (100, 2)
    change, low, high = (f"{value * scale:+.{digits}f}" for value in (row.change, row.low, row.high))
    return f"{change} " + (t("(too few to say)") if paired.too_few(row) else f"[{low}, {high}]")


def _print_stages(line: stages.Line | None) -> None:
    """Print what each stage that led to a run did, and what has become of it since the first base."""
    if line is None or not line.changes:
        return
    print(t("Stage by stage, from {base}:", base=line.first))
    for one in line.changes:
        since = t("since the first base {change}", change=_change(one.since)) if one.since is not None else ""
        print(f"{one.stage}  {one.own.benchmark:<19} n={one.own.n:<5} {_figures(one.own)}  {since}".rstrip())
    for note in line.notes:
        print(note)


def evaluate(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Ask a run and its base, or any two models, a set of benchmarks, without training."""
    from engine.forgetting import evaluations
    from engine.runs import store

    of_run = arguments.everything or arguments.texts
    ask = _of_its_rows if of_run else _after_examples if arguments.data else _more
    run_spec, problems = ask(arguments, workspace)
    if run_spec is None:
        return refuse(problems) if problems else EXIT_REFUSED
    run_id = evaluations.start(workspace, run_spec, name=arguments.name)
    if arguments.wait:
        return follow(workspace, run_id, as_json=arguments.json)
    return started(run_id, store.status(workspace, run_id), as_json=arguments.json)


def _of_its_rows(arguments: argparse.Namespace, workspace: Workspace) -> tuple[RunSpec | None, list[Problem]]:
    """Return the spec that asks a run everything, or lets it answer held-out prompts, and what keeps it from starting."""
    from engine.forgetting import evaluations

    if not shared.there(workspace, arguments.ref):
        return None, []
    return (evaluations.texts if arguments.texts else evaluations.everything)(workspace, arguments.ref)


def _after_examples(arguments: argparse.Namespace, workspace: Workspace) -> tuple[RunSpec | None, list[Problem]]:
    """Return the spec that asks a base the held-out rows of a recipe's plan, and what keeps it from starting."""
    from engine.check import DatasetError
    from engine.forgetting import evaluations, examples
    from engine.plan import plans

    base = shared.counted(evaluations.reference(workspace, arguments.ref), workspace)
    try:
        plan = plans.make(workspace, "lora", base=base, dataset=add_data(arguments, workspace), overrides={})
    except DatasetError as error:
        return None, [error.problem]
    shots = examples.SHOTS if arguments.shots is None else arguments.shots
    return examples.build(workspace, plan.spec.base, plan.spec.dataset, shots=shots)


def _more(arguments: argparse.Namespace, workspace: Workspace) -> tuple[RunSpec | None, list[Problem]]:
    """Return the spec that asks a run or a base the benchmarks that were named, and what keeps it from starting."""
    from engine.forgetting import evaluations

    asked = _asked(arguments, workspace, arguments.ref)
    if asked is None:
        return None, []
    names, limit = asked
    run_spec, problems = evaluations.build(
        workspace, arguments.ref, names, limit=limit, shots=arguments.shots or 0, template=arguments.template,
        against=arguments.against,
    )  # fmt: skip
    left_s = evaluations.seconds(workspace, arguments.ref, names, limit) if run_spec is not None else None
    if left_s is not None:
        print(t("About {minutes} minutes, by what was measured here before.", minutes=f"{left_s / 60:.1f}"),
              file=sys.stderr)  # fmt: skip
    return run_spec, problems


def _asked(arguments: argparse.Namespace, workspace: Workspace, ref: str) -> tuple[list[str], int] | None:
    """Return the benchmarks that were named, or those of the set, and how many questions of each; files of own questions
    are kept first. None, and said, where one cannot be read."""
    from engine.benchmarks import library
    from engine.forgetting import evaluations

    chosen = evaluations.sets(workspace, ref)[arguments.set]
    names, limit = (list(chosen.benchmarks), chosen.limit) if arguments.benchmarks is None else ([], 0)
    for name in (arguments.benchmarks or "").split(","):
        name = name.strip()
        if library.find(name, workspace) is None and is_regular(Path(name)):
            own, found = evaluations.add_questions(workspace, Path(name).read_bytes(), Path(name).name)
            for problem in found:
                print(f"{name}: {problem.sentence}", file=sys.stderr)
            if own is None:
                return None
            name = own.name
        names += [name] if name else []
    return names, limit if arguments.limit is None else arguments.limit


def adopt(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Make a run of a model that was tuned elsewhere, an adapter or a whole model, and score it against its base."""
    from engine import limits
    from engine.check import DatasetError
    from engine.forgetting import adoption
    from engine.runs import store

    found, problems = adoption.build(workspace, arguments.folder, arguments.base)
    if found is None:
        return refuse(problems)
    asked = _asked(arguments, workspace, found.base.ref)
    if asked is None:
        return EXIT_REFUSED
    try:
        data, eval_data = (
            add_data(argparse.Namespace(**{**vars(arguments), "data": one}), workspace) if one else None
            for one in (arguments.data, arguments.eval_data)
        )
    except DatasetError as error:
        return refuse([error.problem])
    found, problems = adoption.build(
        workspace, arguments.folder, arguments.base, benchmarks=asked[0], limit=asked[1], data=data, eval_data=eval_data
    )
    if found is None:
        return refuse(problems)
    for note in found.notes:
        print(note, file=sys.stderr)
    try:
        run_id = adoption.start(workspace, found, name=arguments.name)
    except limits.OverLimit as refused:
        return refuse(list(refused.problems))
    if arguments.wait:
        return follow(workspace, run_id, as_json=arguments.json)
    return started(run_id, store.status(workspace, run_id), as_json=arguments.json)


def recover(arguments: argparse.Namespace, workspace: Workspace) -> int:
    """Go back from a run toward its base, without training: score the way, or keep a point of it as a run."""
    from engine.forgetting import recovery, recovery_curve
    from engine.runs import store

    run_id, intruders, at = arguments.run, arguments.intruders, arguments.at
    points: list[float] = []
    if arguments.save and at is None:
        at, wrong = recovery.suggested(workspace, run_id, intruders=intruders)
        if at is None:
            return refuse(wrong)
    elif at is not None and not arguments.save:
        found = recovery.curve(workspace, run_id, intruders=intruders)
        points, at = recovery.with_point(found, at, intruders=intruders), None
    spec, problems = recovery.build(workspace, run_id, intruders=intruders, at=at, points=points)
    if spec is None or spec.recover is None:
        return refuse(problems)
    asked = 1 if at is not None else len(spec.recover.points)
    if (left_s := recovery.seconds(workspace, run_id, asked, intruders=intruders)) is not None:
        print(t("About {minutes} minutes, by what was measured here before.", minutes=f"{left_s / 60:.1f}"),
              file=sys.stderr)  # fmt: skip
    made = recovery.start(workspace, spec, name=arguments.name)
    if not arguments.wait:
        return started(made, store.status(workspace, made), as_json=arguments.json)
    status = follow(workspace, made, as_json=arguments.json)
    if at is None and not arguments.json:
        _print_curve(recovery.curve(workspace, run_id, intruders=intruders), recovery_curve)
    return status


def _print_curve(curve: recovery_curve.Curve | None, words: Any) -> None:
    """Print gain and loss at each point of the way, and the point to take."""
    if curve is None:
        return
    for point in reversed(curve.points):
        told = [f"{point.at:5.2f}", f"{t('gain')} {_told(point.gain, curve.in_points)}"]
        told.append(f"{t('general knowledge')} {_told(point.general, curve.general_in == 'points')}")
        if point.behaviour is not None:
            told.append(f"{t('behaviour')} {_told(point.behaviour, True)}")
        print("  ".join(told))
    for sentence in [*words.sentences(curve), words.rule()]:
        print(sentence)


def _told(figure: recovery_curve.Figure | None, in_points: bool) -> str:
    from engine.forgetting.recovery_curve import told

    if figure is None:
        return "–"
    value, low, high = (told(one, in_points) for one in (figure.value, figure.low, figure.high))
    return value if figure.low is None else f"{value} [{low}, {high}]"


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
    shared.counted(arguments.base, workspace)  # for the plans of all runs
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
