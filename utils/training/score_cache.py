"""Score caches: for each question its passages with one kind of score, best first.

Two line formats are read, told apart by their fields:

- own: ``{id, query, passage_ids, scores}``; far smaller, texts are looked up by passage id;
- published: ``{query, content: [[passage, score], ...]}``; a passage's text is its identity.
"""

from __future__ import annotations

import itertools
import operator
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config import UsageError
from utils.store.jsonlines import parse_row, write_lines
from utils.store.lookup import LineIndex, PassageTexts
from utils.store.manifest import Phase
from utils.store.rows import PublishedScored, Scored
from utils.training.fusion import descending, fuse

QUESTIONS_AT_ONCE = 256  # fused as arrays; memory holds so many, whatever the caches' length


@dataclass(frozen=True)
class Ranked:
    """One question's passages after fusion, best first; ``passages`` are ids (own format) or texts."""

    query_id: str | None
    query: str
    passages: list[str]


def open_cache(path: str | os.PathLike[str], made_by: str = "") -> LineIndex:
    """Open a cache for access by question; errors name file, line and field."""
    return LineIndex(path, lambda row: str(row["id"]) if "id" in row else row["query"], made_by)


def is_published(cache: LineIndex) -> bool:
    """Whether the cache holds passage texts instead of ids, judged by its first line."""
    where, first = cache[next(iter(cache))]
    if "content" not in first and "passage_ids" not in first:
        raise UsageError(f"{where}: a score cache line has 'content' (published), or 'passage_ids' and 'scores'")
    return "content" in first


def publish(cache: Path, passages: Path, overwrite: bool) -> None:
    """Write a cache of the own format in the published one, to ``NAME.published.jsonl`` beside it.

    Args:
        cache: the cache.
        passages: texts by passage id.
        overwrite: make the file again even if it is finished.

    Raises:
        UsageError: the cache has the published format already or an id without a text.
    """
    output = cache.with_suffix(".published.jsonl")
    phase = Phase(output, [cache, passages], {})
    if phase.is_done(overwrite):
        return
    rows, texts = open_cache(cache), PassageTexts(passages)
    if is_published(rows):
        raise UsageError(f"{cache} has the published format already")
    phase.finish(write_lines(output, (_as_published(*rows[key], texts) for key in rows)))


def _as_published(where: str, raw: dict[str, Any], texts: PassageTexts) -> PublishedScored:
    row = parse_row(raw, Scored, where)
    content = [(texts[pid], score) for pid, score in zip(row.passage_ids, row.scores, strict=True)]
    return PublishedScored(query=row.query, content=content)


def unscored(reason: LineIndex, retrieval: LineIndex) -> int:
    """How many questions only the retrieval cache has."""
    return sum(key not in reason for key in retrieval)


def check_formats(reason: LineIndex, retrieval: LineIndex) -> None:
    """Refuse two caches of different formats."""
    if is_published(reason) != is_published(retrieval):
        raise UsageError(f"{reason.path} and {retrieval.path} have different formats; make both by the same command")


def fused_rankings(
    keys: Iterable[str], reason: LineIndex, retrieval: LineIndex, weight: float, counts: Counter[str]
) -> Iterator[Ranked]:
    """Join two caches by question and passage, fuse, and rank, a block of questions at a time.

    Equal fused scores keep the order of the rationale cache, as in the published script.

    Args:
        keys: of the questions in the rationale cache.
        reason: cache of rationale scores.
        retrieval: cache of retrieval scores of the same questions and passages, in any order.
        weight: as in `utils.training.fusion.fuse`.
        counts: receives ``questions without any order`` (every score equal in both caches; left out),
            ``constant score lists`` (one of the two; the other decides) and ``repeated passages`` (the
            best-scored occurrence is kept).

    Raises:
        UsageError: a malformed line, a question that only the rationale cache has, or a question whose
            passages differ between the caches.
    """
    questions = _shared_questions(keys, reason, retrieval, weight, counts)
    while block := list(itertools.islice(questions, QUESTIONS_AT_ONCE)):
        yield from _ranked(block, weight)


@dataclass(frozen=True)
class _Question:
    """One question's distinct passages, best rationale first, with both scores of each."""

    query_id: str | None
    query: str
    passages: list[str]
    rationale: list[float]
    retrieval: list[float]


def _ranked(questions: list[_Question], weight: float) -> Iterator[Ranked]:
    """Fuse and rank; questions of as many passages as each other are one array."""
    by_size = defaultdict(list)
    for place, question in enumerate(questions):
        by_size[len(question.passages)].append(place)
    orders: dict[int, list[int]] = {}
    for places in by_size.values():
        rationale, retrieval = ([getattr(questions[i], kind) for i in places] for kind in ("rationale", "retrieval"))
        orders.update(zip(places, descending(fuse(rationale, retrieval, weight)).tolist(), strict=True))
    for place, question in enumerate(questions):
        yield Ranked(question.query_id, question.query, list(map(question.passages.__getitem__, orders[place])))


def _shared_questions(
    keys: Iterable[str], reason: LineIndex, retrieval: LineIndex, weight: float, counts: Counter[str]
) -> Iterator[_Question]:
    """The questions that have an order, joined from both caches."""
    for key in keys:
        where, raw = reason[key]
        if key not in retrieval:
            raise UsageError(
                f"{where}: question {key[:80]!r} is not in {retrieval.path}; "
                "both caches must come from the same train_docs file"
            )
        other_where, other_raw = retrieval[key]
        query_id, query, rationale = _scores(raw, where, counts)
        _, _, retrieved = _scores(other_raw, other_where, counts)
        if rationale.keys() != retrieved.keys():
            differing = len(rationale.keys() ^ retrieved.keys())
            raise UsageError(
                f"{where} and {other_where}: {differing} passages stand in one cache only; "
                "both caches must come from the same train_docs file"
            )
        lists = [list(rationale.values()), [retrieved[passage] for passage in rationale]]
        # A list of weight 0 takes no part in the order.
        flat = [min(scores) == max(scores) for scores, w in zip(lists, (weight, 1 - weight), strict=True) if w]
        if all(flat):
            counts["questions without any order"] += 1
            continue
        counts["constant score lists"] += sum(flat)
        yield _Question(query_id, query, list(rationale), lists[0], lists[1])


def _scores(raw: dict[str, Any], where: str, counts: Counter[str]) -> tuple[str | None, str, dict[str, float]]:
    """Question id, question, and passage -> score, best first."""
    if "content" in raw:
        published = parse_row(raw, PublishedScored, where)
        query_id, query = None, published.query
        passages, scores = [passage for passage, _ in published.content], [score for _, score in published.content]
    else:
        own = parse_row(raw, Scored, where)
        query_id, query, passages, scores = own.id, own.query, own.passage_ids, own.scores
    if not passages:
        raise UsageError(f"{where}: the question has no passages")
    found = dict(zip(passages, scores, strict=True))
    if len(found) < len(passages) or any(map(operator.lt, scores, scores[1:])):
        found = {}
        for passage, score in sorted(zip(passages, scores, strict=True), key=lambda pair: -pair[1]):
            found.setdefault(passage, score)
    counts["repeated passages"] += len(passages) - len(found)
    return query_id, query, found
