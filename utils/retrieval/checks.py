"""Is a dataset ready for the method? Every fault is counted, with the place of the first of its kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from utils.config import UsageError
from utils.retrieval.answers import apply_rows, prepare
from utils.store.jsonlines import WRONG_FIELD, Row, checked_rows
from utils.store.rows import Passage, Question

PASSAGES_AT_ONCE = 100_000  # in memory
SHOWN = 5


@dataclass
class FileReport:
    """A file's number of sound rows, and the number and first place of each kind of fault."""

    path: Path
    rows: int = 0
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, error: UsageError) -> None:
        """Count a fault."""
        line, _, fault = str(error).removeprefix(f"{self.path}:").partition(": ")
        where = f"line {line} ({fault})"
        if kind == WRONG_FIELD:  # each field is a kind of its own
            kind, where = fault.partition(" (found")[0], f"line {line}"
        count, first = self.faults.get(kind, (0, where))
        self.faults[kind] = (count + 1, first)

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.rows} sound rows"]
        lines += [f"  {count} x {kind}, first at {first}" for kind, (count, first) in self.faults.items()]
        return "\n".join(lines)


def check_dataset(folder: Path, corpus: Path) -> bool:
    """Print what the splits in ``data_dir/dataset`` and the corpus hold, and return whether they are free of faults.

    Questions without an answer in any passage are counted too, but are no fault: no corpus has every answer.
    """
    splits = [path for name in ("train.jsonl", "dev.jsonl", "test.jsonl") if (path := folder / name).exists()]
    if not splits:
        raise UsageError(f"{folder} has none of train.jsonl, dev.jsonl, test.jsonl")
    if not corpus.exists():
        raise UsageError(f"corpus {corpus} is missing; give --corpus_path")
    reports = [FileReport(path) for path in (*splits, corpus)]
    questions = {report.path: list(sound_rows(report.path, Question, report)) for report in reports[:-1]}
    passages = tqdm(sound_rows(corpus, Passage, reports[-1]), desc="search answers", unit="passage")
    found = answers_found({a for rows in questions.values() for q in rows for a in q.golden_answers}, passages)
    print(*reports, sep="\n")
    for path, rows in questions.items():
        without = [q.id for q in rows if not found.intersection(q.golden_answers)]
        ids = f" (ids {', '.join(without[:SHOWN])}, ...)" if without else ""
        print(f"{path}: {len(without)} of {len(rows)} questions have no answer in any passage{ids}")
    return not any(report.faults for report in reports)


def sound_rows(path: Path, model: type[Row], report: FileReport) -> Iterator[Row]:
    """Yield the sound rows of a JSON-lines file; the faults of the others go into ``report``."""
    for row in checked_rows(path, model, on_fault=report.add):
        report.rows += 1
        yield row


def answers_found(answers: Iterable[str], passages: Iterable[Passage]) -> set[str]:
    """Return the answers that occur in at least one passage, by the rule of `utils.retrieval.answers`."""
    import ahocorasick
    import pandas

    form_of = {answer: form for answer in answers if (form := prepare(answer))}
    # One automaton finds all answers of a passage at once: a search for each would be 100,000 per passage.
    automaton = ahocorasick.Automaton()
    for form in form_of.values():
        automaton.add_word(form, form)
    automaton.make_automaton()

    def forms_in(text: str) -> set[str]:
        return {form for _, form in automaton.iter(prepare(text))}

    found: set[str] = set()
    texts = (passage.contents for passage in passages)
    while block := list(islice(texts, PASSAGES_AT_ONCE)):
        if form_of:  # without an answer, the passages are read for their faults alone
            found.update(*apply_rows(pandas.Series(block), forms_in))
    return {answer for answer, form in form_of.items() if form in found}
