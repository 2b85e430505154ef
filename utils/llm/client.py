"""Ask many requests: a window that grows and shrinks with the server, and a journal that keeps every answer."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm

from utils.config import UsageError
from utils.llm.batch import Batches, open_keys, state_path
from utils.llm.cost import Budget, Outcome
from utils.llm.types import Request, Server, UnusableError, refused
from utils.store.journal import Journal

FATAL = {401, 403, 404}  # every further request would fail too
TOO_MANY = 429
OUT_OF_MONEY = "insufficient_quota"  # OpenAI's code of a 429 that waiting does not help
PATIENCE = 20  # failures in a row, over all requests, before asking stops
LONGEST_PAUSE = 600.0  # seconds; a server that asks for a longer pause does not get it
REST = 0.1  # seconds between two looks at a full window
# Return the body as it came. The library's create() takes twice the CPU time, for it checks the type of every field.
RAW = {"headers": {"X-Stainless-Raw-Response": "true"}}


def ask_all(
    requests: Iterable[Request],
    server: Server,
    journal: Journal,
    desc: str,
    accept_any: bool = False,
    budget: Budget | None = None,
) -> Outcome:
    """Ask the requests that the journal has no answer to, at most ``server.concurrency`` at a time.

    Each answer is appended to the journal as it arrives, so that the same call after a kill asks only the rest.

    ``accept_any`` takes empty, filtered and cut-off answers as they are (right for a reader under test) instead of as
    failures (right for rationales). ``budget`` counts the answers of earlier calls too, and stops at its limit. A
    UsageError tells why no further request can succeed: a refused key, an unknown model or address, no money left.
    """
    unique = {item.key: item for item in requests}
    outcome = Outcome(journal, budget or Budget(), unique.keys(), accept_any)
    todo = {key: item for key, item in unique.items() if key not in journal}
    waiting = open_keys(journal.path)
    if not todo and not (server.batch and waiting):  # a kill may have left an answered batch open
        return outcome
    if server.base_url is None and server.api_key is None:
        raise UsageError("no API key: set OPENAI_API_KEY, or give --base_url of a server that needs none")
    in_batches = waiting & todo.keys()
    if in_batches and not server.batch:  # asked live, they would be paid for twice
        raise UsageError(
            f"{len(in_batches)} of the requests are in batches that are still open: add --batch to fetch their "
            f"answers, or remove {state_path(journal.path)} to forget them, paid or not"
        )
    with tqdm(total=len(unique), initial=outcome.answered, desc=desc, unit="request") as bar:
        (Batches if server.batch else Window)(server, outcome).ask(todo.values(), bar)
    return outcome


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a Retry-After header asks for; 0 without one, or for a date, the form of web servers."""
    try:
        seconds = float(headers.get("retry-after", 0))
    except ValueError:
        return 0.0
    # A comparison with NaN is false, so that "nan" asks for nothing.
    return min(seconds, LONGEST_PAUSE) if seconds > 0 else 0.0


class Window:
    """Asks many requests at once, by workers that share one queue: a slow request holds up only its own worker.

    The window is the number of requests that may be in flight. It begins with an eighth of ``concurrency`` (but at
    least 8), grows while the server keeps up, and is halved when the server answers 429. A request that is still
    refused after the openai library's retries is asked again after all others. After `PATIENCE` failures in a row
    nothing more is sent: the server is down, or the settings suit no request.
    """

    def __init__(self, server: Server, outcome: Outcome) -> None:
        self._server, self._outcome = server, outcome
        self._size, self._in_flight = min(float(server.concurrency), max(8.0, server.concurrency / 8)), 0
        self._shrunk, self._paused_until = 0.0, 0.0  # by the monotonic clock; 0 for never
        self._todo: deque[Request] = deque()
        self._failed_in_a_row, self._refusal = 0, ""

    def ask(self, todo: Iterable[Request], bar: tqdm) -> None:
        """Ask until nothing is left, the budget is spent, or the server is given up."""
        self._todo.extend(todo)
        asyncio.run(self._run(bar))
        if self._refusal:
            raise UsageError(self._refusal)

    async def _run(self, bar: tqdm) -> None:
        import openai

        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [self._saw]})
        async with openai.AsyncOpenAI(**self._server.client_settings, http_client=http) as client:
            await asyncio.gather(*(self._work(client, bar) for _ in range(self._server.concurrency)))

    @property
    def _stopping(self) -> bool:
        self._outcome.stopped = self._outcome.stopped or self._outcome.budget.exceeded
        return bool(self._outcome.stopped or self._refusal)

    async def _saw(self, response: Any) -> None:
        """Adapt the window to a response, also to one that the openai library will ask again."""
        now, status = time.monotonic(), response.status_code
        if status in (TOO_MANY, 503):
            self._paused_until = max(self._paused_until, now + retry_after(response.headers))
        # The requests in flight are refused together: shrink at most once per second.
        if status == TOO_MANY and now - self._shrunk > 1.0:
            self._size, self._shrunk = max(1.0, self._size / 2), now
        elif status < 400:
            # Grow by 2 per answer; after the first 429, by 1 per window of answers.
            self._size = min(self._server.concurrency, self._size + (1 / self._size if self._shrunk else 2))

    async def _work(self, client: Any, bar: tqdm) -> None:
        outcome = self._outcome
        while self._todo:
            item = self._todo.popleft()
            while not self._stopping and (self._in_flight + 1 > self._size or time.monotonic() < self._paused_until):
                await asyncio.sleep(REST)
            if self._stopping:
                return
            self._in_flight += 1
            try:
                again = await self._try(client, item)
            finally:
                self._in_flight -= 1
            if again:
                self._todo.append(item)
            else:
                bar.update()
            state = f"{len(outcome.failures)} failed, {outcome.budget}, {int(self._size)} at once"
            bar.set_postfix_str(state, refresh=False)

    async def _try(self, client: Any, item: Request) -> bool:
        """Ask once and keep what came; return whether to ask again after all other requests."""
        import openai

        status, hopeless = 0, True  # hopeless: a sign that this server will answer nothing
        try:
            await self._answer(client, item)
        except openai.APIStatusError as error:
            status = error.status_code
            reason, hopeless = f"{status} {self._server.clean(error)}", status not in (400, 422)
            reason += refused(status, error)
            if status in FATAL or error.code == OUT_OF_MONEY:
                self._refusal = f"{self._server.name} refuses: {reason}"
        except UnusableError as error:
            reason, hopeless = self._server.clean(str(error)), error.answer is None
        except openai.OpenAIError as error:
            reason = self._server.clean(error)
        else:
            self._failed_in_a_row = 0
            return False
        # Before the first answer every failure counts: the settings may suit no request at all.
        self._failed_in_a_row += hopeless or not self._outcome.answered
        if self._failed_in_a_row >= PATIENCE:
            self._outcome.stopped = f"the last {PATIENCE} requests all failed ({reason})"
        if status != TOO_MANY:
            self._outcome.failures[item.key] = reason
        return status == TOO_MANY

    async def _answer(self, client: Any, item: Request) -> None:
        started, attempts = time.monotonic(), 0
        for left in reversed(range(self._server.max_retries + 1)):
            raw = await client.post(item.path, body=item.body, cast_to=object, options=RAW)
            attempts += 1 + raw.retries_taken
            seconds = round(time.monotonic() - started, 3)
            try:
                self._outcome.take(item.key, raw.content, seconds=seconds, attempts=attempts)
                return
            except UnusableError as error:
                if not (error.retry and left):
                    raise
