"""What a set of requests would take: tokens, money, time and disk, before the first one is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import dump_line
from utils.journal import journal_records
from utils.llm import CHARACTERS_PER_TOKEN, Request, Server
from utils.pricing import BATCH_DISCOUNT, Budget


def forecast(requests: Sequence[Request], journal: Path, server: Server, budget: Budget) -> str:
    """Lines that tell what is kept already and what the rest would take.

    Means over the answers that the journal holds make the estimates; without any, the prompts' characters
    and the requests' ``max_tokens`` bound them, and nothing is said about time.

    Args:
        requests: all of them; repeated ones are asked once.
        journal: finished answers, read only.
        server: for its number of requests at once.
        budget: for its price.
    """
    known = journal_records(journal)[0] if journal.exists() else {}
    unique = {item.key: item for item in requests}
    done = {key: known[key] for key in unique if key in known}
    todo = [item for key, item in unique.items() if key not in known]
    lines = [f"{len(requests)} rows: {len(done)} answered already, {len(todo)} to ask"]
    if not todo:
        return lines[0]
    if done:
        seen = sum(unique[key].characters for key in done)
        prompt = sum(item.characters for item in todo) * _total(done, "prompt_tokens") / max(1, seen)
        completion = len(todo) * _total(done, "completion_tokens") / len(done)
        bound = f"about, by {len(done)} answers"
    else:
        prompt, completion = (sum(kind) for kind in zip(*(item.most_tokens for item in todo), strict=True))
        bound = "at most"
    lines.append(f"tokens: {prompt:,.0f} in, {completion:,.0f} out ({bound})")
    price = budget.price
    share = BATCH_DISCOUNT if server.batch else 1.0
    lines.append("cost: unknown" if price is None else f"cost: ${share * price.of(prompt, completion):.2f} ({bound})")
    if server.batch:
        lines.append("time: within 24 hours, as the Batch API promises")
    elif done:
        at_once = min(server.concurrency, len(todo))
        seconds = len(todo) * _total(done, "seconds") / len(done) / at_once
        lines.append(f"time: {seconds / 60:.1f} minutes, {at_once} at once")
    if done:
        size = len(todo) * sum(len(dump_line(record)) + 30 for record in done.values()) / len(done)
    else:
        size = 200 * len(todo) + CHARACTERS_PER_TOKEN * completion
    lines.append(f"disk: {2 * size / 1e6:.1f} MB, journal and output")
    return "\n".join(lines)


def _total(answers: Mapping[str, Mapping[str, Any]], field: str) -> float:
    return float(sum(answer[field] for answer in answers.values()))
