"""The runs of an experiment and their commands, each once; a command finds out itself whether it has work left."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from utils.config import checkpoint_path, load_config, training_lines_path
from utils.tables.experiment import FIXED_WEIGHTS, LABELS, Experiment, Flags, Table, label

UNRANKED: dict[str, Flags] = {
    "closed_book": {"retrieval_topk": 0},
    "retriever": {},
    "oracle": {"rerank_model_name": "oracle"},
}


@dataclass(frozen=True)
class Run:
    """One call of ``run_rag.py``, as names of the experiment's parts; ``reranker`` is empty where none is used."""

    task: str
    generator: str
    reranker: str
    condition: str

    @property
    def name(self) -> str:
        """The folder below ``save_dir``."""
        return ".".join(part for part in (self.task, self.generator, self.reranker, self.condition) if part)

    @property
    def is_tuned(self) -> bool:
        """Whether the reranker is fine-tuned."""
        return bool(self.reranker) and self.condition != "base"

    @property
    def weight(self) -> float:
        """The rationale score's weight in the training data of a fine-tuned reranker."""
        return float(self.condition[1:])


class Step(NamedTuple):
    """One command, and whether it asks an LLM server whose address may be given later."""

    words: tuple[str, ...]
    asks_server: bool = False

    def command(self, base_url: str | None) -> list[str]:
        """Return the words, with the server's address where it is wanted."""
        return [*self.words, *(["--base_url", base_url] if base_url and self.asks_server else [])]


class Plan:
    """Runs, folders and commands of an experiment."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._configs = {name: load_config(task.config) for name, task in experiment.tasks.items()}

    def row_groups(self, table: Table) -> list[tuple[str, str]]:
        """Return a table's (generator, reranker) pairs; where it names none, the experiment's first one is taken."""
        generators = table.generators or list(self.experiment.generators)[:1]
        rerankers = table.rerankers or list(self.experiment.rerankers)[:1]
        return [(generator, reranker) for generator in generators for reranker in rerankers]

    def run(self, task: str, generator: str, reranker: str, condition: str) -> Run:
        """Return the run of a cell; conditions that mean the same weight share one."""
        if condition in UNRANKED:
            return Run(task, generator, "", condition)
        if condition != "base":
            condition = f"w{self._weight_of(task, condition):g}"
        return Run(task, generator, reranker, condition)

    def runs(self, tables: Iterable[Table]) -> list[Run]:
        """List every run of the tables once."""
        found = {
            self.run(task, generator, reranker, condition): None
            for table in tables
            for generator, reranker in self.row_groups(table)
            for task in table.tasks
            for condition in table.conditions
        }
        return list(found)

    def folder(self, run: Run) -> Path:
        """Return where ``run_rag.py`` leaves the run."""
        return Path(self._configs[run.task]["common"]["save_dir"]) / run.name

    def training(self, run: Run) -> argparse.Namespace:
        """Return the settings that the run's reranker is trained with, as the paths of `utils.config` take them."""
        config = self._configs[self._trainer(run.task)]
        return argparse.Namespace(**config["common"], **config["finetune"], answer_type=config["rag"]["answer_type"])

    def training_lines(self, run: Run) -> Path:
        """Return the training file of the run's reranker."""
        path = training_lines_path(self.training(run))
        return path if self._has_default_weight(run) else path.with_name(f"FinetuneDataset_{run.condition}.jsonl")

    def checkpoint(self, run: Run) -> Path:
        """Return the folder of the run's reranker; one with other flags or weight than the profile's has a suffix."""
        own = f"_{run.reranker}" if self._own_flags(run) else ""
        weight = "" if self._has_default_weight(run) else f"_{run.condition}"
        return Path(f"{checkpoint_path(self.training(run))}{own}{weight}")

    def label(self, run: Run) -> str:
        """Return the run's condition in words; a weight of the ablation by its name there."""
        if run.condition in LABELS:
            return label(run.condition)
        named = (name for name in ("radio", *FIXED_WEIGHTS) if self._weight_of(run.task, name) == run.weight)
        return label(next(named, run.condition))

    def steps(self, runs: Sequence[Run]) -> list[Step]:
        """List the commands of the runs, each once, in an order in which they can be run."""
        steps = [step for run in runs if run.is_tuned for step in self._training_steps(run)]
        for run in runs:
            steps.append(self.rag_step(run))
            if (self._configs[run.task]["rag"] | self.experiment.tasks[run.task].flags)["answer_type"] == "letter":
                steps.append(Step(("python", "mmlu_evaluation.py", "--run", str(self.folder(run)))))
        return list(dict.fromkeys(steps))

    def rag_step(self, run: Run) -> Step:
        """Return the call of ``run_rag.py``."""
        task = self.experiment.tasks[run.task]
        flags: Flags = {"run_name": run.name, **self.experiment.generators[run.generator], **task.flags}
        if not run.reranker:
            flags |= UNRANKED[run.condition]
        elif run.is_tuned:
            name = f"{run.reranker}_{run.condition}"
            flags |= {"rerank_model_path": self.checkpoint(run), "rerank_model_name": name}
        else:
            base = self.experiment.rerankers[run.reranker].get("base_model", self.training(run).base_model)
            flags |= {"rerank_model_path": base, "rerank_model_name": run.reranker}
        settings = self._configs[run.task]["rag"] | flags
        return _step("run_rag.py", task.config, flags, settings["framework"] == "openai" and not settings["base_url"])

    def _training_steps(self, run: Run) -> list[Step]:
        task = self._trainer(run.task)
        profile, tune = self.experiment.tasks[task].config, self._own_flags(run)
        fuse: Flags = {}
        if not self._has_default_weight(run):
            tune["train_data"] = self.training_lines(run)
            fuse = {"reason_weight": run.condition[1:], "output": self.training_lines(run)}
        if (checkpoint := self.checkpoint(run)) != checkpoint_path(self.training(run)):
            tune["output_dir"] = checkpoint
        return [
            _step("llm_generation.py", profile, {}, not self._configs[task]["rationale"]["base_url"]),
            _step("dataset_generation.py", profile, {"phase": "get_docs"}),
            _step("dataset_generation.py", profile, {"phase": "generate_dataset", "method": "reason"}),
            _step("dataset_generation.py", profile, {"phase": "generate_dataset", "method": "retrieval"}),
            _step("score_cache_to_dataset.py", profile, fuse),
            _step("run_finetune.sh", profile, tune),
        ]

    def _trainer(self, task: str) -> str:
        return self.experiment.tasks[task].reranker_task or task

    def _own_flags(self, run: Run) -> Flags:
        """Return the reranker's flags that differ from the profile's settings."""
        profile = self._configs[self._trainer(run.task)]["finetune"]
        return {key: value for key, value in self.experiment.rerankers[run.reranker].items() if profile[key] != value}

    def _weight_of(self, task: str, condition: str) -> float:
        if condition == "radio":
            return self._configs[self._trainer(task)]["fusion"]["reason_weight"]
        return FIXED_WEIGHTS[condition] if condition in FIXED_WEIGHTS else float(condition[1:])

    def _has_default_weight(self, run: Run) -> bool:
        return run.weight == self._weight_of(run.task, "radio")


def _step(script: str, profile: str, flags: Flags, asks_server: bool = False) -> Step:
    words = ["sh" if script.endswith(".sh") else "python", script, "--config", profile]
    for key, value in flags.items():
        # The scripts read a list back from JSON.
        words += [f"--{key}", json.dumps(value) if isinstance(value, list) else str(value)]
    return Step(tuple(words), asks_server)
