"""The way of encoded batches to the endpoints: one sender for each signal, no retries. The worker decides what happens next."""

from __future__ import annotations

import gzip
import importlib
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final, Protocol

from clew.clock import utc_now
from clew.settings import Destination, Settings, Signal

GZIP_LEVEL: Final = 1

_RESPONSES: Final[dict[Signal, tuple[str, str]]] = {
    "traces": ("opentelemetry.proto.collector.trace.v1.trace_service_pb2", "ExportTraceServiceResponse"),
    "metrics": ("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2", "ExportMetricsServiceResponse"),
    "logs": ("opentelemetry.proto.collector.logs.v1.logs_service_pb2", "ExportLogsServiceResponse"),
}
_REJECTED: Final[dict[Signal, str]] = {
    "traces": "rejected_spans",
    "metrics": "rejected_data_points",
    "logs": "rejected_log_records",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an endpoint answered to one batch.

    Attributes:
        delivered: the endpoint took the batch.
        retry: the batch may be sent again; else it never will be accepted.
        rejected: items of a delivered batch that the endpoint refused.
        retry_after_s: how long the endpoint asked to be left alone, or ``None``.
        problem: why it, or a part of it, was not delivered, in a few words.
        answered: whether the endpoint said so itself, and may take other signals; else nobody was there.
    """

    delivered: bool = False
    retry: bool = False
    rejected: int = 0
    retry_after_s: float | None = None
    problem: str = ""
    answered: bool = False


class Sender(Protocol):
    """Takes the batches of one signal to one endpoint."""

    def send(self, body: bytes, *, compressed: bool, timeout_s: float) -> Outcome:
        """Deliver one batch; never raises."""
        ...

    def cancel(self) -> None:
        """End a send that is under way in another thread, at once."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Transport(Protocol):
    """Takes encoded batches somewhere. Each signal is sent by one thread at a time; different signals at the same time."""

    def send(self, signal: Signal, body: bytes, *, compressed: bool, timeout_s: float) -> Outcome:
        """Deliver one batch; never raises."""
        ...

    def cancel(self) -> None:
        """End every send that is under way in another thread, at once."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class OtlpTransport:
    """Sends to the destinations of the settings, over HTTP or gRPC. Nothing is connected or imported before the first send."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._senders: dict[Signal, Sender] = {}

    def send(self, signal: Signal, body: bytes, *, compressed: bool, timeout_s: float) -> Outcome:
        """Send one batch over a connection of the signal's own."""
        try:
            sender = self._senders.get(signal)
            if sender is None:
                sender = self._senders[signal] = _sender(signal, self._settings.destination(signal))
            return sender.send(body, compressed=compressed, timeout_s=timeout_s)
        except Exception as error:
            # A header, a certificate or a library that can't be used: what is to be sent is not to blame
            return Outcome(retry=True, problem=str(error) or type(error).__name__)

    def cancel(self) -> None:
        """End every send that is under way."""
        for sender in tuple(self._senders.values()):
            sender.cancel()

    def close(self) -> None:
        """Close the connections."""
        senders, self._senders = self._senders, {}
        for sender in senders.values():
            sender.close()


def _sender(signal: Signal, destination: Destination) -> Sender:
    # Imported when chosen: neither is needed where the other one, or none, is
    if destination.protocol == "grpc":
        try:
            from clew.pipeline.grpc_sender import GrpcSender
        except ImportError as error:
            raise ImportError(f"OTLP over gRPC needs grpcio: pip install 'clew[grpc]' ({error})") from None
        return GrpcSender(signal, destination)
    from clew.pipeline.http_sender import HttpSender

    return HttpSender(signal, destination)


def compress(body: bytes) -> bytes:
    """Return ``body`` in gzip at the level at which telemetry shrinks most for its CPU time."""
    return gzip.compress(body, GZIP_LEVEL, mtime=0)


def delivered(signal: Signal, answer: bytes) -> Outcome:
    """Return what an endpoint that took a batch said about it: it may have refused a part.

    Args:
        signal: whose endpoint it was.
        answer: the encoded ``ExportTraceServiceResponse``, or its sibling; what can't be read counts as nothing said.
    """
    if not answer:
        return Outcome(delivered=True)
    try:
        # Most endpoints answer with nothing: protobuf, which takes long to import, is only needed for those that say more
        module, name = _RESPONSES[signal]
        partial = getattr(importlib.import_module(module), name).FromString(answer).partial_success
        return Outcome(
            delivered=True,
            rejected=max(0, int(getattr(partial, _REJECTED[signal]))),
            problem=printable(partial.error_message),
        )
    except Exception:
        return Outcome(delivered=True)


def retry_after_s(value: str | None, *, now: datetime | None = None) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for, or ``None`` where it says nothing that makes sense.

    Args:
        value: seconds, or a date.
        now: what a date is compared with; by default the time of now.

    Example:
        >>> retry_after_s("120"), retry_after_s("soon")
        (120.0, None)
    """
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, (parsedate_to_datetime(value) - (now or utc_now())).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None


def printable(text: str) -> str:
    """Return what an endpoint said, as far as it is fit for one line of a log."""
    shown = " ".join(text[:200].split())
    # A page of a proxy says nothing in one line
    return shown if shown.isprintable() and not shown.startswith("<") else ""
