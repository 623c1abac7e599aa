"""What tests of every kind share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.otlp_sink import OtlpSink


@pytest.fixture
def otlp_sink() -> Iterator[OtlpSink]:
    """An OTLP endpoint of this test's own, for apps that run in processes of their own."""
    with OtlpSink() as sink:
        yield sink
