from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest

from tests.integration.grpc_sink import GrpcSink
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
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "OTEL_TRACES_SAMPLER='sometimes'", "what is allowed"),
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
