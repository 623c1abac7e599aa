"""The routes of health of a real app, served by a real uvicorn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.integration.server_process import ROOT, ServerProcess, uvicorn
from tests.integration.waiting import eventually
from tests.otlp_sink import OtlpSink

ROUTES = ["/health", "/healthz", "/livez", "/readyz", "/status", "/status/detailed", "/scheduler"]
TOKEN = "a-token-for-admins"


@contextmanager
def serving(tmp_path: Path, *options: str, **environment: str) -> Iterator[httpx.Client]:
    command = uvicorn("health_app:app", "--app-dir", str(Path(__file__).parent), *options)
    given = {
        "PYTHONPATH": str(ROOT),
        "CLEW_DATABASE_URL": f"sqlite:///{tmp_path / 'history.db'}",
        "OTEL_SDK_DISABLED": "true",
        **environment,
    }
    with (
        ServerProcess(command, cwd=tmp_path, environment=given) as server,
        httpx.Client(base_url=server.url, timeout=20) as client,
    ):
        yield client


def test_everything_is_answered_typed_and_documented(tmp_path):
    with serving(tmp_path) as client:
        for route in ROUTES:
            answer = client.get(route)
            assert answer.status_code == 200, (route, answer.text)
            assert answer.headers["cache-control"] == "no-store"
            head = client.head(route)
            assert (head.status_code, head.content) == (200, b"")
        health = client.get("/health").json()
        assert health["status"] in ("ok", "degraded")
        assert {"name": "shop", "status": "ok", "critical": False} in health["checks"]
        assert {"name": "till", "status": "ok", "critical": False} in health["checks"]
        assert client.get("/readyz").json() == {"status": "ready", "reasons": []}
        detailed = client.get("/status/detailed").json()
        shop = next(one for one in detailed["details"] if one["name"] == "shop")
        assert (shop["text"], shop["data"]) == ("it is open", {"password": "[redacted]"})
        assert shop["recent"][0]["status"] == "ok"
        paths = client.get("/openapi.json").json()["paths"]
        for route in ROUTES:
            assert list(paths[route]) == ["get"], route
            schema = paths[route]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            assert schema["$ref"].startswith("#/components/schemas/")


@pytest.mark.parametrize("reason", ["HEALTH_HANGS", "HEALTH_RAISES"])
def test_what_is_critical_makes_it_unready_but_not_dead(tmp_path, reason):
    with serving(tmp_path, HEALTH_CRITICAL="true", **{reason: "1"}) as client:
        for _ in range(3):
            began = time.monotonic()
            assert client.get("/readyz").status_code == 503
            assert time.monotonic() - began < 5
        assert client.get("/readyz").json() == {"status": "unready", "reasons": ["check shop failed"]}
        for route in ("/health", "/healthz", "/status", "/status/detailed"):
            assert client.get(route).status_code == 503, route
        assert client.get("/livez").status_code == 200
        assert "hunter2" not in "".join(client.get(route).text for route in ROUTES)
        # Nothing but a word of what went wrong is told to everybody
        assert "away" not in client.get("/health").text
        assert "no answer" not in client.get("/health").text


def test_what_is_not_critical_degrades(tmp_path):
    with serving(tmp_path, HEALTH_HANGS="1") as client:
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert client.get("/readyz").status_code == 200


def test_schedulers_and_their_jobs_are_told_without_arguments(tmp_path):
    with serving(tmp_path, HEALTH_SCHEDULER="1") as client:
        answer = client.get("/scheduler")
        (scheduler,) = answer.json()["schedulers"]
        (job,) = scheduler["jobs"]
        assert scheduler["running"]
        assert (job["id"], job["paused"], job["overdue_s"]) == ("digest", False, 0.0)
        assert "secret-argument" not in answer.text
        assert {"name": "scheduler", "status": "ok", "critical": False} in client.get("/health").json()["checks"]


@pytest.mark.parametrize("route", ["/status/detailed", "/scheduler"])
def test_details_are_for_this_machine_and_for_admins(tmp_path, route):
    with serving(tmp_path, "--no-proxy-headers") as client:
        assert client.get(route).status_code == 200
        # Through a proxy, or under a name that a page on the web may have
        for headers in ({"x-forwarded-for": "192.0.2.1"}, {"host": "evil.example"}):
            refused = client.get(route, headers=headers)
            assert refused.status_code == 403
            assert set(refused.json()) == {"detail"}
    with serving(tmp_path, "--no-proxy-headers", CLEW_ADMIN_TOKEN=TOKEN) as client:
        elsewhere = {"x-forwarded-for": "192.0.2.1"}
        refused = client.get(route, headers={**elsewhere, "authorization": "Bearer wrong"})
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get(route, headers={**elsewhere, "authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.get("/health", headers=elsewhere).status_code == 200


@pytest.mark.parametrize(
    ("environment", "prefix"), [({}, ""), ({"HEALTH_PREFIX": "/ops"}, "/ops"), ({"HEALTH_MOUNTED": "1"}, "/ops")]
)
def test_polls_make_no_telemetry_but_a_route_that_ends_alike_does(tmp_path, environment, prefix):
    with OtlpSink() as sink:
        given = {**sink.environment, "OTEL_SDK_DISABLED": "false", **environment}
        with serving(tmp_path, **given) as client:
            for _ in range(3):
                for route in ROUTES:
                    assert client.get(prefix + route).status_code == 200, route
                    client.head(prefix + route)
            assert client.get("/orders/7/status").status_code == 200
        eventually(lambda: sink.spans, "the request's span arrives")
        assert [span.name for span in sink.spans] == ["GET /orders/{order}/status"]
        assert {str(record.body) for record in sink.logs if record.logger == "clew.http.server"} <= {
            "request_in",
            "request_out",
        }
        assert len([record for record in sink.logs if record.body == "request_in"]) == 1
        names = {point.name for point in sink.metrics}
        assert {"clew.health.check.status", "clew.health.check.duration"} <= names
        routes = {
            point.attributes.get("http.route") for point in sink.metrics if point.name == "http.server.request.duration"
        }
        assert routes == {"/orders/{order}/status"}


def test_an_app_that_is_not_instrumented_has_health_as_well(tmp_path):
    with serving(tmp_path, HEALTH_PLAIN="1") as client:
        assert client.get("/health").status_code == 200


def test_many_polls_at_once_are_answered_alike(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with serving(tmp_path) as client, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: client.get("/health").status_code, range(200)))
    assert set(answers) == {200}
