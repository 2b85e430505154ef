"""The report's plots, as SVG text."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from utils.mmlu.categories import CATEGORIES
from utils.rag.statistics import Interval
from utils.tables.experiment import WEIGHT
from utils.tables.results import FilledTable

# Name -> last rank of the bin.
RANK_BINS = {"1": 1, "2": 2, "3": 3, "4-5": 5, "6-10": 10, "11-20": 20, "over 20": 10**9, "none": 0}


def weight_sweep(table: FilledTable) -> str | None:
    """Each metric over the rationale score's weight, with intervals; None if the table has no sweep."""
    rows = [row for row in table.rows if row.cells and WEIGHT.fullmatch(row.cells[0].condition)]
    rows = [row for row in rows if all(cell.found for cell in row.cells)]
    if len(rows) < 3:
        return None
    figure, axes = _figure()
    for i, (task, metric) in enumerate(table.columns):
        points = [(float(row.cells[i].condition[1:]), interval) for row in rows if (interval := row.cells[i].found)]
        found = [interval for _, interval in points]
        # Set apart, so that bars at one weight do not hide each other.
        x = [weight + 0.006 * (i - len(table.columns) / 2) for weight, _ in points]
        axes.errorbar(x, [f.mean for f in found], _errors(found), marker="o", capsize=3, label=f"{task} {metric}")
    axes.set_xlabel("weight of the rationale score")
    axes.set_xticks([weight for weight, _ in points])
    axes.legend(fontsize=8)
    return _svg(figure)


def category_bars(table: FilledTable) -> str | None:
    """MMLU's categories by condition, with intervals; None if the table has no categories."""
    columns = [i for i, (_, metric) in enumerate(table.columns) if metric in CATEGORIES]
    rows = [row for row in table.rows if columns and all(row.cells[i].found for i in columns)]
    if not rows:
        return None
    figure, axes = _figure()
    width = 0.8 / len(rows)
    for j, row in enumerate(rows):
        found = [interval for i in columns if (interval := row.cells[i].found)]
        x = [k + width * (j - (len(rows) - 1) / 2) for k in range(len(columns))]
        label = ", ".join(row.labels)
        axes.bar(x, [f.mean for f in found], width, yerr=_errors(found), capsize=2, label=label)
    axes.set_xticks(range(len(columns)), [table.columns[i][1] for i in columns])
    axes.set_ylabel("exact match")
    axes.axhline(0.25, color="gray", linewidth=0.8, linestyle="--")
    axes.legend(fontsize=8)
    return _svg(figure)


def score_distributions(questions: Sequence[Mapping[str, Any]]) -> str | None:
    """Retrieval and rationale scores of candidates with an answer and without; None without candidates.

    Args:
        questions: as `utils.tables.report.explorer.training_questions` gives them.
    """
    passages = [passage for question in questions for passage in question["passages"]]
    if not passages:
        return None
    figure, both = _figure(columns=2)
    for axes, kind in zip(both, ("retrieval", "rationale"), strict=True):
        for answer, label in ((0, "without an answer"), (1, "with an answer")):
            scores = [passage[kind] for passage in passages if passage["answer"] == answer]
            if scores:
                axes.hist(scores, bins=40, density=True, alpha=0.6, label=f"{label}, n = {len(scores)}")
        axes.set_xlabel(f"{kind} score")
        axes.legend(fontsize=8)
    both[0].set_ylabel("density")
    return _svg(figure)


def first_answer_ranks(reciprocal_ranks: Mapping[str, Sequence[float]]) -> str | None:
    """At which rank the first passage with an answer stands, by condition; None without rankings.

    Args:
        reciprocal_ranks: condition -> one reciprocal rank a question, 0 where no passage has an answer.
    """
    if not reciprocal_ranks:
        return None
    figure, axes = _figure()
    shares = {condition: rank_shares(values) for condition, values in reciprocal_ranks.items()}
    names = [name for name in RANK_BINS if any(found[name] for found in shares.values())]
    width = 0.8 / len(shares)
    for j, (condition, found) in enumerate(shares.items()):
        x = [k + width * (j - (len(shares) - 1) / 2) for k in range(len(names))]
        axes.bar(x, [found[name] for name in names], width, label=condition)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("rank of the first passage with an answer")
    axes.set_ylabel("share of questions")
    axes.legend(fontsize=8)
    return _svg(figure)


def rank_shares(reciprocal_ranks: Sequence[float]) -> dict[str, float]:
    """The share of questions in each of `RANK_BINS`."""
    counts = Counter(_bin(value) for value in reciprocal_ranks)
    return {name: counts[name] / len(reciprocal_ranks) for name in RANK_BINS}


def _bin(reciprocal_rank: float) -> str:
    if reciprocal_rank == 0:
        return "none"
    rank = round(1 / reciprocal_rank)
    return next((name for name, last in RANK_BINS.items() if rank <= last), "none")


def _errors(found: Sequence[Interval]) -> list[list[float]]:
    """Distances to the ends of the intervals; none where there is no interval."""
    low = [f.mean - (f.mean if f.low is None else f.low) for f in found]
    return [low, [(f.mean if f.high is None else f.high) - f.mean for f in found]]


def _figure(columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots(1, columns)
    for ax in axes if columns > 1 else [axes]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_prop_cycle(color=["#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#9c6b4e"])
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    text = io.StringIO()
    # Without a date and random ids the same data give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "radio"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
