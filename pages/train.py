"""Train: choose base, recipe and settings, see what will happen, start."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from engine import limits, machine
from engine.data import datasets, division
from engine.estimate import memory
from engine.models import bases
from engine.plan import build, chains, drafts, judges, takes
from engine.runs import lifecycle, store
from engine.spec import RunSpec, objectives, schema, settings
from engine.spec import recipes as spec_recipes
from engine.words import Problem, t
from pages import _base, _ui

st.title(t("Train"))
st.write(t("Choose a base and a recipe. The defaults are good; change what you understand, and start."))

workspace = _ui.workspace()

# Settings that the page decides elsewhere, or that a form field cannot hold.
HIDDEN = {"objective", "adapter", "dataset.eval_id", "objective_args.weights"}
# What only one objective reads, and its own fields among the advanced settings.
OBJECTIVE_FIELDS = {
    "ppo": ("objective_args.temperature", "objective_args.ppo_epochs", "objective_args.missing_end_penalty")
}
# The guide's "start with 1,000 rows" (N5).
FIRST_TRY_ROWS = 1_000


def _open_draft() -> drafts.Draft | None:
    """Take over the draft that the URL names, once."""
    draft_id = st.query_params.get("draft")
    if not draft_id:
        return None
    draft = drafts.load(workspace, draft_id)
    if draft is None:
        st.warning(t("The draft this link names is not here. The page starts from the defaults."))
        return None
    if st.session_state.get("opened_draft") != draft_id:
        st.session_state["opened_draft"] = draft_id
        _forget_changes()
        st.session_state["chosen_recipe"] = draft.recipe
        st.session_state["overrides"] = dict(draft.overrides)
        _ui.choose("base", draft.base)
        if draft.dataset:
            _ui.choose("dataset", draft.dataset)
    return draft


def _forget_changes() -> None:
    st.session_state["overrides"] = {}
    _new_form()


def _new_form() -> None:
    """Give every field a new key: a widget keeps what it shows as long as its key is the same, whatever its default."""
    st.session_state["form"] = st.session_state.get("form", 0) + 1


draft = _open_draft()
opened = st.session_state.get("opened_draft", "")  # part of the keys of what a draft chooses: its widgets start anew
if draft is not None and (draft.reasons or draft.came_from):
    with st.container(border=True):
        st.markdown(f"**{_ui.plain(t('From the advisor') if draft.came_from == 'advisor' else draft.came_from)}**")
        _ui.bullets(draft.reasons)
        if draft.rules:
            st.caption(_ui.say("Rules of the guide: {rules}", rules=", ".join(draft.rules)))


def _chain() -> None:
    """The three stages of SFT, reward model and PPO: what each needs, which run fills it, and the button of the next."""
    with st.container(border=True):
        st.markdown(f"**{t('SFT, reward model and PPO in turn')}**")
        skip = st.checkbox(
            t("Skip stage 1: the base answers well enough"), key="chain_skip_sft",
            help=t("Only for a base that was tuned to answer, and that tries different answers by itself."),
        )  # fmt: skip
        # The chain stands on a base of its own: stage 2 changes the base of the form below.
        root = st.session_state.setdefault("chain_base", _chain_root())
        found = chains.look(workspace, base=root, skip_sft=skip, sft=st.session_state.get("chain_sft"))
        st.caption(_ui.say("Base of the chain: {base}", base=bases.describe(root, workspace).title))
        for column, stage in zip(st.columns(3), found.stages, strict=True):
            with column:
                _chain_stage(found, stage, skipped=skip and stage.name == "sft")
        if found.alike is not None:
            st.caption(
                t("Policy and judge read text alike: the same tokens and the same template.")
                if found.alike
                else t("Policy and judge read text differently: train the reward model anew on the model of stage 1.")
            )
        done = found.stage("ppo").filled
        if done is not None and st.button(t("All three are done: see what it gained and forgot"), key="chain_done"):
            _ui.choose("run", done)
            _ui.go("forgetting")


def _chain_root() -> str:
    """Return the base a chain begins with: the one being worked on, unless it came out of a chain itself."""
    ref = _ui.current("base") or "starter"
    return "starter" if bases.describe(ref, workspace).kind == "run" else ref


def _chain_stage(found: chains.Chain, stage: chains.Stage, *, skipped: bool) -> None:
    st.markdown(f"**{_ui.plain(stage.title)}**")
    st.caption(_ui.plain(stage.purpose))
    if skipped:
        st.markdown(t("Skipped"))
        return
    if stage.filled:
        st.markdown(":material/check_circle: " + _ui.say("Done by: {name}", name=store.name(workspace, stage.filled)))
        if stage.name == "reward" and (judged := judges.accuracy(workspace.run_dir(stage.filled))) is not None:
            share = f"{100 * judged.tuned:.0f} %"
            st.caption(_ui.say("Right on {share} of {n} unseen pairs; chance is 50 %.", share=share, n=judged.n))
        return
    if stage.going:
        st.markdown(":material/play_circle: " + _ui.say("On its way: {name}", name=store.name(workspace, stage.going)))
        if st.button(t("Watch it"), key=f"chain_watch_{stage.name}"):
            _ui.choose("run", stage.going)
            _ui.go("runs")
        return
    st.caption(_ui.say("Needs: {what}", what=stage.needs))
    if stage.name != found.next:
        st.caption(t("Comes after the stage before it."))
        return
    if stage.data is not None:
        stored = datasets.load(workspace, stage.data)
        label = _ui.say("Set it up with {data}", data=stored.name)
    else:
        label = t("Set it up with the sample")
    if st.button(label, type="primary", icon=":material/arrow_forward:", key=f"chain_{stage.name}"):
        dataset_id = stage.data or chains.sample_id(workspace, stage.name)
        _ui.go("train", draft=drafts.save(workspace, chains.draft(found, stage.name, dataset=dataset_id)), chain="1")


if st.query_params.get("chain"):
    _chain()
elif st.button(t("SFT, reward model and PPO in turn"), icon=":material/linear_scale:", key="open_chain"):
    st.query_params["chain"] = "1"
    st.rerun()

try:
    recipes = spec_recipes.recipes()
except spec_recipes.RecipeError as error:
    st.error(_ui.say("A recipe cannot be read: {reason}. Correct the file or take it away.", reason=error))
    raise _ui.PageEnds from None


# --- base -------------------------------------------------------------------------------------------------------
left, right = st.columns(2)
with left:
    st.subheader(t("Base"))
    base = _base.select(workspace, opened)

with right:
    st.subheader(t("Recipe"))
    # The choice is kept beside the widget and is its default: a browser whose answer comes before the widget's value has
    # reached it would else fall back to the first recipe of the list.
    remembered = st.session_state.get("chosen_recipe", "lora")
    recipe_name = st.selectbox(
        t("How to train"),
        list(recipes),
        index=list(recipes).index(remembered) if remembered in recipes else 0,
        format_func=lambda name: t(recipes[name].title),
        key=f"recipe~{opened}",
    )
    st.session_state["chosen_recipe"] = recipe_name
    recipe = recipes[recipe_name]
    st.caption(t(recipe.when))
    st.caption(t(recipe.trade))

_base.panel(workspace, base, recipe_name)

# --- data -------------------------------------------------------------------------------------------------------
st.subheader(t("Data"))
stored = {one.id: one for one in datasets.list_all(workspace)}
dataset = _ui.current_dataset()
if not stored:
    _ui.empty(t("There is no data yet. Bring a file, or take a sample."), "data", t("Go to Data"))
else:
    ids = list(stored)
    chosen_id = st.selectbox(
        t("Rows to learn from"),
        ids,
        index=ids.index(dataset.id) if dataset is not None and dataset.id in ids else None,
        format_func=lambda i: f"{stored[i].name} · {t('{n} rows', n=stored[i].report.rows)}",
        placeholder=t("Choose data"),
    )
    if chosen_id and (dataset is None or chosen_id != dataset.id):
        _ui.choose("dataset", chosen_id)
        dataset = stored[chosen_id]
    if dataset is not None and dataset.eval_id:
        st.caption(t("Scored before and after with the questions that belong to this data."))

# --- settings ---------------------------------------------------------------------------------------------------
overrides: dict[str, Any] = st.session_state.setdefault("overrides", {})
# Everything changeable is resolved once without the changes (to mark them) and once with them.
plain_spec, _ = build.build(
    workspace, recipe_name, base_ref=base.ref, dataset_id=dataset.id if dataset else None, overrides={}
)
assert plain_spec is not None  # the recipe is one of the list
defaults: RunSpec = plain_spec
context = (recipe_name, base.ref, base.parameters)  # a hub model's size is known only after a look at it
if st.session_state.get("settings_context") not in (None, context):
    # Other base or recipe: fields show its own defaults; what the person changed by hand stays changed, and is said.
    _new_form()
    kept = [p for p in overrides if schema.value_at(defaults, p) != overrides[p]]
    if kept:
        names = ", ".join(t(settings.fields()[p].title) for p in kept)
        st.info(_ui.say("The defaults now fit this base and recipe. Your own changes were kept: {names}.", names=names))
st.session_state["settings_context"] = context


def _field(path: str) -> None:
    """One setting: a fitting widget, its help and source, and a mark when it is not the default."""
    field = settings.fields()[path]
    default = schema.value_at(defaults, path)
    value = overrides.get(path, default)
    given = recipe.default(path, base.parameters, defaults.adapter)
    parts = [t(field.help)]
    if given is not None:
        parts.append(_ui.say("Default {value}: {source}.", value=_ui.show_value(default), source=t(given.source)))
        if given.guide:
            parts.append(_ui.say("The guide says {guide}.", guide=t(given.guide)))
    key, label, help_text = f"set_{path}~{st.session_state.get('form', 0)}", t(field.title), "\n\n".join(parts)
    new: Any
    if path == "train.replay_data":
        general = [None, *(i for i, one in stored.items() if one.report.type in objectives.OBJECTIVE_DATA["sft"])]
        new = st.selectbox(
            label,
            general,
            index=general.index(value) if value in general else 0,
            format_func=lambda i: stored[i].name if i else t("written by the base, or the starter's own"),
            key=key,
            help=help_text,
        )
    elif path in ("train.gradient_checkpointing", "train.padding_free"):
        words = {None: t("as the machine needs it"), True: t("on"), False: t("off")}
        new = st.selectbox(
            label,
            list(words),
            index=list(words).index(value) if value in words else 0,
            format_func=lambda answer: words[answer],
            key=key,
            help=help_text,
        )
    elif field.choices:
        options = list(field.choices)
        index = options.index(value) if value in options else 0
        new = st.selectbox(label, options, index=index, key=key, help=help_text)
    elif isinstance(default, bool):
        new = st.checkbox(label, bool(value), key=key, help=help_text)
    elif isinstance(default, int):
        new = st.number_input(label, value=int(value), step=1, key=key, help=help_text)
    else:
        typed = st.text_input(label, _ui.show_value(value) if value is not None else "", key=key, help=help_text)
        new = _parsed(path, typed, default)
    if new == default:
        overrides.pop(path, None)
    else:
        overrides[path] = new
        st.caption(_ui.say("Changed from the default {value}", value=_ui.show_value(default)))


def _parsed(path: str, typed: str, default: Any) -> Any:
    """Return what was typed as a value of its setting; what cannot be one stays text, and preflight says why."""
    if typed == (_ui.show_value(default) if default is not None else ""):
        return default
    parsed = settings.parse_setting(f"{path}=[{typed}]" if isinstance(default, list) else f"{path}={typed}")
    value = typed if isinstance(parsed, Problem) else parsed[1]
    converted = settings.convert_setting(path, value)
    return value if isinstance(converted, Problem) else converted


def _judge() -> None:
    """PPO's reward model: the newest that fits unless another is chosen, and how good it must be."""
    path = "objective_args.reward_model"
    default = schema.value_at(defaults, path)
    named = overrides.get(path, default)
    options = list(dict.fromkeys([*([named] if named else []), *judges.candidates(workspace)]))
    left, right = st.columns(2)
    with left:
        chosen = st.selectbox(
            t("Reward model"),
            options,
            index=options.index(named) if named else None,
            format_func=_judge_title,
            placeholder=t("None yet: train the recipe Reward model first"),
            key=f"judge~{st.session_state.get('form', 0)}",
            help=t(settings.fields()[path].help),
        )
    if chosen and chosen != default:
        overrides[path] = chosen
    else:
        overrides.pop(path, None)
    with right:
        _field("objective_args.least_reward_accuracy")


def _judge_title(ref: str) -> str:
    if not store.exists(workspace, ref.removeprefix("run:")):
        return ref
    judged = judges.accuracy(workspace.run_dir(ref.removeprefix("run:")))
    share = "?" if judged is None else f"{100 * judged.tuned:.0f}"
    return t("{name}: right on {share} % of unseen pairs", name=store.name(workspace, ref[4:]), share=share)


st.subheader(t("Settings"))
if recipe.objective == "ppo":
    _judge()
columns = st.columns(3)
for number, path in enumerate(recipe.basic):
    with columns[number % 3]:
        _field(path)
with st.expander(t("Advanced")):
    unused = "adapter_args." if recipe.adapter == "full" else "adapter_args.block_size"
    rest = [
        path
        for path in settings.fields()
        if path not in recipe.basic and path not in HIDDEN and not path.startswith(("objective_args.", unused))
    ] + list(OBJECTIVE_FIELDS.get(recipe.objective, ()))
    columns = st.columns(3)
    for number, path in enumerate(rest):
        with columns[number % 3]:
            _field(path)
if overrides and st.button(t("Back to the defaults"), key="reset"):
    _forget_changes()
    st.rerun()

# --- what will happen, and start --------------------------------------------------------------------------------
run_spec, problems = build.build(
    workspace, recipe_name, base_ref=base.ref, dataset_id=dataset.id if dataset else None, overrides=overrides
)
assert run_spec is not None
problems += [one for one in _base.problems(base) if one not in problems]
st.subheader(t("What will happen"))
if dataset is not None and dataset.report.trainable:
    rows, _ = division.split_rows(run_spec, dataset, workspace)
    forecast = takes.duration_of(run_spec, base, dataset, workspace)
    a, b, c, d = st.columns(4)
    a.metric(t("Rows to train on"), f"{rows:,}")
    b.metric(t("Effective batch"), run_spec.train.batch_size * run_spec.train.accumulation)
    c.metric(t("Steps"), f"{division.steps(run_spec, rows):,}")
    d.metric(t("Device"), machine.facts().device)
    if forecast is not None:
        said = forecast.sentence
    else:
        said = t("It cannot be estimated: the architecture of this base is not known.")
    st.markdown(_ui.say("**{name}**: {text}", name=t("Time"), text=said))
    if rows > FIRST_TRY_ROWS and st.button(
        t("Try on {n} rows first", n=f"{FIRST_TRY_ROWS:,}"),
        icon=":material/science:",
        key="try_first",
        help=t(
            "A short run shows mistakes in the data as well as a long one. You get this form again, with fewer rows."
        ),
    ):
        few = drafts.Draft(
            recipe=recipe_name,
            base=base.ref,
            dataset=dataset.id,
            overrides={**overrides, "dataset.most_rows": FIRST_TRY_ROWS},
            reasons=[
                t(
                    "A first try on {n} of {total} rows, spread over all of them; then take all.",
                    n=f"{FIRST_TRY_ROWS:,}",
                    total=f"{dataset.good_rows:,}",
                )
            ],
            rules=["N5", "O9"],
            came_from=t("A first try"),
        )
        _ui.go("train", draft=drafts.save(workspace, few))
if run_spec.objective == "kto" and run_spec.objective_args.weights and len(run_spec.objective_args.weights) == 2:
    counts = (dataset.report.label_counts if dataset is not None else None) or {}
    good, bad = run_spec.objective_args.weights
    st.caption(
        t(
            "Weights: {good} for each of {n_good} good rows, {bad} for each of {n_bad} bad ones. Unless you set them, "
            "they follow from these counts, so that both kinds weigh about alike (arXiv 2402.01306).",
            good=f"{good:g}",
            bad=f"{bad:g}",
            n_good=counts.get("true", 0),
            n_bad=counts.get("false", 0),
        )
    )


def _memory_bar(estimate: memory.Estimate, memory_bytes: int) -> go.Figure:
    """One bar of the parts, and a line where the memory of the device ends."""
    figure, words = go.Figure(), memory.part_words()
    for name, size_bytes in (estimate.parts or {}).items():
        hover = f"{words[name]}: {memory.size_words(size_bytes)}<extra></extra>"
        figure.add_bar(
            x=[size_bytes / 2**30], y=[""], name=words[name], orientation="h", width=0.5, hovertemplate=hover
        )
    figure.add_vline(x=memory_bytes / 2**30, line_dash="dot", line_color="gray", annotation_text=t("all there is"))
    figure.update_layout(
        barmode="stack",
        xaxis_title="GiB",
        height=190,
        margin={"l": 8, "r": 8, "t": 24, "b": 8},
        legend={"orientation": "h", "traceorder": "normal", "y": -0.9},
    )
    figure.update_xaxes(range=[0, 1.15 * max(memory_bytes, estimate.total_bytes) / 2**30])
    return figure


estimate, memory_bytes = takes.memory_of(run_spec, base, dataset, workspace), machine.facts().device_memory_bytes
st.markdown(_ui.say("**{name}**: {text}", name=t("Memory"), text=memory.verdict(estimate, memory_bytes)))
if estimate.parts is not None:
    st.plotly_chart(
        _memory_bar(estimate, memory_bytes),
        key="memory",
        alt=t("The memory the run needs, part by part, beside all there is"),
    )
    with st.expander(t("Memory, part by part")):
        words = memory.part_words()
        _ui.bullets(
            t("{name}: {text}", name=words[name], text=memory.size_words(size)) for name, size in estimate.parts.items()
        )
        if estimate.runs:
            st.caption(t("Corrected by {n} finished runs of this kind on this machine.", n=estimate.runs))
        else:
            st.caption(
                t(
                    "An estimate from the base's shape, for rows as long as the longest here. No run of this kind has "
                    "finished on this machine yet; the first one corrects it."
                )
            )
        st.caption(t("Before the first step the longest batch is tried once, so that running out shows at once."))
with st.expander(t("What each device can do")):
    _base.devices()
with st.expander(t("The whole specification (spec.json)")):
    st.code(schema.encode(run_spec).decode(), language="json")

if problems:
    st.error(t("This run cannot start yet:"))
    _ui.problem_list(problems)
waiting = sum(run.status in store.LIVE for run in store.list_all(workspace)[:50])
if waiting:
    st.info(t("{n} run is going on or waiting; this one waits its turn.", n=waiting))

name = st.text_input(t("Name of the run"), placeholder=t("optional"), key="run_name")
# The second click of a double click comes with the same specification a moment later and must not start a second run.
DOUBLE_CLICK_S = 5.0
click = hashlib.sha256(schema.encode(run_spec) + name.encode()).hexdigest()[:16]
started = st.session_state.get("started", {})
if time.monotonic() - started.get(click, (0.0, ""))[0] > DOUBLE_CLICK_S:
    started.pop(click, None)
if st.button(t("Start"), type="primary", icon=":material/play_arrow:", disabled=bool(problems), key="start"):
    token, run_id = st.session_state.setdefault("click_token", secrets.token_hex(8)), started.get(click, (0, ""))[1]
    try:
        run_id = run_id or lifecycle.start(workspace, run_spec, name=name.strip() or None, click_id=f"{click}-{token}")
    except limits.Refused as refused:
        st.error(t("This run cannot start yet:"))
        _ui.problem_list(refused.problems)
    except OSError as error:
        st.error(_ui.say("The run could not be written: {reason}. Free some space and try again.", reason=error))
    else:
        st.session_state["started"] = {**started, click: (time.monotonic(), run_id)}
        st.session_state["click_token"] = secrets.token_hex(8)
        _ui.choose("run", run_id)
        _ui.go("runs")
