"""The routes of queues and ``clew queues``, asked as strangers would ask them, over both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from clew.cli import queues as command
from clew.cli.app import app
from tests.integration.kept_messages import keep, message_row
from tests.integration.kept_runs import NOW
from tests.integration.postgresql import PostgreSQL
from tests.integration.server_process import ServerProcess, uvicorn
from tests.integration.test_jobs_api import HOSTILE, RAW, fitting

APP = """
import clew
from fastapi import FastAPI

clew.configure(service_name="shop", endpoint="http://127.0.0.1:9", spool_max_bytes=0)
app = FastAPI()
app.include_router(clew.queues_router())
clew.instrument(app)
"""

command.register(app)


@pytest.fixture
def client(database_url: str, tmp_path: Path) -> Iterator[httpx.Client]:
    keep()
    (tmp_path / "app.py").write_text(APP)
    variables = {"CLEW_DATABASE_URL": database_url, "CLEW_LOG_FORMAT": "none"}
    with (
        ServerProcess(uvicorn("app:app", "--log-level", "warning"), cwd=tmp_path, environment=variables) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        yield client
        assert "Traceback" not in server.said


def clew(*arguments: str, width: int = 160) -> Result:
    result: Result = CliRunner(env={"COLUMNS": str(width)}).invoke(app, ["queues", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_messages_come_page_by_page(client: httpx.Client) -> None:
    kept = keep(*(message_row(ago_s=10 + number) for number in range(7)))
    found: list[dict[str, Any]] = []
    asked: dict[str, Any] = {"limit": 3}
    while True:
        answer = client.get("/queues/messages", params=asked)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        found += answer.json()["messages"]
        if answer.json()["next"] is None:
            break
        asked["after"] = answer.json()["next"]
    assert [message["id"] for message in found] == [row["id"] for row in kept]
    assert "payload" not in found[0]
    assert client.get("/queues/messages", params={"limit": 10**12}).json()["limit"] == 500


def test_messages_are_filtered(client: httpx.Client) -> None:
    kept = keep(
        message_row("documents", "sent", ago_s=7300, type="ärger"),
        message_row("documents", "failed", ago_s=60, error_type="OSError", error_message="disk full", user_id="u-1"),
        message_row("pages", ago_s=30, source="crawler"),
    )
    since = (NOW - timedelta(seconds=45)).isoformat()
    for asked, expected in (
        ({"queue": "documents"}, [1, 0]),
        ({"queue": "documents", "status": "failed"}, [1]),
        ({"direction": "sent"}, [0]),
        ({"type": "ärger"}, [0]),
        ({"source": "crawler"}, [2]),
        ({"user": "u-1"}, [1]),
        ({"error": "FULL disk"}, [1]),
        ({"hours": 1}, [2, 1]),
        ({"from": since}, [2]),
        ({"to": since}, [1, 0]),
        ({"trace_id": kept[2]["trace_id"].upper()}, [2]),
        ({"correlation_id": kept[0]["correlation_id"]}, [0]),
        ({"message_id": kept[1]["message_id"]}, [1]),
        ({"queue": "", "status": ""}, [2, 1, 0]),
        ({"queue": "nothing"}, []),
    ):
        answer = client.get("/queues/messages", params=asked).json()
        assert [one["id"] for one in answer["messages"]] == [kept[number]["id"] for number in expected], asked


def test_one_message_has_its_payload(client: httpx.Client) -> None:
    (row,) = keep(message_row(payload={"id": 17}))
    whole = client.get(f"/queues/messages/{row['id']}").json()
    assert (whole["payload"]["id"], whole["status"], whole["wait_s"]) == (17, "processed", 2.0)
    missing = client.get(f"/queues/messages/{'0' * 32}")
    assert missing.status_code == 404
    assert "never was, or it is archived" in missing.json()["detail"]


def test_statistics_add_up(client: httpx.Client) -> None:
    keep(
        message_row("documents", "sent", ago_s=30),
        message_row("documents", "sent", ago_s=86_400 * 3, messages=10),
        message_row("documents", "processed", ago_s=20, wait_s=1.0),
        message_row("documents", "processed", ago_s=7_200, wait_s=3.0, type="page"),
        message_row("documents", "failed", ago_s=20, wait_s=None, source="crawler"),
        message_row("documents", "failed", ago_s=20, direction="sent"),
        message_row("documents", "cancelled", ago_s=20, direction="sent"),
        message_row("pages", "dead_lettered", ago_s=20),
    )
    stats = client.get("/queues/stats").json()
    documents, pages = stats["queues"]
    assert (documents["name"], pages["name"]) == ("documents", "pages")
    assert (documents["total"]["sent"], documents["total"]["received"], documents["total"]["not_sent"]) == (11, 3, 1)
    assert (documents["last_day"]["sent"], documents["last_day"]["received"]) == (1, 3)
    assert documents["last_day"]["cancelled"] == 1
    assert (documents["last_hour"]["received"], documents["last_hour"]["failed"]) == (2, 1)
    assert documents["last_hour"]["received_per_s"] == pytest.approx(2 / 3600)
    assert documents["last_day"]["wait_s"] == pytest.approx(2.0)
    assert documents["last_day"]["process_s"] == pytest.approx(0.25)
    assert documents["total"]["sent_per_s"] is None
    assert pages["last_hour"]["dead_lettered"] == 1
    assert stats["overall"]["total"]["received"] == 4
    assert {one["name"]: one["total"]["received"] for one in stats["types"]} == {"document": 3, "page": 1}
    assert {one["name"]: one["total"]["received"] for one in stats["sources"]} == {"shop": 3, "crawler": 1}
    listed = client.get("/queues", params={"queue": "pages"}).json()
    assert [one["name"] for one in listed["queues"]] == ["pages"]
    cut = client.get("/queues", params={"limit": 1}).json()
    assert (len(cut["queues"]), cut["is_cut"]) == (1, True)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("/queues/messages?status=lots", "status"),
        ("/queues/messages?direction=up", "direction"),
        ("/queues/messages?limit=0", "limit"),
        ("/queues/messages?queu=documents", "queu is not known here: use hours, from, to, limit"),
        ("/queues/stats?hours=1", "hours is not known here: use queue, limit"),
        ("/queues/messages?after=x", "after"),
        (f"/queues/messages?queue={'x' * 256}", "queue"),
    ],
)
def test_a_question_that_can_not_be_used_is_named(client: httpx.Client, asked: str, named: str) -> None:
    answer = client.get(asked)
    assert answer.status_code == 422
    assert named in answer.text


def test_no_question_however_hostile_is_answered_with_an_error_of_the_server(client: httpx.Client) -> None:
    keep(*(message_row(ago_s=number, status="failed", error_message="%_\\ 'ö'") for number in range(1, 20)))
    document = client.get("/openapi.json").json()
    operations = [
        (path, list(verbs["get"].get("parameters", ())))
        for path, verbs in document["paths"].items()
        if path.startswith("/queues")
    ]
    assert len(operations) == 4

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def ask(data: st.DataObject) -> None:
        path, parameters = data.draw(st.sampled_from(operations))
        query: list[tuple[str, str]] = []
        for one in parameters:
            if one["in"] == "path":
                value = data.draw(st.one_of(HOSTILE, st.sampled_from(["0" * 32])))
                path = path.replace(f"{{{one['name']}}}", quote(value, safe="", errors="replace") or "-")
            elif data.draw(st.booleans()):
                query.append((one["name"], data.draw(st.one_of(fitting(one["schema"]), HOSTILE))))
        raw = data.draw(st.one_of(st.just(""), RAW))
        encoded = "&".join(f"{quote(name)}={quote(value, errors='replace')}" for name, value in query)
        answer = client.get(f"{path}?{encoded}&{raw}")
        assert answer.status_code in (200, 404, 405, 422), (path, query, raw, answer.text)

    ask()


def test_strangers_are_kept_out_and_a_database_that_is_away_is_said(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = postgresql.new_database()
    monkeypatch.setenv("CLEW_DATABASE_URL", url)
    keep(message_row())
    (tmp_path / "app.py").write_text(APP)
    variables = {"CLEW_DATABASE_URL": url, "CLEW_LOG_FORMAT": "none", "CLEW_ADMIN_TOKEN": "correct-horse-battery"}
    with (
        ServerProcess(uvicorn("app:app", "--log-level", "warning"), cwd=tmp_path, environment=variables) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        paths = ("/queues", "/queues/stats", "/queues/messages")
        stranger = {"x-forwarded-for": "203.0.113.7"}
        assert {client.get(path, headers=stranger).status_code for path in paths} <= {401, 403}
        with postgresql.away():
            for path in paths:
                answer = client.get(path)
                assert (answer.status_code, "can't be read" in answer.json()["detail"]) == (503, True)
        assert len(client.get("/queues/messages").json()["messages"]) == 1


# The command line


def test_queues_are_listed(database_url: str) -> None:
    keep(
        message_row("documents", "sent", ago_s=30),
        message_row("documents", "processed", ago_s=20),
        message_row("documents", "failed", ago_s=20, type="page\x1b[31m"),
        message_row("pages", "rejected", ago_s=7200),
    )
    done = clew("list")
    assert (done.exit_code, done.stderr) == (0, "")
    header, documents, pages = done.stdout.splitlines()
    assert header.split()[:3] == ["queue", "sent", "received"]
    assert documents.split()[:5] == ["documents", "1", "2", "1/2", "1/2"]
    assert pages.split()[:5] == ["pages", "0", "1", "0/1", "0/0"]
    one = clew("list", "documents")
    assert "page\\x1b[31m" in one.stdout
    assert "shop" in one.stdout
    assert json.loads(clew("list", "--json").stdout)["overall"]["total"]["received"] == 3
    unknown = clew("list", "nothing")
    assert (unknown.exit_code, unknown.stdout) == (1, "")


def test_messages_are_listed_and_shown(database_url: str) -> None:
    kept = keep(
        message_row("documents", "sent", ago_s=60),
        message_row(
            "documents", "failed", ago_s=5, error_type="OSError", error_message="disk full", attempt=2, size_bytes=1234
        ),
    )
    done = clew("messages")
    assert (done.exit_code, done.stderr) == (0, "")
    header, failed, sent = done.stdout.splitlines()
    assert header.split() == ["id", "queue", "status", "when", "waited", "took", "type", "source", "error"]
    assert failed.split()[0] == kept[1]["id"][-8:]
    assert "OSError: disk full" in failed
    assert sent.split()[0] == kept[0]["id"][-8:]
    page = clew("messages", "-n", "1")
    assert f"--after {kept[1]['id']}" in page.stderr
    assert json.loads(clew("messages", "--status", "sent", "--json").stdout)["messages"][0]["id"] == kept[0]["id"]

    shown = clew("show", kept[1]["id"][-8:])
    assert shown.exit_code == 0
    for part in ("OSError: disk full", "1,234 bytes", kept[1]["trace_id"], '{"id": 1}', "2.00 s"):
        assert part in shown.stdout
    assert json.loads(clew("show", kept[1]["id"], "--json").stdout)["payload"] == {"id": 1}
    assert clew("show", "0" * 32).exit_code == 1
    wrong = clew("messages", "--status", "lots")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "--status" in wrong.stderr


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_longer_than_the_terminal_is_wide(database_url: str, width: int) -> None:
    keep(
        message_row("a queue whose name is as long as the day " * 6, "failed", error_message="x" * 5000, type="t" * 255)
    )
    for arguments in (("list",), ("messages",)):
        assert max(len(line) for line in clew(*arguments, width=width).stdout.splitlines()) <= width


def test_there_may_be_no_history_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLEW_DATABASE_URL", f"sqlite:///{tmp_path}/none.db")
    for arguments in (("list",), ("messages",)):
        done = clew(*arguments)
        assert (done.exit_code, done.stdout) == (0, "")
        assert "no history yet" in done.stderr
