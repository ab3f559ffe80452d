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
    """One picture: what it shows and which way is good, in plain words; at most two lines. The unit stands in the table, and
    `about` is what one who wonders is told."""

    key: str
    title: str
    lines: tuple[Line, ...]
    hint: str = ""
    unit: str = ""
    steps: int = 0
    about: str = ""

    @property
    def is_line(self) -> bool:
        """Whether there is a line to draw, or one value and nothing to hold it against."""
        return any(len(line.points) > 1 for line in self.lines if not line.dashed)

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
            "name": line.name, "type": "line", "data": thinned(line.points), "symbolSize": 7,
            "showSymbol": line.dots or len(line.points) == 1, "animation": False,
            **({"lineStyle": {"type": "dashed"}} if line.dashed else {}),
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
    found = list[Panel]()
    if objective.loss_falls:
        trained = [[e.step, round(e.loss, 5)] for e in steps if e.loss is not None]
        held = Line(t("held-out rows"), [[e.step, round(e.loss, 5)] for e in evals], dots=True)
        unit = "" if objective.loss_unit == "loss" else t(objective.loss_unit)
        found.append(Panel("loss", t("Loss"), (Line(t("trained rows"), trained), held), _lower(), unit))
    if watched is not None:
        lines = _general(steps, evals, watched)
        found.append(Panel("general", t("Loss on watched general text"), lines, _lower(), t("nats per token"),
                           about=t("A fixed set of texts, watched in training. The report asks other ones, so its figures "
                                   "differ.")))  # fmt: skip
    if objective.writes_answers:
        found += _ppo(steps)
    else:
        found += _preferences(steps, evals)
    return _panels(found, steps)


def _lower() -> str:
    return t("lower is better")


def _panels(found: Sequence[Panel], steps: list[events.Step]) -> list[Panel]:
    total = steps[-1].total_steps if steps else 0
    told = [one._replace(lines=tuple(line for line in one.lines if line.points), steps=total) for one in found]
    return [one for one in told if one.lines]


def _general(steps: list[events.Step], evals: list[events.Eval], watched: events.Watched) -> tuple[Line, ...]:
    points = [[0, round(watched.general_loss, 5)], *([e.step, round(e.metrics["general_loss"], 5)] for e in evals
                                                     if "general_loss" in e.metrics)]  # fmt: skip
    told = (Line(t("general text"), points, dots=True),)
    if watched.limit is None:
        return told
    limit, last = round(watched.general_loss + watched.limit, 5), steps[-1].total_steps if steps else points[-1][0]
    return (*told, Line(t("your limit"), [[0, limit], [last, limit]], dashed=True))


def _preferences(steps: list[events.Step], evals: list[events.Eval]) -> list[Panel]:
    """What preference training is after: rewards of both kinds of answers, and how often they are in the right order."""
    training, held_out = t("trained rows"), t("held-out rows")

    def both(*metrics: str) -> tuple[Line, ...]:
        """Training and held-out figures of the first metric that there is."""
        metric = next((one for one in metrics if any(one in e.metrics for e in (*steps, *evals))), metrics[0])
        return Line(training, _of(steps, metric)), Line(held_out, _of(evals, metric), dots=True)

    better, worse = _of(steps, "rewards/chosen"), _of(steps, "rewards/rejected")
    distance = () if better and worse else both("rewards/margins", "margin")
    rewarded = (Line(t("better answers"), better), Line(t("worse answers"), worse))
    return [
        Panel("rewards", t("Reward"), rewarded, t("against the base; the better answers are to stay above")),
        Panel("distance", t("Distance of better from worse answers"), distance, t("higher is better")),
        Panel(
            "order", t("In the right order"), both("rewards/accuracies", "accuracy"),
            t("share of pairs; higher is better"), t("share of pairs"),
        ),
        Panel("kl", t("How far it moved from the base"), both("kl"), t("0: not at all"), t("KL in nats")),
    ]  # fmt: skip


def _ppo(steps: list[events.Step]) -> list[Panel]:
    def line(name: str, metric: str) -> Line:
        return Line(name, _of(steps, metric))

    rewards = (line(t("reward"), "reward"), line(t("less what moving away costs"), "reward_less_kl"))
    shares = (line(t("cut short"), "clip_fraction"), line(t("answers that end"), "ended_share"))
    away = (line(t("from the start"), "kl"),)
    return [
        Panel("reward", t("Reward"), rewards, t("higher is better")),
        Panel("kl", t("How far it moved from the start"), away, t("0: not at all"), t("KL in nats per answer")),
        Panel("moves", t("Changes cut short, and answers that end"), shares, t("shares"), t("share")),
        Panel(
            "entropy", t("How freely it picks its words"), (line(t("entropy"), "entropy"),),
            t("0: always the same"), t("entropy in nats per token"),
        ),
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
            Panel("rate", t("Learning rate"), line(t("Learning rate"), rate, 12)),
            Panel("norm", t("Gradient norm"), line(t("Gradient norm"), norm, 5), t("how far a step wants to go")),
            Panel("speed", t("Speed"), line(t("Tokens per second"), speed, 1), t("tokens per second")),
            Panel("memory", t("Memory"), line(t("Memory"), held, 3), "GiB", "GiB"),
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
        name = t("{name} ({unit})", name=name, unit=panel.unit) if panel.unit else name
        table[name] = [f"{told[step]:.4g}" if step in told else "" for step in kept]
    return table
