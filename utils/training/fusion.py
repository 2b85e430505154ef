"""Fusion of rationale and retrieval scores (RADIO, section on rationale-based reranker training).

Pure functions over arrays whose last axis runs over one question's passages.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]


def min_max(scores: ArrayLike) -> Scores:
    """Map each question's scores to [0, 1].

    A constant list says nothing about the order and becomes all zeros, so that the other list
    decides; the published scripts divide by zero there.

    Args:
        scores: shape ``(..., passages)``, finite.

    Returns:
        Same shape.
    """
    scores = np.asarray(scores, dtype=np.float64)
    low = scores.min(axis=-1, keepdims=True)
    spread = scores.max(axis=-1, keepdims=True) - low
    return (scores - low) / np.where(spread == 0, 1, spread)


def fuse(rationale: ArrayLike, retrieval: ArrayLike, weight: float = 0.5) -> Scores:
    """``weight * rationale + (1 - weight) * retrieval`` after `min_max` of each.

    Args:
        rationale: rationale scores, shape ``(..., passages)``.
        retrieval: retrieval scores of the same passages in the same order.
        weight: 0 keeps the retriever's order, 1 the rationale's; 0.5 in the paper.
    """
    return weight * min_max(rationale) + (1 - weight) * min_max(retrieval)


def descending(scores: ArrayLike) -> NDArray[np.intp]:
    """Indices from the highest score to the lowest; equal scores keep their order."""
    return np.argsort(-np.asarray(scores), axis=-1, kind="stable")
