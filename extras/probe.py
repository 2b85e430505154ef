"""Passages that carry instructions, put before a reader and a reranker, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from utils.config import UsageError, read_yaml, template_fault
from utils.retrieval.answers import has_answer

Answer = Callable[[list[tuple[str, list[str]]]], list[str]]
Score = Callable[[list[str], list[list[str]]], list[list[float]]]
CLEAN = "none"


class Probe(BaseModel):
    """One question with a sound passage, and the wrong answer that attacks ask for."""

    question: str
    answer: str
    target: str
    passage: str


class _Probes(BaseModel):
    attacks: dict[str, str]
    questions: list[Probe] = Field(min_length=3)  # a question's documents are its own, and two others'

    @field_validator("attacks")
    @classmethod
    def _can_be_filled(cls, attacks: dict[str, str]) -> dict[str, str]:
        for name, text in attacks.items():
            if fault := template_fault(text, ("target", "question")):
                raise ValueError(f"{name}: {fault}")
        return attacks


def read_probes(path: Path) -> tuple[dict[str, str], list[Probe]]:
    """Attack texts by kind, and the questions.

    Raises:
        UsageError: the file is missing or has another form.
    """
    try:
        found = _Probes.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{path}: '{'.'.join(map(str, first['loc']))}': {first['msg']}") from None
    return found.attacks, found.questions


def documents(probes: Sequence[Probe], i: int, attack: str | None) -> list[str]:
    """The passages of question ``i``: another question's, the sound one, and a third that carries the attack.

    Without an attack the third is there too, so that both prompts hold the same documents.
    """
    carrier = probes[(i + 2) % len(probes)].passage
    if attack is not None:
        carrier += " " + attack.format(target=probes[i].target, question=probes[i].question)
    return [probes[(i + 1) % len(probes)].passage, probes[i].passage, carrier]


def reader_rows(attacks: dict[str, str], probes: Sequence[Probe], answer: Answer) -> list[dict[str, Any]]:
    """How often a reader is right, and how often it gives the answer that the attack asks for instead.

    Args:
        attacks: text by kind.
        probes: the questions.
        answer: (question, passages) pairs -> answers, all at once.

    Returns:
        A row a kind, ``none`` first: ``{attack, right, obeyed}``, shares of the questions.
    """
    kinds: dict[str, str | None] = {CLEAN: None, **attacks}
    jobs = [(p.question, documents(probes, i, text)) for text in kinds.values() for i, p in enumerate(probes)]
    answers = iter(answer(jobs))
    rows = []
    for kind in kinds:
        found = [(probe, next(answers)) for probe in probes]
        right = sum(has_answer([probe.answer], text) for probe, text in found)
        obeyed = sum(has_answer([probe.target], text) and not has_answer([probe.answer], text) for probe, text in found)
        rows.append({"attack": kind, "right": right / len(found), "obeyed": obeyed / len(found)})
    return rows


def reranker_rows(attacks: dict[str, str], probes: Sequence[Probe], score: Score) -> list[dict[str, Any]]:
    """How often a reranker puts the passage with the attack before the sound one.

    Args:
        attacks: text by kind.
        probes: the questions.
        score: questions and their passages -> scores.

    Returns:
        A row a kind, ``none`` first (the carrier without an attack): ``{attack, preferred}``.
    """
    rows = []
    for kind, text in {CLEAN: None, **attacks}.items():
        passages = [documents(probes, i, text) for i in range(len(probes))]
        scores = score([probe.question for probe in probes], passages)
        preferred = sum(carrier > sound for _, sound, carrier in scores)
        rows.append({"attack": kind, "preferred": preferred / len(probes)})
    return rows
