"""Budgets: what all processes spend is watched, and said once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

import clew
from clew import clock
from clew.engine import runtime
from clew.history import recorder as recording
from clew.history.models import LlmBudgetAlarm
from clew.llm import budget
from clew.testing import CapturedTelemetry
from tests.integration.job_history import History, own_history
from tests.integration.kept_calls import call_row, keep_calls


@pytest.fixture
def history(
    database_url: str, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[History]:
    with own_history(database_url, monkeypatch, heartbeat_s=10.0) as opened:
        budget._watch.forget()
        yield opened
        budget._watch.forget()


def spend(usd: float, **more: Any) -> None:
    with clew.llm_call("openai", "small", **more) as call:
        call.cost(usd)


def looked() -> None:
    """Have the budgets looked at, twice: what is said once is not said again."""
    written = recording._recorder
    assert written is not None
    for _ in range(2):
        assert written.flush(30)
        written.hurry(budget.WATCH)
        assert written.flush(30)


def said(captured: CapturedTelemetry) -> list[tuple[str, str]]:
    return [(log.body, log.attributes["clew.llm.budget"]) for log in captured.logs if log.body.startswith("llm_budget")]


def test_a_budget_is_watched_and_what_becomes_of_it_said_once(
    history: History, captured_telemetry: CapturedTelemetry
) -> None:
    clew.llm_budget("team", usd=10.0)
    spend(7.0)
    looked()
    assert said(captured_telemetry) == []
    assert captured_telemetry.metric("clew.llm.budget.used", clew__llm__budget="team").value == 0.7
    spend(1.5)
    looked()
    assert said(captured_telemetry) == [("llm_budget_warning", "team")]
    spend(3.0)
    looked()
    assert said(captured_telemetry) == [("llm_budget_warning", "team"), ("llm_budget_exceeded", "team")]
    exceeded = next(log for log in captured_telemetry.logs if log.body == "llm_budget_exceeded")
    assert (exceeded.severity.lower(), exceeded.attributes["spent_usd"], exceeded.attributes["share"]) == (
        "error",
        11.5,
        1.15,
    )
    assert [(alarm["level"], alarm["budget_usd"]) for alarm in history.all(LlmBudgetAlarm)] == [
        ("exceeded", 10.0),
        ("warning", 10.0),
    ]


def test_a_budget_of_one_agent_one_user_and_one_service(
    history: History, captured_telemetry: CapturedTelemetry
) -> None:
    clew.llm_budget("agent", usd=1.0, per="hour", agent="topicizer")
    clew.llm_budget("user", usd=1.0, user="ada")
    clew.llm_budget("service", usd=1.0, service="another")
    clew.llm_budget("own", usd=10.0, service=runtime.resource_attributes()["service.name"])
    with clew.agent_task("topicizer"):
        spend(2.0)
    spend(0.5, user_id="ada")
    looked()
    used = {point.labels["clew.llm.budget"]: point.value for point in clew.summary("clew.llm.budget.used")}
    assert {name: used[name] for name in ("agent", "user", "service", "own")} == {
        "agent": 2.0,
        "user": 0.5,
        "service": 0.0,
        "own": 0.25,
    }
    assert said(captured_telemetry) == [("llm_budget_exceeded", "agent")]


def test_what_was_spent_before_the_hour_or_the_day_does_not_count(
    history: History, captured_telemetry: CapturedTelemetry
) -> None:
    def spent(usd: float, ago: timedelta = timedelta()) -> None:
        keep_calls(call_row(at=clock.utc_now() - ago, cost_usd=usd))

    spent(5.0, timedelta(hours=1))
    spent(50.0, timedelta(days=1))
    spent(0.5)
    clew.llm_budget("hour", usd=1.0, per="hour")
    clew.llm_budget("day", usd=20.0)
    looked()
    used = {point.labels["clew.llm.budget"]: point.value for point in clew.summary("clew.llm.budget.used")}
    assert used["hour"] == 0.5
    # An hour ago may have been yesterday
    assert used["day"] in (0.025, 0.275)
    assert said(captured_telemetry) == []
    spent(0.5)
    looked()
    assert said(captured_telemetry) == [("llm_budget_exceeded", "hour")]


def test_of_several_processes_one_says_it(database_url: str) -> None:
    code = """
import sys
import clew
clew.llm_budget("team", usd=1.0)
with clew.llm_call("openai", "small") as call:
    call.cost(0.6)
clew.flush()
print("spent", flush=True)
sys.stdin.readline()
from clew.history.recorder import recorder
from clew.llm.budget import WATCH
recorder().hurry(WATCH)
clew.flush()
clew.shutdown()
"""
    with History(database_url) as opened:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "spent\n"
        told = [process.communicate("\n", timeout=60)[1] for process in processes]
        events = [json.loads(line)["event"] for text in told for line in text.splitlines() if "llm_budget_" in line]
        assert events.count("llm_budget_exceeded") == 1
        assert len(opened.all(LlmBudgetAlarm, level="exceeded")) == 1


@pytest.mark.parametrize(
    "given",
    [
        {"usd": 0},
        {"usd": -1},
        {"usd": "many"},
        {"usd": float("nan")},
        {"usd": 1, "per": "week"},
        {"usd": 1, "agent": "a", "user": "u"},
    ],
)
def test_a_budget_that_is_none_is_reported(captured_telemetry: CapturedTelemetry, given: Any) -> None:
    with pytest.raises(clew.ClewError, match="llm_budget"):
        clew.llm_budget("team", **given)


def test_without_a_history_nothing_is_watched_and_the_app_goes_on() -> None:
    code = "import clew\nclew.llm_budget('team', usd=1.0)\nwith clew.llm_call('a', 'b') as call: call.cost(2)"
    environment = {"CLEW_HISTORY": "false", "OTEL_SDK_DISABLED": "true", "CLEW_LOG_FORMAT": "json"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    assert "not watched" in done.stderr
