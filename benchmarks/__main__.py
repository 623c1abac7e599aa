"""``python -m benchmarks``: measure clew beside its peers, print tables, and write docs/benchmarks.md."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from typing import Any

from benchmarks import catalogue, report
from benchmarks.environments import Environments, NotInstalledError, say
from benchmarks.measure import QUICK, Plan
from benchmarks.processes import ProcessError
from benchmarks.table import aims_table, markdown

INSTALL_MINUTES = 4.0


def scenario(name: str) -> Any:
    """Return the module of a scenario."""
    return importlib.import_module(f"benchmarks.scenarios.{name}")


def minutes(names: list[str], scale: float = 1.0) -> float:
    """Return how long scenarios take, once everything is installed."""
    return sum(
        float(scenario(name).MINUTES) * max(scale, 0.3) if scale < 1 else scenario(name).MINUTES for name in names
    )


def everything() -> float:
    """Return how many minutes a whole run takes."""
    return minutes(list(report.TITLES))


def words(text: str) -> list[str]:
    """Split a list of words at its commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", type=words, default=[], help=f"scenarios, of {','.join(report.TITLES)}")
    parser.add_argument("--variants", type=words, default=[], help="variants by name, such as bare,clew,stock")
    parser.add_argument("--quick", action="store_true", help="a fifth of the rounds and of the seconds")
    parser.add_argument("--scale", type=float, default=1.0, help="the length of everything, 1 is a full run")
    parser.add_argument("--outage-seconds", type=float, default=0.0, help="how long the endpoint is away (60)")
    parser.add_argument("--here", action="store_true", help="install nothing: use this interpreter for every variant")
    parser.add_argument("--dry-run", action="store_true", help="print only: leave the page and the rows as they are")
    parser.add_argument("--list", action="store_true", help="list the scenarios and how long each takes")
    parser.add_argument("--page", action="store_true", help="write the page anew from the stored rows")
    found = parser.parse_args(given)
    if unknown := [name for name in found.only if name not in report.TITLES]:
        parser.error(f"{', '.join(unknown)}: no such scenario; there are {', '.join(report.TITLES)}")
    return found


def main() -> None:
    """Measure what was asked for."""
    asked = arguments()
    if asked.list:
        for name, title in report.TITLES.items():
            print(f"  {name:<12} {scenario(name).MINUTES:4.1f} min  {title}")
        print(f"  variants of a request: {', '.join(variant.name for variant in catalogue.REQUEST)}")
        print("  elsewhere: bare, clew, clew-records, stock, stock-grpc, logfire, fastotel, prometheus, structlog")
        return
    if not asked.page:
        try:
            measure(asked)
        except (NotInstalledError, ProcessError) as error:
            sys.exit(f"clew bench: {error}.")
    if not asked.dry_run:
        report.write_page(everything())
        say(f"wrote {report.PAGE}")


def measure(asked: argparse.Namespace) -> None:
    """Run the scenarios one after the other; each one's rows are kept as soon as it ends."""
    scale = QUICK if asked.quick else asked.scale
    plan = Plan(
        environments=Environments(here=asked.here),
        scale=scale,
        variants=frozenset(asked.variants),
        outage_s=asked.outage_seconds or max(2.0, 60.0 * scale),
    )
    names = asked.only or list(report.TITLES)
    say(
        f"{', '.join(names)}: about {max(1.0, minutes(names, scale)):.0f} min on an idle machine, "
        f"and up to {INSTALL_MINUTES:.0f} min the first time, to install"
    )
    length = "a full run" if scale == 1 and not asked.variants else f"a short run ({scale:g} of the length)"
    for name in names:
        started, load = time.monotonic(), os.getloadavg()[0]
        say(f"{report.TITLES[name]} ...")
        result = scenario(name).run(plan)
        for table in result.tables:
            print(f"\n{markdown(table)}\n", flush=True)
        if result.aims:
            print(f"{aims_table(result.aims)}\n", flush=True)
        say(f"{name} done in {time.monotonic() - started:.0f} s")
        if not asked.dry_run:
            report.save(report.Run.of_now(result, length=length, environments=plan.environments.known(), load=load))
            report.write_page(everything())


if __name__ == "__main__":
    main()
