"""What is to be run: one plan of spec, base, data, memory, time and problems, worked out once and read by everything.

plans.make(workspace, recipe, base=..., dataset=..., overrides=...) gives a Plan; drafts hands it from page to page;
chains and judges know how the stages of the guide's road follow each other; tries begins with few rows; repeat writes the
command that makes a run again.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.plan.plan import Plan
else:
    __getattr__ = lazily(__name__, plan="Plan")

__all__ = ["Plan", "chains", "checks", "drafts", "judges", "plans", "repeat", "steps", "take_along", "targets", "tries"]
