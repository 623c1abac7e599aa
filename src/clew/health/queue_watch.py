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
from clew.health.checks.redis import is_async
from clew.health.watcher import Watcher
from clew.history import payload
from clew.queues.depth import Depth, measure, measure_async

SYSTEM: Final = "redis"
INTERVAL_S: Final = 10.0
TABLE: Final = "queue_depths"

_LEAST_INTERVAL_S: Final = 0.05
_MAX_NAME_BYTES: Final = 255
_AWAY: Final = ("ConnectionError", "TimeoutError", "BusyLoadingError", "AuthenticationError")


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A queue that is looked at.

    Attributes:
        key: the list or stream.
        group: its consumer group, or ``None``.
        celery: whether it is a queue of Celery.
        name: what it is called in metrics and records.
    """

    key: str
    group: str | None
    celery: bool
    name: str


class _Server:
    """The queues of one client: they are looked at one after the other, so that they take one connection."""

    def __init__(self, client: Any, interval_s: float) -> None:
        self.client = client
        self.interval_s = interval_s
        self.due_s = 0.0
        self.queues: dict[tuple[str, str | None], Watched] = {}
        look = self._look_async if is_async(client) else self._look
        check = Check(name=f"queues:{id(client)}", probe=look, timeout_s=MAX_TIMEOUT_S, fresh_s=0.0)
        self.watcher = Watcher(check, lambda _: None)

    def _look(self) -> None:
        for watched in list(self.queues.values()):
            try:
                depth = measure(self.client, watched.key, group=watched.group, celery=watched.celery)
            except Exception as error:
                if not _failed(watched, error):
                    return
            else:
                _note(watched, depth)

    async def _look_async(self) -> None:
        for watched in list(self.queues.values()):
            try:
                depth = await measure_async(self.client, watched.key, group=watched.group, celery=watched.celery)
            except Exception as error:
                if not _failed(watched, error):
                    return
            else:
                _note(watched, depth)


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
            server.queues[watched.key, watched.group] = watched
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="clew-queues", daemon=True)
                self._thread.start()
        self._rouse.set()

    def remove(self, name: str) -> None:
        """Look no more at the queues of a name."""
        with self._lock:
            for identity, server in list(self._servers.items()):
                server.queues = {key: one for key, one in server.queues.items() if one.name != name}
                if not server.queues:
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
    """Look at a queue in Valkey or Redis at intervals: how much waits in it, and for how long the oldest has waited.

    No consumer has to run. Of a stream with groups, what waits is what a group has not been given yet, and what it was given and has
    not acknowledged. The age of messages in lists is known where they carry the header ``clew-sent-at``, as those that clew sends do.
    What is found becomes the metrics ``clew.queue.depth`` and ``clew.queue.oldest.age``, and is shown by ``clew queues list``.

    Args:
        client: a client of redis-py, of threads or of asyncio.
        key: the list or stream.
        group: the consumer group of a stream; by default the one that is furthest behind.
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
        if not isinstance(key, str) or not hasattr(client, "execute_command"):
            raise TypeError("a queue is watched by a client of redis-py and the key of a list or a stream")  # noqa: TRY301 - said below
        watched = Watched(key=key, group=group, celery=celery, name=str(name or key))
        _watch.add(client, watched, max(float(interval_s), _LEAST_INTERVAL_S))
    except Exception as error:
        report("watch_queue", error)


def unwatch_queue(*names: str) -> None:
    """Look no more at queues, by what they are called in metrics; what is not there is left out.

    Example:
        >>> import clew
        >>> clew.unwatch_queue("documents")
    """
    for name in names:
        _watch.remove(name)


def _note(watched: Watched, depth: Depth) -> None:
    """Keep what was found. Whatever goes wrong in that, the others are looked at."""
    try:
        if depth.is_queue:
            labels = {semconv.MESSAGING_SYSTEM: SYSTEM, semconv.MESSAGING_DESTINATION_NAME: watched.name}
            if watched.group is not None:
                labels[semconv.MESSAGING_CONSUMER_GROUP_NAME] = watched.group
            registry.declared(QUEUE_DEPTH).set(depth.length, **labels)
            age = registry.declared(QUEUE_OLDEST_AGE).bind(**labels)
            if depth.oldest_age_s is None and depth.length:
                # Nothing tells, which is not the same as that nothing has waited
                age.reset()
            else:
                age.set(depth.oldest_age_s or 0.0)
        _keep(watched, depth)
    except Exception as error:
        _say(error)


def _failed(watched: Watched, error: Exception) -> bool:
    """Tell of a look that failed; return whether the other queues of the server are worth a look."""
    _say(error)
    with suppress(Exception):
        _keep(watched, Depth(kind="unknown", problem=f"{type(error).__name__}: {error}"))
    return not any(kind.__name__ in _AWAY for kind in type(error).__mro__)


def _keep(watched: Watched, depth: Depth) -> None:
    from clew.history.writing import Change

    known = _recorder()
    if known is None:
        return
    text = partial(payload.text, max_bytes=_MAX_NAME_BYTES)
    row = {
        "id": _identity((SYSTEM, watched.name, watched.key, watched.group or "")),
        "service": known.origin.service,
        "instance": known.origin.instance,
        "system": SYSTEM,
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
