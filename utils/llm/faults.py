"""Why a request brought no answer: what the server or the network said, and what follows from it."""

from __future__ import annotations

import contextlib
import email.utils
import html
import math
import os
import re
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from utils.llm.types import Server, UnusableError, refused

FATAL = {401, 402, 403, 404, 405}  # every further request would fail too
OUT_OF_MONEY = "insufficient_quota"  # OpenAI's code of a 429 that waiting does not help
TOO_MANY = 429
OVERLOADED = {TOO_MANY, 503, 529}
TIMED_OUT = {408, 504, 524}  # the server, or one before it, gave the request up
# Where servers put words for people: OpenAI, FastAPI, Google, OpenRouter, problem+json.
SPEAKING = {
    "error", "errors", "error_message", "error_description", "message", "msg", "status_msg", "detail", "details",
    "title", "reason", "raw",
}  # fmt: skip
CODES = ("code", "status", "status_code", "type")
CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\{')


class ServerError(Exception):
    """An error that came with status 200; ``body`` describes it."""

    def __init__(self, body: Any) -> None:
        super().__init__(words(body))
        self.body = body


@dataclass(frozen=True)
class Fault:
    """Why a request brought no answer."""

    reason: str  # one line, without the key
    status: int = 0  # of HTTP, or of the error in a body; 0 without any
    fatal: bool = False
    again: bool = False  # the same request may succeed soon
    silent: bool = False  # no answer in time
    wait: float = 0.0  # seconds that the server asks to wait
    hopeless: bool = True  # a sign that this server will answer nothing

    @property
    def overload(self) -> bool:
        """Whether the server has more to do than it can."""
        return self.silent or self.status in OVERLOADED


def fault_of(error: Exception, server: Server) -> Fault:
    """Return what an exception of the openai library, an error with status 200 or an unusable answer means."""
    import openai

    if isinstance(error, UnusableError):
        return Fault(server.clean(str(error)), again=error.retry, hopeless=error.answer is None)
    if isinstance(error, ServerError):
        return _told(200, 0.0, error.body, server)
    if isinstance(error, openai.APIStatusError):
        return _told(error.status_code, retry_after(error.response.headers), error.response.content, server)
    if not isinstance(error, openai.APIConnectionError):
        return Fault(server.clean(error))
    url, silent = str(error.request.url), isinstance(error, openai.APITimeoutError)
    cause = f"nothing came in {server.timeout:g} s (--timeout)" if silent else _cause(error)
    said = f"{type(error).__name__}: no answer from {url}{_proxy_before(url)}: {cause}"
    return Fault(server.clean(said), silent=silent, again=not silent)


def _told(status: int, wait: float, body: Any, server: Server) -> Fault:
    """Return what a server's error means; a code in its body counts where the status is 200."""
    body, codes = _parsed(body), list(_codes(_parsed(body)))
    label = str(status)
    if status == 200:
        status = next((int(code) for code in codes if re.fullmatch(r"[45]\d\d", code)), 200)
        label = f"{status} (sent with status 200)" if status != 200 else "an error with status 200:"
    if isinstance(body, str) and status == 200:
        label = "not valid JSON:"
    silent, url = status in TIMED_OUT, server.base_url or "https://api.openai.com/v1"
    # What is not JSON may come from a proxy, and a page for people from an address that is not the API's.
    hint = _address_hint(url) if status in (404, 405) or (status == 200 and isinstance(body, str)) else ""
    hint += _proxy_before(url) if isinstance(body, str) else ""
    return Fault(
        f"{label} {server.clean(words(body) or '(an empty reply)')}{hint}{refused(status, words(body))}",
        status,
        fatal=status in FATAL or OUT_OF_MONEY in codes,
        again=not silent and (status in (200, 409, TOO_MANY) or status >= 500),
        silent=silent,
        wait=wait,
        hopeless=status not in (400, 422),
    )


def _address_hint(base_url: str) -> str:
    path = urllib.parse.urlsplit(base_url).path.rstrip("/")
    if path.endswith("/completions"):
        return "; --base_url ends before /chat/completions, which is added"
    return "" if re.search(r"/v\d", path) else f"; most servers want /v1 at the end of --base_url {base_url}"


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or a date; 0 without one."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def error_in(body: bytes | dict[str, Any]) -> Any:
    """Return the error that a body with status 200 holds in place of an answer; None if it holds none."""
    if isinstance(body, bytes) and CHOICES.search(body) and b'"error"' not in body:
        return None  # the usual answer is not read twice
    found = _parsed(body)
    if isinstance(found, str):
        return None if found.lstrip().startswith("{") else found  # broken JSON is told by its reader
    if isinstance(found, list):
        found = found[0] if found else {}
    if not isinstance(found, dict):
        return None
    choices = found.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    if first.get("finish_reason") == "error" or first.get("error"):
        return first
    return found if found.get("error") or (not choices and any(_texts(found, speaks=False))) else None


def words(body: Any) -> str:
    """Return what the body of an error says, in whatever form it comes: JSON of any schema, text or HTML."""
    body = _parsed(body)
    if isinstance(body, str):
        if body.lstrip().startswith("<"):
            body = html.unescape(re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>", " ", body))
        return " ".join(body.split())
    return "; ".join(dict.fromkeys(_texts(body))) or orjson.dumps(body).decode()


def _parsed(body: Any) -> Any:
    """Return JSON as what it stands for, and any other body as it is, bytes as text."""
    if isinstance(body, (bytes, str)):
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(body)
    return body.decode(errors="replace") if isinstance(body, bytes) else body


def _texts(value: Any, speaks: bool = True) -> Iterator[str]:
    """Yield the texts for people in a value; FastAPI's ``loc`` tells which field they are about."""
    if isinstance(value, str) and value.strip() and speaks:
        yield words(value)  # some servers pass on another one's error as a text
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, speaks)
    elif isinstance(value, dict):
        place = value.get("loc")
        about = ".".join(map(str, place)) + ": " if isinstance(place, list) else ""
        for name, item in value.items():
            yield from (about + text for text in _texts(item, str(name).lower() in SPEAKING))


def _codes(value: Any) -> Iterator[str]:
    """Yield what may be the status or the code of an error."""
    if isinstance(value, list):
        for item in value:
            yield from _codes(item)
    elif isinstance(value, dict):
        yield from _codes(value.get("error"))
        yield from (str(value[name]) for name in CODES if name in value)


def _cause(error: BaseException) -> str:
    """Return why a connection failed, as the innermost exception tells it."""
    while inner := error.__cause__ or error.__context__ or (getattr(error, "exceptions", None) or [None])[0]:
        error = inner
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.strerror or error}" + ("; is it http, not https?" if "VERSION" in str(error) else "")
    if isinstance(error, OSError) and error.errno:  # the resolver of names has negative numbers, and its own words
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return str(error) or type(error).__name__


def _proxy_before(url: str) -> str:
    """Return which variable of the environment puts a proxy before an address; empty if none does."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return ""
    names = (f"{parts.scheme}_proxy", "all_proxy")
    found = [name for wanted in names for name in (wanted, wanted.upper()) if os.environ.get(name)]
    return f" (through the proxy of {found[0]}; NO_PROXY leaves addresses out)" if found else ""
