"""Ask many requests: a window that grows and shrinks with the server, and a journal that keeps every answer."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from utils.config import UsageError
from utils.llm.batch import Batches, open_keys, state_path
from utils.llm.cost import Budget, Outcome
from utils.llm.faults import TOO_MANY, Fault, ServerError, fault_of
from utils.llm.types import Request, Server, UnusableError
from utils.store.journal import Journal

PATIENCE = 20  # failures in a row, over all requests, before asking stops
LEAST_PATIENCE = 3  # tries after a time-out that a busy server's queue may have caused
REST = 0.1  # seconds between two looks at a full window
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds before the next try, as in the openai library
TOLD_PAUSE = 5.0  # seconds from which on a wait that the server asks for is told
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


class Window:
    """Asks many requests at once, by workers that share one queue: a slow request holds up only its own worker.

    The window is the number of requests that may be in flight. It begins with an eighth of ``concurrency`` (but at
    least 8), grows while the server keeps up, and is halved when the server says that it has too much to do, or does
    not answer in time. A request that gets no answer in time is asked again after all others, up to ``max_retries``
    times, and at least `LEAST_PATIENCE` times; one that is still refused by 429 after its retries, as often as needed.
    After `PATIENCE` failures without an answer in between nothing more is sent: the server is down, or the settings
    suit no request.
    """

    def __init__(self, server: Server, outcome: Outcome) -> None:
        self._server, self._outcome = server, outcome
        self._size, self._in_flight = min(float(server.concurrency), max(8.0, server.concurrency / 8)), 0
        self._shrunk, self._paused_until = 0.0, 0.0  # by the monotonic clock; 0 for never
        self._todo: deque[Request] = deque()
        self._tries = Counter[str]()  # by request key
        self._failed_in_a_row, self._refusal = 0, ""

    def ask(self, todo: Iterable[Request], bar: tqdm) -> None:
        """Ask until nothing is left, the budget is spent, or the server is given up."""
        self._todo.extend(todo)
        asyncio.run(self._run(bar))
        if self._refusal:
            raise UsageError(self._refusal)

    async def _run(self, bar: tqdm) -> None:
        import openai

        settings = self._server.client_settings | {"max_retries": 0}  # the library's own tries hide time-outs and waits
        async with openai.AsyncOpenAI(**settings) as client:
            await asyncio.gather(*(self._work(client, bar) for _ in range(self._server.concurrency)))

    @property
    def _stopping(self) -> bool:
        self._outcome.stopped = self._outcome.stopped or self._outcome.budget.exceeded
        return bool(self._outcome.stopped or self._refusal)

    @property
    def _paused(self) -> bool:
        return not self._stopping and time.monotonic() < self._paused_until

    async def _work(self, client: Any, bar: tqdm) -> None:
        outcome = self._outcome
        while self._todo:
            item = self._todo.popleft()
            while self._paused or (not self._stopping and self._in_flight + 1 > self._size):
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
        """Ask until an answer can be kept or trying is no use; return whether to ask again after all other requests."""
        started, tried = time.monotonic(), 0
        while True:
            before = self._outcome.asked
            fault = await self._ask(client, item, started)
            if fault is None:
                self._failed_in_a_row = 0
                return False
            answers = self._outcome.asked - before  # that others got meanwhile
            slow = fault.silent and answers > 2 * self._size  # by itself, for many others overtook it
            self._heed(fault, fault.overload and not slow)
            if not fault.again or tried == self._server.max_retries or self._stopping:
                break
            await self._rest(fault, tried)
            tried += 1
        tries, most = self._tries[item.key], self._server.max_retries
        repeated = fault.silent and tries <= (most if slow else max(most, LEAST_PATIENCE))
        again = repeated or fault.status == TOO_MANY or fault.wait > 0
        # What was sent before the last answer tells nothing about the server now; what timed out before, little new.
        if not answers and not (repeated and tries > 1):
            self._count(fault)
        if not again:
            self._outcome.failures[item.key] = fault.reason
        elif repeated and not self._stopping:  # the server may still be at work on what was given up
            await self._rest(fault, tries - 1)
        return again

    def _count(self, fault: Fault) -> None:
        """Count a failure that may be the server's; after `PATIENCE` in a row, stop."""
        # Before the first answer every failure counts: the settings may suit no request at all.
        self._failed_in_a_row += fault.hopeless or not self._outcome.answered
        if self._failed_in_a_row >= PATIENCE and not self._stopping:
            self._outcome.stopped = f"the last {PATIENCE} requests all failed ({fault.reason})"

    async def _rest(self, fault: Fault, tried: int) -> None:
        """Wait before the next try, longer each time, or as long as the server asks."""
        if fault.hopeless and not fault.wait:
            await asyncio.sleep(min(FIRST_PAUSE * 2**tried, LONGEST_PAUSE))
        while self._paused:
            await asyncio.sleep(REST)

    async def _ask(self, client: Any, item: Request, started: float) -> Fault | None:
        """Ask once and keep the answer; return why there is none."""
        import openai

        self._tries[item.key] += 1
        fault = None
        try:
            raw = await client.post(item.path, body=item.body, cast_to=object, options=RAW)
            seconds = round(time.monotonic() - started, 3)
            self._outcome.take(item.key, raw.content, seconds=seconds, attempts=self._tries[item.key])
        except (openai.OpenAIError, ServerError, UnusableError) as error:
            fault = fault_of(error, self._server)
        if fault is None or not (fault.status or fault.hopeless):
            # Grow by 2 per answer; after the first overload, by 1 per window of answers.
            self._size = min(self._server.concurrency, self._size + (1 / self._size if self._shrunk else 2))
        return fault

    def _heed(self, fault: Fault, overload: bool) -> None:
        """Stop or pause, as a fault demands, and ask less at once after an overload."""
        now, server = time.monotonic(), self._server
        if fault.fatal:
            self._refusal = f"{server.name} refuses: {fault.reason}"
        # The requests in flight fail together: shrink once.
        if overload and now - self._shrunk > min(1.0, server.timeout / 4):
            self._size, self._shrunk = max(1.0, self._size / 2), now
        if not fault.wait:
            return
        asks = f"the server asks to wait {fault.wait:.0f} s: {fault.reason.removeprefix(f'{fault.status} ')}"
        if fault.wait > server.longest_wait:
            self._outcome.stopped = f"{asks}; that is longer than --longest_wait {server.longest_wait:g}"
        elif fault.wait >= TOLD_PAUSE and now >= self._paused_until:
            tqdm.write(asks, file=sys.stderr)
        self._paused_until = max(self._paused_until, now + fault.wait)
