"""What an LLM is asked, where, and what it answers: prompts, requests, the server, its completions."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import orjson
from pydantic import BaseModel, Field

from utils.config import UsageError, printable
from utils.store.jsonlines import parse_row
from utils.store.manifest import digest

Prompt = str | list[dict[str, str]]  # a completion, or chat messages
CHARACTERS_PER_TOKEN = 4  # of English on average; costs are estimated by it
SHORTEST_SECRET = 8


def characters(prompt: Prompt) -> int:
    """Return the length of a prompt."""
    return len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)


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
    def prompt(self) -> Prompt:
        """What the model is shown."""
        return self.payload["messages" if "messages" in self.payload else "prompt"]


def request(model: str, prompt: Prompt, stop: Sequence[str] = (), **parameters: Any) -> Request:
    """Build a chat request from messages, or a completion request from a string."""
    kind = "prompt" if isinstance(prompt, str) else "messages"
    payload = {"model": model, kind: prompt, **parameters}
    return Request(payload | ({"stop": list(stop)} if stop else {}))


def most_tokens(requests: Iterable[Request]) -> tuple[float, float]:
    """Return the estimated tokens of all prompts, and the most tokens that all answers may have."""
    sizes = [(characters(item.prompt), item.payload["max_tokens"]) for item in requests]
    return sum(size for size, _ in sizes) / CHARACTERS_PER_TOKEN, sum(most for _, most in sizes)


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
    batch_tokens: int = 0
    longest_wait: float = 600.0

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


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    finish_reason: str | None = None
    message: _Message | None = None
    text: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
    model: str | None = None


class UnusableError(Exception):
    """An answer that cannot be used; ``retry`` if the same request may bring a better one.

    ``answer`` is what was received and must be paid for; None if it could not be read.
    """

    def __init__(self, reason: str, retry: bool, answer: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.retry, self.answer = retry, answer


def read_completion(body: bytes | dict[str, Any], accept_any: bool) -> dict[str, Any]:
    """Return ``{text, finish_reason, prompt_tokens, completion_tokens, model}`` of a chat or text completion.

    Raises:
        UnusableError: no completion; or, unless ``accept_any``, an empty, filtered or cut-off answer.
    """
    try:
        found = parse_row(body if isinstance(body, dict) else orjson.loads(body), _Completion, "no completion")
    except orjson.JSONDecodeError as error:
        raise UnusableError(f"not valid JSON ({error})", retry=True) from None
    except UsageError as error:
        raise UnusableError(str(error), retry=True) from None
    choice, usage = found.choices[0], found.usage or _Usage()
    text = (choice.text if choice.message is None else choice.message.content) or ""
    answer = {
        "text": text,
        "finish_reason": choice.finish_reason,
        "prompt_tokens": usage.prompt_tokens or 0,
        "completion_tokens": usage.completion_tokens or 0,
        "model": found.model,
    }
    if accept_any:
        return answer
    if choice.finish_reason == "content_filter":
        raise UnusableError("content filter", retry=False, answer=answer)
    if not text.strip():
        raise UnusableError("empty answer", retry=True, answer=answer)
    if choice.finish_reason == "length":
        raise UnusableError("cut off at max_tokens", retry=False, answer=answer)
    return answer
