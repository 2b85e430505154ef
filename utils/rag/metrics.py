"""Scores of answers and rankings, one per question; their means with intervals, and tested differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from utils.retrieval.answers import apply_rows, has_answer
from utils.store.files import atomic
from utils.store.jsonlines import PassageTexts
from utils.store.rows import Candidates

RESAMPLES = 10_000
EXACT = 13  # differing questions up to which all signs are tried: 2 ** 13 < RESAMPLES
DRAWS_AT_ONCE = 4_000_000  # numbers in memory; 14,042 questions x 10,000 resamples at once would take 2 GB


def text_metrics(predictions: Sequence[str], answers: Sequence[list[str]]) -> dict[str, list[float]]:
    """Score answers by exact match, token F1 and containment, one value per question."""
    import evaluate

    # In memory: evaluate would otherwise write all answers to a file in the user's cache first.
    metric = evaluate.load(str(Path(__file__).with_name("open_qa") / "open_qa.py"), keep_in_memory=True)
    return metric.compute(predictions=predictions, references=answers, per_question=True)


def relevance(candidates: Sequence[Candidates], texts: PassageTexts) -> dict[str, dict[str, int]]:
    """Return question id -> passage id -> 1 where the passage contains an answer, as DPR counts it, else 0."""
    import pandas

    if not candidates:
        return {}
    shown = tqdm(candidates, "read passages", unit="question")
    rows = pandas.Series([(row.golden_answers, [texts[pid] for pid in row.passage_ids]) for row in shown])
    labels = apply_rows(rows, _labels)
    return {row.id: dict(zip(row.passage_ids, ones, strict=True)) for row, ones in zip(candidates, labels, strict=True)}


def _labels(row: tuple[list[str], list[str]]) -> list[int]:
    answers, passages = row
    return [int(has_answer(answers, passage)) for passage in passages]


def ranking_metrics(
    qrels: Mapping[str, Mapping[str, int]], ranking: Mapping[str, Sequence[str]], cutoffs: Sequence[int]
) -> dict[str, list[float]]:
    """Compute answer recall (an answer within the first k), reciprocal rank and nDCG@10, one value per question.

    ``ranking`` holds passage ids by question id, best first. Questions whose candidates hold no answer count as 0, so
    that runs over the same questions compare. nDCG's ideal order is that of the same candidates.
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


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` questions with its 95 % interval, or None where no interval can be given."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        between = "no interval" if self.low is None else f"[{self.low:.3f}, {self.high:.3f}]"
        return f"{self.mean:.3f} {between} n={self.n}"


def bootstrap(values: Sequence[float], seed: int) -> Interval:
    """Return the mean of at least one score per question, with a percentile bootstrap interval."""
    import numpy as np
    from scipy import stats

    data = np.asarray(values, dtype=float)
    # Resamples of equal values are all the same: a width of zero would claim a certainty that the data do not give.
    if len(set(values)) < 2:
        return Interval(float(data.mean()), None, None, len(data))
    rng, batch = np.random.default_rng(seed), max(1, DRAWS_AT_ONCE // len(data))
    found = stats.bootstrap((data,), np.mean, n_resamples=RESAMPLES, method="percentile", batch=batch, rng=rng)
    low, high = found.confidence_interval
    return Interval(float(data.mean()), float(low), float(high), len(data))


def paired_difference(values: Sequence[float], baseline: Sequence[float], seed: int) -> tuple[Interval, float]:
    """Return the mean difference over the same questions in the same order, and its two-sided p-value.

    Paired permutation test: if both systems are equally good, each question's difference could as well have the other
    sign. All signs are tried where few questions differ, else random ones; one question that differs proves nothing.
    """
    import numpy as np
    from scipy import stats

    difference = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    interval = bootstrap(difference.tolist(), seed)
    rest = difference[difference != 0]  # a difference of zero stays zero whatever its sign
    if len(rest) < 2:
        return interval, 1.0
    if len(rest) <= EXACT:
        test = stats.permutation_test((rest,), np.mean, permutation_type="samples", vectorized=True, n_resamples=np.inf)
        return interval, float(test.pvalue)
    # permutation_test draws random signs too, but ten times slower.
    rng, batch = np.random.default_rng(seed), max(1, DRAWS_AT_ONCE // len(rest))
    found = stats.monte_carlo_test(
        rest, lambda size: rng.choice([-1.0, 1.0], size) * rest, np.mean,
        vectorized=True, n_resamples=RESAMPLES - 1, batch=batch,
    )  # fmt: skip
    return interval, float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that the chance of any false discovery among them stays below the level."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].tolist() if p_values else []
