"""What an LLM is asked, where, and what it answers: prompts, requests, the server, its completions."""

from __future__ import annotations

import argparse
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, BeforeValidator, Field

from utils.config import UsageError, printable
from utils.store.jsonlines import parse_row
from utils.store.manifest import digest

Prompt = str | list[dict[str, str]]  # a completion, or chat messages
CHARACTERS_PER_TOKEN = 4  # of English on average; costs are estimated by it
SHORTEST_SECRET = 8
NO_LIMIT = 1e15  # tokens of an answer to a request without `LIMIT`; a number, because it is kept as JSON
LIMIT = re.compile(r"max_\w*tokens")  # max_tokens, or max_completion_tokens for OpenAI's newer models
CUT_OFF = ("length", "max_tokens")  # finish reasons
TEXT_PARTS = ("text", "output_text")  # types of the parts of a message that are no thoughts
# Fields of our requests that a server may refuse, as its error names them.
REFUSED = re.compile(r"\b(?:max_tokens|temperature|top_p|seed|stop)\b|(?<=['\"`])n(?=['\"`])")
REFUSES_FIELDS = re.compile(r"parameter|field|argument|propert|extra inputs|unknown name|unrecogni", re.IGNORECASE)
TOO_LONG = re.compile(r"too large|context length", re.IGNORECASE)
REFUSES_SYSTEM = re.compile(
    r"(?:system|developer) (?:role|message|prompt|instruction)s?\b.{0,30}\bnot\b|roles must alternate", re.IGNORECASE
)

# The marks of thoughts: XML-like tags, Magistral, Kimi, Cohere and OpenThinker, Apertus, gpt-oss and Gemma, Granite.
_TAG = r"(?:\w+:)?(?:think|thinking|thoughts?|reasoning|scratchpad)"
_OPENING = re.compile(
    rf"<{_TAG}>|\[THINK\]|◁think▷|<\|(?:start|begin)_(?:of_)?(?:thinking|thought)\|>|<\|inner_prefix\|>"
    r"|<\|channel\|?>\s*(?:analysis|commentary|thought)\b|\A\s*here(?:'s| is) my thought process:",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    rf"</{_TAG}>|\[/THINK\]|◁/think▷|<\|end_(?:of_)?(?:thinking|thought)\|>|<\|inner_suffix\|>"
    r"|<\|channel\|>\s*final\b.*?<\|message\|>|<channel\|>"
    r"|\A\s*(?s:analysis.*assistantfinal|here(?:'s| is) my thought process:.*?here(?:'s| is) my response:)",
    re.IGNORECASE,
)
_WRAPPED = re.compile(  # what may stand around the answer after thoughts
    r"\s*(?:<\|?(?:start_|begin_of_)?(?:answer|response|solution)\|?>)?(.*?)"
    r"(?:<(?:/|\|end_|\|end_of_)(?:answer|response|solution)\|?>\s*)?(?:<\|(?:return|end)\|>\s*)?",
    re.IGNORECASE | re.DOTALL,
)


def answer_in(text: str) -> str | None:
    """Return what follows a model's thoughts, the whole text if it has none; None if the text ends within them.

    A closing mark without an opening one is usual: chat templates open the thoughts in the prompt.

    >>> answer_in("<think>Paris or Lyon?</think> Paris"), answer_in("Lyon? No.</think>Paris"), answer_in(" Paris")
    ('Paris', 'Paris', ' Paris')
    >>> answer_in("<think>Paris or") is None
    True
    """
    *_, closed = 0, *(mark.end() for mark in _CLOSING.finditer(text))
    if _OPENING.search(text, closed):
        return None
    if not closed:
        return text
    opening = _OPENING.search(text)
    before = text[: opening.start()] if opening else ""
    found = _WRAPPED.fullmatch(text, closed)
    return (found[1] if found else "").strip() or before


def opened_thoughts(prompt: str) -> str:
    """Return the mark that opens the answer's thoughts at the end of a prompt; empty if there is none."""
    *_, last = None, *_OPENING.finditer(prompt)
    return last[0] if last and not prompt[last.end() :].strip() else ""


def answer_of(record: Mapping[str, Any]) -> str:
    """Return the answer in a journal's record without its thoughts; empty if there is none."""
    return (answer_in(record["text"]) or "").strip()


def is_cut_off(record: Mapping[str, Any]) -> bool:
    """Return whether the answer in a journal's record ended at ``max_tokens`` or within its thoughts."""
    return str(record.get("finish_reason")).lower() in CUT_OFF or answer_in(record["text"]) is None


def refused(status: int, said: object) -> str:
    """Return how to leave out what a server's error says that it does not take; empty if it says nothing like that."""
    words = str(said)
    if REFUSES_SYSTEM.search(words):
        return "; a blank system prompt is not sent, and prompts.rag_user may hold {reference}"
    fields = dict.fromkeys(REFUSED.findall(words))
    if status not in (400, 422) or TOO_LONG.search(words) or not (fields or REFUSES_FIELDS.search(words)):
        return ""
    changes: dict[str, Any] = fields or {"FIELD": None}
    if "max_completion_tokens" in words:
        changes["max_completion_tokens"] = 1000
    return f"; --request leaves out, adds or replaces fields: --request '{json.dumps(changes)}'"


def characters(prompt: Prompt) -> int:
    """Return the length of a prompt."""
    return len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)


@dataclass(frozen=True)
class Request:
    """One call: ``payload`` holds ``messages`` (chat) or ``prompt`` (completion), the model and its parameters."""

    payload: dict[str, Any]
    implied: frozenset[str] = frozenset()  # fields with the value that servers take unasked; some refuse to be told

    @functools.cached_property
    def key(self) -> str:
        """The hash of everything that decides the answer."""
        return digest(self.payload)

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        return {name: value for name, value in self.payload.items() if name not in self.implied}

    @property
    def most_tokens(self) -> float:
        """The most tokens that the answer may have."""
        limits = [value for name, value in self.payload.items() if LIMIT.fullmatch(name) and isinstance(value, int)]
        answers = self.payload.get("n", 1)
        return max(limits, default=NO_LIMIT) * (answers if isinstance(answers, int) else 1)

    @property
    def path(self) -> str:
        """The API's path below the base URL."""
        return "/chat/completions" if "messages" in self.payload else "/completions"

    @property
    def prompt(self) -> Prompt:
        """What the model is shown."""
        return self.payload["messages" if "messages" in self.payload else "prompt"]


def request(
    model: str, prompt: Prompt, stop: Sequence[str] = (), changes: Mapping[str, Any] | None = None, **parameters: Any
) -> Request:
    """Build a chat request from messages, or a completion request from a string.

    ``changes`` is the setting ``request``: its nulls leave fields out, its other values are added or replace ours.
    """
    kind, changes = "prompt" if isinstance(prompt, str) else "messages", changes or {}
    payload = {"model": model, kind: prompt, **parameters} | ({"stop": list(stop)} if stop else {}) | dict(changes)
    implied = {"n"} - changes.keys() if payload.get("n") == 1 else set()
    return Request({name: value for name, value in payload.items() if value is not None}, frozenset(implied))


def chat(system: str | None, user: str) -> Prompt:
    """Build a prompt of messages; a blank system text, which some chat templates refuse, makes no message."""
    messages = [{"role": "system", "content": system}] if system and system.strip() else []
    return [*messages, {"role": "user", "content": user}]


def most_tokens(requests: Iterable[Request]) -> tuple[float, float]:
    """Return the estimated tokens of all prompts, and the most tokens that all answers may have."""
    sizes = [(characters(item.prompt), item.most_tokens) for item in requests]
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
        """Keyword arguments of the openai library's clients; `Window` tries again itself, batches leave it to them."""
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


def _joined(content: Any) -> Any:
    """Join the text parts of a message that comes in parts; its thoughts are other parts."""
    if not isinstance(content, list):
        return content
    parts = [{"text": part} if isinstance(part, str) else part for part in content]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError("parts must be texts or objects")
    texts = [part.get("text") for part in parts if (part.get("type") or "text") in TEXT_PARTS]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text part without a text")
    return "".join(map(str, texts))


class _Message(BaseModel):
    content: Annotated[str | None, BeforeValidator(_joined)] = None


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
    if is_cut_off(answer):
        reasoning = " while reasoning, before any answer (or at a stop string)"
        when = "" if answer_of(answer) else reasoning
        raise UnusableError(f"cut off at max_tokens{when}: --max_tokens is too small", retry=False, answer=answer)
    if not answer_of(answer):
        raise UnusableError("empty answer" + (" after reasoning" if text.strip() else ""), retry=True, answer=answer)
    return answer
