"""All the arithmetic of RADIO: scored text, similarity, min-max, fusion, order, samplers, groups. No files, no models.

Jia et al., "Bridging Relevance and Reasoning: Rationale Distillation in Retrieval-Augmented Generation", Findings of
ACL 2025. A function that follows the paper says which part; one that departs from the published scripts names the row
in docs/deviations.md. tests/golden holds fusion and samplers to the lines that the published scripts make.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T")
Scores = NDArray[np.float64]
Group = tuple[list[T], list[T]]  # positives and negatives

SHIFT_RANKS = (3, 4, 6, 9, 13, 18)
FIRST_NEGATIVE = 3
ITERATION_SIZE = 5


def scored_text(question: str, golden_answers: list[str], rationale: str | None) -> str:
    """Return the text whose similarity to a passage is the passage's rationale score.

    Paper: rationale-based alignment. The answers appear as Python prints a list, because the published scores were
    made so (docs/deviations.md, "Kept although one could object"). Without a rationale, the control that the paper
    does not have, the text ends after the answers.

    >>> scored_text("Who wrote Emma?", ["Jane Austen"], "Emma is a novel of 1815 by Jane Austen.")
    "Who wrote Emma?. ['Jane Austen']. Emma is a novel of 1815 by Jane Austen."
    >>> scored_text("Who wrote Emma?", ["Jane Austen"], None)
    "Who wrote Emma?. ['Jane Austen']"
    """
    return f"{question}. {golden_answers}" + ("" if rationale is None else f". {rationale}")


def similarity(text: ArrayLike, passages: ArrayLike) -> NDArray[np.float32]:
    """Return the inner products of one text's vector with its passages' vectors: the rationale scores.

    Paper: rationale-based alignment; deviations: rationale score.

    Args:
        text: normalised, shape ``(dimension,)``.
        passages: normalised, shape ``(passages, dimension)``.

    >>> similarity([1.0, 0.0], [[0.6, 0.8], [0.0, 1.0]]).round(3).tolist()
    [0.6000000238418579, 0.0]
    """
    return np.asarray(passages, dtype=np.float32) @ np.asarray(text, dtype=np.float32)


def min_max(scores: ArrayLike) -> Scores:
    """Map the scores of one question's passages to [0, 1].

    Paper: rationale-based alignment; deviations: fusion. A constant list says nothing about the order. It becomes all
    zeros, so that the other list decides; the published scripts divide by zero there.

    Args:
        scores: finite, shape ``(..., passages)``.

    >>> min_max([2, 4, 3]).tolist(), min_max([5, 5]).tolist()
    ([0.0, 1.0, 0.5], [0.0, 0.0])
    """
    scores = np.asarray(scores, dtype=np.float64)
    low = scores.min(axis=-1, keepdims=True)
    spread = scores.max(axis=-1, keepdims=True) - low
    return (scores - low) / np.where(spread == 0, 1, spread)


def fuse(rationale: ArrayLike, retrieval: ArrayLike, weight: float = 0.5) -> Scores:
    """Return ``weight * rationale + (1 - weight) * retrieval`` after `min_max` of each.

    Paper: rationale-based alignment, with a weight of 0.5; deviations: fusion.

    Args:
        rationale: rationale scores, shape ``(..., passages)``.
        retrieval: retrieval scores of the same passages in the same order.
        weight: 0 keeps the retriever's order, 1 the order by rationale.

    >>> fuse([0.0, 1.0, 0.5], [9.0, 7.0, 5.0]).tolist()
    [0.5, 0.75, 0.25]
    """
    return weight * min_max(rationale) + (1 - weight) * min_max(retrieval)


def descending(scores: ArrayLike) -> NDArray[np.intp]:
    """Return indices from the highest score to the lowest; equal scores keep their order.

    >>> descending([1.0, 3.0, 1.0, 2.0]).tolist()
    [1, 3, 0, 2]
    """
    return np.argsort(-np.asarray(scores), axis=-1, kind="stable")


def supervised_order(ranked: Sequence[T], has_answer: Sequence[bool]) -> list[T]:
    """Return the best passage with an answer and behind it those without one; nothing if no passage has one.

    Not in the paper: the most that groups of these passages could teach.

    >>> supervised_order("abcd", [False, True, False, True])
    ['b', 'a', 'c']
    """
    if not any(has_answer):
        return []
    first = list(has_answer).index(True)
    return [ranked[first], *(passage for passage, has in zip(ranked, has_answer, strict=True) if not has)]


def shift(ranked: Sequence[T]) -> list[Group[T]]:
    """Take rank 0 as positive, and as negatives ranks 3, 4, 6, 9, 13 and 18, ever further away.

    Paper: fine-tuning data; deviations: sampling.

    >>> shift(range(20))
    [([0], [3, 4, 6, 9, 13, 18])]
    """
    return [([ranked[0]], [ranked[rank] for rank in SHIFT_RANKS])]


def shift_all_neg(ranked: Sequence[T]) -> list[Group[T]]:
    """Take rank 0 as positive, and every rank from 3 on as a negative.

    >>> shift_all_neg(range(6))
    [([0], [3, 4, 5])]
    """
    return [([ranked[0]], list(ranked[FIRST_NEGATIVE:]))]


def iteration(ranked: Sequence[T]) -> list[Group[T]]:
    """In each five consecutive ranks, take every passage but the last as positive against those after it.

    >>> iteration(range(5))
    [([0], [1, 2, 3, 4]), ([1], [2, 3, 4]), ([2], [3, 4]), ([3], [4])]
    """
    groups: list[Group[T]] = []
    for start in range(0, len(ranked), ITERATION_SIZE):
        window = list(ranked[start : start + ITERATION_SIZE])
        groups += [([window[i]], window[i + 1 :]) for i in range(len(window) - 1)]
    return groups


# To add a sampler, write it above, name it here, and tell `passages_needed` how many passages it needs.
SAMPLERS: dict[str, Callable[[Sequence[T]], list[Group[T]]]] = {
    "shift": shift,
    "iteration": iteration,
    "shift_all_neg": shift_all_neg,
}


def passages_needed(sampling: str, topk: int) -> int:
    """Return how many ranked passages a question must have for the sampler to give its full groups.

    >>> passages_needed("shift", 20), passages_needed("iteration", 20), passages_needed("shift_all_neg", 2)
    (19, 20, 4)
    """
    fewest = {"shift_all_neg": FIRST_NEGATIVE + 1, "iteration": 2}  # fewer would leave a positive without negatives
    return SHIFT_RANKS[-1] + 1 if sampling == "shift" else max(topk, fewest.get(sampling, 1))
