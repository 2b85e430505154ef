"""What requests cost, by the price table in the YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.config import UsageError

MILLION = 1_000_000
BATCH_DISCOUNT = 0.5  # OpenAI's Batch API


@dataclass(frozen=True)
class Price:
    """Dollars a million tokens."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Dollars of so many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / MILLION


class Budget:
    """What the answers of one output have cost, and the limit that stops it.

    Args:
        price: of the model; None if the table does not know it.
        limit: dollars; 0 for none.
    """

    def __init__(self, price: Price | None = None, limit: float = 0.0) -> None:
        self.price, self.limit = price, limit
        self._dollars = 0.0
        self._uncounted = 0

    @classmethod
    def for_model(cls, prices: Mapping[str, Sequence[float]], model: str, limit: float) -> Budget:
        """The budget of a model.

        Raises:
            UsageError: a limit, but no price to hold against it; or a price that is no pair of numbers.
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
                f"prices.{model} must be [prompt, completion] dollars a million tokens, not {entry!r}"
            ) from None
        return cls(Price(prompt, completion), limit)

    def add(self, answer: Mapping[str, Any]) -> None:
        """Count one answer, a new one or one that an earlier run paid for."""
        if self.price:
            tokens = answer["prompt_tokens"], answer["completion_tokens"]
            self._dollars += self.price.of(*tokens) * (BATCH_DISCOUNT if answer.get("batch") else 1.0)
            self._uncounted += not any(tokens)

    def batch_cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Dollars of so many tokens through the Batch API; 0 where the price is unknown."""
        return BATCH_DISCOUNT * self.price.of(prompt_tokens, completion_tokens) if self.price else 0.0

    @property
    def cost(self) -> float | None:
        """Dollars so far; None where the price is unknown."""
        return None if self.price is None else self._dollars

    @property
    def exceeded(self) -> str:
        """Why nothing more may be asked; empty while it may."""
        if not self.limit:
            return ""
        if self._uncounted:
            return f"--max_cost cannot be held: the server does not count the tokens of its answers ({self})"
        if self._dollars >= self.limit:
            return f"the answers have cost {self} of --max_cost {self.limit:g}"
        return ""

    def __str__(self) -> str:
        if self.cost is None:
            return "cost unknown"
        unknown = f" and {self._uncounted} answers of unknown cost" if self._uncounted else ""
        return f"${self.cost:.4f}{unknown}"
