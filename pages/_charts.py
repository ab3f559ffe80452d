"""Pictures of runs for ECharts, one meaning each: loss, general text, rate and the like, and the losses of several runs.

ECharts takes new points into the same picture, so a zoom survives the next second; a plotly chart would be mounted anew each
time. No colour is named: the browser gives each line the theme's next one, in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from engine import events
from engine.spec import objectives
from engine.words import t
from pages import _theme

# More points than this are not seen on a screen, and are sent anew each second.
MOST_POINTS = 600
GIB = 1024.0  # MiB

Points = list[list[float]]


class Line(NamedTuple):
    """One line of a panel. `dots`: of few points, each is marked; `dashed`: what is not a measurement."""

    name: str
    points: Points
    dots: bool = False
    dashed: bool = False


class Panel(NamedTuple):
    """One picture: what it shows, in what unit, and at most two lines."""

    key: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    steps: int

    @property
    def chart(self) -> dict[str, Any]:
        """What ECharts draws. The title stands above it as text, so that nothing lies under the toolbar or over an axis."""
        return _chart(self.lines, self.steps, t("step"))


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """Return at most so many points: of each stretch the lowest and the highest, so that every peak stays, and the last."""
    if len(points) <= most:
        return points
    stretch = -(-2 * len(points) // (most - 3))
    kept = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        low, high = min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])
        kept += sorted([low, high]) if low is not high else [low]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _chart(lines: Sequence[Line], steps: float | None, below: str) -> dict[str, Any]:
    series = [
        {
            "name": line.name, "type": "line", "data": thinned(line.points), "showSymbol": line.dots, "symbolSize": 7,
            "animation": False, **({"lineStyle": {"type": "dashed"}} if line.dashed else {}),
        }
        for line in lines
    ]  # fmt: skip
    colour = _theme.of("textColor")  # the grey of ECharts fails the contrast on white
    axis: dict[str, Any] = {"type": "value", "axisLabel": {"color": colour}, "nameTextStyle": {"color": colour}}
    across = {**axis, "name": below, "nameLocation": "middle", "nameGap": 24, "min": 0, "minInterval": 1}
    return {
        "tooltip": {"trigger": "axis", "confine": True},
        "legend": {
            "show": len(lines) > 1, "top": 0, "left": 0, "right": 48, "type": "scroll", "pageIconColor": colour,
            "textStyle": {"color": colour}, "pageTextStyle": {"color": colour},
        },
        "grid": {"left": 8, "right": 16, "top": 34 if len(lines) > 1 else 14, "bottom": 26, "containLabel": True},
        "xAxis": {**across, "max": steps} if steps else across,
        "yAxis": {**axis, "scale": True},
        "dataZoom": [{"type": "inside"}],
        "series": series,
    }  # fmt: skip


def _of(found: Sequence[Any], metric: str) -> Points:
    return [[e.step, round(e.metrics[metric], 4)] for e in found if metric in e.metrics]


def first(
    objective: objectives.Objective, steps: list[events.Step], evals: list[events.Eval], watched: events.Watched | None
) -> list[Panel]:
    """Return the panels that say how a run learns: the loss, and what its objective is after; general text where that is
    watched, from the base's on, with the limit."""
    found: list[tuple[str, str, str, tuple[Line, ...]]] = []
    if objective.loss_falls:
        trained = [[e.step, round(e.loss, 5)] for e in steps if e.loss is not None]
        held = Line(t("held-out rows"), [[e.step, round(e.loss, 5)] for e in evals], dots=True)
        found.append(
            (
                "loss",
                t("Loss"),
                "" if objective.loss_unit == "loss" else t(objective.loss_unit),
                (Line(t("trained rows"), trained), held),
            )
        )
    if watched is not None:
        found.append(("general", t("General text"), t("nats per token"), _general(steps, evals, watched)))
    if objective.writes_answers:
        found += _ppo(steps)
    else:
        found += _preferences(steps, evals)
    return _panels(found, steps)


def _panels(found: Sequence[tuple[str, str, str, tuple[Line, ...]]], steps: list[events.Step]) -> list[Panel]:
    total = steps[-1].total_steps if steps else 0
    made = [(key, title, unit, tuple(line for line in lines if line.points)) for key, title, unit, lines in found]
    return [Panel(key, title, unit, lines, total) for key, title, unit, lines in made if lines]


def _general(steps: list[events.Step], evals: list[events.Eval], watched: events.Watched) -> tuple[Line, ...]:
    points = [[0, round(watched.general_loss, 5)], *([e.step, round(e.metrics["general_loss"], 5)] for e in evals
                                                     if "general_loss" in e.metrics)]  # fmt: skip
    told = (Line(t("general text"), points, dots=True),)
    if watched.limit is None:
        return told
    limit, last = round(watched.general_loss + watched.limit, 5), steps[-1].total_steps if steps else points[-1][0]
    return (*told, Line(t("your limit"), [[0, limit], [last, limit]], dashed=True))


def _preferences(
    steps: list[events.Step], evals: list[events.Eval]
) -> list[tuple[str, str, str, tuple[Line, ...]]]:  # fmt: skip
    """What preference training is after: rewards of both kinds of answers, and how often they are in the right order."""
    training, held_out = t("trained rows"), t("held-out rows")

    def both(*metrics: str) -> tuple[Line, ...]:
        """Training and held-out figures of the first metric that there is."""
        metric = next((one for one in metrics if any(one in e.metrics for e in (*steps, *evals))), metrics[0])
        return Line(training, _of(steps, metric)), Line(held_out, _of(evals, metric), dots=True)

    better, worse = _of(steps, "rewards/chosen"), _of(steps, "rewards/rejected")
    distance = () if better and worse else both("rewards/margins", "margin")
    return [
        ("rewards", t("Reward"), t("against the base"),
         (Line(t("better answers"), better), Line(t("worse answers"), worse))),
        ("distance", t("Distance of better from worse answers"), "", distance),
        ("order", t("In the right order"), t("share of pairs"), both("rewards/accuracies", "accuracy")),
        ("kl", t("KL to the base"), t("nats"), both("kl")),
    ]  # fmt: skip


def _ppo(steps: list[events.Step]) -> list[tuple[str, str, str, tuple[Line, ...]]]:
    def line(name: str, metric: str) -> Line:
        return Line(name, _of(steps, metric))

    return [
        ("reward", t("Reward"), "", (line(t("reward"), "reward"), line(t("less beta x KL"), "reward_less_kl"))),
        ("kl", t("KL to the start"), t("nats per answer"), (line(t("KL to the start"), "kl"),)),
        ("moves", t("How the policy moves"), t("share"),
         (line(t("clipped"), "clip_fraction"), line(t("answers that end"), "ended_share"))),
        ("entropy", t("Entropy"), t("nats per token"), (line(t("entropy"), "entropy"),)),
    ]  # fmt: skip


def others(steps: list[events.Step]) -> list[Panel]:
    """Return the panels that say how a run works: its rate, its gradients, its speed and its memory."""

    def line(name: str, values: Sequence[float | None], digits: int) -> tuple[Line, ...]:
        told = zip(steps, values, strict=True)
        return (Line(name, [[e.step, round(value, digits)] for e, value in told if value is not None]),)

    rate, norm = [e.learning_rate for e in steps], [e.grad_norm for e in steps]
    speed, memory = [e.tokens_per_s for e in steps], [e.memory_mib for e in steps]
    held = [None if value is None else value / GIB for value in memory]
    return _panels(
        [
            ("rate", t("Learning rate"), "", line(t("Learning rate"), rate, 12)),
            ("norm", t("Gradient norm"), "", line(t("Gradient norm"), norm, 5)),
            ("speed", t("Speed"), t("tokens per second"), line(t("Tokens per second"), speed, 1)),
            ("memory", t("Memory"), "GiB", line(t("Memory"), held, 3)),
        ],
        steps,
    )


def rows(panels: Sequence[Panel], most: int) -> dict[str, list[str]]:
    """Return the values of all panels as columns of text, by step: of so many steps at most, always the first and last."""
    lines = [(panel, line) for panel in panels for line in panel.lines if not line.dashed]
    values = [{point[0]: point[1] for point in line.points} for _, line in lines]
    steps = sorted({step for told in values for step in told})
    stride = max(1, -(-len(steps) // most))
    marked = {step for (_, line), told in zip(lines, values, strict=True) if line.dots for step in told}
    kept = [step for index, step in enumerate(steps) if index % stride == 0 or step in marked or step == steps[-1]]
    table = {t("step"): [f"{step:,.0f}" for step in kept]}
    for (panel, line), told in zip(lines, values, strict=True):
        name = panel.title if len(panel.lines) == 1 else t("{name}, {part}", name=panel.title, part=line.name)
        table[name] = [f"{told[step]:.4g}" if step in told else "" for step in kept]
    return table


def losses(named: Sequence[tuple[str, list[Any]]], *, held_out: bool) -> dict[str, Any]:
    """Return one picture of one loss of several runs, each with its name and events."""
    lines = []
    for name, found in named:
        kind = events.Eval if held_out else events.Step
        told: Points = [[e.step, round(e.loss, 5)] for e in found if isinstance(e, kind) and e.loss is not None]
        lines.append(Line(name, told, dots=held_out))
    return _chart([line for line in lines if line.points], None, t("step"))
