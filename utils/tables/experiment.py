"""An experiment: tasks x generators x rerankers x conditions, its tables (``experiments/NAME.yaml``), paper values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from utils.config import UsageError, read_yaml

EXPERIMENTS = Path("experiments")
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
Model = TypeVar("Model", bound=BaseModel)


def label(condition: str) -> str:
    """Return a condition in words."""
    return LABELS.get(condition) or f"fused, rationale weight {condition[1:]}"


def _known(condition: str) -> str:
    if condition not in LABELS and not WEIGHT.fullmatch(condition):
        raise ValueError(f"condition '{condition}' is none of {', '.join(LABELS)}, w0.25")
    return condition


Condition = Annotated[str, AfterValidator(_known)]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # part of file names
Flags = dict[str, str | bool | int | float | list[str]]


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
    conditions: list[Condition]
    metrics: list[str]
    generators: list[str] = []
    rerankers: list[str] = []
    baseline: str = Field("base", description="condition that the others of its row group are compared with")


class Experiment(Strict):
    """The whole file; ``experiments/smoke.yaml`` has every part but ``paper_values``."""

    title: str
    prepare: list[str] = []
    embedded_server: bool = False
    tasks: Annotated[dict[Name, Task], Field(min_length=1)]
    generators: Annotated[dict[Name, Flags], Field(min_length=1)]
    rerankers: Annotated[dict[Name, Flags], Field(min_length=1)]
    tables: Annotated[dict[str, Table], Field(min_length=1)]
    paper_values: str | None = Field(None, description="file of `PaperValues` beside this one")

    def chosen(self, names: Sequence[str] | None) -> dict[str, Table]:
        """Return the named tables; all of them for None."""
        for name in names or ():
            if name not in self.tables:
                raise UsageError(f"--tables {name}: there are {', '.join(self.tables)}")
        return {name: table for name, table in self.tables.items() if names is None or name in names}


class PaperValue(Strict):
    """One value of the paper, in percent; one whose source leaves out a name is not compared."""

    task: str | None = None
    generator: str | None = None
    reranker: str | None = None
    condition: Condition = "radio"
    metric: str = "em"
    value: FiniteFloat
    source: str
    relative_to: Condition | None = Field(None, description="the value is the relative gain over this condition")
    tolerance: FiniteFloat | None = Field(None, description="percentage points")
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.value:g}{f' % over {self.relative_to}' if self.relative_to else ''} ({self.source})"


class PaperValues(Strict):
    """``experiments/paper_values.yaml``; its tolerance is for values that give none of their own."""

    tolerance: FiniteFloat
    values: list[PaperValue]


def read_experiment(path: Path) -> Experiment:
    """Read and check an experiment."""
    experiment = read_model(path, Experiment)
    for fault in faults(experiment):
        raise UsageError(f"{path}: {fault}")
    return experiment


def read_paper_values(experiment: Experiment) -> PaperValues:
    """Read and check the values that an experiment is compared with; none if it names no file of them."""
    if experiment.paper_values is None:
        return PaperValues(tolerance=0, values=[])
    path = EXPERIMENTS / experiment.paper_values
    found = read_model(path, PaperValues)
    for v in found.values:
        for fault in unknown(experiment, tasks=[v.task], generators=[v.generator], rerankers=[v.reranker]):
            raise UsageError(f"{path}: value {v.value:g} ({v.source}): {fault}")
    return found


def read_model(path: Path, model: type[Model]) -> Model:
    """Read a YAML file; an error names the file and the field, and shows no value of it, which may be a secret."""
    try:
        return model.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{path}: '{'.'.join(map(str, first['loc']))}': {first['msg']}") from None


def faults(experiment: Experiment) -> Iterator[str]:
    """Yield what does not fit together in an experiment."""
    for name, table in experiment.tables.items():
        missing = unknown(experiment, tasks=table.tasks, generators=table.generators, rerankers=table.rerankers)
        yield from (f"table '{name}': {fault}" for fault in missing)
        if table.baseline not in table.conditions:
            yield f"table '{name}': baseline '{table.baseline}' must be one of its conditions"
    for name, task in experiment.tasks.items():
        yield from (f"reranker_task of '{name}': {fault}" for fault in unknown(experiment, tasks=[task.reranker_task]))
    # A run's manifest has the model's name but no address, so one name on two servers could not be told apart.
    servers: dict[str, str] = {}
    for name, flags in experiment.generators.items():
        if flags.get("framework") == "openai":
            model, url = str(flags.get("openai_model")), str(flags.get("base_url"))
            if servers.setdefault(model, url) != url:
                yield f"generators: '{name}' serves model '{model}' elsewhere; serve it under another name"


def unknown(experiment: Experiment, **names: Sequence[str | None]) -> Iterator[str]:
    """Yield a sentence for each name, given by its field, that an experiment does not have; None is no name."""
    for field, used in names.items():
        for name in used:
            if name is not None and name not in getattr(experiment, field):
                yield f"{field[:-1]} '{name}' is not under '{field}'"
