"""The Guide page's part on methods: the guide's rule of one, its formula, and the recipes that train it."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import streamlit as st

from engine.advise import guide
from engine.spec import recipes as spec_recipes
from engine.spec import settings as spec_settings
from engine.words import t
from pages import _guide_rules, _ui


class Method(NamedTuple):
    """One of the guide's seven methods: its row in the table of methods, what it does in plain words, what it optimises or
    adds to the weights as its paper writes it, that in words, the sections that speak of it, and the recipes that train
    it."""

    rule: str
    name: str
    plain: str
    formula: str
    words: str
    tables: tuple[str, ...]
    recipes: tuple[str, ...]


def methods() -> tuple[Method, ...]:
    """Return the seven methods, in the visitor's language."""
    return (
        Method(
            "B1", t("Full fine-tuning (SFT)"),
            t("Every number in the model may change. It can learn the most, and forget the most."),
            r"\mathcal{L}(\theta) = -\sum_t \log \pi_\theta(y_t \mid x, y_{<t})",
            t("cross-entropy on the answers' tokens; every weight moves"), ("sft",), ("full",),
        ),
        Method(
            "B2", t("LoRA and QLoRA"),
            t("The model stays as it is, and small additions learn the difference. With QLoRA it is held in 4 bits."),
            r"W' = W + \frac{\alpha}{r}\,B A,\quad B \in \mathbb{R}^{o \times r},\ A \in \mathbb{R}^{r \times d}",
            t("B is as tall, A as wide as W; r is small (arXiv 2106.09685). QLoRA holds W in 4 bits (arXiv 2305.14314)"),
            ("lora",), ("lora", "qlora"),
        ),
        Method(
            "B3", t("OFT and QOFT"),
            t("The weights are turned and never stretched, which is meant to keep more of what the model knew."),
            r"W' = W R^{\top},\quad R = (I - Q)(I + Q)^{-1},\quad Q = -Q^{\top}",
            t("R turns and never stretches, so norms and angles stay (arXiv 2306.07280)"), ("oft",), ("oft", "qoft"),
        ),
        Method(
            "B4", t("PPO"),
            t("The model writes answers, a judge scores them, and it learns to write what scores well."),
            r"\max_\theta\ \mathbb{E}\big[R(x, y)\big] - \beta\,\mathrm{KL}\big(\pi_\theta \,\|\, \pi_\mathrm{ref}\big)",
            t("the reward model's score, held near the reference (arXiv 2203.02155)"), ("ppo",), ("reward", "ppo"),
        ),
        Method(
            "B5", t("DPO"),
            t("From pairs of a better and a worse answer it learns to prefer the better. No judge is needed."),
            r"-\log \sigma\!\Big(\beta \log\frac{\pi_\theta(y_w|x)}{\pi_\mathrm{ref}(y_w|x)}"
            r" - \beta \log\frac{\pi_\theta(y_l|x)}{\pi_\mathrm{ref}(y_l|x)}\Big)",
            t("the better answer gains on the worse, measured from the reference (arXiv 2305.18290)"), ("dpo",), ("dpo",),
        ),
        Method(
            "B6", t("KTO"),
            t("From single answers marked good or bad it learns to give more of the good kind."),
            r"\mathbb{E}\big[\lambda_y - v(x, y)\big],\quad v = \lambda_D\,\sigma\big(\beta(r - z_0)\big)"
            r"\ \text{or}\ \lambda_U\,\sigma\big(\beta(z_0 - r)\big)",
            t("single answers, good or bad, against a reference point (arXiv 2402.01306)"), ("kto",), ("kto",),
        ),
        Method(
            "B7", t("Freezing layers"),
            t("Only some of the layers learn; the others stay as they were."),
            r"\theta_i \leftarrow \theta_i - \eta\,\nabla_{\theta_i}\mathcal{L}\ \ (i \in T),\qquad"
            r" \theta_j\ \text{stays}\ \ (j \notin T)",
            t("only the layers in T move; the others keep what pre-training put there"), ("freezing",),
            ("freeze-bottom", "freeze-top", "few-shot"),
        ),
    )  # fmt: skip


def show(method: Method) -> None:
    """One method: what it does to the weights, what the guide and the sources say, and each of its recipes."""
    recipes = spec_recipes.recipes()
    st.markdown(_ui.plain(method.plain))
    _guide_rules.card(guide.rules()[method.rule])
    for name in method.recipes:
        if name in recipes:
            _recipe(recipes[name])
    with st.expander(t("As a formula")):
        st.latex(method.formula)
        st.caption(_ui.plain(method.words))


def _recipe(recipe: spec_recipes.Recipe) -> None:
    fields = spec_settings.fields()
    st.markdown(_ui.say("**{name}**: {text}", name=t(recipe.title), text=t(recipe.when)))
    st.markdown(_ui.say("What it costs: {trade}", trade=t(recipe.trade)))
    rows = [
        {
            t("Setting"): t(fields[path].title),
            t("Default"): _ui.show_value(default.value),
            t("Source"): t(default.source),
            t("The guide says"): t(default.guide) if default.guide else "",
        }
        for path, default in recipe.defaults.items()
    ]
    st.table(_ui.cells(pd.DataFrame(rows)), hide_index=True)
    for size in recipe.sizes:
        for path, default in size.set.items():
            if default.measured:
                told = {"size": t(size.title), "setting": t(fields[path].title)}
                told |= {"value": _ui.show_value(default.value), "measured": t(default.measured)}
                st.caption(_ui.say("Measured on {size}: {setting} {value}: {measured}.", **told))
    _guide_rules.try_it(recipe.name, recipe.sample, {}, f"try_{recipe.name}")
