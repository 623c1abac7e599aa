from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
import textwrap
from datetime import datetime

import pytest

import clew

APP = """
import logging
import clew
clew.configure(service_name="orders")
log = clew.get_logger()

def place():
    log.info("order.placed", order_id=17, note="ünïcode ☃")

with clew.span("checkout"):
    place()
    logging.getLogger("a.library").warning("retrying %s", "soon", extra={"attempt": 2})
log.debug("not shown")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed", password="hunter2")
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "OTEL_SDK_DISABLED": "true", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_elsewhere_than_on_a_terminal_a_line_is_json_with_everything_in_it(otlp_sink):
    events = lines(run(APP, **otlp_sink.environment, OTEL_SDK_DISABLED="false"))
    assert [event["event"] for event in events] == ["order.placed", "retrying soon", "failed"]
    placed, library, failed = events
    assert placed["service"] == "orders"
    assert (placed["order_id"], placed["note"], placed["level"]) == (17, "ünïcode ☃", "info")
    assert (placed["func_name"], placed["lineno"], placed["logger"]) == ("place", 8, "__main__")
    assert datetime.fromisoformat(str(placed["timestamp"])).utcoffset() is not None
    span = otlp_sink.wait_for_span("checkout")
    for event in (placed, library):
        assert (event["trace_id"], event["span_id"]) == (span.trace_id, span.span_id)
        assert event["correlation_id"] == span.attributes["clew.correlation.id"]
    assert (library["logger"], library["level"], library["attempt"]) == ("a.library", "warning", 2)
    assert failed["password"] == "[redacted]"
    assert "ZeroDivisionError: division by zero" in str(failed["exception"])
    arrived = otlp_sink.logs
    assert [record.body for record in arrived] == ["order.placed", "retrying soon", "failed"]
    assert [record.severity for record in arrived] == ["INFO", "WARN", "ERROR"]
    assert [record.logger for record in arrived] == ["__main__", "a.library", "__main__"]
    assert arrived[0].attributes["code.function.name"] == "place"
    assert arrived[2].attributes["exception.type"] == "ZeroDivisionError"


def test_on_a_terminal_lines_are_coloured():
    master, slave = pty.openpty()
    app = subprocess.Popen(
        [sys.executable, "-c", APP],
        stderr=slave,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OTEL_SDK_DISABLED": "true", "TERM": "xterm"},
    )
    os.close(slave)
    written = b""
    while True:
        try:
            chunk = os.read(master, 65_536)
        except OSError:
            break
        if not chunk:
            break
        written += chunk
    assert app.wait(30) == 0
    assert b"\x1b[" in written
    assert b"order.placed" in written
    assert b"hunter2" not in written


@pytest.mark.parametrize(("level", "shown"), [("debug", 2), ("info", 1), ("error", 0)])
def test_the_level_is_a_setting(level, shown):
    code = "import clew\nlog = clew.get_logger()\nlog.debug('low')\nlog.info('middle')"
    assert len(lines(run(code, CLEW_LOG_LEVEL=level))) == shown


def test_what_an_app_set_up_with_logging_before_is_not_printed_twice():
    code = """
        import logging
        logging.basicConfig(level="INFO")
        import clew
        clew.configure()
        clew.configure()
        logging.getLogger("a.library").info("once")
    """
    assert len(lines(run(code))) == 1


def test_handlers_that_write_to_files_are_left_alone(tmp_path):
    code = f"""
        import logging
        logging.basicConfig(level="INFO", filename={str(tmp_path / "app.log")!r})
        import clew
        clew.configure()
        logging.getLogger("a.library").info("in both")
    """
    assert len(lines(run(code))) == 1
    assert "in both" in (tmp_path / "app.log").read_text()


def test_a_value_that_can_not_be_written_is_a_text_and_the_app_goes_on():
    code = """
        import clew, logging
        class Hostile:
            def __str__(self): raise RuntimeError("no")
            __repr__ = __str__
        log = clew.get_logger()
        log.info("odd", value=Hostile(), nested={"deep": {1, 2}}, raw=b"\\xff", lone="\\ud800")
        logging.getLogger("x").info("%d", "not a number")
        print("still here")
    """
    done = run(code)
    assert "still here" in done.stdout
    events = [event for event in lines(done) if event["logger"] != "clew"]
    assert "Hostile" in str(events[0]["value"])
    assert "not a number" in done.stderr or "do not fit" in done.stderr


def test_bound_fields_and_context_variables(captured_telemetry):
    log = clew.get_logger("shop").bind(user="u-1")
    log.info("order.placed")
    record = captured_telemetry.logs[0]
    assert (record.logger, record.body, record.attributes["user"]) == ("shop", "order.placed", "u-1")


def test_a_huge_field_and_a_huge_stack_trace_are_cut(captured_telemetry):
    log = clew.get_logger()
    log.info("big", text="x" * 10_000_000)
    try:
        raise ValueError("y" * 10_000_000)
    except ValueError:
        log.exception("failed")
    big, failed = captured_telemetry.logs
    assert len(big.attributes["text"]) == 8_192
    assert len(failed.attributes["exception.message"]) == 8_192
    assert len(failed.attributes["exception.stacktrace"]) <= 16_001


def test_a_log_line_without_a_span_has_no_trace_id(captured_telemetry):
    logging.getLogger("a.library").warning("alone")
    assert captured_telemetry.logs[0].trace_id in ("", "0" * 32)


def test_loggers_are_made_before_configure_and_used_after(otlp_sink):
    code = (
        "import clew\nlog = clew.get_logger('early').bind(a=1)\nclew.configure(service_name='late')\nlog.info('hello')"
    )
    (event,) = lines(run(code))
    assert (event["service"], event["a"], event["logger"]) == ("late", 1, "early")


def test_without_lines_logs_still_leave_and_clew_still_warns(otlp_sink, spool_dir):
    code = """
import clew
from clew.diagnostics import report
clew.get_logger("app").error("order.failed", order_id=17)
try:
    with clew.job("digest"): raise ValueError("planted")
except ValueError: pass
report("app", "a thing that only clew knows of")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **otlp_sink.environment, "CLEW_LOG_FORMAT": "none"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert [log.attributes["order_id"] for log in otlp_sink.logs if log.body == "order.failed"] == [17]
    assert [log.body for log in otlp_sink.logs if log.body == "job_error"] == ["job_error"]
    assert "order.failed" not in done.stderr
    assert "job_error" not in done.stderr
    assert "a thing that only clew knows of" in done.stderr
