"""Generators: prompts in, greedy answers out. This asks a server; `utils.rag.local_generators` has the others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from utils.config import UsageError
from utils.llm.batch import open_keys
from utils.llm.client import ask_all
from utils.llm.cost import Budget, forecast
from utils.llm.types import Prompt, Request, Server, request
from utils.rag.local_generators import FastChatGenerator, HFGenerator, LocalGenerator, VLLMGenerator
from utils.rag.prompts import defused
from utils.store.files import file_name
from utils.store.journal import Journal

CHARACTERS_PER_TOKEN = 3  # tokens are rarely shorter; used where the server's tokenizer is not at hand
LOCAL_FRAMEWORKS: dict[str, type[LocalGenerator]] = {
    "hf": HFGenerator,
    "vllm": VLLMGenerator,
    "fschat": FastChatGenerator,
}


class OpenAIGenerator:
    """Any OpenAI-compatible server; FlashRAG's own prints every prompt and needs the internet to start.

    Answers are kept in ``save_dir/answers/`` by request: another run with the same prompts pays nothing.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.name: str = args.openai_model
        self.facts: dict[str, Any] = {}  # for the run's manifest
        self._args, self._server = args, Server.of(args)
        self._budget = Budget.for_model(args.prices, self.name, args.max_cost)
        self._journal = Path(args.save_dir) / "answers" / f"{file_name(self.name)}.journal.jsonl"

    def count_tokens(self, text: str) -> int:
        """Estimate tokens cautiously by characters."""
        return len(text) // CHARACTERS_PER_TOKEN + 1

    def defuse(self, text: str) -> str:
        """Break up the control tokens of common chat templates: the server's own are not known."""
        return defused(text)

    def generate(self, prompts: list[Prompt]) -> list[str]:
        """Return one answer per prompt, an empty one for a failed request; more than ``max_failures`` are an error."""
        requests = self._requests(prompts)
        with Journal(self._journal) as journal:
            outcome = ask_all(requests, self._server, journal, "generate", accept_any=True, budget=self._budget)
            answers = [journal[item.key]["text"].strip() if item.key in journal else "" for item in requests]
        if outcome.unasked:
            goes_on = "the answers so far are kept, and the same command goes on (--max_cost raises the limit)"
            raise UsageError(f"{outcome.unasked} requests were not sent: {outcome.stopped}; {goes_on}")
        failed = sum(item.key in outcome.failures for item in requests)
        if failed > self._args.max_failures * len(requests):
            reasons = sorted(set(outcome.failures.values()))
            raise UsageError(
                f"{failed} of {len(requests)} requests failed ({'; '.join(reasons[:3])}); run the same command again "
                "to ask only these, or allow a share of them (--max_failures), which count as wrong"
            )
        if failed:
            print(f"{failed} of {len(requests)} questions have no answer, which counts as a wrong one")
            self.facts["questions without an answer"] = failed
        self.facts |= outcome.usage | {"cost": self._budget.cost}
        return answers

    def forecast(self, prompts: list[Prompt]) -> str:
        """Say what `generate` would take: rows, tokens, cost, time."""
        return forecast(self._requests(prompts), self._journal, open_keys(self._journal), self._server, self._budget)

    def _requests(self, prompts: list[Prompt]) -> list[Request]:
        settings = {"temperature": 0, "max_tokens": self._args.max_tokens, "seed": self._args.seed}
        return [request(self.name, prompt, self._args.stop, **settings) for prompt in prompts]


Generator = OpenAIGenerator | LocalGenerator


def make_generator(args: argparse.Namespace) -> Generator:
    """Open the generator that ``--framework`` names."""
    if args.framework == "openai":
        return OpenAIGenerator(args)
    if args.framework not in LOCAL_FRAMEWORKS:
        raise UsageError(f"--framework {args.framework!r} is none of openai, {', '.join(LOCAL_FRAMEWORKS)}, none")
    return LOCAL_FRAMEWORKS[args.framework](args)
