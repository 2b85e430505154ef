"""An experiment: tasks x generators x rerankers x conditions, and the commands that make its tables.

``experiments/NAME.yaml`` names them; each cell of a table is one `Run`, each run one call of
``run_rag.py``, and what it needs before it (rationales, scores, fine-tuning) other calls. A command that
two runs need stands once. Commands decide themselves whether there is anything left to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utils.config import Config, UsageError, load_config

EXPERIMENTS = Path("experiments")
WEIGHT = re.compile(r"w(0|1|0?\.\d+)")
Flags = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Task(_Strict):
    """A dataset: its profile, and flags of ``run_rag.py`` over it."""

    config: str
    reranker_task: str | None = Field(None, description="the task whose training questions made the reranker")
    flags: Flags = {}


class Table(_Strict):
    """A table: a row for every condition, reranker and generator, a column for every task and metric."""

    caption: str
    tasks: list[str]
    conditions: list[str]
    metrics: list[str]
    generators: list[str] = []
    rerankers: list[str] = []
    baseline: str = Field("base", description="condition that the others of its row group are compared with")


class Experiment(_Strict):
    """The file; see ``experiments/smoke.yaml`` for one with every part."""

    title: str
    prepare: list[str] = []
    embedded_server: bool = False
    tasks: Annotated[dict[str, Task], Field(min_length=1)]
    generators: Annotated[dict[str, Flags], Field(min_length=1)]
    rerankers: Annotated[dict[str, Flags], Field(min_length=1)]
    tables: Annotated[dict[str, Table], Field(min_length=1)]
    expected: str | None = Field(None, description="YAML file of published values, see utils/expected.py")


@dataclass(frozen=True)
class Run:
    """One cell's run: names of the experiment's parts. ``reranker`` is empty where none is used."""

    task: str
    generator: str
    reranker: str
    condition: str

    @property
    def name(self) -> str:
        """Folder below ``save_dir``."""
        return ".".join(part for part in (self.task, self.generator, self.reranker, self.condition) if part)


@dataclass(frozen=True)
class Step:
    """One command, and whether it speaks to an LLM server whose address may be given later."""

    words: tuple[str, ...]
    asks_server: bool = False


UNRANKED: dict[str, Flags] = {
    "closed_book": {"retrieval_topk": 0},
    "retriever": {},
    "oracle": {"rerank_model_name": "oracle"},
}
# The paper's ablation, by the weight of the rationale score.
FIXED_WEIGHTS = {"retrieval_only": 0.0, "rationale_only": 1.0}
NAMED_WEIGHTS = (*FIXED_WEIGHTS, "radio")
LABELS = {
    "closed_book": "no retrieval",
    "retriever": "retriever's order",
    "oracle": "oracle: answers first",
    "base": "base reranker",
    "retrieval_only": "fine-tuned on retrieval scores",
    "rationale_only": "fine-tuned on rationale scores",
    "radio": "RADIO: both, fused",
}


def read_experiment(path: Path) -> Experiment:
    """Read and check an experiment.

    Raises:
        UsageError: missing file, unknown field, or a table that names a part that does not exist.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise UsageError(f"{path} is missing (there are: {there})") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from None
    try:
        found = Experiment.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{path}: '{'.'.join(map(str, first['loc']))}': {first['msg']}") from None
    for name, table in found.tables.items():
        for field in ("tasks", "generators", "rerankers"):
            for part in getattr(table, field):
                if part not in getattr(found, field):
                    raise UsageError(
                        f"{path}: table '{name}' names {field[:-1]} '{part}', which is not under '{field}'"
                    )
        for condition in table.conditions:
            if condition not in LABELS and not WEIGHT.fullmatch(condition):
                raise UsageError(
                    f"{path}: table '{name}': condition '{condition}' is none of {', '.join(LABELS)}, w0.25"
                )
    for name, task in found.tasks.items():
        if task.reranker_task is not None and task.reranker_task not in found.tasks:
            raise UsageError(f"{path}: task '{name}': reranker_task '{task.reranker_task}' is not under 'tasks'")
    return found


def label(condition: str) -> str:
    """A condition in words."""
    return LABELS.get(condition) or f"fused, rationale weight {condition[1:]}"


class Plan:
    """Runs and commands of an experiment.

    Args:
        experiment: as read.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._configs = {name: load_config(task.config) for name, task in experiment.tasks.items()}

    def row_groups(self, table: Table) -> list[tuple[str, str]]:
        """The (generator, reranker) pairs of a table; those that it does not name are the first ones."""
        generators = table.generators or list(self.experiment.generators)[:1]
        rerankers = table.rerankers or list(self.experiment.rerankers)[:1]
        return [(generator, reranker) for generator in generators for reranker in rerankers]

    def run(self, task: str, generator: str, reranker: str, condition: str) -> Run:
        """The run of a cell; names of the same thing give the same run."""
        if condition in UNRANKED:
            return Run(task, generator, "", condition)
        if condition == "base":
            return Run(task, generator, reranker, condition)
        return Run(task, generator, reranker, f"w{self._weight_of(task, condition):g}")

    def runs(self, tables: Iterable[Table]) -> list[Run]:
        """Every run of the tables, once."""
        return list(
            dict.fromkeys(
                self.run(task, generator, reranker, condition)
                for table in tables
                for generator, reranker in self.row_groups(table)
                for task in table.tasks
                for condition in table.conditions
            )
        )

    def folder(self, run: Run) -> Path:
        """Where ``run_rag.py`` leaves the run."""
        return Path(self._configs[run.task]["common"]["save_dir"]) / run.name

    def train_folder(self, run: Run) -> Path:
        """Folder of the dataset that the run's reranker was trained on."""
        common = self._configs[self._trainer(run.task)]["common"]
        return Path(common["data_dir"]) / common["dataset"]

    def train_docs(self, run: Run) -> Path:
        """The candidates of these training questions."""
        limit = self._configs[self._trainer(run.task)]["common"]["train_questions"]
        return self.train_folder(run) / f"train_docs_{limit or 'all'}.jsonl"

    def training_lines(self, run: Run) -> Path:
        """The training file of the run's reranker."""
        name = "" if self._has_default_weight(run) else f"_{run.condition}"
        suffix = name or "_for_flagembedding"
        return self.train_folder(run) / f"reason+retrieval/FinetuneDataset{suffix}.jsonl"

    def checkpoint(self, run: Run) -> str:
        """The run's reranker: the profile's own folder for its own base model and weight, others beside it."""
        path = default_checkpoint(self._configs[self._trainer(run.task)])
        if run.reranker != next(iter(self.experiment.rerankers)):
            path += f"_{run.reranker}"
        return path + ("" if self._has_default_weight(run) else f"_{run.condition}")

    def label(self, run: Run) -> str:
        """The run's condition in words, by the name it has in the ablation if it has one."""
        names = {} if run.condition in LABELS else {self._weight_of(run.task, name): name for name in NAMED_WEIGHTS}
        return label(names.get(self.weight(run), run.condition) if names else run.condition)

    def weight(self, run: Run) -> float:
        """The rationale score's weight in the training data of the run's reranker."""
        return float(run.condition[1:])

    def steps(self, runs: Sequence[Run]) -> list[Step]:
        """The commands of the runs, each once, in an order in which they can be run."""
        found: dict[Step, None] = {}
        for run in runs:
            if run.reranker and run.condition != "base":
                found.update(dict.fromkeys(self._training(run)))
        for run in runs:
            found.update(dict.fromkeys(self._evaluation(run)))
        return list(found)

    def _trainer(self, task: str) -> str:
        return self.experiment.tasks[task].reranker_task or task

    def _weight_of(self, task: str, condition: str) -> float:
        if condition == "radio":
            return self._configs[self._trainer(task)]["fusion"]["reason_weight"]
        return FIXED_WEIGHTS[condition] if condition in FIXED_WEIGHTS else float(condition[1:])

    def _training(self, run: Run) -> list[Step]:
        """Rationales, candidates, scores, fusion and fine-tuning of the run's reranker."""
        trainer = self._trainer(run.task)
        profile = self.experiment.tasks[trainer].config
        config = self._configs[trainer]
        fuse: Flags = {}
        tune = {k: v for k, v in self.experiment.rerankers[run.reranker].items() if config["finetune"].get(k) != v}
        if not self._has_default_weight(run):
            lines = self.training_lines(run)
            fuse = {"reason_weight": f"{self.weight(run):g}", "output": lines}
            tune["train_data"] = lines
        checkpoint = self.checkpoint(run)
        if checkpoint != default_checkpoint(config):
            tune["output_dir"] = checkpoint
        score = {"phase": "generate_dataset"}
        return [
            _step("llm_generation.py", profile, {}, asks_server=True),
            _step("dataset_generation.py", profile, {"phase": "get_docs"}),
            _step("dataset_generation.py", profile, score | {"method": "reason"}),
            _step("dataset_generation.py", profile, score | {"method": "retrieval"}),
            _step("score_cache_to_dataset.py", profile, fuse),
            _step("run_finetune.sh", profile, tune),
        ]

    def _has_default_weight(self, run: Run) -> bool:
        return self.weight(run) == self._configs[self._trainer(run.task)]["fusion"]["reason_weight"]

    def _evaluation(self, run: Run) -> list[Step]:
        task, config = self.experiment.tasks[run.task], self._configs[run.task]
        flags: Flags = {"run_name": run.name, **self.experiment.generators[run.generator], **task.flags}
        if not run.reranker:
            flags |= UNRANKED[run.condition]
        elif run.condition == "base":
            flags["rerank_model_path"] = self._base_model(run)
            flags["rerank_model_name"] = run.reranker
        else:
            flags["rerank_model_path"] = self.checkpoint(run)
            flags["rerank_model_name"] = f"{run.reranker}_{run.condition}"
        settings = config["rag"] | flags
        steps = [
            _step("run_rag.py", task.config, flags, settings["framework"] == "openai" and not settings["base_url"])
        ]
        if settings["answer_type"] == "letter":
            steps.append(Step(("python", "mmlu_evaluation.py", "--run", str(self.folder(run)))))
        return steps

    def _base_model(self, run: Run) -> str:
        config = self._configs[self._trainer(run.task)]
        return str(self.experiment.rerankers[run.reranker].get("base_model", config["finetune"]["base_model"]))


def default_checkpoint(config: Config) -> str:
    """Where ``run_finetune.sh`` puts the model unless it is told."""
    return str(config["finetune"]["output_dir"] or f"checkpoints/{config['common']['dataset']}_radio")


def _step(script: str, profile: str, flags: Flags, asks_server: bool = False) -> Step:
    words = ["sh" if script.endswith(".sh") else "python", script, "--config", profile]
    for key, value in flags.items():
        words += [f"--{key}", str(value)]
    return Step(tuple(words), asks_server)
