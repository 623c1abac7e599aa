"""Agents over HTTP and in a terminal, of real rows in both databases."""

from __future__ import annotations

import json
import xml.dom.minidom
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import clew
from clew.cli import agents as command
from clew.cli.app import app
from clew.engine import runtime
from clew.engine.state import state
from clew.health import checks
from clew.history.agents import AgentStatistics
from clew.history.handoffs import Edge, Graph
from clew.http.agent_drawing import draw
from clew.settings import Settings
from tests.integration.kept_agents import agent_row, handoff_row, keep, task_row

command.register(app)

HOSTILE = '<script>alert("x")</script>&\x1b[31m'


def run(*arguments: str, width: int = 120) -> Result:
    result: Result = CliRunner(env={"COLUMNS": str(width)}).invoke(app, ["agents", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def kept(database_url: str) -> dict[str, list[dict[str, Any]]]:
    rows = {
        "tasks": [
            task_row("topicizer", ago_s=50, took_s=0.1, task_id="doc-1", result={"topics": 2}),
            task_row("topicizer", "failed", ago_s=40, took_s=3.0, error_type="OSError", error_message="disk full"),
            task_row("topicizer", "running", ago_s=5),
            task_row("exporter", "lost", ago_s=30, took_s=None),
        ],
        "handoffs": [
            handoff_row("processor", "topicizer", ago_s=55, task_id="doc-1", summary={"pages": 2}),
            handoff_row("processor", "topicizer", "failed", ago_s=45),
            handoff_row("topicizer", "exporter", "unclaimed", ago_s=35),
            handoff_row("exporter", "processor", "waiting", ago_s=25, is_loop=True, depth=3),
            handoff_row("", HOSTILE, "accepted", ago_s=15, reason="who knows"),
        ],
        "agents": [
            agent_row("topicizer", active=1),
            agent_row("exporter", failures_in_a_row=3, last_error_type="OSError"),
            agent_row("a/b", process="1", process_key="elsewhere/1", pid=1, heartbeat_at=None),
            agent_row("ended", gone_at=agent_row()["registered_at"]),
        ],
    }
    keep(**rows)
    return rows


@pytest.fixture
def here(kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process read the history of the test."""
    runtime.ready()
    assert state.settings is not None
    url = Settings.load().database_url
    monkeypatch.setattr(state, "settings", state.settings.model_copy(update={"database_url": url}))


@pytest.fixture
def client(here: None) -> Iterator[TestClient]:
    made = FastAPI()
    made.include_router(clew.agents_router())
    with TestClient(made, base_url="http://127.0.0.1", client=("127.0.0.1", 50_000)) as client:
        yield client


def test_agents_are_listed_with_their_states(client: TestClient) -> None:
    answer = client.get("/agents")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    found = {agent["agent"]: agent for agent in answer.json()["agents"]}
    states = {name: agent["state"] for name, agent in found.items()}
    assert states == {"topicizer": "active", "exporter": "failing", "a/b": "idle", "ended": "gone"}
    statistics = found["topicizer"]["statistics"]
    assert (statistics["tasks"], statistics["ok"], statistics["failed"], statistics["active"]) == (2, 1, 1, 1)
    assert statistics["success_rate"] == 0.5
    assert statistics["average_s"] == pytest.approx(1.55)
    assert statistics["p95_s"] == pytest.approx(3.0, rel=0.05)
    assert found["exporter"]["statistics"]["failed"] == 1
    only = client.get("/agents", params={"state": "failing"}).json()
    assert [agent["agent"] for agent in only["agents"]] == ["exporter"]
    one = client.get("/agents/a/b").json()
    assert [place["instance"] for place in one["places"]] == ["shop-1"]
    assert client.get("/agents/nobody").json()["detail"].startswith("there is no agent 'nobody'")
    assert client.get("/agents/nobody").status_code == 404


@pytest.mark.parametrize(
    ("asked", "expected", "is_cut"),
    [
        ({"limit": 3}, ["a/b", "ended", "exporter"], True),
        ({"limit": 4}, ["a/b", "ended", "exporter", "topicizer"], False),
        ({"limit": 1, "state": "active"}, ["topicizer"], False),
        ({"limit": 1, "service": "nobody"}, [], False),
    ],
)
def test_a_list_of_agents_has_its_limit(
    client: TestClient, asked: dict[str, Any], expected: list[str], is_cut: bool
) -> None:
    answer = client.get("/agents", params=asked).json()
    assert [agent["agent"] for agent in answer["agents"]] == expected
    assert answer["is_cut"] is is_cut
    failed = {agent["agent"]: agent["statistics"]["failed"] for agent in answer["agents"]}
    assert failed == {name: int(name in ("topicizer", "exporter")) for name in expected}


@pytest.mark.parametrize(
    ("path", "asked", "expected"),
    [
        ("tasks", {}, [2, 3, 1, 0]),
        ("tasks", {"agent": "topicizer", "status": "failed"}, [1]),
        ("tasks", {"error": "FULL disk"}, [1]),
        ("tasks", {"task": "doc-1"}, [0]),
        ("tasks", {"type": "other"}, []),
        ("handoffs", {}, [4, 3, 2, 1, 0]),
        ("handoffs", {"source": "processor"}, [1, 0]),
        ("handoffs", {"target": "topicizer", "status": "failed"}, [1]),
        ("handoffs", {"problem": "loop"}, [3]),
        ("handoffs", {"task": "doc-1", "mode": "pass_control"}, [0]),
        ("handoffs", {"status": "unclaimed", "hours": 1}, [2]),
    ],
)
def test_tasks_and_handoffs_are_filtered(
    client: TestClient, kept: dict[str, Any], path: str, asked: dict[str, Any], expected: list[int]
) -> None:
    answer = client.get(f"/agents/{path}", params=asked).json()
    assert [row["id"] for row in answer[path]] == [kept[path][number]["id"] for number in expected]


def test_pages_and_single_records(client: TestClient, kept: dict[str, Any]) -> None:
    first = client.get("/agents/handoffs", params={"limit": 2}).json()
    second = client.get("/agents/handoffs", params={"limit": 2, "after": first["next"]}).json()
    assert [row["id"] for row in second["handoffs"]] == [kept["handoffs"][number]["id"] for number in (2, 1)]
    task = client.get(f"/agents/tasks/{kept['tasks'][0]['id']}").json()
    assert (task["result"], task["task_id"]) == ({"topics": 2}, "doc-1")
    handoff = client.get(f"/agents/handoffs/{kept['handoffs'][0]['id']}").json()
    assert (handoff["summary"], handoff["carrier"]) == ({"pages": 2}, {"traceparent": "x"})


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("tasks/nothing", 404),
        ("handoffs/" + "0" * 32, 404),
        ("tasks?colour=red", 422),
        ("handoffs?status=lots", 422),
        ("graph?format=png", 422),
        ("tasks?after=x", 422),
        ("?state=angry", 422),
        ("nobody%00", 404),
    ],
)
def test_what_is_refused_says_why(client: TestClient, path: str, status: int) -> None:
    answer = client.get(f"/agents/{path}" if not path.startswith("?") else f"/agents{path}")
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_the_graph_as_json_and_as_a_picture(client: TestClient) -> None:
    graph = client.get("/agents/graph").json()
    edges = {(edge["source"], edge["target"]): edge for edge in graph["edges"]}
    edge = edges["processor", "topicizer"]
    assert (edge["handoffs"], edge["failing"], edge["average_wait_s"], edge["average_s"]) == (2, 1, 0.5, 2.0)
    assert edges["topicizer", "exporter"]["failing"] == 1
    assert edges["exporter", "processor"]["open"] == 1
    for answer in (
        client.get("/agents/graph", params={"format": "svg"}),
        client.get("/agents/graph", headers={"accept": "image/svg+xml,*/*"}),
    ):
        assert answer.headers["content-type"].startswith("image/svg+xml")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        picture = xml.dom.minidom.parseString(answer.text)
        assert not picture.getElementsByTagName("script")
        assert "1 failed" in answer.text
    assert client.get("/agents/graph", headers={"accept": "text/html,*/*"}).json()["edges"]
    assert client.get("/agents/graph", params={"agent": "exporter", "hours": 1}).json()["edges"]


names = st.text(max_size=30)
edges = st.builds(
    Edge,
    source=names,
    target=names,
    handoffs=st.integers(1, 10**9),
    failing=st.integers(0, 5),
    open=st.just(0),
    average_wait_s=st.none() | st.floats(0, 1e6),
    average_s=st.none() | st.floats(0, 1e6),
)


@given(st.lists(edges, max_size=30, unique_by=lambda edge: (edge.source, edge.target)))
def test_any_graph_is_drawn(found: list[Edge]) -> None:
    agents = [AgentStatistics(agent=edge.target, tasks=3, failed=1) for edge in found]
    picture = xml.dom.minidom.parseString(draw(Graph(since=None, until=None, agents=agents, edges=found)))
    lines = [path for path in picture.getElementsByTagName("path") if path.getAttribute("class").startswith("edge")]
    assert len(lines) == len(found)
    assert len([line for line in lines if "failing" in line.getAttribute("class")]) == sum(
        edge.failing > 0 for edge in found
    )


def test_the_same_in_a_terminal(kept: dict[str, Any], tmp_path: Path) -> None:
    listed = run("list")
    assert (listed.exit_code, listed.stderr) == (0, "")
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == ["a/b", "ended", "exporter", "topicizer"]
    assert "failing" in listed.stdout
    assert "50.0 %" in run("status", "topicizer").stdout
    assert run("status", "nobody").exit_code == 1
    history = run("history", "topicizer", "--status", "failed")
    assert "OSError: disk full" in history.stdout
    assert "doc-1" in run("history", "--id", kept["tasks"][0]["id"][-8:]).stdout
    handoffs = run("handoffs")
    assert handoffs.exit_code == 0
    assert "\x1b" not in handoffs.stdout
    assert "loop" in handoffs.stdout
    assert "pages" in run("handoffs", "--id", kept["handoffs"][0]["id"]).stdout
    assert run("history", "--status", "odd").exit_code == 2
    graph = json.loads(run("graph", "--json").stdout)
    assert {edge["source"] for edge in graph["edges"]} == {"", "processor", "topicizer", "exporter"}
    drawn = run("graph", "--svg", str(tmp_path / "graph.svg"))
    assert drawn.exit_code == 0
    xml.dom.minidom.parse(str(tmp_path / "graph.svg"))
    assert run("graph", "--svg", str(tmp_path / "no" / "graph.svg")).exit_code == 2
    for width in (60, 80, 200):
        for asked in (["list"], ["history"], ["handoffs"], ["graph"]):
            assert all(len(line) <= width for line in run(*asked, width=width).stdout.splitlines())


def test_nothing_is_known_yet(database_url: str) -> None:
    keep()
    assert "No such agents are known." in run("list").stderr
    assert "No handoffs are known." in run("graph").stderr
    assert json.loads(run("handoffs", "--json").stdout)["handoffs"] == []


def test_the_health_of_agents(here: None) -> None:
    result: Any = checks.agents("ended", "topicizer").probe()
    assert result.status == "degraded"
    assert result.text == "exporter failing; ended gone"
    assert result.data["states"] == {"active": 1, "failing": 1, "idle": 1, "gone": 1}
