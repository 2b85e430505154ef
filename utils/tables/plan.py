"""The runs of an experiment and their commands, each once; a command finds out itself whether it has work left."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from utils.config import checkpoint_path, load_config, training_lines_path
from utils.tables.experiment import FIXED_WEIGHTS, LABELS, Experiment, Table, label

Command = tuple[str, ...]
# Conditions without a reranker, and their flags of run_rag.py.
UNRANKED: dict[str, dict[str, Any]] = {
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


class Training(NamedTuple):
    """How a fine-tuned reranker is made: settings of its task, training file, folder, and flags that differ."""

    settings: argparse.Namespace  # of the sections common and finetune, and answer_type
    lines: Path
    checkpoint: Path
    fuse: dict[str, Any]  # flags of score_cache_to_dataset.py
    tune: dict[str, Any]  # flags of run_finetune.sh


class Plan:
    """Runs, folders and commands of an experiment; ``base_url`` is for commands whose profile names no LLM server."""

    def __init__(self, experiment: Experiment, base_url: str | None = None) -> None:
        self.experiment, self.base_url = experiment, base_url
        self._configs = {name: load_config(task.config) for name, task in experiment.tasks.items()}

    def rows(self, table: Table) -> list[tuple[str, str, str]]:
        """Return a table's generators x rerankers x conditions; of what it names none, the experiment's first."""
        generators = table.generators or list(self.experiment.generators)[:1]
        rerankers = table.rerankers or list(self.experiment.rerankers)[:1]
        return [(g, r, condition) for g in generators for r in rerankers for condition in table.conditions]

    def run(self, task: str, generator: str, reranker: str, condition: str) -> Run:
        """Return the run of a cell; conditions that mean the same weight share one."""
        if condition in UNRANKED:
            return Run(task, generator, "", condition)
        if condition != "base":
            condition = f"w{self._weight_of(task, condition):g}"
        return Run(task, generator, reranker, condition)

    def runs(self, tables: Iterable[Table]) -> list[Run]:
        """List every run of the tables once."""
        runs = (self.run(task, *row) for table in tables for task in table.tasks for row in self.rows(table))
        return list(dict.fromkeys(runs))

    def folder(self, run: Run) -> Path:
        """Return where ``run_rag.py`` leaves the run."""
        return Path(self._configs[run.task]["common"]["save_dir"]) / run.name

    def training(self, run: Run) -> Training:
        """Return how the run's reranker is made; one with other flags or weight than the profile's has own names."""
        config = self._configs[self._trainer(run.task)]
        letters = {"answer_type": config["rag"]["answer_type"]}
        settings = argparse.Namespace(**config["common"], **config["finetune"], **letters)
        lines, checkpoint, fuse = training_lines_path(settings), checkpoint_path(settings), dict[str, Any]()
        own = self.experiment.rerankers[run.reranker]
        tune: dict[str, Any] = {key: value for key, value in own.items() if value != config["finetune"][key]}
        if tune:
            checkpoint = Path(f"{checkpoint}_{run.reranker}")
        if run.weight != config["fusion"]["reason_weight"]:
            checkpoint = Path(f"{checkpoint}_{run.condition}")
            lines = lines.with_name(f"FinetuneDataset_{run.condition}.jsonl")
            fuse = {"reason_weight": run.condition[1:], "output": lines}
            tune["train_data"] = lines
        if checkpoint != checkpoint_path(settings):
            tune["output_dir"] = checkpoint
        return Training(settings, lines, checkpoint, fuse, tune)

    def label(self, run: Run) -> str:
        """Return the run's condition in words; a weight of the ablation by its name there."""
        if run.condition in LABELS:
            return label(run.condition)
        named = (name for name in ("radio", *FIXED_WEIGHTS) if self._weight_of(run.task, name) == run.weight)
        return label(next(named, run.condition))

    def commands(self, runs: Sequence[Run]) -> list[Command]:
        """List the commands of the runs, each once, in an order in which they can be run."""
        commands = [command for run in runs if run.is_tuned for command in self._training_commands(run)]
        for run in runs:
            commands.append(self.rag_command(run))
            if (self._configs[run.task]["rag"] | self.experiment.tasks[run.task].flags)["answer_type"] == "letter":
                commands.append(("python", "mmlu_evaluation.py", "--run", str(self.folder(run))))
        return list(dict.fromkeys(commands))

    def rag_command(self, run: Run) -> Command:
        """Return the call of ``run_rag.py``."""
        task = self.experiment.tasks[run.task]
        flags: dict[str, Any] = {"run_name": run.name, **self.experiment.generators[run.generator], **task.flags}
        if not run.reranker:
            flags |= UNRANKED[run.condition]
        elif run.is_tuned:
            name = f"{run.reranker}_{run.condition}"
            flags |= {"rerank_model_path": self.training(run).checkpoint, "rerank_model_name": name}
        else:
            profile = self._configs[self._trainer(run.task)]["finetune"]
            base = (profile | self.experiment.rerankers[run.reranker])["base_model"]
            flags |= {"rerank_model_path": base, "rerank_model_name": run.reranker}
        settings = self._configs[run.task]["rag"] | flags
        asks = self._address(settings) if settings["framework"] == "openai" else {}
        return _command("run_rag.py", task.config, flags | asks)

    def _training_commands(self, run: Run) -> list[Command]:
        task, training = self._trainer(run.task), self.training(run)
        profile = self.experiment.tasks[task].config
        return [
            _command("llm_generation.py", profile, self._address(self._configs[task]["rationale"])),
            _command("dataset_generation.py", profile, {"phase": "get_docs"}),
            _command("dataset_generation.py", profile, {"phase": "generate_dataset", "method": "reason"}),
            _command("dataset_generation.py", profile, {"phase": "generate_dataset", "method": "retrieval"}),
            _command("score_cache_to_dataset.py", profile, training.fuse),
            _command("run_finetune.sh", profile, training.tune),
        ]

    def _address(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"base_url": self.base_url} if self.base_url and not settings["base_url"] else {}

    def _trainer(self, task: str) -> str:
        return self.experiment.tasks[task].reranker_task or task

    def _weight_of(self, task: str, condition: str) -> float:
        if condition == "radio":
            return self._configs[self._trainer(task)]["fusion"]["reason_weight"]
        return FIXED_WEIGHTS[condition] if condition in FIXED_WEIGHTS else float(condition[1:])


def _command(script: str, profile: str, flags: Mapping[str, Any]) -> Command:
    words = ["sh" if script.endswith(".sh") else "python", script, "--config", profile]
    for key, value in flags.items():
        # The scripts read a list back from JSON.
        words += [f"--{key}", json.dumps(value) if isinstance(value, list) else str(value)]
    return tuple(words)
