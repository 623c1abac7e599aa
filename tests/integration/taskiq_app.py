"""taskiq brokers, over a list and over a stream, and a scheduler, for programs that are started as ``taskiq worker ...``.

``VALKEY_URL`` is the server of the brokers; with ``TASKIQ_PLAIN`` the app has no line of clew's.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
import logging
import os
from typing import Annotated, Any

from taskiq import Context, SimpleRetryMiddleware, SmartRetryMiddleware, TaskiqDepends, TaskiqScheduler
from taskiq.schedule_sources import LabelScheduleSource
from taskiq_redis import ListQueueBroker, ListRedisScheduleSource, RedisAsyncResultBackend, RedisStreamBroker

import clew

URL = os.environ.get("VALKEY_URL", "redis://127.0.0.1:6379/0")

later: Any = ListRedisScheduleSource(URL, prefix="later")
listed: Any = ListQueueBroker(URL, queue_name="listed").with_result_backend(RedisAsyncResultBackend(URL))
listed.add_middlewares(SimpleRetryMiddleware(default_retry_count=3))
streamed: Any = (
    RedisStreamBroker(URL, queue_name="streamed", consumer_id="0")
    .with_result_backend(RedisAsyncResultBackend(URL))
    .with_middlewares(SmartRetryMiddleware(default_retry_count=3, default_delay=0.1, schedule_source=later))
)
scheduler: Any = TaskiqScheduler(streamed, [LabelScheduleSource(streamed), later])

if os.environ.get("TASKIQ_PLAIN") != "1":
    clew.instrument(listed)
    clew.instrument(streamed)


def register(broker: Any, nested: str) -> None:
    """Give a broker its tasks."""

    @broker.task("shop.add")
    async def add(left: int, right: int) -> int:
        with clew.span("inside", number=left):
            await asyncio.sleep(0.01)
        logging.getLogger("shop").warning("adding %s", left)
        return left + right

    @broker.task("shop.plain")
    def plain(left: int, right: int) -> int:
        with clew.span("inside", number=left):
            return left + right

    @broker.task(nested)
    async def outer(number: int) -> str:
        return str((await add.kiq(number, 1)).task_id)

    @broker.task("shop.flaky", retry_on_error=True)
    async def flaky(fails: int, context: Annotated[Context, TaskiqDepends()]) -> int:
        tried = int(context.message.labels.get("_retries", 0))
        if tried < fails:
            raise ConnectionError(f"try {tried + 1}")
        return tried

    @broker.task("shop.fail")
    async def fail() -> None:
        raise ValueError("out of stock")

    @broker.task("shop.requeue")
    async def requeue(context: Annotated[Context, TaskiqDepends()]) -> str:
        if "X-Taskiq-requeue" not in context.message.labels:
            await context.requeue()
        return "taken"

    @broker.task("shop.reject")
    async def reject(context: Annotated[Context, TaskiqDepends()]) -> None:
        context.reject()


for one in (listed, streamed):
    register(one, "shop.nested")


@streamed.task("shop.tick", schedule=[{"interval": 2}])
async def tick() -> None:
    with clew.span("ticking"):
        pass
