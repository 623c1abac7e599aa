"""The one export worker of a process: three signals, one thread, one deadline.

The app's threads only append to a queue. The worker encodes, sends, and spools to disk what can't be sent. An address that does
not answer is left alone for a while (a circuit breaker), so an outage costs one failed attempt now and then.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

from opentelemetry.sdk.metrics.export import ScopeMetrics

from clew import clock
from clew.pipeline.encoding import Encoder, point_count
from clew.pipeline.ledger import Account, Ledger
from clew.pipeline.spool import Spool, SpooledBatch, SpoolFullError
from clew.pipeline.transport import Outcome, Transport, compress
from clew.settings import SIGNALS, Settings, Signal

logger = logging.getLogger("clew.pipeline")

Collector = Callable[[], Sequence[ScopeMetrics]]

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_REPLAYED_A_ROUND: Final = 64
# What the worker keeps of a shutdown's deadline to write to disk what could not be sent
_SPOOLING_SHARE: Final = 0.2


@dataclass(slots=True, kw_only=True)
class _Breaker:
    """Whether an address is worth an attempt."""

    pause_s: float = 0.0
    closed_at: float = 0.0

    def allows(self) -> bool:
        return clock.monotonic_s() >= self.closed_at

    def trip(self, retry_after_s: float | None) -> bool:
        """Leave the address alone for a while; true when it had been well before."""
        first = self.pause_s == 0.0
        self.pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, self.pause_s * 2))
        pause_s = retry_after_s if retry_after_s is not None else self.pause_s * random.uniform(0.8, 1.2)  # noqa: S311 - spreads attempts
        self.closed_at = clock.monotonic_s() + pause_s
        return first

    def mend(self) -> bool:
        """Trust the address again; true when it had been left alone before."""
        was_open, self.pause_s, self.closed_at = self.pause_s > 0.0, 0.0, 0.0
        return was_open


class ExportWorker:
    """Takes what the app emits to the endpoint, or to the spool.

    Args:
        settings: addresses, intervals, sizes.
        encoder: turns items into bytes.
        transport: takes bytes somewhere.
        spool: keeps bytes that can't be taken anywhere now, or ``None``.
        collect: returns the metric points of now.
    """

    def __init__(
        self, settings: Settings, encoder: Encoder, transport: Transport, spool: Spool | None, collect: Collector
    ) -> None:
        self._settings = settings
        self._encoder = encoder
        self._transport = transport
        self._spool = spool
        self._collect = collect
        self._compressed = settings.compression == "gzip"
        self._start_anew()

    def _start_anew(self) -> None:
        self.ledger = Ledger()
        self._queues: dict[Signal, deque[Any]] = {"traces": deque(), "logs": deque()}
        self._breakers: dict[str, _Breaker] = {}
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._wake = threading.Event()
        self._exporting = threading.Lock()
        self._deadline: float | None = None
        self._stopping = False
        self._metrics_due = clock.monotonic_s() + self._settings.metric_interval_s
        self._spool_warned = False

    def reset_after_fork(self, encoder: Encoder, transport: Transport) -> None:
        """Begin a child's life: nothing queued, nothing counted, a connection and a thread of its own."""
        self._encoder = encoder
        self._transport = transport
        if self._spool is not None:
            self._spool.reset_after_fork()
        self._start_anew()

    def redirect(self, transport: Transport, spool: Spool | None) -> tuple[Transport, Spool | None]:
        """Send to another transport from now on, and return what was used before; the account starts at zero."""
        with self._exporting:
            previous = self._transport, self._spool
            self._transport, self._spool = transport, spool
            for queue in self._queues.values():
                queue.clear()
            self.ledger = Ledger()
            self._breakers.clear()
        return previous

    def add(self, signal: Signal, item: Any) -> None:
        """Queue one finished span or log record. Never blocks, never raises."""
        queue = self._queues[signal]
        if len(queue) >= self._settings.max_queue_size:
            self.ledger.count(signal, "emitted")
            self.ledger.drop(signal, "queue_full")
            return
        queue.append(item)
        if self._thread is None:
            self.start()
        if len(queue) == self._settings.max_batch_size:
            self._wake.set()

    def start(self) -> None:
        """Start the thread, once. Where no thread can start any more, :meth:`shutdown` does its work."""
        with self._starting:
            if self._thread is not None or self._stopping:
                return
            thread = threading.Thread(target=self._run, name="clew-export", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The interpreter is shutting down
                return
            self._thread = thread

    def accounts(self) -> dict[Signal, Account]:
        """Return what became of everything emitted so far."""
        accounts = self.ledger.accounts()
        for signal, queue in self._queues.items():
            accounts[signal] = replace(accounts[signal], emitted=accounts[signal].emitted + len(queue))
        return accounts

    def flush(self, timeout_s: float) -> bool:
        """Send everything that is queued, and the metrics of now; true when nothing waits in memory any more.

        What can't be sent is on disk, or counted as dropped, when this returns true.
        """
        deadline = clock.monotonic_s() + timeout_s
        if not self._exporting.acquire(timeout=timeout_s):
            return False
        try:
            self._deadline = deadline
            self._export_everything()
        finally:
            self._deadline = None
            self._exporting.release()
        return not any(self._queues.values())

    def shutdown(self, timeout_s: float) -> bool:
        """Flush within the deadline and stop for good. What is not sent by then is spooled, else counted as dropped."""
        deadline = clock.monotonic_s() + timeout_s
        self._stopping = True
        self._wake.set()
        # A send that hangs is cut off early enough to leave time for the disk
        sending_deadline = deadline - timeout_s * _SPOOLING_SHARE
        self._deadline = sending_deadline
        canceller = threading.Timer(max(0.0, sending_deadline - clock.monotonic_s()), self._transport.cancel)
        canceller.daemon = True
        try:
            canceller.start()
        except RuntimeError:
            canceller.cancel()
        flushed = self._exporting.acquire(timeout=timeout_s)
        if flushed:
            try:
                self._export_everything()
                # What the export itself had to say, such as that the endpoint is away
                self._export_queue("logs")
            finally:
                self._exporting.release()
        canceller.cancel()
        for signal, queue in self._queues.items():
            if queue:
                self.ledger.count(signal, "emitted", len(queue))
                self.ledger.drop(signal, "shutdown", len(queue))
                queue.clear()
        if self._spool is not None:
            self._spool.close()
        self._transport.close()
        return flushed

    def _run(self) -> None:
        thread = threading.current_thread()
        while not self._stopping and (self._thread is None or self._thread is thread):
            self._wake.wait(self._settings.export_interval_s)
            self._wake.clear()
            if self._stopping:
                return
            try:
                with self._exporting:
                    self._export_round()
            except Exception:
                logger.exception("export failed")

    def _export_round(self) -> None:
        for signal in self._queues:
            self._export_queue(signal)
        if clock.monotonic_s() >= self._metrics_due:
            self._metrics_due = clock.monotonic_s() + self._settings.metric_interval_s
            self._export_metrics()
        self._replay()

    def _export_everything(self) -> None:
        for signal in self._queues:
            self._export_queue(signal)
        self._export_metrics()
        self._replay()

    def _export_queue(self, signal: Signal) -> None:
        queue = self._queues[signal]
        remaining = len(queue)
        while remaining > 0:
            batch = [queue.popleft() for _ in islice(range(remaining), self._settings.max_batch_size)]
            remaining -= len(batch)
            self.ledger.count(signal, "emitted", len(batch))
            self._deliver_items(signal, batch)

    def _deliver_items(self, signal: Signal, items: Sequence[Any]) -> None:
        encode: Callable[[Sequence[Any]], bytes] = self._encoder.spans if signal == "traces" else self._encoder.logs
        try:
            body = encode(items)
        except Exception as error:
            if len(items) == 1:
                self.ledger.drop(signal, "encoding")
                logger.error("one of the %s could not be encoded: %r", signal, error)  # noqa: TRY400 - one line is enough
                return
            # What can't be encoded must not take the rest of its batch with it
            middle = len(items) // 2
            self._deliver_items(signal, items[:middle])
            self._deliver_items(signal, items[middle:])
            return
        self._deliver_body(signal, len(items), body)

    def _export_metrics(self) -> None:
        if not self._settings.enabled("metrics"):
            return
        try:
            scopes = self._collect()
        except Exception:
            logger.exception("the metrics could not be collected")
            return
        if points := point_count(scopes):
            self.ledger.count("metrics", "emitted", points)
            try:
                body = self._encoder.metrics(scopes)
            except Exception:
                self.ledger.drop("metrics", "encoding", points)
                logger.exception("%d metric points could not be encoded", points)
                return
            self._deliver_body("metrics", points, body)

    def _deliver_body(self, signal: Signal, items: int, body: bytes) -> None:
        batch = SpooledBatch(
            signal=signal,
            items=items,
            body=compress(body) if self._compressed else body,
            compressed=self._compressed,
        )
        outcome = self._attempt(batch)
        if outcome.delivered:
            self._settle(batch, outcome, "delivered")
        elif outcome.retry:
            self._keep(batch)
        else:
            self.ledger.drop(signal, "rejected", items)
            logger.error("%d %s were dropped: %s", items, signal, outcome.problem)

    def _attempt(self, batch: SpooledBatch) -> Outcome:
        breaker = self._breaker(batch.signal)
        if not breaker.allows() and self._deadline is None:
            return Outcome(retry=True)
        timeout_s = self._settings.export_timeout_s
        if self._deadline is not None:
            timeout_s = min(timeout_s, self._deadline - clock.monotonic_s())
            if timeout_s <= 0 or (breaker.pause_s > 0 and self._stopping and not breaker.allows()):
                return Outcome(retry=True)
        outcome = self._transport.send(
            batch.signal, batch.body, compressed=batch.compressed, timeout_s=max(0.05, timeout_s)
        )
        if outcome.retry:
            if breaker.trip(outcome.retry_after_s):
                logger.warning(
                    "telemetry can't be delivered to %s (%s): it waits in %s and is sent when the address answers",
                    self._settings.url(batch.signal),
                    outcome.problem,
                    self._spool.folder if self._spool else "memory",
                )
        elif breaker.mend():
            logger.info("telemetry is delivered to %s again", self._settings.url(batch.signal))
        return outcome

    def _settle(self, batch: SpooledBatch, outcome: Outcome, what: str) -> None:
        rejected = min(outcome.rejected, batch.items)
        self.ledger.count(batch.signal, what, batch.items - rejected)
        if rejected:
            if what == "delivered":
                self.ledger.drop(batch.signal, "rejected", rejected)
            logger.warning("the endpoint refused %d of %d %s", rejected, batch.items, batch.signal)

    def _keep(self, batch: SpooledBatch) -> None:
        reason = "no_spool"
        if self._spool is not None:
            try:
                self._spool.append(batch)
            except OSError as error:
                reason = "spool_full" if isinstance(error, SpoolFullError) else "spool_error"
                if not self._spool_warned:
                    self._spool_warned = True
                    logger.warning(
                        "telemetry is dropped, the spool can't take it: %s: "
                        "make room, or name another folder with CLEW_SPOOL_DIR",
                        error,
                    )
            else:
                self.ledger.count(batch.signal, "spooled", batch.items)
                return
        self.ledger.drop(batch.signal, reason, batch.items)

    def _replay(self) -> None:
        if self._spool is None or self._spool.is_empty():
            return
        if not all(self._breaker(signal).allows() for signal in SIGNALS):
            return
        self._spool.replay(self._replay_one, on_lost=self._count_lost, max_batches=_REPLAYED_A_ROUND)

    def _replay_one(self, batch: SpooledBatch, *, own: bool) -> bool:
        outcome = self._attempt(batch)
        if outcome.retry:
            return False
        if own:
            self.ledger.count(batch.signal, "spooled", -batch.items)
        if outcome.delivered:
            self._settle(batch, outcome, "delivered" if own else "replayed")
        else:
            logger.error("%d spooled %s were dropped: %s", batch.items, batch.signal, outcome.problem)
            if own:
                self.ledger.drop(batch.signal, "rejected", batch.items)
        return True

    def _count_lost(self, reason: str, items: int) -> None:
        logger.warning("%d spooled records were lost: %s", items, reason)

    def _breaker(self, signal: Signal) -> _Breaker:
        address = self._settings.url(signal).rpartition("/v1/")[0]
        return self._breakers.setdefault(address, _Breaker())
