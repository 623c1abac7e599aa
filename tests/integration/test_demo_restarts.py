"""The server that carries the demo's messages is killed and started again under load: nothing that was accepted is lost."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from clew.demo.corpus import documentation
from clew.history.models import QueueMessage
from tests.integration.job_history import History
from tests.integration.running_demo import Replacements, running_demo
from tests.integration.waiting import eventually

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds processes by /proc, which is Linux's"
)

RESTARTS = 3
BETWEEN = 6
END_WITHIN_S = 120.0


class Submitter(threading.Thread):
    """Submits documents one after the other, and keeps count of what was accepted and what was refused."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.accepted: list[str] = []
        self.refused = 0
        self.strange: list[str] = []
        self.stop = threading.Event()
        self._url = url

    def expect_more(self, documents: int) -> None:
        """Wait until that many more are accepted."""
        before = len(self.accepted)
        eventually(lambda: len(self.accepted) >= before + documents, "documents are accepted", within_s=60)

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            for text in itertools.cycle(documentation(8)):
                if self.stop.wait(0.05):
                    return
                answer = client.post("/documents", json={"title": text.title, "text": text.text})
                if answer.status_code == 202:
                    self.accepted.append(answer.json()["id"])
                elif answer.status_code == 503:
                    self.refused += 1
                else:
                    self.strange.append(f"{answer.status_code}: {answer.text[:200]}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("queue", "database"), [("valkey", "postgresql"), ("nats", "sqlite")])
def test_a_server_that_is_killed_and_started_again_under_load_loses_nothing(
    queue: str, database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    replacements = Replacements()
    url = f"sqlite:///{tmp_path / 'history.db'}"
    if database == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    variables = {"CLEW_DATABASE_URL": url, "CLEW_DATABASE_AUTO_UPGRADE": "true"}
    with (
        running_demo(tmp_path, DEMO_QUEUE=queue, DEMO_REDELIVER_AFTER_S="2", **variables) as demo,
        History(url) as history,
        httpx.Client(base_url=demo.addresses.gateway_url, timeout=60, trust_env=False) as client,
    ):
        member = next(member for member in demo.members if member.name == queue)
        submitter = Submitter(demo.addresses.gateway_url)
        submitter.start()
        try:
            for _ in range(RESTARTS):
                submitter.expect_more(BETWEEN)
                member = replacements.kill(member)
            submitter.expect_more(1)
        finally:
            submitter.stop.set()
            submitter.join()
            try:
                assert submitter.strange == []
                eventually(
                    lambda: {status(client, each) for each in submitter.accepted} == {"verified"},
                    "every accepted document is ready and verified",
                    within_s=END_WITHIN_S,
                )
                exported = export(client)
            finally:
                replacements.end()
        # The whole way over HTTP, after all that: every document is in what is downloaded
        assert exported >= set(submitter.accepted)
        sent = history.all(QueueMessage, queue="documents", direction="sent")
        assert sum(row["status"] == "sent" for row in sent) == len(submitter.accepted)
        assert sum(row["status"] == "failed" for row in sent) == submitter.refused


def status(client: httpx.Client, document_id: str) -> Any:
    return client.get(f"/documents/{document_id}").raise_for_status().json()["status"]


def export(client: httpx.Client) -> set[str]:
    """Ask for an export, poll it until it is done, download it, and return the documents that are in it."""
    export_id = client.post("/exports").raise_for_status().json()["id"]
    eventually(
        lambda: client.get(f"/exports/{export_id}").raise_for_status().json()["status"] == "done",
        "the export is done",
        within_s=60,
    )
    lines = client.get(f"/exports/{export_id}/download").raise_for_status().text.splitlines()
    return {json.loads(line)["id"] for line in lines}
