"""Score caches: per question its passages with one kind of score, best first.

Two line formats are read, told apart by their fields:

- own: ``{id, query, passage_ids, scores}``; far smaller, texts are looked up by passage id;
- published: ``{query, content: [[passage, score], ...]}``, where a passage's text is its identity.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config import UsageError
from utils.method import descending, fuse
from utils.store.jsonlines import LineIndex, PassageTexts, parse_row, read_rows, write_lines
from utils.store.manifest import Phase
from utils.store.rows import Candidates, PublishedScored, Scored

SAME_DOCS = "both caches must come from the same train_docs file"


def retrieval_scores(docs: Path, output: Path, overwrite: bool) -> None:
    """Write the retriever's own scores of the candidates as a score cache."""
    phase = Phase(output, [docs], {})
    if not phase.is_done(overwrite):
        candidates = read_rows(docs, Candidates, "python dataset_generation.py --dataset NAME --phase get_docs")
        phase.finish(write_lines(output, (best_first(row, row.scores) for row in candidates)))


def best_first(row: Candidates, scores: list[float]) -> Scored:
    """Return a cache line: the row's passages sorted by score, equal scores in retrieval order."""
    order = descending(scores)
    return Scored(
        id=row.id,
        query=row.question,
        passage_ids=[row.passage_ids[i] for i in order],
        scores=[scores[i] for i in order],
    )


def open_cache(path: str | os.PathLike[str], method: str) -> LineIndex:
    """Open a cache for access by question: by id in the own format, by text in the published one."""
    made_by = f"python dataset_generation.py --dataset NAME --phase generate_dataset --method {method}"
    return LineIndex(path, made_by)


def is_published(cache: LineIndex) -> bool:
    """Tell by its first line whether a cache has the published format."""
    where, first = cache[next(iter(cache))]
    if "content" not in first and "passage_ids" not in first:
        raise UsageError(f"{where}: a score cache line has 'content' (published), or 'passage_ids' and 'scores'")
    return "content" in first


def publish(path: Path, passages: Path, overwrite: bool) -> None:
    """Write a cache of the own format in the published one, to ``NAME.published.jsonl`` beside it."""
    output = path.with_suffix(".published.jsonl")
    phase = Phase(output, [path, passages], {})
    if phase.is_done(overwrite):
        return
    cache, texts = open_cache(path, path.parent.name), PassageTexts(passages)
    if is_published(cache):
        raise UsageError(f"{path} has the published format already")

    def lines() -> Iterator[PublishedScored]:
        for where, raw in map(cache.__getitem__, cache):
            row = parse_row(raw, Scored, where)
            content = [(texts[pid], score) for pid, score in zip(row.passage_ids, row.scores, strict=True)]
            yield PublishedScored(query=row.query, content=content)

    phase.finish(write_lines(output, lines()))


@dataclass(frozen=True)
class Ranked:
    """One question's passages after fusion, best first; ``passages`` are ids (own format) or texts (published)."""

    query_id: str | None
    query: str
    passages: list[str]


def fused_rankings(reason: LineIndex, retrieval: LineIndex, weight: float, counts: Counter[str]) -> Iterator[Ranked]:
    """Join two caches by question and passage, fuse, and rank, in the order of the rationale cache.

    Equal fused scores keep its order too, as in the published script. ``counts`` receives ``questions without any
    order`` (all scores equal in both caches; left out), ``constant score lists`` (in one of them; the other decides)
    and ``repeated passages`` (the best score is kept).
    """
    for key in reason:
        where, raw = reason[key]
        if key not in retrieval:
            raise UsageError(f"{where}: question {key[:80]!r} is not in {retrieval.path}; {SAME_DOCS}")
        other_where, other_raw = retrieval[key]
        query_id, query, rationale = _read_scores(raw, where, counts)
        _, _, retrieved = _read_scores(other_raw, other_where, counts)
        if rationale.keys() != retrieved.keys():
            single = len(rationale.keys() ^ retrieved.keys())
            raise UsageError(f"{where} and {other_where}: {single} passages stand in one cache only; {SAME_DOCS}")
        ours, theirs = list(rationale.values()), [retrieved[passage] for passage in rationale]
        # A list of weight 0 takes no part in the order.
        constant = [min(scores) == max(scores) for scores, w in ((ours, weight), (theirs, 1 - weight)) if w]
        if all(constant):
            counts["questions without any order"] += 1
            continue
        counts["constant score lists"] += sum(constant)
        passages = list(rationale)
        yield Ranked(query_id, query, [passages[i] for i in descending(fuse(ours, theirs, weight)).tolist()])


def _read_scores(raw: dict[str, Any], where: str, counts: Counter[str]) -> tuple[str | None, str, dict[str, float]]:
    """Return question id, question, and passage -> score, best first."""
    if "content" in raw:
        published = parse_row(raw, PublishedScored, where)
        query_id, query, pairs = None, published.query, published.content
    else:
        own = parse_row(raw, Scored, where)
        query_id, query, pairs = own.id, own.query, list(zip(own.passage_ids, own.scores, strict=True))
    if not pairs:
        raise UsageError(f"{where}: the question has no passages")
    found: dict[str, float] = {}
    for passage, score in sorted(pairs, key=lambda pair: -pair[1]):
        found.setdefault(passage, score)  # of a repeated passage the first, best score
    counts["repeated passages"] += len(pairs) - len(found)
    return query_id, query, found
