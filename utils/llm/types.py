"""What an LLM is asked and where: prompts, requests, and the server."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from utils.config import printable
from utils.store.manifest import digest

Messages = list[dict[str, str]]
Prompt = str | Messages
CHARACTERS_PER_TOKEN = 4  # of English
SHORTEST_SECRET = 8


@dataclass(frozen=True)
class Request:
    """One call: ``payload`` holds ``messages`` (chat) or ``prompt`` (completion), the model and its parameters."""

    payload: dict[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """The hash of everything that decides the answer."""
        return digest(self.payload)

    @property
    def path(self) -> str:
        """The API's path below the base URL."""
        return "/chat/completions" if "messages" in self.payload else "/completions"

    @property
    def characters(self) -> int:
        """The length of the prompt."""
        if "prompt" in self.payload:
            return len(self.payload["prompt"])
        return sum(len(message["content"]) for message in self.payload["messages"])

    @property
    def most_tokens(self) -> tuple[float, float]:
        """Estimated tokens of the prompt, and the most tokens that the answer may have."""
        return self.characters / CHARACTERS_PER_TOKEN, self.payload["max_tokens"]


def request(model: str, prompt: Prompt, stop: Sequence[str] = (), **parameters: Any) -> Request:
    """Build a chat request from messages, or a completion request from a string."""
    kind = "prompt" if isinstance(prompt, str) else "messages"
    payload = {"model": model, kind: prompt, **parameters}
    return Request(payload | ({"stop": list(stop)} if stop else {}))


@dataclass(frozen=True)
class Server:
    """Where to ask, how patiently, and how much at once; see section ``llm`` of the YAML."""

    base_url: str | None
    api_key: str | None
    timeout: float
    max_retries: int
    concurrency: int
    batch: bool = False
    batch_poll: float = 30.0

    @classmethod
    def of(cls, args: argparse.Namespace) -> Server:
        """Return the server that a script's settings name."""
        return cls(**{item.name: getattr(args, item.name) for item in fields(cls)})

    @property
    def name(self) -> str:
        """The server's address, for messages."""
        return self.base_url or "the default endpoint"

    @property
    def client_settings(self) -> dict[str, Any]:
        """Keyword arguments of the openai library's clients, which repeat 408, 409, 429, 5xx and lost connections."""
        settings = {"base_url": self.base_url, "timeout": self.timeout, "max_retries": self.max_retries}
        return settings | {"api_key": self.api_key or "none"}

    def clean(self, said: object) -> str:
        """Return a server's words as one line, without the key that it may repeat and without control characters."""
        text = f"{type(said).__name__}: {said}" if isinstance(said, Exception) else str(said)
        text = " ".join(printable(text).split())
        # A short key is no secret ("none", for a server that wants none), and may be part of any word.
        if self.api_key and len(self.api_key) >= SHORTEST_SECRET:
            text = text.replace(self.api_key, "***")
        return text[:300]
