"""What the documentation shows works as it stands there."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.otlp_sink import OtlpSink

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def blocks(page: Path, language: str) -> list[str]:
    return [code for fence, code in FENCE.findall(page.read_text(encoding="utf-8")) if fence.strip() == language]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_between_pages_lead_somewhere(page):
    missing = [
        target for target in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / target).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_in_the_docs_is_python(page):
    for code in blocks(page, "python") + blocks(page, "python run"):
        compile(code, str(page), "exec")


RUNNABLE = [page for page in PAGES if blocks(page, "python run")]


@pytest.mark.parametrize("page", RUNNABLE, ids=[str(page.relative_to(ROOT)) for page in RUNNABLE])
def test_examples_that_stand_alone_run(page, otlp_sink, spool_dir, tmp_path):
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page, "python run")))
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **otlp_sink.environment, "CLEW_STRICT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_testing_example_passes(tmp_path):
    (code,) = blocks(ROOT / "docs/how-to/testing.md", "python")
    (tmp_path / "test_example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(folder: Path, sink: OtlpSink, port: int) -> subprocess.Popen[bytes]:
    app = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)],
        cwd=folder,
        env={**os.environ, **sink.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            httpx.get(f"http://127.0.0.1:{port}/docs", timeout=1)
        except httpx.HTTPError:
            assert app.poll() is None, "the example ended at its start"
            time.sleep(0.05)
        else:
            return app
    app.kill()
    raise AssertionError("the example did not answer within 30 s")


@pytest.mark.parametrize(
    ("page", "path", "spans", "counter"),
    [
        ("README.md", "/orders/A-17?channel=shop", {"POST /orders/{order_id}", "price"}, "orders.placed"),
        ("docs/tutorial/first-trace.md", "/bread/rye", {"POST /bread/{kind}", "knead", "bake"}, "bread.baked"),
    ],
)
def test_the_example_works_when_pasted(page, path, spans, counter, otlp_sink, spool_dir, tmp_path):
    code = next(code for code in blocks(ROOT / page, "python") if code.startswith("# app.py"))
    assert len(code.splitlines()) <= 20
    (tmp_path / "app.py").write_text(code)
    port = free_port()
    app = serve(tmp_path, otlp_sink, port)
    try:
        answer = httpx.post(f"http://127.0.0.1:{port}{path}", headers={"x-correlation-id": "breakfast-1"})
        assert answer.status_code == 200
        assert answer.headers["x-correlation-id"] == "breakfast-1"
        trace_id = answer.json()["trace"]
        otlp_sink.wait(
            lambda sink: {span.name for span in sink.spans if span.trace_id == trace_id} >= spans,
            what="the whole trace",
        )
        otlp_sink.wait(lambda sink: sink.total(counter) == 1, what=counter)
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert f"{counter.replace('.', '_')}_total" in metrics
        events = [record.body for record in otlp_sink.logs if record.trace_id == trace_id]
        assert events[0] == "request_in"
        assert events[-1] == "request_out"
    finally:
        app.terminate()
        app.wait(30)


def test_the_reference_says_what_the_code_says():
    done = subprocess.run(
        [sys.executable, "tools/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
