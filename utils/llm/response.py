"""What a server sent as an answer: usable, worth another try, or neither; and the count of what came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel, Field, ValidationError

from utils.llm.cost import Budget
from utils.store.journal import Journal

WASTE = "unusable:"  # before a request's key in the journal: the tokens of its unusable answers


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    finish_reason: str | None = None
    message: _Message | None = None
    text: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
    model: str | None = None


class UnusableError(Exception):
    """An answer that cannot be used; ``retry`` if the same request may bring a better one.

    ``answer`` is what was received and must be paid for; None if it could not be read.
    """

    def __init__(self, reason: str, retry: bool, answer: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.retry, self.answer = retry, answer


def read_completion(body: bytes | dict[str, Any], accept_any: bool) -> dict[str, Any]:
    """Return ``{text, finish_reason, prompt_tokens, completion_tokens, model}`` of a chat or text completion.

    Raises:
        UnusableError: no completion; or, unless ``accept_any``, an empty, filtered or cut-off answer.
    """
    try:
        found = _Completion.model_validate(body if isinstance(body, dict) else orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise UnusableError(f"the body is not valid JSON ({error})", retry=True) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise UnusableError(f"the body is no completion ({place}: {first['msg']})", retry=True) from None
    choice, usage = found.choices[0], found.usage or _Usage()
    text = (choice.text if choice.message is None else choice.message.content) or ""
    answer = {
        "text": text,
        "finish_reason": choice.finish_reason,
        "prompt_tokens": usage.prompt_tokens or 0,
        "completion_tokens": usage.completion_tokens or 0,
        "model": found.model,
    }
    if accept_any:
        return answer
    if choice.finish_reason == "content_filter":
        raise UnusableError("content filter", retry=False, answer=answer)
    if not text.strip():
        raise UnusableError("empty answer", retry=True, answer=answer)
    if choice.finish_reason == "length":
        raise UnusableError("cut off at max_tokens", retry=False, answer=answer)
    return answer


@dataclass
class Outcome:
    """What came of a set of requests: the answers are in the journal, their number and cost here."""

    journal: Journal  # answers by request key, as `read_completion` gives them with ``seconds`` and ``attempts``
    budget: Budget
    accept_any: bool = False  # as for `read_completion`
    wanted: set[str] = field(default_factory=set)  # keys of the requests
    failures: dict[str, str] = field(default_factory=dict)  # by request key, why it has no answer
    stopped: str = ""  # why requests were left for another call
    unasked: int = 0  # how many were left
    answered: int = 0  # by this call or an earlier one
    asked: int = 0  # answered by this call
    # Of the answered requests.
    usage: dict[str, int] = field(default_factory=lambda: {"prompt_tokens": 0, "completion_tokens": 0})

    def want(self, key: str) -> None:
        """Note a request, with the answer and the cost that earlier calls brought."""
        self.wanted.add(key)
        for name in (key, WASTE + key):
            if name in self.journal:
                self.budget.add(self.journal[name])
        if key in self.journal:
            self._count(self.journal[key])

    def take(self, key: str, body: bytes | dict[str, Any], **facts: Any) -> None:
        """Write an answer with its facts to the journal; count what an unusable one cost before its error passes on.

        A batch may bring an answer that the input no longer asks for, which is kept for later.
        """
        try:
            answer = read_completion(body, self.accept_any) | facts
        except UnusableError as error:
            if error.answer:
                self._waste(key, error.answer | facts)
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
