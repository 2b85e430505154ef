"""What a call to an LLM is made of: prompts, requests, servers, and what came of them."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

from utils.config import UsageError, printable
from utils.store.manifest import digest

Messages = list[dict[str, str]]
Prompt = str | Messages
CHARACTERS_PER_TOKEN = 4  # of English
SHORTEST_SECRET = 8
Item = TypeVar("Item", covariant=True)


class SizedIterable(Sized, Iterable[Item], Protocol[Item]):
    """What can be counted and gone through more than once; it need not be in memory."""


@dataclass(frozen=True)
class Request:
    """One call: ``payload`` holds ``messages`` (chat) or ``prompt`` (completion), model and parameters."""

    payload: dict[str, Any]

    @functools.cached_property
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
    """What came of a set of requests; the answers themselves are in the journal.

    Attributes:
        failures: reasons by request key.
        unasked: requests that were left for another call.
        stopped: why they were.
        answered: requests with an answer, those of earlier calls included.
        asked: answers of this call.
        tokens: new tokens of this call's answers.
        usage: prompt and completion tokens of all answers, those of earlier calls included.
    """

    failures: dict[str, str] = field(default_factory=dict)
    unasked: int = 0
    stopped: str = ""
    answered: int = 0
    asked: int = 0
    tokens: int = 0
    usage: dict[str, int] = field(default_factory=lambda: {"prompt_tokens": 0, "completion_tokens": 0})

    def known(self, answer: Mapping[str, Any]) -> None:
        """Count an answer that an earlier call has brought."""
        self.answered += 1
        for kind in self.usage:
            self.usage[kind] += answer[kind]

    def keep(self, answer: Mapping[str, Any]) -> None:
        """Count an answer that has just come."""
        self.known(answer)
        self.asked += 1
        self.tokens += answer["completion_tokens"]


@dataclass(frozen=True)
class Server:
    """Where to ask and how hard.

    ``max_retries`` counts further tries after the first: the openai library repeats 408, 409, 429,
    5xx, time-outs and lost connections itself, with back-off and Retry-After. ``batch`` sends all
    requests through the Batch API, asked every ``batch_poll`` seconds. ``base_url`` may be several: the requests
    are spread over them.
    """

    base_url: str | Sequence[str] | None
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

    @property
    def urls(self) -> Sequence[str | None]:
        """Every endpoint; None is the openai library's default."""
        return [self.base_url] if self.base_url is None or isinstance(self.base_url, str) else self.base_url

    @property
    def only_url(self) -> str | None:
        """The endpoint, for what goes to one alone.

        Raises:
            UsageError: there are several.
        """
        if len(self.urls) > 1:
            raise UsageError("--batch asks one server: give --base_url once")
        return self.urls[0]

    def clean(self, said: object) -> str:
        """What a server said as one line: without the key it may repeat, and nothing that steers a terminal."""
        text = f"{type(said).__name__}: {said}" if isinstance(said, Exception) else str(said)
        text = " ".join(printable(text).split())
        # A short key is no secret, such as the "none" of a server that wants none, and may stand in any word.
        secret = self.api_key if self.api_key and len(self.api_key) >= SHORTEST_SECRET else None
        return (text.replace(secret, "***") if secret else text)[:300]


def request(model: str, prompt: str | list[dict[str, str]], stop: Sequence[str] = (), **parameters: Any) -> Request:
    """Build a chat request from messages or a completion request from a string."""
    kind = "prompt" if isinstance(prompt, str) else "messages"
    payload = {"model": model, kind: prompt, **parameters}
    return Request(payload | ({"stop": list(stop)} if stop else {}))
