"""MMLU's 57 subjects and their categories; questions with options."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from utils.config import UsageError

LETTERS = "ABCD"
CATEGORIES = ("STEM", "Humanities", "Social Sciences", "Other")

# The four groups are those of the benchmark's authors with one exception: anatomy is STEM here, as
# in RADIO's published results, where they put it under Other with the health subjects.
_SUBJECTS = {
    "STEM": """
        abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science
        college_mathematics college_physics computer_security conceptual_physics electrical_engineering
        elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science
        high_school_mathematics high_school_physics high_school_statistics machine_learning""",
    "Humanities": """
        formal_logic high_school_european_history high_school_us_history high_school_world_history
        international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy
        prehistory professional_law world_religions""",
    "Social Sciences": """
        econometrics high_school_geography high_school_government_and_politics
        high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality
        professional_psychology public_relations security_studies sociology us_foreign_policy""",
    "Other": """
        business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing
        medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology""",
}
CATEGORY = {subject: category for category, subjects in _SUBJECTS.items() for subject in subjects.split()}


def subject_name(subject: str) -> str:
    """The name as the benchmark's files spell it: lower case, underscores for spaces."""
    return re.sub(r"[\s_]+", "_", subject.strip().lower())


def category_of(subject: str) -> str:
    """The category, one of `CATEGORIES`, of a subject written with underscores or spaces.

    Raises:
        UsageError: the subject is none of the 57; the message names it and the nearest one.
    """
    name = subject_name(subject)
    if name not in CATEGORY:
        raise UsageError(unknown_subject(subject))
    return CATEGORY[name]


def unknown_subject(subject: str) -> str:
    """The sentence that says so, with the nearest of the 57 names."""
    close = difflib.get_close_matches(subject_name(subject), CATEGORY, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "MMLU has 57, for example 'anatomy'"
    return f"unknown MMLU subject {subject!r}; {hint}"


def format_question(question: str, choices: Sequence[str]) -> str:
    """The question, then a line ``A. ...`` to ``D. ...`` for each of the four choices.

    Raises:
        ValueError: there are not four choices.
    """
    lines = [f"{letter}. {choice.strip()}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join([question.strip(), *lines])
