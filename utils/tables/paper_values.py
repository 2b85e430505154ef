"""Published values beside our own, and whether they agree.

A YAML file (``experiments/published/paper.yaml``) holds them, each with its source:

    tolerance: 1.0                # percentage points, where a value gives none of its own
    values:
      - {task: nq, generator: llama-3.1-8b, reranker: bge-base, condition: radio, metric: em,
         value: 43.2, source: "the paper, Table 2"}

``value`` is in percent; with ``relative_to: base`` it is the relative gain over that condition, in percent.
A value whose source does not say all of the names is kept with a ``remark`` and compared with nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from utils.config import UsageError, read_yaml
from utils.tables.experiment import check_condition
from utils.tables.results import Cell, FilledTable, Results


class Expected(BaseModel):
    """One published value."""

    model_config = ConfigDict(extra="forbid")
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


class ExpectedFile(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid")
    tolerance: FiniteFloat
    values: list[Expected]


@dataclass(frozen=True)
class Comparison:
    """A published value beside what was measured; ``measured`` is None where nothing was."""

    expected: Expected
    measured: float | None
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Measured, and within the tolerance."""
        return self.measured is not None and abs(self.measured - self.expected.value) <= self.tolerance

    def __str__(self) -> str:
        e = self.expected
        what = f"{e.task} {e.generator} {e.reranker} {e.condition} {e.metric}"
        what += f", gain over {e.relative_to} in percent" if e.relative_to else ", percent"
        measured = "nothing" if self.measured is None else f"{self.measured:.2f}"
        verdict = "agrees" if self.agrees else "MISS"
        return (
            f"{verdict}: {what}: {e.value:g} published ({e.source}), {measured} measured, tolerance {self.tolerance:g}"
        )


def read_expected(path: Path) -> ExpectedFile:
    """Read the published values.

    Raises:
        UsageError: missing file, or a value without a source, or with a field that is not known.
    """
    try:
        return ExpectedFile.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{path}: '{'.'.join(map(str, first['loc']))}': {first['msg']}") from None


def beside(table: FilledTable, file: ExpectedFile) -> FilledTable:
    """The table with the published values in its cells."""
    shown: dict[tuple[str | None, ...], list[str]] = {}
    for value in file.values:
        gain = f" % over {value.relative_to}" if value.relative_to else ""
        key = (value.task, value.generator, value.reranker, value.condition, value.metric)
        shown.setdefault(key, []).append(f"{value.value:g}{gain} ({value.source})")

    def cell(found: Cell, generator: str, reranker: str) -> Cell:
        key = (found.run.task, generator, reranker, found.condition, found.metric)
        return replace(found, expected="; ".join(shown.get(key, [])))

    rows = [replace(row, cells=[cell(found, row.generator, row.reranker) for found in row.cells]) for row in table.rows]
    return replace(table, rows=rows)


def compare(file: ExpectedFile, results: Results) -> tuple[list[Comparison], list[Expected]]:
    """Each placed value beside the measured one, and the values that have no place.

    Args:
        file: the published values.
        results: of the experiment.

    Raises:
        UsageError: a value names a part that the experiment has not.
    """
    parts = results.plan.experiment
    found, unplaced = [], []
    for value in file.values:
        if value.task is None or value.generator is None or value.reranker is None:
            unplaced.append(value)
            continue
        for field, name in (("tasks", value.task), ("generators", value.generator), ("rerankers", value.reranker)):
            if name not in getattr(parts, field):
                raise UsageError(f"published value {value.value:g} ({value.source}): '{name}' is not under '{field}'")
        for condition in filter(None, (value.condition, value.relative_to)):
            check_condition(condition, f"published value {value.value:g} ({value.source})")
        place = (value.task, value.generator, value.reranker)
        measured = results.mean(results.plan.run(*place, value.condition), value.metric)
        if value.relative_to is not None and measured is not None:
            base = results.mean(results.plan.run(*place, value.relative_to), value.metric)
            measured = measured / base - 1 if base else None
        tolerance = file.tolerance if value.tolerance is None else value.tolerance
        found.append(Comparison(value, None if measured is None else 100 * measured, tolerance))
    return found, unplaced
