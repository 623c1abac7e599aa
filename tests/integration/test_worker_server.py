"""The small server of processes that have none, in real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import clew
from clew.diagnostics import ClewError
from clew.http.worker import MAX_CONNECTIONS, WorkerServer
from tests.integration.server_process import ROOT, ServerProcess
from tests.integration.waiting import eventually

WORKER = str(Path(__file__).with_name("worker_process.py"))


def worker(kind: str, tmp_path: Path, **environment: str) -> ServerProcess:
    command = [sys.executable, WORKER, kind, str(tmp_path / "end"), "{port}"]
    given = {
        "PYTHONPATH": str(ROOT),
        "OTEL_SDK_DISABLED": "true",
        "CLEW_DATABASE_URL": f"sqlite:///{tmp_path / 'history.db'}",
        **environment,
    }
    return ServerProcess(command, cwd=tmp_path, environment=given)


def ready(server: ServerProcess) -> dict[str, object]:
    found: dict[str, object] = httpx.get(f"{server.url}/readyz", timeout=20).json()
    return found


def ask_to_end(server: ServerProcess) -> None:
    """Send SIGTERM once, while somebody asks without a pause."""
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            httpx.get(f"{server.url}/health", timeout=20)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        server.process.terminate()
        eventually(lambda: ready(server)["reasons"] == ["it is shutting down"], "it is noticed")
    finally:
        over.set()
        asking.join()


def test_a_process_that_was_asked_to_end_is_not_ready_any_more_while_it_ends(tmp_path):
    with worker("plain", tmp_path) as server:
        assert ready(server)["status"] == "ready"
        ask_to_end(server)
        assert ready(server)["reasons"] == ["it is shutting down"]
        assert httpx.get(f"{server.url}/livez", timeout=20).status_code == 200
        assert server.process.poll() is None
        (tmp_path / "end").touch()
        assert server.process.wait(20) == 0


def test_without_a_handler_of_its_own_a_process_ends_as_it_did(tmp_path):
    with worker("default", tmp_path) as server:
        assert ready(server)["status"] == "ready"

        def has_ended() -> bool:
            server.process.terminate()
            return server.process.poll() is not None

        eventually(has_ended, "it ends")
        assert server.process.returncode == -15


def test_an_asyncio_worker_starts_runs_and_stops(tmp_path):
    with worker("asyncio", tmp_path) as server:
        assert ready(server)["reasons"] == ["its start-up is under way"]
        assert httpx.get(f"{server.url}/livez", timeout=20).status_code == 200
        (tmp_path / "end-started").touch()
        eventually(lambda: ready(server)["status"] == "ready", "its start ends")
        checks = httpx.get(f"{server.url}/health", timeout=20).json()["checks"]
        assert {"name": "coroutine", "status": "ok", "critical": True} in checks
        ask_to_end(server)
        (tmp_path / "end").touch()
        assert server.process.wait(20) == 0
        assert "wait for the test" in server.said


def test_an_event_loop_that_is_blocked_is_not_alive(tmp_path):
    with worker("blocked", tmp_path) as server:

        def loop_is_dead() -> bool:
            return httpx.get(f"{server.url}/livez", timeout=20).status_code == 503

        eventually(loop_is_dead, "it is noticed")
        assert httpx.get(f"{server.url}/health", timeout=20).json()["status"] == "degraded"
        # A signal's handler would wait for the main thread, as everything does here
        server.kill()


def test_neither_the_server_nor_a_check_that_hangs_keeps_a_process_alive(tmp_path):
    command = [sys.executable, WORKER, "hanging", str(tmp_path / "end"), "0"]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OTEL_SDK_DISABLED": "true"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_forked_child_lets_go_of_the_port_and_has_checks_of_its_own(tmp_path):
    with worker("forking", tmp_path) as server:
        server.process.wait(20)
        (tmp_path / "end").touch()
        eventually(lambda: "child" in server.said, "the child answers")
        assert "child ok" in server.said or "child degraded" in server.said


@pytest.fixture
def server():
    made = clew.serve_worker(port=0)
    assert made is not None
    with made:
        yield made


def test_metrics_and_jobs_are_there_and_the_rest_says_what_is(server):
    clew.counter("worker.things").add(1)
    metrics = httpx.get(f"{server.url}/metrics")
    assert "worker_things_total" in metrics.text
    assert metrics.headers["content-type"].startswith("text/plain; version=")
    with clew.job("report", user_id="7"):
        going_on = next(run for run in httpx.get(f"{server.url}/jobs").json()["running"] if run["job"] == "report")
        assert (going_on["job"], going_on["status"], going_on["finished_at"]) == ("report", "running", None)

    def has_ended() -> bool:
        latest = httpx.get(f"{server.url}/jobs").json()["latest"]
        return ("report", "completed") in [(run["job"], run["status"]) for run in latest]

    eventually(has_ended, "the run is among the latest")
    nothing = httpx.get(f"{server.url}/nothing")
    assert nothing.status_code == 404
    assert "/metrics" in nothing.json()["detail"]
    assert httpx.head(f"{server.url}/health").content == b""
    refused = httpx.post(f"{server.url}/health", content=b"x")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("route", ["/status/detailed", "/scheduler", "/jobs"])
def test_details_are_for_this_machine(server, route):
    assert httpx.get(f"{server.url}{route}").status_code == 200
    for headers in ({"x-forwarded-for": "192.0.2.1"}, {"host": "evil.example"}):
        assert httpx.get(f"{server.url}{route}", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x00\xff\xfe\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_request_harms_nobody(server, sent):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := client.recv(65_536):
            answer += chunk
    assert b" 200 " not in answer.split(b"\r\n")[0]
    assert b"Traceback" not in answer
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_who_says_nothing_is_cut_off_and_too_many_are_not_let_in(server):
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(MAX_CONNECTIONS + 5)]
    try:
        # Whoever comes while there are too many is turned away at once; the others after a while
        for client in silent:
            assert client.recv(1_000) == b""
    finally:
        for client in silent:
            client.close()
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_many_ask_at_once(server):
    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(lambda _: httpx.get(f"{server.url}/healthz", timeout=20).status_code, range(100)))
    assert set(codes) == {200}
    eventually(
        lambda: not [one for one in threading.enumerate() if one.name == "clew-worker-answer"], "their threads end"
    )


@pytest.mark.parametrize(
    ("port", "host"), [(-1, "127.0.0.1"), (65_536, "127.0.0.1"), ("x", "127.0.0.1"), (0, "192.0.2.1"), (0, "no such")]
)
def test_a_bad_port_is_one_sentence_and_the_worker_works(port, host, caplog):
    assert clew.serve_worker(port=port, host=host) is None
    with pytest.raises(ClewError, match="can't listen on"):
        strictly(port, host)


def strictly(port: int, host: str) -> None:
    from clew import diagnostics

    diagnostics.set_strict(strict=True)
    try:
        clew.serve_worker(port=port, host=host)
    finally:
        diagnostics.set_strict(strict=False)


def test_a_port_that_is_taken_is_said(server, capfd):
    from clew import diagnostics

    diagnostics.forget()
    assert clew.serve_worker(port=server.port) is None
    assert "Address already in use" in capfd.readouterr().err


def test_it_listens_on_ipv6():
    with WorkerServer(host="::1", port=0) as server:
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        server.stop()
        server.stop()
