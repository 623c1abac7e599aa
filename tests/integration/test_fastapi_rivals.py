"""Others that trace the same requests: FastAPI's own telemetry, and OpenTelemetry's instrumentation of FastAPI."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from tests.integration.library_versions import folder_with
from tests.integration.server_process import ServerProcess, uvicorn
from tests.otlp_sink import OtlpSink

HERE = Path(__file__).parent

RIVAL_APP = """
import clew
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

app = FastAPI()
app.add_api_route("/items/{item_id}", lambda item_id: item_id)
clew.configure()
FastAPIInstrumentor.instrument_app(app)
clew.instrument(app)
"""


@pytest.mark.parametrize(("instrumented", "scope"), [("0", "fastapi"), ("1", "clew")])
def test_fastapi_traces_by_itself_until_clew_does(otlp_sink: OtlpSink, tmp_path: Path, instrumented: str, scope: str):
    environment = {**otlp_sink.environment, "PYTHONPATH": str(HERE), "EDGES_INSTRUMENT": instrumented}
    with ServerProcess(uvicorn("http_edges_app:app"), cwd=tmp_path, environment=environment) as server:
        for number in range(5):
            assert httpx.get(f"{server.url}/items/{number}").status_code == 200
    spans = otlp_sink.wait_for_all(lambda s: [span for span in s.spans if span.kind == "server"], 5, what="5 spans")
    assert [span.scope for span in spans] == [scope] * 5
    points = {point.scope for point in otlp_sink.metrics if point.name == "http.server.request.duration"}
    assert points == {scope}
    # FastAPI's inner spans go with its outer one
    assert any(span.scope == "fastapi" for span in otlp_sink.spans) is (scope == "fastapi")


def test_a_second_instrumentation_of_the_app_is_named_once(otlp_sink: OtlpSink, tmp_path: Path):
    version = "0.66b1"
    names = ("opentelemetry-instrumentation-fastapi", "opentelemetry-instrumentation-asgi")
    libraries = folder_with(*(f"{name}=={version}" for name in names), "asgiref==3.8.1")
    # The installed opentelemetry.instrumentation is a folder of several distributions, which must be seen together
    (tmp_path / "rival_app.py").write_text(
        "import opentelemetry.instrumentation as package\n"
        f"package.__path__.append({str(libraries / 'opentelemetry' / 'instrumentation')!r})\n" + RIVAL_APP
    )
    environment = {**otlp_sink.environment, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(libraries)])}
    with ServerProcess(uvicorn("rival_app:app"), cwd=tmp_path, environment=environment) as server:
        assert httpx.get(f"{server.url}/items/1").status_code == 200
        assert httpx.get(f"{server.url}/items/2").status_code == 200
        said = server.said
    assert said.count("opentelemetry-instrumentation-asgi is in this app's middleware as well") == 1
    scopes = {span.scope for span in otlp_sink.wait_for_all(lambda s: s.spans, 4, what="spans of both")}
    assert scopes >= {"clew", "opentelemetry.instrumentation.asgi"} or len(scopes) > 1
