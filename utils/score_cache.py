"""Score caches: for each question its passages with one kind of score, best first.

Two line formats are read, told apart by their fields:

- own: ``{id, query, passage_ids, scores}``; far smaller, texts are looked up by passage id;
- published: ``{query, content: [[passage, score], ...]}``; a passage's text is its identity.
"""

from __future__ import annotations

import itertools
import operator
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.config import UsageError
from utils.files import LineIndex, parse_row
from utils.fusion import descending, fuse
from utils.rows import PublishedScored, Scored

BLOCK = 512  # questions fused together


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


@dataclass(frozen=True)
class _Scored:
    """One question's passages with both scores, in the rationale cache's order."""

    query_id: str | None
    query: str
    passages: list[str]
    rationale: list[float]
    retrieval: list[float]


def fused_rankings(reason: LineIndex, retrieval: LineIndex, weight: float, counts: Counter[str]) -> Iterator[Ranked]:
    """Join two caches by question and passage, fuse, and rank, `BLOCK` questions at a time.

    Equal fused scores keep the order of the rationale cache, as in the published script.

    Args:
        reason: cache of rationale scores; its order is the order of the output.
        retrieval: cache of retrieval scores; questions that only it has are counted and left out.
        weight: as in `utils.fusion.fuse`.
        counts: receives ``questions without a rationale score``, ``questions without any order``
            (every score equal in both caches; left out), ``constant score lists`` (one of the two;
            the other decides) and ``repeated passages`` (the best-scored occurrence is kept).

    Raises:
        UsageError: a malformed line, mixed formats, a question that only the rationale cache has,
            or a question whose passages differ between the caches.
    """
    if is_published(reason) != is_published(retrieval):
        raise UsageError(f"{reason.path} and {retrieval.path} have different formats; make both by the same command")
    counts["questions without a rationale score"] = sum(key not in reason for key in retrieval)
    for _, alike in itertools.groupby(_joined(reason, retrieval, counts), key=lambda row: len(row.passages)):
        while block := list(itertools.islice(alike, BLOCK)):
            yield from _ranked(block, weight, counts)


def _ranked(block: list[_Scored], weight: float, counts: Counter[str]) -> Iterator[Ranked]:
    """Fuse and rank questions with equally many passages."""
    rationale, retrieval = np.array([row.rationale for row in block]), np.array([row.retrieval for row in block])
    # A list of weight 0 takes no part in the order.
    deciding = [scores for scores, w in ((rationale, weight), (retrieval, 1 - weight)) if w]
    flat = np.stack([scores.min(axis=1) == scores.max(axis=1) for scores in deciding])
    nothing = np.asarray(flat.all(axis=0))
    counts["questions without any order"] += int(nothing.sum())
    counts["constant score lists"] += int(flat[:, ~nothing].sum())
    orders = descending(fuse(rationale, retrieval, weight)).tolist()
    for row, order, without in zip(block, orders, nothing, strict=True):
        if not without:
            yield Ranked(row.query_id, row.query, [row.passages[i] for i in order])


def _joined(reason: LineIndex, retrieval: LineIndex, counts: Counter[str]) -> Iterator[_Scored]:
    for key in reason:
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
        passages = list(rationale)
        yield _Scored(query_id, query, passages, list(rationale.values()), [retrieved[name] for name in passages])


def _scores(raw: dict[str, Any], where: str, counts: Counter[str]) -> tuple[str | None, str, dict[str, float]]:
    """Question id, question, and passage -> score, best first."""
    if "content" in raw:
        published = parse_row(raw, PublishedScored, where)
        query_id, query, pairs = None, published.query, published.content
    else:
        own = parse_row(raw, Scored, where)
        query_id, query, pairs = own.id, own.query, list(zip(own.passage_ids, own.scores, strict=True))
    if not pairs:
        raise UsageError(f"{where}: the question has no passages")
    best_first = sorted(pairs, key=operator.itemgetter(1), reverse=True)
    scores = dict(best_first)
    if len(scores) < len(pairs):  # of a passage that stands twice the better score counts, and its place
        best = dict(reversed(best_first))
        scores = {passage: best[passage] for passage, _ in best_first}
    counts["repeated passages"] += len(pairs) - len(scores)
    return query_id, query, scores
