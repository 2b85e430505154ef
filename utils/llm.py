"""Many requests to an OpenAI-compatible server: a sliding window, a journal, no answer lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from utils.config import UsageError
from utils.journal import Journal
from utils.manifest import digest
from utils.pricing import Budget

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
    unasked: int = 0
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
    requests in flight finish, the second drops them.

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
    import openai

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
        window = _Window(server, journal, outcome, bar, accept_any, budget)
        try:
            asyncio.run(window.run(todo))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        except openai.APIStatusError as error:
            where = server.base_url or "the default endpoint"
            raise UsageError(f"{where} refused every request: {error.status_code} {_reason(error)}") from None
    if window.signalled:
        raise KeyboardInterrupt
    outcome.unasked = len(todo) - outcome.asked
    return outcome


class Limiter:
    """How many requests may be in flight: more while the server keeps up, half when it says 429.

    Grows by one a success until the first 429, then by one a round, never above ``most``.
    """

    START = 8

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, min(most, self.START)
        self._open, self._slow, self._successes, self._shrunk = 0, False, 0, 0.0
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._open < self.limit)
            self._open += 1

    async def __aexit__(self, *_: object) -> None:
        async with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def saw(self, status: int) -> None:
        """Take notice of a response, a retried one too."""
        now = time.monotonic()
        # All requests of one round are refused together: that is one sign, not many.
        if status == 429 and now - self._shrunk > 1.0:
            self.limit, self._slow, self._shrunk, self._successes = max(1, self.limit // 2), True, now, 0
        elif status < 400:
            self._successes += 1
            if not self._slow or self._successes >= self.limit:
                self.limit, self._successes = min(self.most, self.limit + 1), 0


class _Window:
    """Workers that share one iterator, so that one slow request holds up only its worker."""

    def __init__(
        self, server: Server, journal: Journal, outcome: Outcome, bar: tqdm, accept_any: bool, budget: Budget
    ) -> None:
        self._server, self._journal, self._outcome, self._bar = server, journal, outcome, bar
        self._accept_any, self._budget = accept_any, budget
        self.signalled = False

    async def run(self, todo: list[Request]) -> None:
        """Ask until nothing is left, the budget is spent, or a signal comes."""
        import openai

        limiter = Limiter(self._server.concurrency)

        async def notice(response: Any) -> None:
            limiter.saw(response.status_code)

        client_of = openai.AsyncOpenAI(
            api_key=self._server.api_key or "none",
            base_url=self._server.base_url,
            timeout=self._server.timeout,
            max_retries=self._server.max_retries,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [notice]}),
        )
        queue = iter(todo)
        try:
            async with client_of as client, asyncio.TaskGroup() as group:
                with self._signals(asyncio.current_task()):
                    workers = [
                        group.create_task(self._work(queue, client, limiter))
                        for _ in range(min(self._server.concurrency, len(todo)))
                    ]
                    await asyncio.gather(*workers)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    @contextlib.contextmanager
    def _signals(self, task: asyncio.Task[Any] | None) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if self.signalled and task is not None:
                task.cancel()
            self.signalled = True
            print("\nstopping once the requests in flight are answered; again: at once", file=sys.stderr, flush=True)

        in_main_thread = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread else ():
            loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread else ():
                loop.remove_signal_handler(number)

    async def _work(self, queue: Iterator[Request], client: Any, limiter: Limiter) -> None:
        import openai

        outcome = self._outcome
        while not self.signalled and not self._budget.spent:
            async with limiter:
                if self.signalled or self._budget.spent or (item := next(queue, None)) is None:
                    return
                outcome.asked += 1
                try:
                    answer = await _ask(client, item, self._server.max_retries, self._accept_any)
                except openai.APIStatusError as error:
                    if error.status_code in FATAL:
                        raise
                    outcome.failures[item.key] = f"{error.status_code} {_reason(error)}"
                except (openai.OpenAIError, _UnusableError) as error:
                    outcome.failures[item.key] = _reason(error)
                else:
                    self._journal.append(item.key, answer)
                    outcome.answers[item.key] = answer
                    outcome.tokens += answer["completion_tokens"]
                    self._budget.add(answer)
            self._bar.update()
            self._bar.set_postfix_str(
                f"{len(outcome.failures)} failed, {outcome.tokens} tokens, {self._budget}, {limiter.limit} at once",
                refresh=False,
            )


class _UnusableError(Exception):
    """An answer that arrived and cannot be used."""


async def _ask(client: Any, item: Request, max_retries: int, accept_any: bool) -> dict[str, Any]:
    started, attempts = time.monotonic(), 0
    kind = client.chat.completions if "messages" in item.payload else client.completions
    for _ in range(max_retries + 1):
        raw = await kind.with_raw_response.create(**item.payload)
        attempts += 1 + raw.retries_taken
        response = raw.parse()
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
        "attempts": attempts,
    }


def _reason(error: BaseException) -> str:
    """One line without the request, which could hold secrets or whole prompts."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
