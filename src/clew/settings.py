"""Every setting, in one class: ``OTEL_*`` as the OpenTelemetry specification has them, ``CLEW_*`` for the rest.

Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from clew.diagnostics import ClewError

Exporter = Literal["otlp", "none"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]
LogFormat = Literal["auto", "console", "json", "none"]
Temporality = Literal["cumulative", "delta", "lowmemory"]
HistogramAggregation = Literal["explicit_bucket_histogram", "base2_exponential_bucket_histogram"]
ExemplarFilter = Literal["trace_based", "always_on", "always_off"]
Signal = Literal["traces", "metrics", "logs"]
SIGNALS: tuple[Signal, ...] = ("traces", "metrics", "logs")
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


class SettingsError(ClewError):
    """A setting can't be used: the message names the variable, the value and what is allowed."""


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _milliseconds(value: Any) -> Any:
    """Turn the specification's milliseconds into the seconds that clew counts in."""
    if isinstance(value, str):
        try:
            return float(value) / 1000
        except ValueError:
            raise ValueError("must be a number of milliseconds") from None
    return value


def _pairs(value: Any) -> Any:
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


def _path_or_none(value: Any) -> Any:
    """Take the word by which the specification switches exporters off: an empty variable counts as one that is not set."""
    return "" if _lower(value) == "none" else value


def _words(value: Any) -> Any:
    return tuple(filter(None, (item.strip() for item in value.split(",")))) if isinstance(value, str) else value


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    try:
        port = parts.port
    except ValueError:
        raise ValueError("the port must be a number from 1 to 65535") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("must be an http:// or https:// address, such as http://localhost:4318")
    return value.rstrip("/")


def _plugin(group: str, built_in: tuple[str, ...]) -> AfterValidator:
    """Take a name of clew's own, or one that an installed package has registered."""

    def known(value: str) -> str:
        value = value.strip()
        if value.lower() in built_in:
            return value.lower()
        if not entry_points(group=group, name=value):
            raise ValueError(f"must be {', '.join(built_in)} or a name that a package registers under {group}")
        return value

    return AfterValidator(known)


def _ratio(value: Any, known: ValidationInfo) -> Any:
    """Leave to a package's sampler what its argument means."""
    return value if known.data.get("sampler", SAMPLERS[0]) in SAMPLERS else 1.0


Milliseconds = Annotated[float, BeforeValidator(_milliseconds)]
Pairs = Annotated[dict[str, str], NoDecode, BeforeValidator(_pairs)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]


def _otel(name: str) -> AliasChoices:
    """Let a field be given by its specified variable, or by its own name in code."""
    return AliasChoices(f"OTEL_{name.upper()}")


class Settings(BaseSettings):
    """Where telemetry goes and how it is made.

    Every field can be given to :func:`clew.configure` by its name here, or by the environment variable in its alias
    (``OTEL_*``), or as ``CLEW_`` and its name. What is given in code wins.

    Example:
        >>> Settings(service_name="orders").service_name
        'orders'
    """

    model_config = SettingsConfigDict(
        env_prefix="CLEW_",
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        case_sensitive=False,
        env_ignore_empty=True,
        validate_default=False,
        use_attribute_docstrings=True,
    )

    # What the service is
    service_name: str = Field(default="", validation_alias=_otel("service_name"))
    """The service's name; wins over ``service.name`` among the resource attributes."""
    resource_attributes: Pairs = Field(default_factory=dict, validation_alias=_otel("resource_attributes"))
    """More about the service: ``service.namespace=shop,deployment.environment.name=production``."""

    # What is on
    sdk_disabled: bool = Field(default=False, validation_alias=_otel("sdk_disabled"))
    """Switches telemetry off as a whole; log lines are still printed."""
    traces_exporter: Annotated[Exporter, BeforeValidator(_lower)] = Field(
        default="otlp", validation_alias=_otel("traces_exporter")
    )
    """``none`` switches traces off."""
    metrics_exporter: Annotated[Exporter, BeforeValidator(_lower)] = Field(
        default="otlp", validation_alias=_otel("metrics_exporter")
    )
    """``none`` switches metrics off."""
    logs_exporter: Annotated[Exporter, BeforeValidator(_lower)] = Field(
        default="otlp", validation_alias=_otel("logs_exporter")
    )
    """``none`` switches the export of logs off; lines are still printed."""

    # Where it goes
    endpoint: HttpUrl = Field(default="http://localhost:4318", validation_alias=_otel("exporter_otlp_endpoint"))
    """Where OTLP over HTTP is posted; ``/v1/traces`` and its siblings are added."""
    traces_endpoint: HttpUrl | None = Field(default=None, validation_alias=_otel("exporter_otlp_traces_endpoint"))
    """The whole address for traces, where it is another."""
    metrics_endpoint: HttpUrl | None = Field(default=None, validation_alias=_otel("exporter_otlp_metrics_endpoint"))
    """The whole address for metrics, where it is another."""
    logs_endpoint: HttpUrl | None = Field(default=None, validation_alias=_otel("exporter_otlp_logs_endpoint"))
    """The whole address for logs, where it is another."""
    protocol: Annotated[Literal["http/protobuf"], BeforeValidator(_lower)] = Field(
        default="http/protobuf", validation_alias=_otel("exporter_otlp_protocol")
    )
    """How it is posted."""
    headers: Pairs = Field(default_factory=dict, validation_alias=_otel("exporter_otlp_headers"))
    """Headers of every post, percent-encoded: ``Authorization=Bearer%20...``."""
    compression: Annotated[Literal["gzip", "none"], BeforeValidator(_lower)] = Field(
        default="gzip", validation_alias=_otel("exporter_otlp_compression")
    )
    """How posts are compressed."""
    export_timeout_s: Milliseconds = Field(default=10.0, gt=0, validation_alias=_otel("exporter_otlp_timeout"))
    """How long an answer is waited for; the variable is in milliseconds."""
    certificate: Path | None = Field(default=None, validation_alias=_otel("exporter_otlp_certificate"))
    """The certificate of the authority that the endpoint's is signed by (PEM)."""
    client_certificate: Path | None = Field(default=None, validation_alias=_otel("exporter_otlp_client_certificate"))
    """This client's certificate, for mutual TLS (PEM)."""
    client_key: Path | None = Field(default=None, validation_alias=_otel("exporter_otlp_client_key"))
    """The key of this client's certificate (PEM)."""

    # How much of it
    sampler: Annotated[str, _plugin(SAMPLER_GROUP, SAMPLERS)] = Field(
        default="parentbased_always_on", validation_alias=_otel("traces_sampler")
    )
    """Which traces are recorded; a caller's "not sampled" is not the last word. A package's sampler goes by the name that it is
    registered under, and gets the variable ``OTEL_TRACES_SAMPLER_ARG`` as it is."""
    sampler_ratio: Annotated[float, BeforeValidator(_ratio)] = Field(
        default=1.0, ge=0, le=1, validation_alias=_otel("traces_sampler_arg")
    )
    """The share of traces that a ``traceidratio`` sampler records, from 0 to 1."""
    id_generator: Annotated[str, _plugin(ID_GENERATOR_GROUP, ID_GENERATORS)] = Field(
        default="random", validation_alias=_otel("python_id_generator")
    )
    """Makes the ids of traces and spans; another than ``random`` by the name that a package registers it under."""
    keep_errors: bool = False
    """Whether a request, job or message that fails is recorded although its trace is not sampled: its own span, without those
    beneath it."""
    keep_slow_s: float | None = Field(default=None, ge=0)
    """The same for one that takes at least so many seconds; by default none."""
    export_interval_s: Milliseconds = Field(default=1.0, gt=0, validation_alias=_otel("bsp_schedule_delay"))
    """How often spans and logs are sent; the variable is in milliseconds. The standard's default is 5 s."""
    metric_interval_s: Milliseconds = Field(default=10.0, gt=0, validation_alias=_otel("metric_export_interval"))
    """How often metrics are sent; the variable is in milliseconds. The standard's default is 60 s."""
    max_queue_size: int = Field(default=65_536, ge=1, validation_alias=_otel("bsp_max_queue_size"))
    """Spans, and log records, that may wait in memory; more are dropped and counted."""
    max_batch_size: int = Field(default=2_048, ge=1, validation_alias=_otel("bsp_max_export_batch_size"))
    """Spans, or log records, in one post."""
    max_value_length: int = Field(default=8_192, ge=16, validation_alias=_otel("attribute_value_length_limit"))
    """Characters that are kept of an attribute's value."""
    max_series: int = Field(default=2_000, ge=1)
    """Series of one metric; further label values are counted together under ``otel.metric.overflow``."""
    metrics_temporality: Annotated[Temporality, BeforeValidator(_lower)] = Field(
        default="cumulative", validation_alias=_otel("exporter_otlp_metrics_temporality_preference")
    )
    """What a sent point tells of: ``cumulative`` of everything so far, ``delta`` of what came since the last one, ``lowmemory`` the
    same but for observable counters."""
    histogram_aggregation: Annotated[HistogramAggregation, BeforeValidator(_lower)] = Field(
        default="explicit_bucket_histogram",
        validation_alias=_otel("exporter_otlp_metrics_default_histogram_aggregation"),
    )
    """The buckets of histograms for which the app names none; ``base2_exponential_bucket_histogram`` adapts them to what is measured."""
    exemplar_filter: Annotated[ExemplarFilter, BeforeValidator(_lower)] = Field(
        default="trace_based", validation_alias=_otel("metrics_exemplar_filter")
    )
    """Which measurements may become exemplars; ``trace_based`` are those made within a recorded trace."""

    # What happens when it can't go out
    spool_dir: Path | None = None
    """Where unsent telemetry waits; by default ``clew/spool`` in the user's state folder."""
    spool_max_bytes: int = Field(default=256 * 1024 * 1024, ge=0)
    """How much of it may wait, over all processes; 0 keeps nothing."""
    spool_max_age_s: float = Field(default=48 * 3600.0, gt=0)
    """How long it may wait."""
    shutdown_timeout_s: float = Field(default=5.0, gt=0)
    """How long the end of the process may be held up to send, or else spool, what is left."""

    # Logs
    log_level: Annotated[LogLevel, BeforeValidator(_lower)] = "info"
    """The least level that is written and sent."""
    log_format: Annotated[LogFormat, BeforeValidator(_lower)] = "auto"
    """``auto`` is ``console`` on a terminal and ``json`` elsewhere; ``none`` writes no lines, and logs leave by OTLP only."""

    # What crosses the border of the process
    trust_incoming: bool = True
    """Whether a request's ``traceparent`` and correlation id are continued; else a new trace is linked to them."""
    correlation_header: str = Field(default="x-correlation-id", pattern=r"^[A-Za-z0-9-]{1,64}$")
    """The header that carries the correlation id, in and out."""
    baggage_keys: Words = ()
    """Baggage that may come in and go out, by key; by default none."""
    baggage_hosts: Words = ()
    """Hosts that outgoing HTTP calls may carry baggage to; by default none."""
    redact_keys: Words = ()
    """More keys whose values are secret, beside those that clew knows."""

    # HTTP
    metrics_path: Annotated[str, BeforeValidator(_path_or_none)] = Field(default="/metrics", pattern=r"^(/[^\s?#]*)?$")
    """Where an instrumented app answers in Prometheus's format; ``none``, or empty in code, switches it off."""

    # For tests
    strict: bool = False
    """A bad value given to the facade raises, instead of being coerced and counted."""

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read the environment and what is given in code.

        Raises:
            SettingsError: a value can't be used; the message names it and what is allowed.

        Example:
            >>> Settings.load(log_level="loud")
            Traceback (most recent call last):
            ...
            clew.settings.SettingsError: log_level='loud': input should be 'debug', 'info', 'warning', 'error' or 'critical'.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            raise SettingsError(" ".join(_sentences(cls, error, given))) from None

    @classmethod
    def load_or_default(cls, **given: Any) -> tuple[Self, list[str]]:
        """Read the settings as :meth:`load` does, but put the default in the place of each value that can't be used.

        An app must start with its telemetry misconfigured.

        Returns:
            The settings, and one sentence for each value that was passed over.
        """
        try:
            return cls(**given), []
        except ValidationError as error:
            bad = {_field(cls, item["loc"]) for item in error.errors()}
            usable = {name: value for name, value in given.items() if name not in bad}
            defaults = {
                name: cls.model_fields[name].get_default(call_default_factory=True)
                for name in bad
                if name in cls.model_fields
            }
            return cls(**usable, **defaults), _sentences(cls, error, given)

    def enabled(self, signal: Signal) -> bool:
        """Tell whether a signal is made and sent."""
        exporter: Exporter = getattr(self, f"{signal}_exporter")
        return not self.sdk_disabled and exporter != "none"

    def url(self, signal: Signal) -> str:
        """Return where a signal is posted, as the OTLP exporter specification builds it."""
        own: str | None = getattr(self, f"{signal}_endpoint")
        return own or f"{self.endpoint}/v1/{signal}"

    def spool_path(self) -> Path:
        """Return the folder in which unsent telemetry of this user's processes waits."""
        if self.spool_dir is not None:
            return self.spool_dir
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return Path(state) / "clew" / "spool"


def variable(field: str) -> str:
    """Return the environment variable of a field.

    Example:
        >>> variable("endpoint"), variable("log_level")
        ('OTEL_EXPORTER_OTLP_ENDPOINT', 'CLEW_LOG_LEVEL')
    """
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return f"CLEW_{field.upper()}"


def _field(cls: type[Settings], location: tuple[int | str, ...]) -> str:
    """Return the field that a validation error is about, whichever way its value was given."""
    name = str(location[0]) if location else "settings"
    by_variable = {variable(field).lower(): field for field in cls.model_fields}
    return by_variable.get(name.lower(), name)


def _sentences(cls: type[Settings], error: ValidationError, given: dict[str, Any]) -> list[str]:
    sentences = []
    for item in error.errors():
        field = _field(cls, item["loc"])
        if item["type"] == "extra_forbidden":
            sentences.append(f"{field} is not a setting: see the reference of settings for the names.")
            continue
        name = field if field in given or field not in cls.model_fields else variable(field)
        allowed = item["msg"].removeprefix("Value error, ")
        # Headers carry credentials, so their value is not repeated
        value = "..." if field == "headers" else repr(os.environ.get(name, item["input"]))
        sentences.append(f"{name}={value}: {allowed[0].lower()}{allowed[1:]}.")
    return sentences
