"""Any uploaded file -> Report, which names every bad row by line with where, what and what to do.

check_file(path) is all of it. records opens a file, rows checks one piece of it (quick is the way for most of a large
file), in this process or in those of pool; totals adds the pieces up and report says what was found. canonical turns a
checked row into the one form that training reads; groups puts like problems together.

A rule about                                                     stands in
a text, a label or an optional column by itself                  value_rules
a message, or the order of a conversation                        message_rules
a row of one type: a pair, an answer, steps                      row_rules
the keys of a row: whether it is of the file's layout            layout_rules, and keys for one that stands twice
what stands in the texts: marks, placeholders, what is personal  content_rules, with a hit for it in scan
all rows together                                                file_rules; window for a base, overlap for other data,
                                                                 columns for a table that is no rows

Each has its words in engine/words/rules.py, and in tests/cases a file that breaks it. Why a record or a file cannot be
read at all, engine.read says.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.check.file import check_file
    from engine.check.records import checked_mapping, opened
    from engine.check.report import DatasetError, Report, kind_of, os_problem, problem_to_json
else:
    __getattr__ = lazily(
        __name__,
        file="check_file",
        records="checked_mapping opened",
        report="DatasetError kind_of os_problem problem_to_json Report",
    )

__all__ = [
    "DatasetError",
    "Report",
    "apart",
    "canonical",
    "check_file",
    "checked_mapping",
    "groups",
    "kind_of",
    "opened",
    "os_problem",
    "problem_to_json",
    "text_files",
]
