from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = [
    "fastapi",
    "starlette",
    "uvicorn",
    "apscheduler",
    "faststream",
    "redis",
    "sqlalchemy",
    "httpx",
    "openai",
    "grpc",
    "requests",
    "genai_prices",
]


@pytest.mark.parametrize("configured", [False, True])
def test_importing_clew_pulls_in_no_framework(configured):
    code = "import clew, sys; "
    if configured:
        code += "clew.configure(service_name='x'); clew.get_logger().info('x'); "
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_named_with_the_line_that_installs_it():
    code = """
import sys
sys.modules["fastapi"] = sys.modules["starlette"] = None
import clew
class FastAPI:
    __module__ = "fastapi.applications"
    async def __call__(self, scope, receive, send): ...
try:
    from clew.instrumentation.registry import DropIn, load
    load(DropIn(module="sqlalchemy", libraries=("sqlalchemy",))) if sys.modules.update(sqlalchemy=None) is None else None
except clew.ClewError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install 'clew[sqlalchemy]'" in done.stdout


def test_an_object_that_clew_does_not_know_is_reported_and_returned():
    code = "import clew\nthing = object()\nassert clew.instrument(thing) is thing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "is nothing clew knows" in done.stderr


@pytest.mark.parametrize(("history", "imported"), [("true", True), ("false", False)])
def test_what_writes_records_is_imported_on_the_way_up_and_only_where_there_is_a_history(
    history, imported, monkeypatch
):
    monkeypatch.setenv("CLEW_HISTORY", history)
    code = (
        "import clew, sys\nfrom faststream.redis import RedisBroker\nclew.instrument(RedisBroker())\n"
        "print('clew.history.recorder' in sys.modules, 'sqlalchemy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [str(imported)] * 2


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_a_drop_in_of_two_libraries_is_switched_on_by_either(library):
    code = f"""
import clew, http.server, threading
clew.instrument()
import {library}
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.headers.get("traceparent", "").encode())
server = http.server.HTTPServer(("127.0.0.1", 0), Echo)
threading.Thread(target=server.serve_forever, daemon=True).start()
with clew.span("asking"):
    answer = {library}.get(f"http://127.0.0.1:{{server.server_port}}/", trust_env=False)
    print(clew.trace_id() in answer.text)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "True"
    assert "instrument httpx" not in done.stderr
