from __future__ import annotations

import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate

import pytest
from sqlalchemy import text

from clew.history.database import Database
from clew.history.migrations import HEAD
from clew.settings import Settings
from tests.integration.grpc_sink import GrpcSink
from tests.integration.silent_server import SilentServer
from tests.otlp_sink import OtlpSink

# As the installed command does, without the other commands' imports
DOCTOR = "import typer\nfrom clew.cli import doctor\napp = typer.Typer()\napp.callback()(lambda: None)\ndoctor.register(app)\napp()"


def examine(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DOCTOR, "doctor", "--timeout-s", "3"],
        env={**os.environ, "COLUMNS": "300", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_all_is_well_when_each_signal_makes_its_round_trip(otlp_sink, spool_dir):
    done = examine(**otlp_sink.environment, OTEL_SERVICE_NAME="orders")
    assert done.returncode == 0, done.stdout
    assert "All is well." in done.stdout
    assert [span.name for span in otlp_sink.spans] == ["clew.doctor"]
    assert [record.body for record in otlp_sink.logs] == ["clew.doctor"]
    assert [point.name for point in otlp_sink.metrics] == ["clew.doctor"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("environment", "said", "mend"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}, "Connection refused", "start a Collector"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost"}, "OTEL_EXPORTER_OTLP_ENDPOINT='localhost'", "what is allowed"),
        ({"OTEL_TRACES_SAMPLER": "[bold]s[/bold]"}, "OTEL_TRACES_SAMPLER='[bold]s[/bold]'", "what is allowed"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "CLEW_SPOOL_DIR": "/proc/nowhere"},
            "/proc",
            "CLEW_SPOOL_DIR",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_mend(environment, said, mend, spool_dir):
    done = examine(**environment)
    assert done.returncode == 1
    assert said in done.stdout
    assert mend in done.stdout
    assert all(line == line.rstrip() for line in done.stdout.splitlines())
    assert "Traceback" not in done.stderr


def test_a_wrong_token_is_told_from_a_missing_endpoint(spool_dir):
    with OtlpSink(token="right") as sink:
        done = examine(**sink.environment, OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20wrong")
    assert done.returncode == 1
    assert "OTEL_EXPORTER_OTLP_HEADERS" in done.stdout


def test_a_silent_endpoint_does_not_hold_the_doctor_up(spool_dir):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = examine(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert done.returncode == 1
    assert "no answer in time" in done.stdout


def test_what_waits_on_disk_is_told_with_its_age(spool_dir):
    elsewhere = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    here = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    for environment in (here, elsewhere):
        emitting = "import clew\nfor _ in range(50):\n  with clew.span('work'): pass"
        subprocess.run(
            [sys.executable, "-c", emitting], env={**os.environ, **environment}, check=True, capture_output=True
        )
    told = examine(**here).stdout
    assert re.search(
        r"note +spool +\d+\.\d kB of 268\.4 MB wait in .*; the oldest for \d+ seconds, and after 2 days", told
    )
    assert "for other addresses wait in" in told
    full = examine(**here, CLEW_SPOOL_MAX_BYTES="1000")
    assert re.search(r"wrong +spool ", full.stdout)
    assert full.returncode == 1


def test_grpc_is_probed_as_it_is_used(spool_dir):
    with GrpcSink() as sink:
        done = examine(**sink.environment)
        assert done.returncode == 0, done.stdout
        assert [span.name for span in sink.spans] == ["clew.doctor"]
    gone = examine(OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    assert "UNAVAILABLE" in gone.stdout
    assert "start a Collector" in gone.stdout


def test_a_signal_that_is_off_is_a_note(otlp_sink, spool_dir):
    done = examine(**otlp_sink.environment, OTEL_LOGS_EXPORTER="none")
    assert done.returncode == 0
    assert "off, as the environment says" in done.stdout


@contextmanager
def endpoint_with_clock(date: Callable[[], str | None]) -> Iterator[str]:
    """An endpoint that takes everything, and says that it is another time."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response_only(200)
            if (said := date()) is not None:
                self.send_header("Date", said)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_HEAD = answer  # noqa: N815 - as the server calls them

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("late_s", "verdict", "said"),
    [(0, "ok", "within 2 s"), (-3600, "wrong", " s ahead of"), (3600, "wrong", " s behind"), (10, "note", "behind")],
)
def test_the_clock_is_compared_with_the_endpoints(late_s, verdict, said, spool_dir):
    with endpoint_with_clock(lambda: formatdate(time.time() + late_s, usegmt=True)) as url:
        done = examine(OTEL_EXPORTER_OTLP_ENDPOINT=url)
    line = next(line for line in done.stdout.splitlines() if " clock " in line)
    assert line.startswith(verdict)
    assert said in line
    assert done.returncode == (1 if verdict == "wrong" else 0)
    assert ("mend: keep both clocks by NTP" in done.stdout) == (verdict != "ok")


@pytest.mark.parametrize("date", [None, "yesterday", "\x00"])
def test_an_endpoint_without_a_date_is_no_fault(date, spool_dir):
    with endpoint_with_clock(lambda: date) as url:
        done = examine(OTEL_EXPORTER_OTLP_ENDPOINT=url)
    assert done.returncode == 0, done.stdout


def test_a_database_is_looked_at_and_left_as_it_was(otlp_sink, spool_dir, database_url):
    before = examine(**otlp_sink.environment)
    assert before.returncode == 0, before.stdout
    known = Database(Settings().history_url())
    known.ensure(auto_upgrade=True)
    done = examine(**otlp_sink.environment)
    assert done.returncode == 0, done.stdout
    assert re.search(r"ok +database +.* answers in \d+ ms", done.stdout)
    assert f"at revision {HEAD}" in done.stdout
    assert "it takes rows" in done.stdout
    assert ("that of the database" in done.stdout) == database_url.startswith("postgresql")
    with known.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM health_checks")) == 0


def test_tables_that_are_behind_in_postgresql_are_told_with_the_command(otlp_sink, spool_dir, postgresql_url):
    done = examine(**otlp_sink.environment, CLEW_DATABASE_URL=postgresql_url)
    assert done.returncode == 1
    assert "not there yet" in done.stdout
    assert "clew db upgrade" in done.stdout


def test_a_database_that_is_away_or_silent_or_not_to_be_written_is_told_without_secrets(otlp_sink, spool_dir, tmp_path):
    away = examine(
        **otlp_sink.environment, CLEW_DATABASE_URL=f"postgresql://app:hunter2@127.0.0.1:{free_port()}/orders"
    )
    assert away.returncode == 1
    assert "it can't be read" in away.stdout
    assert "hunter2" not in away.stdout + away.stderr
    with SilentServer() as silent:
        done = examine(
            **otlp_sink.environment, CLEW_DATABASE_URL=f"postgresql://app:hunter2@127.0.0.1:{silent.port}/orders"
        )
    assert done.returncode == 1
    assert "hunter2" not in done.stdout + done.stderr
    none = examine(**otlp_sink.environment, CLEW_DATABASE_URL="sqlite:////proc/nowhere/history.db")
    assert none.returncode == 0


def test_what_is_off_is_a_note(otlp_sink, spool_dir):
    assert "the history is off" in examine(**otlp_sink.environment, CLEW_HISTORY="false").stdout
