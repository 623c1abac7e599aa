"""What the engine needs at hand: one for the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from clew.settings import Settings

if TYPE_CHECKING:
    from clew.engine.logs import LogStream
    from clew.pipeline.providers import Pipeline
    from clew.pipeline.tracing import Tracer


@dataclass(slots=True, kw_only=True, weakref_slot=True)
class State:
    """What the engine needs at hand.

    Attributes:
        settings: the settings in force, or ``None`` before :func:`configure`.
        pipeline: telemetry's way out, or ``None`` when everything is off.
        tracer: starts spans, or ``None`` when tracing is off.
        log_stream: takes log events, or ``None`` before :func:`configure`.
        max_value_length: characters that are kept of an attribute's value.
        redact: returns what may be shown of a value under a key, or ``None`` before :func:`configure`.
        capturing: a test holds what is emitted; what the app configures is of no consequence.
        lock: held by who sets the process up, or ends it.
    """

    settings: Settings | None = None
    pipeline: Pipeline | None = None
    tracer: Tracer | None = None
    log_stream: LogStream | None = None
    max_value_length: int = 8_192
    redact: Callable[[str, Any], Any] | None = None
    capturing: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)


state: Final = State()
