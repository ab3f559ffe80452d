"""Guide: the written guide behind the advisor: methods, learning paths, practices, questions, every rule judged."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import streamlit as st

from engine import starter
from engine.advise import guide
from engine.data import datasets
from engine.models.made import made_by
from engine.plan import drafts
from engine.runs import store
from engine.spec import recipes as spec_recipes
from engine.spec import settings as spec_settings
from engine.words import t
from pages import _ui

_ui.heading(
    t("Guide"),
    t(
        "The fine-tuning guide behind the advisor, rule by rule, in its own words. Each rule was held against papers and "
        "sources; where it does not hold, you see what Tunebook uses instead."
    ),
)

workspace = _ui.workspace()
recipes = spec_recipes.recipes()  # read once: a page has dozens of questions about them


class Method(NamedTuple):
    """One of the guide's seven methods: its row in the table of methods, what it optimises or adds to the weights as its
    paper writes it, that in words, the sections that speak of it, and the recipes that train it."""

    rule: str
    name: str
    formula: str
    words: str
    tables: tuple[str, ...]
    recipes: tuple[str, ...]


METHODS = (
    Method(
        "B1", t("Full fine-tuning (SFT)"),
        r"\mathcal{L}(\theta) = -\sum_t \log \pi_\theta(y_t \mid x, y_{<t})",
        t("cross-entropy on the answers' tokens; every weight moves"), ("sft",), ("full",),
    ),
    Method(
        "B2", t("LoRA and QLoRA"),
        r"W' = W + \frac{\alpha}{r}\,B A,\quad B \in \mathbb{R}^{o \times r},\ A \in \mathbb{R}^{r \times d}",
        t("B is as tall, A as wide as W; r is small (arXiv 2106.09685). QLoRA holds W in 4 bits (arXiv 2305.14314)"),
        ("lora",), ("lora", "qlora"),
    ),
    Method(
        "B3", t("OFT and QOFT"), r"W' = W R^{\top},\quad R = (I - Q)(I + Q)^{-1},\quad Q = -Q^{\top}",
        t("R turns and never stretches, so norms and angles stay (arXiv 2306.07280)"), ("oft",), ("oft", "qoft"),
    ),
    Method(
        "B4", t("PPO"),
        r"\max_\theta\ \mathbb{E}\big[R(x, y)\big] - \beta\,\mathrm{KL}\big(\pi_\theta \,\|\, \pi_\mathrm{ref}\big)",
        t("the reward model's score, held near the reference (arXiv 2203.02155)"), ("ppo",), ("reward", "ppo"),
    ),
    Method(
        "B5", t("DPO"),
        r"-\log \sigma\!\Big(\beta \log\frac{\pi_\theta(y_w|x)}{\pi_\mathrm{ref}(y_w|x)}"
        r" - \beta \log\frac{\pi_\theta(y_l|x)}{\pi_\mathrm{ref}(y_l|x)}\Big)",
        t("the better answer gains on the worse, measured from the reference (arXiv 2305.18290)"), ("dpo",), ("dpo",),
    ),
    Method(
        "B6", t("KTO"),
        r"\mathbb{E}\big[\lambda_y - v(x, y)\big],\quad v = \lambda_D\,\sigma\big(\beta(r - z_0)\big)"
        r"\ \text{or}\ \lambda_U\,\sigma\big(\beta(z_0 - r)\big)",
        t("single answers, good or bad, against a reference point (arXiv 2402.01306)"), ("kto",), ("kto",),
    ),
    Method(
        "B7", t("Freezing layers"),
        r"\theta_i \leftarrow \theta_i - \eta\,\nabla_{\theta_i}\mathcal{L}\ \ (i \in T),\qquad"
        r" \theta_j\ \text{stays}\ \ (j \notin T)",
        t("only the layers in T move; the others keep what pre-training put there"), ("freezing",),
        ("freeze-bottom", "freeze-top", "few-shot"),
    ),
)  # fmt: skip


class Step(NamedTuple):
    """One step of a learning path: the rule that names it, and the run on the starter that shows it."""

    rule: str
    recipe: str
    sample: str
    settings: dict[str, object]
    look_at: str


PATHS: dict[str, tuple[Step, ...]] = {
    t("For beginners"): (
        Step("O1", "full", "new-facts", {}, t("Watch the loss fall, then see what 48 invented facts cost of the old ones.")),
        Step("O2", "lora", "new-facts", {}, t("The same rows with a small adapter: the same facts, less forgotten.")),
        Step("O3", "freeze-bottom", "new-facts", {}, t("Only the upper half of the layers moves. Compare with the first.")),
        Step("O4", "full", "new-facts", {"train.replay_share": 0.0},
             t("Without general rows mixed in, forgetting is at its plainest: read the Forgetting page.")),
    ),
    t("Advanced"): (
        Step("O5", "oft", "new-facts", {}, t("Put it beside the LoRA run on the Forgetting page.")),
        Step("O6", "reward", "preference-pairs", {}, t("PPO's first half: a judge of answers, trained on pairs.")),
        Step("O7", "dpo", "preference-pairs", {}, t("Pairs feed DPO: the better answer gains on the worse.")),
        Step("O7", "kto", "good-bad", {}, t("Single labels feed KTO, however many there are of each.")),
        Step("O8", "dpo", "preference-pairs", {}, t("Two stages: this one starts from your newest run with answers.")),
    ),
    t("In practice"): (
        Step("O9", "lora", "new-facts", {"dataset.most_rows": 100},
             t("Try a few rows first; on Train a button does this for your own data.")),
        Step("O10", "lora", "new-facts", {"train.epochs": 30.0, "train.early_stopping": 0},
             t("Too many epochs: watch the held-out loss turn while the training loss falls.")),
    ),
}  # fmt: skip


def _table(rules: list[guide.Rule]) -> pd.DataFrame:
    words = _ui.verdict_words()
    return pd.DataFrame(
        [
            {
                t("Rule"): rule.id,
                t("The guide's words"): rule.spoken,
                t("In English"): t(rule.says),
                t("Verdict"): words[rule.verdict],
                t("Tunebook uses"): t(rule.value_used),
                t("Why"): t(rule.why),
                t("Source"): t(rule.source),
            }
            for rule in rules
        ]
    )


def _matches(rule: guide.Rule, wanted: str) -> bool:
    written = (rule.says, rule.when, rule.value_used, rule.why, rule.source)
    texts = (rule.id, *written, *map(t, written), *rule.phrases)
    return all(word in " ".join(texts).lower() for word in wanted.lower().split())


def _card(rule: guide.Rule) -> None:
    """One rule to be read: the guide's words, in English, and what the sources say."""
    st.markdown(_ui.say("“{phrase}” · {says}", phrase=rule.spoken, says=t(rule.says)))
    verdict = _ui.verdict_words()[rule.verdict]
    st.markdown(
        _ui.say(
            "**{verdict}.** {why} Tunebook uses: {value}.",
            verdict=verdict[0].upper() + verdict[1:],
            why=t(rule.why),
            value=t(rule.value_used),
        )
    )
    st.caption(_ui.say("{rule} · Source: {source}", rule=rule.id, source=t(rule.source)))


def _try_it(recipe: str, sample: str, settings: dict[str, object], key: str, base: str = "starter") -> None:
    """Offer a run on the starter that takes a minute, with its sample."""
    if recipe not in recipes:
        return
    if recipes[recipe].needs:
        _try_in_turn(base, key)
        return
    about = t("A run on the starter; it takes a minute.")
    if st.button(t("Try it"), key=key, icon=":material/play_arrow:", help=about):
        known = {path: value for path, value in settings.items() if path in spec_settings.fields()}
        draft = drafts.Draft(
            recipe=recipe,
            base=base,
            dataset=datasets.add_sample(workspace, starter.sample(sample)).id,
            overrides=known,
            reasons=[t("A run on the starter takes a minute.")],
            came_from=t("From the guide"),
        )
        _ui.go("train", draft=drafts.save(workspace, draft))


def _try_in_turn(base: str, key: str) -> None:
    """Offer what stands on other runs as the chain of them."""
    about = t("Three runs on the starter, one after the other: SFT, reward model and PPO.")
    if st.button(t("Try it"), key=key, icon=":material/linear_scale:", help=about):
        _ui.choose("base", base)
        _ui.go("train", chain="ppo")


# --- the parts of the page --------------------------------------------------------------------------------------


def _methods() -> None:
    rules = guide.rules()
    for method in METHODS:
        rule = rules[method.rule]
        built = [recipes[name] for name in method.recipes if name in recipes]
        with st.expander(_ui.plain(method.name), expanded=method.rule == "B1"):
            st.latex(method.formula)
            st.caption(_ui.plain(method.words))
            _card(rule)
            for recipe in built:
                st.markdown(_ui.say("**{name}**: {text}", name=t(recipe.title), text=t(recipe.when)))
                st.markdown(_ui.say("What it costs: {trade}", trade=t(recipe.trade)))
                st.table(
                    _ui.cells(
                        pd.DataFrame(
                            [
                                {
                                    t("Setting"): t(spec_settings.fields()[path].title),
                                    t("Default"): _ui.show_value(default.value),
                                    t("Source"): t(default.source),
                                    t("The guide says"): t(default.guide) if default.guide else "",
                                }
                                for path, default in recipe.defaults.items()
                            ]
                        )
                    ),
                    hide_index=True,
                )
                for size in recipe.sizes:
                    for path, default in size.set.items():
                        if default.measured:
                            told = {"size": t(size.title), "setting": t(spec_settings.fields()[path].title)}
                            told |= {"value": _ui.show_value(default.value), "measured": t(default.measured)}
                            st.caption(_ui.say("Measured on {size}: {setting} {value}: {measured}.", **told))
                _try_it(recipe.name, recipe.sample, {}, f"try_{recipe.name}")


def _newest_answers() -> str:
    """Return the newest finished run with answers as a base, else the starter."""
    for run in store.list_all(workspace)[:50]:
        told = store.load_spec(workspace, run.id)
        made = made_by(workspace.run_dir(run.id)) is not None
        if run.status == "finished" and made and told.objective == "sft" and told.adopted is None:
            return f"run:{run.id}"
    return "starter"


def _paths() -> None:
    rules = guide.rules()
    for title, steps in PATHS.items():
        st.subheader(_ui.plain(title))
        for number, step in enumerate(steps, 1):
            rule = rules[step.rule]
            with st.container(border=True):
                left, right = st.columns([6, 1], vertical_alignment="center")
                left.markdown(
                    f"**{number:d}. {_ui.plain(t(rule.says))}** “{_ui.plain(guide.without_marks(rule.phrase))}”"
                )
                left.markdown(_ui.plain(step.look_at))
                base = _newest_answers() if step.rule == "O8" else "starter"
                with right:
                    _try_it(step.recipe, step.sample, step.settings, f"step_{step.rule}_{step.recipe}", base)
    st.subheader(t("And then"))
    for name in ("O11", "O12"):
        _card(rules[name])


def _practices() -> None:
    for name in ("practice", "forgetting", "tools"):
        st.subheader(_ui.plain(t(guide.tables()[name])))
        for rule in guide.table(name):
            with st.container(border=True):
                _card(rule)


def _questions() -> None:
    for rule in guide.table("faq"):
        question = next((phrase for phrase in rule.also if phrase.endswith("？")), "")
        with st.expander(f"{_ui.plain(t(rule.when))} · {_ui.plain(question)}", expanded=True):
            _card(rule)


def _disputed() -> None:
    st.write(t("Where the guide and the sources part: what the guide says, what the sources say, and what is used."))
    for verdict in ("wrong", "disputed", "contradiction", "outdated", "unproven", "vendor claim"):
        section = [rule for rule in guide.rules().values() if rule.verdict == verdict]
        words = _ui.verdict_words()[verdict]
        st.subheader(_ui.say("{what} ({n})", what=words[0].upper() + words[1:], n=len(section)))
        st.table(
            _ui.cells(
                pd.DataFrame(
                    [
                        {
                            _ui.unbroken(t("Rule")): rule.id,
                            t("The guide says"): f"“{guide.without_marks(rule.phrase)}” {t(rule.says)}",
                            t("The sources say"): t("{why} ({source})", why=t(rule.why), source=t(rule.source)),
                            t("Tunebook uses"): t(rule.value_used),
                        }
                        for rule in section
                    ]
                )
            ),
            hide_index=True,
        )


def _all_rules(rules: list[guide.Rule], *, expanded: bool) -> None:
    scenario_tables = ("rows", "memory", "alignment")
    for name, title in guide.tables().items():
        tables = scenario_tables if name == "scenarios" else (name,)
        section = [rule for rule in rules if rule.table in tables]
        if section:
            with st.expander(_ui.say("{what} ({n})", what=t(title), n=len(section)), expanded=expanded):
                st.dataframe(_table(section), hide_index=True, alt=t("Rules of the guide with their verdicts"))


left, right = st.columns([2, 1])
wanted = left.text_input(
    t("Search"), placeholder=t("a word, a rule such as C3, 中文"), key="search", bind="query-params"
)
verdicts = _ui.verdict_words()
verdict = right.selectbox(
    t("Verdict"),
    list(verdicts),
    index=None,
    format_func=verdicts.__getitem__,
    placeholder=t("All verdicts"),
    key="verdict",
)
rules = [
    rule
    for rule in guide.rules().values()
    if (verdict is None or rule.verdict == verdict) and _matches(rule, wanted or "")
]
st.caption(t("{n} of {total} rules", n=len(rules), total=len(guide.rules())))
if not rules:
    st.info(t("No rule says that. Try fewer words, or another verdict."))
elif wanted or verdict is not None:
    _all_rules(rules, expanded=True)
else:
    parts = {
        t("Methods"): _methods,
        t("Learning paths"): _paths,
        t("Good practice"): _practices,
        t("Questions"): _questions,
        t("Disputed"): _disputed,
        t("Every rule"): lambda: _all_rules(rules, expanded=False),
    }
    # Sections, not tabs: on dark the name of a chosen tab has too little contrast.
    for title, show in parts.items():
        st.header(_ui.plain(title), divider=True)
        show()
_ui.next_step("advisor", t("Next: ask the advisor about your own data"))
