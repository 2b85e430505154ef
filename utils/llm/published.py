"""Rationales that others published, matched to our questions by text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from utils.config import UsageError
from utils.store.jsonlines import parse_row, read_records
from utils.store.rows import Answers, Question, Rationale, Text


class Published(BaseModel):
    """What is read of a published row; an ``id`` is not used, for it may count other rows than ours."""

    question: Text
    golden_answers: Answers
    reason: str | None = None


def match_rationales(questions: Iterable[Question], files: Iterable[Path], counts: Counter[str]) -> list[Rationale]:
    """Our questions that a published row answers, with its rationale, in our order.

    Two texts are the same question if they differ in case and blanks at most.

    Args:
        questions: ours.
        files: JSON lines, a JSON array, or Parquet, with ``question``, ``golden_answers``, ``reason``.
        counts: receives ``questions without a published rationale``, ``published rows for no question
            of ours``, ``published rows without a rationale``, ``repeated published rows`` (the first is
            kept) and ``questions with other answers than published`` (kept: the rationale explains
            the published answers).

    Raises:
        UsageError: a file is missing or damaged, or a row lacks a field; the message says which.
    """
    published: dict[str, Published] = {}
    for file in files:
        for where, raw in read_records(file):
            if absent := sorted({"question", "golden_answers", "reason"} - raw.keys()):
                raise UsageError(
                    f"{where}: no field {', '.join(absent)} (there are: {', '.join(sorted(raw))}); published "
                    "rationales need question, golden_answers and reason"
                )
            row = parse_row(raw, Published, where)
            if not (row.reason or "").strip():
                counts["published rows without a rationale"] += 1
            elif _same(row.question) in published:
                counts["repeated published rows"] += 1
            else:
                published[_same(row.question)] = row
    found, used = [], set()
    for question in questions:
        key = _same(question.question)
        if key not in published:
            counts["questions without a published rationale"] += 1
            continue
        used.add(key)
        if set(question.golden_answers) != set(published[key].golden_answers):
            counts["questions with other answers than published"] += 1
        found.append(Rationale(**question.model_dump(), reason=str(published[key].reason)))
    counts["published rows for no question of ours"] += len(published) - len(used)
    return found


def _same(question: str) -> str:
    return " ".join(question.casefold().split())
