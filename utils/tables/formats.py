"""Filled tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.tables.experiment import label
from utils.tables.plan import Run
from utils.tables.results import LEVEL, Cell, FilledTable


def markdown(table: FilledTable) -> str:
    """The table for a README: ``.123 [.1, .2]``, an asterisk where a difference to the baseline is significant."""
    header = [*table.label_names, *column_heads(table)]
    lines = [f"**{title(table)}**", "", _line(header), "|---" * len(header) + "|"]
    for row in table.rows:
        lines.append(_line([*row.labels, *(_shown(cell) for cell in row.cells)]))
    return "\n".join([*lines, "", note(table)]) + "\n"


def note(table: FilledTable) -> str:
    """What the numbers are, under a table."""
    text = "Mean and 95 % bootstrap interval over questions."
    if any(cell.p is not None for cell in table.cells):
        text += (
            f" * differs from {label(table.baseline)} with the same generator and reranker: paired permutation test, "
            f"p < {LEVEL:g} after Holm's correction over the table."
        )
    return text


def latex(table: FilledTable) -> str:
    """The table with booktabs; numbers in percent."""
    heads = [*table.label_names, *column_heads(table)]
    lines = [
        r"\begin{table}",
        rf"\caption{{{_tex(title(table))}. {_tex(note(table))}}}",
        rf"\begin{{tabular}}{{{'l' * len(table.label_names)}{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(map(_tex, heads)) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = [_tex_cell(cell) for cell in row.cells]
        lines.append(" & ".join([*map(_tex, row.labels), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


CSV_COLUMNS = (
    "table", "task", "generator", "reranker", "condition", "metric", "mean", "low", "high", "n",
    "baseline", "difference", "difference_low", "difference_high", "p", "p_holm", "expected", "run",
)  # fmt: skip


def csv_rows(table: FilledTable, folder: Callable[[Run], Path]) -> list[list[Any]]:
    """Everything known of each cell, a row a cell, in the order of `CSV_COLUMNS`."""
    rows = []
    for cell in table.cells:
        run, found, gap = cell.run, cell.found, cell.difference
        rows.append(
            [
                table.name, run.task, run.generator, run.reranker, cell.condition, cell.metric,
                *((found.mean, found.low, found.high, found.n) if found else (None,) * 4),
                table.baseline if gap else None,
                *((gap.mean, gap.low, gap.high) if gap else (None,) * 3),
                cell.p_raw, cell.p, cell.expected or None, folder(run),
            ]
        )  # fmt: skip
    return rows


def column_heads(table: FilledTable) -> list[str]:
    """The metrics, with what `title` does not say once for all: the task if there are several, n if it differs."""
    tasks = {task for task, _ in table.columns}
    counts = _counts(table)
    heads = [f"{task} {metric}" if len(tasks) > 1 else metric for task, metric in table.columns]
    if _one_count_a_task(table):
        return heads
    return [f"{head}, n = {'/'.join(map(str, n))}" if n else head for head, n in zip(heads, counts, strict=True)]


def title(table: FilledTable) -> str:
    """The caption, and each task's number of questions if all columns of the task have the same."""
    if not _one_count_a_task(table):
        return table.caption
    counts = {task: n[0] for (task, _), n in zip(table.columns, _counts(table), strict=True) if n}
    if len(counts) == 1:
        return f"{table.caption} (n = {next(iter(counts.values()))})"
    return (
        f"{table.caption} ({', '.join(f'{task}: n = {n}' for task, n in counts.items())})" if counts else table.caption
    )


def _counts(table: FilledTable) -> list[list[int]]:
    """The numbers of questions that occur in each column."""
    columns = range(len(table.columns))
    return [sorted({found.n for row in table.rows if (found := row.cells[i].found)}) for i in columns]


def _one_count_a_task(table: FilledTable) -> bool:
    found: dict[str, set[int]] = {}
    for (task, _), counts in zip(table.columns, _counts(table), strict=True):
        found.setdefault(task, set()).update(counts)
    return all(len(counts) < 2 for counts in found.values())


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _shown(cell: Cell) -> str:
    shown = "-"
    if cell.found is not None:
        shown = decimals(cell.found.mean) + ("*" if cell.significant else "")
        if cell.found.low is not None and cell.found.high is not None:
            shown += f" [{decimals(cell.found.low)}, {decimals(cell.found.high)}]"
    return f"{shown}; published: {cell.expected}" if cell.expected else shown


def decimals(value: float) -> str:
    """``.123``, the leading zero left out."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


def _tex_cell(cell: Cell) -> str:
    shown = "--"
    if cell.found is not None:
        mean, low, high = (
            None if x is None else f"{100 * x:.1f}" for x in (cell.found.mean, cell.found.low, cell.found.high)
        )
        shown = f"{mean}{'$^*$' if cell.significant else ''}"
        if low is not None and high is not None:
            shown += f" {{\\scriptsize [{low}, {high}]}}"
    return f"{shown} {{\\scriptsize published: {_tex(cell.expected)}}}" if cell.expected else shown


TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    **{c: f"\\{c}" for c in "%&_#${}"},
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(TEX.get(c, c) for c in text)
