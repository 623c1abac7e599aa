"""TLS to the endpoint: a private authority, certificates of both sides, and what is said when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.certificates import Certificates, make_certificates
from tests.integration.endpoints import EMIT, run
from tests.otlp_sink import OtlpSink


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("theirs"))


def emit(sink: OtlpSink, **files: Path) -> str:
    """Run an app that trusts and shows these files, and return what it printed."""
    variables = {f"OTEL_EXPORTER_OTLP_{name.upper()}": str(path) for name, path in files.items()}
    done = run(EMIT.format(n=3), **sink.environment, **variables)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_private_authority_is_trusted_when_it_is_named(ours, spool_dir):
    with OtlpSink(tls=ours.server_context()) as sink:
        emit(sink, certificate=ours.authority)
        assert len(sink.named("place")) == 3
    assert not list(spool_dir.rglob("*.spool"))


def test_an_authority_that_is_not_named_or_another_is_refused_and_nothing_is_lost(ours, theirs, spool_dir):
    with OtlpSink(tls=ours.server_context()) as sink:
        assert "CERTIFICATE_VERIFY_FAILED" in emit(sink)
        assert "CERTIFICATE_VERIFY_FAILED" in emit(sink, certificate=theirs.authority)
        assert sink.requests == []
        # Both wait, and are sent by the first start that trusts it
        emit(sink, certificate=ours.authority)
        assert len(sink.named("place")) == 9


def test_a_client_shows_its_certificate_where_it_is_demanded(ours, theirs, spool_dir):
    with OtlpSink(tls=ours.server_context(mutual=True)) as sink:
        emit(sink, certificate=ours.authority, client_certificate=ours.client, client_key=ours.client_key)
        assert len(sink.named("place")) == 3
        emit(sink, certificate=ours.authority)
        emit(sink, certificate=ours.authority, client_certificate=theirs.client, client_key=theirs.client_key)
        assert len(sink.named("place")) == 3
    assert len(list(spool_dir.rglob("*.traces.spool"))) == 2


def test_a_certificate_of_one_signal_alone(ours, theirs, spool_dir):
    with OtlpSink(tls=ours.server_context()) as sink, OtlpSink(tls=theirs.server_context()) as other:
        done = run(
            EMIT.format(n=1),
            **sink.environment,
            OTEL_EXPORTER_OTLP_CERTIFICATE=str(ours.authority),
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{other.url}/v1/metrics",
            OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE=str(theirs.authority),
        )
        assert done.returncode == 0, done.stderr
        assert len(sink.named("place")) == other.total("orders.placed") == 1


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_a_file_that_is_no_certificate_stops_neither_the_app_nor_loses_anything(ours, spool_dir, tmp_path, content):
    path = tmp_path / "authority.pem"
    if content is not None:
        path.write_text(content)
    with OtlpSink(tls=ours.server_context()) as sink:
        assert "can't be delivered" in emit(sink, certificate=path)
    assert len(list(spool_dir.rglob("*.spool"))) == 3
