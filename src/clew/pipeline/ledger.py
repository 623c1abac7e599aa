"""The delivery account: for each signal, what was emitted is what was delivered, dropped for a reason, or still waits."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from clew.settings import SIGNALS

Count = Literal["emitted", "delivered", "spooled", "replayed", "abandoned"]


@dataclass(frozen=True, kw_only=True)
class Account:
    """One signal's account. ``emitted == delivered + sum(dropped.values()) + pending``, always.

    Attributes:
        emitted: items made by this process.
        delivered: items of this process that an endpoint accepted.
        dropped: items of this process that were lost, by reason.
        spooled: items of this process that wait on disk.
        replayed: items of other processes, dead or alive, that this process delivered from disk.
        abandoned: items of other processes that this process found on disk unreadable, too old, or refused by the endpoint.
    """

    emitted: int = 0
    delivered: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    spooled: int = 0
    replayed: int = 0
    abandoned: int = 0

    @property
    def pending(self) -> int:
        """Items that wait, in memory or on disk."""
        return self.emitted - self.delivered - sum(self.dropped.values())


class Ledger:
    """Counts, for one process, what became of each item of each signal.

    Who reads takes no lock: it may be a signal handler that interrupted anything.

    Args:
        signals: what there is an account of.
    """

    def __init__(self, signals: Sequence[str] = SIGNALS) -> None:
        self._lock = threading.Lock()
        self._accounts: dict[str, Account] = {signal: Account() for signal in signals}

    def count(self, signal: str, what: Count, items: int = 1) -> None:
        """Add to one of the numbers."""
        with self._lock:
            account = self._accounts[signal]
            changed: dict[str, int] = {what: getattr(account, what) + items}
            self._accounts[signal] = replace(account, **changed)  # type: ignore[arg-type]

    def drop(self, signal: str, reason: str, items: int = 1) -> None:
        """Add to what was lost for ``reason``."""
        if items:
            with self._lock:
                account = self._accounts[signal]
                dropped = {**account.dropped, reason: account.dropped.get(reason, 0) + items}
                self._accounts[signal] = replace(account, dropped=dropped)

    def account(self, signal: str) -> Account:
        """Return one signal's account as it stands."""
        return self._accounts[signal]
