"""From an experiment to runs and commands.

Each cell of a table is one `Run`, each run one call of ``run_rag.py``, and what it needs before it
(rationales, scores, fine-tuning) other calls. A command that two runs need stands once. Commands decide
themselves whether there is anything left to do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config import checkpoint_path, dataset_dir, docs_path, load_config, training_lines_path
from utils.tables.experiment import FIXED_WEIGHTS, LABELS, NAMED_WEIGHTS, Experiment, Flags, Table, label


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

    def command(self, base_url: str | None) -> list[str]:
        """The words, with the server's address where it is wanted."""
        return [*self.words, *(["--base_url", base_url] if base_url and self.asks_server else [])]


UNRANKED: dict[str, Flags] = {
    "closed_book": {"retrieval_topk": 0},
    "retriever": {},
    "oracle": {"rerank_model_name": "oracle"},
}


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
        return dataset_dir(self._settings(run))

    def train_docs(self, run: Run) -> Path:
        """The candidates of these training questions."""
        return docs_path(self._settings(run))

    def training_lines(self, run: Run) -> Path:
        """The training file of the run's reranker."""
        path = training_lines_path(self._settings(run))
        return path if self._has_default_weight(run) else path.with_name(f"FinetuneDataset_{run.condition}.jsonl")

    def checkpoint(self, run: Run) -> Path:
        """The run's reranker: the profile's own folder for its own settings and weight, others beside it."""
        path = str(checkpoint_path(self._settings(run)))
        if self._tuning(run):
            path += f"_{run.reranker}"
        return Path(path if self._has_default_weight(run) else f"{path}_{run.condition}")

    def asks_letters(self, run: Run) -> bool:
        """Whether the questions that the run's reranker was trained on are multiple choice."""
        return self._settings(run).answer_type == "letter"

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
        profile = self.experiment.tasks[self._trainer(run.task)].config
        settings, fuse, tune = self._settings(run), Flags(), self._tuning(run)
        if not self._has_default_weight(run):
            lines = self.training_lines(run)
            fuse = {"reason_weight": self.weight(run), "output": lines}
            tune["train_data"] = lines
        if (checkpoint := self.checkpoint(run)) != checkpoint_path(settings):
            tune["output_dir"] = checkpoint
        score = {"phase": "generate_dataset"}
        return [
            _step(
                "llm_generation.py", profile, {}, not self._configs[self._trainer(run.task)]["rationale"]["base_url"]
            ),
            _step("dataset_generation.py", profile, {"phase": "get_docs"}),
            _step("dataset_generation.py", profile, score | {"method": "reason"}),
            _step("dataset_generation.py", profile, score | {"method": "retrieval"}),
            _step("score_cache_to_dataset.py", profile, fuse),
            _step("run_finetune.sh", profile, tune),
        ]

    def _settings(self, run: Run) -> argparse.Namespace:
        """The profile that the run's reranker is trained with, as the scripts' helpers take it."""
        config = self._configs[self._trainer(run.task)]
        merged = config["common"] | config["finetune"] | {"answer_type": config["rag"]["answer_type"]}
        return argparse.Namespace(**merged)

    def _tuning(self, run: Run) -> Flags:
        """The reranker's flags that are not the profile's own settings."""
        profile = self._configs[self._trainer(run.task)]["finetune"]
        return {key: value for key, value in self.experiment.rerankers[run.reranker].items() if profile[key] != value}

    def _has_default_weight(self, run: Run) -> bool:
        return self.weight(run) == self._configs[self._trainer(run.task)]["fusion"]["reason_weight"]

    def _evaluation(self, run: Run) -> list[Step]:
        steps = [self.rag_step(run)]
        if (self._configs[run.task]["rag"] | self.experiment.tasks[run.task].flags)["answer_type"] == "letter":
            steps.append(Step(("python", "mmlu_evaluation.py", "--run", str(self.folder(run)))))
        return steps

    def rag_step(self, run: Run) -> Step:
        """The call of ``run_rag.py``."""
        task = self.experiment.tasks[run.task]
        flags: Flags = {"run_name": run.name, **self.experiment.generators[run.generator], **task.flags}
        if not run.reranker:
            flags |= UNRANKED[run.condition]
        elif run.condition == "base":
            flags |= {"rerank_model_path": self._base_model(run), "rerank_model_name": run.reranker}
        else:
            name = f"{run.reranker}_{run.condition}"
            flags |= {"rerank_model_path": self.checkpoint(run), "rerank_model_name": name}
        settings = self._configs[run.task]["rag"] | flags
        asks_server = settings["framework"] == "openai" and not settings["base_url"]
        return _step("run_rag.py", task.config, flags, asks_server)

    def _base_model(self, run: Run) -> str:
        return str(self.experiment.rerankers[run.reranker].get("base_model", self._settings(run).base_model))


def _step(script: str, profile: str, flags: Flags, asks_server: bool = False) -> Step:
    words = ["sh" if script.endswith(".sh") else "python", script, "--config", profile]
    for key, value in flags.items():
        words += [f"--{key}", _written(value)]
    return Step(tuple(words), asks_server)


def _written(value: Any) -> str:
    """A flag's value; a list as JSON, which the scripts' YAML reads back with its escapes."""
    if isinstance(value, list):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
