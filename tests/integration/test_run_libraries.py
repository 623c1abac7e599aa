"""``clew run`` picks up the libraries of a service that knows nothing of clew, SQLAlchemy 2.0 and 2.1 among them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.library_versions import folder_with
from tests.integration.test_sqlalchemy_statements import OTHER_VERSION
from tests.otlp_sink import OtlpSink

SERVICE = """
import sys
import httpx, redis, sqlalchemy
from fastapi import FastAPI
from fastapi.testclient import TestClient

engine = sqlalchemy.create_engine("sqlite://")
client = redis.Redis.from_url(sys.argv[1])
app = FastAPI()

@app.get("/work")
def work():
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
    client.set("key", "value")
    httpx.get(sys.argv[2] + "/nothing-here")
    return {"sqlalchemy": sqlalchemy.__version__}

with TestClient(app) as test_client:
    print(test_client.get("/work").json()["sqlalchemy"])
"""


@pytest.mark.parametrize("other", [False, True], ids=["the installed SQLAlchemy", f"SQLAlchemy {OTHER_VERSION}"])
def test_libraries_are_picked_up_without_code(
    otlp_sink: OtlpSink, valkey_url: str, tmp_path: Path, other: bool
) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    environment = {**os.environ, **otlp_sink.environment, "OTEL_SERVICE_NAME": "untouched"}
    if other:
        environment["PYTHONPATH"] = str(folder_with(f"sqlalchemy=={OTHER_VERSION}"))
    clew = str(Path(sys.executable).with_name("clew"))
    done = subprocess.run(
        [clew, "run", sys.executable, str(tmp_path / "service.py"), valkey_url, otlp_sink.url],
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if other:
        assert done.stdout.strip() == OTHER_VERSION
    request = otlp_sink.wait_for_span("GET /work")
    trace = [span for span in otlp_sink.spans if span.trace_id == request.trace_id]
    children = {span.name for span in trace if span.parent_id}
    assert {"SELECT", "SET", "GET"} <= children
    assert {span.resource["service.name"] for span in trace} == {"untouched"}
