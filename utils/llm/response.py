"""What a server sent as an answer, checked at the border: usable, worth another try, or neither."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel, Field, ValidationError


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
    """An answer that arrived and cannot be used.

    Attributes:
        retry: whether the same request may bring a better one.
        answer: what was received and is paid for; None if it could not be read.
    """

    def __init__(self, reason: str, retry: bool, answer: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.retry = retry
        self.answer = answer


def read_completion(body: bytes | dict[str, Any], accept_any: bool) -> dict[str, Any]:
    """The answer in the body of a chat or text completion.

    Args:
        body: JSON, parsed or not.
        accept_any: take empty, filtered and cut-off answers as they are.

    Returns:
        ``{text, finish_reason, prompt_tokens, completion_tokens, model}``.

    Raises:
        UnusableError: no JSON, another schema; or, unless ``accept_any``, an empty, filtered or cut-off answer.
    """
    try:
        found = _Completion.model_validate(body if isinstance(body, dict) else orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise UnusableError(f"the body is not valid JSON ({error})", retry=True) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        raise UnusableError(f"the body is no completion ({field}: {first['msg']})", retry=True) from None
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
