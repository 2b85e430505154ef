"""Many requests to an OpenAI-compatible server: a sliding window, a journal, no answer lost."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from utils.batch import Batches, refuse_open
from utils.config import UsageError, printable
from utils.journal import Journal
from utils.manifest import digest
from utils.places import Places
from utils.pricing import Budget
from utils.spending import Spending
from utils.window import Window

CHARACTERS_PER_TOKEN = 4  # of English
SHORTEST_SECRET = 8
Item = TypeVar("Item", covariant=True)


class SizedIterable(Sized, Iterable[Item], Protocol[Item]):
    """What can be counted and gone through more than once; it need not be in memory."""


@dataclass(frozen=True)
class Request:
    """One call: ``payload`` holds ``messages`` (chat) or ``prompt`` (completion), model and parameters."""

    payload: dict[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """Hash of everything that decides the answer; equal requests are asked once."""
        return digest(self.payload)

    @property
    def characters(self) -> int:
        """Length of the prompt."""
        if "prompt" in self.payload:
            return len(self.payload["prompt"])
        return sum(len(message["content"]) for message in self.payload["messages"])

    @property
    def most_tokens(self) -> tuple[float, float]:
        """About how many tokens the prompt has, and how many the answer may have."""
        return self.characters / CHARACTERS_PER_TOKEN, self.payload["max_tokens"]


@dataclass
class Outcome:
    """What came of a set of requests; the answers themselves are in the journal.

    Attributes:
        failures: reasons by request key.
        unasked: requests that were left for another call.
        stopped: why they were.
        answered: requests with an answer, those of earlier calls included.
        asked: answers of this call.
        tokens: new tokens of this call's answers.
        usage: prompt and completion tokens of all answers, those of earlier calls included.
    """

    failures: dict[str, str] = field(default_factory=dict)
    unasked: int = 0
    stopped: str = ""
    answered: int = 0
    asked: int = 0
    tokens: int = 0
    usage: dict[str, int] = field(default_factory=lambda: {"prompt_tokens": 0, "completion_tokens": 0})

    def known(self, answer: Mapping[str, Any]) -> None:
        """Count an answer that an earlier call has brought."""
        self.answered += 1
        for kind in self.usage:
            self.usage[kind] += answer[kind]

    def keep(self, answer: Mapping[str, Any]) -> None:
        """Count an answer that has just come."""
        self.known(answer)
        self.asked += 1
        self.tokens += answer["completion_tokens"]


@dataclass(frozen=True)
class Server:
    """Where to ask and how hard.

    ``max_retries`` counts further tries after the first: the openai library repeats 408, 409, 429,
    5xx, time-outs and lost connections itself, with back-off and Retry-After. ``batch`` sends all
    requests through the Batch API, asked every ``batch_poll`` seconds. ``base_url`` may be several: the requests
    are spread over them.
    """

    base_url: str | Sequence[str] | None
    api_key: str | None
    timeout: float
    max_retries: int
    concurrency: int
    batch: bool = False
    batch_poll: float = 30.0

    @classmethod
    def of(cls, args: argparse.Namespace) -> Server:
        """The server that a section's settings name."""
        return cls(**{item.name: getattr(args, item.name) for item in fields(cls)})

    @property
    def urls(self) -> Sequence[str | None]:
        """Every endpoint; None is the openai library's default."""
        return [self.base_url] if self.base_url is None or isinstance(self.base_url, str) else self.base_url

    @property
    def only_url(self) -> str | None:
        """The endpoint, for what goes to one alone.

        Raises:
            UsageError: there are several.
        """
        if len(self.urls) > 1:
            raise UsageError("--batch asks one server: give --base_url once")
        return self.urls[0]

    def clean(self, said: object) -> str:
        """What a server said as one line: without the key it may repeat, and nothing that steers a terminal."""
        text = f"{type(said).__name__}: {said}" if isinstance(said, Exception) else str(said)
        text = " ".join(printable(text).split())
        # A short key is no secret, such as the "none" of a server that wants none, and may stand in any word.
        secret = self.api_key if self.api_key and len(self.api_key) >= SHORTEST_SECRET else None
        return (text.replace(secret, "***") if secret else text)[:300]


def request(model: str, prompt: str | list[dict[str, str]], stop: Sequence[str] = (), **parameters: Any) -> Request:
    """Build a chat request from messages or a completion request from a string."""
    kind = "prompt" if isinstance(prompt, str) else "messages"
    payload = {"model": model, kind: prompt, **parameters}
    return Request(payload | ({"stop": list(stop)} if stop else {}))


def ask_all(
    requests: SizedIterable[Request],
    server: Server,
    journal: Journal,
    desc: str,
    accept_any: bool = False,
    budget: Budget | None = None,
) -> Outcome:
    """Send what the journal does not hold, at most ``server.concurrency`` at a time.

    Each answer is appended to the journal as it arrives, so that the same call after a kill asks
    only the rest. An empty answer is asked again up to ``max_retries`` times. The first SIGINT or SIGTERM lets the
    requests in flight finish, the second drops them. With ``server.batch`` the Batch API does the work.

    Args:
        requests: gone through twice, so that they may be built as they are needed; repeated ones are asked once.
        server: endpoint and limits.
        journal: finished answers by request key: ``{text, finish_reason, prompt_tokens, completion_tokens, model,
            seconds, attempts}``.
        desc: text of the progress bar.
        accept_any: take empty, filtered and cut-off answers as they are, which is right for a reader
            under test; otherwise they are failures, which is right for rationales.
        budget: counts what all answers cost, those of earlier calls included, and stops at its limit.

    Raises:
        UsageError: no key for the default endpoint, a refused key, an unknown model or address, or a live call
            for what is in an open batch.
        KeyboardInterrupt: a signal came, and what was in flight is kept.
    """
    outcome, spending = Outcome(), Spending(journal, budget or Budget())
    wanted = _look_up(requests, journal, outcome, spending)
    if outcome.answered == len(wanted):
        return outcome
    if server.base_url is None and server.api_key is None:
        raise UsageError("no API key: set OPENAI_API_KEY, or give --base_url of a server that needs none")
    if not server.batch:
        refuse_open(journal, wanted)
    with tqdm(total=len(wanted), initial=outcome.answered, desc=desc, unit="request") as bar:
        way = Batches if server.batch else Window
        way(server, journal, outcome, accept_any, spending).ask(_each_once(requests, wanted), bar)
    outcome.unasked = len(wanted) - outcome.answered - sum(key not in journal for key in outcome.failures)
    return outcome


ASK, LEAVE = 1, 0  # a request without an answer that was not given out yet, and any other


def _look_up(requests: Iterable[Request], journal: Journal, outcome: Outcome, spending: Spending) -> Places:
    """By key what is to be done with each request; answers that are there already are counted."""
    wanted = Places()
    for item in requests:
        if item.key in wanted:
            continue
        spending.recall(item.key)
        known = item.key in journal
        wanted[item.key] = LEAVE if known else ASK
        if known:
            outcome.known(journal[item.key])
    return wanted


def _each_once(requests: Iterable[Request], wanted: Places) -> Iterator[Request]:
    for item in requests:
        if wanted.get(item.key) == ASK:
            wanted[item.key] = LEAVE
            yield item
