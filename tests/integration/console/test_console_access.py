"""Who may send, and who may look: tokens, loopback, and names that could mean another machine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from clew.console.app import console_app
from clew.console.errors import ConsoleError
from clew.console.server import ConsoleServer
from clew.console.store import Store

TOKEN = {"Authorization": "Bearer s3cret"}
ADMIN = {"Authorization": "Bearer adm1n"}
STRANGER = ("192.0.2.7", 50000)


def ask(
    app: Starlette,
    method: str,
    path: str,
    *,
    client: tuple[str, int],
    headers: dict[str, str] | None = None,
    base: str = "http://127.0.0.1:4318",
    **body: Any,
) -> httpx.Response:
    """Call the application as a client of any address would."""

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=client)
        async with httpx.AsyncClient(transport=transport, base_url=base) as session:
            return await session.request(method, path, headers=headers, **body)

    return asyncio.run(call())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as store:
        yield store


def test_a_token_is_needed_once_it_is_set(tmp_path: Path, otlp: Any) -> None:
    with (
        ConsoleServer(data_dir=tmp_path, port=0, token="s3cret") as console,
        httpx.Client(base_url=console.url) as client,
    ):
        body = otlp.spans(otlp.span(1, 1)).SerializeToString()
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"}, ADMIN):
            answer = client.post("/v1/traces", content=body, headers=otlp.protobuf | headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert b"send Authorization: Bearer <token>" in answer.content
        assert client.get("/api/summary").json()["spans"] == 0
        assert client.post("/v1/traces", content=body, headers=otlp.protobuf | TOKEN).status_code == 200
        assert client.get("/api/summary").json()["spans"] == 1


def test_without_a_token_only_this_machine_sends_and_looks(store: Store) -> None:
    app = console_app(store)
    for client in (("127.0.0.1", 1), ("::1", 1), ("::ffff:127.0.0.1", 1)):
        assert ask(app, "GET", "/api/summary", client=client).status_code == 200
        assert ask(app, "POST", "/v1/logs", client=client, json={}).status_code == 200
    for client in (STRANGER, ("::ffff:192.0.2.7", 1)):
        answer = ask(app, "GET", "/api/traces", client=client)
        assert answer.status_code == 403
        assert "set CLEW_CONSOLE_ADMIN_TOKEN" in answer.json()["error"]["message"]
        answer = ask(app, "POST", "/v1/logs", client=client, json={})
        assert answer.status_code == 403
        assert "set CLEW_CONSOLE_TOKEN" in answer.json()["message"]
        assert ask(app, "GET", "/api/healthz", client=client).status_code == 200


def test_the_admin_token_opens_the_console_to_others(store: Store) -> None:
    app = console_app(store, token="s3cret", admin_token="adm1n")
    assert ask(app, "GET", "/api/logs", client=STRANGER, headers=ADMIN, base="http://obs.example").status_code == 200
    for headers in ({}, TOKEN):
        answer = ask(app, "GET", "/api/logs", client=STRANGER, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert ask(app, "POST", "/v1/logs", client=STRANGER, headers=ADMIN, json={}).status_code == 401
    assert ask(app, "POST", "/v1/logs", client=STRANGER, headers=TOKEN, json={}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:4318", 200),
        ("127.0.0.1", 200),
        ("[::1]:4318", 200),
        ("LOCALHOST", 200),
        ("evil.example:4318", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("0.0.0.0:4318", 403),
        ("", 403),
    ],
)
def test_a_name_of_another_kind_is_refused_on_loopback(client: httpx.Client, host: str, status: int) -> None:
    answer = client.get("/api/summary", headers={"Host": host})
    assert answer.status_code == status
    assert client.post("/v1/logs", json={}, headers={"Host": host}).status_code == status
    if status == 403:
        name = host.partition(":")[0]
        assert answer.json()["error"]["message"] == (
            f"the Host header {name!r} is not a name of this machine alone: use localhost or 127.0.0.1"
        )


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_a_proxy_on_this_machine_does_not_make_its_clients_local(client: httpx.Client, header: str) -> None:
    assert client.get("/api/summary", headers={header: "127.0.0.1"}).status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_listening_for_other_machines_needs_a_token(tmp_path: Path, host: str) -> None:
    console = ConsoleServer(data_dir=tmp_path, host=host, port=0)
    with pytest.raises(ConsoleError, match=f"host '{host}' can be reached from other machines: set CLEW_CONSOLE_TOKEN"):
        console.start()


def test_listening_for_other_machines_with_a_token(tmp_path: Path) -> None:
    with ConsoleServer(data_dir=tmp_path, host="0.0.0.0", port=0, token="s3cret") as console:
        assert httpx.post(f"{console.url}/v1/logs", json={}).status_code == 401
        assert httpx.post(f"{console.url}/v1/logs", json={}, headers=TOKEN).status_code == 200


def test_listening_on_ipv6_loopback(tmp_path: Path) -> None:
    with ConsoleServer(data_dir=tmp_path, host="::1", port=0) as console:
        assert console.url.startswith("http://[::1]:")
        assert httpx.get(f"{console.url}/api/summary").status_code == 200


def test_an_empty_token_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="admin_token is empty"):
        console_app(store, admin_token=" ")
