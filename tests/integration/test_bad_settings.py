from __future__ import annotations

import os
import subprocess
import sys

import pytest

APP = """
import clew
log = clew.get_logger("app")
with clew.span("work"):
    log.info("still here")
"""


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", APP],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_BSP_SCHEDULE_DELAY", "often"),
        ("CLEW_LOG_LEVEL", "loud"),
        ("CLEW_MAX_SERIES", "-5"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "no-equals-sign"),
    ],
)
def test_a_setting_that_can_not_be_read_is_said_once_and_the_app_runs_on(otlp_sink, spool_dir, name, value):
    done = run(**{**otlp_sink.environment, name: value})
    assert done.returncode == 0
    said = [line for line in done.stderr.splitlines() if name in line]
    assert len(said) == 1
    assert "The default is used." in said[0]
    assert "Traceback" not in done.stderr
    assert len(otlp_sink.named("work")) == 1
    assert "still here" in done.stderr


@pytest.mark.parametrize(
    "endpoint", ["localhost:4318", "ftp://collector", "http://", "http://127.0.0.1:99999", "http://[::1"]
)
def test_an_endpoint_that_is_no_address_is_said_once_and_nothing_is_lost(spool_dir, endpoint):
    done = run(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_BSP_SCHEDULE_DELAY="50")
    assert done.returncode == 0
    said = [line for line in done.stderr.splitlines() if "OTEL_EXPORTER_OTLP_ENDPOINT" in line]
    assert len(said) == 1
    assert "still here" in done.stderr
    assert "Traceback" not in done.stderr


def test_in_strict_mode_a_setting_that_can_not_be_read_raises(spool_dir):
    done = run(CLEW_STRICT="1", CLEW_LOG_LEVEL="loud")
    assert done.returncode == 1
    assert "CLEW_LOG_LEVEL='loud': input should be" in done.stderr
