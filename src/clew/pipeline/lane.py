"""One signal's way out of the process: what is encoded goes to the endpoint, or to the spool, or is counted as dropped."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from clew import clock
from clew.pipeline.breaker import Breaker
from clew.pipeline.ledger import Account, Ledger
from clew.pipeline.spool import Spool, SpooledBatch, SpoolFullError
from clew.pipeline.transport import Outcome, Transport, compress
from clew.settings import Destination, Signal

REPLAYED_AT_ONCE: Final = 64
REPLAYING_S: Final = 2.0
_LEAST_ATTEMPT_S: Final = 0.01

Say = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long, and how hard, it is tried.

    Attributes:
        until: when sending ends, in seconds of the monotonic clock.
        insist: an address that did not answer lately is tried all the same.
    """

    until: float = float("inf")
    insist: bool = False


class Tally:
    """Counts without a lock: it is used where an app's thread, or a signal handler, must never wait."""

    __slots__ = ("_counter", "_lock", "_reads", "add")

    def __init__(self) -> None:
        self._counter = itertools.count()
        self._reads = 0
        self._lock = threading.RLock()
        self.add = self._counter.__next__
        """Count one."""

    def total(self) -> int:
        """Return how many were counted."""
        with self._lock:
            # Reading the counter moves it on, too
            total = next(self._counter) - self._reads
            self._reads += 1
            return total


class Lane:
    """A signal's queues, and what is done with a batch. Whoever sends or replays holds :attr:`lock`.

    Args:
        signal: which.
        destination: where it goes.
        address_breaker: whether somebody is there at its address; shared with other signals that go there.
        transport: takes bytes somewhere.
        spool: keeps bytes that can't be taken anywhere now, or ``None``.
        ledger: counts what became of each item.
        say: takes a level, a message and its arguments, to be logged when nothing is at stake any more.
    """

    def __init__(
        self,
        signal: Signal,
        destination: Destination,
        *,
        address_breaker: Breaker,
        transport: Transport,
        spool: Spool | None,
        ledger: Ledger,
        say: Say,
    ) -> None:
        self.signal: Signal = signal
        self.queue: deque[Any] = deque()
        self.outbox: deque[SpooledBatch] = deque()
        self.overflow = Tally()
        self.lock = threading.Lock()
        self.encoding = threading.Lock()
        self.cut_at = float("inf")
        self._destination = destination
        self._address_breaker = address_breaker
        # An endpoint may have no room for one signal alone
        self._own_breaker = Breaker()
        self._transport = transport
        self._spool = spool
        self._ledger = ledger
        self._say = say
        # Over gRPC the library compresses what it sends
        self._compresses = destination.compression == "gzip" and destination.protocol == "http/protobuf"
        self._claiming = threading.Lock()
        self._given_up = False
        self._most_emitted = 0
        self._overflow_at_end: int | None = None

    def account(self) -> Account:
        """Return what became of everything that came in so far."""
        account = self._ledger.account(self.signal)
        overflow = self.overflow.total()
        # Between leaving the queue and being counted an item is in neither: what was emitted never falls
        self._most_emitted = max(self._most_emitted, account.emitted + len(self.queue) + overflow)
        dropped = dict(account.dropped)
        # The queue takes nothing any more after the end
        late = overflow - self._overflow_at_end if self._overflow_at_end is not None else 0
        for reason, items in (("queue_full", overflow - late), ("shutdown", late)):
            if items:
                dropped[reason] = dropped.get(reason, 0) + items
        return replace(account, emitted=self._most_emitted, dropped=dropped)

    def take(self, items: int) -> list[Any]:
        """Take items off the queue, and count them."""
        taken: list[Any] = []
        with suppress(IndexError):
            taken.extend(self.queue.popleft() for _ in range(items))
        self._ledger.count(self.signal, "emitted", len(taken))
        return taken

    def put(self, items: int, body: bytes) -> None:
        """Hand over an encoded batch, to be sent by the next :meth:`drain`."""
        batch = SpooledBatch(
            signal=self.signal,
            items=items,
            body=compress(body) if self._compresses else body,
            compressed=self._compresses,
        )
        with self._claiming:
            if not self._given_up:
                self.outbox.append(batch)

    def drain(self, patience: Patience) -> None:
        """Send what was handed over, or else keep it."""
        while self.outbox:
            batch = self.outbox[0]
            outcome = self._attempt(batch, patience)
            with self._claiming:
                if self._given_up:
                    return
                self.outbox.popleft()
            if outcome.retry:
                self._keep(batch)
            else:
                self._settle(batch, outcome)

    def keep_all(self) -> None:
        """Write what was handed over to disk: metrics stay behind older ones that wait there."""
        while self.outbox:
            self._keep(self.outbox.popleft())

    def conclude(self) -> None:
        """Write what is still in the outbox to disk, though another thread may be trying to send it, and count the rest as lost."""
        self._overflow_at_end = self.overflow.total()
        with self._claiming:
            self._given_up = True
            batches = list(self.outbox)
            self.outbox.clear()
        for batch in batches:
            self._keep(batch)
        self.take(len(self.queue))
        account = self._ledger.account(self.signal)
        # What is left was being encoded, or could not be encoded in time
        self._ledger.drop(self.signal, "shutdown", account.pending - account.spooled)

    def waits_on_disk(self) -> bool:
        """Tell whether items of this process wait on disk."""
        return self._ledger.account(self.signal).spooled > 0

    def replay(self, patience: Patience) -> None:
        """Send what waits on disk, as far as the endpoint answers."""
        if self._spool is None or not self._may_try(patience):
            return
        # What this process wrote and a sibling has taken is gone from disk, and still to be settled
        if self._spool.is_empty(self.signal) and not self.waits_on_disk():
            return
        until = min(patience.until, self.cut_at, clock.monotonic_s() + REPLAYING_S)
        self._spool.replay(self.signal, _Replay(self, patience), max_batches=REPLAYED_AT_ONCE, until=until)

    def replay_one(self, batch: SpooledBatch, patience: Patience, *, own: bool) -> bool:
        """Send one batch that waited; true when it is done with."""
        outcome = self._attempt(batch, patience)
        if outcome.retry:
            return False
        if own:
            self._ledger.count(self.signal, "spooled", -batch.items)
            self._settle(batch, outcome)
        elif outcome.delivered:
            self._ledger.count(self.signal, "replayed", batch.items - min(outcome.rejected, batch.items))
            self._ledger.count(self.signal, "abandoned", min(outcome.rejected, batch.items))
        else:
            self._ledger.count(self.signal, "abandoned", batch.items)
            self._say(logging.ERROR, "%d spooled %s were dropped: %s", batch.items, self.signal, outcome.problem)
        return True

    def lose(self, reason: str, items: int, *, own: bool) -> None:
        """Count what could not be read from disk."""
        if own:
            self._ledger.count(self.signal, "spooled", -items)
            self._ledger.drop(self.signal, reason, items)
        else:
            self._ledger.count(self.signal, "abandoned", items)
        self._say(logging.WARNING, "%s spooled %s were lost: %s", items or "an unknown number of", self.signal, reason)

    def take_over(self, items: int) -> None:
        """Count what another process took from disk to the endpoint."""
        if items:
            self._ledger.count(self.signal, "spooled", -items)
            self._ledger.count(self.signal, "delivered", items)

    def _attempt(self, batch: SpooledBatch, patience: Patience) -> Outcome:
        until = min(patience.until, self.cut_at)
        if not self._may_try(patience):
            return Outcome(retry=True)
        timeout_s = min(self._destination.timeout_s, until - clock.monotonic_s())
        if timeout_s < _LEAST_ATTEMPT_S:
            return Outcome(retry=True)
        outcome = self._transport.send(self.signal, batch.body, compressed=batch.compressed, timeout_s=timeout_s)
        url = self._destination.url
        if outcome.retry:
            if outcome.answered:
                self._address_breaker.mend()
            breaker = self._own_breaker if outcome.answered else self._address_breaker
            if breaker.trip(outcome.retry_after_s):
                waits = (
                    f"waits in {self._spool.folder} and is sent when the address answers" if self._spool else "is lost"
                )
                self._say(
                    logging.WARNING, "telemetry can't be delivered to %s (%s): it %s", url, outcome.problem, waits
                )
        elif self._address_breaker.mend() | self._own_breaker.mend():
            self._say(logging.INFO, "telemetry is delivered to %s again", url)
        return outcome

    def _may_try(self, patience: Patience) -> bool:
        insists = patience.insist and self.cut_at == float("inf")
        return insists or (self._address_breaker.allows() and self._own_breaker.allows())

    def _settle(self, batch: SpooledBatch, outcome: Outcome) -> None:
        if not outcome.delivered:
            self._ledger.drop(self.signal, "rejected", batch.items)
            self._say(logging.ERROR, "%d %s were dropped: %s", batch.items, self.signal, outcome.problem)
            return
        rejected = min(outcome.rejected, batch.items)
        self._ledger.count(self.signal, "delivered", batch.items - rejected)
        self._ledger.drop(self.signal, "rejected", rejected)
        if rejected or outcome.problem:
            self._say(
                logging.WARNING,
                "the endpoint refused %d of %d %s%s",
                rejected,
                batch.items,
                self.signal,
                f": {outcome.problem}" if outcome.problem else "",
            )

    def _keep(self, batch: SpooledBatch) -> None:
        reason = "no_spool"
        if self._spool is not None:
            try:
                self._spool.append(batch if batch.compressed else _compressed(batch))
            except OSError as error:
                reason = "spool_full" if isinstance(error, SpoolFullError) else "spool_error"
                if not self._spool.complained:
                    self._spool.complained = True
                    self._say(
                        logging.WARNING,
                        "telemetry is dropped, the spool can't take it: %s: "
                        "make room, or name another folder with CLEW_SPOOL_DIR",
                        error,
                    )
            else:
                self._ledger.count(self.signal, "spooled", batch.items)
                return
        self._ledger.drop(self.signal, reason, batch.items)


class _Replay:
    """What a lane does with what its spool reads."""

    def __init__(self, lane: Lane, patience: Patience) -> None:
        self._lane = lane
        self._patience = patience

    def deliver(self, batch: SpooledBatch, *, own: bool) -> bool:
        return self._lane.replay_one(batch, self._patience, own=own)

    def lost(self, reason: str, items: int, *, own: bool) -> None:
        self._lane.lose(reason, items, own=own)

    def taken_over(self, items: int) -> None:
        self._lane.take_over(items)


def _compressed(batch: SpooledBatch) -> SpooledBatch:
    return SpooledBatch(signal=batch.signal, items=batch.items, body=compress(batch.body), compressed=True)
