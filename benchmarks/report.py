"""The page of results: what was measured, on what, when, and how to read it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.environments import ROOT, Environment
from benchmarks.table import Result, aims_table, markdown, text

RESULTS: Final = ROOT / "benchmarks" / "results.json"
PAGE: Final = ROOT / "docs" / "benchmarks.md"

TITLES: Final = {
    "request": "A request",
    "server": "A server under load",
    "operations": "Single operations",
    "export": "Export",
    "weight": "Import and size",
    "memory": "Memory under a runaway label",
    "outage": "An outage",
    "health": "Health",
    "history": "The history of jobs",
    "reading": "Reading a history of jobs",
    "queue": "Messages through a queue",
    "agents": "Handoffs and LLM calls",
    "registry": "A registry of 1,000 agents",
    "watching": "Watching 1,000 queues",
    "messages": "Reading a history of messages, agents and LLM calls",
    "jobs": "A run of a job",
}

_PACKAGES: Final = (
    "clew",
    "fastapi",
    "starlette",
    "uvicorn",
    "httptools",
    "pydantic",
    "opentelemetry-sdk",
    "opentelemetry-instrumentation-fastapi",
    "protobuf",
    "grpcio",
    "logfire",
    "fastotel",
    "prometheus-client",
    "prometheus-fastapi-instrumentator",
    "sentry-sdk",
    "ddtrace",
    "elastic-apm",
    "structlog",
    "faststream",
    "redis",
    "genai-prices",
)

_INTRODUCTION: Final = """\
# What clew costs, beside its peers

Written by `make bench`; the rows are in [results.json](../benchmarks/results.json), too.

Each variant runs in a process of its own, with an environment of its own in which only it is installed, all with the same versions of
FastAPI, Starlette and uvicorn, and with OpenTelemetry 1.45. Where figures are compared, the processes work in turn, in short bursts and many
rounds, so that what the machine does meanwhile hits all alike. Python's garbage collector and switch interval are as they are by default.

**How to read it.** Absolute times are this machine's: read the ratios and the differences. The minimum is what the code costs; the
median shows what a machine with other work makes of it. Each section says how busy the machine was before. Where a minimum and a median are far apart, the machine was busy, and the
minimum is the one to trust. Rows are not always alike: a peer that records less is cheaper for it, and the notes say so.
A missed aim says so in its table.

**How to run it.**

```console
$ make bench                                        # everything: {minutes:.0f} minutes on an idle machine with two cores, once it is installed
$ make bench ARGS="--only request,export --quick"   # some of it, a fifth of the length
$ make bench ARGS="--only outage --outage-seconds 20 --dry-run"
$ make bench ARGS="--list"                          # what there is, and how long it takes
```

The peers are installed by pip, from the pinned files in `benchmarks/requirements`, into `~/.cache/clew/benchmarks` or what
`CLEW_BENCHMARKS_DIR` names. What is measured is held on one core; load generator and endpoint are on another.
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A scenario's result, and under which circumstances it was found: when, how long, where, with what."""

    result: Result
    when: str
    length: str
    machine: str
    versions: dict[str, str]
    revision: str
    load: float | None

    @classmethod
    def of_now(cls, result: Result, *, length: str, environments: Iterable[Environment], load: float | None) -> Run:
        """Put date, machine and versions to a result; ``load`` is the machine's load average before it."""
        return cls(
            result=result,
            when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            length=length,
            machine=_machine(),
            versions=_versions(environments),
            revision=_revision(),
            load=load,
        )

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "when": self.when,
            "length": self.length,
            "machine": self.machine,
            "versions": self.versions,
            "revision": self.revision,
            "load": self.load,
            **self.result.as_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        """Read what :meth:`as_json` returned."""
        return cls(
            result=Result.from_json(data),
            when=data["when"],
            length=data["length"],
            machine=data["machine"],
            versions=data["versions"],
            revision=data["revision"],
            load=data["load"],
        )


def load() -> dict[str, Run]:
    """Return what was found in earlier runs, by scenario."""
    if not RESULTS.exists():
        return {}
    return {name: Run.from_json(data) for name, data in json.loads(RESULTS.read_text(encoding="utf-8")).items()}


def save(run: Run) -> None:
    """Put a result in place of the earlier one of its scenario, and write the page anew."""
    runs = {**load(), run.result.scenario: run}
    ordered = {name: runs[name].as_json() for name in TITLES if name in runs}
    RESULTS.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_page(minutes: float, path: Path = PAGE) -> None:
    """Write the page from the stored results.

    Args:
        minutes: how long a whole run takes.
        path: where it is written.
    """
    runs = load()
    parts = [_INTRODUCTION.format(minutes=minutes), *_circumstances(list(runs.values()))]
    for name, title in TITLES.items():
        if name in runs:
            parts += [f"## {title}", "", section(runs[name]), ""]
    path.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def section(run: Run) -> str:
    """Return one scenario's part of the page."""
    busy = f" The machine's load average was {text(run.load)} when it began." if run.load is not None else ""
    parts = [f"{run.when}, clew at {run.revision}, {run.length}: {run.result.settings}.{busy}", ""]
    for table in run.result.tables:
        parts += [markdown(table), ""]
    if run.result.aims:
        parts += [aims_table(run.result.aims), ""]
    return "\n".join(parts).rstrip()


def _circumstances(runs: list[Run]) -> list[str]:
    parts = ["## Machine and versions", ""]
    parts += [f"- {machine}" for machine in dict.fromkeys(run.machine for run in runs)]
    versions = {name: version for run in runs for name, version in run.versions.items()}
    return [*parts, "- " + ", ".join(f"{name} {version}" for name, version in versions.items()), ""]


def _revision() -> str:
    """Return the last commit that changed clew itself, and whether its source was changed since."""
    commit, changed = _git("log", "-1", "--format=%h", "--", "src"), _git("status", "--porcelain", "--", "src")
    return f"{commit or 'no commit'}{', changed since' if changed else ''}"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return ""
    return done.stdout.strip()


def _machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores ({model}), {memory_gib:.0f} GiB; {platform.python_implementation()} "
        f"{platform.python_version()}; {platform.system()} {platform.release().partition('-')[0]}, "
        f"{sys.platform} {platform.machine()}"
    )


def _versions(environments: Iterable[Environment]) -> dict[str, str]:
    found = {name: version for environment in environments for name, version in environment.versions.items()}
    return {name: found[name] for name in _PACKAGES if name in found}
