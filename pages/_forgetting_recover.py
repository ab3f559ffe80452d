"""Going back toward the base: gain and loss along the way, a handle, a chat at that point, and the point kept as a run."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine import events, limits
from engine.forgetting import recovery, recovery_curve
from engine.forgetting.recovery_curve import Curve, Figure, Point
from engine.runs import ScoredRun, follow, lifecycle, store
from engine.spec import OBJECTIVES
from engine.words import t
from engine.workspace import Workspace
from pages import _failures, _run_parts, _theme, _ui
from pages import _forgetting_tables as tables

REFRESH_S = 2.0
GENERAL, BEHAVIOUR = tables.BAD, tables.GOOD
STEP_PERCENT = 5
FOLD = "recover_fold"


def applies(scored: ScoredRun) -> bool:
    """Whether a run has a way back at all, or is a point of one."""
    spec = scored.spec
    return not limits.on() and spec.kind in ("train", "adopted", "recover") and not OBJECTIVES[spec.objective].is_judge


def fold(scored: ScoredRun, titled: dict[str, str]) -> None:
    """Show all of it folded; open where the address asks for it."""
    if applies(scored):
        title, opened = t("Go back toward the base, without training"), bool(st.query_params.get("recover"))
        _ui.fold(title, FOLD, lambda: show(scored, titled), icon=":material/undo:", opened=opened)


def show(scored: ScoredRun, titled: dict[str, str] | None = None) -> None:
    """Show the way back from a run as far as it was scored, and what can be done next; nothing where it has none."""
    workspace, run_id, asked = scored.workspace, scored.run_id, scored.spec.recover
    if not applies(scored):
        return
    if asked is not None:
        _is_a_point(workspace, asked.run)
        return
    found = recovery.problems(workspace, run_id)
    if found:
        _ui.problem_list(found)
        return
    intruders = _by_intruders(scored)
    if intruders is None:
        return
    scan = recovery.of(workspace, run_id, intruders=intruders)
    if scan is not None and store.status(workspace, scan) in store.LIVE:
        _going_on(workspace, scan)
        return
    curve = recovery.curve(workspace, run_id, intruders=intruders)
    if curve is None or len(curve.points) < 2:
        _offer(workspace, run_id, intruders)
    if scan is not None and store.status(workspace, scan) != "finished":
        _halted(workspace, scan)
    if curve is None:
        return
    for sentence in recovery_curve.sentences(curve):
        st.write(_ui.plain(sentence))
    at = _handle(curve)
    st.plotly_chart(
        _ui.figure(drawn(curve, at)),
        key="way_back",
        config=_theme.STILL,
        alt=t("Gain and general knowledge along the way to the base"),
    )
    _here(workspace, curve, at)
    _details(workspace, curve, titled or {})


def _is_a_point(workspace: Workspace, origin: str) -> None:
    known = store.exists(workspace, origin)
    name = store.name(workspace, origin) if known else origin
    st.caption(_ui.say("This is a point on the way back from {name}, without training.", name=name))
    if known and st.button(t("Look at the whole way"), key="whole_way"):
        look(origin)


def _by_intruders(scored: ScoredRun) -> bool | None:
    """Let a person choose the way, where there are two. Of LoRA that has but one it is said why."""
    if scored.spec.adapter != "lora":
        return False
    wrong = recovery.problems(scored.workspace, scored.run_id, intruders=True)
    if wrong:
        st.caption(_ui.plain(t("Reducing intruder dimensions does not apply: {why}.", why=wrong[0].message)))
        return False
    words = {False: t("Toward the base"), True: t("Reduce intruder dimensions")}
    return st.radio(
        t("Way"), list(words), format_func=lambda one: _ui.plain(words[one]), horizontal=True, key="way_kind",
        help=t("Directions of great weight that the base does not have, which LoRA adds (arXiv 2410.21228)."),
    )  # fmt: skip


def _offer(workspace: Workspace, run_id: str, intruders: bool) -> None:
    """Offer to score the way, with how long that takes."""
    points = recovery.PARTS if intruders else recovery.POINTS
    seconds = recovery.seconds(workspace, run_id, len(points), intruders=intruders)
    time = t("about {time}", time=_ui.duration(max(1.0, seconds))) if seconds is not None else t("time not known yet")
    text = t("{n} points between the base and this run are asked what this run was asked: {time}. Nothing is trained.",
             n=len(points), time=time)  # fmt: skip
    if intruders:
        text = t("This run is asked again with {n} shares of each intruder dimension taken away: {time}.",
                 n=len(points), time=time)  # fmt: skip
    st.write(_ui.plain(text))
    if st.button(t("Score the way back"), key="score_way"):
        _start(workspace, run_id, intruders=intruders)


@_failures.fragment(run_every=REFRESH_S)
def _going_on(workspace: Workspace, scan: str) -> None:
    """Show how far the scoring is, and read the page again when it has ended."""
    state = store.status(workspace, scan)
    if state not in store.LIVE:
        st.rerun()
    found = _run_parts.Followed(workspace.run_dir(scan))
    found.read()
    left, right = st.columns([6, 1], vertical_alignment="center")
    said = follow.doing(found.all) or follow.turns(workspace).get(scan) or t("About to start.")
    left.progress(_share(workspace, scan, found.all), text=_ui.plain(said))
    if right.button(t("Stop"), key="stop_way"):
        lifecycle.stop(workspace, scan)
        st.rerun()


def _share(workspace: Workspace, scan: str, found: list[Any]) -> float:
    """Return how much of the way was scored: the points begun, and how far the last of them is."""
    phases = [one for one in found if isinstance(one, events.Phase) and one.detail.startswith("way-")]
    asked = store.load_spec(workspace, scan).recover
    if not phases or asked is None:
        return 0.0
    begun, last = len({one.detail for one in phases}), phases[-1]
    return min(1.0, (begun - 1 + last.done / max(1, last.total)) / max(1, len(asked.points)))


def _halted(workspace: Workspace, scan: str) -> None:
    """A scan that was not finished, and the button to go on."""
    left, right = st.columns([4, 1])
    short = store.summary(workspace, scan)
    left.warning(_ui.say("The way was not scored to its end: {status}.", status=_ui.status_word(short.status)))
    if short.failure:
        left.caption(_ui.say("{what}; {fix}", what=str(short.failure["message"]), fix=str(short.failure["fix"])))
    if right.button(t("Go on"), key="resume_way"):
        try:
            lifecycle.resume(workspace, scan)
            st.rerun()
        except (lifecycle.CannotResume, limits.OverLimit) as error:
            left.error(_ui.plain(error))


def _percents(curve: Curve) -> list[int]:
    """Return where the handle can stand: every twentieth part, and where the way was scored."""
    ends = range(STEP_PERCENT, 101 if curve.way == "intruders" else 100, STEP_PERCENT)
    scored = {round(100 * one.at) for one in curve.points}
    return sorted(({*ends, *scored} - {0, 100}) | ({100} if curve.way == "intruders" else set()))


def _handle(curve: Curve) -> float:
    options = _percents(curve)
    suggested = 0.5 if curve.to_take is None else curve.to_take
    usual = min(options, key=lambda one: abs(one - 100 * suggested))
    label = (
        t("Of each intruder dimension, taken away") if curve.way == "intruders" else t("Part of the way to this run")
    )
    chosen = st.select_slider(
        label,
        options,
        value=usual,
        format_func=lambda one: _ui.plain(f"{one} %"),
        key=f"handle_{curve.run}_{curve.way}",
    )
    return float(chosen) / 100


def _told(figure: Figure | None, in_points: bool) -> str:
    if figure is None:
        return "–"
    value, low, high = (recovery_curve.told(one, in_points) for one in (figure.value, figure.low, figure.high))
    return value if figure.low is None else f"{value} [{low}, {high}]"


def _columns(curve: Curve, point: Point) -> list[tuple[str, str]]:
    """Return what stands at a point: gain, general knowledge and behaviour, as far as these were asked."""
    found = []
    if point.gain is not None:
        name = t("New task, points") if curve.in_points else t("New task")
        found.append((name, _told(point.gain, curve.in_points)))
    if point.general is not None:
        in_points = curve.general_in == "points"
        name = t("General knowledge, points") if in_points else t("General text, fall of the loss")
        found.append((name, _told(point.general, in_points)))
    if point.behaviour is not None:
        found.append((t("Behaviour, points"), _told(point.behaviour, True)))
    return found


def _here(workspace: Workspace, curve: Curve, at: float) -> None:
    """Say what was measured at the handle, and offer to chat there and to keep it."""
    intruders, point = curve.way == "intruders", curve.at(at)
    if point is not None:
        told = "; ".join(f"{name} {value}" for name, value in _columns(curve, point))
        st.write(_ui.plain(t("At {at} %: {told}.", at=recovery_curve.percent(at), told=told)))
        if curve.to_take is None or not math.isclose(curve.to_take, at):
            st.caption(t("A point set by hand is chosen on these questions, so it looks a little better than it is."))
    else:
        st.caption(t("This point was not scored; those beside it were."))
    with st.container(horizontal=True):
        if st.button(t("Chat at this point"), icon=":material/chat:", key="chat_here"):
            way = {"way": "intruders"} if intruders else {}
            _ui.go("chat", run=curve.run, at=f"{at:g}", **way)
        if st.button(t("Save this point"), icon=":material/save:", key="save_point"):
            save(workspace, curve.run, at, intruders=intruders)
        if point is None and st.button(t("Score this point too"), key="score_here"):
            _start(
                workspace, curve.run, intruders=intruders, points=recovery.with_point(curve, at, intruders=intruders)
            )
    for one in recovery.saved(workspace, curve.run)[:5]:
        st.caption(_ui.say("Saved: {name} ({status})", name=store.name(workspace, one),
                           status=_ui.status_word(store.status(workspace, one))))  # fmt: skip


def _details(workspace: Workspace, curve: Curve, titled: dict[str, str]) -> None:
    if not st.toggle(t("Every figure, and how a point is chosen"), key="way_details"):
        return
    st.caption(_ui.plain(recovery_curve.rule()))
    asked = dict.fromkeys(name for one in curve.points for name in one.lines if name != curve.measure)
    rows = [
        {
            t("Point"): f"{recovery_curve.percent(one.at)} %",
            **dict(_columns(curve, one)),
            **{tables.name(name, titled): _told(one.lines.get(name), _is_share(name, curve)) for name in asked},
        }
        for one in reversed(curve.points)
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt=t("Changes against the base at each point of the way"))
    st.caption(
        t("Changes against the base, more is better, with 95 % intervals; losses count as gained where they fell.")
    )
    if st.button(t("Score the way again"), key="score_way_again"):
        points = [one.at for one in curve.points]
        _start(workspace, curve.run, intruders=curve.way == "intruders", points=points)


def _is_share(name: str, curve: Curve) -> bool:
    whole = [one.lines[name] for one in curve.points if name in one.lines]
    return not name.endswith(("-loss", "-text", "-gap", "-answers")) and all(abs(one.value) <= 1 for one in whole)


def drawn(curve: Curve, at: float) -> go.Figure:
    """Draw gain and general knowledge against the part of the way, with the handle; each in its own scale where they are
    not both told in points."""
    figure = go.Figure()
    apart = curve.in_points != (curve.general_in != "nats")
    series = [
        (t("new task"), tables.STRONG, [(one.at, one.gain) for one in curve.points], 100 if curve.in_points else 1, False),
        (t("general knowledge"), GENERAL, [(one.at, one.general) for one in curve.points],
         1 if curve.general_in == "nats" else 100, apart),
        (t("behaviour"), BEHAVIOUR, [(one.at, one.behaviour) for one in curve.points], 100, apart),
    ]  # fmt: skip
    for name, colour, found, scale, right in series:
        known = [(place, one) for place, one in found if one is not None]
        if known:
            _line(figure, name, colour, known, scale, right=right)
    figure.add_vline(x=100 * at, line_color="gray")
    if curve.to_take is not None:
        figure.add_vline(x=100 * curve.to_take, line_dash="dot", line_color="gray")
    across = t("intruder dimensions taken away, %") if curve.way == "intruders" else t("base 0 %, this run 100 %")
    figure.update_layout(
        xaxis_title=across, yaxis_title=t("change, points") if curve.in_points else t("change of the new task"),
        height=340, margin={"l": 8, "r": 8, "t": 8, "b": 8}, hovermode="x unified", dragmode=False,
        legend={"orientation": "h", "y": -0.3, "yanchor": "top", "x": 0},
    )  # fmt: skip
    if apart:
        figure.update_layout(
            yaxis2={"overlaying": "y", "side": "right", "title": t("change of general knowledge"), "showgrid": False}
        )
    return figure


def _line(
    figure: go.Figure, name: str, colour: str, known: Sequence[tuple[float, Figure]], scale: int, *, right: bool
) -> None:  # fmt: skip
    ends = [
        (one.value if one.low is None else one.low, one.value if one.high is None else one.high) for _, one in known
    ]
    figure.add_scatter(
        x=[100 * place for place, _ in known], y=[scale * one.value for _, one in known], mode="lines+markers", name=name,
        line={"color": colour}, marker={"size": 8}, yaxis="y2" if right else "y",
        error_y={
            "type": "data", "symmetric": False, "thickness": 1,
            "array": [scale * (high - one.value) for (_, one), (_, high) in zip(known, ends, strict=True)],
            "arrayminus": [scale * (one.value - low) for (_, one), (low, _) in zip(known, ends, strict=True)],
        },
        hovertemplate="%{y:+.3g}",
    )  # fmt: skip


def look(origin: str) -> None:
    """Open the way back from a run."""
    _ui.choose("run", origin)
    st.session_state.pop(FOLD, None)  # the address opens it
    _ui.go("forgetting", run=origin, recover="1")


def save(workspace: Workspace, run_id: str, at: float, *, intruders: bool) -> None:
    """Keep a point of the way as a run of its own, and open that."""
    made = _begin(workspace, run_id, intruders=intruders, at=at)
    if made is not None:
        _ui.choose("run", made)
        _ui.go("runs")


def _start(workspace: Workspace, run_id: str, *, intruders: bool, points: Sequence[float] = ()) -> None:
    if _begin(workspace, run_id, intruders=intruders, points=points) is not None:
        st.rerun()


def _begin(
    workspace: Workspace, run_id: str, *, intruders: bool, at: float | None = None, points: Sequence[float] = ()
) -> str | None:  # fmt: skip
    """Start a scan, or the keeping of a point, once however often it is clicked; what keeps it from starting is said."""
    spec, problems = recovery.build(workspace, run_id, intruders=intruders, at=at, points=points)
    if spec is None:
        _ui.problem_list(problems)
        return None
    click = st.session_state.setdefault(f"recover_click_{run_id}", secrets.token_hex(8))
    try:
        made = recovery.start(workspace, spec, click_id=click)
    except limits.OverLimit as refused:
        _ui.problem_list(refused.problems)
        return None
    del st.session_state[f"recover_click_{run_id}"]
    return made
