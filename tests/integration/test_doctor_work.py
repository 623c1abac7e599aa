"""What ``clew doctor`` finds in the records of queues, agents and LLM calls."""

from __future__ import annotations

import re
from datetime import timedelta

from sqlalchemy import insert

from clew import clock
from clew.history.database import Database
from clew.history.models import QueueDepth
from clew.settings import Settings
from tests.integration import kept_agents, kept_messages
from tests.integration.kept_agents import agent_row, handoff_row
from tests.integration.kept_calls import call_row, keep_calls
from tests.integration.kept_messages import message_row
from tests.integration.test_doctor import examine
from tests.integration.test_queues_api import clew as command


def depth_row(queue: str, **columns: object) -> dict[str, object]:
    return {
        "id": f"{queue:-<32}",
        "service": "shop",
        "instance": "shop-1",
        "system": "redis",
        "queue": queue,
        "consumer_group": None,
        "kind": "list",
        "length": 0,
        "oldest_age_s": None,
        "problem": None,
        "observed_at": clock.utc_now(),
        **columns,
    }


def keep_depths(*rows: dict[str, object]) -> None:
    database = Database(Settings.load().history_url())
    database.ensure(auto_upgrade=True)
    with database.write() as connection:
        connection.execute(insert(QueueDepth), list(rows))
    database.engine.dispose()


def said_of(check: str, text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(rf"(ok|note|wrong) +{check}  ", line)]


def test_what_goes_wrong_with_work_is_noted_with_its_mend(otlp_sink, spool_dir, database_url) -> None:
    kept_messages.keep(
        message_row("pages", "dead_lettered"),
        message_row("pages", "rejected"),
        message_row("old", "dead_lettered", ago_s=3 * 3600),
        message_row("busy", "processed"),
        message_row("busy-strangers", "processed"),
        message_row("strangers", "processed", ago_s=2 * 3600),
        message_row("strangers", "sent"),
    )
    keep_depths(
        depth_row("documents", length=12, oldest_age_s=7200.0),
        depth_row("busy", length=9, oldest_age_s=7200.0),
        depth_row("strangers", length=5_000),
        depth_row("busy-strangers", length=4),
        depth_row("empty"),
        depth_row("broken", problem="WRONGTYPE"),
    )
    kept_agents.keep(
        agents=[agent_row("topicizer", failures_in_a_row=3, last_error_type="OSError"), agent_row("exporter")],
        handoffs=[
            handoff_row("processor", "exporter", "unclaimed"),
            handoff_row("a", "b", is_loop=True),
            handoff_row("c", "d", "unclaimed", ago_s=3 * 86_400),
        ],
    )
    keep_calls(call_row("house-model", cost_usd=None), call_row("gpt-4o"))
    done = examine(**otlp_sink.environment)
    # The app's trouble is not the telemetry's
    assert done.returncode == 0, done.stdout
    assert "All is well." in done.stdout
    queues = said_of("queues", done.stdout)
    assert all(line.startswith("note") for line in queues)
    assert "broken (WRONGTYPE)" in queues[0]
    assert "documents (12 wait)" in queues[1]
    assert "busy" not in queues[1]
    assert queues[2].rstrip().endswith("no consumer is on record in the last hour: strangers (5,000 wait)")
    assert queues[3].rstrip().endswith("in the last hour: pages (2)")
    assert "clew queues messages --status dead_lettered" in done.stdout
    (agents,) = said_of("agents", done.stdout)
    assert agents.startswith("note")
    assert agents.rstrip().endswith("topicizer (OSError)")
    unclaimed, loops = said_of("handoffs", done.stdout)
    assert "processor -> exporter" in unclaimed
    assert "c -> d" not in unclaimed
    assert "a -> b" in loops
    (prices,) = said_of("LLM prices", done.stdout)
    assert prices.startswith("note")
    assert "openai/house-model" in prices
    assert "gpt-4o" not in prices
    assert "clew.llm_prices()" in done.stdout


def test_work_that_goes_well_is_told_in_a_line_each(otlp_sink, spool_dir, database_url) -> None:
    kept_messages.keep(message_row())
    keep_depths(depth_row("documents", length=3, oldest_age_s=2.0))
    kept_agents.keep(agents=[agent_row()])
    keep_calls(call_row())
    done = examine(**otlp_sink.environment)
    assert done.returncode == 0, done.stdout
    for check in ("queues", "agents", "LLM prices"):
        (line,) = said_of(check, done.stdout)
        assert line.startswith("ok"), line
    assert not said_of("handoffs", done.stdout)


def test_what_waited_when_somebody_looked_is_not_taken_for_what_waits(otlp_sink, spool_dir, database_url) -> None:
    kept_messages.keep(message_row("pages"))
    earlier = clock.utc_now() - timedelta(hours=3)
    keep_depths(
        depth_row("documents", length=12, oldest_age_s=7200.0, observed_at=earlier),
        depth_row("strangers", length=5_000, observed_at=earlier),
        depth_row("broken", problem="WRONGTYPE", observed_at=earlier),
    )
    done = examine(**otlp_sink.environment)
    old, now = said_of("queues", done.stdout)
    assert old.startswith("ok")
    assert "broken (3 h ago), documents (3 h ago), strangers (3 h ago)" in old
    assert "0 watched" in now
    for text in ("12", "5,000", "WRONGTYPE"):
        assert text not in old + now
    listed = command("list").stdout
    (line,) = [line for line in listed.splitlines() if line.startswith("documents ")]
    assert "3 h ago" in line
    assert line.rstrip().endswith("nobody looks any more")


def test_without_such_work_nothing_is_said_of_it(otlp_sink, spool_dir, database_url) -> None:
    Database(Settings.load().history_url()).ensure(auto_upgrade=True)
    done = examine(**otlp_sink.environment)
    assert "it takes rows" in done.stdout
    assert not [check for check in ("queues", "agents", "handoffs", "LLM prices") if said_of(check, done.stdout)]
