"""What came of requests and what it cost, by the YAML's price table; the budget that stops them, and a forecast."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.config import UsageError
from utils.llm.faults import ServerError, error_in
from utils.llm.types import (
    NO_LIMIT,
    Request,
    Server,
    UnusableError,
    answer_of,
    is_cut_off,
    most_tokens,
    read_completion,
)
from utils.store.journal import Journal, Records

MILLION = 1_000_000
BATCH_DISCOUNT = 0.5  # of OpenAI's Batch API
MOST_REASONS = 3  # that are printed
WASTE = "unusable:"  # before a request's key in the journal: the tokens of its unusable answers


@dataclass
class Budget:
    """What the answers of one output have cost, and the limit in dollars (0: none) that stops it."""

    price: tuple[float, float] | None = None  # dollars per million prompt and completion tokens; None if unknown
    limit: float = 0.0
    _dollars: float = 0.0
    _uncounted: int = 0  # answers whose tokens the server did not count

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


@dataclass
class Outcome:
    """What came of a set of requests: the answers are in the journal, their number and cost here."""

    journal: Journal  # answers by request key, as `read_completion` gives them with ``seconds`` and ``attempts``
    budget: Budget
    wanted: Set[str]  # keys of the requests
    accept_any: bool = False  # as for `read_completion`
    failures: dict[str, str] = field(default_factory=dict)  # by request key, why it has no answer
    stopped: str = ""  # why requests were left for another call
    answered: int = 0  # by this call or an earlier one
    asked: int = 0  # answered by this call
    # Of the answered requests.
    usage: dict[str, int] = field(default_factory=lambda: {"prompt_tokens": 0, "completion_tokens": 0})

    def __post_init__(self) -> None:
        """Count the answers and the cost that earlier calls brought."""
        for key in self.wanted:
            for name in (key, WASTE + key):
                if name in self.journal:
                    self.budget.add(self.journal[name])
            if key in self.journal:
                self._count(self.journal[key])

    @property
    def unasked(self) -> int:
        """How many requests were left for another call."""
        return len(self.wanted) - self.answered - len(self.failures)

    @property
    def rest(self) -> str:
        """Say what was left for another call, and why; empty if nothing was."""
        if not self.unasked:
            return ""
        goes_on = "the same command goes on"
        if "--max_cost" in self.stopped:
            goes_on += " with a higher --max_cost, or without a limit"
        return f"{self.unasked} questions were not asked: {self.stopped}; the answers so far are kept, and {goes_on}"

    @property
    def reasons(self) -> str:
        """Say why requests failed, the commonest reasons first; texts that differ in numbers alone are one reason."""
        kinds: dict[str, list[str]] = {}
        for reason in self.failures.values():
            kinds.setdefault(reason[:3] + re.sub(r"\w*\d\w*", "0", reason[3:]), []).append(reason)
        first = sorted(kinds.values(), key=len, reverse=True)
        told = [same[0] + (f" ({len(same)} times)" if len(same) > 1 else "") for same in first[:MOST_REASONS]]
        return "; ".join(told + [f"{len(first) - MOST_REASONS} other reasons"] * (len(first) > MOST_REASONS))

    def take(self, key: str, body: bytes | dict[str, Any], **facts: Any) -> None:
        """Write an answer with its facts to the journal; count what an unusable one cost before its error passes on.

        An error that a server sent in place of an answer is raised as `ServerError`.
        A batch may bring an answer that the input no longer asks for, which is kept for later.
        """
        if (error := error_in(body)) is not None:
            raise ServerError(error)
        try:
            answer = read_completion(body, self.accept_any) | facts
        except UnusableError as unusable:
            if unusable.answer:
                self._waste(key, unusable.answer | facts)
            raise
        self.journal.append(key, answer)
        self.budget.add(answer)
        if key in self.wanted:
            self._count(answer)
            self.asked += 1

    def _waste(self, key: str, answer: Mapping[str, Any]) -> None:
        self.budget.add(answer)
        before = self.journal.get(WASTE + key, {})
        total = {kind: before.get(kind, 0) + answer[kind] for kind in self.usage}
        # One record sums all unusable answers of a request. It has the batch price only if all were batch answers.
        half = bool(answer.get("batch")) and before.get("batch", True)
        self.journal.append(WASTE + key, total | ({"batch": True} if half else {}))

    def _count(self, answer: Mapping[str, Any]) -> None:
        self.answered += 1
        for kind in self.usage:
            self.usage[kind] += answer[kind]


def unfinished(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count the answers that are empty or cut off, for the manifest, and say so if there are any."""
    empty = sum(not answer_of(record) for record in records)
    cut_off = sum(map(is_cut_off, records))
    if empty or cut_off:
        print(f"of {len(records)} answers, {empty} are empty and {cut_off} were cut off (--max_tokens)")
    return {"empty answers": empty, "cut-off answers": cut_off}


def too_many(failed: int, total: int, allowed: float) -> str:
    """Return what to do if a larger share than ``allowed`` failed; empty if not. All failures are too many always."""
    if failed <= allowed * total and (failed < total or not total):
        return ""
    again = "run the same command to ask only these again"
    if failed > total / 2:  # something is wrong that letting more of them fail does not mend
        return again
    return f"{again}, or go on without: --max_failures {math.ceil(failed / total * 10_000) / 10_000:g}"


def forecast(
    requests: Sequence[Request], journal: Path, waiting: Container[str], server: Server, budget: Budget
) -> str:
    """Return lines that tell how many requests are answered, how many are in open batches, and what the rest takes.

    The estimate is made from the means of the answers in the journal. Without any, it is the most that the requests
    can take, by their prompts' characters and the most tokens of their answers.
    """
    unique = {item.key: item for item in requests}
    answers = _answers(journal, unique.keys())
    todo = [item for key, item in unique.items() if key not in answers and key not in waiting]
    text = f"{len(requests)} rows: {len(answers)} answered already, {len(todo)} to ask"
    if in_batches := len(unique) - len(answers) - len(todo):
        text += f", {in_batches} in open batches"
    if not todo:
        return text
    prompt, completion = most_tokens(todo)
    how = "at most, if a token has four characters"
    if answers:
        prompt = len(todo) * statistics.mean(answer["prompt_tokens"] for answer in answers.values())
        completion = len(todo) * statistics.mean(answer["completion_tokens"] for answer in answers.values())
        how = f"about, by {len(answers)} answers"
    limited = completion < NO_LIMIT
    text += f"\ntokens: {prompt:,.0f} in, {f'{completion:,.0f}' if limited else 'no limit'} out ({how})\ncost: "
    known = budget.price and limited
    text += f"${budget.dollars(prompt, completion, server.batch):.2f} ({how})" if known else "unknown"
    if server.batch:
        return f"{text}\ntime: within 24 hours, as the Batch API promises"
    # The answers of batches do not tell how long a live one takes.
    seconds = [answer["seconds"] for answer in answers.values() if not answer.get("batch")]
    if not seconds:
        return f"{text}\ntime: not known before the first answers"
    at_once = min(server.concurrency, len(todo))
    return f"{text}\ntime: {len(todo) * statistics.mean(seconds) / at_once / 60:.1f} minutes, {at_once} at once"


def _answers(journal: Path, keys: Set[str]) -> dict[str, dict[str, Any]]:
    """Read the answers that a journal has to these keys; it stays as it is, and need not exist."""
    if not journal.exists():
        return {}
    with Records(journal) as known:
        return {key: known[key] for key in keys if key in known}
