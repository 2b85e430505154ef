"""OpenAI's Batch API: the same requests at half the price, answered within a day.

A kill between any two steps costs nothing: what is being submitted is written down before it is, under a
random name that the batch carries as metadata, so that the next call finds the batch even if its id was not
written down any more. Answers go into the same journal as live ones.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError
from tqdm import tqdm

from utils.config import UsageError
from utils.llm.response import UnusableError, read_completion
from utils.llm.spending import Spending
from utils.llm.types import Outcome, Request, Server
from utils.store.files import atomic
from utils.store.journal import Journal
from utils.store.jsonlines import dump_line

# The API's limits of one batch.
MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
OVER = ("completed", "failed", "expired", "cancelled")
OK = 200
NAME = "radio_part"  # metadata field of a batch


class _Part(BaseModel):
    keys: list[str]
    batch: str | None
    base_url: str | None
    most_tokens: tuple[float, float]


_STATE = TypeAdapter(dict[str, _Part])


class Batches:
    """Batches of one journal, and their state in ``JOURNAL.batches.json``.

    Args:
        server: endpoint and ``batch_poll``.
        journal: receives the answers.
        outcome: receives counts and failures.
        accept_any: as `utils.llm.client.ask_all`.
        spending: its budget's limit keeps requests back whose answers could pass it.

    Raises:
        UsageError: batches of another server are open, or the state is damaged.
    """

    def __init__(
        self, server: Server, journal: Journal, outcome: Outcome, accept_any: bool, spending: Spending
    ) -> None:
        import openai

        self._server, self._journal, self._outcome = server, journal, outcome
        self._accept_any, self._spending = accept_any, spending
        self._client = openai.OpenAI(
            api_key=server.api_key or "none",
            base_url=server.only_url,
            timeout=server.timeout,
            max_retries=server.max_retries,
        )
        # A creation whose reply is lost may have happened: it is looked for, not repeated.
        self._once = self._client.with_options(max_retries=0)
        self._path = state_path(journal.path)
        self._parts = read_state(self._path)
        self._wanted: set[str] = set()
        elsewhere = {part.base_url for part in self._parts.values()} - {server.only_url}
        if elsewhere:
            raise UsageError(
                f"batches of this output are open at {_name(elsewhere.pop())}, not at {_name(server.only_url)}: fetch "
                f"them there first, or remove {self._path} to forget them, paid or not"
            )

    def ask(self, todo: Iterable[Request], bar: tqdm) -> None:
        """Submit what no earlier call has submitted, wait for all batches, and keep their answers.

        Raises:
            UsageError: the server has no Batch API, refuses the key, knows nothing of an open batch, or refuses a
                batch as a whole.
        """
        import openai

        try:
            with self._client:
                self._adopt()
                self._submit(todo)
                self._wait(bar)
        except openai.NotFoundError:
            raise UsageError(f"{_name(self._server.only_url)} has no Batch API; leave out --batch") from None
        except openai.APIStatusError as error:
            raise UsageError(f"the Batch API refuses: {error.status_code} {self._server.clean(error)}") from None
        except openai.APIConnectionError as error:
            raise UsageError(
                f"the Batch API cannot be reached ({self._server.clean(error)}); the same command goes on"
            ) from None

    def _adopt(self) -> None:
        """Find the batches that were created, but whose id was not written down before the end."""
        lost = {name for name, part in self._parts.items() if part.batch is None}
        if not lost:
            return
        for batch in self._client.batches.list(limit=100):
            if (name := (batch.metadata or {}).get(NAME)) in lost:
                self._parts[name].batch = batch.id
        self._parts = {name: part for name, part in self._parts.items() if part.batch}
        self._save()

    def _submit(self, todo: Iterable[Request]) -> None:
        sent = {key for part in self._parts.values() for key in part.keys}
        for items, data in _split(self._affordable(self._unsent(todo, sent))):
            name, most = uuid.uuid4().hex, [item.most_tokens for item in items]
            keys, tokens = [item.key for item in items], (sum(p for p, _ in most), sum(c for _, c in most))
            self._parts[name] = _Part(keys=keys, batch=None, base_url=self._server.only_url, most_tokens=tokens)
            self._save()
            file = self._client.files.create(file=(f"{name}.jsonl", data), purpose="batch")
            batch = self._once.batches.create(
                input_file_id=file.id, endpoint=_endpoint(items[0]), completion_window="24h", metadata={NAME: name}
            )
            self._parts[name].batch = batch.id
            self._save()
        if waiting := ", ".join(str(part.batch) for part in self._parts.values()):
            print(f"\nwaiting for {waiting}; it may be interrupted, the same command fetches them", file=sys.stderr)

    def _unsent(self, todo: Iterable[Request], sent: set[str]) -> Iterator[Request]:
        for item in todo:
            self._wanted.add(item.key)
            if item.key not in sent:
                yield item

    def _affordable(self, items: Iterable[Request]) -> Iterator[Request]:
        """The first requests whose answers cannot pass the limit: a batch cannot be stopped half-way."""
        budget = self._spending.budget
        most = (budget.cost or 0.0) + sum(budget.batch_cost(*part.most_tokens) for part in self._parts.values())
        for item in items:
            most += budget.batch_cost(*item.most_tokens)
            stopped = budget.exceeded
            if budget.limit and most > budget.limit:
                stopped = f"they could take the cost above --max_cost {budget.limit:g} ({budget} so far)"
            if not stopped:
                yield item
            self._outcome.stopped = self._outcome.stopped or stopped

    def _wait(self, bar: tqdm) -> None:
        """Until no batch holds a wanted request; those of other calls are taken as they come."""
        while self._parts:
            answered = sum(self._look_at(name) for name in list(self._parts))
            waiting = [part for part in self._parts.values() if not self._wanted.isdisjoint(part.keys)]
            bar.n = max(int(bar.n), int(bar.total or 0) - sum(len(part.keys) for part in waiting) + answered)
            bar.set_postfix_str(f"{len(waiting)} batches open, {self._spending.budget}")
            if not waiting:
                return
            time.sleep(self._server.batch_poll)

    def _look_at(self, name: str) -> int:
        """Keep the answers of a batch that is over; of another, tell how many requests it has answered."""
        import openai

        identifier, keys = str(self._parts[name].batch), self._parts[name].keys
        try:
            batch = self._client.batches.retrieve(identifier)
        except openai.NotFoundError:
            raise UsageError(
                f"{_name(self._server.only_url)} knows no batch {identifier}: is it the key of another project? If the "
                f"batch is gone for good, remove {self._path} to submit its requests again"
            ) from None
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
            tqdm.write(f"no word of {identifier} ({self._server.clean(error)}); asking again", file=sys.stderr)
            return 0
        if batch.status not in OVER:
            return batch.request_counts.completed + batch.request_counts.failed if batch.request_counts else 0
        self._close(name, self._merge(batch, keys))
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
        import openai

        reasons = dict.fromkeys(keys, f"the batch ended as {batch.status} without an answer")
        for file in filter(None, (batch.error_file_id, batch.output_file_id)):
            try:
                lines = self._client.files.content(file).content.splitlines()
            except openai.NotFoundError:
                reasons = dict.fromkeys(reasons, f"the server no longer has the answers of {batch.id}")
                continue
            for line in lines:
                self._take(line, reasons)
        return reasons

    def _take(self, line: bytes, reasons: dict[str, str]) -> None:
        """Keep the answer of a line of a batch's results, or the reason why there is none."""
        try:
            result = _Result.model_validate_json(line)
        except ValidationError:
            print(f"a line of a batch's results is passed over: {self._server.clean(line[:80])}", file=sys.stderr)
            return
        key, response = result.custom_id, result.response
        if response is None or response.status_code != OK:
            said = result.error or (response and response.body)
            reasons[key] = self._server.clean(orjson.dumps(said).decode())
            return
        try:
            answer = read_completion(response.body, self._accept_any) | {"seconds": 0.0, "attempts": 1, "batch": True}
        except UnusableError as error:
            reasons[key] = str(error)
            if error.answer:
                self._spending.unusable(key, error.answer | {"batch": True})
            return
        reasons.pop(key, None)
        # An answer to a request that the input no longer holds is paid for, and kept for the day it does again.
        if key not in self._journal:
            if key in self._wanted:
                self._outcome.keep(answer)
            self._spending.answer(key, answer)

    def _save(self) -> None:
        with atomic(self._path) as handle:
            handle.write(_STATE.dump_json(self._parts, indent=2))


class _Response(BaseModel):
    status_code: int
    body: dict[str, Any] = {}


class _Result(BaseModel):
    custom_id: str
    response: _Response | None = None
    error: Any = None


def _name(base_url: str | None) -> str:
    return base_url or "the default endpoint"


def state_path(journal: Path) -> Path:
    """Where the open batches of a journal are written down."""
    return journal.with_suffix(".batches.json")


def open_keys(journal: Path) -> set[str]:
    """Keys of the requests that are in batches not fetched yet."""
    return {key for part in read_state(state_path(journal)).values() for key in part.keys}


def refuse_open(journal: Journal, keys: Container[str]) -> None:
    """Refuse to ask live, and pay again, what is in an open batch.

    Raises:
        UsageError: some of ``keys`` that the journal has no answer to are.
    """
    if twice := sum(key in keys and key not in journal for key in open_keys(journal.path)):
        raise UsageError(
            f"{twice} of the requests are in batches that are still open: add --batch to fetch their answers, or "
            f"remove {state_path(journal.path)} to forget them, paid or not"
        )


def read_state(path: Path) -> dict[str, _Part]:
    """Parts by name: ``{keys: [...], batch: id or null, base_url, most_tokens: [prompt, completion]}``.

    Raises:
        UsageError: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        return _STATE.validate_json(path.read_bytes())
    except ValidationError:
        raise UsageError(
            f"{path} is damaged; its batches are listed at the server. Remove it to submit them again"
        ) from None


def _endpoint(item: Request) -> Any:
    return "/v1/chat/completions" if "messages" in item.payload else "/v1/completions"


def _split(items: Iterable[Request]) -> Iterator[tuple[list[Request], bytes]]:
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
