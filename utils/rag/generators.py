"""Generators: prompts in, greedy answers out; the one for API servers. `utils.rag.local_generators` has the others."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from utils.config import UsageError
from utils.llm.batch import open_keys
from utils.llm.client import ask_all
from utils.llm.cost import Budget, forecast
from utils.llm.types import Prompt, Request, Server, request
from utils.rag.control_tokens import defused
from utils.store.files import file_name
from utils.store.journal import Journal

# Tokens are rarely shorter than three characters; used where the server's tokenizer is not at hand.
CHARACTERS_PER_TOKEN = 3


class Generator(Protocol):
    """What a RAG run needs of an LLM."""

    name: str
    facts: dict[str, Any]
    """What the run's manifest should tell: tokens, if they are known."""

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, or a cautious estimate."""

    def defuse(self, text: str) -> str:
        """A passage or question whose control tokens, if it holds any, are read as words."""

    def generate(self, prompts: list[Prompt]) -> list[str]:
        """One greedy answer per prompt, in order."""


class OpenAIGenerator:
    """Any OpenAI-compatible server; FlashRAG's own prints every prompt and needs the internet to start.

    Answers are kept in ``save_dir/answers/MODEL.journal.jsonl`` by request, so that another run
    that asks the same prompts pays nothing.

    Args:
        args: the ``rag`` section's settings.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.name = args.openai_model
        self.facts: dict[str, Any] = {}
        self._args = args
        self._server = Server.of(args)
        self._journal = Path(args.save_dir) / "answers" / f"{file_name(self.name)}.journal.jsonl"

    def count_tokens(self, text: str) -> int:
        """A cautious estimate by characters."""
        return len(text) // CHARACTERS_PER_TOKEN + 1

    def defuse(self, text: str) -> str:
        """Without the control tokens of the commonest chat templates: the server's own are not known."""
        return defused(text)

    def generate(self, prompts: list[Prompt]) -> list[str]:
        """One answer a prompt, an empty one where a request failed for good; see `Generator`.

        Raises:
            UsageError: more of them failed than ``max_failures`` allows; the answers so far are kept.
        """
        requests, budget = self._requests(prompts), self._budget()
        with Journal(self._journal) as journal:
            outcome = ask_all(requests, self._server, journal, "generate", accept_any=True, budget=budget)
            answers = [journal[item.key]["text"].strip() if item.key in journal else "" for item in requests]
        if outcome.unasked:
            raise UsageError(
                f"{outcome.unasked} requests were not sent: {outcome.stopped}; the answers so far are kept, and the "
                "same command goes on (--max_cost raises the limit)"
            )
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
        self.facts |= outcome.usage | {"cost": budget.cost}
        return answers

    def forecast(self, prompts: list[Prompt]) -> str:
        """Return what `generate` would take: rows, tokens, cost, time."""
        waiting = open_keys(self._journal)
        return forecast(self._requests(prompts), self._journal, waiting, self._server, self._budget())

    def _requests(self, prompts: list[Prompt]) -> list[Request]:
        args = self._args
        return [
            request(self.name, prompt, args.stop, temperature=0, max_tokens=args.max_tokens, seed=args.seed)
            for prompt in prompts
        ]

    def _budget(self) -> Budget:
        return Budget.for_model(self._args.prices, self.name, self._args.max_cost)


LOCAL_FRAMEWORKS = ("hf", "vllm", "fschat")
FRAMEWORKS = ("openai", *LOCAL_FRAMEWORKS)


def make_generator(args: argparse.Namespace) -> Generator:
    """The generator that ``--framework`` names.

    Raises:
        UsageError: unknown framework, missing library, or missing model.
    """
    if args.framework not in FRAMEWORKS:
        raise UsageError(f"--framework {args.framework!r} is none of {', '.join(FRAMEWORKS)}, none")
    if args.framework == "openai":
        return OpenAIGenerator(args)
    from utils.rag import local_generators

    kinds: dict[str, Callable[[argparse.Namespace], Generator]] = {
        "hf": local_generators.HFGenerator,
        "vllm": local_generators.VLLMGenerator,
        "fschat": local_generators.FastChatGenerator,
    }
    return kinds[args.framework](args)
