"""Is a dataset ready for the method? Every fault counted, with the place of the first of its kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from tqdm import tqdm

from utils.config import UsageError
from utils.retrieval.answers import prepare
from utils.store.jsonlines import Row, parse_row
from utils.store.parallel import map_chunks
from utils.store.rows import Passage, Question

PASSAGES_A_TASK = 2_000
SHOWN = 5


@dataclass
class FileReport:
    """What one file holds: sound rows, and for each kind of fault its number and first place."""

    path: Path
    rows: int = 0
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, where: str) -> None:
        """Count a fault."""
        count, first = self.faults.get(kind, (0, where))
        self.faults[kind] = (count + 1, first)

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.rows} sound rows"]
        lines += [f"  {count} x {kind}, first at {first}" for kind, (count, first) in self.faults.items()]
        return "\n".join(lines)


def check_dataset(folder: Path, corpus: Path) -> bool:
    """Print what the splits and the corpus hold; returns whether they are free of faults.

    Faults are lines that are no JSON object, missing or wrong fields, and repeated ids. Questions none
    of whose answers stands in any passage are told too, but are no fault: no corpus has every answer.

    Args:
        folder: ``data_dir/dataset``.
        corpus: FlashRAG corpus in JSON lines.

    Raises:
        UsageError: there is no split, or no corpus.
    """
    splits = [path for split in ("train", "dev", "test") if (path := folder / f"{split}.jsonl").exists()]
    if not splits:
        raise UsageError(f"{folder} has none of train.jsonl, dev.jsonl, test.jsonl")
    if not corpus.exists():
        raise UsageError(f"corpus {corpus} is missing; give --corpus_path")
    reports, questions = [], {}
    for path in splits:
        report = FileReport(path)
        questions[path] = list(sound_rows(path, Question, report))
        reports.append(report)
    report = FileReport(corpus)
    passages = tqdm(sound_rows(corpus, Passage, report), desc="search answers", unit="passage")
    found = answers_found({a for rows in questions.values() for q in rows for a in q.golden_answers}, passages)
    reports.append(report)
    for report in reports:
        print(report)
    for path, rows in questions.items():
        without = [q.id for q in rows if not found.intersection(q.golden_answers)]
        share = f"{len(without)} of {len(rows)} questions have no answer in any passage"
        print(f"{path}: {share}" + (f" (ids {', '.join(without[:SHOWN])}, ...)" if without else ""))
    return not any(report.faults for report in reports)


def sound_rows(path: Path, model: type[Row], report: FileReport) -> Iterator[Row]:
    """Yield the rows of a JSON-lines file that are as they should be; the others go into ``report``."""
    seen: set[str] = set()
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not line:
                continue
            where = f"line {number}"
            try:
                row: Any = parse_row(orjson.loads(line), model, "")
            except orjson.JSONDecodeError:
                report.add("not valid JSON", where)
                continue
            except UsageError as error:
                report.add(str(error).removeprefix(": ").partition(" (found")[0], where)
                continue
            if row.id in seen:
                report.add("repeated id", f"{where} ({row.id!r})")
                continue
            seen.add(row.id)
            report.rows += 1
            yield row


def answers_found(answers: Iterable[str], passages: Iterable[Passage]) -> set[str]:
    """The answers that occur in at least one passage, by DPR's rule (see `utils.retrieval.answers`).

    One Aho-Corasick automaton of all answers reads each passage once, on all cores.

    Args:
        answers: distinct texts.
        passages: any number, streamed.
    """
    forms: dict[str, list[str]] = {}
    for answer in answers:
        if form := prepare(answer):
            forms.setdefault(form, []).append(answer)
    if not forms:
        return set()
    found: set[str] = set()
    texts = (passage.contents for passage in passages)
    for part in map_chunks(_search, texts, PASSAGES_A_TASK, _build, (list(forms),)):
        found |= part
    return {answer for form in found for answer in forms[form]}


_automaton: Any = None


def _build(forms: list[str]) -> None:
    import ahocorasick

    global _automaton
    _automaton = ahocorasick.Automaton()
    for form in forms:
        _automaton.add_word(form, form)
    _automaton.make_automaton()


def _search(texts: list[str]) -> set[str]:
    return {form for text in texts for _, form in _automaton.iter(prepare(text))}
