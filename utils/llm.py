"""Many requests to an OpenAI-compatible server: a sliding window, a journal, no answer lost."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tqdm import tqdm

from utils.batch import Batches
from utils.config import UsageError, printable
from utils.journal import Journal
from utils.manifest import digest
from utils.pricing import Budget
from utils.window import Window

CHARACTERS_PER_TOKEN = 4  # of English


@dataclass(frozen=True)
class Request:
    """One call: ``payload`` holds ``messages`` (chat) or ``prompt`` (completion), model and parameters."""

    payload: dict[str, Any]

    @property
    def key(self) -> str:
        """Hash of everything that decides the answer; equal requests are asked once."""
        return digest(self.payload)

    @property
    def characters(self) -> int:
        """Length of the prompt."""
        if "prompt" in self.payload:
            return len(self.payload["prompt"])
        return sum(len(message["content"]) for message in self.payload["messages"])

    @property
    def most_tokens(self) -> tuple[float, float]:
        """About how many tokens the prompt has, and how many the answer may have."""
        return self.characters / CHARACTERS_PER_TOKEN, self.payload["max_tokens"]


@dataclass
class Outcome:
    """What came of a set of requests.

    Attributes:
        answers: by request key, those of earlier calls included.
        failures: reasons by request key.
        unasked: requests that were left for another call.
        stopped: why they were.
        asked: answers of this call.
        tokens: new tokens of this call's answers.
    """

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    unasked: int = 0
    stopped: str = ""
    asked: int = 0
    tokens: int = 0

    def keep(self, key: str, answer: dict[str, Any]) -> None:
        """Take an answer that has just come."""
        self.answers[key] = answer
        self.asked += 1
        self.tokens += answer["completion_tokens"]

    def usage(self) -> dict[str, int]:
        """Tokens of all answers, those of earlier calls included."""
        kinds = ("prompt_tokens", "completion_tokens")
        return {kind: sum(answer[kind] for answer in self.answers.values()) for kind in kinds}


@dataclass(frozen=True)
class Server:
    """Where to ask and how hard.

    ``max_retries`` counts further tries after the first: the openai library repeats 408, 409, 429,
    5xx, time-outs and lost connections itself, with back-off and Retry-After. ``batch`` sends all
    requests through the Batch API, asked every ``batch_poll`` seconds.
    """

    base_url: str | None
    api_key: str | None
    timeout: float
    max_retries: int
    concurrency: int
    batch: bool = False
    batch_poll: float = 30.0

    @classmethod
    def of(cls, args: argparse.Namespace) -> Server:
        """The server that a section's settings name."""
        return cls(**{item.name: getattr(args, item.name) for item in fields(cls)})

    def clean(self, said: object) -> str:
        """What a server said as one line: without the key it may repeat, and nothing that steers a terminal."""
        text = f"{type(said).__name__}: {said}" if isinstance(said, Exception) else str(said)
        text = " ".join(printable(text).split())
        return (text.replace(self.api_key, "***") if self.api_key else text)[:300]


def request(model: str, prompt: str | list[dict[str, str]], stop: Sequence[str] = (), **parameters: Any) -> Request:
    """Build a chat request from messages or a completion request from a string."""
    kind = "prompt" if isinstance(prompt, str) else "messages"
    payload = {"model": model, kind: prompt, **parameters}
    return Request(payload | ({"stop": list(stop)} if stop else {}))


def ask_all(
    requests: Sequence[Request],
    server: Server,
    journal: Journal,
    desc: str,
    accept_any: bool = False,
    budget: Budget | None = None,
) -> Outcome:
    """Send what the journal does not hold, at most ``server.concurrency`` at a time.

    Each answer is appended to the journal as it arrives, so that the same call after a kill asks
    only the rest. An empty answer is asked again up to ``max_retries`` times. The first SIGINT or SIGTERM lets the
    requests in flight finish, the second drops them. With ``server.batch`` the Batch API does the work.

    Args:
        requests: in any order; repeated ones are asked once.
        server: endpoint and limits.
        journal: finished answers by request key.
        desc: text of the progress bar.
        accept_any: take empty, filtered and cut-off answers as they are, which is right for a reader
            under test; otherwise they are failures, which is right for rationales.
        budget: counts what all answers cost, those of earlier calls included, and stops at its limit.

    Returns:
        Answers ``{text, finish_reason, prompt_tokens, completion_tokens, model, seconds, attempts}`` and failures.

    Raises:
        UsageError: no key for the default endpoint, a refused key, an unknown model or address.
        KeyboardInterrupt: a signal came, and what was in flight is kept.
    """
    budget = budget or Budget()
    unique = {item.key: item for item in requests}
    outcome = Outcome({key: journal.records[key] for key in unique if key in journal})
    for answer in outcome.answers.values():
        budget.add(answer)
    todo = [item for key, item in unique.items() if key not in journal]
    if not todo:
        return outcome
    if server.base_url is None and server.api_key is None:
        raise UsageError("no API key: set OPENAI_API_KEY, or give --base_url of a server that needs none")
    with tqdm(total=len(unique), initial=len(unique) - len(todo), desc=desc, unit="request") as bar:
        way = Batches if server.batch else Window
        way(server, journal, outcome, accept_any, budget).ask(todo, bar)
    outcome.unasked = len(unique) - len(outcome.answers) - len(outcome.failures)
    return outcome
