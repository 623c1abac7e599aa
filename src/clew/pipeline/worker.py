"""The export worker of a process: the app's threads only append to a queue; one thread encodes, sends and spools.

A flush sends the three signals at the same time, each on a connection of its own, so that one slow endpoint costs the others
nothing. An address that does not answer is left alone for a while (a circuit breaker), so an outage costs an attempt now and then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

from opentelemetry.sdk.metrics.export import ScopeMetrics

from clew import clock
from clew.pipeline.breaker import Breaker
from clew.pipeline.encoding import Encoder, point_count
from clew.pipeline.lane import Lane, Patience
from clew.pipeline.ledger import Account, Ledger
from clew.pipeline.spool import Spool
from clew.pipeline.transport import Transport
from clew.settings import SIGNALS, Settings, Signal

logger = logging.getLogger("clew.pipeline")

Collector = Callable[[], Sequence[ScopeMetrics]]
Pause = Callable[[], None]

# What is kept of a deadline at the end of the process to write to disk what could not be sent
_SPOOLING_SHARE: Final = 0.2
_PAUSE_S: Final = 0.00005
# What gRPC takes by default; the Collector takes more over HTTP
_MAX_BODY_BYTES: Final = 4_000_000


class ExportWorker:
    """Takes what the app emits to the endpoint, or to the spool.

    Args:
        settings: addresses, intervals, sizes.
        make_encoder: returns what turns items into bytes; each signal has one of its own, because three may encode at once.
        transport: takes bytes somewhere.
        spool: keeps bytes that can't be taken anywhere now, or ``None``.
        collect: returns the metric points of now.
    """

    def __init__(
        self,
        settings: Settings,
        make_encoder: Callable[[], Encoder],
        transport: Transport,
        spool: Spool | None,
        collect: Collector,
    ) -> None:
        self._settings = settings
        self._make_encoder = make_encoder
        self._transport = transport
        self._spool = spool
        self._collect = collect
        self._wake_at = settings.max_batch_size - 1
        self._inherited: list[Transport] = []
        self._start_anew()

    def _start_anew(self) -> None:
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()
        # A lock that is held while nobody rings: unlike an Event, a signal handler can ring while its thread is ringing
        self._bell = threading.Lock()
        self._bell.acquire()
        self._stopping = False
        self._metrics_due = clock.monotonic_s() + self._settings.metric_interval_s
        self._encoders: dict[Signal, Encoder] = {signal: self._make_encoder() for signal in SIGNALS}
        self._said: deque[tuple[Any, ...]] = deque()
        self._lay_lanes()

    def _lay_lanes(self) -> None:
        ledger = Ledger()
        breakers: dict[str, Breaker] = {}
        lanes: dict[Signal, Lane] = {}
        for signal in SIGNALS:
            destination = self._settings.destination(signal)
            lanes[signal] = Lane(
                signal,
                destination,
                address_breaker=breakers.setdefault(destination.address, Breaker()),
                transport=self._transport,
                spool=self._spool,
                ledger=ledger,
                say=lambda *what: self._said.append(what),
            )
        self._room = self._settings.max_queue_size
        self._take(ledger, lanes)

    def _take(self, ledger: Ledger, lanes: dict[Signal, Lane]) -> None:
        self._ledger, self._lanes = ledger, lanes
        self._spans, self._count_span_lost = self._lanes["traces"].queue, self._lanes["traces"].overflow.add
        self._logs, self._count_log_lost = self._lanes["logs"].queue, self._lanes["logs"].overflow.add

    def reset_after_fork(self, make_encoder: Callable[[], Encoder], transport: Transport) -> None:
        """Begin a child's life: nothing queued, nothing counted, connections and a thread of its own."""
        # Not closed, nor let go of: the connections of the parent are the parent's
        self._inherited.append(self._transport)
        self._make_encoder = make_encoder
        self._transport = transport
        if self._spool is not None:
            self._spool.reset_after_fork()
        self._start_anew()

    def redirect(self, transport: Transport) -> Callable[[], None]:
        """Send to another transport from now on, and to no disk, with an account that starts at zero.

        Returns:
            What goes back to all that was before: the transport, the disk and the account.
        """
        before, ledger, lanes = (self._transport, self._spool), self._ledger, self._lanes
        self._transport, self._spool = transport, None
        self._lay_lanes()

        def go_back() -> None:
            self._transport, self._spool = before
            self._take(ledger, lanes)

        return go_back

    def add_span(self, span: Any) -> None:
        """Queue a finished span. Never blocks, never raises."""
        queue = self._spans
        waiting = len(queue)
        if waiting >= self._room:
            self._count_span_lost()
            return
        queue.append(span)
        if waiting == self._wake_at or self._thread is None:
            self._rouse()

    def add_log(self, record: Any) -> None:
        """Queue a log record. Never blocks, never raises."""
        queue = self._logs
        waiting = len(queue)
        if waiting >= self._room:
            self._count_log_lost()
            return
        queue.append(record)
        if waiting == self._wake_at or self._thread is None:
            self._rouse()

    def start(self) -> None:
        """Start the thread, once. Where no thread can start any more, :meth:`shutdown` does its work."""
        with self._starting:
            if self._thread is None and not self._stopping:
                self._thread = _started(self._run, "clew-export")

    def accounts(self) -> dict[Signal, Account]:
        """Return what became of everything emitted so far."""
        return {signal: lane.account() for signal, lane in self._lanes.items()}

    def flush(self, timeout_s: float, *, ending: bool = False) -> bool:
        """Send everything that is queued, and the metrics of now; true when nothing of it waits in memory any more.

        What can't be sent is on disk, or counted as dropped, when this returns true.

        Args:
            timeout_s: how long to wait at most.
            ending: the process may end next: an address that did not answer lately is not tried again, and time is left
                for the disk.
        """
        now = clock.monotonic_s()
        sending_s = timeout_s * (1 - _SPOOLING_SHARE) if ending else timeout_s
        return self._export_together(Patience(until=now + sending_s, insist=not ending), now + timeout_s)

    def shutdown(self, timeout_s: float) -> bool:
        """Flush within the deadline and stop for good. What is not sent by then is spooled, else counted as dropped."""
        until = clock.monotonic_s() + timeout_s
        # Every send ends early enough to leave time for the disk: also one that a flush or the worker has begun before
        cut_at = until - timeout_s * _SPOOLING_SHARE
        self._stopping = True
        for lane in self._lanes.values():
            lane.cut_at = cut_at
        self._ring()
        finished = self._export_together(Patience(until=cut_at), until)
        self._room = 0
        for lane in self._lanes.values():
            lane.conclude()
        if self._spool is not None:
            self._spool.close()
        self._transport.close()
        self._speak()
        return finished

    def _rouse(self) -> None:
        if self._thread is None:
            self.start()
        self._ring()

    def _ring(self) -> None:
        # It rings already
        with suppress(RuntimeError):
            self._bell.release()

    def _run(self) -> None:
        thread = threading.current_thread()
        while not self._stopping and self._thread in (None, thread):
            self._bell.acquire(timeout=self._settings.export_interval_s)
            if self._stopping:
                return
            try:
                self._export_round()
            except Exception:
                logger.exception("export failed")

    def _export_round(self) -> None:
        patience = Patience()
        metrics_are_due = clock.monotonic_s() >= self._metrics_due
        for lane in self._lanes.values():
            # A flush is at it, which may have to wait
            if not lane.lock.acquire(blocking=False):
                continue
            try:
                lane.replay(patience)
                if lane.signal != "metrics":
                    for _ in range(0, len(lane.queue), self._settings.max_batch_size):
                        self._encode(lane, pause=_let_others_run, batches=1)
                        lane.drain(patience)
                elif metrics_are_due:
                    self._metrics_due = clock.monotonic_s() + self._settings.metric_interval_s
                    self._encode(lane)
                    if lane.waits_on_disk():
                        # Points of a series arrive in the order of time
                        lane.keep_all()
                lane.drain(patience)
            finally:
                lane.lock.release()
        self._speak()

    def _export_together(self, patience: Patience, until: float) -> bool:
        """Export all signals at the same time, in threads that hold what the caller's thread must not hold.

        The caller may be interrupted by a signal whose handler waits for what the caller would hold.
        """
        done = threading.Event()
        finished = False

        def conduct() -> None:
            nonlocal finished
            try:
                finished = self._conduct(patience, until)
            finally:
                done.set()

        if _started(conduct, "clew-flush") is None:
            conduct()
        if not done.wait(max(0.0, patience.until - clock.monotonic_s())):
            if self._stopping:
                self._transport.cancel()
            done.wait(max(0.0, until - clock.monotonic_s()))
        return finished

    def _conduct(self, patience: Patience, until: float) -> bool:
        unfinished = {lane.signal for lane in self._lanes.values()}

        def export(lane: Lane, patience: Patience) -> None:
            try:
                if self._export_lane(lane, patience, until):
                    unfinished.discard(lane.signal)
            except Exception:
                logger.exception("export failed")

        first, *others = self._lanes.values()
        threads = []
        alone = [first]
        for lane in others:
            thread = _started(partial(export, lane, patience), f"clew-flush-{lane.signal}")
            if thread is None:
                alone.append(lane)
            else:
                threads.append(thread)
        for number, lane in enumerate(alone):
            # No thread starts any more when the interpreter ends: one after the other, each with its share of the time
            now = clock.monotonic_s()
            share_s = max(0.0, patience.until - now) / (len(alone) - number)
            export(lane, replace(patience, until=now + share_s))
        for thread in threads:
            thread.join(max(0.0, until - clock.monotonic_s()))
        finished = not unfinished
        if self._stopping:
            self._speak()
            # What the export itself had to say, such as that the endpoint is away
            export(self._lanes["logs"], patience)
        return finished

    def _export_lane(self, lane: Lane, patience: Patience, until: float) -> bool:
        # Encoded before anything is waited for, so that it can be written to disk in no time when the time is up
        if not self._encode(lane, until=until):
            return False
        if not lane.lock.acquire(timeout=max(0.0, patience.until - clock.monotonic_s())):
            if self._stopping:
                self._transport.cancel()
            if not lane.lock.acquire(timeout=max(0.0, until - clock.monotonic_s())):
                return False
        try:
            lane.drain(patience)
            lane.replay(patience)
        finally:
            lane.lock.release()
        return True

    def _encode(
        self,
        lane: Lane,
        *,
        pause: Pause | None = None,
        batches: int | None = None,
        until: float = threading.TIMEOUT_MAX,
    ) -> bool:
        """Encode what is queued, or the metrics of now; false when another thread was at it until the deadline."""
        if not lane.encoding.acquire(timeout=min(threading.TIMEOUT_MAX, max(0.0, until - clock.monotonic_s()))):
            return False
        try:
            if lane.signal == "metrics":
                self._encode_metrics(lane)
                return True
            size = self._settings.max_batch_size
            for _ in range(0, len(lane.queue), size)[:batches]:
                self._encode_items(lane, lane.take(size), pause)
        finally:
            lane.encoding.release()
        return True

    def _encode_items(self, lane: Lane, items: Sequence[Any], pause: Pause | None) -> None:
        if not items:
            return
        encoder = self._encoders[lane.signal]
        encode: Callable[..., bytes] = encoder.spans if lane.signal == "traces" else encoder.logs
        try:
            body = encode(items, pause)
        except Exception as error:
            if len(items) == 1:
                self._ledger.drop(lane.signal, "encoding")
                self._said.append((logging.ERROR, "one of the %s could not be encoded: %r", lane.signal, error))
                return
            # What can't be encoded must not take the rest of its batch with it
            body = None
        if body is not None and (len(body) <= _MAX_BODY_BYTES or len(items) == 1):
            lane.put(len(items), body)
            return
        middle = len(items) // 2
        self._encode_items(lane, items[:middle], pause)
        self._encode_items(lane, items[middle:], pause)

    def _encode_metrics(self, lane: Lane) -> None:
        if not self._settings.enabled("metrics"):
            return
        try:
            scopes = self._collect()
        except Exception:
            logger.exception("the metrics could not be collected")
            return
        if points := point_count(scopes):
            self._ledger.count("metrics", "emitted", points)
            try:
                body = self._encoders["metrics"].metrics(scopes)
            except Exception:
                self._ledger.drop("metrics", "encoding", points)
                logger.exception("%d metric points could not be encoded", points)
                return
            lane.put(points, body)

    def _speak(self) -> None:
        """Log what there was to say: not before, because a log handler may wait for a thread that waits for this one."""
        while self._said:
            level, message, *arguments = self._said.popleft()
            logger.log(level, message, *arguments)


def _let_others_run() -> None:
    """Let go of the interpreter, which the encoder would else hold for as long as it may.

    Not for no time at all: this thread would have it back before another one has woken up.
    """
    time.sleep(_PAUSE_S)


def _started(target: Callable[[], None], name: str) -> threading.Thread | None:
    """Return a thread that was started, or ``None`` where none can start any more: the interpreter is ending."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
