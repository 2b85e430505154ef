"""The letter that an answer chooses, where the text marks it as one: "A dog" and "vitamin C" choose nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_LETTER = r"([A-Da-d])(?!\w)"

# What may follow a letter that is a label.
_LABEL_END = re.compile(
    r"""  \s*(?:$|\n|</)                           # the end of the text, the line or the element
        | [)\]}]                                   # B)   (B)   [B]
        | ["'”’](?!\w)                             # 'B', but not D'Alembert
        | \.(?!\s+[A-Z]\.\s)(?=\s|$|\d|\w\w|["(])  # B. text, but not D.C., a.m. or the initials of B. F. Skinner
        | :(?=\s|$|\d|\w\w|["(])                   # B: text, but not A:B
        | [,;!](?=\s|$)
        | \s+[-–—]\s+(?=[^\W\d])                   # B - text, but not the formula c - 5
        | \s+\((?=\w)                              # B (text)
        | \s+(?:because|since|based\ on|according\ to)\b
    """,
    re.VERBOSE,
)
# What follows a letter that is the first of several.
_MORE_LETTERS = re.compile(
    r"""  [\s.,:;()\]}"'”’]* (?:and\b|or\b|[&/+]) \s*     # (B) or (C);  B, or C
            (?: [(\["'][A-Da-d]\b | [B-D](?![\w'+-]) | [Aa-d](?=\s*(?:[.,;:)]|$)) )
        | [\s)\]}"']* , \s* (?:(?i:option|choice)\s+)? \(?[A-Da-d](?=\s*(?:[.,;:)/&]|$|and\b|or\b))   # A, B and C
        | [.):\s]+ \(?[A-D](?=[.):]|\s*$)                                  # A. B. C.
    """,
    re.VERBOSE,
)
_FILLER = (
    r"(?:\s|[:=>–—\"'“‘(\[{-]|\b(?:is|was|would|should|must|will|be|the|that|it|correct|right|best|most|likely"
    r"|final|option|choice|letter|answer|to|this|question)\b){0,40}"
)
# Phrases that state an answer.
_STATEMENTS = [
    re.compile(pattern + _LETTER, re.IGNORECASE)
    for pattern in (
        r"(?<!wrong )(?<!incorrect )(?<!not the )(?<!not an )(?<!if the )(?<!whether the )\banswer\b" + _FILLER,
        r"\b(?<!not the )(?:correct|right|best)\s+(?:option|choice|letter|response)\b" + _FILLER,
        r"\bI(?:'d|’d|'ll|’ll| would| will)?\s+(?:choose|chose|pick|select|go with|say|think|believe|guess)\b"
        + _FILLER,
        r"\A\W*it(?:'s|’s| is)\b" + _FILLER,
    )
]
_VERDICT = re.compile(
    r"(?:^|(?<=[.!?:]\s)|\b(?:option|choice|answer)\s+)\W{0,2}([A-D])\W?\s+(?:is|must be|would be|seems|appears)\s+(?:"
    r"(?:the\s+)?(?:correct|right|best|most\s+\w+)\s+(?:answer|option|choice|one)\b|correct\b|the\s+answer\b|right(?![-\w]))",
    re.IGNORECASE | re.MULTILINE,
)
_LINE_LABEL = re.compile(r"^\W*(?:(?:option|choice|letter)\W{0,3})?" + _LETTER, re.IGNORECASE | re.MULTILINE)
_INLINE_LABEL = re.compile(r"(?<![\w(])([A-D])\)")
_OPTION = re.compile(r"\b(?:option|choice)\W{1,3}" + _LETTER, re.IGNORECASE)
_CLOSING = re.compile(r"(?<!\w)\(([A-D])\)[\s.!]*\Z")
_ONLY_LETTERS = re.compile(r"""[A-Da-d\s.,:;!?()\[\]{}<>"'“”‘’/|&\\–—-]+""")


def parse_letter(text: str) -> str | None:
    """Read A, B, C or D from ``B``, ``(b) Paris`` or ``The answer is **B**.``; None if no letter or several are marked.

    A statement ("the answer is B", "B is correct") outranks labels at the start of lines that repeat several options;
    against a single other label it is a contradiction, so None.
    """
    text = _plain(text)
    if _ONLY_LETTERS.fullmatch(text):
        words = re.findall(r"\w+", text)
        return _only({word.upper() for word in words}) if all(len(word) == 1 for word in words) else None

    stated = {letter for pattern in _STATEMENTS for letter in _labels(pattern, text)}
    stated |= {match[1].upper() for match in _VERDICT.finditer(text)}
    labels = {*_labels(_LINE_LABEL, text), *_INLINE_LABEL.findall(text)}
    if stated:
        return None if len(labels) == 1 and labels != stated else _only(stated)
    if labels:
        return _only(labels)
    return _only({*_labels(_OPTION, text), *_CLOSING.findall(text)})


def letter_metrics(predictions: Sequence[str], answers: Sequence[list[str]]) -> dict[str, list[float]]:
    """Return exact match of the option letter per question; an unparsable answer is wrong.

    FlashRAG's normalisation deletes "a" as an article, so its EM cannot tell option A from nothing.
    """
    return {"em": [float(parse_letter(text) in gold) for text, gold in zip(predictions, answers, strict=True)]}


def _labels(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    """Yield each letter found that ends as a label does, and "several" after one that begins a list."""
    for match in pattern.finditer(text):
        if _LABEL_END.match(text, match.end()):
            yield match[1].upper()
            if _MORE_LETTERS.match(text, match.end()):
                yield "several"


def _only(letters: set[str]) -> str | None:
    return next(iter(letters)) if len(letters) == 1 else None


def _plain(text: str) -> str:
    """Remove Markdown, LaTeX, full-width punctuation, and the questions that the model went on to invent."""
    text = text.strip().translate(str.maketrans("（）：，。．、", "():,..,"))
    text = re.split(r"\n\s*(?:question|q)\s*:", text, maxsplit=1, flags=re.IGNORECASE)[0].strip()
    text = re.sub(r"\\boxed\s*", " answer: ", text)
    text = re.sub(r"\\(?:text|math)\w*", "", text)
    text = re.sub(r"\*\*([A-Da-d])\*\*", r"(\1)", text)  # bold marks a letter as well as brackets do
    # The opening and the closing mark must match: a lone one may be part of the answer, as in "A*".
    return re.sub(r"(\*{1,3}|_{1,3}|`{1,3}|\${1,2})([^\n*_`$]+)\1", r"\2", text).strip()
