"""The paper's values beside our own, and whether they agree.

A YAML file (``experiments/paper_values.yaml``) holds them, each with its source:

    tolerance: 1.0                # percentage points, where a value gives none of its own
    values:
      - {task: nq, generator: llama-3.1-8b, reranker: bge-base, condition: radio, metric: em,
         value: 43.2, source: "the paper, Table 2"}

``value`` is in percent; with ``relative_to: base`` it is the relative gain over that condition, in percent.
A value whose source leaves out a name is kept with a ``remark`` and not compared.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import FiniteFloat

from utils.config import UsageError
from utils.tables.experiment import EXPERIMENTS, PARTS, Strict, Table, condition_faults, read_model
from utils.tables.results import FilledTable, Results


class PaperValue(Strict):
    """One value of the paper."""

    task: str | None = None
    generator: str | None = None
    reranker: str | None = None
    condition: str = "radio"
    metric: str = "em"
    value: FiniteFloat
    source: str
    relative_to: str | None = None
    tolerance: FiniteFloat | None = None
    remark: str = ""


class PaperValues(Strict):
    """The whole file."""

    tolerance: FiniteFloat
    values: list[PaperValue]


def fill_tables(results: Results, tables: Mapping[str, Table]) -> list[FilledTable]:
    """Fill tables, with the paper's values in their cells if the experiment names a file of them."""
    filled = [results.fill(name, table) for name, table in tables.items()]
    file = results.plan.experiment.paper_values
    values = read_model(EXPERIMENTS / file, PaperValues).values if file else []
    for row in (row for table in filled for row in table.rows):
        for cell in row.cells:
            key = (cell.run.task, row.generator, row.reranker, cell.condition, cell.metric)
            cell.paper_value = "; ".join(
                f"{v.value:g}{f' % over {v.relative_to}' if v.relative_to else ''} ({v.source})"
                for v in values
                if (v.task, v.generator, v.reranker, v.condition, v.metric) == key
            )
    return filled


def compare(results: Results) -> tuple[list[str], bool]:
    """Compare the paper's values with the runs; return a line for each, and whether all comparable ones agree."""
    path = results.plan.experiment.paper_values
    if path is None:
        raise UsageError("--check: the experiment names no file of the paper's values ('paper_values')")
    file = read_model(EXPERIMENTS / path, PaperValues)
    lines, verdicts = [], []
    for value in file.values:
        if None in (value.task, value.generator, value.reranker):
            lines.append(f"not compared: {value.metric} {value.value:g} ({value.source}): {value.remark}")
            continue
        measured = _measured(value, results)
        tolerance = file.tolerance if value.tolerance is None else value.tolerance
        verdicts.append(measured is not None and abs(measured - value.value) <= tolerance)
        names = f"{value.task} {value.generator} {value.reranker} {value.condition} {value.metric}"
        unit = f"gain over {value.relative_to} in percent" if value.relative_to else "percent"
        found = "nothing" if measured is None else f"{measured:.2f}"
        lines.append(
            f"{'agrees' if verdicts[-1] else 'MISS'}: {names}, {unit}: {value.value:g} in the paper ({value.source}), "
            f"{found} measured, tolerance {tolerance:g}"
        )
    skipped = len(file.values) - len(verdicts)
    lines.append(f"{sum(verdicts)} of {len(verdicts)} paper values agree, {skipped} are not compared")
    return lines, bool(verdicts) and all(verdicts)


def _measured(value: PaperValue, results: Results) -> float | None:
    """Return our own number in the value's unit; None if its runs are not made."""
    what = f"paper value {value.value:g} ({value.source})"
    parts = (str(value.task), str(value.generator), str(value.reranker))
    for field, name in zip(PARTS, parts, strict=True):
        if name not in getattr(results.plan.experiment, field):
            raise UsageError(f"{what}: '{name}' is not under '{field}'")
    conditions = list(filter(None, [value.condition, value.relative_to]))
    for fault in condition_faults(conditions):
        raise UsageError(f"{what}: {fault}")
    scores = [results.values(results.plan.run(*parts, condition), value.metric).values() for condition in conditions]
    if not all(scores):
        return None
    means = [sum(found) / len(found) for found in scores]
    if not value.relative_to:
        return 100 * means[0]
    return 100 * (means[0] / means[1] - 1) if means[1] else None
