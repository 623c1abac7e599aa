"""What the demo shows, and what it is told."""

from __future__ import annotations

import io
import socket

import pytest
from rich.console import Console as Terminal
from rich.console import RenderableType

from clew.demo import ports, reaper
from clew.demo.expectations import SeenSpan
from clew.demo.presentation import Palette, amount, log_table, metric_table, trace_tree
from clew.demo.settings import DemoError, DemoSettings
from clew.demo.telemetry import LogLine, Series, Span, percentile


def span(name: str, depth: int, *, links: tuple[tuple[str, str], ...] = (), status: str = "unset") -> Span:
    seen = SeenSpan(service="gateway", name=name, trace_id="t", span_id=name, links=links)
    return Span(seen=seen, kind="server", depth=depth, offset_s=0.0012, duration_s=1.5, status=status)


def shown(renderable: RenderableType, width: int) -> list[str]:
    file = io.StringIO()
    Terminal(file=file, width=width, highlight=False).print(renderable)
    text = file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    return [line.rstrip() for line in text.splitlines()]


SPANS = [
    span("a", 0),
    span("b", 1),
    span("c", 2, links=(("t", "a"), ("ffffffffff", "x"))),
    span("d", 1),
    span("e", 2),
    span("f [x]", 3),
]


def test_a_tree_on_a_wide_terminal():
    lines = shown(trace_tree(SPANS, Palette(), width=120), 120)
    assert [line.split("  gateway")[0].rstrip() for line in lines[1:]] == [
        "a",
        "├─ b",
        "│  └─ c ⇠ 'a' ⇠ trace ffffffff",
        "└─ d",
        "   └─ e",
        "      └─ f [x]",
    ]
    assert lines[1].split()[1:] == ["gateway", "server", "1.2", "1,500.0"]


def test_a_tree_on_a_narrow_terminal():
    lines = shown(trace_tree(SPANS, Palette(), width=80), 80)
    assert [line.split(" gateway")[0].rstrip() for line in lines[1:]] == ["a", "├b", "│└c ⇠ ⇠", "└d", " └e", "  └f [x]"]


def test_log_lines_and_metrics_fit_any_terminal():
    log = LogLine(
        offset_s=0.5, service="gateway", severity="WARN", body="odd [b]thing[/b]", attributes={"a.b": "x\ny", "c": [1]}
    )
    assert shown(log_table([log], Palette()), 60)[1] == "500.0 gateway warn: odd [b]thing[/b]  b=x y c=[1]"
    series = [
        Series(service="gateway", name="m", unit="s", labels={"x.y": "1"}, count=1200, percentiles=(0.1, 1.0, 2.5)),
        Series(service="gateway", name="m", unit="s", labels={"x.y": "2"}, count=1),
        Series(
            service="gateway", name="clew.telemetry.emitted", unit="{item}", labels={"clew.signal": "logs"}, value=3
        ),
        Series(service="worker", name="clew.telemetry.emitted", unit="{item}", labels={"clew.signal": "logs"}, value=4),
    ]
    lines = shown(metric_table(series, Palette(), width=80), 80)
    assert lines[1] == "clew.telemetry.emitted [{item}]"
    assert lines[2].split() == ["all", "2", "services", "logs", "7"]
    assert lines[4].split() == ["gateway", "1", "n=1,200", "100", "ms", "1", "s", "2.5", "s"]
    assert lines[5].split() == ["gateway", "2", "n=1"]
    assert "y=1" in shown(metric_table(series, Palette(), width=120), 120)[4]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0 ms"),
        (0.00042, "s", "0.42 ms"),
        (90.0, "s", "90 s"),
        (0, "By", "0 B"),
        (5_000_000, "By", "4.8 MiB"),
        (1234567, "{item}", "1,234,567"),
        (0.25, "1", "0.25"),
    ],
)
def test_amounts_have_the_size_that_one_would_say(value, unit, text):
    assert amount(value, unit) == text


@pytest.mark.parametrize(
    ("share", "counts", "expected"),
    [(0.5, [2, 2, 0], 1.0), (0.99, [0, 0, 3], 8.96), (0.5, [0, 0, 0], 9.0), (0.0, [0, 4, 0], 1.0)],
)
def test_percentiles(share, counts, expected):
    found = percentile(share, bounds=[1.0, 5.0], counts=counts, least=0.5, greatest=9.0)
    assert found == pytest.approx(expected)


def test_the_reaper_takes_only_what_has_not_ended():
    assert reaper.groups_left(["+10\n", "+11\n", "-10\n", "+1\n", "+0\n", "+-5\n", "+x\n", "\n", "+12"]) == {11, 12}


def test_a_port_that_was_asked_for_and_is_taken_is_named_with_its_option():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DemoError, match=f"port {port} for the gateway is in use: .* --port"):
            ports.choose("the gateway", option="--port", asked=port, preferred=8000)
        assert ports.choose("the gateway", option="--port", asked=None, preferred=port) != port


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("DEMO_PORT", "http", "DEMO_PORT='http': input should be a valid integer"),
        ("DEMO_PORT", "0", "DEMO_PORT='0': input should be greater than or equal to 1"),
        (
            "DEMO_AGENTS_APART",
            "topiciser",
            "DEMO_AGENTS_APART='topiciser': 'topiciser' is no agent: give some of processor,",
        ),
        ("VALKEY_URL", "localhost:6379", "VALKEY_URL='localhost:6379': must be an address such as redis://"),
        ("DEMO_DIGEST_INTERVAL_S", "-1", "DEMO_DIGEST_INTERVAL_S='-1': input should be greater than 0"),
    ],
)
def test_a_bad_setting_is_named(monkeypatch, variable, value, sentence):
    monkeypatch.setenv(variable, value)
    with pytest.raises(DemoError) as raised:
        DemoSettings.load()
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ("topicizer",)),
        ("none", ()),
        ("all", ("processor", "topicizer", "exporter")),
        ("exporter, Processor", ("processor", "exporter")),
    ],
)
def test_the_agents_apart(monkeypatch, value, expected):
    monkeypatch.setenv("DEMO_AGENTS_APART", value)
    assert DemoSettings.load().agents_apart == expected


def test_valkeys_own_scheme_is_understood(monkeypatch):
    monkeypatch.setenv("VALKEY_URL", "valkeys://user:secret@host:6379/1")
    assert DemoSettings.load().valkey_url == "rediss://user:secret@host:6379/1"


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        DemoError, match=r"the data folder .*/file/demo can't be written \(Not a directory\): .* --data-dir"
    ):
        DemoSettings.load(data_dir=tmp_path / "file" / "demo").make_data_dir()
