"""Queues that are looked at at intervals, without a consumer having to run: metrics, and a row for each in the history."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from clew import clock
from clew.catalog import semconv
from clew.catalog.metrics import QUEUE_DEPTH, QUEUE_OLDEST_AGE
from clew.diagnostics import ClewError, report
from clew.engine import runtime
from clew.engine.metrics import registry
from clew.health import loops
from clew.health.check import MAX_TIMEOUT_S, Check
from clew.health.watcher import Watcher
from clew.history import payload
from clew.queues.depth import Depth, is_async, measure, measure_async, system_of

INTERVAL_S: Final = 10.0
TABLE: Final = "queue_depths"

_LEAST_INTERVAL_S: Final = 0.05
_MAX_NAME_BYTES: Final = 255
# A value is told that long after it was measured; a look may take its time, on a machine that is busy
_KEPT_INTERVALS: Final = 3
_LEAST_KEPT_S: Final = 5.0
_AWAY: Final = (
    *("ConnectionError", "TimeoutError", "BusyLoadingError", "AuthenticationError"),
    *("ConnectionClosedError", "ServiceUnavailableError"),
)


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A queue that is looked at.

    Attributes:
        system: what carries it, as ``messaging.system`` has it.
        key: the list or stream, or the subject.
        group: its consumer group or durable consumer, or ``None``.
        celery: whether it is a queue of Celery.
        name: what it is called in metrics and records.
    """

    system: str
    key: str
    group: str | None
    celery: bool
    name: str

    @property
    def labels(self) -> dict[str, str]:
        """Those of its metrics."""
        labels = {semconv.MESSAGING_SYSTEM: self.system, semconv.MESSAGING_DESTINATION_NAME: self.name}
        if self.group is not None:
            labels[semconv.MESSAGING_CONSUMER_GROUP_NAME] = self.group
        return labels


class _Server:
    """The queues of one client: they are looked at one after the other, so that they take one connection."""

    def __init__(self, client: Any, interval_s: float) -> None:
        self.client = client
        self.interval_s = interval_s
        self.due_s = 0.0
        self._lock = threading.Lock()
        self._queues: dict[tuple[str, str | None], Watched] = {}
        # When each queue that has a value was looked at
        self._seen_s: dict[Watched, float] = {}
        look = self._look_async if is_async(client) else self._look
        check = Check(name=f"queues:{id(client)}", probe=look, timeout_s=MAX_TIMEOUT_S, fresh_s=0.0)
        self.watcher = Watcher(check, lambda _: None)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to look at."""
        return not self._queues

    def add(self, watched: Watched) -> None:
        """Look at a queue; one that was called something else leaves the metrics by its other name."""
        with self._lock:
            earlier = self._queues.get((watched.key, watched.group))
            self._queues[watched.key, watched.group] = watched
            if earlier is not None and earlier != watched:
                self._forget(earlier)

    def remove(self, name: str) -> None:
        """Look no more at the queues of a name, whose values leave the metrics at once."""
        with self._lock:
            gone = [one for one in self._queues.values() if one.name == name]
            for one in gone:
                del self._queues[one.key, one.group]
                self._forget(one)

    def forget_old(self, now_s: float) -> None:
        """Have values leave the metrics that nobody has measured for some intervals: they may not be true any more."""
        kept_s = max(_KEPT_INTERVALS * self.interval_s, _LEAST_KEPT_S)
        with self._lock:
            for watched, seen_s in list(self._seen_s.items()):
                if now_s - seen_s > kept_s:
                    self._forget(watched)

    def _look(self) -> None:
        for watched in list(self._queues.values()):
            try:
                depth = measure(self.client, watched.key, group=watched.group, celery=watched.celery)
            except Exception as error:
                if not self._failed(watched, error):
                    return
            else:
                self._note(watched, depth)

    async def _look_async(self) -> None:
        for watched in list(self._queues.values()):
            try:
                depth = await measure_async(self.client, watched.key, group=watched.group, celery=watched.celery)
            except Exception as error:
                if not self._failed(watched, error):
                    return
            else:
                self._note(watched, depth)

    def _note(self, watched: Watched, depth: Depth) -> None:
        """Keep what was found. Whatever goes wrong in that, the others are looked at."""
        try:
            with self._lock:
                if not self._wants(watched):
                    # Nobody wants to know any more, since a moment ago
                    return
                if depth.is_queue:
                    self._seen_s[watched] = clock.monotonic_s()
                    _measured(watched, depth)
                else:
                    self._forget(watched)
            _keep(watched, depth)
        except Exception as error:
            _say(error)

    def _failed(self, watched: Watched, error: Exception) -> bool:
        """Tell of a look that failed; return whether the other queues of the server are worth a look."""
        if self._wants(watched):
            _say(error)
            with suppress(Exception):
                _keep(watched, Depth(kind="unknown", problem=f"{type(error).__name__}: {error}"))
        return not any(kind.__name__ in _AWAY for kind in type(error).__mro__)

    def _wants(self, watched: Watched) -> bool:
        return self._queues.get((watched.key, watched.group)) == watched

    def _forget(self, watched: Watched) -> None:
        self._seen_s.pop(watched, None)
        for metric in (QUEUE_DEPTH, QUEUE_OLDEST_AGE):
            registry.declared(metric).remove(**watched.labels)


class QueueWatch:
    """Looks at queues, from one thread of the process."""

    def __init__(self) -> None:
        self._start_anew()

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._servers: dict[int, _Server] = {}
        self._rouse = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, client: Any, watched: Watched, interval_s: float) -> None:
        """Look at a queue from now on."""
        with self._lock:
            server = self._servers.get(id(client))
            if server is None:
                server = self._servers[id(client)] = _Server(client, interval_s)
            server.interval_s = min(server.interval_s, interval_s)
            server.due_s = 0.0
            server.add(watched)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="clew-queues", daemon=True)
                self._thread.start()
        self._rouse.set()

    def remove(self, name: str) -> None:
        """Look no more at the queues of a name."""
        with self._lock:
            for identity, server in list(self._servers.items()):
                server.remove(name)
                if server.is_idle:
                    del self._servers[identity]
        self._rouse.set()

    def reset_after_fork(self) -> None:
        """Leave the queues to the parent, which looks at them."""
        self._start_anew()

    def _run(self) -> None:
        # Once, and not within an event loop: it imports what a database needs
        _recorder()
        while True:
            self._rouse.clear()
            now_s = clock.monotonic_s()
            with self._lock:
                if not self._servers:
                    self._thread = None
                    return
                for server in self._servers.values():
                    server.forget_old(now_s)
                due = [server for server in self._servers.values() if server.due_s <= now_s]
                for server in due:
                    server.due_s = now_s + server.interval_s
                next_s = min(server.due_s for server in self._servers.values())
            for server in due:
                try:
                    server.watcher.ask()
                except Exception as error:
                    _say(error)
            self._rouse.wait(max(0.0, next_s - clock.monotonic_s()))


_watch: Final = QueueWatch()
os.register_at_fork(after_in_child=_watch.reset_after_fork)


def watch_queue(
    client: Any,
    key: str,
    /,
    *,
    group: str | None = None,
    celery: bool = False,
    name: str | None = None,
    interval_s: float = INTERVAL_S,
) -> None:
    """Look at a queue in Valkey, Redis or NATS at intervals: how much waits in it, and for how long the oldest has waited.

    No consumer has to run. Of a stream with groups, what waits is what a group has not been given yet, and what it was given and has
    not acknowledged. The age of messages in lists is known where they carry the header ``clew-sent-at``, as those that clew sends do.
    Of a subject of JetStream, it is what its durable consumer has not acknowledged, or what its stream has where there is no consumer.
    What is found becomes the metrics ``clew.queue.depth`` and ``clew.queue.oldest.age``, and is shown by ``clew queues list``. Both
    have no value any more three intervals, and 5 s, after the last look that the server answered.

    Args:
        client: a client of redis-py, of threads or of asyncio; or a connection of nats-py or its JetStream context, from within its loop.
        key: the list or stream, or the subject that consumers of JetStream take.
        group: the consumer group of a stream, or the durable consumer; by default the one that is furthest behind.
        celery: whether it is a queue of Celery, which has a list for each priority.
        name: what the queue is called in metrics; by default the key.
        interval_s: how often, in seconds; the queues of one client are looked at together.

    Example:
        >>> import clew
        >>> from redis import Redis
        >>> clew.watch_queue(Redis(port=1), "documents", group="workers")
        >>> clew.unwatch_queue("documents")
    """
    try:
        runtime.ready()
        loops.note_loop()
        system = system_of(client)
        if not isinstance(key, str) or system is None:
            raise TypeError("a queue is watched by a client of redis-py or nats-py and its key or subject")  # noqa: TRY301 - said below
        watched = Watched(system=system, key=key, group=group, celery=celery, name=str(name or key))
        _watch.add(client, watched, max(float(interval_s), _LEAST_INTERVAL_S))
    except Exception as error:
        report("watch_queue", error)


def unwatch_queue(*names: str) -> None:
    """Look no more at queues, by what they are called in metrics, which have no value of them any more; what is not there is left out.

    Example:
        >>> import clew
        >>> clew.unwatch_queue("documents")
    """
    for name in names:
        _watch.remove(name)


def _measured(watched: Watched, depth: Depth) -> None:
    registry.declared(QUEUE_DEPTH).set(depth.length, **watched.labels)
    age = registry.declared(QUEUE_OLDEST_AGE)
    if depth.oldest_age_s is None and depth.length:
        # Nothing tells, which is not the same as that nothing has waited
        age.remove(**watched.labels)
    else:
        age.set(depth.oldest_age_s or 0.0, **watched.labels)


def _keep(watched: Watched, depth: Depth) -> None:
    from clew.history.writing import Change

    known = _recorder()
    if known is None:
        return
    text = partial(payload.text, max_bytes=_MAX_NAME_BYTES)
    row = {
        "id": _identity((watched.system, watched.name, watched.key, watched.group or "")),
        "service": known.origin.service,
        "instance": known.origin.instance,
        "system": watched.system,
        "queue": text(watched.name),
        "consumer_group": text(watched.group),
        "kind": text("celery" if watched.celery else depth.kind),
        "length": depth.length,
        "oldest_age_s": depth.oldest_age_s,
        "problem": text(depth.problem or None),
        "observed_at": clock.utc_now(),
    }
    known.record(Change(table=TABLE, row=row, verb="end"))


def _identity(parts: Iterable[str]) -> str:
    """Return the id of a queue's row: the same for whoever looks at it."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _recorder() -> Any:
    with suppress(Exception):
        if (settings := runtime.ready().settings) is not None and settings.history:
            from clew.history.recorder import recorder

            return recorder()
    return None


def _say(error: Exception) -> None:
    # In strict mode nobody is there to catch it
    with suppress(ClewError):
        report("watch_queue", error)
