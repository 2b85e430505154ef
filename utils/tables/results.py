"""Tables of an experiment, out of the runs' scores per question, and how they compare with the paper's values."""

from __future__ import annotations

import functools
import statistics
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
MEANT = ("mrr", "em")  # the metrics by which a table is put into words
ANSWERS = "intermediate_data.json"
MANIFEST = f"{ANSWERS}.manifest.json"
RAG_SECTIONS = ("retrieval", "rag", "engine")


class FinishedRun(NamedTuple):
    """A run's manifest, and FlashRAG's rows in the order of the questions, without their passages."""

    manifest: dict[str, Any]
    rows: list[dict[str, Any]]


@dataclass
class Cell:
    """A number of a table and its difference from the baseline's; None and "" where there is nothing to show.

    Over several seeds of the fine-tuning, each question counts with the mean of its seeds.
    """

    runs: list[Run]  # one per seed
    condition: str
    metric: str
    found: Interval | None = None
    difference: Interval | None = None
    p_raw: float | None = None
    p: float | None = None  # Holm-adjusted over the table
    paper_value: str = ""  # in percent, with its source
    spread: float | None = None  # standard deviation of the seeds' means

    @property
    def run(self) -> Run:
        """The run of the first seed."""
        return self.runs[0]

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

    @property
    def meanings(self) -> list[str]:
        """What the table says of RADIO, a sentence for each tested cell of the first metric of `MEANT` that it has."""
        tested = [cell for cell in self.cells if cell.condition == "radio" and cell.p is not None and cell.difference]
        metric = next((name for name in MEANT if any(cell.metric == name for cell in tested)), None)
        return [self._meaning(cell) for cell in tested if cell.metric == metric]

    def _meaning(self, cell: Cell) -> str:
        gap, p = cell.difference, cell.p
        assert gap is not None
        assert p is not None
        told = f"{gap.mean:+.3f}" + ("" if gap.low is None else f" [{gap.low:+.3f}, {gap.high:+.3f}]")
        tells = "no difference that this test can tell from chance"
        if cell.significant:
            tells = "RADIO is better" if gap.mean > 0 else "RADIO is worse"
        place = f"{cell.run.task}, {cell.run.generator}, {cell.run.reranker}: RADIO against {label(self.baseline)}"
        return f"{place}, {cell.metric} {told}, p = {p:.2g} after Holm (n = {gap.n}): {tells}."


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

    def seed_mean(self, runs: list[Run], metric: str) -> dict[str, float]:
        """Return question id -> mean score over runs that differ by seed; empty unless all of them have it."""
        every = [self.values(run, metric) for run in runs]
        if any(found.keys() != every[0].keys() for found in every):
            return {}
        return {key: statistics.fmean(found[key] for found in every) for key in every[0]}

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
        split = self.plan.experiment.split
        caption = f"{table.caption}; {split} questions" if split else table.caption
        filled = FilledTable(name, caption, table.baseline, (*shown, "condition"), columns, dropped, rows)
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
        runs, base = (self.plan.replicates(task, generator, reranker, name) for name in (condition, baseline))
        cell, values = Cell(runs, condition, metric), self.seed_mean(runs, metric)
        place = (task, generator, reranker, condition, metric)
        printed = [v for v in self.paper.values if (v.task, v.generator, v.reranker, v.condition, v.metric) == place]
        cell.paper_value = "; ".join(map(str, printed))
        if not values:
            return cell
        cell.found = bootstrap(list(values.values()), self.seed)
        if len(runs) > 1:
            cell.spread = statistics.stdev(statistics.fmean(self.values(run, metric).values()) for run in runs)
        against = self.seed_mean(base, metric)
        if runs != base and against.keys() == values.keys():  # only scores of the same questions make pairs
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
        conditions = [condition for condition in (value.condition, value.relative_to) if condition]
        scores = [self.seed_mean(self.plan.replicates(*parts, name), value.metric).values() for name in conditions]
        if not all(scores):
            return None
        means = [sum(found) / len(found) for found in scores]
        if not value.relative_to:
            return 100 * means[0]
        return 100 * (means[0] / means[1] - 1) if means[1] else None
