from __future__ import annotations

from pathlib import Path

import pytest

from clew.settings import Settings, SettingsError, variable

BAD_VALUES = [
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", "http://"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:99999", "from 1 to 65535"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon", "'http/protobuf'"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "number of milliseconds"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1", "greater than 0"),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", "'gzip' or 'none'"),
    ("OTEL_TRACES_SAMPLER", "sometimes", "parentbased_traceidratio"),
    ("OTEL_TRACES_SAMPLER_ARG", "2", "less than or equal to 1"),
    ("OTEL_LOGS_EXPORTER", "file", "'otlp' or 'none'"),
    ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "sometimes", "'cumulative', 'delta' or 'lowmemory'"),
    ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "round", "'base2_exponential_bucket_histogram'"),
    ("OTEL_METRICS_EXEMPLAR_FILTER", "some", "'trace_based', 'always_on' or 'always_off'"),
    ("OTEL_SDK_DISABLED", "maybe", "boolean"),
    ("OTEL_RESOURCE_ATTRIBUTES", "novalue", "key=value"),
    ("CLEW_LOG_LEVEL", "loud", "'warning'"),
    ("CLEW_LOG_FORMAT", "xml", "'json'"),
    ("CLEW_CORRELATION_HEADER", "x id", "pattern"),
    ("CLEW_MAX_SERIES", "none", "integer"),
    ("CLEW_SHUTDOWN_TIMEOUT_S", "0", "greater than 0"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD_VALUES)
def test_a_bad_value_is_named_with_what_is_allowed(monkeypatch, name, value, allowed):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        Settings.load()
    message = str(raised.value)
    assert message.startswith(f"{name}={value!r}: ")
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "value", "allowed"), BAD_VALUES)
def test_an_app_starts_with_the_default_in_place_of_a_bad_value(monkeypatch, name, value, allowed):
    monkeypatch.setenv(name, value)
    settings, problems = Settings.load_or_default()
    assert len(problems) == 1
    assert problems[0].startswith(name)
    monkeypatch.delenv(name)
    assert settings == Settings.load()


def test_headers_are_not_repeated_in_errors(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization Bearer-hunter2")
    with pytest.raises(SettingsError) as raised:
        Settings.load()
    assert "hunter2" not in str(raised.value)


def test_a_setting_that_does_not_exist_is_named():
    with pytest.raises(SettingsError, match="servicename is not a setting"):
        Settings.load(servicename="orders")


def test_standard_variables_are_read_as_the_specification_has_them(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "orders")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=shop,deployment.environment.name=t%2C1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:4318/custom")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20abc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2500")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "NONE")
    settings = Settings.load()
    assert settings.service_name == "orders"
    assert settings.resource_attributes == {"service.namespace": "shop", "deployment.environment.name": "t,1"}
    assert settings.destination("traces").url == "http://collector:4318/v1/traces"
    assert settings.destination("logs").url == "http://logs:4318/custom"
    assert settings.headers == {"Authorization": "Bearer abc"}
    assert settings.export_timeout_s == 2.5
    assert [settings.enabled(signal) for signal in ("traces", "metrics", "logs")] == [False, True, True]


def test_what_is_given_in_code_wins(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-environment")
    assert Settings.load(service_name="from-code").service_name == "from-code"


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "")
    monkeypatch.setenv("CLEW_LOG_LEVEL", "")
    assert Settings.load() == Settings.load(service_name="")


def test_everything_off(monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not any(Settings.load().enabled(signal) for signal in ("traces", "metrics", "logs"))


def test_unsent_telemetry_waits_in_the_state_folder(monkeypatch):
    monkeypatch.delenv("CLEW_SPOOL_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert Settings.load().spool_path() == Path("/var/state/clew/spool")
    assert Settings.load(spool_dir="/elsewhere").spool_path() == Path("/elsewhere")


def test_every_setting_has_a_variable_of_its_own():
    names = [variable(field) for field in Settings.model_fields]
    assert len(set(names)) == len(names)
    assert all(name.startswith(("OTEL_", "CLEW_")) for name in names)
