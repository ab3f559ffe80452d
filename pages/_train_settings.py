"""The Train page's settings: what is asked of every run, and all others in a fold, each with its source."""

from __future__ import annotations

from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from engine.data import datasets
from engine.plan import Plan, checks, judges, plans
from engine.spec import OBJECTIVES, groups, ranges, schema, settings, tolerances
from engine.words import Problem, joined, t
from pages import _ui

SHARE, KEEP = "train.replay_share", "objective_args.keep"
USUAL_SHARE = 0.1  # of the recipes that mix in general rows
COLUMNS = 3


def ask(plain: Plan, overrides: dict[str, Any]) -> None:
    """The one or two questions that are asked of every run: how much it may forget, and of PPO, who judges. What differs
    from `plain`, the plan without changes, is kept in `overrides`."""
    objective = OBJECTIVES[plain.spec.objective]
    if objective.needs_judge:
        _judge(plain, overrides)
    if objective.is_scored_on_its_way:
        _dial(plain, overrides)


def show(plain: Plan, overrides: dict[str, Any]) -> dict[str, DeltaGenerator]:
    """Show all other settings that a run of this kind reads, folded, in named groups that can be searched. Returns the
    places of the fields by path, for what is wrong with each."""
    places: dict[str, DeltaGenerator] = {}
    if any(isinstance(settings.convert_setting(path, value), Problem) for path, value in overrides.items()):
        st.session_state["settings_fold"] = True  # and left so: it is not to close under the hands that mend it
    _ui.fold(t("Settings"), "settings_fold", lambda: _groups(plain, overrides, places), icon=":material/tune:")
    if overrides:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(_changes(plain, overrides))
            if st.button(t("Back to the defaults"), type="tertiary", icon=":material/undo:", key="reset"):
                forget_changes()
                st.rerun()
    return places


def _groups(plain: Plan, overrides: dict[str, Any], places: dict[str, DeltaGenerator]) -> None:
    """The fields of the open fold; the place of each is left in `places`."""
    asked = st.text_input(t("Find a setting"), placeholder=t("epochs, memory, questions ..."), key="find_setting")
    taken = _taken(plain, overrides)
    if plans.offers_to_continue(plain):
        _field(plans.CONTINUE, plain, overrides)
        if _taken(plain, overrides) != taken:  # fields below come or go
            for path in plans.TAKEN:
                overrides.pop(path, None)
            st.rerun()
    if taken:
        st.caption(_ui.say("Kind, rank and modules of the adapter are those of {run}.", run=plain.base.title))
    found = _found(plain, overrides, taken, asked)
    for name, paths in found.items():
        st.markdown(f"**{_ui.plain(_group_words()[name])}**")
        if name == "rows" and OBJECTIVES[plain.spec.objective].replays and not asked:
            _keeping(plain, overrides)
        _grid(paths, plain, overrides, places)
    if not found:
        st.caption(t("No setting of this recipe is called that, or speaks of it."))


def _group_words() -> dict[str, str]:
    return {
        "learning": t("Learning"), "rows": t("Rows and length"), "adapter": t("Adapter and memory"),
        "machine": t("Scoring and machine"),
    }  # fmt: skip


def _found(plain: Plan, overrides: dict[str, Any], taken: tuple[str, ...], asked: str) -> dict[str, list[str]]:
    """The settings to show by group: those that apply, of which the recipe's own come first, and that answer the search."""

    def given(path: str) -> Any:
        value = overrides.get(path, schema.value_at(plain.spec, path))
        return (
            schema.value_at(plain.spec, path) if isinstance(settings.convert_setting(path, value), Problem) else value
        )

    def answers(path: str) -> bool:
        field = settings.fields()[path]
        spoken = " ".join((path, field.title, field.help, t(field.title), t(field.help))).casefold()
        return all(word in spoken for word in asked.casefold().split())

    first = plain.recipe.basic if plain.recipe is not None else []
    found = {}
    for name, paths in groups.GROUPS.items():
        shown = [path for path in paths if path not in taken and groups.applies(path, given) and answers(path)]
        if shown:
            found[name] = sorted(shown, key=lambda path: path not in first)
    return found


def _grid(paths: list[str], plain: Plan, overrides: dict[str, Any], places: dict[str, DeltaGenerator]) -> None:
    """Fields side by side, row by row, so that a line more under one of them moves nothing beside it."""
    for number in range(0, len(paths), COLUMNS):
        for column, path in zip(st.columns(COLUMNS), paths[number : number + COLUMNS], strict=False):
            places[path] = column.container()
            with places[path]:
                _field(path, plain, overrides)


def _changes(plain: Plan, overrides: dict[str, Any]) -> str:
    """What was changed, each setting with its default, in one line."""
    told = [
        t("{name} {value} (default {default})", name=t(settings.fields()[path].title),
          value=settings.value_words(path, value),
          default=settings.value_words(path, schema.value_at(plain.spec, path)))
        for path, value in overrides.items() if path in settings.fields()
    ]  # fmt: skip
    return _ui.say("Changed: {changes}", changes=" · ".join(told))


def _keeping(plain: Plan, overrides: dict[str, Any]) -> None:
    """How the run keeps what its base knew: not at all, by general rows, or held to the base. What else there is stands in
    a recipe of one's own; where one is chosen, it is shown."""
    words = settings.choice_words(KEEP) | {"replay": t("mix in general rows")}
    usual = {path: schema.value_at(plain.spec, path) for path in (SHARE, KEEP)}
    share, keep = (overrides.get(path, usual[path]) for path in (SHARE, KEEP))
    now = keep if keep != "plain" else "replay" if share else "plain"
    options = list(dict.fromkeys(["plain", "replay", "kl", *([now] if now in words else [])]))
    chosen = st.radio(
        t("Keep what it knew"), options, options.index(now) if now in options else None,
        format_func=lambda way: _ui.plain(words[way]),
        horizontal=True, key=f"keep~{now}~{st.session_state.get('form', 0)}",
        help=_ui.plain(t(
            "Training on new rows alone makes a model forget. General rows are learned beside them, in the share "
            "set below. Held to the base, what it would have said instead stays as likely as it was: nothing is mixed in, "
            "and a step takes about a third longer."
        )),
    )  # fmt: skip
    if chosen in (None, now):
        return
    wanted = {SHARE: (usual[SHARE] or USUAL_SHARE) if chosen == "replay" else 0.0,
              KEEP: "plain" if chosen == "replay" else chosen}  # fmt: skip
    for path, value in wanted.items():
        overrides.pop(path, None)
        if value != usual[path]:
            overrides[path] = value
    new_form()
    st.rerun()


OWN = "own"


def _dial(plain: Plan, overrides: dict[str, Any]) -> None:
    """How much a run may forget: a word, or a number where the words do not fit; and in one line what follows from it."""
    path, toy = "train.tolerance", plain.base.is_toy
    default = schema.value_at(plain.spec, path)
    value = overrides.get(path, default)
    if isinstance(settings.convert_setting(path, value), Problem):  # of a draft: shown as it is, and said to be wrong
        _field(path, plain, overrides)
        return
    words = tolerances.words(toy=toy)
    options = settings.choice_words(path) | {OWN: t("a number")}
    form = st.session_state.get("form", 0)
    chosen = st.radio(
        t("How much may it forget?"),
        list(options),
        index=list(options).index(value if value in options else OWN),
        horizontal=True,
        format_func=lambda word: _ui.plain(options[word]),
        key=f"dial~{form}",
        help=_ui.plain(_about_dial(words, toy)),
    )
    new: Any = chosen
    if chosen == OWN:
        typed = float(value) if isinstance(value, int | float) else words["medium"].nats
        label = t("How much worse general text may get, in nats per token")
        new = st.number_input(label, 0.0, 10.0, typed, step=0.01, format="%.3f", key=f"dial_nats~{form}")
    if new == default:
        overrides.pop(path, None)
    else:
        overrides[path] = new
    if new == "off":
        st.caption(t("Off: it trains to its end, whatever it forgets on its way."))
    elif chosen in words:
        points = words[chosen].points
        lost = t("1 point") if points == 1 else t("{n} points", n=f"{points:g}")
        told = t(
            "It stops when it loses more than about {lost} and is not coming back, and keeps its best step before.",
            lost=lost,
        )
        guess = "" if toy else t("How many points a limit stands for is a guess for real bases.")
        st.caption(_ui.plain(joined(told, guess)))


def _about_dial(words: dict[str, tolerances.Measured], toy: bool) -> str:
    """Return what the words stand for, and where that comes from."""
    told = {word: f"{one.nats:g}" for word, one in words.items()}
    stand = t(
        "General text is read at each evaluation. The words stand for {low}, {medium} and {high} nats per token above the "
        "base's: about 1, 3 and 10 points.", **told,
    )  # fmt: skip
    if toy:
        return joined(stand, t("Measured on the starter; single runs differ (docs/measured/tolerance.md)."))
    return joined(stand, t("Not measured for real bases: 0.02 nats count as a point, as in the report."))


def _taken(plain: Plan, overrides: dict[str, Any]) -> tuple[str, ...]:
    """Return the settings that an adapter that is trained on has already; none where a new one is made."""
    continues = overrides.get(plans.CONTINUE, plain.spec.adapter_args.continues)
    return plans.TAKEN if continues and plans.offers_to_continue(plain) else ()


def forget_changes() -> None:
    """Go back to what the recipe gives."""
    st.session_state["overrides"] = {}
    new_form()


def new_form() -> None:
    """Give every field a new key: a widget keeps what it shows as long as its key is the same, whatever its default."""
    st.session_state["form"] = st.session_state.get("form", 0) + 1


def _field(path: str, plain: Plan, overrides: dict[str, Any]) -> None:
    """One setting: a fitting widget, its help and source, and a mark when it is not the default."""
    field = settings.fields()[path]
    default = schema.value_at(plain.spec, path)
    value = overrides.get(path, default)
    given = plain.recipe.default(path, plain.base.parameters, plain.spec.adapter) if plain.recipe is not None else None
    parts = [t(field.help)]  # made literal as a whole, by the widget
    if given is not None:
        parts.append(t("Default {value}: {source}.", value=_default_words(path, default), source=t(given.source)))
        if given.guide:
            parts.append(t("The guide says {guide}.", guide=t(given.guide)))
        if given.measured:
            parts.append(t("Measured: {measured}.", measured=t(given.measured)))
    known = (
        ranges.of(plain.spec, plain.recipe, plain.base.parameters) if plain.recipe and path in ranges.WATCHED else []
    )
    for one in known:
        if one.path == path:
            parts.append(
                t(
                    "Known to work: {low} to {high} ({source}).",
                    low=f"{one.low:g}",
                    high=f"{one.high:g}",
                    source=t(one.source),
                )
            )
    key, help_text = f"set_{path}~{st.session_state.get('form', 0)}", "\n\n".join(parts)
    new = _widget(path, default, value, plain, key=key, label=_label(path), help_text=help_text)
    if new == default:
        overrides.pop(path, None)
    else:
        overrides[path] = new


def _default_words(path: str, default: Any) -> str:
    """A default as its field shows it: the words of a list, and what one would type."""
    is_typed = default is not None and not settings.fields()[path].choices
    return _ui.show_value(default) if is_typed else settings.value_words(path, default)


def _label(path: str) -> str:
    """What a setting is called, and what 0 means where that is no number."""
    zero = {
        "train.max_steps": t("0: as the epochs ask"), "train.early_stopping": t("0: off"), "dataset.most_rows": t("0: all"),
        "evaluate.limit": t("0: all"), "evaluate.along": t("0: none"), "train.threads": t("0: all cores"),
    }  # fmt: skip
    title = t(settings.fields()[path].title)
    return t("{title} ({zero})", title=title, zero=zero[path]) if path in zero else title


def _widget(path: str, default: Any, value: Any, plain: Plan, *, key: str, label: str, help_text: str) -> Any:
    """Show the widget that fits a setting and return what it says."""
    field = settings.fields()[path]
    if path == "train.replay_data":
        stored = {one.id: one for one in datasets.list_all(plain.workspace)}
        general = [None, *(i for i, one in stored.items() if one.report.type in checks.replay_types())]
        return st.selectbox(
            _ui.plain(label),
            general,
            index=general.index(value) if value in general else 0,
            format_func=lambda i: stored[i].name if i else settings.choice_words(path)[None],
            key=key,
            help=_ui.plain(help_text),
        )
    can_be_left_open = path in ("train.gradient_checkpointing", "train.padding_free")
    if field.choices or can_be_left_open:
        options = list(settings.choice_words(path) if can_be_left_open else field.choices)
        return st.selectbox(
            _ui.plain(label),
            options,
            index=options.index(value) if value in options else 0,
            format_func=lambda one: _ui.plain(settings.value_words(path, one)),
            key=key,
            help=_ui.plain(help_text),
        )
    if isinstance(default, bool):
        return st.checkbox(_ui.plain(label), bool(value), key=key, help=_ui.plain(help_text))
    if isinstance(default, int) and isinstance(settings.convert_setting(path, value), int):
        return st.number_input(
            _ui.plain(label), int(field.limits["ge"]), int(field.limits["le"]), int(value), step=1, key=key,
            help=_ui.plain(help_text),
        )  # fmt: skip
    # What is no such number, as an address or a draft may say, is shown as it is and said to be wrong.
    typed = st.text_input(
        _ui.plain(label), _ui.show_value(value)[:200] if value is not None else "", 
        key=f"{key}~text" if isinstance(default, int) else key,
        help=_ui.plain(help_text),
    )  # fmt: skip
    return _parsed(path, typed, default)


def _parsed(path: str, typed: str, default: Any) -> Any:
    """Return what was typed as a value of its setting; what cannot be one stays text, and preflight says why."""
    if typed == (_ui.show_value(default) if default is not None else ""):
        return default
    parsed = settings.parse_setting(f"{path}=[{typed}]" if isinstance(default, list) else f"{path}={typed}")
    value = typed if isinstance(parsed, Problem) else parsed[1]
    converted = settings.convert_setting(path, value)
    return typed if isinstance(converted, Problem) else converted


def _judge(plain: Plan, overrides: dict[str, Any]) -> None:
    """PPO's reward model, with the data it was made from: one of the same rows, or the one that is chosen."""
    path, workspace = "objective_args.reward_model", plain.workspace
    default = schema.value_at(plain.spec, path)
    named = overrides.get(path, default)
    options = list(dict.fromkeys([*([named] if named else []), *judges.candidates(workspace)]))
    chosen = st.selectbox(
        t("Reward model"),
        options,
        index=options.index(named) if named else None,
        format_func=lambda ref: judges.title(workspace, ref),
        placeholder=t("Choose one") if options else t("None yet: train the recipe Reward model first"),
        key=f"judge~{st.session_state.get('form', 0)}",
        help=_ui.plain(t(settings.fields()[path].help)),
    )
    if chosen and chosen != default:
        overrides[path] = chosen
    else:
        overrides.pop(path, None)
