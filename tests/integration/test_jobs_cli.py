"""``clew jobs`` reads the history of other processes, for people and for programs."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from typer.testing import CliRunner, Result

from clew.cli import jobs as command
from clew.cli import log_lines
from clew.cli.app import app
from clew.console.server import ConsoleServer
from tests.integration.kept_runs import NOW, keep, run_row

command.register(app)


def clew(*arguments: str, width: int = 80) -> Result:
    result: Result = CliRunner(env={"COLUMNS": str(width)}).invoke(app, ["jobs", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def history(database_url: str) -> list[dict[str, Any]]:
    return keep(
        run_row("cleanup", ago_s=7200, took_s=0.0352),
        run_row("cleanup", "failed", ago_s=600, took_s=75, error_type="OSError", error_message="disk is full\nof [red]logs[/red]"),
        run_row("ärger 物語", "running", ago_s=5, progress=0.4),
        run_row("digest", "missed", ago_s=86_400 * 3, took_s=None),
    )  # fmt: skip


def test_jobs_are_listed_with_their_last_run(history):
    done = clew("list")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["job", "status", "last", "run", "next", "run", "runs", "ok", "p95"]
    assert [line.split()[0] for line in lines[1:]] == ["cleanup", "digest", "ärger"]
    assert "failed" in lines[1]
    assert re.search(r"\d+ min ago", lines[1])
    assert "50.0 %" in lines[1]
    assert "running" in lines[3]


def test_runs_are_listed_newest_first(history):
    done = clew("runs")
    assert (done.exit_code, done.stderr) == (0, "")
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["id", "job", "status", "started", "took", "error"]
    assert [line.split()[0] for line in lines] == [history[number]["id"][-8:] for number in (2, 1, 0, 3)]
    assert "40.0 %" in lines[0]
    assert "1 min 15 s" in lines[1]
    assert "OSError: disk is full" in lines[1]
    assert "35.2 ms" in lines[2]
    page = clew("runs", "-n", "1")
    assert f"--after {history[2]['id']}" in page.stderr
    older = clew("runs", "-n", "1", "--after", history[2]["id"])
    assert older.stdout.splitlines()[1].split()[0] == history[1]["id"][-8:]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_longer_than_the_terminal_is_wide(database_url, width):
    keep(
        run_row("a job whose name is as long as the day " * 6, "failed", error_message="x" * 5000, user_id="u" * 255),
        run_row("物語" * 60, "failed", error_type="値" * 100),
    )
    for arguments in (["list"], ["runs"], ["stats"]):
        done = clew(*arguments, width=width)
        assert done.exit_code == 0
        lines = done.stdout.splitlines()
        assert len(lines) in (3, 4)
        for line in lines:
            assert sum(2 if ord(letter) >= 0x2E80 else 1 for letter in line) <= width, (arguments, line)
            assert line == line.rstrip()


def test_what_would_steer_a_terminal_is_shown_as_it_is_written(database_url):
    (kept,) = keep(
        run_row(
            "\x1b[31mred\x07",
            "failed",
            error_message="\x1b]0;title\x07[bold]not bold[/bold]\r\n:smile:",
            traceback="Traceback\n  \x1b[2J gone",
            result={"\x1b[0m": "\u202e"},
        )
    )
    for arguments in (["list"], ["runs"], ["stats"], ["show", kept["id"], "--no-logs"]):
        done = clew(*arguments, width=160)
        assert done.exit_code == 0
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(done.output), arguments
    assert "[bold]not bold[/bold] :smile:" in clew("runs", width=160).stdout


def test_the_table_of_statistics_ends_with_all_jobs(history):
    done = clew("stats")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].split()[:4] == ["all", "jobs", "2", "1"]
    assert clew("stats", "cleanup", width=120).stdout.splitlines()[1].split()[:3] == ["cleanup", "2", "1"]
    assert "10 min ago" not in clew("stats", "--hours", "0.1").stdout


def test_json_is_all_there_is_on_standard_output(history):
    listed = json.loads(clew("list", "--json").stdout)
    assert [job["job"] for job in listed["jobs"]] == ["cleanup", "digest", "ärger 物語"]
    assert listed["jobs"][0]["schedules"] == []
    runs = clew("runs", "--json", "--limit", "2")
    assert runs.stdout.isascii()
    page = json.loads(runs.stdout)
    assert [run["id"] for run in page["runs"]] == [history[2]["id"], history[1]["id"]]
    assert page["next"] == history[1]["id"]
    assert json.loads(clew("stats", "--json").stdout)["overall"]["failed"] == 1
    shown = json.loads(clew("show", history[1]["id"], "--json", "--no-logs").stdout)
    assert shown["error_message"] == history[1]["error_message"]
    assert shown["logs"] is None


def test_a_run_is_shown_by_a_part_of_its_id(history):
    wanted = history[1]
    for part in (wanted["id"], wanted["id"][-8:], wanted["id"][-6:].upper()):
        done = clew("show", part, "--no-logs", width=120)
        assert done.exit_code == 0, done.stderr
        for expected in (
            wanted["id"],
            wanted["trace_id"],
            wanted["correlation_id"],
            "1 min 15 s",
            " min ago)",
            "disk is full of [red]logs[/red]",
        ):
            assert expected in done.stdout


def test_a_run_that_is_not_meant_clearly_is_not_shown(history):
    for part, code, said in (
        ("f" * 32, 1, "there is no run"),
        ("abc", 1, "4 digits at least"),
        ("nonsense", 1, "there is no run"),
        ("\x1b[2J", 1, "there is no run"),
        (history[0]["id"][:4], 2, "give more digits"),
    ):
        done = clew("show", part, "--no-logs")
        assert (done.exit_code, done.stdout) == (code, ""), part
        assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs", "--status", "lots"], "--status: input should be 'scheduled', 'running'"),
        (["runs", "--limit", "0"], "--limit: input should be greater than or equal to 1"),
        (["runs", "--from", "yesterday"], "--from: input should be a valid datetime"),
        (["runs", "--from", "2026-01-31T12:00:00"], "--from: input should have timezone info"),
        (["runs", "--hours", "1", "--to", "2026-01-31T12:00:00Z"], "hours can't be given together with from or to"),
        (["runs", "--trace-id", "x"], "--trace-id: "),
        (["runs", "--after", "x"], "--after: "),
        (["stats", "--hours", "-1"], "--hours: input should be greater than 0"),
        (["list", "x" * 300], "JOB: string should have at most 255 characters"),
        (["runs", "--limit", "many"], "--limit"),
        (["runs", "--nonsense"], "--nonsense"),
    ],
)
def test_what_can_not_be_used_is_said(tmp_path, monkeypatch, arguments, said):
    monkeypatch.setenv("CLEW_DATABASE_URL", f"sqlite:///{tmp_path / 'history.db'}")
    done = clew(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_history_that_is_not_there_is_not_made(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "history.db"
    monkeypatch.setenv("CLEW_DATABASE_URL", f"sqlite:///{path}")
    for arguments, code in (
        (["list"], 0),
        (["runs"], 0),
        (["stats"], 0),
        (["show", "0" * 32], 1),
        (["run", "x"], 1),
        (["stats", "x"], 1),
    ):
        done = clew(*arguments)
        assert (done.exit_code, done.stdout) == (code, ""), arguments
        assert "There is no history yet" in done.stderr
        assert str(path) in done.stderr
    assert json.loads(clew("runs", "--json").stdout)["runs"] == []
    assert not path.parent.exists()


def test_an_empty_history_says_so(database_url):
    keep()
    assert "No jobs are known." in clew("list").stderr
    assert "No such runs are known." in clew("runs").stderr
    unknown = clew("stats", "nope")
    assert (unknown.exit_code, "No job 'nope' is known." in unknown.stderr) == (1, True)


def test_a_database_that_is_away_is_said(monkeypatch):
    monkeypatch.setenv("CLEW_DATABASE_URL", "postgresql://user:secret-of-mine@127.0.0.1:9/none")
    for arguments in (["list"], ["show", "0" * 32], ["run", "x"]):
        done = clew(*arguments)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "can't be read" in done.stderr
        assert "secret-of-mine" not in done.stderr


def test_tables_that_are_not_there_are_asked_for(postgresql_url, monkeypatch):
    monkeypatch.setenv("CLEW_DATABASE_URL", postgresql_url)
    done = clew("list")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "run 'clew db upgrade'" in done.stderr


def run_clew(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clew.cli.app", "jobs", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_works_as_a_program_of_its_own(history):
    done = run_clew("list", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].startswith("cleanup")
    assert "\x1b" not in done.stdout
    coloured = run_clew("list", COLUMNS="80", FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b[31mfailed" in coloured.stdout
    bad = run_clew("runs", CLEW_DATABASE_URL="mysql://x/y")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "CLEW_DATABASE_URL" in bad.stderr
    ascii_only = run_clew("runs", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ascii_only.returncode == 0, ascii_only.stderr


def test_help_says_what_list_lists():
    done = clew("--help", width=120)
    assert done.exit_code == 0
    assert "List jobs, each with its last and its next run." in done.stdout
    assert "List runs of jobs, newest first." in done.stdout


# Log lines


@pytest.fixture
def console(tmp_path: Path) -> Iterator[ConsoleServer]:
    with ConsoleServer(data_dir=tmp_path / "console", port=0) as server:
        yield server


def send_logs(url: str, trace_id: str, *bodies: str) -> None:
    import httpx

    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    attribute = resource.resource.attributes.add(key="service.name")
    attribute.value.string_value = "shop"
    records = resource.scope_logs.add().log_records
    for number, body in enumerate(bodies):
        record = records.add(
            time_unix_nano=int(NOW.timestamp() * 1e9) + number * 1000,
            severity_number=17,
            severity_text="ERROR",
            trace_id=bytes.fromhex(trace_id),
        )
        record.body.string_value = body
        record.attributes.add(key="order_id").value.string_value = "A-17"
    answer = httpx.post(
        f"{url}/v1/logs", content=request.SerializeToString(), headers={"Content-Type": "application/x-protobuf"}
    )
    assert answer.status_code == 200


def test_log_lines_of_the_run_come_from_the_console(tmp_path, monkeypatch, console):
    monkeypatch.setenv("CLEW_DATABASE_URL", f"sqlite:///{tmp_path / 'history.db'}")
    monkeypatch.setenv("CLEW_LOGS_URL", console.url)
    (kept,) = keep(run_row("cleanup", "failed"))
    nothing = clew("show", kept["id"])
    assert nothing.exit_code == 0
    assert "No log lines" in nothing.stderr
    send_logs(console.url, kept["trace_id"], "disk.full", "second \x1b[2J")
    send_logs(console.url, "0" * 31 + "1", "another trace")
    shown = clew("show", kept["id"], width=120)
    assert (shown.exit_code, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()[-2:]
    assert "disk.full" in lines[0]
    assert "shop" in lines[0]
    assert "order_id=A-17" in lines[0]
    assert "second \\x1b[2J" in lines[1]
    logs = json.loads(clew("show", kept["id"], "--json").stdout)["logs"]
    assert [line["text"] for line in logs] == ["disk.full", "second \x1b[2J"]
    # Where telemetry is sent to is looked at by default
    monkeypatch.delenv("CLEW_LOGS_URL")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", console.url)
    assert "disk.full" in clew("show", kept["id"]).stdout


@dataclass
class Backend:
    """Something on a port that answers every connection with the same bytes, or with none."""

    answers: dict[str, bytes]
    pause_s: float = 0.0

    def __enter__(self) -> str:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.asked: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()
        return f"http://127.0.0.1:{self.server.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            path = connection.recv(65_536).decode().split(" ")[1]
            self.asked.append(path)
            found = next((body for start, body in self.answers.items() if path.startswith(start)), None)
            if found is None and "" in self.answers:
                found = self.answers[""]
            status = b"404 Not Found" if found is None else b"200 OK"
            body = found or b"404 page not found\n"
            head = b"HTTP/1.1 " + status + b"\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n"
            try:
                if self.pause_s:
                    for byte in head + body:
                        connection.send(bytes([byte]))
                        time.sleep(self.pause_s)
                else:
                    connection.sendall(head + body)
            except OSError:
                return


def test_log_lines_come_from_loki(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEW_DATABASE_URL", f"sqlite:///{tmp_path / 'history.db'}")
    (kept,) = keep(run_row(service='a "quoted" \\ service'))
    at = str(int(NOW.timestamp() * 1e9))
    labels = {"service_name": "shop", "severity_text": "WARN", "order_id": "A-17", "trace_id": kept["trace_id"]}
    stream = {"stream": labels, "values": [[str(int(at) + 5), "second"], [at, "first"]]}
    answer = {"status": "success", "data": {"resultType": "streams", "result": [stream]}}
    backend = Backend({"/loki/api/v1/query_range": json.dumps(answer).encode()})
    with backend as url:
        monkeypatch.setenv("CLEW_LOGS_URL", url)
        shown = clew("show", kept["id"], width=120)
    assert shown.stderr == ""
    lines = shown.stdout.splitlines()[-2:]
    assert "first  order_id=A-17" in lines[0]
    assert " warn " in lines[0]
    assert "second" in lines[1]
    from urllib.parse import parse_qs, urlsplit

    (asked,) = [path for path in backend.asked if path.startswith("/loki")]
    query = parse_qs(urlsplit(asked).query)
    assert query["query"] == [f'{{service_name="a \\"quoted\\" \\\\ service"}} | trace_id="{kept["trace_id"]}"']
    assert int(query["start"][0]) < int(kept["started_at"].timestamp() * 1e9) < int(query["end"][0])


@pytest.mark.parametrize(
    ("answers", "pause_s", "said"),
    [
        ({}, 0.0, "is neither clew's console nor Loki"),
        ({"": b"<html>hello</html>"}, 0.0, "is neither clew's console nor Loki"),
        ({"": b"[1, 2]"}, 0.0, "is neither clew's console nor Loki"),
        ({"/api/logs": b'{"logs": [{"time": 5}]}'}, 0.0, "answered what can't be read"),
        (
            {"/loki": b'{"data": {"result": [{"stream": {}, "values": [["x", 1]]}]}}'},
            0.0,
            "answered what can't be read",
        ),
        ({"": b"x" * 1000}, 0.3, "did not answer within 2 s"),
    ],
)
def test_a_backend_that_has_no_lines_is_told_of_in_a_sentence(tmp_path, monkeypatch, answers, pause_s, said):
    monkeypatch.setenv("CLEW_DATABASE_URL", f"sqlite:///{tmp_path / 'history.db'}")
    (kept,) = keep(run_row())
    with Backend(answers, pause_s) as url:
        monkeypatch.setenv("CLEW_LOGS_URL", url)
        shown = clew("show", kept["id"])
    assert shown.exit_code == 0
    assert kept["id"] in shown.stdout
    assert said in shown.stderr


def test_nothing_that_answers_is_told_of_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEW_DATABASE_URL", f"sqlite:///{tmp_path / 'history.db'}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    (kept,) = keep(run_row())
    shown = clew("show", kept["id"])
    assert shown.exit_code == 0
    assert "nothing answers at http://127.0.0.1:9 (Connection refused); CLEW_LOGS_URL names" in shown.stderr
    assert log_lines.TIMEOUT_S == 2.0
    keep(run_row("old", trace_id=None, ago_s=timedelta(days=1).total_seconds()))
