"""One run on the Forgetting page: what it gained and lost, question by question, and what to do about it."""

from __future__ import annotations

import msgspec
import pandas as pd
import streamlit as st

from engine import events, limits
from engine.benchmarks import library
from engine.forgetting import evaluations, remedies
from engine.models import bases
from engine.plan import drafts
from engine.report import Comparison, files, frontier, headline, items, paired, questions, verdicts
from engine.runs import Run, lifecycle, store
from engine.spec import OBJECTIVES, RunSpec
from engine.words import t
from engine.workspace import Workspace
from pages import _forgetting_parts as parts
from pages import _ui

MOST_SHOWN = 1_000
OWN_FORMS = """{"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}
{"question": "Translate: good morning", "reference": "bonjour"}
{"text": "A passage: how surprising is it?"}"""
FLIPS_IN_REPORT = 100


def show(workspace: Workspace, run_id: str) -> None:
    """Show one run, from its items alone."""
    run_spec = store.load_spec(workspace, run_id)
    titled = parts.titles(workspace)
    try:
        rows, chance = evaluations.rows(workspace, run_id)
    except (paired.ItemsDiffer, OSError, msgspec.MsgspecError) as error:
        st.error(_ui.say("The scores of this run cannot be compared: {reason}", reason=error))
        return
    judged = verdicts.judge(rows, chance, titles=titled)
    if rows:
        _figures(workspace, run_id, run_spec, rows, judged, titled)
    if rows and run_spec.kind == "train" and OBJECTIVES[run_spec.objective].is_scored_on_its_way:
        _along(workspace, run_id)
    if run_spec.kind == "train" and any(one.verdict == "real drop" for one in judged):
        _what_to_do(workspace, run_id, run_spec)
    if not OBJECTIVES[run_spec.objective].is_judge:
        _ask_more(workspace, run_id)
    if rows:
        _downloads(workspace, run_id, run_spec, rows, judged, titled)


def _figures(
    workspace: Workspace,
    run_id: str,
    run_spec: RunSpec,
    rows: list[Comparison],
    judged: list[verdicts.Judged],
    titled: dict[str, str],
) -> None:
    st.subheader(_ui.plain(headline.headline(rows)))
    _ui.toy_note(bases.describe(run_spec.base.ref, workspace))
    if OBJECTIVES[run_spec.objective].is_judge:
        st.caption(t("A reward model writes no answers, so it is not asked about general knowledge."))
    elif not judged:
        st.caption(t("No general benchmark was asked, so what it forgot is not known yet. Ask one below."))
    whole = [row for row in rows if row.family in (items.ALL, items.SEEN, items.UNSEEN)]
    st.dataframe(
        parts.table(whole, judged, titled), hide_index=True, alt=t("Scores of base and tuned model with their change")
    )
    _ui.bullets(one.sentence for one in judged)
    distance = next((row for row in rows if row.benchmark == items.KL), None)
    if distance is not None:
        st.caption(
            t(
                "It moved {nats} nats per token away from the base on the new task (KL). The further, the more is usually "
                "forgotten (arXiv 2509.04259).",
                nats=f"{distance.tuned:.3f}",
            )
        )
    for row in whole:
        if row.benchmark == "general-text":
            st.caption(
                t(
                    "Perplexity on general text: {base} → {tuned}.",
                    base=f"{verdicts.perplexity(row.base):.1f}",
                    tuned=f"{verdicts.perplexity(row.tuned):.1f}",
                )
            )
    if any(parts.is_share(row) for row in rows):
        st.plotly_chart(
            parts.changes_figure(rows, titled), key="changes", alt=t("Changes in accuracy with 95 % intervals")
        )
    with st.expander(t("Per family and subject, with every figure")):
        asked = list(dict.fromkeys(row.benchmark for row in rows))
        chosen = st.multiselect(t("Questions"), asked, format_func=lambda b: parts.name(b, titled), key="families_of")
        shown = [row for row in rows if not chosen or row.benchmark in chosen]
        st.dataframe(parts.table(shown, judged, titled, every=True), hide_index=True, alt=t("Scores per family"))
        st.caption(
            t(
                "Change: tuned minus base on the same questions. Intervals: Bonett and Price 2012 for accuracies, "
                "a bootstrap over rows for losses. A real drop is beyond noise after Holm's correction over all "
                "benchmarks, and at least 1 point."
            )
        )
    with st.expander(t("Question by question, base and tuned side by side")):
        _side_by_side(workspace, run_id, titled)
    with st.expander(t("How it was asked: examples, template, window")):
        _settings(workspace, run_id, titled)


def _along(workspace: Workspace, run_id: str) -> None:
    """Show gain against retention step by step, or offer the run again, scored on its way, with what that costs."""
    points = frontier.frontier(evaluations.along(workspace, run_id))
    if points:
        st.subheader(t("Along the run"))
        picked = parts.trade(points, "along")
        st.caption(
            t(
                "Only the weights of the end are kept. A run of fewer steps comes near an earlier point; its rate falls "
                "sooner, so measure it."
            )
        )
        last = max(one.step or 0 for one in points)
        if (
            picked is not None
            and picked.step is not None
            and picked.step < last
            and st.button(t("Same run, {n} steps", n=picked.step), key="shorter_run")
        ):
            told = t("The same as {name}: it picks step {step}", name=store.name(workspace, run_id), step=picked.step)
            made = drafts.of_run(workspace, run_id, came_from=told, changes={"train.max_steps": picked.step})
            _ui.go("train", draft=drafts.save(workspace, made))
        return
    with st.expander(t("Along the run: when was what learned and lost?")):
        n, cost = evaluations.POINTS, evaluations.along_cost(workspace, run_id)
        st.write(
            t(
                "Its checkpoints were removed when it had finished. Train it again, scored {n} times on the way, and each "
                "of these steps is a point of gain against what was kept.",
                n=n,
            )
        )
        if cost is not None:
            st.write(
                t(
                    "It takes about {time}: the run's {run}, and {n} times {scoring} for scoring.",
                    time=_ui.duration(cost.run_s + n * cost.scoring_s), run=_ui.duration(cost.run_s), n=n,
                    scoring=_ui.duration(cost.scoring_s),
                )
            )  # fmt: skip
        if st.button(t("Same run, scored on its way"), key="along_again"):
            _ui.go("train", draft=drafts.save(workspace, evaluations.along_draft(workspace, run_id)))


def _folders(workspace: Workspace, run_id: str) -> dict[str, str]:
    """Return which run holds the items of each benchmark: the run itself, or a later evaluation of it."""
    found: dict[str, str] = {}
    for holder in [run_id, *evaluations.of_run(workspace, run_id)]:
        for benchmark in items.benchmarks_of(workspace.run_dir(holder)):
            found.setdefault(benchmark, holder)
    return found


def _side_by_side(workspace: Workspace, run_id: str, titled: dict[str, str]) -> None:
    """Show single questions with both answers: the table, and one to be read in full."""
    folders = {b: h for b, h in _folders(workspace, run_id).items() if b not in ("new-task-loss", items.GAP)}
    folders = {b: h for b, h in folders.items() if questions.pairs(workspace, h, b)}
    if not folders:
        st.caption(t("These scores have no single answers."))
        return
    words = {"": t("all"), "lost": t("lost"), "learned": t("learned")}
    left, middle, right = st.columns(3)
    benchmark = left.selectbox(
        t("Questions"), list(folders), format_func=lambda b: parts.name(b, titled), key="questions"
    )
    pairs = questions.pairs(workspace, folders[benchmark], benchmark)
    families = sorted({after.family for _, after in pairs})
    family = middle.selectbox(
        t("Part"),
        [items.ALL, *families],
        format_func=parts.family,
        key=f"family_{benchmark}",
        disabled=len(families) < 2,
    )
    wanted = right.selectbox(t("Which flipped"), ["", "lost", "learned"], format_func=words.__getitem__, key="flipped")
    pairs = [
        pair
        for pair in pairs
        if (family == items.ALL or pair[1].family == family) and (not wanted or questions.flip(*pair) == wanted)
    ]
    pairs.sort(key=lambda pair: {"lost": 0, "learned": 1}.get(questions.flip(*pair), 2))
    if not pairs:
        st.caption(t("No question here did that."))
        return
    st.dataframe(
        pd.DataFrame(
            [
                {
                    t("No."): number,
                    t("Flipped"): words[flip] if (flip := questions.flip(before, after)) else "",
                    t("Part"): parts.family(after.family),
                    t("Question"): after.prompt or after.item,
                    t("Right answer"): questions.right(after),
                    t("Base said"): questions.said(before),
                    t("Tuned said"): questions.said(after),
                }
                for number, (before, after) in enumerate(pairs[:MOST_SHOWN], start=1)
            ]
        ),
        hide_index=True,
        alt=t("Single questions with the answers of base and tuned"),
    )
    chosen = st.number_input(
        t("Read number"), 1, min(len(pairs), MOST_SHOWN), 1, key=f"read_{benchmark}_{family}_{wanted}"
    )
    before, after = pairs[int(chosen) - 1]
    with st.container(border=True):
        st.text(after.prompt or after.item)
        if questions.right(after):
            st.text(t("Right: {answer}", answer=questions.right(after)))
        for column, title, item in zip(st.columns(2), (t("Base"), t("Tuned")), (before, after), strict=True):
            column.markdown(f"**{_ui.plain(title)}**")
            column.text(questions.said(item) or "–")
            if item.choices and len(item.loglikelihoods) == len(item.choices):
                column.dataframe(
                    pd.DataFrame({t("Choice"): item.choices, t("Log-likelihood, nats"): item.loglikelihoods}),
                    hide_index=True,
                    alt=t("How likely each choice is"),
                )


def _settings(workspace: Workspace, run_id: str, titled: dict[str, str]) -> None:
    told = {}
    for holder in [run_id, *evaluations.of_run(workspace, run_id)]:
        for benchmark, settings in evaluations.settings_of(workspace, holder).items():
            told.setdefault(benchmark, settings)
    if not told:
        st.caption(t("This run left no record of it."))
        return
    words = {"shots": t("Examples"), "template": t("Template"), "window": t("Window, tokens"), "items": t("Asked"),
             "questions": t("Asked"), "chance": t("Right by guessing")}  # fmt: skip
    st.dataframe(
        pd.DataFrame(
            [
                {
                    t("Questions"): parts.name(benchmark, titled),
                    **{words.get(k, k): _ui.show_value(v) for k, v in settings.items()},
                }
                for benchmark, settings in told.items()
            ]
        ),
        hide_index=True,
        alt=t("Settings of each benchmark"),
    )
    st.caption(t("Base and tuned are asked the same questions in the same words under the same settings."))


def _what_to_do(workspace: Workspace, run_id: str, run_spec: RunSpec) -> None:
    """Offer the same run with one thing changed, each with the effect to expect and its source."""
    st.subheader(t("What to do about it"))
    st.write(t("It lost something. Each of these is the same run with one thing changed, one click away:"))
    found = remedies.of(run_spec)
    columns = st.columns(min(3, len(found)))
    for index, remedy in enumerate(found):
        with columns[index % len(columns)].container(border=True):
            st.markdown(f"**{_ui.plain(remedy.title)}**")
            st.caption(_ui.plain(f"{remedy.effect} ({remedy.source})"))
            if st.button(t("Same run with this"), key=f"more_{remedy.name}"):
                made = remedies.draft(workspace, run_id, remedy)
                _ui.go("train", draft=drafts.save(workspace, made))
    st.caption(t("When it has finished, both stand side by side under “Runs against each other”."))


def _asking(workspace: Workspace, run_id: str) -> list[Run]:
    """Return the evaluations of a run that are under way."""
    return [
        run
        for run in store.list_all(workspace)
        if run.base == f"run:{run_id}" and run.recipe == evaluations.RECIPE.name and run.status in store.LIVE
    ]


def progress(workspace: Workspace, run: Run) -> None:
    """Show how far an evaluation or sweep is."""
    found, _ = events.read(workspace.run_dir(run.id))
    told = next((event for event in reversed(found) if isinstance(event, events.Progress)), None)
    if told is None or not told.total:
        st.progress(0.0, _ui.say("{name}: {status}", name=run.name, status=_ui.status_word(run.status)))
        return
    left = t("about {time} left", time=_ui.duration(told.left_s)) if told.left_s is not None else ""
    text = _ui.say("{name}: {done} of {total}", name=run.name, done=told.done, total=told.total)
    st.progress(min(1.0, told.done / told.total), f"{text} {_ui.plain(left)}")


@_ui.fragment(run_every=2.0)
def _watch(run_id: str) -> None:
    workspace = _ui.workspace()
    asking = _asking(workspace, run_id)
    if not asking:
        st.rerun()
    for run in asking:
        progress(workspace, run)
        if st.button(t("Stop"), key=f"stop_asking_{run.id}", disabled=run.status == "stopping"):
            lifecycle.stop(workspace, run.id)
            st.rerun()


def _ask_more(workspace: Workspace, run_id: str) -> None:
    """Ask a run and its base further benchmarks, with the time it takes said beforehand."""
    if _asking(workspace, run_id):
        st.subheader(t("Being asked"))
        _watch(run_id)
    for run in store.list_all(workspace):
        halted = run.status in ("stopped", "interrupted", "failed") and run.recipe == evaluations.RECIPE.name
        if halted and run.base == f"run:{run_id}":
            left, right = st.columns([4, 1])
            left.warning(
                _ui.say("{name} was not finished: {status}.", name=run.name, status=_ui.status_word(run.status))
            )
            if right.button(t("Go on"), key=f"resume_asking_{run.id}"):
                try:
                    lifecycle.resume(workspace, run.id)
                    st.rerun()
                except (lifecycle.CannotResume, limits.Refused) as error:
                    left.error(_ui.plain(error))
    with st.expander(t("Ask it more benchmarks")):
        ref = f"run:{run_id}"
        base = bases.describe(ref, workspace)
        if base.problems:
            _ui.problem_list(base.problems)
            return
        sets = library.sets(toy=base.is_toy)
        words = {"quick": t("quick"), "standard": t("standard"), "full": t("full"), "own": t("choose")}

        def label(name: str) -> str:
            if name == "own":
                return words[name]
            return f"{words[name]}, {_minutes(workspace, ref, sets[name].benchmarks, sets[name].limit)}"

        chosen = st.radio(t("Which"), [*sets, "own"], format_func=label, horizontal=True, key=f"ask_set_{run_id}")
        if chosen == "own":
            known = {one.name: one for one in library.available(workspace)}
            names = st.multiselect(
                t("Benchmarks"), list(known), key=f"ask_names_{run_id}",
                format_func=lambda n: t("{title} ({n} questions)", title=known[n].title, n=known[n].size),
            )  # fmt: skip
            columns = st.columns(3)
            limit = int(columns[0].number_input(t("Most questions each; 0 is all"), 0, 100_000, 0, key="ask_limit"))
            shots = int(columns[1].number_input(t("Examples before each question"), 0, 50, 0, key="ask_shots"))
            templates = {"auto": t("as usual"), "chat": t("chat template"), "none": t("none")}
            template = columns[2].selectbox(
                t("Template"), list(templates), format_func=templates.__getitem__, key="ask_template"
            )
            if names:
                st.caption(t("It takes {time}.", time=_minutes(workspace, ref, names, limit)))
        else:
            names, limit, shots, template = sets[chosen].benchmarks, sets[chosen].limit, 0, "auto"
            st.caption(", ".join(_ui.plain(parts.name(name, parts.titles(workspace))) for name in names))
        made, problems = evaluations.build(workspace, ref, names, limit=limit, shots=shots, template=template)
        if names:
            _ui.problem_list(problems)
        if st.button(t("Ask them"), key="ask_more", type="primary", disabled=made is None):
            assert made is not None
            try:
                evaluations.start(workspace, made)
            except limits.Refused as refused:
                _ui.problem_list(refused.problems)
            else:
                st.rerun()
        _own(workspace)


def _minutes(workspace: Workspace, ref: str, names: list[str], limit: int) -> str:
    seconds = evaluations.seconds(workspace, ref, names, limit)
    if seconds is None:
        return t("time not known yet")
    return t("about {time}", time=_ui.duration(max(1.0, seconds)))


def _own(workspace: Workspace) -> None:
    """Take a person's own questions; what is wrong with a file is named line by line."""
    st.markdown(f"**{t('Your own questions')}**")
    st.caption(t("JSON Lines, one question a line, all in one of these forms:"))
    st.code(OWN_FORMS, language="json")
    file = st.file_uploader(t("A file of questions"), type=["jsonl", "json"], key="own_questions")
    if file is None:
        return
    made, problems = library.add(workspace, file.getvalue(), file.name.rpartition(".")[0] or file.name)
    if made is not None:
        st.success(_ui.say("{name} is kept: {n} questions. Pick it under “choose”.", name=made.title, n=made.size))
    else:
        st.error(t("{n} problems. Nothing was kept; mend the file and upload it again.", n=len(problems)))
    _ui.problem_list(problems[:50])
    if len(problems) > 50:
        st.caption(t("and {n} more", n=len(problems) - 50))


def _downloads(
    workspace: Workspace,
    run_id: str,
    run_spec: RunSpec,
    rows: list[Comparison],
    judged: list[verdicts.Judged],
    titled: dict[str, str],
) -> None:
    found = files.records(rows, judged, titled)

    def page() -> bytes:
        return _html(workspace, run_id, run_spec, rows, judged, titled)

    kinds = (
        (t("Figures (CSV)"), files.as_csv(found), "csv", "text/csv"),
        (t("Figures (JSON)"), files.as_json(found), "json", "application/json"),
        (t("Report (HTML)"), page, "html", "text/html"),
    )
    with st.container(horizontal=True):
        for label, data, ending, mime in kinds:
            st.download_button(
                label, data, file_name=f"{run_id}-forgetting.{ending}", mime=mime, on_click="ignore",
                icon=":material/download:", key=f"download_{ending}",
            )  # fmt: skip


def _texts(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    return [str(name) for name in frame.columns], [[str(value) for value in row] for row in frame.to_numpy().tolist()]


def _html(
    workspace: Workspace,
    run_id: str,
    run_spec: RunSpec,
    rows: list[Comparison],
    judged: list[verdicts.Judged],
    titled: dict[str, str],
) -> bytes:
    header, cells = _texts(parts.table(rows, judged, titled, every=True))
    tables = [files.Table(title=t("Every figure"), header=header, rows=cells)]
    flipped = []
    for benchmark, holder in _folders(workspace, run_id).items():
        some = [(one, questions.flip(*one)) for one in questions.pairs(workspace, holder, benchmark)]
        flipped += [
            [parts.name(benchmark, titled), t("lost") if flip == "lost" else t("learned"), after.prompt or after.item,
             questions.right(after), questions.said(before), questions.said(after)]
            for (before, after), flip in some if flip
        ][:FLIPS_IN_REPORT]  # fmt: skip
    if flipped:
        names = [t("Questions"), t("Flipped"), t("Question"), t("Right answer"), t("Base said"), t("Tuned said")]
        told = t("Questions that flipped, at most {n} of each benchmark", n=FLIPS_IN_REPORT)
        tables.append(files.Table(title=told, header=names, rows=flipped))
    return files.as_html(
        heading=t("Forgetting: {name}", name=store.name(workspace, run_id)),
        sentence=headline.headline(rows),
        about=[
            t("Run {id}: {recipe} on {base}", id=run_id, recipe=run_spec.recipe.name, base=run_spec.base.ref),
            *(one.sentence for one in judged),
        ],
        changes=[
            files.Interval(label=label, value=100 * row.change, low=100 * row.low, high=100 * row.high)
            for label, row in parts.changes(rows, titled)
        ],
        tables=tables,
    )
