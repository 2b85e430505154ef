"""The report's plots, as SVG text; None where the finished runs lack what a plot needs."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from utils.mmlu.scores import CATEGORIES
from utils.rag.metrics import Interval
from utils.tables.experiment import WEIGHT
from utils.tables.results import FilledTable, Results

# Name -> last rank of the bin.
RANK_BINS = {"1": 1, "2": 2, "3": 3, "4-5": 5, "6-10": 10, "11-20": 20, "over 20": 10**9, "none": 0}
COLORS = ["#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#9c6b4e"]


def plots(results: Results, tables: Sequence[FilledTable], views: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return captions and pictures of all plots that the finished runs allow."""
    found = [(table.caption, draw(table)) for draw in (weight_sweep, category_bars) for table in tables]
    for view in views:
        if view["kind"] == "training":
            found.append((f"Scores of the candidates, {view['name']}", score_distributions(view["questions"])))
    plan = results.plan
    generator, reranker = next(iter(plan.experiment.generators)), next(iter(plan.experiment.rerankers))
    for task in plan.experiment.tasks:
        runs = [plan.run(task, generator, reranker, condition) for condition in ("retriever", "base", "radio")]
        ranks = {plan.label(run): list(values.values()) for run in runs if (values := results.values(run, "mrr"))}
        found.append((f"Rank of the first passage with an answer, {task}", first_answer_ranks(ranks)))
    return [{"caption": caption, "svg": svg} for caption, svg in found if svg]


def weight_sweep(table: FilledTable) -> str | None:
    """Draw each metric over the rationale score's weight, with intervals, from three weights on."""
    rows = [row for row in table.rows if row.cells and WEIGHT.fullmatch(row.cells[0].condition)]
    rows = [row for row in rows if all(cell.found for cell in row.cells)]
    if len(rows) < 3:
        return None
    figure, axes = _figure()
    weights = [float(row.cells[0].condition[1:]) for row in rows]
    for i, (task, metric) in enumerate(table.columns):
        found = [interval for row in rows if (interval := row.cells[i].found)]
        # Set apart, so that bars at one weight do not hide each other.
        x = [weight + 0.006 * (i - len(table.columns) / 2) for weight in weights]
        axes.errorbar(x, [f.mean for f in found], _errors(found), marker="o", capsize=3, label=f"{task} {metric}")
    axes.set_xlabel("weight of the rationale score")
    axes.set_xticks(weights)
    return _svg(figure, axes)


def category_bars(table: FilledTable) -> str | None:
    """Draw MMLU's categories by condition, with intervals."""
    columns = [i for i, (_, metric) in enumerate(table.columns) if metric in CATEGORIES]
    rows = [row for row in table.rows if columns and all(row.cells[i].found for i in columns)]
    if not rows:
        return None
    groups = [[interval for i in columns if (interval := row.cells[i].found)] for row in rows]
    figure, axes = _bars([table.columns[i][1] for i in columns], [", ".join(row.labels) for row in rows], groups)
    axes.set_ylabel("exact match")
    axes.axhline(0.25, color="gray", linewidth=0.8, linestyle="--")  # a guess among four letters
    return _svg(figure, axes)


def first_answer_ranks(reciprocal_ranks: Mapping[str, Sequence[float]]) -> str | None:
    """Draw the rank of the first passage with an answer, from label -> one reciprocal rank per question."""
    if not reciprocal_ranks:
        return None
    shares = [rank_shares(values) for values in reciprocal_ranks.values()]
    names = [name for name in RANK_BINS if any(found[name] for found in shares)]
    groups = [[Interval(found[name], None, None, 0) for name in names] for found in shares]
    figure, axes = _bars(names, list(reciprocal_ranks), groups)
    axes.set_xlabel("rank of the first passage with an answer")
    axes.set_ylabel("share of questions")
    return _svg(figure, axes)


def rank_shares(reciprocal_ranks: Sequence[float]) -> dict[str, float]:
    """Return the share of questions in each of `RANK_BINS`; a reciprocal rank of 0 means no passage has an answer."""
    ranks = [round(1 / value) if value else 0 for value in reciprocal_ranks]
    bins = Counter(next(name for name, last in RANK_BINS.items() if rank <= last) if rank else "none" for rank in ranks)
    return {name: bins[name] / len(ranks) for name in RANK_BINS}


def score_distributions(questions: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw both scores of training candidates with an answer and without, from the explorer's questions."""
    passages = [passage for question in questions for passage in question["passages"]]
    if not passages:
        return None
    figure, both = _figure(columns=2)
    for axes, kind in zip(both, ("retrieval", "rationale"), strict=True):
        for answer, label in ((0, "without an answer"), (1, "with an answer")):
            if scores := [passage[kind] for passage in passages if passage["answer"] == answer]:
                axes.hist(scores, bins=40, density=True, alpha=0.6, label=f"{label}, n = {len(scores)}")
        axes.set_xlabel(f"{kind} score")
    both[0].set_ylabel("density")
    return _svg(figure, *both)


def _bars(names: Sequence[str], labels: Sequence[str], groups: Sequence[Sequence[Interval]]) -> tuple[Any, Any]:
    """Draw groups of bars side by side: a group per name, in it a bar per label."""
    figure, axes = _figure()
    width = 0.8 / len(groups)
    for j, (label, found) in enumerate(zip(labels, groups, strict=True)):
        x = [k + width * (j - (len(groups) - 1) / 2) for k in range(len(names))]
        errors = _errors(found) if any(f.low is not None for f in found) else None
        axes.bar(x, [f.mean for f in found], width, yerr=errors, capsize=2, label=label)
    axes.set_xticks(range(len(names)), names)
    return figure, axes


def _errors(found: Sequence[Interval]) -> list[list[float]]:
    """Return the distances to the ends of the intervals; zero where there is no interval."""
    pairs = [(0.0, 0.0) if f.low is None or f.high is None else (f.mean - f.low, f.high - f.mean) for f in found]
    return [[low for low, _ in pairs], [high for _, high in pairs]]


def _figure(columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots(1, columns)
    for ax in axes if columns > 1 else [axes]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_prop_cycle(color=COLORS)
    return figure, axes


def _svg(figure: Any, *axes: Any) -> str:
    import matplotlib

    for ax in axes:
        ax.legend(fontsize=8)
    text = io.StringIO()
    # Without a date and random ids the same data give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "radio"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
