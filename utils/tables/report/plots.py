"""The report's plots, as SVG text; None where the finished runs lack what a plot needs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.store.manifest import manifest_path, read_manifest
from utils.tables.experiment import WEIGHT
from utils.tables.results import FilledTable, Results

COLORS = ["#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#9c6b4e"]


def plots(results: Results, tables: Sequence[FilledTable], views: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return captions and pictures of all plots that the finished runs allow."""
    found = [(table.caption, weight_sweep(table)) for table in tables]
    for view in views:
        if view["kind"] == "training":
            found.append((f"Scores of the candidates, {view['name']}", score_distributions(view["questions"])))
    plan = results.plan
    generator, reranker = next(iter(plan.experiment.generators)), next(iter(plan.experiment.rerankers))
    for task in plan.experiment.tasks:
        conditions = ("retriever", "base", "radio")
        runs = [plan.replicates(task, generator, reranker, condition)[0] for condition in conditions]
        ranks = {plan.label(run): list(values.values()) for run in runs if (values := results.values(run, "mrr"))}
        found.append((f"Answer recall by rank, {task}", recall_by_rank(ranks)))
    tuned = dict.fromkeys(cell.run for table in tables for cell in table.cells if cell.run.is_tuned and cell.found)
    logs = {plan.training(run).checkpoint.name: losses_of(plan.training(run).checkpoint) for run in tuned}
    found.append(("Fine-tuning: loss and learning rate", training_curves(logs)))
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
        # Equal values have no interval: a bar of length zero.
        lower = [f.mean - (f.mean if f.low is None else f.low) for f in found]
        upper = [(f.mean if f.high is None else f.high) - f.mean for f in found]
        # Set apart, so that bars at one weight do not hide each other.
        x = [weight + 0.006 * (i - len(table.columns) / 2) for weight in weights]
        axes.errorbar(x, [f.mean for f in found], [lower, upper], marker="o", capsize=3, label=f"{task} {metric}")
    axes.set_xlabel("weight of the rationale score")
    axes.set_xticks(weights)
    return _svg(figure, axes)


def recall_by_rank(reciprocal_ranks: Mapping[str, Sequence[float]]) -> str | None:
    """Draw answer recall at each rank, from label -> one reciprocal rank per question."""
    curves = {name: recall(values) for name, values in reciprocal_ranks.items()}
    if not any(curves.values()):
        return None
    figure, axes = _figure()
    for name, curve in curves.items():
        axes.plot(range(1, len(curve) + 1), curve, marker=".", label=name)
    axes.set_xlabel("k")
    axes.set_ylabel("share of questions with\nan answer in the first k passages")
    return _svg(figure, axes)


def recall(reciprocal_ranks: Sequence[float]) -> list[float]:
    """Return the share of questions with an answer in the first k passages, for k = 1 up to the last first answer.

    A reciprocal rank of 0 means that no passage has an answer.
    """
    ranks = [round(1 / value) for value in reciprocal_ranks if value]
    return [sum(rank <= k for rank in ranks) / len(reciprocal_ranks) for k in range(1, max(ranks, default=0) + 1)]


def losses_of(checkpoint: Path) -> list[dict[str, float]]:
    """Return step, loss and learning rate of a fine-tuning, from its manifest; none of one by an earlier version."""
    path = manifest_path(checkpoint)
    return read_manifest(path).get("facts", {}).get("losses", []) if path.exists() else []


def training_curves(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> str | None:
    """Draw loss and learning rate over the steps, from reranker -> its log."""
    logs = {name: rows for name, rows in logs.items() if rows}
    if not logs:
        return None
    figure, both = _figure(columns=2)
    for axes, kind in zip(both, ("loss", "learning_rate"), strict=True):
        for name, rows in logs.items():
            axes.plot([row["step"] for row in rows], [row[kind] for row in rows], marker=".", label=name)
        axes.set_xlabel("step")
        axes.set_ylabel(kind.replace("_", " "))
    return _svg(figure, *both)


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
