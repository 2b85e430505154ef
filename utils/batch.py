"""OpenAI's Batch API: the same requests at half the price, answered within a day.

A kill between any two steps costs nothing: what is being submitted is written down before it is, under a
random name that the batch carries as metadata, so that the next call finds the batch even if its id was not
written down any more. Answers go into the same journal as live ones.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError
from tqdm import tqdm

from utils.completion import UnusableError, read_completion
from utils.config import UsageError
from utils.files import atomic, dump_line
from utils.journal import Journal
from utils.pricing import BATCH_DISCOUNT, Budget

if TYPE_CHECKING:
    from utils.llm import Outcome, Request, Server

# The API's limits of one batch.
MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
OVER = ("completed", "failed", "expired", "cancelled")
NAME = "radio_part"  # metadata field of a batch


class _Part(BaseModel):
    keys: list[str]
    batch: str | None


_STATE = TypeAdapter(dict[str, _Part])


class Batches:
    """Batches of one journal, and their state in ``JOURNAL.batches.json``.

    Args:
        server: endpoint and ``batch_poll``.
        journal: receives the answers.
        outcome: receives answers and failures.
        accept_any: as `utils.llm.ask_all`.
        budget: a limit keeps requests back whose answers could pass it.
    """

    def __init__(self, server: Server, journal: Journal, outcome: Outcome, accept_any: bool, budget: Budget) -> None:
        import openai

        self._server, self._journal, self._outcome = server, journal, outcome
        self._accept_any, self._budget = accept_any, budget
        self._client = openai.OpenAI(
            api_key=server.api_key or "none",
            base_url=server.base_url,
            timeout=server.timeout,
            max_retries=server.max_retries,
        )
        self._path = journal.path.with_suffix(".batches.json")
        self._parts: dict[str, dict[str, Any]] = read_state(self._path)
        self._wanted: set[str] = set()

    def ask(self, todo: list[Request], bar: tqdm) -> None:
        """Submit what no earlier call has submitted, wait for all batches, and keep their answers.

        Raises:
            UsageError: the server has no Batch API, refuses the key, or refuses a batch as a whole.
        """
        import openai

        self._wanted = {item.key for item in todo}
        try:
            with self._client:
                self._adopt()
                self._submit(todo)
                self._wait(bar)
        except openai.NotFoundError:
            where = self._server.base_url or "the default endpoint"
            raise UsageError(f"{where} has no Batch API; leave out --batch") from None
        except openai.APIStatusError as error:
            raise UsageError(f"the Batch API refuses: {error.status_code} {self._server.clean(error)}") from None
        except openai.APIConnectionError as error:
            raise UsageError(f"the Batch API cannot be reached ({error}); the same command goes on") from None

    def _adopt(self) -> None:
        """Find the batches that were created, but whose id was not written down before the end."""
        lost = {name for name, part in self._parts.items() if part["batch"] is None}
        if not lost:
            return
        for batch in self._client.batches.list(limit=100):
            if (name := (batch.metadata or {}).get(NAME)) in lost:
                self._parts[name]["batch"] = batch.id
        self._parts = {name: part for name, part in self._parts.items() if part["batch"]}
        self._save()

    def _submit(self, todo: list[Request]) -> None:
        sent = {key for part in self._parts.values() for key in part["keys"]}
        rest = self._affordable([item for item in todo if item.key not in sent])
        for items, data in _split(rest):
            name = uuid.uuid4().hex
            self._parts[name] = {"keys": [item.key for item in items], "batch": None}
            self._save()
            file = self._client.files.create(file=(f"{name}.jsonl", data), purpose="batch")
            batch = self._client.batches.create(
                input_file_id=file.id, endpoint=_endpoint(items[0]), completion_window="24h", metadata={NAME: name}
            )
            self._parts[name]["batch"] = batch.id
            self._save()
        waiting = ", ".join(part["batch"] for part in self._parts.values())
        print(f"\nwaiting for {waiting}; it may be interrupted, the same command fetches them", file=sys.stderr)

    def _affordable(self, items: list[Request]) -> list[Request]:
        """The first requests whose answers cannot pass the limit: a batch cannot be stopped half-way."""
        if not self._budget.limit:
            return items
        cost = self._budget.cost or 0.0
        for i, item in enumerate(items):
            cost += BATCH_DISCOUNT * (self._budget.price.of(*item.most_tokens) if self._budget.price else 0.0)
            if cost > self._budget.limit:
                limit = f"--max_cost {self._budget.limit:g}"
                self._outcome.stopped = f"they could take the cost above {limit} ({self._budget} so far)"
                return items[:i]
        return items

    def _wait(self, bar: tqdm) -> None:
        while self._parts:
            answered = sum(self._look_at(name) for name in list(self._parts))
            waiting = sum(len(part["keys"]) for part in self._parts.values())
            bar.n = max(int(bar.n), int(bar.total or 0) - waiting + answered)
            bar.set_postfix_str(f"{len(self._parts)} batches open, {self._budget}")
            if self._parts:
                time.sleep(self._server.batch_poll)

    def _look_at(self, name: str) -> int:
        """Keep the answers of a batch that is over; of another, tell how many requests it has answered."""
        import openai

        identifier = self._parts[name]["batch"]
        try:
            batch = self._client.batches.retrieve(identifier)
        except openai.NotFoundError:
            self._close(name, dict.fromkeys(self._parts[name]["keys"], f"the server no longer knows {identifier}"))
            return 0
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
            tqdm.write(f"no word of {identifier} ({self._server.clean(error)}); asking again", file=sys.stderr)
            return 0
        if batch.status not in OVER:
            return batch.request_counts.completed + batch.request_counts.failed if batch.request_counts else 0
        self._close(name, self._merge(batch, self._parts[name]["keys"]))
        if batch.status == "failed":
            said = self._server.clean([error.message for error in (batch.errors and batch.errors.data) or []])
            raise UsageError(f"batch {batch.id} failed: {said}; the same command submits its requests again")
        return 0

    def _close(self, name: str, failures: dict[str, str]) -> None:
        """Forget a batch, now that its answers are on the disk."""
        self._outcome.failures |= {key: reason for key, reason in failures.items() if key in self._wanted}
        self._journal.sync()
        del self._parts[name]
        self._save()

    def _merge(self, batch: Any, keys: list[str]) -> dict[str, str]:
        """Take the answers of a batch into the journal; returns the reasons of those that are none."""
        # Answers to requests that the input no longer holds are paid for, and kept for the day it does again.
        reasons = dict.fromkeys(keys, f"the batch ended as {batch.status} without an answer")
        for file in (batch.error_file_id, batch.output_file_id):
            for line in self._client.files.content(file).content.splitlines() if file else ():
                row = orjson.loads(line)
                key, response = row["custom_id"], row.get("response") or {}
                if response.get("status_code") != 200:
                    reasons[key] = self._server.clean(orjson.dumps(row.get("error") or response.get("body")).decode())
                    continue
                try:
                    answer = read_completion(response["body"], self._accept_any)
                except UnusableError as error:
                    self._budget.add(error.answer | {"batch": True})
                    reasons[key] = str(error)
                    continue
                answer |= {"seconds": 0.0, "attempts": 1, "batch": True}
                reasons.pop(key, None)
                if key not in self._journal:
                    self._journal.append(key, answer)
                    self._budget.add(answer)
                    if key in self._wanted:
                        self._outcome.keep(key, answer)
        return reasons

    def _save(self) -> None:
        with atomic(self._path) as handle:
            handle.write(orjson.dumps(self._parts, option=orjson.OPT_INDENT_2))


def read_state(path: Path) -> dict[str, dict[str, Any]]:
    """Parts by name: ``{keys: [...], batch: id or null}``.

    Raises:
        UsageError: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        return {name: part.model_dump() for name, part in _STATE.validate_json(path.read_bytes()).items()}
    except ValidationError:
        raise UsageError(
            f"{path} is damaged; its batches are listed at the server. Remove it to submit them again"
        ) from None


def _endpoint(item: Request) -> Any:
    return "/v1/chat/completions" if "messages" in item.payload else "/v1/completions"


def _split(items: list[Request]) -> Iterator[tuple[list[Request], bytes]]:
    """Requests and their lines, in parts that one batch may hold."""
    part: list[Request] = []
    lines: list[bytes] = []
    size = 0
    for item in items:
        line = dump_line({"custom_id": item.key, "method": "POST", "url": _endpoint(item), "body": item.payload})
        if part and (len(part) == MOST_REQUESTS or size + len(line) > MOST_BYTES):
            yield part, b"".join(lines)
            part, lines, size = [], [], 0
        part.append(item)
        lines.append(line)
        size += len(line)
    if part:
        yield part, b"".join(lines)
