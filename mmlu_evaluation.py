"""Score a run on MMLU: exact match by category, with counts and intervals.

    python mmlu_evaluation.py --run output/RUN

reads   RUN/intermediate_data.json: a JSON array of rows {id, golden_answers: ["B"],
        metadata: {subject}, output: {pred}}, as run_rag.py leaves it
writes  RUN/mmlu_score.json (EM of categories, subjects and all; between 0 and 1) and
        RUN/mmlu_score.txt (the table that is printed, in percent)

A prediction is right if the letter read from it is the gold letter. One that marks no letter, or
several, is counted as wrong and as unparsable. The categories are STEM (which includes anatomy),
Humanities, Social Sciences and Other; micro is over questions, macro the mean of the subjects.
Intervals are 95 % percentile bootstrap over questions, 10,000 resamples, seeded by --seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.config import UsageError, phase_arguments, run_main

if TYPE_CHECKING:
    from utils.mmlu.scores import Graded

MADE_BY = "python run_rag.py --config profiles/mmlu.yaml --run_name {run}"
RUN = {"required": True, "metavar": "DIR", "help": "folder of a run, with its intermediate_data.json"}


def main() -> None:
    """Parse the command line, score the run, write and print the table."""
    args = phase_arguments(__doc__, [], extra=[("--run", RUN)])

    import orjson

    from utils.mmlu.scores import score, table
    from utils.store.files import atomic
    from utils.store.jsonlines import read_run
    from utils.store.manifest import fingerprint

    run = Path(args.run)
    path, made_by = run / "intermediate_data.json", MADE_BY.format(run=run.name or "NAME")
    graded = grade(read_run(path, made_by), path, made_by)
    scores = {"run": str(run), **score(graded, args.seed), "intermediate_data_sha256": fingerprint(path)}
    text = f"MMLU exact match of {run}, n = {len(graded)}, seed {args.seed}\n\n{table(scores)}"
    with atomic(run / "mmlu_score.json") as handle:
        handle.write(orjson.dumps(scores, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    with atomic(run / "mmlu_score.txt") as handle:
        handle.write(text.encode())
    print(text, end="")


def grade(rows: list[Any], path: Path, made_by: str) -> list[Graded]:
    """Compare the letter of each prediction with the gold letter.

    Raises:
        UsageError: a field is missing or wrong, a subject unknown, or an id repeated; the message
            names the row, its id, and what to do.
    """
    from typing import Annotated, Literal

    from pydantic import BaseModel, Field

    from utils.mmlu.categories import category_of
    from utils.mmlu.letters import parse_letter
    from utils.mmlu.scores import Graded
    from utils.store.jsonlines import parse_row
    from utils.store.rows import Name

    class Metadata(BaseModel):
        subject: str

    class Output(BaseModel):
        pred: str

    class Answered(BaseModel):
        id: Name
        golden_answers: Annotated[list[Literal["A", "B", "C", "D"]], Field(min_length=1)]
        metadata: Metadata
        output: Output

    graded, seen = [], set()
    for number, raw in enumerate(rows, 1):
        where = f"{path}, row {number}" + (f" (id {raw.get('id')})" if isinstance(raw, dict) else "")
        try:
            row = parse_row(raw, Answered, where)
        except UsageError as error:
            raise UsageError(f"{error}; answer mmlu_preprocess.py's questions with: {made_by} --overwrite") from None
        if row.id in seen:
            raise UsageError(f"{where}: an earlier row has this id; run: {made_by} --overwrite")
        seen.add(row.id)
        try:
            category_of(row.metadata.subject)
        except UsageError as error:
            raise UsageError(f"{where}: field 'metadata.subject': {error}") from None
        letter = parse_letter(row.output.pred)
        graded.append(Graded(row.metadata.subject, letter is not None, letter in row.golden_answers))
    return graded


if __name__ == "__main__":
    run_main(main)
