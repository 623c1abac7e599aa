"""The delivery account: for each signal, what was emitted is what was delivered, dropped for a reason, or still waits."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from clew.settings import SIGNALS, Signal


@dataclass(frozen=True, kw_only=True)
class Account:
    """One signal's account. ``emitted == delivered + sum(dropped.values()) + pending``, always.

    Attributes:
        emitted: items made by this process.
        delivered: items of this process that an endpoint accepted.
        dropped: items of this process that were lost, by reason.
        spooled: items of this process that wait on disk.
        replayed: items of other processes, dead or alive, that this process delivered from disk.
    """

    emitted: int = 0
    delivered: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    spooled: int = 0
    replayed: int = 0

    @property
    def pending(self) -> int:
        """Items that wait, in memory or on disk."""
        return self.emitted - self.delivered - sum(self.dropped.values())


class Ledger:
    """Counts, for one process, what became of each item of each signal."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[Signal, str]] = Counter()
        self._dropped: Counter[tuple[Signal, str]] = Counter()

    def count(self, signal: Signal, what: str, items: int = 1) -> None:
        """Add to ``emitted``, ``delivered``, ``spooled`` or ``replayed``."""
        with self._lock:
            self._counts[signal, what] += items

    def drop(self, signal: Signal, reason: str, items: int = 1) -> None:
        """Add to what was lost for ``reason``."""
        with self._lock:
            self._dropped[signal, reason] += items

    def account(self, signal: Signal) -> Account:
        """Return one signal's account as it stands."""
        with self._lock:
            return Account(
                emitted=self._counts[signal, "emitted"],
                delivered=self._counts[signal, "delivered"],
                spooled=self._counts[signal, "spooled"],
                replayed=self._counts[signal, "replayed"],
                dropped={reason: items for (name, reason), items in self._dropped.items() if name == signal and items},
            )

    def accounts(self) -> dict[Signal, Account]:
        """Return every signal's account."""
        return {signal: self.account(signal) for signal in SIGNALS}
