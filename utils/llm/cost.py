"""What requests cost, by the YAML's price table: the budget that stops them, and a forecast before the first one."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.config import UsageError
from utils.llm.types import CHARACTERS_PER_TOKEN, Request, Server
from utils.store.journal import Records

MILLION = 1_000_000
BATCH_DISCOUNT = 0.5  # of OpenAI's Batch API


class Budget:
    """What the answers of one output have cost, and the limit in dollars (0: none) that stops it."""

    def __init__(self, price: tuple[float, float] | None = None, limit: float = 0.0) -> None:
        """``price``: dollars per million prompt tokens and completion tokens; None if it is unknown."""
        self.price, self.limit = price, limit
        self._dollars, self._uncounted = 0.0, 0

    @classmethod
    def for_model(cls, prices: Mapping[str, Sequence[float]], model: str, limit: float) -> Budget:
        """Return the budget of a model; refuse a limit without a price."""
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
    requests: Sequence[Request], journal: Path, waiting: Container[str], server: Server, budget: Budget
) -> str:
    """Return lines that tell how many requests are answered, how many are in open batches, and what the rest takes.

    The estimate is made from the means of the answers in the journal. Without any, it is the most that the requests
    can take, by their prompts' characters and their ``max_tokens``.
    """
    unique = {item.key: item for item in requests}
    with contextlib.ExitStack() as stack:
        known = stack.enter_context(Records(journal)) if journal.exists() else {}
        answers = {key: known[key] for key in unique if key in known}
    todo = [item for key, item in unique.items() if key not in answers and key not in waiting]
    text = f"{len(requests)} rows: {len(answers)} answered already, {len(todo)} to ask"
    if in_batches := len(unique) - len(answers) - len(todo):
        text += f", {in_batches} in open batches"
    if not todo:
        return text
    if answers:
        characters = sum(unique[key].characters for key in answers)
        per_character = sum(answer["prompt_tokens"] for answer in answers.values()) / max(1, characters)
        completion = len(todo) * statistics.mean(answer["completion_tokens"] for answer in answers.values())
        how = f"about, by {len(answers)} answers"
    else:
        per_character, completion = 1 / CHARACTERS_PER_TOKEN, sum(item.payload["max_tokens"] for item in todo)
        how = "at most, if a token has four characters"
    prompt = per_character * sum(item.characters for item in todo)
    text += f"\ntokens: {prompt:,.0f} in, {completion:,.0f} out ({how})\ncost: "
    text += f"${budget.dollars(prompt, completion, server.batch):.2f} ({how})" if budget.price else "unknown"
    if server.batch:
        return f"{text}\ntime: within 24 hours, as the Batch API promises"
    # The answers of batches do not tell how long a live one takes.
    seconds = [answer["seconds"] for answer in answers.values() if not answer.get("batch")]
    if not seconds:
        return f"{text}\ntime: not known before the first answers"
    at_once = min(server.concurrency, len(todo))
    return f"{text}\ntime: {len(todo) * statistics.mean(seconds) / at_once / 60:.1f} minutes, {at_once} at once"
