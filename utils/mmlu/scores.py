"""MMLU's 57 subjects and their categories, and exact match by category."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import AliasPath, BaseModel, Field

from utils.config import UsageError
from utils.mmlu.letters import parse_letter
from utils.rag.metrics import RESAMPLES, bootstrap
from utils.store.files import write_file
from utils.store.jsonlines import parse_row, read_run
from utils.store.manifest import fingerprint

CATEGORIES = ("STEM", "Humanities", "Social Sciences", "Other")
# The groups of the benchmark's authors, except that anatomy, which they put under Other, is STEM here, as in the
# results published with RADIO.
_SUBJECTS = {
    "STEM": """
        abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science
        college_mathematics college_physics computer_security conceptual_physics electrical_engineering
        elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science
        high_school_mathematics high_school_physics high_school_statistics machine_learning""",
    "Humanities": """
        formal_logic high_school_european_history high_school_us_history high_school_world_history
        international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy
        prehistory professional_law world_religions""",
    "Social Sciences": """
        econometrics high_school_geography high_school_government_and_politics
        high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality
        professional_psychology public_relations security_studies sociology us_foreign_policy""",
    "Other": """
        business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing
        medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology""",
}
CATEGORY = {subject: category for category, subjects in _SUBJECTS.items() for subject in subjects.split()}


def subject_name(subject: str) -> str:
    """Return a subject as the benchmark's files spell it: lower case, underscores for spaces."""
    return re.sub(r"[\s_]+", "_", subject.strip().lower())


def category_of(subject: str, where: str = "") -> str:
    """Return a subject's category; the error for an unknown one begins with ``where`` and names the nearest."""
    name = subject_name(subject)
    if name in CATEGORY:
        return CATEGORY[name]
    close = difflib.get_close_matches(name, CATEGORY, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "MMLU has 57, for example 'anatomy'"
    raise UsageError(f"{where}unknown MMLU subject {subject!r}; {hint}")


def evaluate(run: Path, seed: int) -> str:
    """Score a run's answers, write ``mmlu_score.json`` and ``mmlu_score.txt`` beside them, and return the text."""
    path = run / "intermediate_data.json"
    made_by = f"python run_rag.py --config profiles/mmlu.yaml --run_name {run.name or 'NAME'}"
    graded = grade(read_run(path, made_by), path, made_by)
    scores = {"run": str(run), **score(graded, seed), "intermediate_data_sha256": fingerprint(path)}
    text = f"MMLU exact match of {run}, n = {len(graded)}, seed {seed}\n\n{table(scores)}"
    as_json = orjson.dumps(scores, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    write_file(run / "mmlu_score.json", as_json)
    write_file(run / "mmlu_score.txt", text)
    return text


class Graded(NamedTuple):
    """One answered question: its subject, whether a letter was read, and whether it is the gold letter."""

    subject: str
    parsed: bool
    correct: bool


class _Answered(BaseModel):
    golden_answers: Annotated[list[Literal["A", "B", "C", "D"]], Field(min_length=1)]
    subject: Annotated[str, Field(validation_alias=AliasPath("metadata", "subject"))]
    pred: Annotated[str, Field(validation_alias=AliasPath("output", "pred"))]


def grade(rows: Iterable[Any], path: Path, made_by: str) -> list[Graded]:
    """Compare the letter of each prediction with the gold letter; an error names the row, its id and what to run."""
    graded = []
    for number, raw in enumerate(rows, 1):
        where = f"{path}, row {number}" + (f" (id {raw.get('id')})" if isinstance(raw, dict) else "")
        try:
            row = parse_row(raw, _Answered, where)
        except UsageError as error:
            raise UsageError(f"{error}; answer mmlu_preprocess.py's questions with: {made_by} --overwrite") from None
        category_of(row.subject, f"{where}: field 'metadata.subject': ")
        letter = parse_letter(row.pred)
        graded.append(Graded(subject_name(row.subject), letter is not None, letter in row.golden_answers))
    return graded


def score(graded: Iterable[Graded], seed: int) -> dict[str, Any]:
    """Return exact match by category, over all questions, by subject, and averaged over subjects.

    An answer without a letter counts as wrong; without questions ``em`` is None.
    """
    by_category: dict[str, list[Graded]] = {category: [] for category in CATEGORIES}
    by_subject: dict[str, list[Graded]] = defaultdict(list)
    for row in graded:
        by_category[CATEGORY[row.subject]].append(row)
        by_subject[row.subject].append(row)
    everyone = [row for rows in by_category.values() for row in rows]
    subjects = {name: {"category": CATEGORY[name], **_summary(rows)} for name, rows in sorted(by_subject.items())}
    return {
        "categories": {category: _with_interval(rows, seed) for category, rows in by_category.items()},
        "overall": _with_interval(everyone, seed),
        "macro": {"em": _mean([subject["em"] for subject in subjects.values()]), "subjects": len(subjects)},
        "subjects": subjects,
        "bootstrap": {"seed": seed, "resamples": RESAMPLES},
    }


def _summary(rows: Sequence[Graded]) -> dict[str, Any]:
    correct, unparsable = [row.correct for row in rows], sum(not row.parsed for row in rows)
    return {"em": _mean(correct), "correct": sum(correct), "n": len(rows), "unparsable": unparsable}


def _with_interval(rows: Sequence[Graded], seed: int) -> dict[str, Any]:
    found = bootstrap([row.correct for row in rows], seed) if rows else None
    return _summary(rows) | {"interval": [found.low, found.high] if found and found.low is not None else None}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def table(scores: dict[str, Any]) -> str:
    """Return `score`'s result as lines of text, EM in percent."""
    lines = [f"{'':<18}{'EM %':>7}  {'95 % interval':<16}{'correct/n':>13}{'unparsable':>12}"]
    for name, row in [*scores["categories"].items(), ("Overall (micro)", scores["overall"])]:
        interval = "[{:.2f}, {:.2f}]".format(*(100 * end for end in row["interval"])) if row["interval"] else "-"
        counts = f"{row['correct']}/{row['n']}"
        lines.append(f"{name:<18}{_percent(row['em']):>7}  {interval:<16}{counts:>13}{row['unparsable']:>12}")
    macro = scores["macro"]
    lines.append(f"{'Subjects (macro)':<18}{_percent(macro['em']):>7}  mean of {macro['subjects']} subjects")
    return "\n".join(lines) + "\n"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
