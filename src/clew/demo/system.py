"""The demo as one thing that can be started and stopped: which processes, in which order, told what."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from clew.demo import ports
from clew.demo.processes import ManagedProcess, ProcessGroup
from clew.demo.queue_server import server_of
from clew.demo.settings import STAND_IN_MODEL, DemoError, DemoSettings

_START_TIMEOUT_S: Final = 45.0
_PROBE_TIMEOUT_S: Final = 0.5
_STEPS: Final = 5

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user asked for.

    Attributes:
        data_dir: where everything is kept; ``None`` for the default.
        port: the gateway's port; 0 for any, ``None`` for the default or any.
        console_port: the console's.
        endpoint: send telemetry there instead of to a console of the demo's own.
        queue: who carries the messages; ``None`` for what ``DEMO_QUEUE`` says.
    """

    data_dir: Path | None = None
    port: int | None = None
    console_port: int | None = None
    endpoint: str | None = None
    queue: str | None = None


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where things are; ``console_url`` is empty when telemetry goes elsewhere."""

    gateway_url: str
    console_url: str
    endpoint: str
    queue_url: str
    llm_url: str
    scheduler_url: str
    data_dir: Path


class DemoSystem:
    """All processes of the demo, and where they are.

    Args:
        wishes: what the user asked for.
        tell: called with a line for each step.
        should_stop: asked while waiting.

    Raises:
        DemoError: a port or the data folder can't be used, or a setting makes no sense.
    """

    def __init__(self, wishes: Wishes, *, tell: Tell, should_stop: Callable[[], bool]) -> None:
        given = {"data_dir": wishes.data_dir and wishes.data_dir.absolute(), "queue": wishes.queue}
        self.settings = DemoSettings.load(**{name: value for name, value in given.items() if value is not None})
        self._tell = tell
        self.is_stand_in = not os.environ.get("OPENAI_BASE_URL")
        if not self.is_stand_in and self.settings.model == STAND_IN_MODEL:
            raise DemoError(
                "OPENAI_BASE_URL is set but DEMO_MODEL is not: name the model to ask, such as DEMO_MODEL=gpt-4o-mini"
            )
        self._folder = self.settings.make_data_dir().absolute()
        external = wishes.endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ""
        self._ports = _choose_ports(wishes, has_console=not external)
        console_url = "" if external else f"http://127.0.0.1:{self._ports['console']}"
        self._server = server_of(self.settings, self._ports["queue"])
        self.addresses = Addresses(
            gateway_url=f"http://127.0.0.1:{self._ports['gateway']}",
            console_url=console_url,
            endpoint=external or console_url,
            queue_url=self._server.given_url or self._server.url,
            llm_url=os.environ.get("OPENAI_BASE_URL") or f"http://127.0.0.1:{self._ports['llm']}/v1",
            scheduler_url=f"http://127.0.0.1:{self._ports['scheduler']}",
            data_dir=self._folder,
        )
        self._processes = ProcessGroup(self._folder, should_stop=should_stop)

    @property
    def history_url(self) -> str:
        """Where the runs of jobs are kept."""
        return os.environ.get("CLEW_DATABASE_URL") or f"sqlite:///{self._folder / 'history.db'}"

    @property
    def members(self) -> list[ManagedProcess]:
        """The processes that were started."""
        return self._processes.members

    def start(self) -> None:
        """Start everything, and return when all of it takes work.

        Raises:
            DemoError: something does not start; the message says what and why.
        """
        self._start_queue()
        self._start_console()
        services: list[tuple[int, str, list[str]]] = []
        if self.is_stand_in:
            services.append((3, "llm", ["clew.demo.llm"]))
        services += [(4, "orchestrator", ["clew.demo.orchestrator"])]
        services += [(4, agent, ["clew.demo.agent", agent]) for agent in self.settings.agents_apart]
        services += [(4, "scheduler", ["clew.demo.scheduler"]), (5, "gateway", ["clew.demo.gateway"])]
        # All at once, because most of a start is importing; the gateway answers before the workers are there, and loses nothing
        members = {
            name: self._processes.start(name, [sys.executable, "-m", *module], self._environment(name))
            for _, name, module in services
        }
        if not self.is_stand_in:
            self._step(3, f"language model at {self.addresses.llm_url}, model {self.settings.model}")
        waits = {number: [name for step, name, _ in services if step == number] for number in (3, 4, 5)}
        for number, what in (
            (3, f"language model, a stand-in, at {self.addresses.llm_url}"),
            (4, f"agents and scheduler: {', '.join(waits[4])}"),
            (5, f"gateway at {self.addresses.gateway_url}"),
        ):
            for name in waits[number]:
                self._processes.await_ready(members[name], _START_TIMEOUT_S)
            if waits[number]:
                self._step(number, what)

    def stop(self) -> None:
        """End everything, those first who still need the others to end their work."""
        self._processes.stop(last=("llm", self._server.name, "console"))

    def check(self) -> None:
        """See that everything still runs.

        Raises:
            DemoError: a process has ended by itself.
        """
        dead = self._processes.dead()
        if dead is not None:
            raise dead.died()

    def _step(self, number: int, what: str) -> None:
        self._tell(f"[{number}/{_STEPS}] {what}")

    def _start_queue(self) -> None:
        server = self._server
        if not server.given_url:
            # A folder for each: what is a stream to one is a list to another
            command = server.command(self._folder / self.settings.queue)
            member = self._processes.start(server.name, command, says_ready=False)
            self._processes.await_ready(member, _START_TIMEOUT_S, server.is_ready)
        self._step(1, f"{server.title} at {self.addresses.queue_url.rpartition('@')[2]}")

    def _start_console(self) -> None:
        url = self.addresses.console_url
        if not url:
            self._step(2, f"telemetry goes to {self.addresses.endpoint}; the console is not used")
            return
        environment = {
            **os.environ,
            "CLEW_CONSOLE_HOST": "127.0.0.1",
            "CLEW_CONSOLE_PORT": str(self._ports["console"]),
            "CLEW_CONSOLE_DATA_DIR": str(self._folder / "console"),
            # For loopback only, where neither is needed
            "CLEW_CONSOLE_TOKEN": "",
            "CLEW_CONSOLE_ADMIN_TOKEN": "",
        }
        member = self._processes.start("console", [sys.executable, "-m", "clew.console"], environment, says_ready=False)
        self._processes.await_ready(member, _START_TIMEOUT_S, lambda: _answers_http(f"{url}/api/healthz"))
        self._step(2, f"console at {url}")

    def _environment(self, name: str) -> Mapping[str, str]:
        defaults = {
            "OTEL_METRIC_EXPORT_INTERVAL": "2000",
            "OTEL_BSP_SCHEDULE_DELAY": "500",
            "OTEL_RESOURCE_ATTRIBUTES": "service.namespace=clew-demo,deployment.environment.name=demo",
            "CLEW_SPOOL_DIR": str(self._folder / "spool"),
            "CLEW_DATABASE_URL": self.history_url,
            "CLEW_HEARTBEAT_S": "2",
            "OPENAI_API_KEY": "stand-in",
        }
        fixed = {
            "OTEL_SERVICE_NAME": name,
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.addresses.endpoint,
            "OPENAI_BASE_URL": self.addresses.llm_url,
            self._server.variable: self.addresses.queue_url,
            "DEMO_QUEUE": self.settings.queue,
            "DEMO_DATA_DIR": str(self._folder),
            "DEMO_HOST": "127.0.0.1",
            "DEMO_PORT": str(self._ports["gateway"]),
            "DEMO_LLM_PORT": str(self._ports["llm"]),
            "DEMO_SCHEDULER_PORT": str(self._ports["scheduler"]),
            "DEMO_GATEWAY_URL": self.addresses.gateway_url,
            "PYTHONUNBUFFERED": "1",
        }
        if not self.is_stand_in:
            del defaults["OPENAI_API_KEY"]
        return {**defaults, **os.environ, **fixed}


def _choose_ports(wishes: Wishes, *, has_console: bool) -> dict[str, int]:
    chosen = {
        "gateway": ports.choose("the gateway", option="--port", asked=wishes.port, preferred=8000),
        "llm": ports.choose("the language model", option="DEMO_LLM_PORT", asked=0, preferred=0),
        "scheduler": ports.choose("the scheduler", option="DEMO_SCHEDULER_PORT", asked=0, preferred=9464),
        "queue": ports.choose("the queue", option="VALKEY_URL or NATS_URL", asked=0, preferred=0),
    }
    if has_console:
        asked = wishes.console_port
        chosen["console"] = ports.choose("the console", option="--console-port", asked=asked, preferred=4318)
    return chosen


def _answers_http(url: str) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=_PROBE_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
