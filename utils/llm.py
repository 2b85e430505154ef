"""Many requests to an OpenAI-compatible server: a sliding window, a journal, no answer lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from utils.config import UsageError
from utils.journal import Journal
from utils.manifest import digest

# Failures that every further request would meet too: going on only wastes time.
FATAL = {401, 403, 404}


@dataclass(frozen=True)
class Request:
    """One call: ``payload`` holds ``messages`` (chat) or ``prompt`` (completion), model and parameters."""

    payload: dict[str, Any]

    @property
    def key(self) -> str:
        """Hash of everything that decides the answer; equal requests are asked once."""
        return digest(self.payload)


@dataclass
class Outcome:
    """What came of a set of requests: answers by key, and failure reasons by key."""

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    tokens: int = 0

    def usage(self) -> dict[str, int]:
        """Tokens of all answers, those of earlier calls included."""
        kinds = ("prompt_tokens", "completion_tokens")
        return {kind: sum(answer[kind] for answer in self.answers.values()) for kind in kinds}


@dataclass(frozen=True)
class Server:
    """Where to ask and how hard.

    ``max_retries`` counts further tries after the first: the openai library repeats 408, 409, 429,
    5xx, time-outs and lost connections itself, with back-off and Retry-After.
    """

    base_url: str | None
    api_key: str | None
    timeout: float
    max_retries: int
    concurrency: int


def request(model: str, prompt: str | list[dict[str, str]], stop: Sequence[str] = (), **parameters: Any) -> Request:
    """Build a chat request from messages or a completion request from a string."""
    kind = "prompt" if isinstance(prompt, str) else "messages"
    payload = {"model": model, kind: prompt, **parameters}
    return Request(payload | ({"stop": list(stop)} if stop else {}))


def ask_all(
    requests: Sequence[Request], server: Server, journal: Journal, desc: str, accept_any: bool = False
) -> Outcome:
    """Send what the journal does not hold, at most ``server.concurrency`` at a time.

    Each answer is appended to the journal as it arrives, so that the same call after a kill asks
    only the rest. An empty answer is asked again up to ``max_retries`` times.

    Args:
        requests: in any order; repeated ones are asked once.
        server: endpoint and limits.
        journal: finished answers by request key.
        desc: text of the progress bar.
        accept_any: take empty, filtered and cut-off answers as they are, which is right for a reader
            under test; otherwise they are failures, which is right for rationales.

    Returns:
        Answers ``{text, finish_reason, prompt_tokens, completion_tokens, model, seconds}`` and failures.

    Raises:
        UsageError: no key for the default endpoint, a refused key, an unknown model or address.
    """
    import openai

    unique = {item.key: item for item in requests}
    outcome = Outcome({key: journal.records[key] for key in unique if key in journal})
    todo = [item for key, item in unique.items() if key not in journal]
    if not todo:
        return outcome
    if server.base_url is None and server.api_key is None:
        raise UsageError("no API key: set OPENAI_API_KEY, or give --base_url of a server that needs none")
    with tqdm(total=len(unique), initial=len(unique) - len(todo), desc=desc, unit="request") as bar:
        try:
            asyncio.run(_window(todo, server, journal, outcome, bar, accept_any))
        except openai.APIStatusError as error:
            where = server.base_url or "the default endpoint"
            raise UsageError(f"{where} refused every request: {error.status_code} {_reason(error)}") from None
    return outcome


async def _window(
    todo: list[Request], server: Server, journal: Journal, outcome: Outcome, bar: tqdm, accept_any: bool
) -> None:
    """``concurrency`` workers share one iterator, so that one slow request holds up only its worker."""
    import openai

    queue = iter(todo)

    async def worker(client: Any) -> None:
        for item in queue:
            outcome.asked += 1
            try:
                answer = await _ask(client, item, server.max_retries, accept_any)
            except openai.APIStatusError as error:
                if error.status_code in FATAL:
                    raise
                outcome.failures[item.key] = f"{error.status_code} {_reason(error)}"
            except (openai.OpenAIError, _UnusableError) as error:
                outcome.failures[item.key] = _reason(error)
            else:
                journal.append(item.key, answer)
                outcome.answers[item.key] = answer
                outcome.tokens += answer["completion_tokens"]
            bar.update()
            bar.set_postfix(failed=len(outcome.failures), tokens=outcome.tokens, refresh=False)

    client_of = openai.AsyncOpenAI(
        api_key=server.api_key or "none",
        base_url=server.base_url,
        timeout=server.timeout,
        max_retries=server.max_retries,
    )
    try:
        async with client_of as client, asyncio.TaskGroup() as group:
            for _ in range(min(server.concurrency, len(todo))):
                group.create_task(worker(client))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


class _UnusableError(Exception):
    """An answer that arrived and cannot be used."""


async def _ask(client: Any, item: Request, max_retries: int, accept_any: bool) -> dict[str, Any]:
    started = time.monotonic()
    for _ in range(max_retries + 1):
        if "messages" in item.payload:
            response = await client.chat.completions.create(**item.payload)
        else:
            response = await client.completions.create(**item.payload)
        if not response.choices:
            raise _UnusableError("answer without choices")
        choice = response.choices[0]
        text = (choice.message.content if "messages" in item.payload else choice.text) or ""
        if choice.finish_reason == "content_filter" and not accept_any:
            raise _UnusableError("content filter")
        if text.strip() or accept_any:
            break
    else:
        raise _UnusableError("empty answer")
    if choice.finish_reason == "length" and not accept_any:
        raise _UnusableError("cut off at max_tokens")
    return {
        "text": text,
        "finish_reason": choice.finish_reason,
        "prompt_tokens": response.usage.prompt_tokens if response.usage else 0,
        "completion_tokens": response.usage.completion_tokens if response.usage else 0,
        "model": response.model,
        "seconds": round(time.monotonic() - started, 3),
    }


def _reason(error: BaseException) -> str:
    """One line without the request, which could hold secrets or whole prompts."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
