"""Any uploaded file -> Report, which names every bad row by line with where, what and what to do.

check_file(path) is all of it; the rules of a row stand in rules.py and content.py, the quick way in scan.py; canonical
turns a checked row into the one form that training reads.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.check.file import check_file, checked_mapping, opened
    from engine.check.report import DatasetError, Report, os_problem, problem_to_json
    from engine.check.rules import meant_label
else:
    __getattr__ = lazily(
        __name__,
        file="check_file checked_mapping opened",
        report="DatasetError os_problem problem_to_json Report",
        rules="meant_label",
    )

__all__ = [
    "DatasetError",
    "Report",
    "canonical",
    "check_file",
    "checked_mapping",
    "meant_label",
    "opened",
    "os_problem",
    "problem_to_json",
]
