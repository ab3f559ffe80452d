"""What was forgotten, over one run, its line and many: evaluations, stages, sweeps, claims of the guide, what to do; and
what the base can do already with examples."""

__all__ = [
    "adoption",
    "claims",
    "evaluations",
    "examples",
    "foresight",
    "recovery",
    "recovery_curve",
    "remedies",
    "stages",
    "summary",
    "sweep_drive",
    "sweep_plan",
]
