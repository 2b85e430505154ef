"""Tables of an experiment: means, intervals and tested differences, out of the runs' per-question scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from utils.classes import outcome_settings
from utils.config import phase_arguments
from utils.mmlu.categories import CATEGORIES, category_of
from utils.rag.statistics import Interval, bootstrap, holm, paired_difference
from utils.store.jsonlines import read_run
from utils.store.manifest import manifest_path, read_manifest
from utils.tables.experiment import Table, label
from utils.tables.plan import Plan, Run

LEVEL = 0.05
ANSWERS = "intermediate_data.json"
MANIFEST = f"{ANSWERS}.manifest.json"
RAG_SECTIONS = ("retrieval", "rag", "engine")


class RunResults:
    """Per-question results of one run.

    Args:
        folder: as ``run_rag.py`` left it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """FlashRAG's rows without their passages, which are most of them, in the order of the questions."""
        rows = read_run(self.folder / ANSWERS, self.manifest["command"])
        for row in rows:
            row["output"].pop("retrieval_result", None)
        return rows

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What made the run."""
        return read_manifest(self.folder / MANIFEST)

    def values(self, metric: str) -> dict[str, float]:
        """Question id -> score; empty if the run has no such metric. A category's is EM over its questions."""
        if metric in CATEGORIES:
            subjects = {row["id"]: (row.get("metadata") or {}).get("subject") for row in self.rows}
            rows = [row for row in self.rows if (s := subjects[row["id"]]) and category_of(s) == metric]
            metric = "em"
        else:
            rows = self.rows
        scores = {row["id"]: row["output"]["metric_score"].get(metric) for row in rows}
        return {key: value for key, value in scores.items() if value is not None}


@dataclass(frozen=True)
class Cell:
    """A number of a table, with what it is compared to. ``p`` is Holm-adjusted over the table."""

    run: Run
    condition: str
    metric: str
    found: Interval | None = None
    difference: Interval | None = None
    p_raw: float | None = None
    p: float | None = None
    expected: str = ""
    """A published value with its source, in percent."""

    @property
    def significant(self) -> bool:
        """Whether the difference survives the correction."""
        return self.p is not None and self.p < LEVEL


@dataclass(frozen=True)
class TableRow:
    """A row: the parts that it is made of, its labels, and one cell a column."""

    generator: str
    reranker: str
    labels: tuple[str, ...]
    cells: list[Cell]


@dataclass(frozen=True)
class FilledTable:
    """A table with its numbers."""

    name: str
    caption: str
    baseline: str
    label_names: tuple[str, ...]
    columns: list[tuple[str, str]]
    dropped: list[tuple[str, str]]
    """Task and metric that no finished run of the task has: MMLU has no F1."""
    rows: list[TableRow]

    @property
    def cells(self) -> list[Cell]:
        """All cells, row by row."""
        return [cell for row in self.rows for cell in row.cells]


class Results:
    """All finished runs of a plan.

    Args:
        plan: of the experiment.
        seed: of intervals and tests.
    """

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.seed = plan, seed
        self._runs: dict[Run, RunResults | None] = {}

    def of(self, run: Run) -> RunResults | None:
        """The run's results, or None if it was not made, or made with other settings or another reranker."""
        if run not in self._runs:
            found = RunResults(self.plan.folder(run))
            self._runs[run] = found if self._is_current(run, found) else None
        return self._runs[run]

    def _is_current(self, run: Run, found: RunResults) -> bool:
        if not all((found.folder / name).exists() for name in (ANSWERS, MANIFEST)):
            return False
        args = phase_arguments(None, RAG_SECTIONS, argv=self.plan.rag_step(run).words[2:])
        made_with = found.manifest["settings"]
        changed = [key for key, value in outcome_settings(args).items() if made_with.get(key) != value]
        # A fine-tuned reranker has a manifest of its own; a hub's or a downloaded one is taken by its name.
        reranker = manifest_path(Path(str(args.rerank_model_path)))
        if reranker.exists():
            fingerprint = read_manifest(reranker)["output_sha256"]
            if found.manifest["inputs"].get(args.rerank_model_path) != fingerprint:
                changed.append("reranker")
        if changed:
            print(f"{found.folder} was made with other {', '.join(changed)}: left out until it is made again")
        return not changed

    def mean(self, run: Run, metric: str) -> float | None:
        """A run's mean."""
        results = self.of(run)
        values = list(results.values(metric).values()) if results else []
        return sum(values) / len(values) if values else None

    def fill(self, name: str, table: Table) -> FilledTable:
        """Compute a table; cells of runs that were not made stay empty."""
        columns = [(task, metric) for task in table.tasks for metric in table.metrics]
        dropped = [column for column in columns if not self._has(table, *column)]
        columns = [column for column in columns if column not in dropped]
        names = [part for part in ("generator", "reranker") if len(getattr(table, f"{part}s")) > 1]
        rows = []
        for generator, reranker in self.plan.row_groups(table):
            group = {"generator": generator, "reranker": reranker}
            for condition in table.conditions:
                cells = [self._cell(table, task, metric, generator, reranker, condition) for task, metric in columns]
                labels = (*(group[part] for part in names), label(condition))
                rows.append(TableRow(generator, reranker, labels, cells))
        return _adjusted(
            FilledTable(name, table.caption, table.baseline, (*names, "condition"), columns, dropped, rows)
        )

    def _has(self, table: Table, task: str, metric: str) -> bool:
        runs = [run for run in self.plan.runs([table]) if run.task == task]
        made = [results for run in runs if (results := self.of(run))]
        return not made or any(results.values(metric) for results in made)

    def _cell(self, table: Table, task: str, metric: str, generator: str, reranker: str, condition: str) -> Cell:
        run = self.plan.run(task, generator, reranker, condition)
        base = self.plan.run(task, generator, reranker, table.baseline)
        cell = Cell(run, condition, metric)
        results, baseline = self.of(run), self.of(base)
        values = results.values(metric) if results else {}
        if not values:
            return cell
        cell = replace(cell, found=bootstrap(list(values.values()), self.seed))
        against = baseline.values(metric) if baseline and run != base else {}
        if against.keys() != values.keys():
            return cell
        difference, p = paired_difference([*values.values()], [against[key] for key in values], self.seed)
        return replace(cell, difference=difference, p_raw=p)


def _adjusted(table: FilledTable) -> FilledTable:
    """Holm's correction over all differences of the table."""
    tested = [cell for cell in table.cells if cell.p_raw is not None]
    adjusted = dict(zip(map(id, tested), holm([cell.p_raw or 0.0 for cell in tested]), strict=True))
    rows = [replace(row, cells=[replace(cell, p=adjusted.get(id(cell))) for cell in row.cells]) for row in table.rows]
    return replace(table, rows=rows)
