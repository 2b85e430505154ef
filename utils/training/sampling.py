"""From one question's ranked passages to training groups of positives and negatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Group = tuple[list[T], list[T]]
SHIFT_RANKS = (3, 4, 6, 9, 13, 18)
FIRST_NEGATIVE = 3
ITERATION_SIZE = 5


def shift(ranked: Sequence[T]) -> list[Group[T]]:
    """Rank 0 against ranks 3, 4, 6, 9, 13 and 18: six negatives, ever further away."""
    return [([ranked[0]], [ranked[rank] for rank in SHIFT_RANKS])]


def shift_all_neg(ranked: Sequence[T]) -> list[Group[T]]:
    """Rank 0 against every rank from 3 on."""
    return [([ranked[0]], list(ranked[FIRST_NEGATIVE:]))]


def iteration(ranked: Sequence[T]) -> list[Group[T]]:
    """In each five consecutive ranks, every passage but the last against those after it."""
    groups: list[Group[T]] = []
    for start in range(0, len(ranked), ITERATION_SIZE):
        window = list(ranked[start : start + ITERATION_SIZE])
        groups += [([window[i]], window[i + 1 :]) for i in range(len(window) - 1)]
    return groups


SAMPLERS: dict[str, Callable[[Sequence[T]], list[Group[T]]]] = {
    "shift": shift,
    "iteration": iteration,
    "shift_all_neg": shift_all_neg,
}


def passages_needed(sampling: str, topk: int) -> int:
    """How many ranked passages a question must have for the sampler to give its full groups.

    Args:
        sampling: a key of `SAMPLERS`.
        topk: passages kept after fusion, 20 in the paper.
    """
    return SHIFT_RANKS[-1] + 1 if sampling == "shift" else topk
