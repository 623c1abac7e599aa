"""The checks that clew brings, on the real things that they look at."""

from __future__ import annotations

import asyncio
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
import redis
import redis.asyncio
from alembic import command
from alembic.config import Config
from apscheduler.schedulers.background import BackgroundScheduler
from openai import OpenAI
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

import clew
from clew.health import checks
from clew.health.check import Check, CheckResult
from clew.health.monitor import Monitor
from clew.history.database import Database
from tests.integration.silent_server import SilentServer
from tests.integration.waiting import eventually


def monitor_of(*wanted: Check) -> Monitor:
    return Monitor(lambda: list(wanted))


def look(check: Check) -> CheckResult:
    return monitor_of(check).look()[check.name]


async def look_async(check: Check) -> CheckResult:
    return (await monitor_of(check).look_async())[check.name]


# Valkey


def test_valkey_answers(valkey_url):
    with redis.Redis.from_url(valkey_url) as client:
        result = look(checks.redis(client))
    assert result.status == "ok", result.text
    assert result.critical
    assert 0 < result.data["latency_s"] < 1
    assert result.data["used_bytes"] > 0


def test_valkey_answers_an_asyncio_client(valkey_url):
    async def scene() -> CheckResult:
        async with redis.asyncio.Redis.from_url(valkey_url) as client:
            return await look_async(checks.redis(client))

    assert asyncio.run(scene()).status == "ok"


def test_valkey_that_is_nearly_full_is_degraded(valkey_url):
    with redis.Redis.from_url(valkey_url) as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", int(used * 1.05))
        try:
            result = look(checks.redis(client))
        finally:
            client.config_set("maxmemory", 0)
    assert result.status == "degraded"
    assert "full" in result.text


def test_a_server_that_never_answers_has_failed_in_time_and_is_not_asked_again():
    with SilentServer() as silent, redis.Redis(port=silent.port, password="hunter2") as client:
        monitor = monitor_of(checks.redis(client, timeout_s=0.2))
        for _ in range(3):
            began = time.monotonic()
            result = monitor.look()["valkey"]
            assert time.monotonic() - began < 5
            assert (result.status, result.hangs) == ("failed", True)
        assert [thread.name for thread in threading.enumerate()].count("clew-health-valkey") == 1


def test_a_server_that_is_gone_has_failed_and_no_secret_is_told():
    with SilentServer() as silent:
        port = silent.port
    client = redis.Redis.from_url(f"redis://:hunter2@127.0.0.1:{port}/0")
    result = look(checks.redis(client))
    assert result.status == "failed"
    assert "Connection refused" in result.text
    assert "hunter2" not in str(result)


# Queues


@pytest.fixture
def client(valkey_url) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as made:
        yield made


def test_a_list_has_a_length_and_an_age(client):
    check = checks.queue(client, "orders", max_length=2, max_age_s=60)
    assert look(check).data == {"length": 0, "oldest_age_s": None, "kind": "none"}
    envelope = {"data": 1, "headers": {"clew-sent-at": f"{time.time() - 30:.6f}"}}
    client.lpush("orders", json.dumps(envelope))
    young = look(check)
    assert young.status == "ok"
    assert young.data["length"] == 1
    assert 29 < young.data["oldest_age_s"] < 60
    client.lpush("orders", json.dumps({"headers": {"clew-sent-at": f"{time.time():.6f}"}}), "not JSON")
    assert look(check).text.endswith("more than 2 are too many")
    client.rpush("orders", json.dumps({"headers": {"clew-sent-at": f"{time.time() - 100:.6f}"}}))
    assert look(check).text.endswith("60 s are too long")


def test_a_stream_waits_for_its_slowest_group(client):
    old = int((time.time() - 90) * 1000)
    for number in range(10):
        client.xadd("events", {"n": number}, id=f"{old + number}-0")
    assert look(checks.queue(client, "events")).data["length"] == 10
    assert "no group 'workers'" in look(checks.queue(client, "events", group="workers")).text
    client.xgroup_create("events", "workers", id="0")
    client.xgroup_create("events", "idle", id="$")
    taken = client.xreadgroup("workers", "one", {"events": ">"}, count=4)
    result = look(checks.queue(client, "events", group="workers", max_age_s=60))
    # 4 that were given out and 6 that were not
    assert result.data["length"] == 10
    assert 85 < result.data["oldest_age_s"] < 150
    assert result.status == "degraded"
    client.xack("events", "workers", *[identity for identity, _ in taken[0][1]])
    assert look(checks.queue(client, "events", group="workers")).data["length"] == 6
    assert look(checks.queue(client, "events", group="idle")).data == {
        "length": 0,
        "oldest_age_s": None,
        "kind": "stream",
    }
    assert look(checks.queue(client, "events")).data["length"] == 6


def test_queues_by_an_asyncio_client_and_with_decoded_answers(valkey_url, client):
    client.xadd("events", {"n": 1})
    client.xgroup_create("events", "workers", id="0")
    with redis.Redis.from_url(valkey_url, decode_responses=True) as decoding:
        assert look(checks.queue(decoding, "events", group="workers")).data["length"] == 1

    async def scene() -> CheckResult:
        async with redis.asyncio.Redis.from_url(valkey_url) as asynchronous:
            return await look_async(checks.queue(asynchronous, "events"))

    assert asyncio.run(scene()).data["length"] == 1


def test_what_is_no_queue_has_failed(client):
    client.set("orders", "1")
    assert look(checks.queue(client, "orders")).text == "is a string, not a list or a stream"


# Databases


@pytest.fixture
def engine(database_url):
    made = create_engine(make_url(database_url).set(drivername=driver_of(database_url)))
    yield made
    made.dispose()


def driver_of(url: str) -> str:
    return "sqlite" if url.startswith("sqlite") else "postgresql+psycopg"


def test_a_database_tells_latency_tables_and_size(engine):
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id INTEGER)"))
    result = look(checks.database(engine))
    assert result.status == "ok", result.text
    assert result.data["tables"] == 1
    assert result.data["size_bytes"] > 0
    assert 0 < result.data["latency_s"] < 2
    assert result.data["dialect"] == engine.dialect.name


def test_an_asyncio_engine_is_asked_in_the_apps_loop(database_url):
    name = {"sqlite": "sqlite+aiosqlite", "postgresql+psycopg": "postgresql+psycopg"}[driver_of(database_url)]

    async def scene() -> CheckResult:
        made = create_async_engine(make_url(database_url).set(drivername=name))
        try:
            return await look_async(checks.database(made))
        finally:
            await made.dispose()

    result = asyncio.run(scene())
    assert result.status == "ok", result.text
    assert result.data["tables"] == 0


def test_migrations_that_are_behind_are_told(engine, database_url, tmp_path):
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text(
        "from alembic import context\n"
        "context.configure(connection=context.config.attributes['connection'])\n"
        "with context.begin_transaction():\n    context.run_migrations()\n"
    )
    (folder / "script.py.mako").write_text("")
    (folder / "versions" / "a1.py").write_text(
        "revision = 'a1'\ndown_revision = None\ndef upgrade(): pass\ndef downgrade(): pass\n"
    )
    monitor = monitor_of(checks.database(engine, migrations=folder))
    behind = monitor.look()["database"]
    assert (behind.status, behind.data["migrations"]) == ("degraded", "behind")
    config = Config()
    config.set_main_option("script_location", str(folder))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    eventually(lambda: monitor.look()["database"].status == "ok", "at head")


def test_a_database_that_is_stopped_and_started(postgresql, postgresql_url):
    engine = create_engine(make_url(postgresql_url).set(drivername="postgresql+psycopg"))
    monitor = monitor_of(checks.database(engine))
    assert monitor.look()["database"].status == "ok"
    with postgresql.away():
        eventually(lambda: monitor.look().status == "failed", "it is noticed")
        assert "password" not in monitor.look()["database"].text
    eventually(lambda: monitor.look().status == "ok", "it is back")
    engine.dispose()


def test_a_database_that_takes_statements_and_answers_none(postgresql, postgresql_url):
    engine = create_engine(make_url(postgresql_url).set(drivername="postgresql+psycopg"))
    monitor = monitor_of(checks.database(engine, timeout_s=0.3))
    assert monitor.look()["database"].status == "ok"
    with postgresql.frozen():
        eventually(lambda: monitor.look().status == "failed", "it is noticed")
        for _ in range(3):
            assert monitor.look()["database"].hangs
        assert [thread.name for thread in threading.enumerate()].count("clew-health-database") == 1
    eventually(lambda: monitor.look().status == "ok", "it answers again")
    engine.dispose()


def test_the_history_is_looked_at_and_polls_each_second_do_not_fill_it(database_url):
    # In a process of its own, because a process has one recorder
    code = """
import clew
status = ["ok"]
@clew.health_check("shop", fresh_s=0.0)
def shop():
    return clew.HealthResult(status=status[0], text="token=hunter2", data={"password": "hunter2", "n": 1})
for _ in range(50):
    clew.check_health()
status[0] = "failed"
for _ in range(50):
    clew.check_health()
report = clew.check_health()
assert report["history"].status == "ok", report["history"]
clew.flush(10)
print(clew.check_health()["history"].text)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    with Database(url_of(database_url)).read() as connection:
        rows = connection.execute(
            text("SELECT name, status, message, details, instance FROM health_checks ORDER BY id")
        ).all()
    by_name = {name: [row.status for row in rows if row.name == name] for name in {row.name for row in rows}}
    assert by_name["shop"] == ["ok"] or by_name["shop"] == ["ok", "failed"]
    assert all(len(found) <= 2 for found in by_name.values()), by_name
    assert "hunter2" not in str(rows)


def url_of(url: str) -> str:
    return make_url(url).set(drivername=driver_of(url)).render_as_string(hide_password=False)


# Providers of language models


@contextmanager
def provider(status: int, headers: dict[str, str] | None = None) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    asked: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("status", "outcome", "said"),
    [
        (200, "ok", "answered in"),
        (401, "failed", "refused the API key"),
        (403, "failed", "refused the API key"),
        (404, "failed", "answered 404"),
        (429, "degraded", "too many requests"),
        (503, "failed", "answered 503"),
    ],
)
def test_a_provider_is_asked_for_its_models(status, outcome, said):
    with provider(status) as (url, asked):
        result = look(checks.llm(url, "sk-abcdefghijklmnop1234"))
    assert (result.status, said in result.text) == (outcome, True), result.text
    assert asked == [("/v1/models", "Bearer sk-abcdefghijklmnop1234")]
    assert "abcdefgh" not in str(result)


def test_a_provider_that_redirects_does_not_get_the_key_elsewhere():
    with provider(200) as (elsewhere, asked), provider(302, {"Location": f"{elsewhere}/models"}) as (url, _):
        result = look(checks.llm(url, "key"))
    assert (result.status, asked) == ("failed", [])
    assert "not followed" in result.text


def test_a_provider_without_a_key_or_without_an_answer_has_failed():
    assert look(checks.llm("http://127.0.0.1:1", "")).text == "no API key is set"
    assert look(checks.llm("http://127.0.0.1:1", lambda: None)).text == "no API key is set"
    with SilentServer() as silent:
        result = look(checks.llm(f"http://127.0.0.1:{silent.port}", "key", timeout_s=0.3))
    assert result.status == "failed"


def test_an_openai_client_is_watched_by_its_type():
    with provider(200) as (url, asked):
        clew.watch(OpenAI(base_url=url, api_key="key"))
        try:
            assert clew.check_health()["llm"].status == "ok"
        finally:
            clew.unwatch("llm")
    assert asked == [("/v1/models", "Bearer key")]


# Schedulers


def test_a_scheduler_runs_is_paused_is_late_and_stops():
    scheduler = BackgroundScheduler(timezone=UTC)
    monitor = monitor_of(Check(**{**vars(checks.scheduler(scheduler)), "fresh_s": 0.0}))
    assert monitor.look()["scheduler"].text == "it does not run"
    scheduler.start()
    scheduler.add_job(print, "interval", hours=1, id="digest")
    assert monitor.look()["scheduler"].text == "1 jobs, none overdue"
    scheduler.pause()
    assert monitor.look()["scheduler"].status == "degraded"
    # While it is paused it runs nothing: afterwards it is late, until it has caught up
    scheduler.modify_job("digest", next_run_time=datetime.now(UTC) - timedelta(minutes=2))
    scheduler.state = 1
    late = monitor.look()["scheduler"]
    assert late.status == "degraded"
    assert "digest for 12" in late.text
    scheduler.shutdown()
    assert monitor.look()["scheduler"].status == "failed"


def test_instrumented_schedulers_are_looked_at_without_being_asked_to():
    check = Check(**{**vars(checks.scheduler()), "fresh_s": 0.0})
    scheduler = clew.instrument(BackgroundScheduler(timezone=UTC))
    assert look(check).status == "ok"  # it was not started
    scheduler.start()
    scheduler.add_job(print, "interval", hours=1, id="digest")
    assert {"jobs": 1, "overdue": {}} in look(check).data["schedulers"]
    scheduler.pause()
    assert look(check).status == "degraded"
    scheduler.shutdown()
    assert look(check).status == "ok"


def test_what_is_watched_is_not_kept_alive():
    scheduler = BackgroundScheduler()
    check = checks.scheduler(scheduler)
    del scheduler
    assert look(check).text in ("the scheduler is gone", "it does not run")
