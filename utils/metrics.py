"""Answer metrics on FlashRAG's metric classes, ranking metrics on ir_measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from utils.answers import has_answer
from utils.mmlu import parse_letter


def text_metrics(predictions: Sequence[str], answers: Sequence[list[str]]) -> dict[str, list[float]]:
    """Exact match, token F1 and containment of an answer, per question, by FlashRAG's metric classes.

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
    """Exact match of the option letter, per question; an unparsable answer is wrong.

    FlashRAG's normalisation deletes "a" as an article, so its EM cannot tell option A from nothing.
    """
    pairs = list(zip(predictions, answers, strict=True))
    return {"em": [float(parse_letter(prediction) in gold) for prediction, gold in pairs]}


def relevance(
    candidates: Mapping[str, Iterable[str]], texts: Mapping[str, str], answers: Mapping[str, list[str]]
) -> dict[str, dict[str, int]]:
    """Qrels by answer matching: 1 where a passage contains an answer, as DPR counts it, else 0.

    Args:
        candidates: question id -> passage ids.
        texts: passage id -> text.
        answers: question id -> gold answers.
    """
    return {
        question: {pid: int(has_answer(answers[question], texts[pid])) for pid in passages}
        for question, passages in candidates.items()
    }


def ranking_metrics(
    qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Mapping[str, float]], cutoffs: Sequence[int]
) -> dict[str, list[float]]:
    """Answer recall at each cutoff (an answer within the first k) and reciprocal rank, per question.

    Questions whose candidates hold no answer count as 0, so that runs over the same questions compare.

    Args:
        qrels: question id -> passage id -> relevance.
        run: question id -> passage id -> score.
        cutoffs: the k of answer recall.

    Returns:
        ``recall@k`` and ``mrr`` -> one value a question, in the order of ``run``.
    """
    import ir_measures
    from ir_measures import RR, Success

    measures = {f"recall@{k}": Success @ k for k in cutoffs} | {"mrr": RR}
    values = {name: dict.fromkeys(run, 0.0) for name in measures}
    names = {str(measure): name for name, measure in measures.items()}
    for metric in ir_measures.iter_calc(list(measures.values()), qrels, run):
        values[names[str(metric.measure)]][metric.query_id] = metric.value
    return {name: list(by_question.values()) for name, by_question in values.items()}
