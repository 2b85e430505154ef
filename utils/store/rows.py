"""The rows that are written between phases, checked where they are read."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from typing import Annotated, Any, Self

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, FiniteFloat, model_validator


def _not_blank(value: str) -> str:
    if not value or value.isspace():
        raise ValueError("must not be blank")
    return value


def _answers(value: Any) -> Any:
    """Return the answers one by one: a single one, and lists inside a string, as CSV and parquet files leave them.

    A blank answer among others is left out: it matches nothing.
    """
    values = value if isinstance(value, list) else [value]
    found = [answer for item in values for answer in (_unfolded(item) if isinstance(item, str) else [item])]
    return [answer for answer in found if answer is not None and str(answer).strip()] or found


def _unfolded(text: str) -> list[Any]:
    """Return the items of a list that a text spells, in JSON or as Python prints it; of any other text, itself."""
    if not LIST.fullmatch(text):
        return [text]
    with contextlib.suppress(ValueError):
        orjson.loads(text)  # which refuses NaN
        return json.loads(text, parse_float=str, parse_int=str)  # the digits as they are written
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        found = ast.literal_eval(text)
        if isinstance(found, (list, tuple, set)) and not UNSEPARATED.search(text):
            return list(found)
    if text.strip()[0] != "[":
        return [text]
    raise ValueError("looks like a list, but is none in JSON; write a JSON list of texts")


LIST = re.compile(r"""\s*(?:\[\s*["'].*\]|\(\s*["'].*\)|\{\s*["'].*\}|\[[\d\s.,+-]*\])\s*""", re.DOTALL)
UNSEPARATED = re.compile(r"""["']\s+["']""")  # as numpy prints arrays; Python would join the two texts to one
# Answers such as 1969 and 3.5 often come without quotes.
Name = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_not_blank)]
Text = Annotated[str, AfterValidator(_not_blank)]
Answers = Annotated[list[Name], BeforeValidator(_answers)]


class Question(BaseModel):
    """A line of ``dataset/NAME/{train,dev,test}.jsonl``, FlashRAG's format."""

    id: Name
    question: Text
    golden_answers: Annotated[Answers, Field(min_length=1)]
    metadata: Any = None  # goes through unread


class Rationale(Question):
    """A line of ``dataset/NAME/reason/train_with_reason.jsonl``: a question and why its answer is right."""

    reason: Text


class Passage(BaseModel):
    """A line of a FlashRAG corpus; ``contents`` is the title, a newline, and the text."""

    id: Name
    contents: Text


class PassageScores(BaseModel):
    """Passage ids with one score each, best first."""

    passage_ids: list[str]
    scores: list[FiniteFloat]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.passage_ids) != len(self.scores):
            raise ValueError(f"{len(self.passage_ids)} passage_ids but {len(self.scores)} scores")
        return self


class Candidates(Question, PassageScores):
    """The retrieved passages of one question: a line of ``train_docs_*.jsonl``."""


class Scored(PassageScores):
    """A line of a ``score_cache.jsonl`` in this project's own format: ids instead of texts."""

    id: Name
    query: Text


class PublishedScored(BaseModel):
    """A line of a ``score_cache.jsonl`` in the published format, best first."""

    query: Text
    content: list[tuple[Text, FiniteFloat]]


class TrainingGroup(BaseModel):
    """A line of FlagEmbedding's training file."""

    query: Text
    pos: list[Text]
    neg: list[Text]
