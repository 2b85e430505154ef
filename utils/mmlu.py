"""MMLU: its subjects and their categories, questions with options, letters read from answers, scores.

Nothing here reads or writes files.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from utils.config import UsageError
from utils.intervals import RESAMPLES, bootstrap

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


# ---------------------------------------------------------------- the letter of an answer
# A letter counts only where the text marks it as a label: otherwise "A dog", "vitamin C" and
# "hepatitis B" would be read as answers.
_LETTER = r"([A-Da-d])(?!\w)"

# What may follow a letter that is a label.
_LABEL_END = re.compile(
    r"""  \s*(?:$|\n|</)                           # the end of the text, the line or the element
        | [)\]}]                                   # B)   (B)   [B]
        | ["'”’](?!\w)                             # 'B', but not D'Alembert
        | \.(?!\s+[A-Z]\.\s)(?=\s|$|\d|\w\w|["(])  # B. text, but not D.C., a.m. or the initials of B. F. Skinner
        | :(?=\s|$|\d|\w\w|["(])                   # B: text, but not A:B
        | [,;!](?=\s|$)
        | \s+[-–—]\s+(?=[^\W\d])                   # B - text, but not the formula c - 5
        | \s+\((?=\w)                              # B (text)
        | \s+(?:because|since|based\ on|according\ to)\b
    """,
    re.VERBOSE,
)
# What shows, behind a letter, that it is the first of several.
_MORE_LETTERS = re.compile(
    r"""  [\s.,:;()\]}"'”’]* (?:and\b|or\b|[&/+]) \s*     # (B) or (C);  B, or C
            (?: [(\["'][A-Da-d]\b | [B-D](?![\w'+-]) | [Aa-d](?=\s*(?:[.,;:)]|$)) )
        | [\s)\]}"']* , \s* (?:(?i:option|choice)\s+)? \(?[A-Da-d](?=\s*(?:[.,;:)/&]|$|and\b|or\b))   # A, B and C
        | [.):\s]+ \(?[A-D](?=[.):]|\s*$)                                  # A. B. C.
    """,
    re.VERBOSE,
)
_FILLER = (
    r"(?:\s|[:=>–—\"'“‘(\[{-]|\b(?:is|was|would|should|must|will|be|the|that|it|correct|right|best|most|likely"
    r"|final|option|choice|letter|answer|to|this|question)\b){0,40}"
)
# Places where a text states its answer.
_STATEMENTS = [
    re.compile(pattern + _LETTER, re.IGNORECASE)
    for pattern in (
        r"(?<!wrong )(?<!incorrect )(?<!not the )(?<!not an )(?<!if the )(?<!whether the )\banswer\b" + _FILLER,
        r"\b(?<!not the )(?:correct|right|best)\s+(?:option|choice|letter|response)\b" + _FILLER,
        r"\bI(?:'d|’d|'ll|’ll| would| will)?\s+(?:choose|chose|pick|select|go with|say|think|believe|guess)\b"
        + _FILLER,
        r"\A\W*it(?:'s|’s| is)\b" + _FILLER,
    )
]
_VERDICT = re.compile(
    r"(?:^|(?<=[.!?:]\s)|\b(?:option|choice|answer)\s+)\W{0,2}([A-D])\W?\s+(?:is|must be|would be|seems|appears)\s+(?:"
    r"(?:the\s+)?(?:correct|right|best|most\s+\w+)\s+(?:answer|option|choice|one)\b|correct\b|the\s+answer\b|right(?![-\w]))",
    re.IGNORECASE | re.MULTILINE,
)
_LINE_LABEL = re.compile(r"^\W*(?:(?:option|choice|letter)\W{0,3})?" + _LETTER, re.IGNORECASE | re.MULTILINE)
_INLINE_LABEL = re.compile(r"(?<![\w(])([A-D])\)")
_OPTION = re.compile(r"\b(?:option|choice)\W{1,3}" + _LETTER, re.IGNORECASE)
_CLOSING = re.compile(r"(?<!\w)\(([A-D])\)[\s.!]*\Z")
_ONLY_LETTERS = re.compile(r"""[A-Da-d\s.,:;!?()\[\]{}<>"'“”‘’/|&\\–—-]+""")


def parse_letter(text: str) -> str | None:
    """Read which option an answer chooses.

    Args:
        text: what the model wrote, for example ``B``, ``(b) Paris`` or ``The answer is **B**.``

    Returns:
        ``A``, ``B``, ``C`` or ``D``; None if the text marks no letter as its answer (prose such as
        ``A dog`` or ``vitamin C``) or marks several.

    An explicit statement ("the answer is B", "B is correct") outranks labels at the start of lines
    when these repeat several options; against a single other label it is a contradiction, so None.
    """
    text = _plain(text)
    if _ONLY_LETTERS.fullmatch(text):
        words = re.findall(r"\w+", text)
        return _only({word.upper() for word in words}) if all(len(word) == 1 for word in words) else None

    stated = {letter for pattern in _STATEMENTS for letter in _labels(pattern, text)}
    stated |= {match[1].upper() for match in _VERDICT.finditer(text)}
    labels = {*_labels(_LINE_LABEL, text), *_INLINE_LABEL.findall(text)}
    if stated:
        return None if len(labels) == 1 and labels != stated else _only(stated)
    if labels:
        return _only(labels)
    return _only({*_labels(_OPTION, text), *_CLOSING.findall(text)})


def _labels(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    """The letters that ``pattern`` finds and that end as a label does; several letters if one begins a list."""
    for match in pattern.finditer(text):
        if _LABEL_END.match(text, match.end()):
            yield match[1].upper()
            if _MORE_LETTERS.match(text, match.end()):
                yield "several"


def _only(letters: set[str]) -> str | None:
    return next(iter(letters)) if len(letters) == 1 else None


def _plain(text: str) -> str:
    """Without Markdown and LaTeX dress, full-width punctuation, and questions the model went on to invent."""
    text = text.strip().translate(str.maketrans("（）：，。．、", "():,..,"))
    text = re.split(r"\n\s*(?:question|q)\s*:", text, maxsplit=1, flags=re.IGNORECASE)[0].strip()
    text = re.sub(r"\\boxed\s*", " answer: ", text)
    text = re.sub(r"\\(?:text|math)\w*", "", text)
    text = re.sub(r"\*\*([A-Da-d])\*\*", r"(\1)", text)  # bold marks a letter as well as brackets do
    # The opening and the closing mark must match: a lone one may be part of the answer, as in "A*".
    return re.sub(r"(\*{1,3}|_{1,3}|`{1,3}|\${1,2})([^\n*_`$]+)\1", r"\2", text).strip()


# ---------------------------------------------------------------- scores
class Graded(NamedTuple):
    """One answered question: its subject, whether a letter was read, and whether it is the gold letter."""

    subject: str
    parsed: bool
    correct: bool


def score(graded: Iterable[Graded], seed: int) -> dict[str, Any]:
    """Exact match by category, over all questions, and averaged over subjects.

    Args:
        graded: the answers; one without a letter counts as wrong.
        seed: of the bootstrap.

    Returns:
        ``categories`` and ``subjects`` (name -> a dict of ``em``, ``correct``, ``n``, ``unparsable``;
        categories and ``overall`` have ``interval`` too), ``overall``, ``macro``. ``em`` lies between
        0 and 1, or is None for no questions; ``interval`` is [low, high] or None (see `utils.intervals.bootstrap`).

    Raises:
        UsageError: a subject is unknown.
    """
    by_subject: dict[str, list[Graded]] = {}
    by_category: dict[str, list[Graded]] = {category: [] for category in CATEGORIES}
    for row in graded:
        by_category[category_of(row.subject)].append(row)
        by_subject.setdefault(subject_name(row.subject), []).append(row)
    everything = [row for rows in by_category.values() for row in rows]
    subjects = {name: _summary(by_subject[name]) for name in sorted(by_subject)}

    def with_interval(rows: list[Graded]) -> dict[str, Any]:
        found = bootstrap([row.correct for row in rows], seed) if rows else None
        return _summary(rows) | {"interval": None if found is None or found.low is None else [found.low, found.high]}

    means = [summary["em"] for summary in subjects.values()]
    return {
        "categories": {category: with_interval(rows) for category, rows in by_category.items()},
        "overall": with_interval(everything),
        "macro": {"em": sum(means) / len(means) if means else None, "subjects": len(means)},
        "subjects": {name: {"category": CATEGORY[name], **summary} for name, summary in subjects.items()},
        "bootstrap": {"seed": seed, "resamples": RESAMPLES},
    }


def _summary(rows: list[Graded]) -> dict[str, Any]:
    correct = sum(row.correct for row in rows)
    return {
        "em": correct / len(rows) if rows else None,
        "correct": correct,
        "n": len(rows),
        "unparsable": sum(not row.parsed for row in rows),
    }


def table(scores: dict[str, Any]) -> str:
    """`score`'s result as lines of text, EM in percent."""
    lines = [f"{'':<18}{'EM %':>7}  {'95 % interval':<16}{'correct/n':>13}{'unparsable':>12}"]
    for name, row in [*scores["categories"].items(), ("Overall (micro)", scores["overall"])]:
        low_high = "[{:.2f}, {:.2f}]".format(*(100 * end for end in row["interval"])) if row["interval"] else "-"
        counts = f"{row['correct']}/{row['n']}"
        lines.append(f"{name:<18}{_percent(row['em']):>7}  {low_high:<16}{counts:>13}{row['unparsable']:>12}")
    macro = scores["macro"]
    lines.append(f"{'Subjects (macro)':<18}{_percent(macro['em']):>7}  mean of {macro['subjects']} subjects")
    return "\n".join(lines) + "\n"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
