"""taskiq brokers whose tasks wait until they are let go, for workers that are killed meanwhile, and tasks for a pool of processes.

``VALKEY_URL`` is the server of the brokers.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import logging
import os
from typing import Any

import redis
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

import clew

URL = os.environ.get("VALKEY_URL", "redis://127.0.0.1:6379/0")
LIMIT_S = 60
IDLE_MS = 1_000

results: Any = RedisAsyncResultBackend(URL)
listed: Any = clew.instrument(ListQueueBroker(URL, queue_name="held-list").with_result_backend(results))
streamed: Any = clew.instrument(
    RedisStreamBroker(
        URL,
        queue_name="held-stream",
        consumer_id="0",
        xread_block=200,
        idle_timeout=IDLE_MS,
        unacknowledged_lock_timeout=1.0,
    ).with_result_backend(results)
)


def hold(key: str) -> str:
    """Say who runs it, and wait to be let go."""
    with clew.span("holding", key=key), redis.Redis.from_url(URL) as store:
        logging.getLogger("held").warning("holding %s", key)
        store.rpush(f"{key}:held", os.getpid())
        found = store.blpop([f"{key}:go"], timeout=LIMIT_S)
        return str(os.getpid()) if found is not None else "nobody came"


def fail(key: str) -> None:
    """Fail."""
    with clew.span("failing"):
        raise ValueError(key)


async def poke() -> int:
    """Do nothing, so that the worker looks for what others have left."""
    return os.getpid()


for broker in (listed, streamed):
    broker.register_task(hold, "held.hold")
    broker.register_task(fail, "held.fail")
    broker.register_task(poke, "held.poke")


@listed.task("held.decorated")
def decorated(number: int) -> int:
    """Count, in whatever process."""
    with clew.span("counting", number=number):
        clew.counter("held.counted").add(1)
        return os.getpid()
