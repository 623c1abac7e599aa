from __future__ import annotations

import asyncio
import functools
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clew
from clew.engine.lifecycle import lifecycle
from clew.health import answers, checks
from clew.health.check import Check, CheckResult, HealthReport, HealthResult
from clew.health.monitor import Monitor
from clew.health.watcher import KEPT_RESULTS
from tests.integration.waiting import eventually

SECRET = "postgresql://app:hunter2@db/orders"


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("even this fails")


def monitor_of(*checks: Check) -> Monitor:
    return Monitor(lambda: list(checks))


def look(probe, **more) -> CheckResult:
    return monitor_of(Check(name="it", probe=probe, **more)).look()["it"]


def raising(error: BaseException):
    def probe():
        raise error

    return probe


@pytest.mark.parametrize(
    ("probe", "status", "text"),
    [
        (lambda: None, "ok", ""),
        (lambda: True, "ok", ""),
        (lambda: False, "failed", "the check returned False"),
        (lambda: HealthResult(status="degraded", text="slow"), "degraded", "slow"),
        (lambda: 42, "failed", "the check returned a int: return a HealthResult, a bool or None"),
        (raising(ConnectionError("gone")), "failed", "ConnectionError: gone"),
        (raising(UnspeakableError()), "failed", "UnspeakableError"),
        (raising(SystemExit(3)), "failed", "SystemExit: 3"),
        (raising(ValueError("first\nsecond")), "failed", "ValueError: first"),
        (raising(ConnectionError(SECRET)), "failed", "ConnectionError: postgresql://app:[redacted]@db/orders"),
        (lambda: HealthResult(text=f"at {SECRET}"), "ok", "at postgresql://app:[redacted]@db/orders"),
    ],
)
def test_what_a_check_does_is_what_is_told(probe, status, text):
    result = look(probe)
    assert (result.status, result.text) == (status, text)


def test_figures_are_redacted_bounded_and_json():
    data: dict[Any, Any] = {
        "password": "hunter2",
        "at": SECRET,
        "x": float("inf"),
        "o": object(),
        3: {"deep": [1, (2,)]},
    }
    told = look(lambda: HealthResult(data=data)).data
    assert told["password"] == "[redacted]"
    assert "hunter2" not in str(told)
    assert told["x"] == "inf"
    assert told["3"] == {"deep": [1, [2]]}
    assert len(str(look(lambda: HealthResult(data={"big": "x" * 1_000_000})).data)) < 10_000


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"probe": 3}, "can't be called"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"timeout_s": 61}, "timeout_s"),
        ({"fresh_s": -1}, "fresh_s"),
        ({"fresh_s": float("inf")}, "fresh_s"),
    ],
)
def test_a_check_that_can_not_be_is_refused_with_the_reason(given_, said):
    with pytest.raises(ValueError, match=said):
        Check(**{"name": "it", "probe": print, **given_})


def test_a_bad_check_does_not_raise_into_the_app_and_leaves_the_function_as_it_is():
    def probe() -> None: ...

    assert clew.health_check("a b")(probe) is probe
    target = object()
    assert clew.watch(target) is target


@given(st.lists(st.tuples(st.sampled_from(["ok", "degraded", "failed"]), st.booleans())))
def test_the_whole_is_failed_by_what_is_critical_alone(found):
    checks = [
        Check(name=f"c{number}", probe=functools.partial(HealthResult, status=status), critical=critical)
        for number, (status, critical) in enumerate(found)
    ]
    report = HealthReport(
        results=tuple(
            CheckResult(
                name=check.name,
                critical=check.critical,
                status=check.probe().status,
                text="",
                data={},
                duration_s=0,
                checked_at=lifecycle.started_at,
                finished_s=0,
            )
            for check in checks
        ),
        duration_s=0,
    )
    if ("failed", True) in found:
        assert report.status == "failed"
    elif {status for status, _ in found} <= {"ok"}:
        assert report.status == "ok"
    else:
        assert report.status == "degraded"
    assert answers.health(report).status == (503 if report.status == "failed" else 200)


def test_all_checks_run_at_once():
    barrier = threading.Barrier(10, timeout=10)

    def meet() -> None:
        barrier.wait()

    report = monitor_of(*[Check(name=f"c{n}", probe=meet, timeout_s=20) for n in range(10)]).look()
    assert report.status == "ok"


class Hanging:
    """A check that never returns, until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        self.let_go.wait()


def test_a_check_that_never_returns_has_one_thread_and_fails_each_time():
    hanging = Hanging()
    monitor = monitor_of(
        Check(name="hangs", probe=hanging, timeout_s=0.05, fresh_s=0.0), Check(name="well", probe=print)
    )
    for _ in range(20):
        report = monitor.look()
        assert report["hangs"].status == "failed"
        assert report["hangs"].hangs
        assert report["hangs"].text.startswith("no answer")
    assert hanging.calls == 1
    assert [thread.name for thread in threading.enumerate()].count("clew-health-hangs") == 1
    hanging.let_go.set()
    eventually(lambda: monitor.look()["hangs"].status == "ok", "the check answers again")
    assert hanging.calls > 1


def test_many_ask_at_once_and_one_looks():
    calls: list[int] = []
    gate = threading.Event()

    def probe() -> None:
        calls.append(1)
        gate.wait(10)

    monitor = monitor_of(Check(name="it", probe=probe, timeout_s=20, fresh_s=60))
    results: list[HealthReport] = []
    threads = [threading.Thread(target=lambda: results.append(monitor.look())) for _ in range(20)]
    for thread in threads:
        thread.start()
    eventually(lambda: calls, "somebody looks")
    gate.set()
    for thread in threads:
        thread.join(20)
    assert len(calls) == 1
    assert {id(report["it"]) for report in results} == {id(results[0]["it"])}
    # And it is fresh for a while
    monitor.look()
    assert len(calls) == 1


def test_a_poll_tells_an_older_result_rather_than_wait():
    slow = threading.Event()
    slow.set()
    monitor = monitor_of(Check(name="it", probe=lambda: slow.wait(30) and None, timeout_s=20, fresh_s=0.0))
    first = monitor.look(patience_s=0.01)["it"]
    slow.clear()
    assert monitor.look(patience_s=0.01)["it"] is first
    slow.set()
    eventually(lambda: monitor.look(patience_s=0.01)["it"] is not first, "a newer result is told")


def test_the_last_ten_results_are_kept_newest_first():
    numbers = iter(range(100))
    monitor = monitor_of(Check(name="it", probe=lambda: HealthResult(text=str(next(numbers))), fresh_s=0.0))
    for _ in range(15):
        monitor.look()
    assert [one.text for one in monitor.watchers()[0].results] == [str(n) for n in range(14, 14 - KEPT_RESULTS, -1)]


def test_coroutines_run_in_the_loop_that_asks_and_do_not_block_it():
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        seen: list[object] = []

        async def probe() -> None:
            seen.append(asyncio.get_running_loop())
            await asyncio.sleep(0)

        async def hang() -> None:
            await asyncio.Event().wait()

        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.005)

        ticking = asyncio.create_task(tick())
        blocked = threading.Event()
        monitor = monitor_of(
            Check(name="coroutine", probe=probe),
            Check(name="hangs", probe=hang, timeout_s=0.2),
            Check(name="blocks-a-thread", probe=lambda: blocked.wait(30), timeout_s=0.2),
        )
        report = await monitor.look_async()
        blocked.set()
        ticking.cancel()
        assert seen == [loop]
        assert report["coroutine"].status == "ok"
        assert report["hangs"].text == "no answer within 0.2 s"
        assert ticks > 5

    asyncio.run(scene())


def test_a_coroutine_has_a_loop_of_its_own_where_the_app_has_none():
    async def probe() -> HealthResult:
        await asyncio.sleep(0)
        return HealthResult(text="seen")

    async def hang() -> None:
        await asyncio.Event().wait()

    monitor = monitor_of(Check(name="it", probe=probe), Check(name="hangs", probe=hang, timeout_s=0.05, fresh_s=0))
    assert monitor.look()["it"].text == "seen"
    assert monitor.look()["hangs"].text == "no answer within 0.05 s"
    eventually(lambda: not any("hangs" in thread.name for thread in threading.enumerate()), "its thread ends")


def test_a_loop_that_ended_does_not_keep_a_check_hanging():
    async def probe() -> None:
        if not started:
            started.append(1)
            try:
                await asyncio.Event().wait()
            finally:
                # It does not let itself be cancelled
                await asyncio.sleep(60)

    started: list[int] = []
    monitor = monitor_of(Check(name="it", probe=probe, timeout_s=0.05, fresh_s=0.0))

    async def ask() -> CheckResult:
        return (await monitor.look_async())["it"]

    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(ask()).hangs
    loop.close()
    assert asyncio.run(ask()).status == "ok"


def test_a_waiter_that_gives_up_does_not_cancel_the_look_of_others():
    async def scene() -> None:
        gate = threading.Event()
        monitor = monitor_of(Check(name="it", probe=lambda: gate.wait(20) and None, timeout_s=20))
        impatient = asyncio.create_task(monitor.look_async())
        patient = asyncio.create_task(monitor.look_async())
        await asyncio.sleep(0)
        impatient.cancel()
        gate.set()
        assert (await patient)["it"].status == "ok"

    asyncio.run(scene())


def test_fifty_threads_and_fifty_tasks_ask_at_once_while_checks_come_and_go():
    monitor = monitor_of(Check(name="it", probe=lambda: None, fresh_s=0.0))
    problems: list[BaseException] = []

    def hammer(number: int) -> None:
        try:
            for turn in range(10):
                monitor.add(Check(name=f"c{number % 5}", probe=lambda: None, fresh_s=0.001 * turn))
                assert monitor.look()["it"].status == "ok"
                monitor.remove(f"c{number % 5}")
        except BaseException as error:
            problems.append(error)

    async def tasks() -> None:
        for report in await asyncio.gather(*[monitor.look_async() for _ in range(50)]):
            assert report["it"].status == "ok"

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    asyncio.run(tasks())
    for thread in threads:
        thread.join(60)
    assert problems == []


def test_metrics_and_events_tell_of_a_check(captured_telemetry):
    status: list[Any] = ["ok"]
    monitor = monitor_of(Check(name="shop", probe=lambda: HealthResult(status=status[0], text="so"), fresh_s=0.0))
    for now in ("ok", "ok", "degraded", "degraded", "ok"):
        status[0] = now
        monitor.look()
    assert captured_telemetry.metric("clew.health.check.duration", clew__health__status="degraded").count == 2
    events = [record for record in captured_telemetry.logs if record.body == "health.changed"]
    assert [(event.severity, event.attributes["status"]) for event in events] == [("WARN", "degraded"), ("INFO", "ok")]
    gauge = next(
        line
        for line in clew.prometheus_text()[0].decode().splitlines()
        if 'check="shop"' in line and "status_ratio{" in line
    )
    assert gauge.endswith(" 1.0")


def test_what_a_check_does_is_in_no_trace(captured_telemetry):
    def probe() -> None:
        assert clew.trace_id() in ("", None)

    with clew.span("request"):
        assert monitor_of(Check(name="it", probe=probe)).look()["it"].status == "ok"
    assert [span.name for span in captured_telemetry.spans] == ["request"]


def test_a_start_up_is_told_in_numbered_steps(captured_telemetry):
    with clew.startup() as start:
        assert answers.ready(HealthReport(results=(), duration_s=0)).status == 503
        with start.step("open the database"):
            pass
        with start.step("connect the queue"):
            pass
    assert answers.ready(HealthReport(results=(), duration_s=0)).status == 200
    steps = [record.attributes for record in captured_telemetry.logs if record.body == "startup.step"]
    assert [(step["number"], step["step"]) for step in steps] == [
        (1, "open the database"),
        (2, "connect the queue"),
        (3, "look at its health"),
    ]
    assert steps[-1]["status"] in ("ok", "degraded")


def test_a_start_up_that_fails_names_the_step_and_raises(captured_telemetry):
    with pytest.raises(ConnectionError), clew.startup() as start, start.step("open the database"):
        raise ConnectionError("no route")
    (failed,) = [record for record in captured_telemetry.logs if record.body == "startup.failed"]
    assert failed.attributes["step"] == "open the database"
    assert not lifecycle.starting


def test_a_start_up_in_a_loop_waits_for_coroutines(captured_telemetry):
    async def scene() -> None:
        @clew.health_check("of-a-loop")
        async def probe() -> None:
            await asyncio.sleep(0)

        try:
            async with clew.startup():
                pass
        finally:
            clew.unwatch("of-a-loop")

    asyncio.run(scene())
    (step,) = [record for record in captured_telemetry.logs if record.body == "startup.step"]
    assert "of-a-loop" not in step.attributes.get("unwell", {})


def test_the_checks_of_every_process_find_something():
    report = clew.check_health()
    names = {"disk", "memory", "cpu", "open_files", "event_loop", "telemetry", "history"}
    assert names <= {result.name for result in report.results}
    assert all(report[name].status in ("ok", "degraded") for name in names), report
    assert report["disk"].data["total_bytes"] > 0
    assert report["open_files"].data["open"] > 0


def test_a_late_event_loop_is_noticed():
    async def scene() -> None:
        monitor = monitor_of(checks.event_loop(degraded_above_s=0.2))
        await monitor.look_async()
        # Past the time at which it looks at itself
        await asyncio.sleep(0.1)
        time.sleep(1.0)  # noqa: ASYNC251 - what a check is to notice
        monitor.add(checks.event_loop(degraded_above_s=0.2))
        assert (await monitor.look_async())["event_loop"].status == "degraded"

    asyncio.run(scene())
