"""Means with bootstrap intervals, and paired differences tested by permutation, on scipy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RESAMPLES = 10_000
EXACT = 13  # differing questions up to which all signs are tried: 2 ** 13 < RESAMPLES
DRAWS_AT_ONCE = 4_000_000  # numbers in memory; 14,042 questions x 10,000 resamples would take 2 GB


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
    """Percentile bootstrap of a mean.

    No interval for fewer than two values or when all are equal: every resample would be the same,
    and a width of zero would claim a certainty that the data do not give.

    Args:
        values: one score a question, at least one.
        seed: of the resampling.
    """
    import numpy as np
    from scipy import stats

    data = np.asarray(values, dtype=float)
    mean = float(data.mean())
    if len(set(values)) < 2:
        return Interval(mean, None, None, len(data))
    found = stats.bootstrap(
        (data,),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        batch=max(1, DRAWS_AT_ONCE // len(data)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), len(data))


def paired_difference(values: Sequence[float], baseline: Sequence[float], seed: int) -> tuple[Interval, float]:
    """The mean difference over the same questions, and its two-sided p-value.

    The sign of each question's difference is flipped at random: under the null hypothesis the two
    systems are exchangeable question by question (paired permutation test). Exact for few questions that
    differ; one, or none, is no evidence: p is 1.

    Args:
        values: one score a question.
        baseline: the other system's, of the same questions in the same order.
        seed: of resampling and permutation.
    """
    import numpy as np
    from scipy import stats

    difference = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    interval = bootstrap(difference.tolist(), seed)
    # A difference of zero stays zero whatever its sign.
    rest = difference[difference != 0]
    rng = np.random.default_rng(seed)
    if len(rest) < 2:
        return interval, 1.0
    if len(rest) <= EXACT:
        test = stats.permutation_test((rest,), _mean, permutation_type="samples", vectorized=True, n_resamples=np.inf)
        return interval, float(test.pvalue)
    found = stats.monte_carlo_test(
        rest,
        lambda size: rng.choice([-1.0, 1.0], size) * rest,
        _mean,
        vectorized=True,
        n_resamples=RESAMPLES - 1,
        batch=max(1, DRAWS_AT_ONCE // len(rest)),
    )
    return interval, float(found.pvalue)


def _mean(data: Any, axis: int) -> Any:
    return data.mean(axis=axis)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment: the chance of any false discovery in the family stays below the level."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].tolist() if p_values else []
