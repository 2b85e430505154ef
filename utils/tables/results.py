"""Tables of an experiment: means, intervals and tested differences, out of the runs' per-question scores."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from utils.classes import outcome_settings
from utils.config import phase_arguments
from utils.mmlu.scores import CATEGORIES, category_of
from utils.rag.statistics import Interval, bootstrap, holm, paired_difference
from utils.store.jsonlines import read_run
from utils.store.manifest import manifest_path, read_manifest
from utils.tables.experiment import Table, label
from utils.tables.plan import Plan, Run

LEVEL = 0.05
ANSWERS = "intermediate_data.json"
MANIFEST = f"{ANSWERS}.manifest.json"
RAG_SECTIONS = ("retrieval", "rag", "engine")


class FinishedRun(NamedTuple):
    """A run's manifest, and FlashRAG's rows in the order of the questions, without their passages."""

    manifest: dict[str, Any]
    rows: list[dict[str, Any]]


@dataclass
class Cell:
    """A number of a table and its difference from the baseline's; None and "" where there is nothing to show."""

    run: Run
    condition: str
    metric: str
    found: Interval | None = None
    difference: Interval | None = None
    p_raw: float | None = None
    p: float | None = None  # Holm-adjusted over the table
    paper_value: str = ""  # in percent, with its source

    @property
    def significant(self) -> bool:
        """Whether the difference survives the correction."""
        return self.p is not None and self.p < LEVEL


@dataclass
class TableRow:
    """A row: its generator and reranker, its labels, one cell per column."""

    generator: str
    reranker: str
    labels: tuple[str, ...]
    cells: list[Cell]


@dataclass
class FilledTable:
    """A table with its numbers; ``dropped`` columns are metrics that no run has, such as F1 of MMLU."""

    name: str
    caption: str
    baseline: str
    label_names: tuple[str, ...]
    columns: list[tuple[str, str]]  # task, metric
    dropped: list[tuple[str, str]]
    rows: list[TableRow]

    @property
    def cells(self) -> list[Cell]:
        """All cells, row by row."""
        return [cell for row in self.rows for cell in row.cells]


class Results:
    """The finished runs of a plan; ``seed`` is that of intervals and tests."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.seed = plan, seed
        self.of = functools.cache(self._read)

    def values(self, run: Run, metric: str) -> dict[str, float]:
        """Return question id -> score, empty if there is none; a category of MMLU stands for EM over its questions."""
        finished = self.of(run)
        rows = finished.rows if finished else []
        if metric in CATEGORIES:
            subjects = [(row, (row.get("metadata") or {}).get("subject")) for row in rows]
            rows = [row for row, subject in subjects if subject and category_of(subject) == metric]
            metric = "em"
        scores = {row["id"]: row["output"]["metric_score"].get(metric) for row in rows}
        return {key: value for key, value in scores.items() if value is not None}

    def fill(self, name: str, table: Table) -> FilledTable:
        """Compute a table; cells of runs that were not made stay empty."""
        asked = [(task, metric) for task in table.tasks for metric in table.metrics]
        columns = [column for column in asked if self._has(table, *column)]
        shown = [part for part in ("generator", "reranker") if len(getattr(table, f"{part}s")) > 1]
        rows = []
        for generator, reranker in self.plan.row_groups(table):
            parts = {"generator": generator, "reranker": reranker}
            for condition in table.conditions:
                cells = [
                    self._cell((task, generator, reranker), condition, metric, table.baseline)
                    for task, metric in columns
                ]
                labels = (*(parts[part] for part in shown), label(condition))
                rows.append(TableRow(generator, reranker, labels, cells))
        dropped = [column for column in asked if column not in columns]
        filled = FilledTable(name, table.caption, table.baseline, (*shown, "condition"), columns, dropped, rows)
        tested = [(cell, cell.p_raw) for cell in filled.cells if cell.p_raw is not None]
        for (cell, _), adjusted in zip(tested, holm([p for _, p in tested]), strict=True):
            cell.p = adjusted
        return filled

    def _read(self, run: Run) -> FinishedRun | None:
        """Return a run's results; None if it was not made, or made with other settings or another reranker."""
        folder = self.plan.folder(run)
        if not all((folder / name).exists() for name in (ANSWERS, MANIFEST)):
            return None
        manifest = read_manifest(folder / MANIFEST)
        args = phase_arguments(None, RAG_SECTIONS, argv=self.plan.rag_step(run).words[2:])
        wanted = {"request": None} | outcome_settings(args)  # a run without this setting has no such key
        changed = [key for key, value in wanted.items() if manifest["settings"].get(key) != value]
        # A fine-tuned reranker has a manifest; one from the hub is taken by its name.
        reranker = manifest_path(Path(str(args.rerank_model_path)))
        if reranker.exists():
            fingerprint = read_manifest(reranker)["output_sha256"]
            if manifest["inputs"].get(args.rerank_model_path) != fingerprint:
                changed.append("reranker")
        if changed:
            print(f"{folder} was made with other {', '.join(changed)}: left out until it is made again")
            return None
        rows = read_run(folder / ANSWERS, manifest["command"])
        for row in rows:
            row["output"].pop("retrieval_result", None)  # passages, which are most of the file
        return FinishedRun(manifest, rows)

    def _has(self, table: Table, task: str, metric: str) -> bool:
        """Tell whether a finished run has the metric; without a finished run, any metric may come."""
        made = [run for run in self.plan.runs([table]) if run.task == task and self.of(run)]
        return not made or any(self.values(run, metric) for run in made)

    def _cell(self, parts: tuple[str, str, str], condition: str, metric: str, baseline: str) -> Cell:
        run, base = self.plan.run(*parts, condition), self.plan.run(*parts, baseline)
        cell, values = Cell(run, condition, metric), self.values(run, metric)
        if not values:
            return cell
        cell.found = bootstrap(list(values.values()), self.seed)
        against = self.values(base, metric)
        if run != base and against.keys() == values.keys():  # only scores of the same questions make pairs
            paired = [against[key] for key in values]
            cell.difference, cell.p_raw = paired_difference(list(values.values()), paired, self.seed)
        return cell
