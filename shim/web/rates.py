"""How many requests a minute are served: for each client address, and for each project.

Each process counts alone, in windows of a minute. A request beyond the limit gets 429 before any database call. The
library limits was measured for this purpose: its memory storage starts a thread every 10 ms that walks over all its
keys. With 50,000 addresses that costs 0.5 ms for a request, and pauses of 0.1 s.
"""

from __future__ import annotations

import ipaddress
import time

WINDOW_S = 60.0
MOST_KEYS = 100_000  # about 10 MB; beyond that all counts restart at 0


class RateLimit:
    """At most so many requests a minute under each key.

    Parameters
    ----------
    per_minute : int
        [1 ..]; 0 = no limit.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._counts: dict[str, int] = {}
        self._ends_at = 0.0

    def count(self, key: str) -> None:
        """Counts one request under the key."""
        if self._per_minute:
            self._counts[key] = self._counts.get(key, 0) + 1

    def wait_s(self, key: str) -> int:
        """Returns 0 when one more request may be served now, else the seconds until then."""
        if not self._per_minute:
            return 0
        now = time.monotonic()
        if now >= self._ends_at or len(self._counts) > MOST_KEYS:
            self._counts.clear()
            self._ends_at = now + WINDOW_S
        if self._counts.get(key, 0) < self._per_minute:
            return 0
        return int(self._ends_at - now) + 1


def key_of(address: str | None) -> str:
    """Returns under what the requests of an address are counted: a whole /64 of IPv6 is one host's to choose from."""
    if address is None or ":" not in address:
        return address or "unknown"
    return str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(address)) >> 64 << 64))
