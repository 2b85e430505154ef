"""Filled tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils.rag.metrics import bootstrap
from utils.store.cards import Score, write_model_card
from utils.store.files import write_file
from utils.store.manifest import manifest_path
from utils.tables.experiment import label
from utils.tables.plan import Plan, Run
from utils.tables.results import LEVEL, Cell, FilledTable, Results

CSV_COLUMNS = (
    "table", "task", "generator", "reranker", "condition", "metric", "mean", "low", "high", "n", "seeds", "spread",
    "baseline", "difference", "difference_low", "difference_high", "p", "p_holm", "paper_value", "run",
)  # fmt: skip
TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    **{c: f"\\{c}" for c in "%&_#${}"},
}  # fmt: skip


def write_tables(tables: Sequence[FilledTable], plan: Plan, folder: Path) -> str:
    """Write each table in each format, and all of the experiment's as one Markdown file; return the Markdown."""
    for table in tables:
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows([CSV_COLUMNS, *csv_rows(table, plan)])
        for suffix, text in (("md", markdown(table)), ("tex", latex(table)), ("csv", lines.getvalue())):
            write_file(folder / f"{table.name}.{suffix}", text)
    together = "\n".join(map(markdown, tables))
    if len(tables) == len(plan.experiment.tables):
        write_file(folder / "all.md", together)
    return together


def write_cards(tables: Sequence[FilledTable], results: Results) -> None:
    """Put every fine-tuned reranker's own numbers into its model card; one of several seeds has those of its seed."""
    plan = results.plan
    cells = {(run, cell.metric): None for table in tables for cell in table.cells for run in cell.runs if run.is_tuned}
    cards: dict[Path, list[tuple[Run, Score]]] = {}
    for run, metric in cells:
        if score := _score(run, metric, results):
            cards.setdefault(plan.training(run).checkpoint, []).append((run, score))
    for folder, found in cards.items():
        if manifest_path(folder).exists() and folder.exists():
            scores = {score[:4]: score for _, score in found}  # a ranking counts once, whoever answers from it
            write_model_card(folder, plan.training(found[0][0]).settings, list(scores.values()))


def _score(run: Run, metric: str, results: Results) -> Score | None:
    values, made = results.values(run, metric), results.of(run)
    if made is None or not values:
        return None
    others: dict[str, float | None] = {}
    for name in ("retriever", "base"):
        found = results.values(results.plan.run(run.task, run.generator, run.reranker, name), metric)
        others[label(name)] = statistics.fmean(found.values()) if found else None
    test, mean = made.manifest["settings"], bootstrap(list(values.values()), results.seed)
    answered_by = "" if metric == "mrr" or "@" in metric else run.generator
    return Score(test["dataset"], test["split"], metric, answered_by, mean.mean, mean.low, mean.high, mean.n, others)


def markdown(table: FilledTable) -> str:
    """Return a table for a README: ``.123 [.1, .2]``, an asterisk where it differs from the baseline."""
    title, heads = headings(table)
    lines = [f"**{title}**", "", _line([*table.label_names, *heads])]
    lines.append("|---" * (len(table.label_names) + len(heads)) + "|")
    lines += [_line([*row.labels, *map(_markdown_cell, row.cells)]) for row in table.rows]
    return "\n".join([*lines, "", note(table), *(f"\n{line}" for line in table.meanings)]) + "\n"


def latex(table: FilledTable) -> str:
    """Return a table with booktabs; numbers in percent."""
    title, heads = headings(table)
    rows = [[*map(_tex, row.labels), *map(_tex_cell, row.cells)] for row in table.rows]
    lines = [
        r"\begin{table}",
        rf"\caption{{{_tex(title)}. {_tex(note(table))}}}",
        rf"\begin{{tabular}}{{{'l' * len(table.label_names)}{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(map(_tex, [*table.label_names, *heads])) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def csv_rows(table: FilledTable, plan: Plan) -> list[list[Any]]:
    """Return everything known of each cell, in the order of `CSV_COLUMNS`."""
    return [
        [
            table.name, cell.run.task, cell.run.generator, cell.run.reranker, cell.condition, cell.metric,
            *((found.mean, found.low, found.high, found.n) if (found := cell.found) else [None] * 4),
            len(cell.runs), cell.spread,
            *((table.baseline, gap.mean, gap.low, gap.high) if (gap := cell.difference) else [None] * 4),
            cell.p_raw, cell.p, cell.paper_value, plan.folder(cell.run),
        ]
        for cell in table.cells
    ]  # fmt: skip


def headings(table: FilledTable) -> tuple[str, list[str]]:
    """Return the caption and the columns' heads, with n in the caption where all columns of each task share it."""
    heads = [f"{task} {metric}" if len({t for t, _ in table.columns}) > 1 else metric for task, metric in table.columns]
    counts = [{cell.found.n for row in table.rows if (cell := row.cells[i]).found} for i in range(len(heads))]
    known = list(dict.fromkeys((task, n) for (task, _), ns in zip(table.columns, counts, strict=True) for n in ns))
    if len(known) > len(dict(known)):  # a task's columns differ in n: MMLU's categories have questions of their own
        told = [f", n = {'/'.join(map(str, sorted(found)))}" if found else "" for found in counts]
        return table.caption, [head + n for head, n in zip(heads, told, strict=True)]
    told = [f"n = {n}" if len(known) == 1 else f"{task}: n = {n}" for task, n in known]
    return f"{table.caption} ({', '.join(told)})" if told else table.caption, heads


def note(table: FilledTable) -> str:
    """Say below a table what its numbers are."""
    text = "Mean and 95 % bootstrap interval over questions."
    if seeds := max((len(cell.runs) for cell in table.cells if cell.spread is not None), default=0):
        text += (
            f" Fine-tuned with {seeds} seeds: a question counts with the mean over them; ± is the standard deviation "
            "of the seeds' means."
        )
    if any(cell.p is not None for cell in table.cells):
        text += (
            f" * differs from {label(table.baseline)} with the same generator and reranker: paired permutation test, "
            f"p < {LEVEL:g} after Holm's correction over the table."
        )
    return text


def decimals(value: float) -> str:
    """Return ``.123``, without the leading zero."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


def shown(
    cell: Cell, number: Callable[[float], str] = decimals, star: str = "*", nothing: str = "-"
) -> tuple[str, str]:
    """Return a cell's mean and its interval as text; no interval where there is none."""
    if cell.found is None:
        return nothing, ""
    low, high = cell.found.low, cell.found.high
    interval = "" if low is None or high is None else f"[{number(low)}, {number(high)}]"
    spread = "" if cell.spread is None else f" ± {number(cell.spread)}"
    return number(cell.found.mean) + (star if cell.significant else "") + spread, interval


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _markdown_cell(cell: Cell) -> str:
    mean, interval = shown(cell)
    return f"{mean}{interval and ' ' + interval}" + (f"; paper: {cell.paper_value}" if cell.paper_value else "")


def _tex_cell(cell: Cell) -> str:
    mean, interval = shown(cell, lambda value: f"{100 * value:.1f}", "$^*$", "--")
    small = [interval, f"paper: {_tex(cell.paper_value)}" if cell.paper_value else ""]
    return mean + "".join(rf" {{\scriptsize {text}}}" for text in small if text)


def _tex(text: str) -> str:
    return "".join(TEX.get(c, c) for c in text)
