"""Means with bootstrap intervals, and paired differences tested by permutation, on scipy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 10_000
EXACT = 13  # differing questions up to which all signs are tried: 2 ** 13 < RESAMPLES
DRAWS_AT_ONCE = 4_000_000  # numbers in memory; 14,042 questions x 10,000 resamples at once would take 2 GB


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
