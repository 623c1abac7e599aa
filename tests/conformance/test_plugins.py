"""Samplers and id generators that packages register, by the names that the SDK's own configuration takes."""

from __future__ import annotations

import os

import pytest

from clew.settings import Settings, SettingsError
from tests.conformance.scripts import run

PACKAGE = """
from opentelemetry import trace
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

class ByName(Sampler):
    def __init__(self, argument):
        self.argument = argument
    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None):
        decision = Decision.DROP if name == "dull" else Decision.RECORD_AND_SAMPLE
        return SamplingResult(decision, {**(attributes or {}), "sampler.argument": str(self.argument)})
    def get_description(self):
        return "ByName"

def nothing(argument):
    return "no sampler"

class Marked(RandomIdGenerator):
    def generate_trace_id(self):
        return 0xC1E3 << 112 | super().generate_trace_id() >> 16
"""
ENTRY_POINTS = """
[opentelemetry_traces_sampler]
by_name = marked:ByName
Odd_Case = marked:ByName
nothing = marked:nothing
missing = marked:missing

[opentelemetry_id_generator]
marked = marked:Marked
wrong = marked:ByName
"""
APP = """
import clew
with clew.span("dull"):
    pass
with clew.span("work", sku="A-17"):
    pass
"""


@pytest.fixture
def installed(tmp_path, spool_dir):
    """A package that registers samplers and id generators; returns the variables to find it by."""
    (tmp_path / "marked.py").write_text(PACKAGE)
    metadata = tmp_path / "marked-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: marked\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))}


@pytest.mark.parametrize("name", ["by_name", "Odd_Case"])
def test_a_packages_sampler_decides_and_gets_its_argument_as_it_is(otlp_sink, installed, name):
    done = run(APP, otlp_sink, **installed, OTEL_TRACES_SAMPLER=name, OTEL_TRACES_SAMPLER_ARG="rate=often")
    assert "OTEL_" not in done.stderr
    (span,) = otlp_sink.spans
    assert (span.name, span.attributes["sku"]) == ("work", "A-17")
    assert span.attributes["sampler.argument"] == "rate=often"


def test_a_packages_id_generator_makes_the_ids(otlp_sink, installed):
    run(APP, otlp_sink, **installed, OTEL_PYTHON_ID_GENERATOR="marked")
    assert [span.trace_id[:4] for span in otlp_sink.spans] == ["c1e3", "c1e3"]


def test_the_sdks_words_mean_what_they_mean_there(otlp_sink, installed):
    run(APP, otlp_sink, OTEL_TRACES_SAMPLER=" ALWAYS_ON ", OTEL_PYTHON_ID_GENERATOR="random")
    assert len(otlp_sink.spans) == 2


@pytest.mark.parametrize("name", ["nothing", "missing"])
def test_a_sampler_that_can_not_be_made_is_said_once_and_the_app_runs_on(otlp_sink, installed, name):
    done = run(APP, otlp_sink, **installed, OTEL_TRACES_SAMPLER=name)
    (said,) = [line for line in done.stderr.splitlines() if "The default is used" in line]
    assert f"{name}, registered under opentelemetry_traces_sampler, can't be used" in said
    assert len(otlp_sink.spans) == 2


def test_an_id_generator_that_is_none_is_said_once_and_the_app_runs_on(otlp_sink, installed):
    done = run(APP, otlp_sink, **installed, OTEL_PYTHON_ID_GENERATOR="wrong")
    (said,) = [line for line in done.stderr.splitlines() if "The default is used" in line]
    assert "wrong, registered under opentelemetry_id_generator, can't be used" in said
    assert len(otlp_sink.spans) == 2


def test_an_unknown_name_is_answered_with_those_that_are_known():
    with pytest.raises(SettingsError) as raised:
        Settings.load(sampler="sometimes")
    assert str(raised.value) == (
        "sampler='sometimes': must be always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off, "
        "parentbased_traceidratio or a name that a package registers under opentelemetry_traces_sampler."
    )
    with pytest.raises(SettingsError, match="must be random or a name that a package registers under"):
        Settings.load(id_generator="dice")
