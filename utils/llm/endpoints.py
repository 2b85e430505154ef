"""The servers that requests go to: one, or several that share the work by load."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from utils.llm.limiter import Limiter
from utils.llm.types import Server

LOST_AFTER = 3  # requests in a row that one of several servers fails, each after the openai library's own tries


class Endpoint:
    """One server: its client, how many requests it has, and whether it still answers.

    Args:
        url: None for the openai library's default.
        server: what all endpoints have in common.
    """

    def __init__(self, url: str | None, server: Server) -> None:
        import openai

        async def notice(response: Any) -> None:
            self.limiter.saw(response.status_code, response.headers)

        self.url, self.limiter = url, Limiter(server.concurrency)
        self.alive = True
        self.failing: set[str] = set()  # requests that it failed since its last answer
        self.client = openai.AsyncOpenAI(
            api_key=server.api_key or "none",
            base_url=url,
            timeout=server.timeout,
            max_retries=server.max_retries,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [notice]}),
        )

    @property
    def name(self) -> str:
        """For messages."""
        return self.url or "the default endpoint"


class Endpoints:
    """All servers of a run. The next request goes to the one that has the smallest share of what it takes.

    A request that one of several fails goes to another; one that fails `LOST_AFTER` requests in a row is left out for
    the rest of the call.
    """

    def __init__(self, server: Server) -> None:
        self._all = [Endpoint(url, server) for url in server.urls]
        self._changed = asyncio.Condition()
        self._tried: dict[str, set[Endpoint]] = defaultdict(set)  # servers that failed a request

    @property
    def several(self) -> bool:
        """Whether what one fails can go to another."""
        return len(self._all) > 1

    @property
    def limit(self) -> int:
        """Requests that may be in flight now, over all servers."""
        return sum(endpoint.limiter.limit for endpoint in self._all if endpoint.alive)

    async def close(self) -> None:
        """Close all connections."""
        for endpoint in self._all:
            await endpoint.client.close()

    @contextlib.asynccontextmanager
    async def slot(self, key: str) -> AsyncIterator[Endpoint | None]:
        """A place for a request, at the server that is to get it; None once no server is left."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free(key) or not any(e.alive for e in self._all))
            endpoint = self._free(key)
            if endpoint:
                endpoint.limiter.open += 1
        try:
            yield endpoint
        finally:
            if endpoint:
                async with self._changed:
                    endpoint.limiter.open -= 1
                    self._changed.notify(max(0, endpoint.limiter.limit - endpoint.limiter.open))

    def _free(self, key: str) -> Endpoint | None:
        free = [e for e in self._all if e.alive and e.limiter.open < e.limiter.limit]
        tried = self._tried.get(key, ())
        return min(free, key=lambda e: (e in tried, e.limiter.pause > 0, e.limiter.load), default=None)

    async def pass_on(self, endpoint: Endpoint, key: str, reason: str) -> bool:
        """Take notice that a server failed a request by its own fault; whether there is another to try it at."""
        endpoint.failing.add(key)
        self._tried[key].add(endpoint)
        if self.several and endpoint.alive and len(endpoint.failing) >= LOST_AFTER:
            endpoint.alive = False
            print(f"\n{endpoint.name} is left out, its requests go to the others: {reason}", file=sys.stderr)
            async with self._changed:
                self._changed.notify_all()
        return any(other.alive and other not in self._tried[key] for other in self._all)
