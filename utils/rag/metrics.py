"""Answer metrics on FlashRAG's metric classes, ranking metrics on ir_measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from utils.mmlu.letters import parse_letter
from utils.retrieval.answers import MANY_ROWS, apply_rows, has_answer
from utils.store.journal import in_chunks
from utils.store.lookup import PassageTexts
from utils.store.rows import Candidates

QUESTIONS_AT_ONCE = 2_000  # with their passages in memory


def text_metrics(predictions: Sequence[str], answers: Sequence[list[str]]) -> dict[str, list[float]]:
    """Return exact match, token F1 and containment of an answer, per question, by FlashRAG's metric classes.

    FlashRAG's evaluator catches a metric's exception and leaves it out of the result; the classes
    are called directly, so that a fault is an error.
    """
    from flashrag.evaluator.metrics import ExactMatch, F1_Score, Sub_ExactMatch, normalize_answer

    config: Any = {"dataset_name": "own", "metric_setting": {}}
    em, f1, contains = ExactMatch(config), F1_Score(config), Sub_ExactMatch(config)
    # An answer such as "The" normalises to nothing, and nothing is contained in every prediction.
    usable = [[answer for answer in gold if normalize_answer(answer)] for gold in answers]
    pairs = list(zip(predictions, usable, strict=True))
    return {
        "em": [float(em.calculate_em(prediction, gold)) for prediction, gold in pairs],
        "f1": [float(f1.token_level_scores(prediction, gold)["f1"]) for prediction, gold in pairs],
        "contains": [float(contains.calculate_sub_em(prediction, gold)) for prediction, gold in pairs],
    }


def letter_metrics(predictions: Sequence[str], answers: Sequence[list[str]]) -> dict[str, list[float]]:
    """Return exact match of the option letter, per question; an unparsable answer is wrong.

    FlashRAG's normalisation deletes "a" as an article, so its EM cannot tell option A from nothing.
    """
    pairs = list(zip(predictions, answers, strict=True))
    return {"em": [float(parse_letter(prediction) in gold) for prediction, gold in pairs]}


def relevance(candidates: Sequence[Candidates], texts: PassageTexts) -> dict[str, dict[str, int]]:
    """Return qrels by answer matching: 1 where a passage contains an answer, as DPR counts it, else 0.

    Args:
        candidates: questions with their answers and passage ids.
        texts: of all passages.

    Returns:
        Question id -> passage id -> relevance.
    """
    import pandas

    qrels: dict[str, dict[str, int]] = {}
    with tqdm(total=len(candidates), desc="match answers", unit="question", disable=len(candidates) < MANY_ROWS) as bar:
        for part in in_chunks(list(candidates), QUESTIONS_AT_ONCE):
            frame = pandas.DataFrame(
                {
                    "answers": [row.golden_answers for row in part],
                    "passages": [[texts[pid] for pid in row.passage_ids] for row in part],
                }
            )
            for row, labels in zip(part, apply_rows(frame, _labels, axis=1), strict=True):
                qrels[row.id] = dict(zip(row.passage_ids, labels, strict=True))
            bar.update(len(part))
    return qrels


def _labels(row: Any) -> list[int]:
    return [int(has_answer(row["answers"], passage)) for passage in row["passages"]]


def ranking_metrics(
    qrels: Mapping[str, Mapping[str, int]], ranking: Mapping[str, Sequence[str]], cutoffs: Sequence[int]
) -> dict[str, list[float]]:
    """Return answer recall at each cutoff (an answer within the first k), reciprocal rank and nDCG@10, per question.

    Questions whose candidates hold no answer count as 0, so that runs over the same questions compare.
    nDCG's ideal order is that of the same candidates.

    Args:
        qrels: question id -> passage id -> relevance.
        ranking: question id -> passage ids, best first.
        cutoffs: the k of answer recall.

    Returns:
        ``recall@k``, ``mrr`` and ``ndcg@10`` -> one value a question, in the order of ``ranking``.
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
