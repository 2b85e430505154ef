"""How many requests may be in flight, by what the server's responses say."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping

LONGEST_PAUSE = 600.0  # seconds; a server that asks for more is asked again all the same


class Limiter:
    """More requests at once while the server keeps up, half as many when it says 429, none while it asks for a pause.

    Begins with an eighth of ``most``, but eight at least. Grows by two a success until the first 429, then by one a
    round, never above ``most``; ``open`` are in flight.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit, self.open = most, min(most, max(8, most // 8)), 0
        self._slow, self._successes, self._shrunk, self._until = False, 0, 0.0, 0.0

    @property
    def load(self) -> float:
        """Share of the requests that may be in flight."""
        return self.open / self.limit

    @property
    def pause(self) -> float:
        """Seconds to wait before the next new request."""
        return max(0.0, self._until - time.monotonic())

    def saw(self, status: int, headers: Mapping[str, str]) -> None:
        """Take notice of a response, one that is about to be retried too."""
        now = time.monotonic()
        if status in (429, 503):
            self._until = max(self._until, now + retry_after(headers))
        # All requests of one round are refused together: that is one sign, not many.
        if status == 429 and now - self._shrunk > 1.0:
            self.limit, self._slow, self._shrunk, self._successes = max(1, self.limit // 2), True, now, 0
        elif status < 400:
            self._successes += 1
            if not self._slow:
                self.limit = min(self.most, self.limit + 2)
            elif self._successes >= self.limit:
                self.limit, self._successes = min(self.most, self.limit + 1), 0


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the Retry-After header asks for, given as a number or as a date; 0 without one."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
    # A comparison with NaN is false, so that "nan" asks for nothing.
    return min(seconds, LONGEST_PAUSE) if seconds > 0 else 0.0
