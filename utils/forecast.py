"""What a set of requests would take: tokens, money, time and disk, before the first one is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import dump_line
from utils.journal import journal_records
from utils.llm import Request, Server
from utils.pricing import Budget

CHARACTERS_PER_TOKEN = 4  # English, until answers tell better


def forecast(requests: Sequence[Request], journal: Path, server: Server, budget: Budget, max_tokens: int) -> str:
    """Lines that tell what is kept already and what the rest would take.

    Means over the answers that the journal holds make the estimates; without any, the prompts' characters
    and ``max_tokens`` bound them, and nothing is said about time.

    Args:
        requests: all of them; repeated ones are asked once.
        journal: finished answers, read only.
        server: for its number of requests at once.
        budget: for its price.
        max_tokens: most new tokens of an answer.
    """
    known = journal_records(journal)[0] if journal.exists() else {}
    unique = {item.key: item for item in requests}
    done = {key: known[key] for key in unique if key in known}
    todo = [item for key, item in unique.items() if key not in known]
    lines = [f"{len(requests)} rows: {len(done)} answered already, {len(todo)} to ask"]
    if not todo:
        return lines[0]
    characters = sum(_characters(item) for item in todo)
    if done:
        seen = sum(_characters(unique[key]) for key in done)
        prompt = characters * _total(done, "prompt_tokens") / max(1, seen)
        completion = len(todo) * _total(done, "completion_tokens") / len(done)
        bound = f"about, by {len(done)} answers"
    else:
        prompt, completion = characters / CHARACTERS_PER_TOKEN, float(len(todo) * max_tokens)
        bound = "at most"
    lines.append(f"tokens: {prompt:,.0f} in, {completion:,.0f} out ({bound})")
    price = budget.price
    lines.append("cost: unknown" if price is None else f"cost: ${price.of(prompt, completion):.2f} ({bound})")
    if done:
        at_once = min(server.concurrency, len(todo))
        seconds = len(todo) * _total(done, "seconds") / len(done) / at_once
        lines.append(f"time: {seconds / 60:.1f} minutes, {at_once} at once")
        size = sum(len(dump_line(record)) + 30 for record in done.values()) / len(done)
    else:
        size = 200.0 + CHARACTERS_PER_TOKEN * max_tokens
    lines.append(f"disk: {2 * len(todo) * size / 1e6:.1f} MB, journal and output")
    return "\n".join(lines)


def _characters(item: Request) -> int:
    payload = item.payload
    if "prompt" in payload:
        return len(payload["prompt"])
    return sum(len(message["content"]) for message in payload["messages"])


def _total(answers: Mapping[str, Mapping[str, Any]], field: str) -> float:
    return float(sum(answer[field] for answer in answers.values()))
