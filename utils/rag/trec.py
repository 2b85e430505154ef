"""Rankings and judgements in TREC's formats, for any evaluator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.store.files import atomic
from utils.store.rows import Candidates


def write_run(path: Path, ranked: Iterable[Candidates], tag: str) -> None:
    """A run: ``query Q0 passage rank score tag`` a line, best first."""
    with atomic(path) as handle:
        for row in ranked:
            for rank, (pid, score) in enumerate(zip(row.passage_ids, row.scores, strict=True), 1):
                handle.write(f"{_word(row.id)} Q0 {_word(pid)} {rank} {score} {_word(tag)}\n".encode())


def write_qrels(path: Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Judgements: ``query 0 passage relevance`` a line."""
    with atomic(path) as handle:
        for query, judged in qrels.items():
            for pid, label in judged.items():
                handle.write(f"{_word(query)} 0 {_word(pid)} {label}\n".encode())


def _word(name: str) -> str:
    """An id as the formats need it: they separate columns by blanks."""
    return "_".join(name.split())
