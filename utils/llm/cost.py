"""What requests cost, by the YAML's price table: the budget that stops them, and a forecast before the first one."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.config import UsageError
from utils.llm.types import CHARACTERS_PER_TOKEN, Request, Server
from utils.store.journal import Records

MILLION = 1_000_000
BATCH_DISCOUNT = 0.5  # of OpenAI's Batch API


class Budget:
    """What the answers of one output have cost, and the limit that stops it.

    Args:
        price: dollars per million prompt tokens and completion tokens; None if the table does not have the model.
        limit: dollars; 0 for no limit.
    """

    def __init__(self, price: tuple[float, float] | None = None, limit: float = 0.0) -> None:
        self.price, self.limit = price, limit
        self._dollars, self._uncounted = 0.0, 0

    @classmethod
    def for_model(cls, prices: Mapping[str, Sequence[float]], model: str, limit: float) -> Budget:
        """Return the budget of a model.

        Raises:
            UsageError: a limit without a price, or a price that is no pair of numbers.
        """
        entry = prices.get(model)
        if entry is None:
            if limit:
                raise UsageError(f"--max_cost needs a price for {model!r}: add it to the prices section of the YAML")
            return cls()
        try:
            prompt, completion = map(float, entry)
        except (TypeError, ValueError):
            raise UsageError(
                f"prices.{model} must be [prompt, completion] dollars per million tokens, not {entry!r}"
            ) from None
        return cls((prompt, completion), limit)

    def dollars(self, prompt_tokens: float, completion_tokens: float, batch: bool) -> float:
        """Return the price of so many tokens; 0 if the price is unknown."""
        prompt, completion = self.price or (0.0, 0.0)
        full = (prompt_tokens * prompt + completion_tokens * completion) / MILLION
        return full * BATCH_DISCOUNT if batch else full

    def add(self, answer: Mapping[str, Any]) -> None:
        """Count an answer: a new one, or one that an earlier call paid for."""
        tokens = answer["prompt_tokens"], answer["completion_tokens"]
        self._dollars += self.dollars(*tokens, bool(answer.get("batch")))
        self._uncounted += self.price is not None and not any(tokens)

    @property
    def cost(self) -> float | None:
        """Dollars so far; None if the price is unknown."""
        return None if self.price is None else self._dollars

    @property
    def exceeded(self) -> str:
        """Why nothing more may be asked; empty while it may."""
        if self.limit and self._uncounted:
            return f"--max_cost cannot be held: the server does not count the tokens of its answers ({self})"
        if self.limit and self._dollars >= self.limit:
            return f"the answers have cost {self} of --max_cost {self.limit:g}"
        return ""

    def __str__(self) -> str:
        if self.cost is None:
            return "cost unknown"
        unknown = f" and {self._uncounted} answers of unknown cost" if self._uncounted else ""
        return f"${self.cost:.4f}{unknown}"


def forecast(
    requests: Iterable[Request], journal: Path, waiting: Container[str], server: Server, budget: Budget
) -> str:
    """Return lines that tell how many requests are answered, how many are in open batches, and what the rest takes.

    The estimate is made from the means of the answers in the journal. Without any, it is the most that the requests
    can take, by their prompts' characters and their ``max_tokens``.
    """
    done, todo, rows, seen = Counter[str](), Counter[str](), 0, set[str]()
    seconds: list[float] = []  # of live answers: those of batches do not tell how long a live one takes
    with contextlib.ExitStack() as stack:
        known = stack.enter_context(Records(journal)) if journal.exists() else {}
        for item in requests:
            rows += 1
            if item.key in seen:
                continue
            seen.add(item.key)
            if item.key in known:
                answer = known[item.key]
                done.update({"requests": 1, "characters": item.characters, "prompt": answer["prompt_tokens"]})
                done["completion"] += answer["completion_tokens"]
                seconds += [] if answer.get("batch") else [answer["seconds"]]
            elif item.key not in waiting:
                todo.update({"requests": 1, "characters": item.characters, "completion": item.payload["max_tokens"]})
    count = todo["requests"]
    text = f"{rows} rows: {done['requests']} answered already, {count} to ask"
    if in_batches := len(seen) - done["requests"] - count:
        text += f", {in_batches} in open batches"
    if not count:
        return text
    prompt, completion = todo["characters"] / CHARACTERS_PER_TOKEN, float(todo["completion"])
    how = "at most, if a token has four characters"
    if done:
        prompt = todo["characters"] * done["prompt"] / max(1, done["characters"])
        completion, how = count * done["completion"] / done["requests"], f"about, by {done['requests']} answers"
    text += f"\ntokens: {prompt:,.0f} in, {completion:,.0f} out ({how})\ncost: "
    text += f"${budget.dollars(prompt, completion, server.batch):.2f} ({how})" if budget.price else "unknown"
    if server.batch:
        return f"{text}\ntime: within 24 hours, as the Batch API promises"
    if not seconds:
        return f"{text}\ntime: not known before the first answers"
    at_once = min(server.concurrency, count)
    return f"{text}\ntime: {count * sum(seconds) / len(seconds) / at_once / 60:.1f} minutes, {at_once} at once"
