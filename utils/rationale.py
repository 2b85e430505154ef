"""Rationales: the request that asks for one, and the text that is scored with it (RADIO, step 1 and 3)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from utils.llm import Request, request
from utils.rows import Question, Rationale


def rationale_requests(questions: Sequence[Question], args: argparse.Namespace) -> list[Request]:
    """One request a question: a system and a single user message, or a completion prompt.

    Args:
        questions: with their gold answers.
        args: model, sampling parameters and ``prompts``.
    """
    prompts = args.prompts
    parameters = {
        "temperature": args.temperature,
        "top_p": args.top_p,
        "max_tokens": args.max_tokens,
        "seed": args.seed,
        "n": 1,
    }
    requests = []
    for row in questions:
        fields = {"question": row.question, "answers": "; ".join(row.golden_answers)}
        prompt: str | list[dict[str, str]]
        if prompts["rationale_completion"]:
            prompt = prompts["rationale_completion"].format(**fields)
        else:
            prompt = [
                {"role": "system", "content": prompts["rationale_system"]},
                {"role": "user", "content": prompts["rationale_user"].format(**fields)},
            ]
        requests.append(request(args.model, prompt, args.stop, **parameters))
    return requests


def scored_text(row: Rationale) -> str:
    """The text whose similarity to a passage is its rationale score.

    The answers appear as a Python list does when printed, which is what the published scores were made with.
    """
    return f"{row.question}. {row.golden_answers}. {row.reason}"
