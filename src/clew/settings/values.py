"""How the text of a variable becomes a value, and what is refused."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from typing import Annotated, Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, ValidationInfo
from pydantic_settings import NoDecode

SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
SAMPLER_GROUP = "opentelemetry_traces_sampler"
ID_GENERATORS = ("random",)
ID_GENERATOR_GROUP = "opentelemetry_id_generator"

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def lower(value: Any) -> Any:
    """Take a word in any case."""
    return value.strip().lower() if isinstance(value, str) else value


def milliseconds(value: Any) -> Any:
    """Turn the specification's milliseconds into the seconds that clew counts in."""
    if isinstance(value, str):
        try:
            return float(value) / 1000
        except ValueError:
            raise ValueError("must be a number of milliseconds") from None
    return value


def pairs(value: Any) -> Any:
    """Read the specification's list of ``key=value`` pairs, with percent-encoded values."""
    if not isinstance(value, str):
        return value
    pairs: dict[str, str] = {}
    for part in filter(None, (item.strip() for item in value.split(","))):
        key, equals, text = part.partition("=")
        if not equals or not key.strip():
            raise ValueError("must be a comma-separated list of key=value pairs")
        pairs[key.strip()] = unquote(text.strip())
    return pairs


def path_or_none(value: Any) -> Any:
    """Take the word by which the specification switches exporters off: an empty variable counts as one that is not set."""
    return "" if lower(value) == "none" else value


def words(value: Any) -> Any:
    """Read a comma-separated list."""
    return tuple(filter(None, (item.strip() for item in value.split(",")))) if isinstance(value, str) else value


def web_address(value: str | None) -> str | None:
    """Take the address of something that answers over HTTP."""
    if not value:
        return None
    parts = urlsplit(value)
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username is not None:
        raise ValueError("must be an http:// or https:// address, such as http://localhost:3100")
    return value.rstrip("/")


def endpoint(value: str, info: ValidationInfo) -> str:
    """Take the address of an OTLP endpoint."""
    grpc = info.data.get("protocol") == "grpc"
    parts = urlsplit(value if "://" in value or not grpc else f"//{value}")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("the port must be a number from 1 to 65535") from None
    # Over gRPC the specification has host:port as well; OTEL_EXPORTER_OTLP_INSECURE then tells whether it is TLS
    if parts.scheme not in ("http", "https", *([""] if grpc else [])) or not parts.hostname or port == 0:
        raise ValueError("must be an http:// or https:// address, such as http://localhost:4318")
    if parts.username is not None:
        raise ValueError("credentials belong in OTEL_EXPORTER_OTLP_HEADERS, not in the address")
    return value.rstrip("/")


def plugin(group: str, built_in: tuple[str, ...]) -> AfterValidator:
    """Take a name of clew's own, or one that an installed package has registered."""

    def known(value: str) -> str:
        value = value.strip()
        if value.lower() in built_in:
            return value.lower()
        if not entry_points(group=group, name=value):
            raise ValueError(f"must be {', '.join(built_in)} or a name that a package registers under {group}")
        return value

    return AfterValidator(known)


def ratio(value: Any, known: ValidationInfo) -> Any:
    """Leave to a package's sampler what its argument means."""
    return value if known.data.get("sampler", SAMPLERS[0]) in SAMPLERS else 1.0


def database_address(value: str | None) -> str | None:
    """Take the address of a database that clew's records can be kept in."""
    if not value:
        return None
    scheme, separator, rest = value.partition("://")
    # Heroku's and libpq's name for it, and the driver that clew brings
    scheme = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}.get(scheme, scheme)
    if not separator or scheme not in ("sqlite", "postgresql+psycopg"):
        raise ValueError("must be sqlite:////path/to/file.db or postgresql://user:password@host/name")
    if scheme == "sqlite" and rest in ("", "/", "/:memory:"):
        raise ValueError("must name a file: a database in memory is not durable")
    return f"{scheme}://{rest}"


def headers(value: dict[str, str]) -> dict[str, str]:
    """Take headers that can be sent."""
    if not all(_HEADER_NAME.fullmatch(name) for name in value):
        raise ValueError("names of headers must be letters, digits and hyphens")
    if not all(text.isascii() and text.isprintable() for text in value.values()):
        raise ValueError("values of headers must be printable ASCII characters")
    return value


Milliseconds = Annotated[float, BeforeValidator(milliseconds)]
Pairs = Annotated[dict[str, str], NoDecode, BeforeValidator(pairs)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(words)]
Endpoint = Annotated[str, AfterValidator(endpoint)]
Headers = Annotated[dict[str, str], NoDecode, BeforeValidator(pairs), AfterValidator(headers)]
