"""What a set of requests would take: tokens, money, time and disk, before the first one is sent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.llm.batch import open_keys
from utils.llm.pricing import BATCH_DISCOUNT, Budget
from utils.llm.types import CHARACTERS_PER_TOKEN, Request, Server, SizedIterable
from utils.store.journal import Records
from utils.store.jsonlines import dump_line


@dataclass
class _Sums:
    count: int = 0
    characters: int = 0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    bytes: int = 0
    live: int = 0
    seconds: float = 0.0

    def add(self, item: Request, answer: dict[str, Any]) -> None:
        self.count += 1
        self.characters += item.characters
        self.prompt_tokens += answer["prompt_tokens"]
        self.completion_tokens += answer["completion_tokens"]
        self.bytes += len(dump_line(answer)) + 30
        # An answer of the Batch API tells nothing about how long a live one takes.
        if not answer.get("batch"):
            self.live += 1
            self.seconds += answer["seconds"]


def forecast(requests: SizedIterable[Request], journal: Path, server: Server, budget: Budget) -> str:
    """Lines that tell what is kept already and what the rest would take.

    Means over the answers that the journal holds make the estimates; without any, the prompts' characters
    and the requests' ``max_tokens`` do, and the time is not known.

    Args:
        requests: all of them; repeated ones are asked once.
        journal: finished answers, read only.
        server: for its number of requests at once.
        budget: for its price.
    """
    done, todo = _Sums(), _Sums()
    most_tokens, waiting = [0.0, 0.0], open_keys(journal)
    seen = set[str]()
    with contextlib.ExitStack() as stack:
        known = stack.enter_context(Records(journal)) if journal.exists() else {}
        for item in requests:
            if item.key in seen:
                continue
            seen.add(item.key)
            if item.key in known:
                done.add(item, known[item.key])
            elif item.key not in waiting:
                todo.count += 1
                todo.characters += item.characters
                most_tokens = [a + b for a, b in zip(most_tokens, item.most_tokens, strict=True)]
    open_now = len(seen) - done.count - todo.count
    lines = [f"{len(requests)} rows: {done.count} answered already, {todo.count} to ask"]
    if open_now:
        lines[0] += f", {open_now} in open batches"
    return "\n".join([*lines, *(_what_it_takes(done, todo, most_tokens, server, budget) if todo.count else ())])


def _what_it_takes(done: _Sums, todo: _Sums, most_tokens: list[float], server: Server, budget: Budget) -> Iterable[str]:
    prompt, completion = most_tokens
    how = "at most, if a token has four characters"
    size = 200 * todo.count + CHARACTERS_PER_TOKEN * completion
    if done.count:
        prompt = todo.characters * done.prompt_tokens / max(1, done.characters)
        completion = todo.count * done.completion_tokens / done.count
        how = f"about, by {done.count} answers"
        size = todo.count * done.bytes / done.count
    yield f"tokens: {prompt:,.0f} in, {completion:,.0f} out ({how})"
    price = budget.price
    share = BATCH_DISCOUNT if server.batch else 1.0
    yield "cost: unknown" if price is None else f"cost: ${share * price.of(prompt, completion):.2f} ({how})"
    if server.batch:
        yield "time: within 24 hours, as the Batch API promises"
    elif done.live:
        at_once = min(server.concurrency, todo.count)
        seconds = todo.count * done.seconds / done.live / at_once
        yield f"time: {seconds / 60:.1f} minutes, {at_once} at once"
    else:
        yield "time: not known before the first answers"
    yield f"disk: {2 * size / 1e6:.1f} MB, journal and output"
