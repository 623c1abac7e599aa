"""What LLM calls used, over HTTP and in a terminal, from both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection
from typer.testing import CliRunner, Result

import clew
from clew.cli import llm as command
from clew.cli.app import app as command_line
from clew.history import llm_usage
from clew.history.reading import Reader
from clew.settings import Settings
from tests.integration.kept_calls import NOW, call_row, keep_calls
from tests.integration.server_process import ServerProcess, uvicorn

command.register(command_line)

APP = """
import clew
from fastapi import FastAPI

clew.configure(service_name="shop", endpoint="http://127.0.0.1:9", spool_max_bytes=0)
app = FastAPI()
app.include_router(clew.llm_router())
"""


@pytest.fixture
def client(database_url: str, tmp_path: Path) -> Iterator[httpx.Client]:
    (tmp_path / "app.py").write_text(APP)
    keep_calls()
    environment = {
        "CLEW_DATABASE_URL": database_url,
        "CLEW_LOG_FORMAT": "none",
        "CLEW_ADMIN_TOKEN": "correct-horse-battery",
    }
    with (
        ServerProcess(uvicorn("app:app", "--log-level", "warning"), cwd=tmp_path, environment=environment) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        client.headers["Authorization"] = "Bearer correct-horse-battery"
        yield client
        assert "Traceback" not in server.said


@pytest.fixture
def kept(database_url: str) -> Iterator[tuple[Connection, list[dict[str, Any]]]]:
    rows = keep_calls(
        *(
            call_row(f"m{number % 3}", at=NOW - timedelta(hours=number * 1.7), user_id=f"u{number % 4}", cost_usd=0.25)
            for number in range(100)
        )
    )
    reader = Reader(Settings.load().history_url())
    with reader.open() as opened:
        yield opened, rows
    reader.close()


def shell(*arguments: str, width: int = 120) -> Result:
    result: Result = CliRunner(env={"COLUMNS": str(width)}).invoke(command_line, ["llm", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def some_calls() -> list[dict[str, Any]]:
    day = timedelta(days=1)
    return keep_calls(
        call_row("gpt-4o", agent="topicizer", user_id="ada", cost_usd=1.0),
        call_row("gpt-4o", "failed", agent="topicizer", cost_usd=None, error_type="RateLimitError", error_message="slow down", output_tokens=None),
        call_row("claude", provider="anthropic", agent="writer", user_id="ada", cost_usd=4.0, service="desk"),
        call_row("gpt-4o", at=NOW - 3 * day, cost_usd=0.25, is_cached=True),
    )  # fmt: skip


def test_usage_by_each_of_what_can_be_told_apart(client: httpx.Client) -> None:
    some_calls()

    def asked(**params: Any) -> Any:
        answer = client.get("/llm/usage", params=params)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        return answer.json()

    by_model = asked()
    assert [(one["provider"], one["name"], one["cost_usd"], one["calls"]) for one in by_model["usage"]] == [
        ("anthropic", "claude", 4.0, 1),
        ("openai", "gpt-4o", 1.25, 3),
    ]
    overall = by_model["overall"]
    wanted = {"calls": 4, "failed": 1, "cached": 1, "priced": 3, "input_tokens": 400, "output_tokens": 30}
    assert {name: overall[name] for name in wanted} == wanted
    assert (overall["cost_usd"], overall["average_s"]) == (5.25, 2.0)
    assert [(one["name"], one["calls"]) for one in asked(by="agent")["usage"]] == [
        ("writer", 1),
        ("topicizer", 2),
        ("", 1),
    ]
    assert [(one["name"], one["cost_usd"]) for one in asked(by="user")["usage"]] == [("ada", 5.0), ("", 0.25)]
    days = asked(by="day")["usage"]
    assert [one["name"] for one in days] == sorted(one["name"] for one in days)
    assert days[0]["name"] == f"{NOW - timedelta(days=3):%Y-%m-%d}"
    assert asked(hours=24)["overall"]["calls"] == 3
    assert asked(service="desk")["overall"]["calls"] == 1
    assert (len(asked(limit=1)["usage"]), asked(limit=1)["is_cut"]) == (1, True)


def test_calls_by_pages_and_filters(client: httpx.Client) -> None:
    kept = some_calls()
    found: list[dict[str, Any]] = []
    asked: dict[str, Any] = {"limit": 3}
    while True:
        answer = client.get("/llm/calls", params=asked).json()
        found += answer["calls"]
        if answer["next"] is None:
            break
        asked["after"] = answer["next"]
    assert [call["id"] for call in found] == sorted((row["id"] for row in kept), reverse=True)
    for params, expected in (
        ({"model": "gpt-4o"}, {0, 1, 3}),
        ({"provider": "anthropic"}, {2}),
        ({"agent": "topicizer", "status": "failed"}, {1}),
        ({"user": "ada"}, {0, 2}),
        ({"service": "desk"}, {2}),
        ({"error": "DOWN slow"}, {1}),
        ({"hours": 24}, {0, 1, 2}),
        ({"trace_id": kept[2]["trace_id"]}, {2}),
        ({"correlation_id": kept[0]["correlation_id"]}, {0}),
    ):
        calls = client.get("/llm/calls", params=params).json()["calls"]
        assert {call["id"] for call in calls} == {kept[number]["id"] for number in expected}, params


def test_one_call_with_what_was_said(client: httpx.Client) -> None:
    said = [{"role": "assistant", "parts": [{"type": "text", "content": "a thread"}]}]
    (kept,) = keep_calls(call_row(completion=said, first_token_s=1.0, output_tokens=30))
    whole = client.get(f"/llm/calls/{kept['id']}").json()
    assert (whole["completion"], whole["prompt"], whole["tokens_per_s"]) == (said, None, 30.0)
    listed = client.get("/llm/calls").json()["calls"][0]
    assert "completion" not in listed
    missing = client.get("/llm/calls/0000")
    assert (missing.status_code, "never was" in missing.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    "query",
    ["by=colour", "model=x&modle=y", "after=zz", "hours=-1", "hours=1&from=2026-01-01T00:00:00Z", "status=lost"],
)
def test_what_can_t_be_asked_is_refused(query: str) -> None:
    app = FastAPI()
    app.include_router(clew.llm_router())
    with TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as local:
        path = "/llm/usage" if query.startswith(("by", "hours")) else "/llm/calls"
        assert local.get(f"{path}?{query}").status_code == 422


def test_strangers_are_refused() -> None:
    app = FastAPI()
    app.include_router(clew.llm_router())
    with TestClient(app, client=("192.0.2.1", 1)) as stranger:
        for path in ("/llm/usage", "/llm/calls", "/llm/calls/1"):
            assert stranger.get(path).status_code == 403


def test_in_a_terminal(database_url: str) -> None:
    some_calls()
    done = shell("usage")
    assert done.exit_code == 0
    header, *lines = done.stdout.splitlines()
    assert header.split() == [
        "model",
        "cost",
        "calls",
        "failed",
        "input",
        "output",
        "from",
        "cache",
        "cached",
        "average",
    ]
    assert [line.split()[:3] for line in lines] == [
        ["anthropic/claude", "$4.00", "1"],
        ["openai/gpt-4o", "$1.25", "3"],
        ["all", "$5.25", "4"],
    ]
    assert "What 1 of 4 calls cost is not known" in done.stderr
    as_json = json.loads(shell("usage", "--by", "user", "--hours", "24", "--json").stdout)
    assert [(one["name"], one["cost_usd"]) for one in as_json["usage"]] == [("ada", 5.0), ("", 0.0)]
    for width in (60, 80, 200):
        assert max(len(line) for line in shell("usage", width=width).stdout.splitlines()) <= width
    wrong = shell("usage", "--by", "colour")
    assert (wrong.exit_code, "--by" in wrong.stderr) == (2, True)


def test_in_a_terminal_without_any(database_url: str) -> None:
    keep_calls()
    done = shell("usage")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "No LLM calls are known." in done.stderr


@pytest.mark.parametrize("by", ["model", "agent", "user", "day"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(since=st.none() | st.integers(0, 200), length=st.none() | st.integers(1, 200))
def test_usage_agrees_with_the_calls(kept: tuple[Connection, Any], by: Any, since: Any, length: Any) -> None:
    connection, rows = kept
    begin = None if since is None else NOW - timedelta(hours=since)
    end = None if length is None else (begin or NOW - timedelta(hours=200)) + timedelta(hours=length)
    report = llm_usage.report(connection, by=by, since=begin, until=end)

    def is_within(at: datetime) -> bool:
        return (report.since is None or at >= report.since) and (report.until is None or at < report.until)

    within = [row for row in rows if is_within(row["started_at"])]
    assert report.overall.calls == len(within)
    assert report.overall.cost_usd == pytest.approx(0.25 * len(within))
    assert sum(group.usage.calls for group in report.groups) == len(within)
