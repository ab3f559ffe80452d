"""What this version trains: the objectives, the rows each of them reads, adapters and quantisation."""

from __future__ import annotations

# What this version can train. The other values of the spec are there for recipes still to come.
OBJECTIVES = ("sft", "dpo", "kto", "reward", "ppo")
# What an objective that is not the recipe's own reads: `--set objective=dpo` turns any recipe into one for pairs.
OBJECTIVE_DATA = {
    "sft": ["prompt-completion", "language-modeling"],
    "dpo": ["preference"],
    "kto": ["unpaired-preference"],
    "reward": ["preference"],
    "ppo": ["prompt-only"],
}
ADAPTERS = ("full", "lora", "oft")
QUANTIZE = ("none", "8bit", "4bit")
# Below, preferences hardly hold the model to its reference; above, they hardly move it. The guide's 0.5 to 1.0 is inside.
LEAST_BETA, MOST_BETA, USUAL_BETA = 0.001, 1.0, 0.1
# PPOConfig of TRL 1.12 (kl_coef); arXiv 2203.02155, appendix C.4, takes 0.02.
USUAL_PPO_BETA = 0.05
# KTO compares the answers of a batch with each other (kto_trainer.py of TRL 1.12 refuses 1).
LEAST_KTO_BATCH = 4
