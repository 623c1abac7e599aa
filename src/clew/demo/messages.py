"""The messages that travel between the demo's services, and the streams that they travel on."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from clew.demo.settings import AGENTS

DOCUMENTS: Final = "documents"
"""The stream of documents that were submitted: gateway to orchestrator."""
DOCUMENTS_READY: Final = "documents.ready"
"""The stream of documents that all agents have worked on: exporter to scheduler."""
EXPORTS: Final = "exports"
"""The stream of exports that were asked for: gateway to scheduler."""


def agent_stream(agent: str) -> str:
    """Return the stream of what is handed over to an agent in another process."""
    return f"agents.{agent}"


STREAMS: Final = (DOCUMENTS, DOCUMENTS_READY, EXPORTS, *map(agent_stream, AGENTS))
"""Every stream of the demo."""

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DocumentSubmitted(_Message):
    """A document was accepted and is to be worked on."""

    document_id: Id


class DocumentReady(_Message):
    """All agents have worked on a document; it is to be verified."""

    document_id: Id


class ExportRequested(_Message):
    """An export was accepted and is to be scheduled."""

    export_id: Id


class AgentWork(_Message):
    """What is handed from agent to agent.

    Attributes:
        subject: what ``id`` names.
        id: the document or the export.
        carrier: the thread at the handoff, which goes on wherever the work is picked up; empty within a process.
    """

    subject: Literal["document", "export"]
    id: Id
    carrier: dict[str, str] = Field(default_factory=dict)
