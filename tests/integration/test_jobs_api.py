"""The routes of jobs, asked as strangers would ask them, of a real server over both databases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.kept_runs import NOW, keep, run_row
from tests.integration.postgresql import PostgreSQL
from tests.integration.server_process import ServerProcess, uvicorn

APP = """
import asyncio
import clew
from fastapi import FastAPI

clew.configure(service_name="shop", endpoint="http://127.0.0.1:9", spool_max_bytes=0)
app = FastAPI()
app.include_router(clew.jobs_router())
clew.instrument(app)

@app.get("/alive")
async def alive():
    return {}

@app.get("/alive-in-a-thread")
def alive_in_a_thread():
    return {}
"""

TOKEN = "correct-horse-battery"


@contextmanager
def serving(folder: Path, url: str, environment: Mapping[str, str] | None = None) -> Iterator[httpx.Client]:
    (folder / "app.py").write_text(APP)
    variables = {"CLEW_DATABASE_URL": url, "CLEW_LOG_FORMAT": "none", **(environment or {})}
    with (
        ServerProcess(uvicorn("app:app", "--log-level", "warning"), cwd=folder, environment=variables) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        yield client
        assert "Traceback" not in server.said


@pytest.fixture
def client(database_url: str, tmp_path: Path) -> Iterator[httpx.Client]:
    keep()
    with serving(tmp_path, database_url) as client:
        yield client


def test_runs_come_page_by_page(client):
    kept = keep(*(run_row(ago_s=10 + number) for number in range(7)))
    found: list[dict[str, Any]] = []
    asked: dict[str, Any] = {"limit": 3}
    while True:
        answer = client.get("/jobs/runs", params=asked)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        found += answer.json()["runs"]
        if answer.json()["next"] is None:
            break
        asked["after"] = answer.json()["next"]
    assert [run["id"] for run in found] == [row["id"] for row in kept]
    back = client.get("/jobs/runs", params={"limit": 3, "before": answer.json()["previous"]}).json()
    assert [run["id"] for run in back["runs"]] == [row["id"] for row in kept[3:6]]
    first = found[0]
    assert datetime.fromisoformat(first["started_at"]) == kept[0]["started_at"]
    assert first["started_at"].endswith("Z")
    assert first["duration_s"] == 0.25
    assert first["trace_id"] == kept[0]["trace_id"]


def test_limits_are_capped(client):
    answer = client.get("/jobs/runs", params={"limit": 10**12})
    assert (answer.status_code, answer.json()["limit"]) == (200, 500)


def test_runs_are_filtered(client):
    kept = keep(
        run_row("cleanup", ago_s=7300),
        run_row("cleanup", "failed", ago_s=60, error_type="OSError", error_message="disk full", user_id="ü-1"),
        run_row("digest", ago_s=30, source="celery"),
    )
    since = (NOW - timedelta(seconds=45)).isoformat()
    for asked, expected in (
        ({"job": "cleanup"}, [1, 0]),
        ({"job": "cleanup", "status": "failed"}, [1]),
        ({"error": "FULL disk"}, [1]),
        ({"user": "ü-1"}, [1]),
        ({"source": "celery"}, [2]),
        ({"hours": 1}, [2, 1]),
        ({"from": since}, [2]),
        ({"to": since}, [1, 0]),
        ({"trace_id": kept[2]["trace_id"].upper()}, [2]),
        ({"correlation_id": kept[0]["correlation_id"]}, [0]),
        ({"job": "", "status": "", "error": ""}, [2, 1, 0]),
        ({"job": "nothing"}, []),
    ):
        answer = client.get("/jobs/runs", params=asked).json()
        assert [run["id"] for run in answer["runs"]] == [kept[number]["id"] for number in expected], asked


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("status=lots", "status: completed"),
        ("source=cron", "source: celery"),
        ("limit=0", "limit: greater than or equal to 1"),
        ("limit=many", "limit: integer"),
        ("hours=-1", "hours: greater than 0"),
        ("hours=nan", "hours: finite"),
        ("hours=1e300", "hours: less than or equal to"),
        ("from=yesterday", "from: datetime"),
        ("from=2026-01-31T12:00:00", "from: timezone"),
        ("to=0001-01-01T00:00:00%2B14:00", "to: must lie between 1970"),
        ("from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "from must be before to"),
        ("hours=1&from=2026-01-01T00:00:00Z", "hours can't be given together with from"),
        ("trace_id=xyz", "trace_id: pattern"),
        ("after=1", "after: pattern"),
        (f"after={'0' * 32}&before={'0' * 32}", "after and before can't be given together"),
        ("error=%00", "error: must be a text without NUL"),
        (f"job={'x' * 256}", "job: at most 255 characters"),
        ("limt=3", "limt is not known here: use hours, from, to, limit"),
    ],
)
def test_a_filter_that_can_not_be_used_is_named(api, asked, named):
    answer = api.get(f"/jobs/runs?{asked}")
    assert answer.status_code == 422
    said = str([f"{item['loc'][-1]}: {item['msg']}" for item in answer.json()["detail"]])
    for part in named.split(": "):
        assert part in said


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server over an empty history that is not there yet, for what needs none."""
    folder = tmp_path_factory.mktemp("api")
    with serving(folder, f"sqlite:///{folder / 'no folder' / 'history.db'}") as client:
        yield client
    assert not (folder / "no folder").exists()


def test_a_history_that_is_not_there_yet_reads_as_empty(api):
    assert api.get("/jobs").json() == {"jobs": [], "is_cut": False}
    assert api.get("/jobs/runs").json()["runs"] == []
    assert api.get("/jobs/stats").json()["jobs"] == []
    assert api.get("/jobs/stats").json()["overall"]["total"] == 0


def test_one_run_is_told_with_all_that_is_kept(client):
    (kept,) = keep(
        run_row(
            status="failed",
            result={"rows": [1, "ö", "\ud83d\ude00"]},
            metadata={"topics": 3},
            traceback="Traceback ...",
            error_message="x" * 5000,
        )
    )
    run = client.get(f"/jobs/runs/{kept['id']}").json()
    assert run["result"] == {"rows": [1, "ö", "\U0001f600"]}
    assert run["metadata"] == {"topics": 3}
    assert run["traceback"] == "Traceback ..."
    assert len(run["error_message"]) == 5000


def test_half_of_a_pair_of_surrogates_in_a_payload_is_no_trouble(client, database_url):
    if database_url.startswith("postgresql"):
        # It takes no such text in the first place
        return
    (kept,) = keep(run_row(result={"text": "\ud83d"}))
    answer = client.get(f"/jobs/runs/{kept['id']}")
    assert answer.status_code == 200
    assert answer.json()["result"] == {"text": "\ud83d"}


def test_a_run_that_is_not_there_is_not_found_with_a_reason(client):
    for identity in ("0" * 32, "nope", "%00", "%F0%28", "x" * 5000, "%27%3B--", "%25", "\u00fc"):
        answer = client.get(f"/jobs/runs/{identity}")
        assert answer.status_code == 404, identity
        assert "it never was, or it is archived by now" in answer.json()["detail"]


def test_statistics_tell_of_each_job_and_of_all(client):
    kept = keep(
        *(run_row("cleanup", ago_s=60 * number, took_s=0.1) for number in range(9)),
        run_row("cleanup", "failed", took_s=0.1),
        run_row("digest", "missed", ago_s=300_000, took_s=None),
    )
    answer = client.get("/jobs/stats").json()
    overall = answer["overall"]
    assert (overall["total"], overall["ok"], overall["failed"], overall["missed"]) == (10, 9, 1, 1)
    assert overall["success_rate"] == pytest.approx(0.9)
    assert overall["p95_s"] == pytest.approx(0.1, rel=0.05)
    cleanup = answer["jobs"][0]
    assert cleanup["job"] == "cleanup"
    assert cleanup["last_run"]["id"] == kept[0]["id"]
    assert (answer["from"], answer["to"]) == (None, None)
    told = client.get("/jobs/stats", params={"hours": 24, "job": "digest"}).json()
    assert told["jobs"][0]["missed"] == 0
    assert datetime.fromisoformat(told["from"]).minute == 0


def test_who_is_elsewhere_sees_nothing_without_the_token(database_url, tmp_path):
    keep(run_row())
    with serving(tmp_path, database_url, {"CLEW_ADMIN_TOKEN": TOKEN}) as client:
        elsewhere = {"X-Forwarded-For": "203.0.113.9"}
        for path in ("/jobs", "/jobs/runs", f"/jobs/runs/{'0' * 32}", "/jobs/stats", "/jobs/runs?status=nonsense"):
            refused = client.get(path, headers=elsewhere)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer" in refused.json()["detail"]
            wrong = client.get(path, headers={**elsewhere, "Authorization": f"Bearer {TOKEN}x"})
            assert wrong.status_code == 401
        let_in = client.get("/jobs/runs", headers={**elsewhere, "Authorization": f"Bearer {TOKEN}"})
        assert len(let_in.json()["runs"]) == 1
        assert client.get("/jobs/runs").status_code == 200


def test_another_name_for_this_machine_is_refused(api):
    answer = api.get("/jobs", headers={"Host": "rebound.example"})
    assert answer.status_code == 403
    assert "use localhost" in answer.json()["detail"]


CONTROL = [
    ("POST", "/jobs/nightly/run"),
    ("POST", "/jobs/nightly/pause"),
    ("POST", "/jobs/nightly/resume"),
    ("DELETE", "/jobs/nightly"),
]


@pytest.mark.parametrize(("method", "path"), CONTROL)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "rebound.example"},
        {"X-Forwarded-For": "203.0.113.9"},
    ],
    ids=str,
)
def test_pages_of_other_sites_change_nothing(api, method, path, headers):
    answer = api.request(method, path, headers=headers)
    assert answer.status_code == 403, answer.text


def test_control_asks_for_the_token_where_one_is_set(tmp_path):
    with serving(tmp_path, f"sqlite:///{tmp_path / 'history.db'}", {"CLEW_ADMIN_TOKEN": TOKEN}) as client:
        token = {"Authorization": f"Bearer {TOKEN}"}
        for method, path in CONTROL:
            assert client.request(method, path).status_code == 401
            assert client.request(method, path, headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401
            assert client.request(method, path, headers={**token, "Origin": "https://evil.example"}).status_code == 403
            assert client.request(method, path, headers=token).status_code == 404


def test_a_job_that_no_scheduler_has_is_not_found(client):
    for job_id in ("nightly", "a/b", "runs", "%00", "x" * 3000, "\u00fc", "%F0%28"):
        for verb in ("run", "pause", "resume"):
            answer = client.post(f"/jobs/{quote(job_id, safe='%')}/{verb}")
            assert answer.status_code == 404
            assert "no scheduler has a job" in answer.json()["detail"]


def test_all_of_it_is_in_openapi(api):
    document = api.get("/openapi.json").json()
    paths = {path: set(verbs) for path, verbs in document["paths"].items() if path.startswith("/jobs")}
    assert paths == {
        "/jobs": {"get"},
        "/jobs/runs": {"get"},
        "/jobs/runs/{run_id}": {"get"},
        "/jobs/stats": {"get"},
        "/jobs/{job_id}/run": {"post"},
        "/jobs/{job_id}/pause": {"post"},
        "/jobs/{job_id}/resume": {"post"},
        "/jobs/{job_id}": {"delete"},
    }
    names = {parameter["name"] for parameter in document["paths"]["/jobs/runs"]["get"]["parameters"]}
    assert names == {
        "hours", "from", "to", "job", "status", "source", "user", "error", "trace_id", "correlation_id", "limit", "after", "before",
    }  # fmt: skip
    assert {"401", "403", "404", "503"} <= set(document["paths"]["/jobs/runs/{run_id}"]["get"]["responses"])


HOSTILE = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "",
            " ",
            "null",
            "NaN",
            "-inf",
            "1e999",
            "-1",
            "9" * 5000,
            "٣",
            "\x00",
            "\ud7ff",
            "\U0010ffff",
            "%",
            "_",
            "\\",
            "'",
            '"; --',
            "0x10",
            "true",
            "[]",
        ]
    ),
    st.datetimes(timezones=st.just(None) | st.timezones()).map(lambda moment: moment.isoformat()),
    st.integers().map(str),
    st.floats().map(str),
)


def fitting(schema: Mapping[str, Any]) -> st.SearchStrategy[str]:
    """Return values that a parameter's schema allows."""
    choices = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    part = choices[0]
    if "enum" in part:
        return st.sampled_from(part["enum"])
    if part.get("format") == "date-time":
        return st.datetimes(timezones=st.timezones()).map(lambda moment: moment.isoformat())
    if part.get("pattern"):
        return st.from_regex(part["pattern"], fullmatch=True).map(lambda text: text.strip())
    if part["type"] in ("integer", "number"):
        numbers = st.integers(1, 2000) if part["type"] == "integer" else st.floats(0.001, 800_000)
        return numbers.map(str)
    return st.text(max_size=part.get("maxLength", 255))


def test_no_query_however_hostile_is_answered_with_an_error_of_the_server(client):
    keep(
        *(run_row(ago_s=number, status="failed", error_message="it can't be read %_\\ 'ö'") for number in range(1, 40))
    )
    document = client.get("/openapi.json").json()
    operations = [
        (verb, path, list(operation.get("parameters", ())))
        for path, verbs in document["paths"].items()
        if path.startswith("/jobs")
        for verb, operation in verbs.items()
    ]

    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def ask(data: st.DataObject) -> None:
        verb, path, parameters = data.draw(st.sampled_from(operations))
        query: list[tuple[str, str]] = []
        for one in parameters:
            if one["in"] == "path":
                value = data.draw(st.one_of(HOSTILE, st.sampled_from(["0" * 32])))
                path = path.replace(f"{{{one['name']}}}", quote(value, safe="", errors="replace") or "-")
            elif data.draw(st.booleans()):
                query.append((one["name"], data.draw(st.one_of(fitting(one["schema"]), HOSTILE))))
        if data.draw(st.booleans()):
            query.append((data.draw(st.text(max_size=20)), data.draw(HOSTILE)))
        encoded = "&".join(f"{quote(name, errors='replace')}={quote(value, errors='replace')}" for name, value in query)
        answer = client.request(verb, f"{path}?{encoded}")
        assert answer.status_code in (200, 404, 405, 422), (verb, path, query, answer.text)
        assert answer.headers["content-type"] == "application/json"
        answer.json()

    ask()


RAW = st.binary(max_size=80).map(lambda raw: quote(raw, safe="&=+%;"))


def test_no_query_string_at_all_is_answered_with_an_error_of_the_server(client):
    keep(run_row())

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(["/jobs", "/jobs/runs", "/jobs/stats"]), st.one_of(RAW, RAW.map(lambda raw: f"error={raw}")))
    def ask(path: str, query: str) -> None:
        answer = client.get(f"{path}?{query}")
        assert answer.status_code in (200, 422), (path, query, answer.text)

    ask()


def test_a_database_that_is_away_is_said_and_the_app_goes_on(postgresql: PostgreSQL, monkeypatch, tmp_path):
    url = postgresql.new_database()
    monkeypatch.setenv("CLEW_DATABASE_URL", url)
    keep(run_row())
    with serving(tmp_path, url) as client:
        assert len(client.get("/jobs/runs").json()["runs"]) == 1
        with postgresql.away():
            for path in ("/jobs", "/jobs/runs", "/jobs/stats"):
                answer = client.get(path)
                assert answer.status_code == 503
                assert "can't be read" in answer.json()["detail"]
                assert answer.headers["retry-after"]
            assert client.post("/jobs/nightly/run").status_code == 503
            assert client.get("/alive").status_code == 200
        assert len(client.get("/jobs/runs").json()["runs"]) == 1


def test_tables_that_are_not_there_are_asked_for(postgresql_url, tmp_path):
    with serving(tmp_path, postgresql_url) as client:
        answer = client.get("/jobs/runs")
        assert answer.status_code == 503
        assert "run 'clew db upgrade'" in answer.json()["detail"]


def test_a_history_that_is_switched_off_is_said(tmp_path):
    with serving(tmp_path, f"sqlite:///{tmp_path / 'history.db'}", {"CLEW_HISTORY": "false"}) as client:
        answer = client.get("/jobs/runs")
        assert answer.status_code == 503
        assert "CLEW_HISTORY" in answer.json()["detail"]


def test_a_database_that_hangs_holds_up_nothing_else(postgresql: PostgreSQL, monkeypatch, tmp_path):
    url = postgresql.new_database()
    monkeypatch.setenv("CLEW_DATABASE_URL", url)
    keep(run_row())

    async def scene(address: str) -> tuple[list[int], float]:
        async with httpx.AsyncClient(base_url=address, timeout=60, limits=httpx.Limits(max_connections=300)) as client:
            asked = [asyncio.ensure_future(client.get("/jobs/runs")) for _ in range(100)]
            longest = 0.0
            while not all(one.done() for one in asked):
                for path in ("/alive", "/alive-in-a-thread"):
                    started = time.monotonic()
                    assert (await client.get(path)).status_code == 200
                    longest = max(longest, time.monotonic() - started)
                await asyncio.sleep(0.05)
            return [one.result().status_code for one in asked], longest

    with serving(tmp_path, url) as client:
        assert client.get("/jobs/runs").status_code == 200
        with postgresql.frozen():
            statuses, longest = asyncio.run(scene(str(client.base_url)))
        assert set(statuses) == {503}
        # The deadline of an answer is 10 s: whoever waited for those threads would have waited as long
        assert longest < 5
        assert client.get("/jobs/runs").status_code in (200, 503)


def test_many_at_once_are_all_answered(client):
    keep(*(run_row(ago_s=number) for number in range(1, 60)))

    async def scene() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=30) as many:
            return await asyncio.gather(*(many.get("/jobs/runs", params={"limit": 20}) for _ in range(50)))

    answers = asyncio.run(scene())
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
