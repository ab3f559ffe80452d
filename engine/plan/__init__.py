"""What is to be run: one plan of spec, base, data, memory, time and problems, worked out once.

build.build(workspace, recipe, ...) makes it; drafts hands it from page to page; chains and judges know how SFT, reward
model and PPO follow each other.
"""

__all__ = ["build", "chains", "checks", "drafts", "judges", "repeat", "takes"]
