"""Scores of answers (the metric in open_qa/) and of rankings (ir_measures, TREC's file formats)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.retrieval.answers import MANY_ROWS, apply_rows, has_answer
from utils.store.files import atomic
from utils.store.journal import in_chunks
from utils.store.jsonlines import PassageTexts
from utils.store.rows import Candidates

QUESTIONS_AT_ONCE = 2_000  # with their passages in memory


def text_metrics(predictions: Sequence[str], answers: Sequence[list[str]]) -> dict[str, list[float]]:
    """Score answers by exact match, token F1 and containment, one value per question."""
    import evaluate

    # In memory: evaluate would otherwise write all answers to a file in the user's cache first.
    metric = evaluate.load(str(Path(__file__).with_name("open_qa") / "open_qa.py"), keep_in_memory=True)
    return metric.compute(predictions=predictions, references=answers, per_question=True)


def relevance(candidates: Sequence[Candidates], texts: PassageTexts) -> dict[str, dict[str, int]]:
    """Return question id -> passage id -> 1 where the passage contains an answer, as DPR counts it, else 0."""
    import pandas

    qrels: dict[str, dict[str, int]] = {}
    with tqdm(total=len(candidates), desc="match answers", unit="question", disable=len(candidates) < MANY_ROWS) as bar:
        for part in in_chunks(list(candidates), QUESTIONS_AT_ONCE):
            rows = [(row.golden_answers, [texts[pid] for pid in row.passage_ids]) for row in part]
            frame = pandas.DataFrame(rows, columns=["answers", "passages"])
            for row, labels in zip(part, apply_rows(frame, _labels, axis=1), strict=True):
                qrels[row.id] = dict(zip(row.passage_ids, labels, strict=True))
            bar.update(len(part))
    return qrels


def _labels(row: Any) -> list[int]:
    return [int(has_answer(row["answers"], passage)) for passage in row["passages"]]


def ranking_metrics(
    qrels: Mapping[str, Mapping[str, int]], ranking: Mapping[str, Sequence[str]], cutoffs: Sequence[int]
) -> dict[str, list[float]]:
    """Compute answer recall (an answer within the first k), reciprocal rank and nDCG@10, one value per question.

    ``qrels`` comes from `relevance`; ``ranking`` holds passage ids by question id, best first. Questions whose
    candidates hold no answer count as 0, so that runs over the same questions compare. nDCG's ideal order is that of
    the same candidates.
    """
    import ir_measures
    from ir_measures import RR, Success, nDCG

    measures = {f"recall@{k}": Success @ k for k in cutoffs} | {"mrr": RR, "ndcg@10": nDCG @ 10}
    values = {name: dict.fromkeys(ranking, 0.0) for name in measures}
    names = {str(measure): name for name, measure in measures.items()}
    # Ranks in place of scores: evaluators break ties between equal scores by passage id.
    run = {query: {pid: -float(rank) for rank, pid in enumerate(ids)} for query, ids in ranking.items()}
    for metric in ir_measures.iter_calc(list(measures.values()), qrels, run):
        values[names[str(metric.measure)]][metric.query_id] = metric.value
    return {name: list(by_question.values()) for name, by_question in values.items()}


def write_run(path: Path, ranked: Iterable[Candidates], tag: str) -> None:
    """Write a ranking in TREC's format, ``query Q0 passage rank score tag``, best first."""
    with atomic(path) as handle:
        for row in ranked:
            for rank, (pid, score) in enumerate(zip(row.passage_ids, row.scores, strict=True), 1):
                handle.write(f"{_word(row.id)} Q0 {_word(pid)} {rank} {score} {_word(tag)}\n".encode())


def write_qrels(path: Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Write judgements in TREC's format, ``query 0 passage relevance``."""
    with atomic(path) as handle:
        for query, judged in qrels.items():
            for pid, label in judged.items():
                handle.write(f"{_word(query)} 0 {_word(pid)} {label}\n".encode())


def _word(name: str) -> str:
    """Join an id's words: blanks separate the columns of TREC's formats."""
    return "_".join(name.split())
