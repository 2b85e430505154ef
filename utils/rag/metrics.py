"""Scores of answers (the metric in open_qa/) and of rankings (ir_measures, TREC's file formats)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from utils.retrieval.answers import has_answer
from utils.store.files import atomic
from utils.store.parallel import map_chunks
from utils.store.passages import PassageTexts
from utils.store.rows import Candidates

QUESTIONS_A_TASK = 200


def text_metrics(predictions: Sequence[str], answers: Sequence[list[str]]) -> dict[str, list[float]]:
    """Score answers by exact match, token F1 and containment, one value per question."""
    import evaluate

    # In memory: evaluate would otherwise write all answers to a file in the user's cache first.
    metric = evaluate.load(str(Path(__file__).with_name("open_qa") / "open_qa.py"), keep_in_memory=True)
    return metric.compute(predictions=predictions, references=answers, per_question=True)


def relevance(candidates: Sequence[Candidates], texts: PassageTexts) -> dict[str, dict[str, int]]:
    """Qrels by answer matching: 1 where a passage contains an answer, as DPR counts it, else 0.

    On all cores: 50 candidates of 20,000 questions are a million passages.

    Args:
        candidates: questions with their answers and passage ids.
        texts: of all passages.

    Returns:
        Question id -> passage id -> relevance.
    """
    jobs = ((row.golden_answers, [texts[pid] for pid in row.passage_ids]) for row in candidates)
    qrels: dict[str, dict[str, int]] = {}
    rows = iter(candidates)
    with tqdm(
        total=len(candidates), desc="match answers", unit="question", disable=len(candidates) <= QUESTIONS_A_TASK
    ) as bar:
        for part in map_chunks(_matches, jobs, QUESTIONS_A_TASK):
            for labels in part:
                row = next(rows)
                qrels[row.id] = dict(zip(row.passage_ids, labels, strict=True))
            bar.update(len(part))
    return qrels


def _matches(jobs: list[tuple[list[str], list[str]]]) -> list[list[int]]:
    return [[int(has_answer(answers, text)) for text in passages] for answers, passages in jobs]


def ranking_metrics(
    qrels: Mapping[str, Mapping[str, int]], ranking: Mapping[str, Sequence[str]], cutoffs: Sequence[int]
) -> dict[str, list[float]]:
    """Compute answer recall (an answer within the first k), reciprocal rank and nDCG@10, one value per question.

    Questions whose candidates hold no answer count as 0, so that runs over the same questions compare.
    nDCG's ideal order is that of the same candidates.

    Args:
        qrels: question id -> passage id -> relevance.
        ranking: question id -> passage ids, best first.
        cutoffs: the k of answer recall.
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
