"""Advisor: which recipe suits this data, machine and goal, by which rules of the guide, and what would change that."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine import machine
from engine.advise import Advice, Facts, fits, guide, handoff, otherwise, outlook, tables, ways
from engine.advise import advice as advise_advice
from engine.advise import facts as advise_facts
from engine.data import Dataset, lengths
from engine.estimate import duration, memory
from engine.models import Base
from engine.plan import drafts, judges
from engine.spec import schema  # fmt: skip
from engine.words import t
from pages import _base, _ui

st.title(t("Advisor"))
st.write(t("Which recipe suits your data, your machine and your goal, and why."))

workspace = _ui.workspace()
TABLES = ("rows", "memory", "alignment")
# A wash that reads on light and on dark alike.
HIGHLIGHT = "background-color: rgba(250, 176, 5, 0.25)"


def _table_title(name: str) -> str:
    return {
        "rows": t("How many rows?"),
        "memory": t("How much GPU memory?"),
        "alignment": t("Ratings or comparisons of answers?"),
    }[name]


def _data_words() -> dict[str, str]:
    return {
        "prompt-completion": t("Questions with answers, or conversations"),
        "language-modeling": t("Plain text"),
        "preference": t("Pairs: a better and a worse answer"),
        "unpaired-preference": t("Single answers marked good or bad"),
        "prompt-only": t("Questions alone"),
    }


def _facts(dataset: Dataset | None, base: Base) -> Facts:
    """Fill in what the file and the machine say; what only the person knows is asked."""
    report = dataset.report if dataset is not None else None
    found = machine.facts()
    with st.container(border=True):
        st.markdown(f"**{t('What is known')}**")
        lines = st.container()
        left, right = st.columns(2)
        goal = _choice(left, t("What should the model learn?"), advise_facts.goal_words(), "goal")
        known = (
            {"preference": "comparisons", "unpaired-preference": "good_bad"}.get(report.type or "") if report else None
        )
        judged = advise_facts.alignment_words()
        alignment = _choice(right, t("Have people judged answers of a model?"), judged, "judged", known)
    planned = _plan(dataset, advise_facts.marketed_gb(found.gpus[0].memory_mib / 1024) if found.gpus else None, base)
    with lines:
        _ui.bullets([_data_line(dataset, planned), _card_line(planned), _base_line(base, planned)])
    labels = report.label_counts if report is not None else None
    same_data = planned["data_type"] is None
    return Facts(
        rows=planned["rows"] or (dataset.good_rows if dataset is not None else None),
        data_type=planned["data_type"] or (report.type if report is not None else None),
        good_rows=planned["good"] or (labels.get("true") if labels and same_data else None),
        bad_rows=planned["bad"] or (labels.get("false") if labels and same_data else None),
        gpu_memory_gib=planned["gpu"],
        base_parameters=planned["billions"] * 1e9 if planned["billions"] else base.parameters,
        base_is_tuned=base.kind == "run" or planned["tuned"],
        goal=goal,  # pyright: ignore[reportArgumentType]
        alignment_data=alignment,  # pyright: ignore[reportArgumentType]
        has_reward_model=planned["judge"],
        forgetting_tolerance=planned["tolerance"] or "medium",
        time_budget_minutes=planned["minutes"],
    )


def _data_line(dataset: Dataset | None, planned: dict[str, Any]) -> str:
    if planned["rows"] or planned["data_type"] or dataset is None:
        rows, kind = planned["rows"], _data_words().get(planned["data_type"] or "")
        if rows and kind:
            return t("As planned below: {rows} rows. {kind}", rows=f"{rows:,}", kind=kind)
        if rows:
            return t("As planned below: {rows} rows.", rows=f"{rows:,}")
        return (
            t("As planned below: {kind}", kind=kind)
            if kind
            else t("No data yet: say below what it will be, or bring a file.")
        )
    kind = _data_words().get(dataset.report.type or "", dataset.report.type or "?")
    return t("{name}: {rows} good rows. {kind}", name=dataset.name, rows=f"{dataset.good_rows:,}", kind=kind)


def _card_line(planned: dict[str, Any]) -> str:
    gpus = machine.facts().gpus
    if planned["other_gpu"]:
        return t("GPU: {gb} GB, as planned below", gb=planned["gpu"])
    if gpus and planned["gpu"]:
        size = advise_facts.marketed_gb(gpus[0].memory_mib / 1024)
        return t("GPU: {name}, sold as {gb} GB", name=gpus[0].name, gb=size)
    return t("No GPU: training runs on the processor, and no rule about GPU memory applies.")


def _base_line(base: Base, planned: dict[str, Any]) -> str:
    if planned["billions"]:
        return t("Base: {size}B, as planned below", size=f"{planned['billions']:g}")
    return t("Base: {name}", name=base.title)


def _choice(place: Any, label: str, words: dict[str, str], key: str, known: str | None = None) -> str | None:
    """Ask for one of a few; the answer stands in the URL. What the file says is taken until somebody says otherwise."""
    options, given = list(words), st.query_params.get(key)
    shown = place.selectbox(
        label,
        options,
        index=options.index(given) if given in words else None,
        format_func=words.__getitem__,
        placeholder=words[known] if known else t("Not sure yet"),
        key=key,
    )
    # by hand: a bound selectbox writes its label, which is another one in another language
    if shown:
        st.query_params[key] = shown
    elif key in st.query_params:
        del st.query_params[key]
    return shown or known


def _plan(dataset: Dataset | None, memory_gb: int | None, base: Base) -> dict[str, Any]:
    """Let somebody on a laptop plan for another machine; an empty field means what was found. All of it stands in the
    URL, so that a scenario can be sent to somebody."""
    rows, parameters = dataset.good_rows if dataset is not None else None, base.parameters
    with st.expander(t("Plan for more rows, another machine or another base"), expanded=dataset is None):
        st.caption(
            t("Leave a field empty to go by what was found. The address of this page holds what you enter: share it.")
        )
        left, middle, right = st.columns(3)
        other_rows = left.number_input(
            t("Rows"), min_value=1, value=None, step=1, key="plan_rows", bind="query-params",
            placeholder=str(rows) if rows is not None else "",
        )  # fmt: skip
        other_memory = middle.number_input(
            t("GPU memory in GB (0: no GPU)"), min_value=0, value=None, step=1, key="plan_gpu_gb", bind="query-params",
            placeholder=str(memory_gb or 0),
        )  # fmt: skip
        other_size = right.number_input(
            t("Size of the base in billions"), min_value=0.01, value=None, key="plan_billions", bind="query-params",
            placeholder=f"{parameters / 1e9:.3g}" if parameters else "",
        )  # fmt: skip
        data_type = _choice(left, t("Kind of rows"), _data_words(), "plan_data")
        tolerances = {
            "low": t("As little as possible"),
            "medium": t("Some, if it learns the task"),
            "high": t("It does not matter"),
        }
        tolerance = _choice(middle, t("How much may it forget?"), tolerances, "plan_forget")
        minutes = right.number_input(
            t("Time you have, in minutes"), min_value=1, value=None, step=1, key="plan_minutes", bind="query-params"
        )
        good = bad = None
        if (data_type or (dataset.report.type if dataset else None)) == "unpaired-preference":
            good = left.number_input(
                t("Rows marked good"), min_value=0, value=None, step=1, key="plan_good", bind="query-params"
            )
            bad = middle.number_input(
                t("Rows marked bad"), min_value=0, value=None, step=1, key="plan_bad", bind="query-params"
            )
        tuned = left.checkbox(
            t("The base was fine-tuned before, and that should stay"), key="plan_tuned", bind="query-params"
        )
        judge = middle.checkbox(t("I have a reward model"), key="plan_judge", bind="query-params")
    return {
        "rows": other_rows,
        "gpu": memory_gb if other_memory is None else other_memory or None,
        "other_gpu": bool(other_memory),
        "billions": other_size,
        "data_type": data_type,
        "tolerance": tolerance,
        "minutes": minutes,
        "good": good,
        "bad": bad,
        "tuned": tuned,
        "judge": judge or _own_judge() is not None,
    }


def _own_judge() -> str | None:
    """Return the newest reward model of this workspace that may judge answers of the base."""
    return judges.newest(workspace, base, schema.ObjectiveArgs().least_reward_accuracy)


def _verdict(advice: Advice) -> None:
    """The verdict in one sentence, then the reasons."""
    st.subheader(_ui.say("Advice: {what}", what=advice.headline))
    if advice.advised is not None and not advice.runs:
        text = _ui.say("{name} is not part of this version yet.", name=advice.advised.title)
        st.warning(f"{text} {_ui.plain(advice.nearest_reason)}")
    elif advice.nearest_reason:
        st.warning(_ui.plain(advice.nearest_reason))
    _ui.problem_list(advice.problems)
    _ui.bullets(advice.reasons)
    st.caption(
        _ui.say("Confidence: {level}. {reason}", level=_level(advice.confidence), reason=advice.confidence_reason)
    )


def _level(confidence: str) -> str:
    return {"high": t("high"), "medium": t("medium"), "low": t("low")}[confidence]


# --- what each way takes -------------------------------------------------------------------------------------------


def _bars(outlooks: list[outlook.Outlook], memory_bytes: float, names: list[str]) -> go.Figure:
    """Return a bar of parts for each way, its range as a line across, and where the memory of the machine ends."""
    figure, words = go.Figure(), memory.part_words()
    for part in memory.PARTS:
        sizes = [(one.memory.parts or {}).get(part, 0) / 2**30 for one in outlooks]
        if any(sizes):
            figure.add_bar(x=sizes, y=names, name=words[part], orientation="h",
                           hovertemplate=f"%{{y}}, {words[part]}: %{{x:.2f}} GiB<extra></extra>")  # fmt: skip
    totals = [one.memory.total_bytes / 2**30 for one in outlooks]
    figure.add_scatter(
        x=totals, y=names, mode="markers", marker={"size": 1, "color": "gray"}, showlegend=False,
        error_x={
            "type": "data", "symmetric": False, "color": "gray", "thickness": 2, "width": 6,
            "array": [(one.high_bytes or 0) / 2**30 - total for one, total in zip(outlooks, totals, strict=True)],
            "arrayminus": [total - (one.low_bytes or 0) / 2**30 for one, total in zip(outlooks, totals, strict=True)],
        },
        hovertemplate=[
            f"{name}: {memory.size_words(one.low_bytes or 0)} – {memory.size_words(one.high_bytes or 0)}<extra></extra>"
            for one, name in zip(outlooks, names, strict=True)
        ],
    )  # fmt: skip
    figure.add_vline(
        x=memory_bytes / 2**30, line_dash="dot", line_color="gray",
        annotation={"text": t("all there is"), "y": 1, "yanchor": "bottom", "xanchor": "center"},
    )  # fmt: skip
    most = max([memory_bytes / 2**30, *((one.high_bytes or 0) / 2**30 for one in outlooks)])
    figure.update_layout(
        barmode="stack",
        height=150 + 38 * len(outlooks),
        margin={"l": 8, "r": 8, "t": 24, "b": 8},
        legend={"orientation": "h", "traceorder": "normal", "yanchor": "top", "y": -0.2},
    )
    figure.update_xaxes(range=[0, 1.08 * most], ticksuffix=" GiB", nticks=6)
    figure.update_yaxes(autorange="reversed")
    return figure


def _between(low: str, high: str) -> str:
    """Return a range that a narrow column breaks at the dash alone."""
    return " – ".join(end.replace(" ", "\u00a0") for end in (low, high))


def _ways(advice: Advice, outlooks: list[outlook.Outlook]) -> None:
    """Every way the data can feed, side by side: memory against the machine's, time, and what one trades."""
    if not outlooks:
        return
    st.subheader(t("What each way takes"))
    gib = advice.facts.gpu_memory_gib
    memory_bytes = gib * 2**30 if gib is not None else machine.facts().memory_mib * 2**20
    chosen = advice.advised.title if advice.advised is not None else ""
    titles = [one.title[0].upper() + one.title[1:] for one in outlooks]
    names = [f"✓ {title}" if one.title == chosen else title for title, one in zip(titles, outlooks, strict=True)]
    if all(one.memory.parts for one in outlooks):
        st.plotly_chart(
            _bars(outlooks, memory_bytes, names),
            key="ways",
            alt=t("The memory of each way, part by part, beside all there is"),
        )
        st.caption(
            t(
                "The least it can be run with: one row of 1,024 tokens at a time, with gradient checkpointing (KTO: 4 "
                "rows). The line across a bar's end is the range. A tenth of the memory stays free."
            )
        )
    else:
        st.info(t("The memory of each way is not known: name the size of the base under Plan."))
    unknown = advice.facts.base_parameters is None and gib is None
    table = pd.DataFrame(
        {
            t("Way"): names,
            _ui.unbroken(t("Fits")): ["?" if unknown else t("yes") if one.fits else t("no") for one in outlooks],
            t("Memory"): [
                _between(memory.size_words(one.low_bytes), memory.size_words(one.high_bytes))
                if one.low_bytes and one.high_bytes
                else "?"
                for one in outlooks
            ],
            t("Time"): [
                _between(duration.duration_words(one.time.low_s), duration.duration_words(one.time.high_s))
                if one.time
                else "?"
                for one in outlooks
            ],
            t("What one trades"): [one.trade for one in outlooks],
        }
    )
    st.table(
        table.style.apply(lambda row: [HIGHLIGHT if row.iloc[0].startswith("✓") else ""] * len(row), axis=1),
        hide_index=True,
    )
    timed = next((one.time for one in outlooks if one.time and one.title == chosen), None)
    if timed is not None:
        st.caption(_ui.say("{name}: {text}", name=chosen, text=timed.sentence))
        minutes = advice.facts.time_budget_minutes
        if minutes is not None and timed.low_s > 60 * minutes:
            st.warning(
                _ui.say(
                    "That is more than the {minutes} minutes you have: take fewer rows, one epoch, or a smaller base.",
                    minutes=f"{minutes:g}",
                )
            )


# --- the plan and the others ------------------------------------------------------------------------------------------


def _staged_plan(advice: Advice) -> None:
    if not advice.plan:
        return
    st.subheader(t("The plan"))
    for place, (number, stage) in zip(
        st.columns(len(advice.plan), border=True), enumerate(advice.plan, 1), strict=True
    ):
        mark = ":material/check: " if stage.done else ":material/arrow_right: " if stage.now else ""
        here = t("(this step)") if stage.now else t("(done)") if stage.done else ""
        place.markdown(f"{mark}**{number}. {_ui.plain(stage.title)}** {here}")
        place.markdown(_ui.plain(stage.text))
        if stage.rules:
            place.caption(_ui.say("Rules of the guide: {rules}", rules=", ".join(stage.rules)))


def _others(advice: Advice) -> None:
    if advice.would_change:
        st.subheader(t("What would change this advice"))
        _ui.bullets(advice.would_change)
    feeds_chain = advice.facts.data_type in ("prompt-only", "preference")
    if feeds_chain and st.button(t("SFT, reward model and PPO in turn"), key="open_chain"):
        _ui.go("train", chain="1")
    if advice.runners_up:
        st.subheader(t("Runners-up"))
    for number, other in enumerate(advice.runners_up):
        # not columns: a button in a narrow one is cut
        place = st.container(horizontal=True, vertical_alignment="center")
        title = other.choice.title
        place.markdown(
            _ui.say("**{name}**: {text}", name=title[0].upper() + title[1:], text=other.trade), width="stretch"
        )
        made = _draft(advice, other.choice)
        if made is not None and place.button(t("Use this instead"), key=f"use_{number}", width="content"):
            _ui.go("train", draft=drafts.save(workspace, made))
    if advice.overruled:
        st.subheader(t("Rules that apply and were not followed"))
        for rule in advice.overruled:
            parts = {"rule": rule.rule, "why": rule.why}
            if rule.partly:
                st.markdown("- " + _ui.say("{rule} was followed in part: {why}", **parts))
            else:
                st.markdown("- " + _ui.say("{rule} was not followed: {why}", **parts))
    with st.expander(t("Ways that the guide only mentions")):
        for one in otherwise.mentioned():
            st.markdown(f"- **{_ui.plain(one.title)}** ({one.rule}): {_ui.plain(one.verdict)}")


# --- the guide's tables ---------------------------------------------------------------------------------------------


def _scenario_tables(advice: Advice) -> None:
    """The guide's three tables: the row that applies in the guide's words with its verdict, then the table whole."""
    st.subheader(t("What the guide says"))
    rules = guide.rules()
    for name in TABLES:
        st.markdown(f"**{_table_title(name)}**")
        rows = {row.rule: row for row in advice.tables[name]}
        for row in rows.values():
            if row.fired:
                _fired(rules[row.rule], row)
        if not any(row.fired for row in rows.values()):
            st.caption(_ui.plain(next(iter(rows.values())).reason))
        fired = {row.rule for row in rows.values() if row.fired}
        st.table(_frame([rules[rule] for rule in rows], fired), hide_index=True)


def _fired(rule: guide.Rule, row: tables.TableRow) -> None:
    """The row that applies, with everything said about it."""
    title = _ui.say(
        "{id} · “{phrase}” · {says}", id=rule.id, phrase=guide.without_marks(rule.phrase), says=t(rule.says)
    )
    verdict = _ui.say(
        "Verdict: {verdict}. {why} Tunebook uses: {value}. Source: {source}",
        verdict=_ui.verdict_words()[rule.verdict],
        why=t(rule.why),
        value=t(rule.value_used),
        source=t(rule.source),
    )
    with st.container(border=True):
        st.markdown(f":material/arrow_right: **{title}** {t('(applies here)')}")
        st.markdown(_ui.plain(row.reason))
        st.caption(verdict)


def _frame(rules: list[guide.Rule], marked: set[str]) -> Any:
    """Return rules as a table for st.table, which reads cells as Markdown; the marked ones highlighted."""
    words = _ui.verdict_words()
    frame = pd.DataFrame(
        {
            _ui.unbroken(t("Rule")): [f"→\u00a0{rule.id}" if rule.id in marked else rule.id for rule in rules],
            t("When"): [t(rule.when) for rule in rules],
            t("The guide's words"): [rule.spoken for rule in rules],
            t("In English"): [t(rule.says) for rule in rules],
            _ui.unbroken(t("Verdict")): [_ui.unbroken(words[rule.verdict]) for rule in rules],
            t("Tunebook uses"): [t(rule.value_used) for rule in rules],
        }
    )
    return frame.map(_ui.plain).style.apply(
        lambda row: [HIGHLIGHT if row.iloc[0].startswith("→") else ""] * len(row), axis=1
    )


def _all_tables(advice: Advice) -> None:
    """Every other table of the guide, the rules that speak for this advice highlighted."""
    with st.expander(t("Every table of the guide, with the rules that speak here")):
        marked = {*advice.fired, *advice.rules}
        st.caption(t("Highlighted: rules that apply here or speak for the advice."))
        for name, title in guide.tables().items():
            rules = [rule for rule in guide.rules().values() if rule.table == name]
            if rules:
                st.markdown(f"**{_ui.plain(t(title))}**")
                st.table(_frame(rules, marked), hide_index=True)


def _draft(advice: Advice, choice: ways.Choice | None = None) -> drafts.Draft | None:
    return handoff.draft(
        advice, base=base.ref, dataset=_ui.current("dataset"), choice=choice, reward_model=_own_judge()
    )


base = _base.select(workspace)
_base.panel(workspace, base, "lora")
dataset = _ui.current_dataset()
if dataset is None:
    _ui.empty(t("The advisor reads your data first. Bring a file, or take a sample."), "data", t("Go to Data"))
facts = _facts(dataset, base)
if base.problems:
    st.warning(t("The base cannot be read, so its size is not known; the advice goes on without it."))
    _ui.problem_list(base.problems)
if dataset is None and facts.data_type is None and facts.rows is None and facts.alignment_data is None:
    st.caption(t("Or plan without data: fill in the fields above."))
    raise _ui.PageEnds
shape = fits.shape_for(base, facts.base_parameters)
advice = advise_advice.advise(
    facts,
    runnable=ways.runnable_now,
    fits=fits.fits(base, facts.gpu_memory_gib, facts.base_parameters),
    need=fits.need(base, facts.gpu_memory_gib, facts.base_parameters),
    tight=fits.tight(base, facts.gpu_memory_gib, facts.base_parameters),
)
counted = lengths.of(dataset, base, workspace) if dataset is not None else None
_verdict(advice)
made = _draft(advice)
if made is not None and advice.start is not None:
    label = t("Use this") if advice.runs else _ui.say("Use {name} instead", name=advice.start.title)
    if st.button(label, type="primary", icon=":material/arrow_forward:", key="use_this"):
        _ui.go("train", draft=drafts.save(workspace, made))
elif dataset is not None:
    st.info(t("Nothing of this advice can be started in this version."))
_staged_plan(advice)
_ways(
    advice,
    outlook.of(
        advice,
        shape,
        workspace,
        row_tokens=counted.mean if counted is not None else None,
        dataset=dataset.id if dataset is not None else "",
    ),
)
_others(advice)
_scenario_tables(advice)
_all_tables(advice)
