"""Is this answer right? One concept for data, reports and rewards: a grader, a name with parameters, from 0 to 1.

make(ref) makes one of a name and parameters and refuses with everything that is wrong; Grader.grade(answer, row) is a
Grade. presets() are those of recipes/graders. offer(rows) says which fit canonical rows, trial(grader, rows) how one finds
their right answers.
No code of a user runs, and nothing runs long.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.graders.grade import Grade, Grader, Refused
    from engine.graders.making import make
    from engine.graders.offers import Offer, Trial, as_asked, offer, trial
    from engine.graders.preset_files import Preset, presets
else:
    __getattr__ = lazily(
        __name__,
        grade="Grade Grader Refused",
        making="make",
        offers="Offer Trial as_asked offer trial",
        preset_files="Preset presets",
    )

__all__ = [
    "Grade",
    "Grader",
    "Offer",
    "Preset",
    "Refused",
    "Trial",
    "as_asked",
    "make",
    "offer",
    "offers",
    "presets",
    "trial",
]
