"""Live requests: many in flight, each answer kept as it comes, nothing lost to one that fails."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from utils.config import UsageError
from utils.llm.endpoints import Endpoint, Endpoints
from utils.llm.response import UnusableError, read_completion
from utils.llm.spending import Spending
from utils.llm.types import Outcome, Request, Server
from utils.store.journal import Journal

# Failures that every further request would meet too.
FATAL = {401, 403, 404}
TOO_MANY = 429
OUT_OF_MONEY = "insufficient_quota"  # OpenAI's 429 that no waiting mends
# The body as it came, and the number of tries. The library's create() gives them too, but takes twice the CPU time,
# because it goes through the types of every field on each call.
RAW = {"headers": {"X-Stainless-Raw-Response": "true"}}
PATIENCE = 20  # failures in a row, over all requests, before asking stops


class Window:
    """Workers that share one queue, so that a slow request holds up only its worker.

    A request that the server refuses as too many (429) after the openai library's own retries is asked again
    after all others; so is one that failed by the fault of one of several servers, see `Endpoints`. After `PATIENCE`
    failures without an answer between them nothing more is sent: the server is down, or the settings suit no
    request, and the rest is left for the next call.
    """

    def __init__(
        self, server: Server, journal: Journal, outcome: Outcome, accept_any: bool, spending: Spending
    ) -> None:
        self._server, self._journal, self._outcome = server, journal, outcome
        self._accept_any, self._spending = accept_any, spending
        self._fresh: Iterator[Request] = iter(())
        self._again: deque[Request] = deque()
        self._failed_in_a_row = 0
        self._refusal: str | None = None
        self.signalled = False

    def ask(self, todo: Iterable[Request], bar: tqdm) -> None:
        """Ask until nothing is left, the budget is spent, the server is given up, or a signal comes.

        Raises:
            UsageError: a refused key, an unknown model or address, no money left.
            KeyboardInterrupt: a signal came, and what was in flight is kept.
        """
        self._fresh = iter(todo)
        try:
            asyncio.run(self._run(bar))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        if self._refusal:
            raise UsageError(self._refusal)
        if self.signalled:
            raise KeyboardInterrupt

    @property
    def _stopping(self) -> bool:
        self._outcome.stopped = self._outcome.stopped or self._spending.budget.exceeded
        return bool(self.signalled or self._outcome.stopped or self._refusal)

    async def _run(self, bar: tqdm) -> None:
        endpoints = Endpoints(self._server)
        try:
            with self._signals(asyncio.current_task()):
                await asyncio.gather(*(self._work(endpoints, bar) for _ in range(self._server.concurrency)))
        finally:
            await endpoints.close()

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

    async def _work(self, endpoints: Endpoints, bar: tqdm) -> None:
        while True:
            item = self._next()
            if item is None:
                return
            async with endpoints.slot(item.key) as endpoint:
                if endpoint is None:
                    self._outcome.stopped = self._outcome.stopped or "no server is left that answers"
                    return
                while (pause := endpoint.limiter.pause) and not self._stopping:
                    await asyncio.sleep(min(pause, 0.5))
                if self._stopping:
                    return
                again = await self._try(endpoints, endpoint, item)
            if again:
                self._again.append(item)
            else:
                bar.update()
            outcome = self._outcome
            bar.set_postfix_str(
                f"{len(outcome.failures)} failed, {outcome.tokens} tokens, {self._spending.budget}, "
                f"{min(endpoints.limit, self._server.concurrency)} at once",
                refresh=False,
            )

    def _next(self) -> Request | None:
        return next(self._fresh, None) or (self._again.popleft() if self._again else None)

    async def _try(self, endpoints: Endpoints, endpoint: Endpoint, item: Request) -> bool:
        """Ask once and keep what came; True if the request should come back later."""
        import openai

        counts = True  # as a sign that nothing can be had of this server
        try:
            answer = await self._answer(endpoint.client, item)
        except openai.APIStatusError as error:
            status = error.status_code
            counts = status not in (400, 422)
            reason = f"{status} {self._server.clean(error)}"
            if status in FATAL or error.code == OUT_OF_MONEY:
                self._refusal = f"{endpoint.name} refuses: {reason}"
        except (openai.OpenAIError, UnusableError) as error:
            reason, status = self._server.clean(error), 0
            counts = not (isinstance(error, UnusableError) and error.answer)
        else:
            self._failed_in_a_row = 0
            endpoint.failing.clear()
            self._spending.answer(item.key, answer)
            self._outcome.keep(answer)
            return False
        if counts and status != TOO_MANY and await endpoints.pass_on(endpoint, item.key, reason):
            return True
        # Where no request has been answered yet, the settings may suit none: that is worth stopping for.
        self._failed_in_a_row += counts or not self._outcome.answered
        if self._failed_in_a_row >= PATIENCE:
            self._outcome.stopped = f"the last {PATIENCE} requests all failed ({reason})"
        if status == TOO_MANY:
            return True
        self._outcome.failures[item.key] = reason
        return False

    async def _answer(self, client: Any, item: Request) -> dict[str, Any]:
        started, attempts = time.monotonic(), 0
        path = "/chat/completions" if "messages" in item.payload else "/completions"
        for left in reversed(range(self._server.max_retries + 1)):
            raw = await client.post(path, body=item.payload, cast_to=object, options=RAW)
            attempts += 1 + raw.retries_taken
            try:
                answer = read_completion(raw.content, self._accept_any)
            except UnusableError as error:
                if error.answer:
                    self._spending.unusable(item.key, error.answer)
                if error.retry and left:
                    continue
                raise
            return answer | {"seconds": round(time.monotonic() - started, 3), "attempts": attempts}
        raise AssertionError("a last try returns or raises")
