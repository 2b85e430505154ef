"""Does a passage contain an answer? The string match of open-domain question answering.

The rule is that of DPR (Karpukhin et al., "Dense Passage Retrieval for Open-Domain Question Answering", EMNLP 2020):
text is NFD-normalised and split into runs of letters, digits and marks, and into single other visible characters; a
passage has an answer if the lower-cased tokens of the answer occur in it one after the other. So "Paris" is not found
in "Parisian", and "u.s." is found in "U.S. Army". One difference: an answer without tokens matches no passage here,
every passage in DPR.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import regex

from utils.devices import usable_cores

TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
# A control character: no token contains it, so a match cannot begin or end inside a token. It is neither a letter nor
# ignorable, so lower() sees where each token ends (it decides the form of the Greek sigma).
BETWEEN = "\x1f"
MANY_ROWS = 1_000  # from here on, several processes save more time than it takes to start them


def prepare(text: str) -> str:
    """Return the lower-cased tokens as one string, for `occurs`; empty if there are none.

    >>> prepare("Anna's 2nd").split(BETWEEN)
    ['', 'anna', "'", 's', '2nd', '']
    """
    found = TOKEN.findall(unicodedata.normalize("NFD", text))
    return f"{BETWEEN}{BETWEEN.join(found)}{BETWEEN}".lower() if found else ""


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
    """
    likely = [_prepare_answer(answer) for answer in answers]
    letters = unicodedata.normalize("NFD", passage)
    # Splitting a passage takes most of the time, and most passages lack a token of every answer.
    if "Σ" not in letters:  # whose lower case depends on where the tokens end
        letters = letters.lower()
        likely = [answer for answer in likely if all(token in letters for token in answer.split(BETWEEN))]
    return any(likely) and occurs(likely, prepare(passage))


def apply_rows(rows: Any, function: Callable[..., Any], **options: Any) -> Any:
    """Apply a function to each row of a pandas Series or DataFrame, on all cores if there are many rows."""
    if len(rows) < MANY_ROWS:
        return rows.apply(function, **options)
    from pandarallel import pandarallel

    # Rows go through pipes: files in /dev/shm would outlive a kill, and containers have little room there.
    pandarallel.initialize(nb_workers=usable_cores(), use_memory_fs=False, verbose=1)
    return rows.parallel_apply(function, **options)
