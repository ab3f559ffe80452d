"""Chat: the same question to a base and to runs, side by side; votes on the answers become data to train on."""

from __future__ import annotations

from typing import Any

import streamlit as st
from streamlit.components.v2 import component

from engine import events, limits, machine
from engine.chat import child, protocol, votes
from engine.check import DatasetError
from engine.forgetting import recovery
from engine.models import bases
from engine.runs import store
from engine.words import t
from pages import _failures, _forgetting_recover, _ui

_ui.heading(
    t("Chat"), t("Ask the base and your runs the same thing and see what changed. Your votes become rows to train on.")
)

if limits.on():
    st.info(
        t("Chat is not part of this demo: every visitor would need a model in memory. Run Tunebook yourself to use it.")
    )
    raise _ui.PageEnds

workspace = _ui.workspace()
LETTERS = "ABCDEFGH"
# Held-out prompts that are one click away, and how much of each its button says.
MOST_OFFERED, LABEL_CHARACTERS = 4, 60

# What a reader of the screen says when an answer is there. The element stays and its text changes: one that comes with its
# text is not read. The text is a model's: it is set as text, never as HTML.
_announced = component(
    "tunebook_announced",
    html='<p role="status" aria-live="polite"></p>',
    css="p { position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden; clip-path: inset(50%); }",
    js="""
export default function ({ parentElement, data }) {
  const place = parentElement.querySelector("p");
  if (place.textContent !== data.text) place.textContent = data.text;
}
""",
)


def _title(model: str, names: dict[str, str]) -> str:
    ref, at, intruders = protocol.named(model)
    if at is not None:
        words = {"name": _title(ref, names), "part": f"{100 * at:g}"}
        if intruders:
            return t("{name}, intruder dimensions less {part} %", **words)
        return t("{name}, {part} % of the way", **words)
    if ref.startswith("run:"):
        return names.get(ref.removeprefix("run:"), ref)
    return bases.describe(ref, workspace).title


def _point(run_id: str | None) -> str | None:
    """Return the model on the way back from a run that the address asks for; None where it names none that can be had."""
    try:
        at = float(st.query_params.get("at", "nan"))
    except ValueError:
        return None
    intruders = st.query_params.get("way") == "intruders"
    if not run_id or not 0 <= at <= 1 or recovery.problems(workspace, run_id, intruders=intruders):
        return None
    return protocol.at_point(f"run:{run_id}", at, intruders=intruders)


def _keep(model: str) -> None:
    """Offer to keep the point that is chatted with, or to go back to the handle."""
    ref, at, intruders = protocol.named(model)
    run_id = ref.removeprefix("run:")
    with st.container(horizontal=True):
        if st.button(t("Save this point"), icon=":material/save:", key="save_point"):
            _forgetting_recover.save(workspace, run_id, at or 0.0, intruders=intruders)
        if st.button(t("Back to the handle"), icon=":material/undo:", key="to_way"):
            _forgetting_recover.look(run_id)


def _conversation() -> list[dict[str, Any]]:
    """The questions so far, each with the models asked, their answers and how each ended."""
    return st.session_state.setdefault("chat_turns", [])


def _messages(turns: list[dict[str, Any]], model: str) -> list[protocol.Message]:
    """Return a conversation as one model knows it: every question, and its own answers."""
    found: list[protocol.Message] = []
    for turn in turns:
        found.append({"role": "user", "content": turn["question"]})
        if turn["answers"].get(model):
            found.append({"role": "assistant", "content": turn["answers"][model]})
    return found


def _said(place: Any, text: str) -> None:
    """Show what a model wrote as it is, line by line; nothing in it is Markdown."""
    place.markdown(_ui.lines(text) or " ")


def _answer(turn: dict[str, Any], columns: list[Any]) -> None:
    """Let every model answer the last question, and show the words as they come."""
    places = {m: (column.empty(), column.empty()) for m, column in zip(turn["models"], columns, strict=True)}
    asked = [protocol.Turn(model=m, messages=_messages(_conversation(), m)) for m in turn["models"]]
    turn["waiting"] = False
    for model in turn["models"]:
        turn["ended"][model] = t("stopped")  # until it says otherwise: a click elsewhere ends the writing here
        places[model][1].caption(t("waiting for its turn"))
    for reply in child.ask(workspace, asked, turn["sampling"]):
        text, state = places[reply.model]
        if isinstance(reply, protocol.State):
            state.caption(t("loading the model ...") if reply.state == "loading" else t("writing ..."))
        elif isinstance(reply, protocol.AnswerPart):
            turn["answers"][reply.model] = turn["answers"].get(reply.model, "") + reply.text
            _said(text, turn["answers"][reply.model])
        elif isinstance(reply, protocol.Failed):
            turn["ended"][reply.model] = t("{message}; {fix}", message=reply.message, fix=reply.fix)
            state.error(_ui.plain(turn["ended"][reply.model]))
        else:
            words = {"end": "", "length": t("cut at the longest answer"), "stopped": t("stopped")}
            pace = t("{n} tokens in {s} s", n=reply.tokens, s=f"{reply.seconds:.1f}")
            turn["ended"][reply.model] = " · ".join(part for part in (pace, words[reply.ended]) if part)
            state.caption(_ui.plain(turn["ended"][reply.model]))


@_failures.kept
def _vote(number: int, turn: dict[str, Any], model: str) -> None:
    """Take a thumb over: 1 is up, 0 is down, None takes it back."""
    value = st.session_state[f"thumb_{turn['id']}_{model}"]
    prompt = _messages([*_conversation()[:number], {**turn, "answers": {}}], model)
    votes.vote(workspace, prompt, turn["answers"][model], model, None if value is None else bool(value))


@_failures.kept
def _prefer(number: int, turn: dict[str, Any]) -> None:
    """Take over which answer is best. A pair needs one question, so it holds what went before as the best one knew it."""
    best = st.session_state[f"best_{turn['id']}"] or None
    answers = {m: a for m, a in turn["answers"].items() if a}
    of = best or turn.get("best") or turn["models"][0]
    prompt = _messages([*_conversation()[:number], {**turn, "answers": {}}], of)
    if turn.get("best") and turn["best"] != best:  # what was said before may stand under another conversation
        before = _messages([*_conversation()[:number], {**turn, "answers": {}}], turn["best"])
        votes.prefer(workspace, before, answers, None)
    turn["best"] = best
    votes.prefer(workspace, prompt, answers, best)


def _beside(count: int) -> list[Any]:
    """Return a place for each answer. Two stay beside each other on a phone too, or nobody could compare them."""
    row = st.container(horizontal=True, wrap=count > 2, gap="medium")
    return [row.container(width="stretch") for _ in range(count)]


def _announce(turns: list[dict[str, Any]], names: dict[str, str]) -> None:
    """Let a reader of the screen say the newest answers."""
    said = []
    if turns and not turns[-1]["waiting"]:
        said = [f"{_title(model, names)}: {turns[-1]['answers'].get(model, '')}" for model in turns[-1]["models"]]
    _announced(key="announced", data={"text": "\n".join(said)})


def _held_out(run_id: str | None) -> str | None:
    """Offer prompts of a run's data that it was not trained on; returns one that is to be asked now."""
    known = _ui.known_run(run_id)
    if known is None:
        return None
    rows = store.load_spec(workspace, known).dataset
    kept = f"prompts_{known}"
    if kept not in st.session_state:
        found = events.read(workspace.run_dir(known))[0]
        asked = dict.fromkeys(event.prompt for event in found if isinstance(event, events.Sample))
        st.session_state[kept] = [prompt for prompt in asked if prompt.strip()][:MOST_OFFERED]
    offered = st.session_state[kept]
    if not offered:
        return None
    is_held_out = bool(rows.eval_id or rows.eval_share)
    st.caption(t("Prompts it was not trained on:") if is_held_out else t("Prompts of its data:"))
    with st.container(horizontal=True):
        for number, prompt in enumerate(offered):
            short = prompt if len(prompt) <= LABEL_CHARACTERS else prompt[: LABEL_CHARACTERS - 1] + "…"
            if st.button(_ui.plain(short), key=f"held_out_{number}"):
                return prompt
    return None


def _show(number: int, turn: dict[str, Any], names: dict[str, str]) -> None:
    with st.chat_message("user"):
        _said(st, turn["question"])
    columns = _beside(len(turn["models"]))
    for index, (model, column) in enumerate(zip(turn["models"], columns, strict=True)):
        letter = f"{LETTERS[index]}: " if len(turn["models"]) > 1 else ""
        column.markdown(f"**{_ui.plain(letter + _title(model, names))}**")
    if turn["waiting"]:
        st.button(t("Stop writing"), icon=":material/stop_circle:", key=f"stop_{turn['id']}")
        _answer(turn, columns)
        st.rerun()
    for model, column in zip(turn["models"], columns, strict=True):
        answer = turn["answers"].get(model, "")
        _said(column, answer)
        ended = turn["ended"].get(model, "")
        (column.caption if answer or ended == t("stopped") else column.info)(_ui.plain(ended) or " ")
        if answer.strip():
            with column:
                st.feedback("thumbs", key=f"thumb_{turn['id']}_{model}", on_change=_vote, args=(number, turn, model))
    given = [m for m in turn["models"] if turn["answers"].get(m, "").strip()]
    if len({turn["answers"][m] for m in given}) > 1:
        words = {m: t("{letter} is better", letter=LETTERS[turn["models"].index(m)]) for m in given}
        words[""] = t("no vote")
        st.radio(
            t("Which answer is best?"),
            list(words),
            index=None,
            format_func=lambda name: _ui.plain(words[name]),
            horizontal=True,
            key=f"best_{turn['id']}",
            on_change=_prefer,
            args=(number, turn),
        )


def _settings() -> protocol.Sampling:
    with st.expander(t("How answers are drawn: the same for every model")):
        one, two, three, four = st.columns(4)
        temperature = one.slider(
            t("Temperature"), 0.0, 2.0, 0.7, 0.1, key="chat_temperature",
            help=t("0 always takes the likeliest word; higher is more varied."),
        )  # fmt: skip
        top_p = two.slider(t("Top p"), 0.05, 1.0, 0.95, 0.05, key="chat_top_p",
                           help=t("Draw only from the likeliest words that together have this probability."))  # fmt: skip
        most = three.number_input(t("Longest answer (tokens)"), 1, 4096, 256, key="chat_most_tokens")
        seed = four.number_input(
            t("Seed"), 0, 2**32 - 1, 0, key="chat_seed", help=t("The same seed gives the same answer.")
        )
    return protocol.Sampling(temperature=temperature, top_p=top_p, most_tokens=int(most), seed=int(seed))


def _prompts() -> str | None:
    """Offer the saved prompts; returns one that is to be asked now."""
    saved = votes.saved_prompts(workspace)
    with st.expander(t("Saved prompts ({n})", n=len(saved))):
        text = st.text_area(t("A prompt to keep"), key="chat_prompt", height=80)
        if st.button(t("Save this prompt"), key="save_prompt", disabled=not text.strip()):
            votes.save_prompt(workspace, text)
            st.rerun()
        if not saved:
            return None
        chosen = st.selectbox(t("Saved"), saved, key="saved_prompt", format_func=lambda p: p[:100])
        one, two, _ = st.columns([1, 1, 3])
        if two.button(t("Delete it"), key="delete_prompt"):
            votes.forget_prompt(workspace, chosen)
            st.rerun()
        return chosen if one.button(t("Ask this"), key="ask_saved", type="primary") else None


def _votes() -> None:
    """Say what the votes come to so far, and make data sets of them."""
    marked, pairs = votes.rows(workspace, "votes"), votes.rows(workspace, "pairs")
    if not marked and not pairs:
        st.caption(
            t("Thumbs up and down become rows of good and bad answers (KTO); “A is better” becomes pairs (DPO).")
        )
        return
    st.header(t("Your votes as data"))
    good = sum(row["label"] for row in marked)
    kinds: list[tuple[votes.Kind, int, str, str]] = [
        ("votes", len(marked), t("{good} good and {bad} bad answers", good=good, bad=len(marked) - good),
         t("Votes from the chat")),
        ("pairs", len(pairs), t("{n} pairs of a better and a worse answer", n=len(pairs)), t("Pairs from the chat")),
    ]  # fmt: skip
    for column, (kind, count, says, name) in zip(st.columns(2), kinds, strict=True):
        column.write(_ui.plain(says))
        if column.button(t("Make a data set and look at it"), key=f"make_{kind}", disabled=not count):
            try:
                made = votes.make_dataset(workspace, kind, name)
            except DatasetError as error:
                column.error(_ui.plain(error.problem.sentence))
                continue
            _ui.choose("dataset", made.id)
            _ui.go("data", dataset=made.id)


known = store.list_all(workspace)[:200]
names = {run.id: run.name for run in known}
choices = child.models(workspace, known)
current_run = f"run:{_ui.current('run')}"
usual = [current_run] if current_run in choices else [ref for ref in choices if ref.startswith("run:")][:1]
below = "starter"
if usual and (known_run := _ui.known_run(usual[0].removeprefix("run:"))):
    below = store.load_spec(workspace, known_run).base.pinned
point = _point(_ui.current("run"))
choices += [point] if point is not None else []
usual = [*([below] if below in choices else []), *usual, *([point] if point is not None else [])]
chosen = st.multiselect(
    t("Models"),
    choices,
    default=usual,
    format_func=lambda ref: _title(ref, names),
    max_selections=child.MOST_MODELS,
    key="chat_models",
    placeholder=t("Choose one or more"),
    help=t("Adapters on the same base share it in memory."),
)
if len(choices) == 1:
    st.caption(t("So far there is only the starter to talk to. Every finished run appears here."))
if any(bases.describe(protocol.named(model).ref, workspace).is_toy for model in chosen):
    st.caption(t("Toy model: it knows one small world, in English. Ask for an opposite, a capital or a small sum."))
if machine.facts().device != "cpu" and child.free_slot() == "cpu":
    st.info(t("A run has the card: until it ends the processor answers, and more slowly."))
elif any(run.status == "running" for run in known):
    st.info(t("A run is training on this machine: answers are slower, and memory is shared with it."))
if point is not None:
    _keep(point)
turns = _conversation()
_announce(turns, names)  # before the answers, whose writing begins the page anew
question = _held_out(_ui.current("run")) if chosen else None
sampling = _settings()
question = _prompts() or question
for number, turn in enumerate(turns):
    _show(number, turn, names)
if turns:
    with st.container(horizontal=True):
        if st.button(t("New conversation"), icon=":material/restart_alt:", key="new_chat"):
            st.session_state["chat_turns"] = []
            st.rerun()
        if child.is_loaded(workspace) and st.button(
            t("Free the memory"),
            key="close_chat",
            help=t("It is freed by itself after a few minutes without a question."),
        ):
            child.close(workspace)
            st.rerun()
_votes()
question = st.chat_input(t("Ask something"), key="chat_input", disabled=not chosen) or question
if question and chosen:
    count = st.session_state["chat_count"] = st.session_state.get("chat_count", 0) + 1
    turns.append(
        {"id": count, "question": question, "models": list(chosen), "answers": {}, "ended": {}, "waiting": True,
         "sampling": sampling, "best": None}
    )  # fmt: skip
    st.rerun()
