"""Exact match on MMLU by category, over all questions, and averaged over subjects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from utils.mmlu.categories import CATEGORIES, CATEGORY, category_of, subject_name
from utils.rag.statistics import RESAMPLES, bootstrap


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
        0 and 1, or is None for no questions; ``interval`` is [low, high] or None (see `bootstrap`).

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
