"""What one output's requests have cost, over all calls: answers, and what was paid for and could not be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from utils.llm.pricing import Budget
from utils.store.journal import Journal

WASTE = "unusable:"  # before a request's key: the tokens of its answers that could not be used


class Spending:
    """A budget whose sums outlive the process, because they stand in the journal.

    Args:
        journal: holds the answers, and a record a request for its unusable ones.
        budget: price and limit.
    """

    def __init__(self, journal: Journal, budget: Budget) -> None:
        self._journal, self.budget = journal, budget

    def recall(self, key: str) -> None:
        """Count what earlier calls have paid for a request."""
        for name in (key, WASTE + key):
            if name in self._journal:
                self.budget.add(self._journal[name])

    def answer(self, key: str, answer: dict[str, Any]) -> None:
        """Keep a usable answer and count it."""
        self._journal.append(key, answer)
        self.budget.add(answer)

    def unusable(self, key: str, tokens: Mapping[str, Any]) -> None:
        """Count an answer that cannot be used, here and in later calls.

        Args:
            key: of the request.
            tokens: ``{prompt_tokens, completion_tokens}``, and ``batch`` where it came in one.
        """
        self.budget.add(tokens)
        name = WASTE + key
        before = self._journal.get(name, {})
        kinds = ("prompt_tokens", "completion_tokens")
        sums = {kind: before.get(kind, 0) + tokens[kind] for kind in kinds}
        # One record a request: where a batch's share was paid in full before, the whole counts in full.
        half = bool(tokens.get("batch")) and before.get("batch", True)
        self._journal.append(name, sums | ({"batch": True} if half else {}))
