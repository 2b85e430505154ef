"""The rows that are written between phases, checked where they are read."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, FiniteFloat, model_validator


def _not_blank(value: str) -> str:
    if not value or value.isspace():
        raise ValueError("must not be blank")
    return value


def _list(value: Any) -> Any:
    return [value] if isinstance(value, (str, int, float)) else value


# Answers such as 1969 and 3.5 often come without quotes.
Name = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_not_blank)]
Text = Annotated[str, AfterValidator(_not_blank)]
Answers = Annotated[list[Name], BeforeValidator(_list)]


class Question(BaseModel):
    """A line of ``dataset/NAME/{train,dev,test}.jsonl``, FlashRAG's format."""

    id: Name
    question: Text
    golden_answers: Annotated[Answers, Field(min_length=1)]
    metadata: dict[str, Any] | None = None


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
