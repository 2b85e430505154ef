"""OpenAI's Batch API: the same requests at half the price, answered within a day.

A kill between any two steps costs nothing. A batch is noted in ``JOURNAL.batches.json`` before it is submitted, under a
random name that it carries as metadata, so that the next call finds it even if its id was never noted.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError
from tqdm import tqdm

from utils.config import UsageError
from utils.llm.response import Outcome, UnusableError
from utils.llm.types import Request, Server
from utils.store.files import atomic
from utils.store.jsonlines import dump_line

# The API's limits of one batch.
MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
OVER = ("completed", "failed", "expired", "cancelled")
NAME = "radio_part"  # metadata field of a batch


class _Part(BaseModel):
    keys: list[str]
    batch: str | None
    base_url: str | None
    most_tokens: tuple[float, float]  # of all prompts, and of all answers


class _Response(BaseModel):
    status_code: int
    body: dict[str, Any] = {}


class _Result(BaseModel):
    custom_id: str
    response: _Response | None = None
    error: Any = None


_STATE = TypeAdapter(dict[str, _Part])


class Batches:
    """The batches of one journal; used as `utils.llm.client.Window` is."""

    def __init__(self, server: Server, outcome: Outcome) -> None:
        import openai

        self._server, self._outcome = server, outcome
        self._client = openai.OpenAI(**server.client_settings)
        # A creation whose reply is lost may have happened: look for it, do not repeat it.
        self._once = self._client.with_options(max_retries=0)
        self._path = state_path(outcome.journal.path)
        self._parts = read_state(self._path)
        if elsewhere := {part.base_url for part in self._parts.values()} - {server.base_url}:
            raise UsageError(
                f"this output has open batches at {elsewhere.pop() or 'the default endpoint'}, not at {server.name}: "
                f"fetch them there first, or remove {self._path} to forget them, paid or not"
            )

    def ask(self, todo: Iterable[Request], bar: tqdm) -> None:
        """Submit the requests that are in no batch yet, wait for all batches, and keep their answers."""
        import openai

        try:
            with self._client:
                self._find_lost()
                self._submit(todo)
                self._wait(bar)
        except openai.NotFoundError:
            raise UsageError(f"{self._server.name} has no Batch API; leave out --batch") from None
        except openai.OpenAIError as error:
            said = self._server.clean(error)
            raise UsageError(f"the Batch API fails ({said}); the same command goes on where it was") from None

    def _find_lost(self) -> None:
        """Find the batches that were created by a call that ended before it noted their id."""
        if all(part.batch for part in self._parts.values()):
            return
        for batch in self._client.batches.list(limit=100):
            if part := self._parts.get((batch.metadata or {}).get(NAME, "")):
                part.batch = batch.id
        self._parts = {name: part for name, part in self._parts.items() if part.batch}
        self._save()

    def _submit(self, todo: Iterable[Request]) -> None:
        for items, data in _split(self._affordable(todo)):
            name, most = uuid.uuid4().hex, [item.most_tokens for item in items]
            part = self._parts[name] = _Part(
                keys=[item.key for item in items],
                batch=None,
                base_url=self._server.base_url,
                most_tokens=(sum(prompt for prompt, _ in most), sum(completion for _, completion in most)),
            )
            self._save()
            file = self._client.files.create(file=(f"{name}.jsonl", data), purpose="batch")
            path: Any = f"/v1{items[0].path}"
            part.batch = self._once.batches.create(
                input_file_id=file.id, endpoint=path, completion_window="24h", metadata={NAME: name}
            ).id
            self._save()
        if waiting := ", ".join(str(part.batch) for part in self._parts.values()):
            print(f"\nwaiting for {waiting}; it may be interrupted, the same command fetches them", file=sys.stderr)

    def _affordable(self, todo: Iterable[Request]) -> Iterator[Request]:
        """Yield the requests that are in no open batch, as long as they cannot pass the limit in all."""
        outcome, budget = self._outcome, self._outcome.budget
        sent = {key for part in self._parts.values() for key in part.keys}
        most = (budget.cost or 0.0) + sum(budget.dollars(*p.most_tokens, batch=True) for p in self._parts.values())
        for item in todo:
            if item.key in sent:
                continue
            most += budget.dollars(*item.most_tokens, batch=True)
            outcome.stopped = budget.exceeded
            if budget.limit and most > budget.limit:  # a batch cannot be stopped midway
                outcome.stopped = f"they could take the cost above --max_cost {budget.limit:g} ({budget} so far)"
            if outcome.stopped:
                return
            yield item

    def _wait(self, bar: tqdm) -> None:
        """Wait until no batch holds a wanted request; take the answers of other batches if they are there."""
        while self._parts:
            for name in list(self._parts):
                self._fetch(name)
            bar.n = self._outcome.answered
            bar.set_postfix_str(f"{len(self._parts)} batches open, {self._outcome.budget}")
            if self._outcome.wanted.isdisjoint(key for part in self._parts.values() for key in part.keys):
                return
            time.sleep(self._server.batch_poll)

    def _fetch(self, name: str) -> None:
        """Keep the answers of a batch if it is over."""
        import openai

        part, outcome = self._parts[name], self._outcome
        try:
            batch = self._client.batches.retrieve(str(part.batch))
        except openai.NotFoundError:
            raise UsageError(
                f"{self._server.name} knows no batch {part.batch}: is it the key of another project? If the batch is "
                f"gone for good, remove {self._path} to submit its requests again"
            ) from None
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
            tqdm.write(f"could not ask about {part.batch} ({self._server.clean(error)}); asking again", file=sys.stderr)
            return
        if batch.status not in OVER:
            return
        failures = dict.fromkeys(part.keys, f"the batch ended as {batch.status} without an answer")
        for file in filter(None, (batch.error_file_id, batch.output_file_id)):
            try:
                lines = self._client.files.content(file).content.splitlines()
            except openai.NotFoundError:
                failures = dict.fromkeys(failures, f"the server no longer has the answers of {part.batch}")
                continue
            for line in lines:
                self._take(line, failures)
        for key, reason in failures.items():
            if key in outcome.wanted and key not in outcome.journal:
                outcome.failures[key] = reason
        outcome.journal.sync()  # the answers must be on the disk before their batch is forgotten
        del self._parts[name]
        self._save()
        if batch.status == "failed":
            said = self._server.clean([error.message for error in (batch.errors and batch.errors.data) or []])
            raise UsageError(f"batch {part.batch} failed: {said}; the same command submits its requests again")

    def _take(self, line: bytes, failures: dict[str, str]) -> None:
        """Keep the answer in one line of a batch's results, or note in ``failures`` why there is none."""
        try:
            result = _Result.model_validate_json(line)
        except ValidationError:
            print(f"skipping a damaged line of a batch's results: {self._server.clean(line[:80])}", file=sys.stderr)
            return
        key, response = result.custom_id, result.response
        if response is None or response.status_code != 200:
            said = result.error or (response and response.body)
            failures[key] = self._server.clean(orjson.dumps(said).decode())
            return
        if key in self._outcome.journal:
            return
        try:
            self._outcome.take(key, response.body, seconds=0.0, attempts=1, batch=True)
        except UnusableError as error:
            failures[key] = str(error)

    def _save(self) -> None:
        with atomic(self._path) as handle:
            handle.write(_STATE.dump_json(self._parts, indent=2))


def state_path(journal: Path) -> Path:
    """Return where the open batches of a journal are noted."""
    return journal.with_suffix(".batches.json")


def open_keys(journal: Path) -> set[str]:
    """Return the keys of the requests in batches that were not fetched yet."""
    return {key for part in read_state(state_path(journal)).values() for key in part.keys}


def read_state(path: Path) -> dict[str, _Part]:
    """Read the open batches by name; none if there is no file."""
    try:
        return _STATE.validate_json(path.read_bytes()) if path.exists() else {}
    except ValidationError:
        hint = "its batches are listed at the server. Remove it to submit them again"
        raise UsageError(f"{path} is damaged; {hint}") from None


def _split(items: Iterable[Request]) -> Iterator[tuple[list[Request], bytes]]:
    """Yield requests and their lines, in parts that one batch may hold."""
    part: list[Request] = []
    data = bytearray()
    for item in items:
        line = dump_line({"custom_id": item.key, "method": "POST", "url": f"/v1{item.path}", "body": item.payload})
        if part and (len(part) == MOST_REQUESTS or len(data) + len(line) > MOST_BYTES):
            yield part, bytes(data)
            part, data = [], bytearray()
        part.append(item)
        data += line
    if part:
        yield part, bytes(data)
