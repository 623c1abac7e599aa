"""What cannot work says why in one sentence, and what was accepted is kept."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from clew.console import queries
from clew.console.errors import ConsoleError, StoreUnavailableError
from clew.console.model import Batch, LogRecord, Resource, Scope
from clew.console.retention import RetentionLimits
from clew.console.schema import DATABASE_NAME
from clew.console.server import ConsoleServer
from clew.console.store import Store

NO_SIZE_LIMIT = RetentionLimits(size_bytes=None)
NOBODY = 65534


def environment(data_dir: Path, port: int) -> dict[str, str]:
    settings = {"CLEW_CONSOLE_DATA_DIR": str(data_dir), "CLEW_CONSOLE_PORT": str(port)}
    return {name: value for name, value in os.environ.items() if not name.startswith("CLEW_")} | settings


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], str]]]:
    """Start `python -m clew.console` on one data folder, as often as asked; give the process and its url."""
    started: list[subprocess.Popen[str]] = []

    def start() -> tuple[subprocess.Popen[str], str]:
        server = subprocess.Popen(
            [sys.executable, "-m", "clew.console"],
            env=environment(tmp_path / "console", 0),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(server)
        assert server.stdout is not None
        line = server.stdout.readline()
        assert "OTLP/HTTP and JSON at http://127.0.0.1:" in line, server.communicate(timeout=10)
        return server, line.split(" at ")[1].split(",")[0]

    yield start
    for server in started:
        if server.poll() is None:
            server.kill()
        server.communicate(timeout=10)


@pytest.mark.parametrize("round_number", range(3))
def test_after_kill_9_all_that_was_acknowledged_is_there(
    process: Any, otlp: Any, wait_until: Any, round_number: int
) -> None:
    server, url = process()
    acknowledged: set[int] = set()
    killed = threading.Event()

    def send_from(first: int) -> None:
        with httpx.Client(base_url=url, timeout=10) as client:
            for trace in range(first, first + 100_000):
                body = otlp.spans(*(otlp.span(trace, span) for span in range(1, 21))).SerializeToString()
                try:
                    answer = client.post("/v1/traces", content=body, headers=otlp.protobuf)
                except httpx.TransportError:
                    assert killed.is_set()
                    return
                assert answer.status_code == 200
                acknowledged.add(trace)

    with ThreadPoolExecutor(4) as pool:
        senders = [pool.submit(send_from, 1 + 100_000 * number) for number in range(4)]
        wait_until(lambda: len(acknowledged) > 50 + 20 * round_number)
        killed.set()
        server.send_signal(signal.SIGKILL)
        for sender in senders:
            sender.result(timeout=30)

    server, url = process()
    for trace in acknowledged:
        found = httpx.get(f"{url}/api/traces/{otlp.trace_id(trace)}").json()
        assert (found["span_count"], len(found["spans"])) == (20, 20)
    summary = httpx.get(f"{url}/api/summary").json()
    assert summary["spans"] == 20 * summary["traces"]  # no batch is there by half
    assert summary["traces"] <= len(acknowledged) + 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_everything_written(process: Any, otlp: Any, number: int) -> None:
    server, url = process()
    for trace in range(1, 21):
        body = otlp.spans(otlp.span(trace, 1)).SerializeToString()
        assert httpx.post(f"{url}/v1/traces", content=body, headers=otlp.protobuf).status_code == 200
    with httpx.Client(base_url=url) as idle:  # a connection that is kept alive does not hold it up
        idle.get("/api/summary")
        server.send_signal(number)
        _, errors = server.communicate(timeout=5)
    assert (server.returncode, errors) == (0, "")
    _, url = process()
    assert httpx.get(f"{url}/api/summary").json()["spans"] == 20


def test_a_full_disk_is_answered_with_503_and_heals(tmp_path: Path, otlp: Any) -> None:
    limits = RetentionLimits(size_bytes=None)
    with ConsoleServer(data_dir=tmp_path, port=0, retention=limits, max_bytes=400_000) as console:
        client = httpx.Client(base_url=console.url)

        def post(trace: int) -> httpx.Response:
            spans = (otlp.span(trace, span, attributes={"pad": "x" * 500}) for span in range(1, 21))
            return client.post("/v1/traces", content=otlp.spans(*spans).SerializeToString(), headers=otlp.protobuf)

        answers = [post(trace) for trace in range(1, 60)]
        accepted = sum(answer.status_code == 200 for answer in answers)
        refused = answers[-1]
        assert refused.status_code == 503
        assert b"the store cannot write: database or disk is full; send the data again later" in refused.content
        assert int(refused.headers["retry-after"]) > 0
        assert client.get("/api/healthz").status_code == 503
        summary = client.get("/api/summary").json()
        assert (summary["traces"], summary["spans"]) == (accepted, 20 * accepted)
        assert accepted > 3
        assert console.store.path.stat().st_size <= 400_000
        client.close()
    with ConsoleServer(data_dir=tmp_path, port=0, retention=limits, max_bytes=800_000) as console:
        client = httpx.Client(base_url=console.url)
        assert post(59).status_code == 200
        assert client.get("/api/healthz").status_code == 200
        assert client.get("/api/summary").json()["traces"] == accepted + 1
        client.close()


def test_a_locked_database_is_answered_with_503_and_heals(tmp_path: Path) -> None:
    batch = Batch(logs=(LogRecord(body="x", resource=Resource(), scope=Scope()),))
    with Store(tmp_path, busy_timeout_s=0.05) as store:
        store.add(batch).result(timeout=10)
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waiting = [store.add(batch) for _ in range(10)]
        for future in waiting:
            with pytest.raises(StoreUnavailableError, match="database is locked; send the data again later"):
                future.result(timeout=10)
        assert store.failure == "the store cannot write: database is locked"
        assert len(queries.logs(store)) == 1  # readers are not held up
        other.execute("ROLLBACK")
        other.close()
        store.add(batch).result(timeout=10)
        assert store.failure is None
        assert len(queries.logs(store)) == 2


def test_a_batch_that_cannot_be_stored_does_not_take_others_with_it(tmp_path: Path) -> None:
    good = Batch(logs=(LogRecord(body="good", resource=Resource(), scope=Scope()),))
    bad = Batch(logs=(LogRecord(body="bad", time_unix_nano=2**63, resource=Resource(), scope=Scope()),))
    with Store(tmp_path) as store:
        futures = [store.add(batch) for batch in (good, bad, good)]
        futures[0].result(timeout=10)
        futures[2].result(timeout=10)
        with pytest.raises(OverflowError):
            futures[1].result(timeout=10)
        store.add(good).result(timeout=10)
        assert [log.body for log in queries.logs(store)] == ["good"] * 3


def test_more_batches_than_may_wait_are_refused(tmp_path: Path) -> None:
    batch = Batch(logs=(LogRecord(body="x", resource=Resource(), scope=Scope()),))
    with Store(tmp_path, busy_timeout_s=0.3, max_pending_batches=3) as store:
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        def add_many() -> None:
            for _ in range(40):
                store.add(batch)

        with pytest.raises(StoreUnavailableError, match="3 batches are waiting to be written"):
            add_many()
        other.execute("ROLLBACK")
        other.close()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.close()
    store.close()
    with pytest.raises(StoreUnavailableError, match="the store is closed"):
        store.add(Batch())
    with pytest.raises(StoreUnavailableError, match="the store is closed"):
        queries.summary(store)


def test_closing_writes_what_is_waiting(tmp_path: Path) -> None:
    batch = Batch(logs=(LogRecord(body="x", resource=Resource(), scope=Scope()),))
    store = Store(tmp_path)
    futures = [store.add(batch) for _ in range(60)]
    store.close()
    assert all(future.done() and future.exception() is None for future in futures)
    with Store(tmp_path) as again:
        assert queries.summary(again).logs == 60


def test_a_query_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    logs = tuple(LogRecord(body="needle" * 50, resource=Resource(), scope=Scope()) for _ in range(20_000))
    with Store(tmp_path, query_timeout_s=0.001) as store:
        store.add(Batch(logs=logs)).result(timeout=60)
        with pytest.raises(StoreUnavailableError, match=r"took longer than 0.001 s: ask for a shorter time range"):
            queries.logs(store, text="nädel")


def test_a_port_in_use_is_named_with_the_mend(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = (
            f"port {port} on 127.0.0.1 is in use: stop the program that has it, "
            "or choose another with CLEW_CONSOLE_PORT or --port"
        )
        with pytest.raises(ConsoleError) as refused:
            ConsoleServer(data_dir=tmp_path, port=port).start()
        assert str(refused.value) == sentence
        result = subprocess.run(
            [sys.executable, "-m", "clew.console"],
            env=environment(tmp_path, port),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert (result.returncode, result.stdout, result.stderr) == (1, "", f"clew console: {sentence}\n")


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("127.0.0.1", 70_000, "port 70000 is not a port: give 0 to 65535 with CLEW_CONSOLE_PORT or --port"),
        ("no such host", 0, "host 'no such host' is not an address of this machine: give one, such as 127.0.0.1"),
    ],
)
def test_an_unusable_address_is_named(tmp_path: Path, host: str, port: int, sentence: str) -> None:
    with pytest.raises(ConsoleError) as refused:
        ConsoleServer(data_dir=tmp_path, host=host, port=port).start()
    assert sentence in str(refused.value)


def test_a_port_that_is_no_number_is_named(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "clew.console"],
        env=environment(tmp_path, 0) | {"CLEW_CONSOLE_PORT": "http"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert result.returncode == 1
    assert (
        result.stderr == "clew console: CLEW_CONSOLE_PORT='http' is not a port: give a whole number from 0 to 65535\n"
    )


def test_a_folder_that_may_not_be_written_is_named() -> None:
    """As another user when these tests run as root, whom no permission stops."""
    folder = Path(tempfile.mkdtemp(prefix="clew-read-only-", dir="/tmp"))
    folder.chmod(0o555)
    try:
        program = (
            "import os, sys\n"
            "from clew.console.errors import ConsoleError\n"
            "from clew.console.store import Store\n"
            f"os.getuid() or os.setuid({NOBODY})\n"
            "try:\n    Store(sys.argv[1])\n"
            "except ConsoleError as error:\n    sys.exit(str(error))\n"
        )

        def refused(data_dir: Path) -> str:
            command = [sys.executable, "-c", program, str(data_dir)]
            # Without the measuring of coverage, which nobody may write either
            variables = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
            result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, env=variables)
            assert result.returncode == 1
            return result.stderr

        database = folder / DATABASE_NAME
        assert refused(folder) == (
            f"the console's database {database} cannot be opened for writing: "
            f"[Errno 13] Permission denied: '{database}'; give a folder you may write to with CLEW_CONSOLE_DATA_DIR\n"
        )
        assert refused(folder / "below") == (
            f"the console's data folder {folder / 'below'} cannot be made: Permission denied; "
            "give another with CLEW_CONSOLE_DATA_DIR\n"
        )
    finally:
        shutil.rmtree(folder)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConsoleError, match=r"file cannot be made: File exists; give another with"):
        Store(tmp_path / "file")


def test_a_database_of_a_newer_version_is_named(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE_NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConsoleError, match=r"newer clew \(schema 99; this one reads up to 1\): upgrade clew, or"):
        ConsoleServer(data_dir=tmp_path, port=0).start()


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / DATABASE_NAME) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = (tmp_path / DATABASE_NAME).read_bytes()
    with pytest.raises(ConsoleError, match="is a database of another program: give another folder"):
        Store(tmp_path)
    assert (tmp_path / DATABASE_NAME).read_bytes() == before


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(ConsoleError, match="file is not a database; move it aside"):
        Store(tmp_path)


def test_telemetry_is_for_its_owner_only(tmp_path: Path) -> None:
    with Store(tmp_path / "new") as store:
        store.add(Batch()).result(timeout=10)
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
        for file in (tmp_path / "new").iterdir():
            assert file.stat().st_mode & 0o077 == 0


def test_a_limit_that_could_not_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_bytes=1000 is not above retention.size_bytes=2000"):
        Store(tmp_path, max_bytes=1000, retention=RetentionLimits(size_bytes=2000))
    with pytest.raises(ValueError, match="age_s=0 is not usable"):
        RetentionLimits(age_s=0)
