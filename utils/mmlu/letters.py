"""The letter that an answer chooses, where the text marks it as one: "A dog" and "vitamin C" choose nothing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from utils.llm.types import answer_in

_NO_BLANKS = r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]"  # scripts in which words touch the letter
_LETTER = r"([A-Da-d])(?!\w)"
# What may follow a letter that is a label.
_LABEL_END = re.compile(
    r"""  \s*(?:$|\n|</|\(|です|입니다)                 # the end of the text, line or element; B (text)
        | [)\]}]                                   # B)   (B)   [B]
        | ["'”’](?!\w)                             # 'B', but not D'Alembert
        | \.(?!\s+[A-Z]\.\s)(?=\s|$|\d|\w\w|["(])  # B. text, but not D.C., a.m. or the initials of B. F. Skinner
        | :(?=\s|$|\d|\w\w|["(])                   # B: text, but not A:B
        | [,;!](?=\s|$)
        | \s+[-–—]\s+(?=[^\W\d])                   # B - text, but not the formula c - 5
    """,
    re.VERBOSE,
)
# What follows a letter that is the first of several.
_MORE_LETTERS = re.compile(
    r"""  [\s.,:;()\]}"'”’]* (?:and\b|or\b|[&/+]) \s*     # (B) or (C);  B, or C
            (?: [(\["'][A-Da-d]\b | [B-D](?![\w'+-]) | [Aa-d](?=\s*(?:[.,;:)]|$)) )
        | [\s)\]}"']* [,;] \s* (?:(?i:option|choice)\s+)? \(?[A-Da-d](?=\s*(?:[.,;:)/&]|$|and\b|or\b))   # A, B and C
        | [.):\s]+ \(?[A-D](?=[.):]|\s*$)                                  # A. B. C.
    """,
    re.VERBOSE,
)
# The rest of a clause that gives a reason or a contrast, denies, or supposes.
_CLAUSE = r"\b(?:(?!\b(?:so|but|therefore|thus|hence)\b)[^.,;:!?)\n])*"
_REASON = re.compile(
    rf",?\s*\b(?:because|since|as|according to|based on|rather than|instead of|因为|因為){_CLAUSE}", re.IGNORECASE
)
_DENIAL = re.compile(
    rf"\b(?:not|\w+n['’]t|cannot|doubt|might|may|could|wrong|incorrect){_CLAUSE}|\b(?:if|unless|whether)\b[^.!?\n]*",
    re.IGNORECASE,
)
_DENIED = "~"  # stands where a denial stood
_ANSWER = (  # in the languages of multilingual MMLU, and some more
    r"(?:\bans(?:wer)?\b|antwort|r[ée]ponse|respuesta|risposta|resposta|jawaban|jibu|ответ|答案|答え|回答|解答|正解|정답"
    r"|답|الإجابة|الجواب|إجابة|उत्तर|উত্তর|选择?|選擇?)"
)
_FILLER = (
    r"(?:\s|[:=>→⇒–—\"'“‘(\[{,-]|\b(?:is|was|would|should|must|will|be|the|that|it|correct|right|best|most|likely|final"
    r"|option|choice|letter|answer|to|this|question|therefore|ist|est|es|è|é|correcta|correcte|corretta|richtig)\b"
    rf"|[是为為は은는]|{_DENIED}but\b){{0,40}}"
)
# Phrases that state an answer.
_STATEMENTS = [
    re.compile(pattern + _FILLER + _LETTER, re.IGNORECASE)
    for pattern in (
        _ANSWER,
        r"\b(?:correct|right|best|my|final)\s+(?:option|choice|letter|response|one)\b",
        r"\bI(?:['’](?:d|ll|m)| would| will| am)?\s+(?:choose|chose|pick|select|go(?:ing)? with|say|think|believe"
        r"|guess)\b",
        r"\A\W*(?:(?:it|that)\b(?:['’]s\b)?|(?:choose|pick|select)\b)",
    )
]
_VERDICT = re.compile(
    r"(?:^|(?<=[.!?:]\s)|(?<=,\s)(?<!\b[A-D],\s)|\b(?:option|choice|answer)\s+)\W{0,2}([A-D])\W?\s+"
    r"(?:is|must be|seems|appears)\s+(?:(?:the\s+)?(?:correct|right|best|most\s+\w+)\s+(?:answer|option|choice"
    r"|one)\b|correct\b|the\s+answer\b|right(?![-\w]))",
    re.IGNORECASE | re.MULTILINE,
)
_CONCLUSION = re.compile(
    rf"(?:\b(?:therefore|thus|hence|so|conclusion)\b|因此|所以){_FILLER}(?-i:([A-D]))\W*$", re.IGNORECASE | re.MULTILINE
)
_LINE_LABEL = re.compile(r"^\W*(?:(?:option|choice|letter)\W{0,3})?" + _LETTER, re.IGNORECASE | re.MULTILINE)
_INLINE_LABEL = re.compile(r"(?<![\w(])([A-D])\)")
_CLOSING = re.compile(r"(?<!\w)\(([A-D])\)[\s.!]*\Z")
_ONLY_LETTERS = re.compile(r"""[A-Da-d\s.,:;!?()\[\]{}<>"'“”‘’/|&\\–—-]+""")


def parse_letter(text: str) -> str | None:
    """Read A, B, C or D from ``B``, ``(b) Paris`` or ``The answer is **B**.``; None if no letter or several are marked.

    What a reasoning model thought is not read, nor what a text denies or supposes. A statement ("the answer is B", "B
    is correct") outranks labels at the start of lines that repeat several options; against a single other label it is
    a contradiction, so None.
    """
    text = _plain(text)
    if _ONLY_LETTERS.fullmatch(text):
        words = re.findall(r"\w+", text)
        return _only({word.upper() for word in words}) if all(len(word) == 1 for word in words) else None

    text = _DENIAL.sub(_DENIED, _REASON.sub("", text))
    stated = {letter for pattern in _STATEMENTS for letter in _labels(pattern, text)}
    stated |= {match[1].upper() for pattern in (_VERDICT, _CONCLUSION) for match in pattern.finditer(text)}
    labels = {*_labels(_LINE_LABEL, text), *_INLINE_LABEL.findall(text)}
    if stated:
        return None if len(labels) == 1 and labels != stated else _only(stated)
    return _only(labels or set(_CLOSING.findall(text)))


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
    """Remove thoughts, Markdown, LaTeX, full-width forms, and the questions that the model went on to invent."""
    text = unicodedata.normalize("NFKC", answer_in(text) or "").translate(str.maketrans("。、", ".,", "✓✔✅☑")).strip()
    text = re.split(r"\n\s*(?:question|q)\s*:", text, maxsplit=1, flags=re.IGNORECASE)[0].strip()
    text = re.sub(rf"(?<={_NO_BLANKS})(?=[A-D])|(?<=[A-D])(?={_NO_BLANKS})", " ", text)
    text = re.sub(r"\\boxed\s*", " answer: ", text)
    text = re.sub(r"\\(?:text|math)\w*", "", text)
    text = re.sub(r"\*\*([A-Da-d])\*\*", r"(\1)", text)  # bold marks a letter as well as brackets do
    # The opening and the closing mark must match: a lone one may be part of the answer, as in "A*".
    return re.sub(r"(\*{1,3}|_{1,3}|`{1,3}|\${1,2})([^\n*_`$]+)\1", r"\2", text).strip()
