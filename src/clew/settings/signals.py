"""The settings of the three signals: where each goes, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from clew.settings.values import Endpoint, Headers, Milliseconds, lower

Signal = Literal["traces", "metrics", "logs"]
SIGNALS: tuple[Signal, ...] = ("traces", "metrics", "logs")
Protocol = Literal["http/protobuf", "grpc"]
Compression = Literal["gzip", "none"]


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where one signal goes, and how: what is set for it, else what is set for all.

    Attributes:
        url: the whole address of the signal over HTTP; over gRPC the endpoint's.
        protocol: ``http/protobuf`` or ``grpc``.
        headers: sent with every batch.
        compression: ``gzip`` or ``none``.
        timeout_s: how long an answer is waited for, in seconds.
        insecure: without TLS, where a gRPC endpoint is given without ``http://`` or ``https://``.
        certificate: the authority's certificate, or ``None`` for those of the system.
        client_certificate: this client's certificate, for mutual TLS, or ``None``.
        client_key: its key, or ``None``.
    """

    url: str
    protocol: Protocol
    headers: dict[str, str]
    compression: Compression
    timeout_s: float
    insecure: bool
    certificate: Path | None
    client_certificate: Path | None
    client_key: Path | None

    @property
    def address(self) -> str:
        """Return scheme, host and port: what answers, or does not, for every signal that goes there."""
        parts = urlsplit(self.url if "://" in self.url else f"//{self.url}")
        return f"{parts.scheme}://{parts.netloc}"


class SignalSettings(BaseModel):
    """What is set for one signal alone; what is not falls back to the setting for all.

    Example:
        >>> from clew.settings import Settings
        >>> Settings(traces={"endpoint": "http://traces:4318/v1/traces"}).destination("traces").url
        'http://traces:4318/v1/traces'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    protocol: Annotated[Protocol, BeforeValidator(lower)] | None = None
    """Whether it goes over HTTP or gRPC."""
    endpoint: Endpoint | None = None
    """The whole address: nothing is added to its path."""
    headers: Headers | None = None
    """In the place of the headers for all."""
    compression: Annotated[Compression, BeforeValidator(lower)] | None = None
    """How its batches are compressed."""
    export_timeout_s: Annotated[Milliseconds, Field(gt=0)] | None = None
    """How long an answer is waited for; the variable is in milliseconds."""
    insecure: bool | None = None
    """Whether gRPC goes without TLS, where the endpoint is ``host:port``."""
    certificate: Path | None = None
    """The certificate of the authority that the endpoint's is signed by (PEM)."""
    client_certificate: Path | None = None
    """This client's certificate, for mutual TLS (PEM)."""
    client_key: Path | None = None
    """The key of this client's certificate (PEM)."""
