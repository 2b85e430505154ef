"""Tables of an experiment, out of the runs' scores per question, and how they compare with the paper's values."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from utils.classes import outcome_settings
from utils.config import UsageError, phase_arguments
from utils.mmlu.scores import CATEGORIES, category_of
from utils.rag.metrics import Interval, bootstrap, holm, paired_difference
from utils.store.jsonlines import read_run
from utils.store.manifest import manifest_path, read_manifest
from utils.tables.experiment import PaperValue, Table, label, read_paper_values
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


class TableRow(NamedTuple):
    """A row: its labels, and one cell per column."""

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
        self.paper = read_paper_values(plan.experiment)
        self.of = functools.cache(self._read)

    def values(self, run: Run, metric: str) -> dict[str, float]:
        """Return question id -> score, empty if there is none; a category of MMLU stands for EM over its questions."""
        finished = self.of(run)
        rows = finished.rows if finished else []
        if metric in CATEGORIES:
            about = [(row, row.get("metadata")) for row in rows]
            subjects = [(row, found.get("subject") if isinstance(found, dict) else None) for row, found in about]
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
        for generator, reranker, condition in self.plan.rows(table):
            names = {"generator": generator, "reranker": reranker}
            places = [(task, generator, reranker, condition, metric) for task, metric in columns]
            cells = [self._cell(*place, table.baseline) for place in places]
            rows.append(TableRow((*(names[part] for part in shown), label(condition)), cells))
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
        args = phase_arguments(None, RAG_SECTIONS, argv=self.plan.rag_command(run)[2:])
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

    def _cell(self, task: str, generator: str, reranker: str, condition: str, metric: str, baseline: str) -> Cell:
        run, base = (self.plan.run(task, generator, reranker, name) for name in (condition, baseline))
        cell, values = Cell(run, condition, metric), self.values(run, metric)
        place = (task, generator, reranker, condition, metric)
        printed = [v for v in self.paper.values if (v.task, v.generator, v.reranker, v.condition, v.metric) == place]
        cell.paper_value = "; ".join(map(str, printed))
        if not values:
            return cell
        cell.found = bootstrap(list(values.values()), self.seed)
        against = self.values(base, metric)
        if run != base and against.keys() == values.keys():  # only scores of the same questions make pairs
            paired = [against[key] for key in values]
            cell.difference, cell.p_raw = paired_difference(list(values.values()), paired, self.seed)
        return cell

    def compare(self) -> tuple[list[str], bool]:
        """Compare the paper's values with the runs; return a line for each, and whether all comparable ones agree."""
        if self.plan.experiment.paper_values is None:
            raise UsageError("--check: the experiment names no file of the paper's values ('paper_values')")
        lines, verdicts = [], []
        for value in self.paper.values:
            if None in (value.task, value.generator, value.reranker):
                lines.append(f"not compared: {value.metric} {value.value:g} ({value.source}): {value.remark}")
                continue
            measured = self._measured(value)
            tolerance = self.paper.tolerance if value.tolerance is None else value.tolerance
            verdicts.append(measured is not None and abs(measured - value.value) <= tolerance)
            names = f"{value.task} {value.generator} {value.reranker} {value.condition} {value.metric}"
            unit = f"gain over {value.relative_to} in percent" if value.relative_to else "percent"
            found = "nothing" if measured is None else f"{measured:.2f}"
            lines.append(
                f"{'agrees' if verdicts[-1] else 'MISS'}: {names}, {unit}: {value.value:g} in the paper "
                f"({value.source}), {found} measured, tolerance {tolerance:g}"
            )
        skipped = len(self.paper.values) - len(verdicts)
        lines.append(f"{sum(verdicts)} of {len(verdicts)} paper values agree, {skipped} are not compared")
        return lines, bool(verdicts) and all(verdicts)

    def _measured(self, value: PaperValue) -> float | None:
        """Return our own number in the value's unit; None if its runs are not made."""
        parts = str(value.task), str(value.generator), str(value.reranker)
        runs = [self.plan.run(*parts, condition) for condition in (value.condition, value.relative_to) if condition]
        scores = [self.values(run, value.metric).values() for run in runs]
        if not all(scores):
            return None
        means = [sum(found) / len(found) for found in scores]
        if not value.relative_to:
            return 100 * means[0]
        return 100 * (means[0] / means[1] - 1) if means[1] else None
