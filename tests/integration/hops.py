"""Programs that take one hop each: something called "origin" hands over to something called "arrival".

Run as ``python -m tests.integration.hops NAME [ARGUMENT]``. Where a hop has another side, that is a process of its own, which
exports to the same endpoint.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import clew
from tests.integration import scheduled_jobs
from tests.integration.waiting import eventually, eventually_async

HOPS: dict[str, Callable[..., None]] = {}
SIDES: dict[str, Callable[[str], None]] = {}


def hop(function: Callable[[], None]) -> Callable[[], None]:
    HOPS[function.__name__] = function
    return function


def other_side(function: Callable[[str], None]) -> Callable[[str], None]:
    SIDES[function.__name__] = function
    return function


def start_other_side(name: str, argument: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.integration.hops", name, argument])


def run_other_side(name: str, argument: str = "") -> None:
    assert start_other_side(name, argument).wait(60) == 0, f"{name} failed"


@contextmanager
def origin() -> Iterator[None]:
    with clew.correlation("order-17"), clew.span("origin"):
        yield


def arrive() -> None:
    with clew.span("arrival"):
        pass


# Within a process, and to the processes of a pool


@hop
def thread() -> None:
    with origin():
        started = threading.Thread(target=clew.carry(arrive))
    started.start()
    started.join()


@hop
def executor() -> None:
    with ThreadPoolExecutor() as pool:
        with origin():
            future = clew.submit(pool, arrive)
        future.result()


@hop
def asyncio_task() -> None:
    async def arrive_later() -> None:
        await asyncio.sleep(0)
        arrive()

    async def main() -> None:
        with origin():
            task = asyncio.create_task(arrive_later())
        await task

    asyncio.run(main())


def process_pool(method: str) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        with origin():
            future = clew.submit(pool, arrive)
        future.result()


@hop
def process_pool_fork() -> None:
    process_pool("fork")


@hop
def process_pool_spawn() -> None:
    process_pool("spawn")


@hop
def process_pool_forkserver() -> None:
    process_pool("forkserver")


# HTTP


@other_side
def serve(port: str) -> None:
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/orders/{order_id}")
    def order(order_id: int) -> None:
        arrive()

    clew.instrument(app)
    uvicorn.run(app, port=int(port), log_level="warning")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@hop
def http() -> None:
    import httpx

    port = free_port()
    server = start_other_side("serve", str(port))
    try:
        eventually(lambda: answers(port), "the server listens")
        with clew.instrument(httpx.Client()) as client, origin():
            client.get(f"http://127.0.0.1:{port}/orders/17").raise_for_status()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


# Queues


async def publish(count: int) -> None:
    from faststream.redis import RedisBroker

    async with clew.instrument(RedisBroker(os.environ["VALKEY_URL"])) as broker:
        with origin():
            for number in range(count):
                await broker.publish({"number": number}, stream="documents")


async def consume(*, batch: bool) -> None:
    from faststream.redis import RedisBroker, StreamSub

    broker = clew.instrument(RedisBroker(os.environ["VALKEY_URL"]))
    seen: list[Any] = []
    stream: Any = StreamSub("documents", group="workers", consumer="one", last_id="0", batch=batch)

    @broker.subscriber(stream=stream)  # type: ignore[untyped-decorator] # the overloads need a literal batch
    async def work(body: Any) -> None:
        arrive()
        seen.append(body)

    async with broker:
        await broker.start()
        await eventually_async(lambda: seen, "a message was processed")


@other_side
def consume_one(_: str) -> None:
    asyncio.run(consume(batch=False))


@other_side
def consume_batch(_: str) -> None:
    asyncio.run(consume(batch=True))


@hop
def faststream_message() -> None:
    asyncio.run(publish(1))
    run_other_side("consume_one")


@hop
def faststream_batch() -> None:
    asyncio.run(publish(3))
    run_other_side("consume_batch")


@other_side
def consume_list(_: str) -> None:
    import redis

    with redis.Redis.from_url(os.environ["VALKEY_URL"]) as client:
        message = json.loads(client.blpop(["orders"], timeout=10)[1])
        with clew.extract(message["headers"]):
            arrive()


@hop
def redis_list() -> None:
    import redis

    with redis.Redis.from_url(os.environ["VALKEY_URL"]) as client, origin():
        headers: dict[str, str] = clew.inject({})
        client.rpush("orders", json.dumps({"headers": headers, "body": {"id": 17}}))
    run_other_side("consume_list")


# Jobs


def schedule(trigger: str, **arguments: Any) -> None:
    from apscheduler.schedulers.background import BackgroundScheduler

    scheduler = clew.instrument(BackgroundScheduler(timezone="UTC"))
    with origin():
        scheduler.add_job(arrive, trigger, id="nightly", **arguments)
    scheduled_jobs.run_what_is_due(scheduler)


@hop
def interval_job() -> None:
    schedule("interval", seconds=0.1)


@hop
def cron_job() -> None:
    schedule("cron", second="*")


@hop
def one_shot_job() -> None:
    schedule("date", run_date=datetime.now(UTC) + timedelta(seconds=0.1))


@other_side
def run_stored(store: str) -> None:
    scheduled_jobs.run_what_is_due(clew.instrument(scheduled_jobs.stored_scheduler(store)))


@hop
def one_shot_job_after_a_restart() -> None:
    store = os.environ["JOB_STORE"]
    scheduler = clew.instrument(scheduled_jobs.stored_scheduler(store))
    scheduler.start(paused=True)
    with origin():
        # By name, as this module is another one over there
        scheduler.add_job("tests.integration.hops:arrive", "date", run_date=datetime.now(UTC), misfire_grace_time=None)
    scheduler.shutdown()
    run_other_side("run_stored", store)


# Agents


@hop
def handoff() -> None:
    with (
        clew.correlation("order-17"),
        clew.agent_task("processor"),
        clew.handoff(to="topicizer", task={"id": "doc-17"}),
        clew.agent_task("topicizer"),
    ):
        pass


@other_side
def take_over(carrier: str) -> None:
    with clew.agent_task("topicizer", carrier=json.loads(carrier)):
        pass


@hop
def handoff_to_another_process() -> None:
    with clew.correlation("order-17"), clew.agent_task("processor"), clew.handoff(to="topicizer") as passing:
        carrier = json.dumps(passing.carrier)
    run_other_side("take_over", carrier)


if __name__ == "__main__":
    chosen = sys.argv[1]
    if chosen in HOPS:
        HOPS[chosen]()
    else:
        SIDES[chosen](sys.argv[2])
