"""Every setting, in one class: ``OTEL_*`` as the OpenTelemetry specification has them, ``CLEW_*`` for the rest.

Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from clew.diagnostics import ClewError
from clew.settings.signals import SIGNALS, Compression, Destination, Protocol, Signal, SignalSettings
from clew.settings.values import (
    ID_GENERATOR_GROUP,
    ID_GENERATORS,
    SAMPLER_GROUP,
    SAMPLERS,
    Endpoint,
    Headers,
    Milliseconds,
    Pairs,
    Words,
    database_address,
    lower,
    pairs,
    path_or_none,
    plugin,
    ratio,
    web_address,
)

__all__ = [
    "ID_GENERATORS",
    "ID_GENERATOR_GROUP",
    "SAMPLERS",
    "SAMPLER_GROUP",
    "SIGNALS",
    "Compression",
    "Destination",
    "Protocol",
    "Settings",
    "SettingsError",
    "Signal",
    "SignalSettings",
    "variable",
]

Exporter = Literal["otlp", "none"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]
LogFormat = Literal["auto", "console", "json", "none"]
Temporality = Literal["cumulative", "delta", "lowmemory"]
HistogramAggregation = Literal["explicit_bucket_histogram", "base2_exponential_bucket_histogram"]
ExemplarFilter = Literal["trace_based", "always_on", "always_off"]

_HTTP_ENDPOINT: Final = "http://localhost:4318"
_GRPC_ENDPOINT: Final = "http://localhost:4317"


class SettingsError(ClewError):
    """A setting can't be used: the message names the variable, the value and what is allowed."""


def _otel(name: str) -> AliasChoices:
    """Let a field be given by its specified variable, or by its own name in code."""
    return AliasChoices(f"OTEL_{name.upper()}")


class _SignalVariables(PydanticBaseSettingsSource):
    """Reads ``OTEL_EXPORTER_OTLP_TRACES_TIMEOUT`` and its siblings into ``traces``, ``metrics`` and ``logs``."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return what is set for one signal."""
        found = {name: os.environ.get(variable(f"{field_name}.{name}")) for name in SignalSettings.model_fields}
        return {name: value for name, value in found.items() if value}, field_name, True

    def __call__(self) -> dict[str, Any]:
        """Return what is set for each signal."""
        fields = self.settings_cls.model_fields
        found = {variable(signal): self.get_field_value(fields[signal], signal)[0] for signal in SIGNALS}
        return {name: own for name, own in found.items() if own}


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
    traces_exporter: Annotated[Exporter, BeforeValidator(lower)] = Field(
        default="otlp", validation_alias=_otel("traces_exporter")
    )
    """``none`` switches traces off."""
    metrics_exporter: Annotated[Exporter, BeforeValidator(lower)] = Field(
        default="otlp", validation_alias=_otel("metrics_exporter")
    )
    """``none`` switches metrics off."""
    logs_exporter: Annotated[Exporter, BeforeValidator(lower)] = Field(
        default="otlp", validation_alias=_otel("logs_exporter")
    )
    """``none`` switches the export of logs off; lines are still printed."""

    # Where it goes
    protocol: Annotated[Protocol, BeforeValidator(lower)] = Field(
        default="http/protobuf", validation_alias=_otel("exporter_otlp_protocol")
    )
    """``http/protobuf``, or ``grpc`` with ``pip install "clew[grpc]"``."""
    endpoint: Endpoint = Field(default=_HTTP_ENDPOINT, validation_alias=_otel("exporter_otlp_endpoint"))
    """Where telemetry is sent; over HTTP ``/v1/traces`` and its siblings are added. Over gRPC the default's port is 4317."""
    headers: Headers = Field(default_factory=dict, validation_alias=_otel("exporter_otlp_headers"))
    """Headers of every post, percent-encoded: ``Authorization=Bearer%20...``."""
    compression: Annotated[Compression, BeforeValidator(lower)] = Field(
        default="gzip", validation_alias=_otel("exporter_otlp_compression")
    )
    """How posts are compressed."""
    export_timeout_s: Milliseconds = Field(default=10.0, gt=0, validation_alias=_otel("exporter_otlp_timeout"))
    """How long an answer is waited for; the variable is in milliseconds."""
    insecure: bool = Field(default=False, validation_alias=_otel("exporter_otlp_insecure"))
    """Whether gRPC goes without TLS, where the endpoint is ``host:port``; else ``http://`` and ``https://`` tell."""
    certificate: Path | None = Field(default=None, validation_alias=_otel("exporter_otlp_certificate"))
    """The certificate of the authority that the endpoint's is signed by (PEM)."""
    client_certificate: Path | None = Field(default=None, validation_alias=_otel("exporter_otlp_client_certificate"))
    """This client's certificate, for mutual TLS (PEM)."""
    client_key: Path | None = Field(default=None, validation_alias=_otel("exporter_otlp_client_key"))
    """The key of this client's certificate (PEM)."""
    traces: Annotated[SignalSettings, NoDecode] = Field(
        default=SignalSettings(), validation_alias=_otel("exporter_otlp_traces")
    )
    """What is set for traces alone: see below."""
    metrics: Annotated[SignalSettings, NoDecode] = Field(
        default=SignalSettings(), validation_alias=_otel("exporter_otlp_metrics")
    )
    """What is set for metrics alone: see below."""
    logs: Annotated[SignalSettings, NoDecode] = Field(
        default=SignalSettings(), validation_alias=_otel("exporter_otlp_logs")
    )
    """What is set for logs alone: see below."""

    # How much of it
    sampler: Annotated[str, plugin(SAMPLER_GROUP, SAMPLERS)] = Field(
        default="parentbased_always_on", validation_alias=_otel("traces_sampler")
    )
    """Which traces are recorded; a caller's "not sampled" is not the last word. A package's sampler goes by the name that it is
    registered under, and gets the variable ``OTEL_TRACES_SAMPLER_ARG`` as it is."""
    sampler_ratio: Annotated[float, BeforeValidator(ratio)] = Field(
        default=1.0, ge=0, le=1, validation_alias=_otel("traces_sampler_arg")
    )
    """The share of traces that a ``traceidratio`` sampler records, from 0 to 1."""
    id_generator: Annotated[str, plugin(ID_GENERATOR_GROUP, ID_GENERATORS)] = Field(
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
    metrics_temporality: Annotated[Temporality, BeforeValidator(lower)] = Field(
        default="cumulative", validation_alias=_otel("exporter_otlp_metrics_temporality_preference")
    )
    """What a sent point tells of: ``cumulative`` of everything so far, ``delta`` of what came since the last one, ``lowmemory`` the
    same but for observable counters."""
    histogram_aggregation: Annotated[HistogramAggregation, BeforeValidator(lower)] = Field(
        default="explicit_bucket_histogram",
        validation_alias=_otel("exporter_otlp_metrics_default_histogram_aggregation"),
    )
    """The buckets of histograms for which the app names none; ``base2_exponential_bucket_histogram`` adapts them to what is measured."""
    exemplar_filter: Annotated[ExemplarFilter, BeforeValidator(lower)] = Field(
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
    log_level: Annotated[LogLevel, BeforeValidator(lower)] = "info"
    """The least level that is written and sent."""
    log_format: Annotated[LogFormat, BeforeValidator(lower)] = "auto"
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
    metrics_path: Annotated[str, BeforeValidator(path_or_none)] = Field(default="/metrics", pattern=r"^(/[^\s?#]*)?$")
    """Where an instrumented app answers in Prometheus's format; ``none``, or empty in code, switches it off."""

    # Language models
    llm_content: bool = False
    """Whether prompts and completions are kept, in spans and in records, redacted and cut at ``CLEW_PAYLOAD_MAX_BYTES``."""

    # Durable records
    history: bool = True
    """Whether runs of jobs, messages, tasks of agents and results of health checks are kept in a database."""
    database_url: Annotated[str | None, AfterValidator(database_address)] = None
    """Where they are kept: ``sqlite:////path/history.db`` or ``postgresql://user:password@host/name``; by default an SQLite file,
    ``clew/history.db`` in the user's state folder."""
    database_auto_upgrade: bool = False
    """Whether tables in PostgreSQL are made and changed without being asked to by ``clew db upgrade``, as those in SQLite are."""
    payload_max_bytes: int = Field(default=16_384, ge=256)
    """How much is kept of a result, of metadata, of a message's body, of a traceback."""
    heartbeat_s: float = Field(default=10.0, ge=0.1, le=3600)
    """How often a process says that its runs go on; one that is silent for four times as long is ``lost``."""
    retention_s: Annotated[dict[str, Annotated[float, Field(gt=0)]], NoDecode, BeforeValidator(pairs)] = Field(
        default_factory=dict
    )
    """How long records are kept before they are archived, by table: ``job_runs=2592000,health_checks=604800``; by default 90
    days, messages 30 days, and health checks a week."""
    archive_dir: Path | None = None
    """Where archived records go; by default ``clew/archive`` in the user's state folder."""
    maintenance: Words = ("clean_history", "check_health", "delete_old_logs", "delete_old_backups")
    """Which of the maintenance jobs that the app adds with ``clew.maintenance`` are on; ``none`` switches all off."""
    admin_token: SecretStr | None = Field(default=None, min_length=8)
    """Opens details of health, and control over jobs, to who sends it as a bearer token; without it to this machine only."""

    logs_url: Annotated[str | None, AfterValidator(web_address)] = None
    """Where ``clew jobs show`` looks for a run's log lines: clew's console or Loki; by default where telemetry is sent."""

    # For tests
    strict: bool = False
    """A bad value given to the facade raises, instead of being coerced and counted."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the interface's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read what is given in code, then the environment."""
        return init_settings, _SignalVariables(settings_cls), env_settings

    @field_validator("traces", "metrics", "logs", mode="before")
    @classmethod
    def _with_protocol(cls, value: Any, info: ValidationInfo) -> Any:
        """Tell a signal's endpoint which protocol it is for."""
        return {"protocol": info.data.get("protocol"), **value} if isinstance(value, dict) else value

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
            usable = dict(given)
            for item in error.errors():
                field, _, own = _field(cls, item["loc"]).partition(".")
                if field not in cls.model_fields:
                    usable.pop(field, None)
                elif own:
                    # What else is set for the signal stays
                    before = usable.get(field)
                    kept = before if isinstance(before, dict) else {}
                    usable[field] = {name: value for name, value in kept.items() if name in SignalSettings.model_fields}
                    if own in SignalSettings.model_fields:
                        usable[field][own] = None
                else:
                    usable[field] = cls.model_fields[field].get_default(call_default_factory=True)
            return cls(**usable), _sentences(cls, error, given)

    def enabled(self, signal: Signal) -> bool:
        """Tell whether a signal is made and sent."""
        exporter: Exporter = getattr(self, f"{signal}_exporter")
        return not self.sdk_disabled and exporter != "none"

    def destination(self, signal: Signal) -> Destination:
        """Return where a signal goes, as the OTLP exporter specification builds it from what is set.

        Example:
            >>> Settings(endpoint="http://collector:4318").destination("logs").url
            'http://collector:4318/v1/logs'
        """
        own: SignalSettings = getattr(self, signal)

        def chosen(name: str) -> Any:
            value = getattr(own, name)
            return getattr(self, name) if value is None else value

        protocol: Protocol = chosen("protocol")
        if own.endpoint is not None:
            url = own.endpoint
        elif protocol == "grpc":
            url = _GRPC_ENDPOINT if self.endpoint == _HTTP_ENDPOINT else self.endpoint
        else:
            url = f"{self.endpoint}/v1/{signal}"
        return Destination(
            url=url,
            protocol=protocol,
            timeout_s=chosen("export_timeout_s"),
            **{
                name: chosen(name)
                for name in ("headers", "compression", "insecure", "certificate", "client_certificate", "client_key")
            },
        )

    def spool_path(self) -> Path:
        """Return the folder in which unsent telemetry of this user's processes waits."""
        if self.spool_dir is not None:
            return self.spool_dir
        return _state_folder() / "spool"

    def history_url(self) -> str:
        """Return the address of the database that keeps the durable records."""
        return self.database_url or f"sqlite:///{_state_folder() / 'history.db'}"

    def archive_path(self) -> Path:
        """Return the folder that archived records go to."""
        return self.archive_dir or _state_folder() / "archive"


def _state_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "clew"


def variable(field: str) -> str:
    """Return the environment variable of a field.

    Example:
        >>> variable("endpoint"), variable("log_level"), variable("traces.export_timeout_s")
        ('OTEL_EXPORTER_OTLP_ENDPOINT', 'CLEW_LOG_LEVEL', 'OTEL_EXPORTER_OTLP_TRACES_TIMEOUT')
    """
    signal, _, own = field.rpartition(".")
    alias = Settings.model_fields[own].validation_alias
    name = str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"CLEW_{own.upper()}"
    return name.replace("_OTLP_", f"_OTLP_{signal.upper()}_") if signal else name


def _field(cls: type[Settings], location: tuple[int | str, ...]) -> str:
    """Return the field that a validation error is about, whichever way its value was given; a signal's own with a dot."""
    name = str(location[0]) if location else "settings"
    by_variable = {variable(field).lower(): field for field in cls.model_fields}
    field = by_variable.get(name.lower(), name)
    return f"{field}.{location[1]}" if field in SIGNALS and location[1:] else field


def _sentences(cls: type[Settings], error: ValidationError, given: dict[str, Any]) -> list[str]:
    sentences = []
    for item in error.errors():
        field = _field(cls, item["loc"])
        if item["type"] == "extra_forbidden":
            sentences.append(f"{field} is not a setting: see the reference of settings for the names.")
            continue
        known = field in cls.model_fields or "." in field
        own = given.get(field.partition(".")[0])
        in_code = field in given or (isinstance(own, dict) and field.partition(".")[2] in own)
        name = field if in_code or not known else variable(field)
        allowed = item["msg"].removeprefix("Value error, ")
        value = repr(os.environ.get(name, item["input"]))
        # What may carry credentials is not repeated
        shown = "..." if field.endswith(("headers", "token")) or "@" in value else value
        sentences.append(f"{name}={shown}: {allowed[0].lower()}{allowed[1:]}.")
    return sentences
