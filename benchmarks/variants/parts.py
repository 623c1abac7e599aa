"""What a peer may offer to be measured. Standard library only: it is imported beside every peer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

Asgi = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]


AGENT_WORK: Final = ("task of an agent", "handoff", "handoff, picked up by a task", "LLM call")


def nothing() -> None:
    """Do nothing: for a peer that has nothing to flush."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a peer is set up.

    Attributes:
        endpoint: where OTLP is sent, or empty for a transport that takes everything and drops it.
        protocol: ``http`` or ``grpc``.
        share: how much of the traces is sampled, from 0 to 1.
        mode: a word of the peer's own, such as ``tuned``.
        file: where log lines are written, or empty for nowhere.
        valkey: the address of a Valkey, where messages are measured.
    """

    endpoint: str = ""
    protocol: str = "http"
    share: float = 1.0
    mode: str = ""
    file: str = ""
    valkey: str = ""


@dataclass(frozen=True, kw_only=True)
class Served:
    """An app and what sends what it has emitted.

    Attributes:
        app: an ASGI app that answers ``GET /items/{item_id}``.
        flush: returns when everything emitted so far has been sent.
    """

    app: Asgi
    flush: Callable[[], object] = nothing


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Single things that an app does.

    Attributes:
        each: what to call, by name.
        flush: returns when everything emitted so far has been sent.
    """

    each: dict[str, Callable[[], object]]
    flush: Callable[[], object] = nothing


@dataclass(frozen=True, kw_only=True)
class Spans:
    """A source of spans with five attributes.

    Attributes:
        emit: makes one.
        emit_request: makes one with one child, as a small request does.
        flush: returns when everything emitted so far has been sent.
        shutdown: what a program calls before it ends, or nothing where the peer does it by itself.
        account: what the peer itself says became of its spans.
    """

    emit: Callable[[], object]
    emit_request: Callable[[], object] = nothing
    flush: Callable[[], object] = nothing
    shutdown: Callable[[], object] = nothing
    account: Callable[[], dict[str, int]] = field(default=dict)


@dataclass(frozen=True, kw_only=True)
class Messages:
    """A queue with somebody at each end.

    Attributes:
        start: connects both ends.
        run: sends some messages, and returns when all of them have been processed.
        flush: returns when everything emitted so far has been sent, and every record written.
    """

    start: Callable[[], Awaitable[None]]
    run: Callable[[int], Awaitable[None]]
    flush: Callable[[], object] = nothing


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A counter and a histogram with one label.

    Attributes:
        add: counts once under a label value.
    """

    add: Callable[[str], object]
