"""Many requests to an OpenAI-compatible server: a sliding window, a journal, no answer lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tqdm import tqdm

from utils.config import UsageError
from utils.llm.batch import Batches, refuse_open
from utils.llm.pricing import Budget
from utils.llm.spending import Spending
from utils.llm.types import Outcome, Request, Server, SizedIterable
from utils.llm.window import Window
from utils.store.journal import Journal


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


def _look_up(requests: Iterable[Request], journal: Journal, outcome: Outcome, spending: Spending) -> dict[str, int]:
    """By key what is to be done with each request; answers that are there already are counted."""
    wanted: dict[str, int] = {}
    for item in requests:
        if item.key in wanted:
            continue
        spending.recall(item.key)
        known = item.key in journal
        wanted[item.key] = LEAVE if known else ASK
        if known:
            outcome.known(journal[item.key])
    return wanted


def _each_once(requests: Iterable[Request], wanted: dict[str, int]) -> Iterator[Request]:
    for item in requests:
        if wanted.get(item.key) == ASK:
            wanted[item.key] = LEAVE
            yield item
