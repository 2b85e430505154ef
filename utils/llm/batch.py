"""OpenAI's Batch API: the same requests at half the price, answered within a day.

A kill between any two steps costs nothing. A batch is noted in ``JOURNAL.batches.json`` before it is submitted, under a
random name that it carries as metadata, so that the next call finds it even if its id was never noted.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from tqdm import tqdm

from utils.config import UsageError
from utils.llm.cost import Outcome
from utils.llm.faults import ServerError, fault_of, words
from utils.llm.types import Request, Server, UnusableError, most_tokens, refused
from utils.store.files import write_file
from utils.store.jsonlines import dump_line

MOST_REQUESTS = 50_000  # the API's limit of one batch
OVER = ("completed", "failed", "expired", "cancelled")
NAME = "radio_part"  # metadata field of a batch
TOO_LARGE = re.compile(r"token.?limit|limit\b.{0,40}token", re.IGNORECASE)  # code or words of a batch beyond a limit


class _Part(BaseModel):
    keys: list[str]
    batch: str | None  # its id at the server; None until that is known
    most_tokens: tuple[float, float]  # of all prompts, and of all answers
    too_large: bool = False  # refused as a whole; noted so that it is never submitted again


class _Result(BaseModel):
    custom_id: str
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


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
        self._requests: dict[str, Request] = {}  # by key
        self._waiting: deque[Request] = deque()  # in no batch yet

    @property
    def _open(self) -> dict[str, _Part]:
        return {name: part for name, part in self._parts.items() if not part.too_large}

    @property
    def _most_tokens(self) -> float:
        """The most prompt tokens in open batches: as set, and half of any batch that was too large."""
        halves = [part.most_tokens[0] / 2 for part in self._parts.values() if part.too_large]
        return min([self._server.batch_tokens or math.inf, *halves])

    def ask(self, todo: Iterable[Request], bar: tqdm) -> None:
        """Submit the requests that are in no batch yet, wait for all batches, and keep their answers."""
        import openai

        self._requests = {item.key: item for item in todo}
        try:
            with self._client:
                self._find_lost()
                self._waiting = deque(self._affordable(self._requests.values()))
                self._submit_what_fits()
                self._wait(bar)
        except openai.OpenAIError as error:
            said = f"{self._server.name} fails ({fault_of(error, self._server).reason})"
            raise UsageError(f"the Batch API of {said}; the same command goes on where it was") from None
        self._parts = self._open
        self._save()

    def _find_lost(self) -> None:
        """Find the batches that were created by a call that ended before it noted their id."""
        if all(part.batch for part in self._open.values()):
            return
        for batch in self._client.batches.list(limit=100):
            if part := self._parts.get((batch.metadata or {}).get(NAME, "")):
                part.batch = batch.id
        self._parts = {name: part for name, part in self._parts.items() if part.batch or part.too_large}
        self._save()

    def _affordable(self, todo: Iterable[Request]) -> list[Request]:
        """Return the requests that are in no open batch, as many as cannot pass the limit together with what is."""
        outcome, budget = self._outcome, self._outcome.budget
        sent, affordable = open_keys(outcome.journal.path), list[Request]()
        most = (budget.cost or 0.0) + sum(budget.dollars(*p.most_tokens, batch=True) for p in self._open.values())
        for item in todo:
            if item.key in sent:
                continue
            most += budget.dollars(*most_tokens([item]), batch=True)
            outcome.stopped = budget.exceeded
            if budget.limit and most > budget.limit:  # a batch cannot be stopped midway
                outcome.stopped = f"they could take the cost above --max_cost {budget.limit:g} ({budget} so far)"
            if outcome.stopped:
                break
            affordable.append(item)
        return affordable

    def _submit_what_fits(self) -> None:
        """Submit waiting requests in parts, as many as there is room for beside the open batches."""
        while self._waiting:
            room = self._most_tokens - sum(part.most_tokens[0] for part in self._open.values())
            fitting = list[Request]()
            while self._waiting and len(fitting) < MOST_REQUESTS:
                room -= most_tokens([self._waiting[0]])[0]
                if room < 0 and (fitting or self._open):
                    break
                fitting.append(self._waiting.popleft())  # if need be one that is larger than the limit by itself
            if not fitting:
                return
            self._submit(fitting)

    def _submit(self, requests: list[Request]) -> None:
        import openai

        name, keys = uuid.uuid4().hex, [item.key for item in requests]
        part = self._parts[name] = _Part(keys=keys, batch=None, most_tokens=most_tokens(requests))
        self._save()
        lines = (
            {"custom_id": item.key, "method": "POST", "url": f"/v1{item.path}", "body": item.body} for item in requests
        )
        file = self._client.files.create(file=(f"{name}.jsonl", b"".join(map(dump_line, lines))), purpose="batch")
        path: Any = f"/v1{requests[0].path}"
        try:
            part.batch = self._once.batches.create(
                input_file_id=file.id, endpoint=path, completion_window="24h", metadata={NAME: name}
            ).id
        except openai.APIStatusError as error:
            if not TOO_LARGE.search(error.response.text):
                raise
            self._split(name, fault_of(error, self._server).reason)
        self._save()

    def _split(self, name: str, said: str) -> None:
        """Let the requests of a batch that is beyond the account's limit wait, to be submitted in smaller parts."""
        part, alone = self._parts[name], len(self._open) == 1
        if alone and len(part.keys) == 1:
            del self._parts[name]
            self._save()
            raise UsageError(
                f"batch {part.batch} failed: {said}. It held one request, which --batch_tokens cannot make smaller; "
                "once other batches of the account are over, the same command goes on"
            )
        self._parts[name] = part.model_copy(update={"keys": [], "too_large": True})
        self._save()
        self._waiting.extendleft(self._requests[key] for key in reversed(part.keys) if key in self._requests)
        tqdm.write(
            f"batch {part.batch} failed: {said}; its requests go on in parts of at most {self._most_tokens:,.0f} "
            "tokens (--batch_tokens sets a limit from the start)",
            file=sys.stderr,
        )

    def _wait(self, bar: tqdm) -> None:
        """Wait until no batch holds a wanted request; take the answers of other batches if they are there."""
        if ids := ", ".join(str(part.batch) for part in self._open.values()):
            rest = f" ({len(self._waiting)} requests wait for room)" if self._waiting else ""
            print(f"\nwaiting for {ids}{rest}; it may be interrupted, the same command fetches them", file=sys.stderr)
        while self._open or self._waiting:
            for name in self._open:
                self._fetch(name)
            self._submit_what_fits()
            bar.n = self._outcome.answered
            bar.set_postfix_str(f"{len(self._open)} batches open, {self._outcome.budget}")
            if not self._waiting and self._outcome.wanted.isdisjoint(open_keys(self._outcome.journal.path)):
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
                f"{self._server.name} knows no batch {part.batch}: is it at another server, or of another project's "
                f"key? If it is gone for good, remove {self._path} to submit its requests again"
            ) from None
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
            said = fault_of(error, self._server).reason
            tqdm.write(f"could not ask about {part.batch} ({said}); asking again", file=sys.stderr)
            return
        if batch.status not in OVER:
            return
        errors = (batch.errors and batch.errors.data) or []
        said = self._server.clean([error.message for error in errors])
        if batch.status == "failed" and any(TOO_LARGE.search(f"{error.code} {error.message}") for error in errors):
            self._split(name, said)
            return
        failures = dict.fromkeys(part.keys, f"{part.batch} ended as {batch.status}, and the server has no answer of it")
        for file in filter(None, (batch.error_file_id, batch.output_file_id)):
            with contextlib.suppress(openai.NotFoundError):  # servers keep results for a time only
                for line in self._client.files.content(file).content.splitlines():
                    self._take(line, failures)
        for key in outcome.wanted & failures.keys():
            if key not in outcome.journal:
                outcome.failures[key] = failures[key]
        outcome.journal.sync()  # the answers must be on the disk before their batch is forgotten
        del self._parts[name]
        self._save()
        if batch.status == "failed":
            raise UsageError(f"batch {part.batch} failed: {said}; the same command submits its requests again")

    def _take(self, line: bytes, failures: dict[str, str]) -> None:
        """Keep the answer in one line of a batch's results, or note in ``failures`` why there is none."""
        try:
            result = _Result.model_validate_json(line)
        except ValidationError:
            return  # its request stays among the failures
        key, response = result.custom_id, result.response or {}
        if response.get("status_code") != 200:
            label = response.get("status_code") or (result.error or {}).get("code", "")
            said = words(result.error or response.get("body"))
            failures[key] = f"{label} {self._server.clean(said)}{refused(response.get('status_code') or 0, said)}"
        elif key not in self._outcome.journal:
            try:
                self._outcome.take(key, response.get("body", {}), seconds=0.0, attempts=1, batch=True)
            except (ServerError, UnusableError) as error:
                failures[key] = fault_of(error, self._server).reason

    def _save(self) -> None:
        write_file(self._path, _STATE.dump_json(self._parts, indent=2))


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
