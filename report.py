"""Write the report of an experiment: one HTML page with tables, plots, costs and an explorer of every question.

    python report.py --profile smoke
    python report.py --profile paper --questions 500 --output report.html

reads   experiments/PROFILE.yaml, the runs that paper_tables.py made, and the training data behind them
writes  SAVE_DIR/report.html   self-contained: no network, no server; open it in any browser

Runs that were not made are left out. The explorer shows the first --questions questions of each kind.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.config import UsageError, run_main
from utils.tables.experiment import EXPERIMENTS, label, read_experiment
from utils.tables.plan import Plan, Run

if TYPE_CHECKING:
    from utils.tables.results import FilledTable, Results


def main() -> None:
    """Parse the command line, collect, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--profile", required=True, help="experiments/PROFILE.yaml")
    parser.add_argument("--questions", type=int, default=200, help="of each kind in the explorer [200]")
    parser.add_argument("--output", type=Path, help="[SAVE_DIR/report.html]")
    parser.add_argument("--seed", type=int, default=42, help="of intervals and tests [42]")
    args = parser.parse_args()
    if args.questions < 1:
        raise UsageError("--questions must be at least 1")

    from utils.store.files import atomic
    from utils.tables.paper_values import beside, read_expected
    from utils.tables.report.page import render
    from utils.tables.report.phases import phases
    from utils.tables.results import Results

    experiment = read_experiment(EXPERIMENTS / f"{args.profile}.yaml")
    plan = Plan(experiment)
    results = Results(plan, args.seed)
    runs = [run for run in plan.runs(experiment.tables.values()) if results.of(run)]
    if not runs:
        raise UsageError(f"no run is finished; run: python paper_tables.py --profile {args.profile} --run")
    tables = [results.fill(name, table) for name, table in experiment.tables.items()]
    if experiment.expected:
        published = read_expected(EXPERIMENTS / experiment.expected)
        tables = [beside(table, published) for table in tables]
    views = explored(plan, results, runs, args.questions)
    made = phases(plan, runs)
    data: dict[str, Any] = {
        "title": f"RADIO: {experiment.title}",
        "subtitle": f"{len(runs)} runs, seed {args.seed}. python paper_tables.py --profile {args.profile} --run",
        "tables": [shown(table) for table in tables],
        "plots": plots(results, tables, runs, views),
        "explored": f"The first {args.questions} questions of each kind. Training questions have rationales.",
        **made,
    }
    output = args.output or plan.folder(runs[0]).parent / "report.html"
    with atomic(output) as handle:
        handle.write(render(data, {"views": views}).encode())
    print(f"{output}: {len(runs)} runs, {len(tables)} tables, {output.stat().st_size / 1e6:.1f} MB")


def explored(plan: Plan, results: Results, runs: list[Run], limit: int) -> list[dict[str, Any]]:
    """The explorer's views, test questions of every task and training questions, each with its passages."""
    from utils.tables.report.explorer import answered_questions, run_labels, training_questions

    views: list[dict[str, Any]] = []
    for task in plan.experiment.tasks:
        mine = [run for run in runs if run.task == task]
        if mine:
            view = {"kind": "test", "name": f"{task}: test", "runs": run_labels(plan, mine)}
            views.append(view | answered_questions(results, mine, limit))
    trained = {plan.train_folder(run): run for run in reversed(runs) if run.reranker and run.condition != "base"}
    for folder, run in trained.items():
        if (folder / "reason/score_cache.jsonl").exists():  # a reranker can outlive its training data
            view = {"kind": "training", "name": f"{folder.name}: training"}
            views.append(view | training_questions(plan, run, limit))
    return views


def shown(table: FilledTable) -> dict[str, Any]:
    """A table as the page's template wants it."""
    from utils.tables.formats import column_heads, decimals, note, title

    def cell(found: Any) -> dict[str, str]:
        if found.found is None:
            return {"mean": "-", "interval": "", "title": "", "expected": found.expected}
        star = "*" if found.significant else ""
        low, high, gap = found.found.low, found.found.high, found.difference
        return {
            "mean": decimals(found.found.mean) + star,
            "interval": "" if low is None or high is None else f"[{decimals(low)}, {decimals(high)}]",
            "title": f"difference to {label(table.baseline)}: {gap}, p = {found.p:.3g} (Holm)" if gap else "",
            "expected": found.expected,
        }

    return {
        "caption": title(table),
        "labels": len(table.label_names),
        "heads": [*table.label_names, *column_heads(table)],
        "rows": [{"labels": row.labels, "cells": [cell(c) for c in row.cells]} for row in table.rows],
        "note": note(table),
    }


def plots(
    results: Results, tables: list[FilledTable], runs: list[Run], views: list[dict[str, Any]]
) -> list[dict[str, str]]:
    """Captions and pictures of all plots that the finished runs allow."""
    from utils.tables.report.plots import category_bars, first_answer_ranks, score_distributions, weight_sweep

    found = [(table.caption, weight_sweep(table)) for table in tables]
    found += [(table.caption, category_bars(table)) for table in tables]
    for view in views:
        if view["kind"] == "training":
            found.append((f"Scores of the candidates, {view['name']}", score_distributions(view["questions"])))
    for task in results.plan.experiment.tasks:
        ranks = {
            results.plan.label(run): list(values.values())
            for run in main_runs(results.plan, task)
            if run in runs and (made := results.of(run)) and (values := made.values("mrr"))
        }
        found.append((f"Rank of the first passage with an answer, {task}", first_answer_ranks(ranks)))
    return [{"caption": caption, "svg": svg} for caption, svg in found if svg]


def main_runs(plan: Plan, task: str) -> list[Run]:
    """The retriever's order, the base reranker and RADIO with the experiment's first generator and reranker."""
    generator, reranker = next(iter(plan.experiment.generators)), next(iter(plan.experiment.rerankers))
    return [plan.run(task, generator, reranker, condition) for condition in ("retriever", "base", "radio")]


if __name__ == "__main__":
    run_main(main)
