"""An experiment: tasks x generators x rerankers x conditions, and its tables (``experiments/NAME.yaml``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utils.config import UsageError, read_yaml

EXPERIMENTS = Path("experiments")
PARTS = ("tasks", "generators", "rerankers")
NAME = re.compile(r"\w[\w.-]*")
WEIGHT = re.compile(r"w(0|1|0?\.\d+)")
# The paper's ablation, as weights of the rationale score.
FIXED_WEIGHTS = {"retrieval_only": 0.0, "rationale_only": 1.0}
LABELS = {
    "closed_book": "no retrieval",
    "retriever": "retriever's order",
    "oracle": "oracle: answers first",
    "base": "base reranker",
    "retrieval_only": "fine-tuned on retrieval scores",
    "rationale_only": "fine-tuned on rationale scores",
    "radio": "RADIO: both, fused",
}
Flags = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A part of a YAML file that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid")


class Task(Strict):
    """A dataset: its profile, and flags of ``run_rag.py`` for it."""

    config: str
    reranker_task: str | None = Field(None, description="the task whose training questions made the reranker")
    flags: Flags = {}


class Table(Strict):
    """A table: a row per generator, reranker and condition, a column per task and metric."""

    caption: str
    tasks: list[str]
    conditions: list[str]
    metrics: list[str]
    generators: list[str] = []
    rerankers: list[str] = []
    baseline: str = Field("base", description="condition that the others of its row group are compared with")


class Experiment(Strict):
    """The whole file; ``experiments/smoke.yaml`` has every part but ``paper_values``."""

    title: str
    prepare: list[str] = []
    embedded_server: bool = False
    tasks: Annotated[dict[str, Task], Field(min_length=1)]
    generators: Annotated[dict[str, Flags], Field(min_length=1)]
    rerankers: Annotated[dict[str, Flags], Field(min_length=1)]
    tables: Annotated[dict[str, Table], Field(min_length=1)]
    paper_values: str | None = Field(None, description="YAML file beside this one, see utils/tables/paper_values.py")

    def chosen(self, names: Sequence[str] | None) -> dict[str, Table]:
        """Return the named tables; all of them for None."""
        for name in names or ():
            if name not in self.tables:
                raise UsageError(f"--tables {name}: there are {', '.join(self.tables)}")
        return {name: table for name, table in self.tables.items() if names is None or name in names}


def read_experiment(path: Path) -> Experiment:
    """Read and check an experiment."""
    experiment = read_model(path, Experiment)
    for fault in faults(experiment):
        raise UsageError(f"{path}: {fault}")
    return experiment


def read_model(path: Path, model: type[Model]) -> Model:
    """Read a YAML file; an error names the file and the field."""
    try:
        return model.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{path}: '{'.'.join(map(str, first['loc']))}': {first['msg']}") from None


def faults(experiment: Experiment) -> Iterator[str]:
    """Yield what does not fit together in an experiment."""
    for field in PARTS:
        for name, flags in getattr(experiment, field).items():
            if not NAME.fullmatch(name):  # names become part of file names
                yield f"{field}: name '{name}' must consist of letters, digits, '-', '_' and '.'"
            if isinstance(flags, dict) and None in flags.values():
                yield f"{field}: '{name}' has an empty value; leave the key out"
    for name, table in experiment.tables.items():
        for field in PARTS:
            for part in getattr(table, field):
                if part not in getattr(experiment, field):
                    yield f"table '{name}' names {field[:-1]} '{part}', which is not under '{field}'"
        yield from (f"table '{name}': {fault}" for fault in condition_faults(table.conditions))
        if table.baseline not in table.conditions:
            yield f"table '{name}': baseline '{table.baseline}' must be one of its conditions"
    for name, task in experiment.tasks.items():
        if (task.reranker_task or name) not in experiment.tasks:
            yield f"task '{name}': reranker_task '{task.reranker_task}' is not under 'tasks'"
    # A run's manifest has the model's name but no address, so one name on two servers could not be told apart.
    servers: dict[str, str] = {}
    for name, flags in experiment.generators.items():
        if flags.get("framework") == "openai":
            model, url = str(flags.get("openai_model")), str(flags.get("base_url"))
            if servers.setdefault(model, url) != url:
                yield f"generators: '{name}' serves model '{model}' elsewhere; serve it under another name"


def condition_faults(conditions: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each condition that does not exist."""
    for condition in conditions:
        if condition not in LABELS and not WEIGHT.fullmatch(condition):
            yield f"condition '{condition}' is none of {', '.join(LABELS)}, w0.25"


def label(condition: str) -> str:
    """Return a condition in words."""
    return LABELS.get(condition) or f"fused, rationale weight {condition[1:]}"
