"""An experiment: tasks x generators x rerankers x conditions, and tables of them (``experiments/NAME.yaml``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utils.config import UsageError, read_yaml

EXPERIMENTS = Path("experiments")
WEIGHT = re.compile(r"w(0|1|0?\.\d+)")
NAME = re.compile(r"\w[\w.-]*")
PARTS = ("tasks", "generators", "rerankers")
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
    expected: str | None = Field(None, description="YAML file of published values, see utils/tables/paper_values.py")


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
        found = Experiment.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{path}: '{'.'.join(map(str, first['loc']))}': {first['msg']}") from None
    try:
        check(found)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return found


def check(experiment: Experiment) -> None:
    """Refuse names that do not fit together.

    Raises:
        UsageError: a part that does not exist, a name that is no plain word (it becomes part of file names), an
            unknown condition, or generators whose answers could not be told apart.
    """
    for field in PARTS:
        for name, flags in getattr(experiment, field).items():
            if not NAME.fullmatch(name):
                raise UsageError(f"{field}: name '{name}' must consist of letters, digits, '-', '_' and '.'")
            if isinstance(flags, dict) and None in flags.values():
                raise UsageError(f"{field}: '{name}' has an empty value; leave the key out")
    for name, table in experiment.tables.items():
        for field in PARTS:
            for part in getattr(table, field):
                if part not in getattr(experiment, field):
                    raise UsageError(f"table '{name}' names {field[:-1]} '{part}', which is not under '{field}'")
        for condition in table.conditions:
            check_condition(condition, f"table '{name}'")
        if table.baseline not in table.conditions:
            raise UsageError(f"table '{name}': baseline '{table.baseline}' must be one of its conditions")
    for name, task in experiment.tasks.items():
        if task.reranker_task is not None and task.reranker_task not in experiment.tasks:
            raise UsageError(f"task '{name}': reranker_task '{task.reranker_task}' is not under 'tasks'")
    servers: dict[str, str] = {}
    for name, flags in experiment.generators.items():
        if flags.get("framework") == "openai":
            model, url = str(flags.get("openai_model")), str(flags.get("base_url"))
            if servers.setdefault(model, url) != url:
                raise UsageError(f"generators: '{name}' serves model '{model}' elsewhere; serve it under another name")


def check_condition(condition: str, where: str) -> None:
    """Refuse a condition that there is not."""
    if condition not in LABELS and not WEIGHT.fullmatch(condition):
        raise UsageError(f"{where}: condition '{condition}' is none of {', '.join(LABELS)}, w0.25")


def label(condition: str) -> str:
    """A condition in words."""
    return LABELS.get(condition) or f"fused, rationale weight {condition[1:]}"
