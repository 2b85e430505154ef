"""Does a passage contain an answer? The string match of open-domain question answering.

The rule is that of DPR (Karpukhin et al., "Dense Passage Retrieval for Open-Domain Question
Answering", EMNLP 2020): text is NFD-normalised and split into runs of letters, digits and marks,
and into single other visible characters; a passage has an answer if the lower-cased tokens of the
answer stand in it one after the other. So "Paris" is not found in "Parisian", and "u.s." is found
in "U.S. Army". One thing differs: an answer without tokens matches no passage here, every one there.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import regex

TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
# A control character: it is part of no token, so a match cannot begin or end inside one, and it is
# neither a letter nor ignorable, so lower() sees each token's own ends (the Greek final sigma).
BETWEEN = "\x1f"


def tokens(text: str) -> list[str]:
    """The lower-cased tokens of ``text``.

    >>> tokens("Beyoncé's 2nd")[1:]
    ["'", 's', '2nd']
    """
    return [token.lower() for token in TOKEN.findall(unicodedata.normalize("NFD", text))]


def prepare(text: str) -> str:
    """The tokens as one string, for `occurs`; empty if there are none.

    Passages that are matched against many questions should be prepared once.
    """
    found = TOKEN.findall(unicodedata.normalize("NFD", text))
    return f"{BETWEEN}{BETWEEN.join(found)}{BETWEEN}".lower() if found else ""


def occurs(answers: Iterable[str], passage: str) -> bool:
    """True if one of the answers stands in the passage; all of them prepared by `prepare`."""
    # A search in C: about 15 times faster than comparing slices of token lists at every offset.
    return any(answer in passage for answer in answers if answer)


def has_answer(answers: Iterable[str], passage: str) -> bool:
    """True if the tokens of one of ``answers`` occur in ``passage``, contiguously and in order.

    Args:
        answers: texts of a question's golden answers; those without tokens are passed over.
        passage: the passage's text.

    >>> has_answer(["New York"], "He moved to new york, then left.")
    True
    >>> has_answer(["York"], "Yorkshire"), has_answer([""], "anything")
    (False, False)
    """
    likely = _likely([_prepared_answer(answer) for answer in answers], passage)
    return bool(likely) and occurs(likely, prepare(passage))


def _likely(answers: list[str], passage: str) -> list[str]:
    """The prepared answers of which every token is somewhere in the passage's letters, for most passages none."""
    letters = unicodedata.normalize("NFD", passage)
    if "Σ" in letters:  # its lower case depends on where the tokens end
        return answers
    letters = letters.lower()
    return [answer for answer in answers if all(token in letters for token in answer.split(BETWEEN))]


@lru_cache(maxsize=1 << 16)
def _prepared_answer(answer: str) -> str:
    return prepare(answer)
