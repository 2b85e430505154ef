"""Match answers to passages, and check whether a dataset is ready for the method.

The rule is that of DPR (Karpukhin et al., "Dense Passage Retrieval for Open-Domain Question Answering", EMNLP 2020):
text is NFD-normalised and split into runs of letters, digits and marks, and into single other visible characters; a
passage has an answer if the tokens of the answer occur in it one after the other. So "Paris" is not found in
"Parisian", and "u.s." is found in "U.S. Army". Three differences: a letter of a script that is written without blanks
is a token of its own, because a run of them is a whole sentence; case is folded, so that "STRASSE" is "Straße"; and an
answer without tokens matches no passage here, every passage in DPR.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import regex
from tqdm import tqdm

from utils.config import UsageError
from utils.devices import usable_cores
from utils.store.jsonlines import WRONG_FIELD, Row, checked_rows
from utils.store.rows import Passage, Question

# Scripts without blanks between words; in Korean there are some, but particles follow a word without one. The range in
# front, which holds them all, is tried first: it keeps other scripts fast. Digits form runs in every script.
LETTERS = (
    r"[[[\u0e00-\U0003ffff]&&[\p{Han}\p{Hiragana}\p{Katakana}ーｰ\p{Bopomofo}\p{Hangul}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}"
    r"\p{Myanmar}\p{Tibetan}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}]]--\p{Nd}]"
)
# What a letter of these scripts keeps: marks, Thai's and Lao's vowel am, vowels and finals of Korean syllables.
ATTACHED = r"[\p{M}\u0e33\u0eb3\u1160-\u11ff\ud7b0-\ud7fb]"
TOKEN = regex.compile(rf"[[\p{{L}}\p{{N}}\p{{M}}]--{LETTERS}]+|{LETTERS}{ATTACHED}*|[^\p{{Z}}\p{{C}}]", regex.V1)
UNSPACED = regex.compile(LETTERS, regex.V1)
BETWEEN = "\x1f"  # a control character: no token contains it, so a match cannot begin or end inside a token
PASSAGES_AT_ONCE = 100_000  # in memory
SHOWN = 5  # ids of questions without an answer


def folded(text: str) -> str:
    """Return a text in the form in which texts that differ in case or in the coding of accents are equal."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())


def prepare(text: str) -> str:
    """Return the folded tokens as one string, for `occurs`; empty if there are none.

    >>> prepare("Anna's 2nd").split(BETWEEN)
    ['', 'anna', "'", 's', '2nd', '']
    """
    return _between(folded(text))


def _between(text: str) -> str:
    found = TOKEN.findall(text)
    return f"{BETWEEN}{BETWEEN.join(found)}{BETWEEN}" if found else ""


_prepare_answer = lru_cache(maxsize=1 << 16)(prepare)


def occurs(answers: Iterable[str], passage: str) -> bool:
    """Return whether one of the answers is in the passage; all of them prepared by `prepare`."""
    # A search in C: about 15 times faster than comparing slices of token lists at every offset.
    return any(answer in passage for answer in answers if answer)


def has_answer(answers: Iterable[str], passage: str) -> bool:
    """Return whether the tokens of one of ``answers`` occur in ``passage``, contiguously and in order.

    >>> has_answer(["New York"], "He moved to new york, then left.")
    True
    >>> has_answer(["York"], "Yorkshire"), has_answer([""], "anything")
    (False, False)
    >>> has_answer(["東京"], "日本の首都は東京。")
    True
    """
    text = folded(passage)
    # Splitting a passage takes most of the time, and most passages lack a token of every answer.
    prepared = (_prepare_answer(answer) for answer in answers)
    likely = [answer for answer in prepared if answer and all(token in text for token in answer.split(BETWEEN))]
    return bool(likely) and occurs(likely, _between(text))


def apply_rows(rows: Any, function: Callable[..., Any], **options: Any) -> Any:
    """Apply a function to each row of a pandas Series or DataFrame, on all cores."""
    from pandarallel import pandarallel

    # Rows go through pipes: files in /dev/shm would outlive a kill, and containers have little room there.
    pandarallel.initialize(nb_workers=usable_cores(), use_memory_fs=False, verbose=1)
    with default_sigterm():
        return rows.parallel_apply(function, **options)


@contextlib.contextmanager
def default_sigterm() -> Iterator[None]:
    """Let SIGTERM end processes that are started here.

    A pool ends its workers by SIGTERM and waits for them. A worker that has inherited a handler in Python, such as
    Ray's, forgets a signal that comes while it is forked, and then both wait forever.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers belong to the main thread
        yield
        return
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)


def answers_found(answers: Iterable[str], passages: Iterable[Passage]) -> set[str]:
    """Return the answers that occur in at least one passage."""
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


class FileReport:
    """A file's number of sound rows, and the number and first place of each kind of fault."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self.faults: dict[str, tuple[int, str]] = {}

    def sound_rows(self, model: type[Row]) -> Iterator[Row]:
        """Yield the sound rows of the file, and count them and the faults of the others."""
        for row in checked_rows(self.path, model, on_fault=self.add):
            self.rows += 1
            yield row

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
    from utils.retrieval.corpus import read_corpus  # loads numpy, which those who only match answers need not wait for

    splits = [path for name in ("train.jsonl", "dev.jsonl", "test.jsonl") if (path := folder / name).exists()]
    if not splits:
        raise UsageError(f"{folder} has none of train.jsonl, dev.jsonl, test.jsonl")
    reports = [FileReport(path) for path in (*splits, corpus)]
    questions = {report.path: list(report.sound_rows(Question)) for report in reports[:-1]}
    passages = read_corpus(corpus, reports[-1].add)
    reports[-1].rows = len(passages)
    answers = {a for rows in questions.values() for q in rows for a in q.golden_answers}
    found = answers_found(answers, tqdm(passages, desc="search answers", unit="passage"))
    print(*reports, sep="\n")
    for path, rows in questions.items():
        by_letter = sum(any(map(UNSPACED.search, q.golden_answers)) for q in rows)
        if by_letter:
            share = f"{by_letter} of {len(rows)} questions ({by_letter / len(rows):.1%})"
            print(f"{path}: {share} have an answer in a script without blanks, which is matched letter by letter")
        without = [q.id for q in rows if not found.intersection(q.golden_answers)]
        ids = f" (ids {', '.join(without[:SHOWN])}, ...)" if without else ""
        print(f"{path}: {len(without)} of {len(rows)} questions have no answer in any passage{ids}")
    return all(report.rows and not report.faults for report in reports)
