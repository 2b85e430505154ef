"""The request that asks an LLM for a rationale (RADIO, step 1)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from utils.llm.types import Request, SizedIterable, request
from utils.store.rows import Question


class RationaleRequests:
    """One request a question: a system and a single user message, or a completion prompt.

    Args:
        questions: with their gold answers; memory holds none of them if it is a `RowFile`.
        args: model, sampling parameters and ``prompts``.
    """

    def __init__(self, questions: SizedIterable[Question], args: argparse.Namespace) -> None:
        self._questions, self._args = questions, args

    def __len__(self) -> int:
        return len(self._questions)

    def __iter__(self) -> Iterator[Request]:
        args = self._args
        parameters = {
            "temperature": args.temperature,
            "top_p": args.top_p,
            "max_tokens": args.max_tokens,
            "seed": args.seed,
            "n": 1,
        }
        for row in self._questions:
            yield request(args.model, _prompt(row, args.prompts), args.stop, **parameters)


def _prompt(row: Question, prompts: dict[str, str]) -> str | list[dict[str, str]]:
    fields = {"question": row.question, "answers": "; ".join(row.golden_answers)}
    if prompts["rationale_completion"]:
        return prompts["rationale_completion"].format(**fields)
    return [
        {"role": "system", "content": prompts["rationale_system"]},
        {"role": "user", "content": prompts["rationale_user"].format(**fields)},
    ]
