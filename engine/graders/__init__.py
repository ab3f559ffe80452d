"""Is this answer right? One concept for data, reports and rewards: a grader, a name with parameters, from 0 to 1.

make(ref) makes one of a name and parameters and refuses with everything that is wrong; Grader.grade(answer, row) is a
Grade. presets() are those of recipes/graders. offers says which fit the rows of a data set and tries one on its answers.
No code of a user runs, and nothing runs long.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.graders.grade import Grade, Grader, Refused
    from engine.graders.making import make, names
    from engine.graders.preset_files import Preset, presets
else:
    __getattr__ = lazily(__name__, grade="Grade Grader Refused", making="make names", preset_files="Preset presets")

__all__ = ["Grade", "Grader", "Preset", "Refused", "make", "names", "presets"]
