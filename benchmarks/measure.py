"""Interleaved rounds, and what is kept of them: the minimum and the median."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.catalogue import Variant
from benchmarks.environments import Environments, NotInstalledError, say
from benchmarks.processes import Process, ProcessError, cores

QUICK: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        environments: where variants are installed.
        scale: 1 is the full length; less makes everything shorter.
        variants: names of the variants that are wanted, or empty for all.
        outage_s: seconds that an endpoint is away.
    """

    environments: Environments
    scale: float = 1.0
    variants: frozenset[str] = frozenset()
    outage_s: float = 60.0

    def times(self, full: int, least: int = 2) -> int:
        """Return how many times to do something that is done ``full`` times in a full run."""
        return max(least, round(full * self.scale))

    def wanted(self, variants: Sequence[Variant]) -> list[Variant]:
        """Return those of the variants that are to be measured."""
        return [variant for variant in variants if not self.variants or variant.name in self.variants]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is kept of the rounds of one figure."""

    minimum: float
    median: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Return the minimum and the median."""
        return cls(minimum=min(values), median=statistics.median(values), rounds=len(values))


@dataclass(kw_only=True)
class Runners:
    """The processes of the variants that work, and why the others don't."""

    running: dict[Variant, Process] = field(default_factory=dict)
    missing: dict[Variant, str] = field(default_factory=dict)

    def fail(self, variant: Variant, error: Exception) -> None:
        """Leave a variant out from now on, and say why."""
        say(f"{variant.title}: {error}")
        self.missing[variant] = str(error).replace("|", "/")
        if (process := self.running.pop(variant, None)) is not None:
            process.kill()


def start(plan: Plan, variant: Variant, module: str, *, core: int | None, **variables: str) -> Process:
    """Start one variant's process.

    Raises:
        NotInstalledError: its environment can't be made.
    """
    python = plan.environments.get(variant.environment).python
    environment = {**variant.variables, **variables}
    return Process(python, module, variant.module, json.dumps(variant.options), environment=environment, core=core)


@contextlib.contextmanager
def running(
    plan: Plan, variants: Sequence[Variant], *, module: str = "benchmarks.worker", first: Callable[[Process], object]
) -> Iterator[Runners]:
    """Start a process for each variant, all at once, on the core of what is measured; end them after the block.

    Args:
        plan: how much is measured.
        variants: what to start.
        module: the program.
        first: gives a process its first order.
    """
    runners = Runners()
    with tempfile.TemporaryDirectory(prefix="clew-bench-") as folder:
        try:
            for number, variant in enumerate(variants):
                told = variant
                if variant.options.get("file"):
                    told = variant.having(file=str(Path(folder) / f"{number}.log"))
                try:
                    spool = str(Path(folder) / f"spool-{number}")
                    process = start(plan, told, module, core=cores()[0], CLEW_SPOOL_DIR=spool)
                    runners.running[variant] = process
                    first(process)
                except (NotInstalledError, ProcessError) as error:
                    runners.fail(variant, error)
            yield runners
        finally:
            for process in runners.running.values():
                process.kill()


def interleave(
    runners: Runners, rounds: int, burst: Callable[[Variant, Process], Mapping[str, Any]]
) -> dict[Variant, list[Mapping[str, Any]]]:
    """Let each process work in turn, again and again, so that what the machine does meanwhile hits all alike.

    The first round warms up and is not kept.
    """
    kept: dict[Variant, list[Mapping[str, Any]]] = {variant: [] for variant in runners.running}
    for number in range(rounds + 1):
        turn = list(runners.running)
        shift = number % len(turn) if turn else 0
        for variant in turn[shift:] + turn[:shift]:
            try:
                measured = burst(variant, runners.running[variant])
            except ProcessError as error:
                runners.fail(variant, error)
                kept.pop(variant, None)
                continue
            if number > 0:
                kept[variant].append(measured)
    return kept


@contextlib.contextmanager
def sink(plan: Plan, kind: str = "http", port: int = 0, *, core: int | None = None) -> Iterator[tuple[Process, str]]:
    """Start an endpoint on the other core; return its process and what its address is.

    Args:
        plan: how much is measured.
        kind: ``http``, ``grpc`` or ``silent``.
        port: where it listens; 0 is any.
        core: the core that it is held on, in place of the other one.
    """
    # Over HTTP it needs nothing but Python
    python = plan.environments.get("otel").python if kind == "grpc" else Path(sys.executable)
    with Process(python, "benchmarks.sink", kind, core=cores()[1] if core is None else core) as process:
        taken = process.ask("listen", port=port)["port"]
        yield process, f"http://127.0.0.1:{taken}"
