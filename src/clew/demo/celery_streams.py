"""Streams carried by Celery, with Valkey as its broker: a queue with a task for each, both named after the stream.

A service's consumers are a real worker of Celery in a thread of its process, not child processes: a service stays one process, which
is killed, watched and ended as one, and its tasks run on the service's event loop, where what they work with lives.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import uuid
from concurrent.futures import CancelledError, Future
from typing import Any, ClassVar, Final, get_type_hints

from celery import Celery
from celery.exceptions import Reject
from celery.worker import state
from kombu.exceptions import KombuError
from redis.asyncio import Redis
from redis.exceptions import RedisError

import clew
from clew.demo.messages import STREAMS
from clew.demo.settings import DemoError, DemoSettings
from clew.demo.streams import GRACEFUL_TIMEOUT_S, WATCH_EVERY_S, Handler, Postponed, Streams

_RESTORE_EVERY_S: Final = 1
_RESTORE_WITHIN_S: Final = 5
_SOCKET_TIMEOUT_S: Final = 5.0
_START_TIMEOUT_S: Final = 30.0
_LET_GO_TIMEOUT_S: Final = 0.5


class CeleryStreams(Streams):
    """The streams of one service as queues of Celery in Valkey, at ``VALKEY_URL``."""

    title: ClassVar[str] = "Valkey"
    name: ClassVar[str] = "valkey"

    def __init__(self, settings: DemoSettings) -> None:
        super().__init__(settings)
        self._app: Any = clew.instrument(_app(settings))
        self._client: Any = Redis.from_url(settings.valkey_url, socket_timeout=_SOCKET_TIMEOUT_S)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._at_work: set[Future[None]] = set()
        self._thread = threading.Thread(target=self._work, name="celery", daemon=True)
        self._worker: Any = None
        self._is_ready = threading.Event()
        self._is_stopping = False

    @classmethod
    def away(cls) -> tuple[type[Exception], ...]:
        """Return the errors that say that nobody answers."""
        return (KombuError, RedisError, OSError)

    async def start(self) -> None:
        """Let the worker begin; Valkey answers.

        Raises:
            DemoError: it does not begin.
        """
        self._loop = asyncio.get_running_loop()
        # The threads of the worker's pool ask for the default one
        self._app.set_default()
        self._thread.start()
        if not await asyncio.to_thread(self._is_ready.wait, _START_TIMEOUT_S):
            raise DemoError(f"Celery's worker was not ready after {_START_TIMEOUT_S:.0f} s: see the lines before")

    async def stop(self) -> None:
        """Let go, without losing a message: what is not done goes back to its queue."""
        self._is_stopping = True
        if self._thread.is_alive():
            state.should_stop = os.EX_OK
            if (hub := getattr(self._worker, "hub", None)) is not None:
                # Else it looks once a second
                hub.call_soon(lambda: None)
            # Not here: the tasks that it waits for need this loop
            await asyncio.to_thread(self._thread.join, GRACEFUL_TIMEOUT_S)
            for future in tuple(self._at_work):
                future.cancel()
            await asyncio.to_thread(self._thread.join, _LET_GO_TIMEOUT_S)
        await self._client.aclose()
        self._app.close()

    async def answers(self, timeout_s: float = 1.0) -> bool:
        """Tell whether Valkey answers in time and, where there is a worker, whether it lives."""
        is_consuming = not self._is_ready.is_set() or self._thread.is_alive()
        return is_consuming and bool(await asyncio.wait_for(self._client.ping(), timeout_s))

    async def watch_depths(self) -> None:
        """Have what waits in all queues measured."""
        for name in STREAMS:
            clew.watch_queue(self._client, name, celery=True, interval_s=WATCH_EVERY_S)

    @staticmethod
    def put_bytes(url: str, stream: str, data: bytes) -> None:
        """Put bytes on a queue as the body of a message for its task."""
        with Celery(broker=url, set_as_current=False).connection_for_write() as connection:
            connection.Producer().publish(
                data,
                exchange="",
                routing_key=stream,
                content_type="application/json",
                content_encoding="utf-8",
                headers={"task": stream, "id": str(uuid.uuid4())},
            )

    def _consume(self, stream: str, handler: Handler, group: str) -> None:
        kind: Any = next(iter(get_type_hints(handler).values()))

        def run(task: Any, message: dict[str, Any]) -> None:
            try:
                self._await(handler, kind.model_validate(message))
            except Postponed as error:
                self._try_later(task, error)
            except CancelledError:
                raise Reject("the service ends", requeue=True) from None

        self._app.task(run, name=stream, bind=True, shared=False)

    def _await(self, handler: Handler, message: Any) -> None:
        """Let the service's loop run a handler, within the run of its task, and wait for it."""
        assert self._loop is not None, "a worker is started by start()"

        async def handle() -> None:
            await handler(message)

        future = asyncio.run_coroutine_threadsafe(handle(), self._loop)
        self._at_work.add(future)
        try:
            future.result()
        finally:
            self._at_work.discard(future)

    def _try_later(self, task: Any, error: Postponed) -> None:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        try:
            # Sooner than a message counts as abandoned, which one that waits for its time in a worker may be
            task.retry(exc=cause, countdown=self._settings.redeliver_after_s / 2)
        except Reject as problem:
            # It could not be sent, and would be thrown away
            raise Reject(problem.reason, requeue=True) from error

    async def _connect(self) -> None:
        await self._client.ping()
        for name in STREAMS:
            found = await self._client.type(name)
            if found not in (b"none", b"list"):
                raise DemoError(
                    f"the key {name} at VALKEY_URL is a {found.decode()}, not a queue of Celery's: DEMO_QUEUE=valkey was "
                    "there before, so name another database, such as redis://127.0.0.1:6379/1"
                )

    async def _publish(self, body: Any, stream: str) -> None:
        # It blocks; the current span is that of the other thread, too
        await asyncio.to_thread(self._app.send_task, stream, kwargs={"message": body}, queue=stream, retry=False)

    def _work(self) -> None:
        """Run the worker; this is its thread."""
        try:
            self._worker = self._app.WorkController(
                pool="threads",
                concurrency=self._settings.workers,
                queues=[stream for stream, _ in self._groups],
                ready_callback=lambda _: self._is_ready.set(),
                without_gossip=True,
                without_heartbeat=True,
                without_mingle=True,
            )
            self._worker.start()
        finally:
            if not self._is_stopping:
                # A service that takes no more work must not look as if it did
                print("Celery's worker has ended: the lines before say why", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)


def _app(settings: DemoSettings) -> Celery:
    app = Celery("demo", broker=settings.valkey_url, set_as_current=False)
    app.conf.update(
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": settings.redeliver_after_s,
            # Who was killed while it put such messages back keeps the others from it for so long
            "unacked_mutex_expire": _RESTORE_WITHIN_S,
            "unacked_restore_interval": _RESTORE_EVERY_S,
            "unacked_restore_throttle": 1,
            "socket_timeout": _SOCKET_TIMEOUT_S,
            "socket_connect_timeout": _SOCKET_TIMEOUT_S,
        },
        task_acks_late=True,
        # As often as it takes, as with the others
        task_annotations={"*": {"max_retries": None}},
        task_ignore_result=True,
        worker_enable_remote_control=False,
        worker_prefetch_multiplier=1,
    )
    return app
