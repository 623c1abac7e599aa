"""The circuit breaker: an address that does not answer is left alone for a while, so that an outage costs little."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from clew import clock

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
LONGEST_ASKED_PAUSE_S: Final = 300.0


@dataclass(slots=True, kw_only=True)
class Breaker:
    """Whether an address is worth an attempt.

    Attributes:
        pause_s: how long it is left alone, since it last failed; 0 while it is well.
        open_until: when the next attempt is due, in seconds of the monotonic clock.
    """

    pause_s: float = 0.0
    open_until: float = 0.0

    def allows(self) -> bool:
        """Tell whether an attempt may be made now."""
        return clock.monotonic_s() >= self.open_until

    def trip(self, retry_after_s: float | None = None) -> bool:
        """Leave the address alone for a while, longer each time; true when it had been well before.

        Args:
            retry_after_s: how long the endpoint asked to be left alone; from a second to five minutes are granted.
        """
        first = self.pause_s == 0.0
        if first or self.allows():
            # Else it is the same failure, seen by another signal that was sent at the same time
            self.pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, self.pause_s * 2))
        if retry_after_s is None:
            pause_s = self.pause_s * random.uniform(0.8, 1.2)  # noqa: S311 - spreads the attempts of many processes
        else:
            pause_s = min(LONGEST_ASKED_PAUSE_S, max(FIRST_PAUSE_S, retry_after_s))
        self.open_until = max(self.open_until, clock.monotonic_s() + pause_s)
        return first

    def mend(self) -> bool:
        """Trust the address again; true when it had been left alone before."""
        was_open, self.pause_s, self.open_until = self.pause_s > 0.0, 0.0, 0.0
        return was_open
