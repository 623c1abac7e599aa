"""What the demo's user does: submits documents, good and bad, waits for them, and downloads an export.

For any gateway, so that the same scenario runs in the demo, in the tests against real backends, and against containers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from clew.demo.corpus import Text, documentation
from clew.demo.messages import DOCUMENTS
from clew.demo.settings import DemoError, DemoSettings, Queue
from clew.demo.streams import QueueAwayError, put_bytes

_REQUEST_TIMEOUT_S: Final = 10.0
_POLL_EVERY_S: Final = 0.05
_MALFORMED_JSON: Final = b'{"title": "Half a document", "text": '
MALFORMED_ENVELOPE: Final = b"\x00not an envelope"
"""What no consumer can read."""


class ScenarioError(DemoError):
    """The system did not do what was asked of it; the message says what."""


@dataclass(frozen=True, kw_only=True)
class AcceptedDocument:
    """A document that the gateway accepted; ``trace_id`` is the trace that began with it."""

    id: str
    title: str
    trace_id: str


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Input that the gateway refused: what was wrong with it, the HTTP status, and what the gateway said."""

    what: str
    status: int
    message: str


@dataclass(frozen=True, kw_only=True)
class ScenarioResult:
    """What became of the scenario.

    Attributes:
        documents: the accepted documents, in the order of submission; each was worked on to its end.
        refusals: what was refused, as it had to be.
        export_id: the export.
        export_trace_id: the trace that began with the export.
        exported_documents: how many lines the downloaded file has.
        topics: the topics that are weightiest over all documents.
        duration_s: from the first request to the last answer.
    """

    documents: tuple[AcceptedDocument, ...]
    refusals: tuple[Refusal, ...]
    export_id: str
    export_trace_id: str
    exported_documents: int
    topics: tuple[str, ...] = field(default=())
    duration_s: float

    @property
    def shown(self) -> AcceptedDocument:
        """The document whose trace is shown."""
        return self.documents[len(self.documents) // 2]


Progress = Callable[[str, int, int], None]


def run_scenario(
    gateway_url: str,
    documents: int | None = None,
    *,
    queue_url: str | None = None,
    queue: Queue = "valkey",
    timeout_s: float = 60.0,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> ScenarioResult:
    """Submit documents, wait until each is verified, try bad input, and download an export.

    Args:
        gateway_url: such as ``http://127.0.0.1:8000``.
        documents: how many of Python's documentation texts; ``None`` for all.
        queue_url: where a malformed envelope is put on the documents' stream; ``None`` for not.
        queue: who carries the messages there.
        timeout_s: how long all of it may take.
        progress: called with what is done, how many and out of how many.
        should_stop: asked again and again; the scenario ends early when it says so.

    Raises:
        ScenarioError: something is not as it had to be, or took too long.
    """
    with httpx.Client(base_url=gateway_url, timeout=_REQUEST_TIMEOUT_S, trust_env=False) as client:
        run = _Run(client, timeout_s=timeout_s, progress=progress or (lambda *_: None), should_stop=should_stop)
        try:
            return run.all(documentation(documents), queue_url, queue)
        except httpx.HTTPError as error:
            raise ScenarioError(
                f"the gateway at {gateway_url} does not answer ({type(error).__name__}: {error})"
            ) from error


def submit(client: httpx.Client, text: Text) -> AcceptedDocument:
    """Submit one document.

    Args:
        client: an HTTP client with the gateway as its base.
        text: what is submitted.

    Raises:
        ScenarioError: it was not accepted.
    """
    answer = client.post("/documents", json={"title": text.title, "text": text.text})
    if answer.status_code != 202:
        raise ScenarioError(f"the document {text.title!r} was answered with {answer.status_code}: {answer.text[:200]}")
    accepted = answer.json()
    return AcceptedDocument(id=accepted["id"], title=text.title, trace_id=accepted["trace_id"])


def put_malformed_envelope(queue: Queue, queue_url: str) -> None:
    """Put a message on the documents' stream that no consumer can read.

    Args:
        queue: who carries the messages.
        queue_url: such as ``redis://127.0.0.1:6379/0`` or ``nats://127.0.0.1:4222``.

    Raises:
        ScenarioError: nobody answers there.
    """
    try:
        put_bytes(queue, queue_url, DOCUMENTS, MALFORMED_ENVELOPE)
    except QueueAwayError as error:
        raise ScenarioError(str(error)) from error


class _Run:
    def __init__(
        self, client: httpx.Client, *, timeout_s: float, progress: Progress, should_stop: Callable[[], bool]
    ) -> None:
        self._client = client
        self._started = time.monotonic()
        self._timeout_s = timeout_s
        self._progress = progress
        self._should_stop = should_stop

    def all(self, texts: Sequence[Text], queue_url: str | None, queue: Queue) -> ScenarioResult:
        accepted = []
        for number, text in enumerate(texts, start=1):
            if self._should_stop():
                raise ScenarioError("stopped while documents were submitted")
            accepted.append(submit(self._client, text))
            self._progress("submitted", number, len(texts))
        refusals = tuple(self._refused())
        if queue_url is not None:
            put_malformed_envelope(queue, queue_url)
        self._await_documents(accepted)
        export_id, export_trace_id, exported = self._export(len(accepted))
        topics = tuple(topic["name"] for topic in self._get("/topics?limit=10"))
        return ScenarioResult(
            documents=tuple(accepted),
            refusals=refusals,
            export_id=export_id,
            export_trace_id=export_trace_id,
            exported_documents=exported,
            topics=topics,
            duration_s=time.monotonic() - self._started,
        )

    def _refused(self) -> Iterator[Refusal]:
        """Submit what must be refused, and see that it is."""
        oversized = b" " * (DemoSettings.load().max_document_bytes + 1)
        for what, body, expected in (
            ("an empty text", b'{"title": "Nothing", "text": " "}', (422,)),
            ("an oversized body", oversized, (413,)),
            ("malformed JSON", _MALFORMED_JSON, (400, 422)),
        ):
            answer = self._client.post("/documents", content=body, headers={"content-type": "application/json"})
            if answer.status_code not in expected:
                raise ScenarioError(f"{what} was answered with {answer.status_code}, not with {expected[0]}")
            yield Refusal(what=what, status=answer.status_code, message=_detail(answer))

    def _await_documents(self, accepted: Sequence[AcceptedDocument]) -> None:
        for number, document in enumerate(accepted, start=1):
            found = self._await(f"/documents/{document.id}", {"verified", "failed"}, f"the document {document.title!r}")
            if found["status"] == "failed":
                raise ScenarioError(f"the document {document.title!r} failed: {found['error']}")
            if not found["topics"] or not found["summary"]:
                raise ScenarioError(f"the document {document.title!r} has no topics or no summary")
            self._progress("verified", number, len(accepted))

    def _export(self, at_least: int) -> tuple[str, str, int]:
        accepted = self._client.post("/exports").raise_for_status().json()
        found = self._await(accepted["url"], {"done", "failed"}, "the export")
        if found["status"] == "failed":
            raise ScenarioError(f"the export failed: {found['error']}")
        lines = self._client.get(found["url"]).raise_for_status().text.count("\n")
        if lines < at_least:
            raise ScenarioError(f"the export has {lines} documents, not the {at_least} that were accepted")
        return accepted["id"], accepted["trace_id"], lines

    def _await(self, path: str, wanted: set[str], what: str) -> Any:
        while True:
            found = self._get(path)
            if found["status"] in wanted:
                return found
            if self._should_stop():
                raise ScenarioError(f"stopped while {what} was worked on")
            if time.monotonic() - self._started > self._timeout_s:
                raise ScenarioError(f"{what} is still {found['status']} after {self._timeout_s:.0f} s")
            time.sleep(_POLL_EVERY_S)

    def _get(self, path: str) -> Any:
        return self._client.get(path).raise_for_status().json()


def _detail(answer: httpx.Response) -> str:
    detail = answer.json().get("detail", "")
    return str(detail[0].get("msg", "")) if isinstance(detail, list) and detail else str(detail)
