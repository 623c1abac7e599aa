"""``clew run``: real commands, started without a line of code, and what became of their telemetry."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import pytest

from clew.cli.run import STARTUP_FOLDER, environment_for, service_name_of
from tests.integration.server_process import BIN, ServerProcess
from tests.otlp_sink import OtlpSink

CLEW = str(BIN / "clew")

SHOP = """
import logging, os
from fastapi import FastAPI
app = FastAPI()

@app.get("/orders/{order_id}")
def order(order_id: int):
    logging.getLogger("shop").info("order %s", order_id)
    return os.getpid()
"""

SERVERS = {
    "uvicorn": ["uvicorn", "shop:app", "--port", "{port}"],
    "uvicorn with workers": ["uvicorn", "shop:app", "--port", "{port}", "--workers", "2"],
    "gunicorn": ["gunicorn", "shop:app", "-k", "uvicorn.workers.UvicornWorker", "-w", "2", "-b", "127.0.0.1:{port}"],
    "gunicorn, preloaded": [
        *("gunicorn", "shop:app", "-k", "uvicorn.workers.UvicornWorker"),
        *("-w", "2", "-b", "127.0.0.1:{port}", "--preload"),
    ],
    "python -m uvicorn": [sys.executable, "-m", "uvicorn", "shop:app", "--port", "{port}"],
    "python -m": [sys.executable, "-m", "shop_main", "{port}"],
    "script": [sys.executable, "shop_main.py", "{port}"],
}
SHOP_MAIN = """
import sys, uvicorn
from shop import app
uvicorn.run(app, port=int(sys.argv[1]))
"""


def clew_environment(sink: OtlpSink, folder: Path, **more: str) -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("CLEW_", "OTEL_", "PYTHONPATH"))
    }
    path = f"{BIN}{os.pathsep}{inherited['PATH']}"
    return {**inherited, **sink.environment, "PATH": path, "CLEW_SPOOL_DIR": str(folder / "spool"), **more}


def run(sink: OtlpSink, folder: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CLEW, "run", *command],
        cwd=folder,
        env=clew_environment(sink, folder, **more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("kind", SERVERS)
def test_every_request_to_every_worker_is_counted_once(otlp_sink: OtlpSink, tmp_path: Path, kind: str):
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "shop_main.py").write_text(SHOP_MAIN)
    workers = 2 if "workers" in kind or "gunicorn" in kind else 1
    environment = {**otlp_sink.environment, "PYTHONPATH": str(tmp_path)}
    pids: collections.Counter[int] = collections.Counter()
    with ServerProcess([CLEW, "run", *SERVERS[kind]], cwd=tmp_path, environment=environment) as server:

        def ask(number: int) -> int:
            # A connection of its own, so that the kernel may give it to any worker
            with urlopen(f"{server.url}/orders/{number}", timeout=30) as answer:
                return int(answer.read())

        with ThreadPoolExecutor(8) as pool:
            while len(pids) < workers or pids.total() < 60:
                pids.update(pool.map(ask, range(20)))
                assert pids.total() < 4_000, f"only {dict(pids)} answered"
        server.stop()

    total = pids.total()
    name, labels = "http.server.request.duration", {"http__route": "/orders/{order_id}"}
    assert otlp_sink.wait(lambda s: s.total(name, **labels) == total, what=f"{total} requests, of {dict(pids)}")
    points = [point for point in otlp_sink.metrics if point.name == name]
    by_process = collections.Counter({point.resource["process.pid"]: point.count for point in points})
    assert by_process == pids
    assert len({point.resource["service.instance.id"] for point in points}) == workers
    spans = otlp_sink.wait_for_all(lambda s: s.named("GET /orders/{order_id}"), total, what=f"{total} spans")
    assert collections.Counter(span.resource["process.pid"] for span in spans) == pids
    assert len({span.span_id for span in spans}) == total
    assert {span.resource["service.name"] for span in spans} == {
        "shop_main" if "shop_main" in str(SERVERS[kind]) else "shop"
    }
    lines = [log for log in otlp_sink.logs if log.logger == "shop"]
    assert len(lines) == total
    assert {line.span_id for line in lines} == {span.span_id for span in spans}


def test_an_app_that_instruments_itself_is_still_traced_once(otlp_sink: OtlpSink, tmp_path: Path):
    (tmp_path / "shop.py").write_text(
        SHOP + "\nimport clew\nclew.configure(service_name='named')\nclew.instrument(app)\n"
    )
    command = [CLEW, "run", *SERVERS["uvicorn"]]
    with ServerProcess(command, cwd=tmp_path, environment=otlp_sink.environment) as server:
        assert httpx.get(f"{server.url}/orders/1").status_code == 200
    spans = otlp_sink.wait(lambda s: s.spans, what="spans")
    assert [(span.name, span.resource["service.name"]) for span in spans] == [("GET /orders/{order_id}", "named")]
    assert otlp_sink.wait(lambda s: s.total("http.server.request.duration"), what="duration") == 1


@pytest.mark.parametrize("order", ["before", "after"])
def test_one_call_without_arguments_covers_what_is_made_from_then_on(otlp_sink: OtlpSink, tmp_path: Path, order: str):
    call = "import clew\nclew.instrument()\nclew.instrument()\n"
    imports = "import fastapi, httpx\n"
    (tmp_path / "shop.py").write_text((call + imports if order == "before" else imports + call) + SHOP)
    with ServerProcess(SERVERS["uvicorn"], cwd=tmp_path, environment=otlp_sink.environment) as server:
        assert httpx.get(f"{server.url}/orders/1").status_code == 200
    assert [span.name for span in otlp_sink.spans] == ["GET /orders/{order_id}"]


def test_an_app_of_no_framework_is_served_traced(otlp_sink: OtlpSink, tmp_path: Path):
    (tmp_path / "plain.py").write_text(
        """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["client"][0].encode()})
"""
    )
    command = [CLEW, "run", "uvicorn", "plain:app", "--port", "{port}"]
    with ServerProcess(command, cwd=tmp_path, environment=otlp_sink.environment) as server:
        assert httpx.get(f"{server.url}/any", headers={"x-forwarded-for": "203.0.113.7"}).text == "203.0.113.7"
        span = otlp_sink.wait_for_span("GET")
    # Beneath uvicorn's own middleware, which knows who asked the proxy
    assert (span.attributes["client.address"], span.kind) == ("203.0.113.7", "server")


def test_clients_are_picked_up_beneath_the_request(otlp_sink: OtlpSink, tmp_path: Path):
    (tmp_path / "caller.py").write_text(
        """
import httpx
from fastapi import FastAPI
app = FastAPI()

@app.get("/there")
async def there():
    return "there"

@app.get("/here/{port}")
async def here(port: int):
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{port}/there")).json()
"""
    )
    command = [CLEW, "run", "uvicorn", "caller:app", "--port", "{port}"]
    with ServerProcess(command, cwd=tmp_path, environment=otlp_sink.environment) as server:
        assert httpx.get(f"{server.url}/here/{server.port}").json() == "there"
        here, there = otlp_sink.wait_for_span("GET /here/{port}"), otlp_sink.wait_for_span("GET /there")
        out = otlp_sink.wait(lambda s: [span for span in s.spans if span.kind == "client"], what="client span")[0]
    assert (out.parent_id, there.parent_id) == (here.span_id, out.span_id)
    assert len({span.trace_id for span in (here, out, there)}) == 1


def test_a_script_that_only_logs_is_heard(otlp_sink: OtlpSink, tmp_path: Path):
    (tmp_path / "nightly.py").write_text(
        "import logging, sys\nlogging.getLogger('nightly').warning('%s', sys.argv[1:])\nsys.exit(3)\n"
    )
    done = run(otlp_sink, tmp_path, "python", "nightly.py", "--help", "--config", "x", "--", "-v")
    assert done.returncode == 3
    line = otlp_sink.wait_for_log("['--help', '--config', 'x', '--', '-v']")
    assert (line.resource["service.name"], line.severity) == ("nightly", "WARN")


def test_a_command_keeps_its_output_and_its_options(otlp_sink: OtlpSink, tmp_path: Path):
    done = run(otlp_sink, tmp_path, "uvicorn", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: uvicorn")
    done = run(otlp_sink, tmp_path, "--", "uvicorn", "--version")
    assert done.stdout.startswith("Running uvicorn")


@pytest.mark.parametrize(
    ("command", "more", "code", "says"),
    [
        pytest.param(["no-such-command"], {}, 127, "clew: no-such-command: no such command", id="not found"),
        pytest.param(["./text"], {}, 126, "clew: ./text: Exec format error", id="no program"),
        pytest.param([], {}, 2, "Missing argument 'COMMAND'", id="no command"),
        pytest.param(
            ["python", "-c", "print('started')"],
            {"OTEL_TRACES_SAMPLER_ARG": "2"},
            2,
            "clew: OTEL_TRACES_SAMPLER_ARG='2': input should be less than or equal to 1.",
            id="bad setting",
        ),
        pytest.param(
            ["python", "-c", "print('started')"],
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"},
            2,
            "clew: OTEL_EXPORTER_OTLP_ENDPOINT='localhost:4318': must be an http:// or https:// address",
            id="bad address",
        ),
    ],
)
def test_what_cannot_be_started_is_said_in_one_sentence(
    otlp_sink: OtlpSink, tmp_path: Path, command: list[str], more: dict[str, str], code: int, says: str
):
    text = tmp_path / "text"
    text.write_text("\x01 no program")
    text.chmod(0o755)
    done = run(otlp_sink, tmp_path, *command, **more)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 or (code == 2 and not command)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, None)])
def test_signals_reach_the_command_and_what_is_queued_arrives(
    otlp_sink: OtlpSink, tmp_path: Path, number: signal.Signals, code: int | None
):
    (tmp_path / "shop.py").write_text(SHOP)
    # Nothing leaves before the end
    environment = {
        **otlp_sink.environment,
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
        "OTEL_METRIC_EXPORT_INTERVAL": "600000",
    }
    with ServerProcess([CLEW, "run", *SERVERS["uvicorn"]], cwd=tmp_path, environment=environment) as server:
        for order in range(3):
            httpx.get(f"{server.url}/orders/{order}").raise_for_status()
        assert otlp_sink.spans == []
        assert server.stop(number) in ({code} if code is not None else {0, 130, -signal.SIGINT})
    assert len(otlp_sink.named("GET /orders/{order_id}")) == 3
    assert otlp_sink.total("http.server.request.duration") == 3


def test_another_sitecustomize_runs_as_if_it_were_alone(otlp_sink: OtlpSink, tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.theirs = __file__\n")
    code = "import sitecustomize; print(theirs == sitecustomize.__file__); import fastapi; print(fastapi.FastAPI.__call__._clew_serves)"
    done = run(otlp_sink, tmp_path, "python", "-c", code, PYTHONPATH=str(tmp_path))
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_a_library_that_cannot_be_instrumented_does_not_keep_the_app_from_starting(otlp_sink: OtlpSink, tmp_path: Path):
    # A library by the name of one that clew knows, with nothing in it
    (tmp_path / "httpx.py").write_text("answer = 42\n")
    done = run(otlp_sink, tmp_path, "python", "-c", "import httpx; print(httpx.answer)", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout.strip()) == (0, "42")
    assert "instrument httpx" in done.stderr


def test_a_python_without_clew_starts_all_the_same(otlp_sink: OtlpSink, tmp_path: Path):
    environment = environment_for(["python"], clew_environment(otlp_sink, tmp_path))
    # -S leaves site-packages out, so that clew is not found; the folder is still first on the path
    code = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]; import sitecustomize; print('started')"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "started")
    assert "starts without telemetry" in done.stderr


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("uvicorn shop.orders:app --port 80", "shop.orders"),
        ("uvicorn --factory --app-dir src shop:make", "shop"),
        ("uvicorn --log-config a:b/c shop:app.inner", "shop"),
        ("gunicorn -b 127.0.0.1:8000 -k uvicorn.workers.UvicornWorker shop:app", "shop"),
        ("gunicorn -b unix:/run/x.sock shop:make()", "shop"),
        ("python -m shop.worker --config x:y", "shop.worker"),
        ("python -m uvicorn shop:app", "shop"),
        ("python3.11 -X dev -W error -u jobs/nightly.py --at 3:00", "nightly"),
        ("python -c pass", "python"),
        ("python", "python"),
        ("/usr/bin/flask run", "flask"),
        ("faststream run orders:broker", "orders"),
    ],
)
def test_a_service_without_a_name_is_called_after_its_app(command: str, name: str):
    assert service_name_of(command.split()) == name


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({}, {"OTEL_SERVICE_NAME": "shop"}),
        ({"OTEL_SERVICE_NAME": "mine"}, {"OTEL_SERVICE_NAME": "mine"}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b,service.name=theirs"}, {"OTEL_SERVICE_NAME": None}),
        ({"PYTHONPATH": "/a::/b"}, {"PYTHONPATH": f"{STARTUP_FOLDER}:/a:/b"}),
        ({"PYTHONPATH": f"{STARTUP_FOLDER}:/a"}, {"PYTHONPATH": f"{STARTUP_FOLDER}:/a"}),
    ],
)
def test_the_environment_of_a_command(given: dict[str, str], changed: dict[str, Any]):
    made = environment_for(["uvicorn", "shop:app"], given)
    assert {name: made.get(name) for name in changed} == changed
