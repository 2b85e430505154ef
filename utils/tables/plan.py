"""The runs of an experiment and their commands, each once; a command finds out itself whether it has work left."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from utils.config import checkpoint_path, load_config, training_lines_path
from utils.tables.experiment import LABELS, RECIPES, WEIGHT, Experiment, Table, label, recipe

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
    seed: int | None = None  # of the fine-tuning; None: the profile's

    @property
    def name(self) -> str:
        """The folder below ``save_dir``."""
        return ".".join(part for part in (self.task, self.generator, self.reranker, self.suffix) if part)

    @property
    def suffix(self) -> str:
        """Condition and seed, as part of file names."""
        return self.condition.replace("@", "_") + (f"_s{self.seed}" if self.seed is not None else "")

    @property
    def is_tuned(self) -> bool:
        """Whether the reranker is fine-tuned."""
        return bool(self.reranker) and self.condition != "base"


class Training(NamedTuple):
    """How a fine-tuned reranker is made: settings of its task, training file, folder, and flags that differ."""

    settings: argparse.Namespace  # of the sections common, fusion and finetune, and answer_type
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

    def run(self, task: str, generator: str, reranker: str, condition: str, seed: int | None = None) -> Run:
        """Return the run of a cell; conditions that mean the same training share one."""
        if condition in UNRANKED:
            return Run(task, generator, "", condition)
        if condition == "base":
            return Run(task, generator, reranker, condition)
        common = self._configs[self._trainer(task)]["common"]
        return Run(task, generator, reranker, self._same(task, condition), None if seed == common["seed"] else seed)

    def replicates(self, task: str, generator: str, reranker: str, condition: str) -> list[Run]:
        """Return the runs of a cell: one per seed if its reranker is fine-tuned."""
        seeds: list[int | None] = [*self.experiment.seeds] or [None]
        return list(dict.fromkeys(self.run(task, generator, reranker, condition, seed) for seed in seeds))

    def runs(self, tables: Iterable[Table]) -> list[Run]:
        """List every run of the tables once."""
        cells = ((task, *row) for table in tables for task in table.tasks for row in self.rows(table))
        return list(dict.fromkeys(run for cell in cells for run in self.replicates(*cell)))

    def folder(self, run: Run) -> Path:
        """Return where ``run_rag.py`` leaves the run."""
        return Path(self._configs[run.task]["common"]["save_dir"]) / self._run_name(run)

    def training(self, run: Run) -> Training:
        """Return how the run's reranker is made; one with other flags or weight than the profile's has own names."""
        config, made = self._configs[self._trainer(run.task)], recipe(run.condition)
        letters = {"answer_type": config["rag"]["answer_type"]}
        fused = config["common"] | config["fusion"]
        settings = argparse.Namespace(**fused | made.fuse, **config["finetune"], **letters)
        checkpoint, own = checkpoint_path(settings), self.experiment.rerankers[run.reranker]
        tune: dict[str, Any] = {key: value for key, value in own.items() if value != config["finetune"][key]}
        if tune:
            checkpoint = Path(f"{checkpoint}_{run.reranker}")
        fuse = {key: value for key, value in made.fuse.items() if value != fused[key]}
        lines = training_lines_path(settings)
        if fuse.keys() - {"rationale"}:
            lines = lines.with_name(f"FinetuneDataset_{run.condition.partition('@')[0]}.jsonl")
            fuse["output"] = lines
        if run.suffix != self._same(run.task, "radio"):
            checkpoint = Path(f"{checkpoint}_{run.suffix}")
        if lines != training_lines_path(argparse.Namespace(**config["common"])):
            tune["train_data"] = lines
        if checkpoint != checkpoint_path(settings):
            tune["output_dir"] = checkpoint
        if run.seed is not None:
            tune["seed"] = run.seed
        return Training(settings, lines, checkpoint, fuse, tune)

    def label(self, run: Run) -> str:
        """Return the run's condition in words; a weight of the ablation by its name there."""
        if run.condition in LABELS:
            return label(run.condition)
        named = (name for name in ("radio", *RECIPES) if self._same(run.task, name) == run.condition)
        told = label(next(named, run.condition))
        return told if run.seed is None else f"{told}; seed {run.seed}"

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
        flags: dict[str, Any] = {"run_name": self._run_name(run), **self.experiment.generators[run.generator]}
        flags |= task.flags | ({"split": self.experiment.split} if self.experiment.split else {})
        if not run.reranker:
            flags |= UNRANKED[run.condition]
        elif run.is_tuned:
            name = f"{run.reranker}_{run.suffix}"
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
        profile, imported = self.experiment.tasks[task].config, self.experiment.tasks[task].imported
        source = training.settings.rationale
        chosen = {} if source == self._configs[task]["common"]["rationale"] else {"rationale": source}
        rationales = []
        if source in imported:
            rationales = [_command("import_rationales.py", profile, {"source": tuple(imported[source]), **chosen})]
        elif source != "none":
            asks = self._address(self._configs[task]["rationale"])
            rationales = [_command("llm_generation.py", profile, asks | chosen)]
        return [
            *rationales,
            _command("dataset_generation.py", profile, {"phase": "get_docs"}),
            _command("dataset_generation.py", profile, {"phase": "generate_dataset", "method": "reason", **chosen}),
            _command("dataset_generation.py", profile, {"phase": "generate_dataset", "method": "retrieval"}),
            _command("score_cache_to_dataset.py", profile, training.fuse),
            _command("run_finetune.sh", profile, training.tune),
        ]

    def _run_name(self, run: Run) -> str:
        return ".".join(filter(None, [run.name, self.experiment.split]))

    def _address(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"base_url": self.base_url} if self.base_url and not settings["base_url"] else {}

    def _trainer(self, task: str) -> str:
        return self.experiment.tasks[task].reranker_task or task

    def _same(self, task: str, condition: str) -> str:
        """Return the one name of all conditions that train alike: weight and source, or the name if more differs."""
        config = self._configs[self._trainer(task)]
        name, made = condition.partition("@")[0], recipe(condition)
        if not WEIGHT.fullmatch(name) and made.fuse.keys() - {"reason_weight", "rationale"}:
            return condition
        weight = made.fuse.get("reason_weight", config["fusion"]["reason_weight"])
        source = made.fuse.get("rationale", config["common"]["rationale"])
        other = weight and source != config["common"]["rationale"]
        return f"w{weight:g}" + (f"@{source}" if other else "")


def _command(script: str, profile: str, flags: Mapping[str, Any]) -> Command:
    words = ["sh" if script.endswith(".sh") else "python", script, "--config", profile]
    for key, value in flags.items():
        if isinstance(value, tuple):
            words += [f"--{key}", *value]
        elif isinstance(value, float):
            words += [f"--{key}", f"{value:g}"]
        else:  # the scripts read a list back from JSON
            words += [f"--{key}", json.dumps(value) if isinstance(value, list) else str(value)]
    return tuple(words)
