"""Pictures of runs for ECharts: loss, rewards, and the losses of several runs in one. ECharts takes new points into the
same picture, so a zoom survives the next second; a plotly chart would be mounted anew each time."""

from __future__ import annotations

from typing import Any

from engine import events
from engine.words import t

# Okabe and Ito's colours, told apart by colour-blind readers too, without the two that one theme swallows.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")


# More points than this are not seen on a screen, and are sent anew each second.
MOST_POINTS = 600


def thinned(points: list[list[float]], most: int = MOST_POINTS) -> list[list[float]]:
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


def _line(name: str, points: list[list[float]], **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "line", "data": thinned(points), "showSymbol": False, "animation": False, **more}


def _step_axis(steps: list[events.Step]) -> dict[str, Any]:
    return {
        "type": "value",
        "name": t("step"),
        "nameLocation": "middle",
        "nameGap": 28,
        "min": 0,
        "max": steps[-1].total_steps,
    }


def loss(
    steps: list[events.Step], evals: list[events.Eval], unit: str, watched: events.Watched | None = None
) -> dict[str, Any]:
    """Return the chart of the loss on trained and on held-out rows; `unit` is what it is measured in. Where general text is
    `watched`: its loss from the base's on, on an axis of its own, with the limit drawn."""
    trained = [[e.step, round(e.loss, 5)] for e in steps if e.loss is not None]
    held = [[e.step, round(e.loss, 5)] for e in evals]
    chart: dict[str, Any] = {
        "tooltip": {"trigger": "axis"},
        "legend": {"top": 0},
        "grid": {"left": 60, "right": 20, "top": 40, "bottom": 50},
        "xAxis": _step_axis(steps),
        "yAxis": {"type": "value", "scale": True, "name": unit},
        "dataZoom": [{"type": "inside"}],
        "series": [_line(t("loss"), trained), _line(t("held-out loss"), held, showSymbol=True, symbolSize=7)],
    }
    if watched is not None:
        _add_general(chart, evals, watched)
    return chart


def _add_general(chart: dict[str, Any], evals: list[events.Eval], watched: events.Watched) -> None:
    """Add the loss on general text on a right axis, and a line beyond which it may not go."""
    points = [[0, round(watched.general_loss, 5)]]
    points += [[e.step, round(e.metrics["general_loss"], 5)] for e in evals if "general_loss" in e.metrics]
    colour, name = _COLOURS[2], t("general text")
    axis: dict[str, Any] = {"type": "value", "scale": True, "name": name, "splitLine": {"show": False}}
    more: dict[str, Any] = {"yAxisIndex": 1, "itemStyle": {"color": colour}, "lineStyle": {"color": colour}}
    if watched.limit is not None:
        limit = round(watched.general_loss + watched.limit, 5)
        losses = [loss for _, loss in points]
        top = max(limit, *losses)
        axis["max"] = round(top + (top - min(losses)) / 10, 5)  # the line is seen before it is reached
        more["markLine"] = {
            "silent": True, "symbol": "none", "data": [{"yAxis": limit, "name": t("your limit")}],
            "lineStyle": {"type": "dashed", "color": colour}, "label": {"formatter": "{b}", "position": "insideEndTop"},
        }  # fmt: skip
    chart["series"].append(_line(name, points, showSymbol=True, symbolSize=7, **more))
    chart["yAxis"], chart["grid"] = [chart["yAxis"], axis], {**chart["grid"], "right": 60}


def rewards(steps: list[events.Step], evals: list[events.Eval]) -> dict[str, Any] | None:
    """Return the chart of what preference training optimises, or None where a run has no such figures: rewards and
    their distance on the left axis, the share of pairs in the right order on the right one."""
    names = {
        "rewards/chosen": t("reward, better answers"),
        "rewards/rejected": t("reward, worse answers"),
        "rewards/margins": t("distance"),
        "margin": t("distance"),
        "kl": t("KL to the base"),
        "rewards/accuracies": t("right order (share)"),
        "accuracy": t("right order (share)"),
    }
    series = []
    for metric, name in names.items():
        axis = {"yAxisIndex": int(metric in ("rewards/accuracies", "accuracy"))}
        points = [[e.step, round(e.metrics[metric], 4)] for e in steps if metric in e.metrics]
        held = [[e.step, round(e.metrics[metric], 4)] for e in evals if metric in e.metrics]
        if points:
            series.append(_line(name, points, **axis))
        if held:
            held_name = t("{name}, held-out", name=name)
            series.append(_line(held_name, held, showSymbol=True, symbolSize=7, lineStyle={"type": "dashed"}, **axis))
    if not series:
        return None
    return _two_axes(steps, series, t("reward"), t("share"))


def ppo(steps: list[events.Step]) -> list[dict[str, Any]]:
    """Return PPO's charts: the reward with its price, the KL to the start; and how the policy moves."""

    def lines(names: dict[str, str], axis: int) -> list[dict[str, Any]]:
        found = []
        for metric, name in names.items():
            points = [[e.step, round(e.metrics[metric], 4)] for e in steps if metric in e.metrics]
            found.append(_line(name, points, yAxisIndex=axis))
        return found

    bought = lines({"reward": t("reward"), "reward_less_kl": t("reward less beta x KL")}, 0)
    price = lines({"kl": t("KL to the start")}, 1)
    moves = lines({"clip_fraction": t("clipped (share)"), "ended_share": t("answers that end (share)")}, 0)
    spread = lines({"entropy": t("entropy")}, 1)
    return [
        _two_axes(steps, [*bought, *price], t("reward"), t("nats per answer"), top=None),
        _two_axes(steps, [*moves, *spread], t("share"), t("nats per token"), top=None),
    ]


def _two_axes(
    steps: list[events.Step], series: list[dict[str, Any]], left: str, right: str, top: float | None = 1
) -> dict[str, Any]:
    return {
        "tooltip": {"trigger": "axis"},
        "legend": {"top": 0, "type": "scroll"},
        "grid": {"left": 60, "right": 60, "top": 56, "bottom": 50},
        "xAxis": _step_axis(steps),
        "yAxis": [
            {"type": "value", "scale": True, "name": left},
            {"type": "value", "min": 0, "max": top, "name": right, "splitLine": {"show": False}},
        ],
        "dataZoom": [{"type": "inside"}],
        "series": series,
    }


def losses(named: list[tuple[str, list[Any]]]) -> dict[str, Any]:
    """Return one picture of the losses of several runs, each with its name and events: trained rows drawn through,
    held-out rows dashed in the same colour."""
    series = []
    for number, (name, found) in enumerate(named):
        colour = _COLOURS[number % len(_COLOURS)]
        trained = [[e.step, round(e.loss, 5)] for e in found if isinstance(e, events.Step) and e.loss is not None]
        held = [[e.step, round(e.loss, 5)] for e in found if isinstance(e, events.Eval)]
        series.append(_line(name, trained, itemStyle={"color": colour}, lineStyle={"color": colour}))
        if held:
            held_name = t("{name}, held-out", name=name)
            dashed = {"type": "dashed", "color": colour}
            series.append(
                _line(held_name, held, showSymbol=True, symbolSize=7, itemStyle={"color": colour}, lineStyle=dashed)
            )
    return {
        "tooltip": {"trigger": "axis"},
        "legend": {"top": 0, "type": "scroll"},
        "grid": {"left": 60, "right": 20, "top": 56, "bottom": 50},
        "xAxis": {"type": "value", "name": t("step"), "nameLocation": "middle", "nameGap": 28},
        "yAxis": {"type": "value", "scale": True, "name": t("loss")},
        "dataZoom": [{"type": "inside"}],
        "series": series,
    }
