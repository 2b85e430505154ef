"""An experiment: tasks x generators x rerankers x conditions, its tables (``experiments/NAME.yaml``), paper values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from utils.config import UsageError, read_yaml

EXPERIMENTS = Path("experiments")
WEIGHT = re.compile(r"w(0|1|0?\.\d+)")
# Conditions without a fine-tuned reranker.
LABELS = {
    "closed_book": "no retrieval",
    "retriever": "retriever's order",
    "oracle": "oracle: answers first",
    "base": "base reranker",
}


class Recipe(NamedTuple):
    """How a condition's groups are made: flags of score_cache_to_dataset.py over its task's profile."""

    label: str
    fuse: dict[str, Any]


RECIPES = {
    "retrieval_only": Recipe("fine-tuned on retrieval scores", {"reason_weight": 0}),
    "rationale_only": Recipe("fine-tuned on rationale scores", {"reason_weight": 1}),
    "answer_only": Recipe(
        "fine-tuned on scores of the answer, no rationale", {"reason_weight": 1, "rationale": "none"}
    ),
    "radio": Recipe("RADIO: both, fused", {}),
    "supervised": Recipe("supervised: by answer matching", {"reason_weight": 0, "supervised": True}),
}
Model = TypeVar("Model", bound=BaseModel)


def recipe(condition: str) -> Recipe:
    """Return how a fine-tuned condition is made: a name of `RECIPES` or a weight, and ``@`` a source of rationales.

    >>> recipe("w0.25@none").fuse
    {'reason_weight': 0.25, 'rationale': 'none'}
    """
    name, _, source = condition.partition("@")
    found = RECIPES.get(name) or Recipe(f"fused, rationale weight {name[1:]}", {"reason_weight": float(name[1:])})
    if not source:
        return found
    told = "no rationale" if source == "none" else f"rationales: {source}"
    return found._replace(label=f"{found.label}; {told}", fuse=found.fuse | {"rationale": source})


def label(condition: str) -> str:
    """Return a condition in words."""
    return LABELS.get(condition) or recipe(condition).label


def _known(condition: str) -> str:
    name, at, source = condition.partition("@")
    fits = name in RECIPES or WEIGHT.fullmatch(name)
    if condition not in LABELS and not (fits and (source or not at)):
        known = ", ".join([*LABELS, *RECIPES])
        raise ValueError(f"condition '{condition}' is none of {known}, w0.25; radio@none has other rationales")
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
    imported: dict[Name, list[str]] = Field({}, description="rationales that are imported: folder -> their files")
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
    split: Name | None = Field(None, description="the questions of all runs, such as dev; None: each profile's")
    seeds: list[int] = Field([], description="each reranker is fine-tuned with each; empty: with the profile's")
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
