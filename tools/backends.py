"""Build the real backends that the stack tests run against, once, into a cache outside the repository.

``python tools/backends.py build [NAME ...]`` builds what is missing, ``path PROGRAM`` prints where a built program is,
``list`` shows what is built, ``generate-collector`` writes the Collector's Go sources anew from its manifest.
Each backend is a Go module of this repository with its go.mod and go.sum, so a build is the same everywhere.
The cache is ``~/.cache/clew/backends`` or what ``CLEW_BACKENDS_DIR`` names; new versions or flags give a new folder.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEARTBEAT_S = 20.0
ATTEMPTS = 3
OLDEST_GO = "1.25.0"
EXIT_FAILED = 1
EXIT_WITHOUT_GO = 3

_COMPILED = re.compile(r"^[\w.~-]+(/[\w.~-]+)*$")
_NOISE = re.compile(r"^(go: downloading |go: finding |\s*$)")
_PASSING_FAULT = re.compile(
    r"timeout|timed out|connection reset|connection refused|unexpected EOF|TLS handshake|no such host|"
    r"temporary failure|\b(429|500|502|503|504) ",
    re.IGNORECASE,
)


class BackendError(Exception):
    """A backend could not be built; the text says why in one sentence."""


class GoMissingError(BackendError):
    """There is no Go on this machine."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One backend: the Go module in ``<name>/module`` that pins it, and what is built from that module."""

    name: str
    """Folder of the repository that holds the backend's configuration and module."""
    version: str
    """Version that its own releases are known by."""
    requires: str
    """Module and version that its go.mod must require."""
    packages: tuple[str, ...]
    """Main packages to build; each program is named after the last part of its path."""
    programs: tuple[str, ...]
    """Names of the built programs, in the order of ``packages``."""
    tags: str = ""
    """Go build tags, comma separated."""
    stamp: str = ""
    """Go variable that the program reads its version from."""
    minutes: int
    """What a first build takes on two cores."""

    @property
    def module(self) -> Path:
        """Folder of its go.mod and go.sum."""
        return ROOT / self.name / "module"

    @property
    def title(self) -> str:
        """Name and version as progress lines show them."""
        return f"{self.name} {self.version}"

    def flags(self) -> list[str]:
        """Return the flags of ``go build``."""
        stamp = f" -X {self.stamp}={self.version}" if self.stamp else ""
        tags = ["-tags", self.tags] if self.tags else []
        return ["-mod=readonly", "-trimpath", "-buildvcs=false", *tags, "-ldflags", f"-s -w{stamp}"]

    def fingerprint(self) -> str:
        """Return a short hash of all that decides what the build gives."""
        digest = hashlib.sha256()
        for path in sorted(self.module.iterdir()):
            if path.suffix in {".go", ".mod", ".sum"}:
                digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        digest.update("\0".join([*self.packages, *self.flags(), sys.platform, os.uname().machine]).encode())
        return digest.hexdigest()[:12]

    def folder(self) -> Path:
        """Return where its programs lie once they are built."""
        return cache_folder() / f"{self.name}-{self.version}-{self.fingerprint()}"

    def is_built(self) -> bool:
        """Tell whether all its programs are in the cache."""
        return all((self.folder() / program).is_file() for program in self.programs)


BACKENDS = (
    Backend(
        name="otel-collector",
        version="0.155.0",
        requires="go.opentelemetry.io/collector/otelcol v0.155.0",
        packages=(".",),
        programs=("otelcol",),
        minutes=4,
    ),
    Backend(
        name="prometheus",
        version="3.15.0",
        requires="github.com/prometheus/prometheus v0.315.0",
        packages=(
            "github.com/prometheus/prometheus/cmd/prometheus",
            "github.com/prometheus/prometheus/cmd/promtool",
        ),
        programs=("prometheus", "promtool"),
        tags="netgo,remove_all_sd",
        stamp="github.com/prometheus/common/version.Version",
        minutes=5,
    ),
    Backend(
        name="loki",
        version="3.7.8",
        requires="github.com/grafana/loki/v3 v3.7.8",
        packages=("github.com/grafana/loki/v3/cmd/loki",),
        programs=("loki",),
        stamp="github.com/grafana/loki/v3/pkg/util/build.Version",
        minutes=8,
    ),
    Backend(
        name="jaeger",
        version="1.62.0",
        requires="github.com/jaegertracing/jaeger v1.62.0",
        packages=("github.com/jaegertracing/jaeger/cmd/jaeger",),
        programs=("jaeger",),
        stamp="github.com/jaegertracing/jaeger/pkg/version.latestVersion",
        minutes=7,
    ),
)


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(f"clew backends: {text}", flush=True)


def cache_folder() -> Path:
    """Return the folder of all built backends."""
    named = os.environ.get("CLEW_BACKENDS_DIR", "")
    return Path(named).expanduser().resolve() if named else Path.home() / ".cache" / "clew" / "backends"


def program_path(program: str) -> Path | None:
    """Return where a built program lies, or None when it is not built (or not known)."""
    for backend in BACKENDS:
        if program in backend.programs and (path := backend.folder() / program).is_file():
            return path
    return None


def needed_go() -> str:
    """Return the oldest Go version that builds all backends, as their go.mod files say."""
    found = (re.search(r"(?m)^go ([\d.]+)$", (backend.module / "go.mod").read_text()) for backend in BACKENDS)
    return max((match[1] for match in found if match), key=lambda text: [int(part) for part in text.split(".")])


def go_program() -> str:
    """Return the path of ``go``, or say what is left out without it."""
    if path := shutil.which("go"):
        return path
    raise GoMissingError(
        f"Go is not installed, so tests/stack (the tests against the real Collector, Prometheus, Loki and Jaeger) is "
        f"left out: install Go {needed_go()} or newer, put it on PATH and run the same command again."
    )


@contextlib.contextmanager
def only_one_run(folder: Path) -> Iterator[None]:
    """Hold the cache's lock, so that two runs neither collide nor build the same thing twice."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        said = 0.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - said >= HEARTBEAT_S:
                    say(f"another run is building in {folder}: waiting for it to end")
                    said = time.monotonic()
                time.sleep(0.2)
        yield


def run_go(what: str, arguments: Sequence[str], *, cwd: Path, output: Path, log: Path, total: int = 0) -> int:
    """Run ``go``, saying every 20 s that it is still at work, and return its exit status."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "HOME": str(Path.home())}
    started = time.monotonic()
    with output.open("wb") as out, log.open("wb") as err:
        process = subprocess.Popen(
            [go_program(), *arguments], cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            start_new_session=True,
        )  # fmt: skip
        try:
            while True:
                try:
                    return process.wait(timeout=HEARTBEAT_S)
                except subprocess.TimeoutExpired:
                    took = time.monotonic() - started
                    compiled = sum(1 for line in log.read_text(errors="replace").splitlines() if _COMPILED.match(line))
                    done = f", {compiled} of {total} packages compiled" if total and compiled else ""
                    say(f"{what} ... {took // 60:.0f} min {took % 60:02.0f} s{done}")
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def tail(log: Path) -> str:
    """Return the lines of go's output that tell what went wrong, as one line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    telling = [line for line in lines if not _NOISE.match(line) and not _COMPILED.match(line)]
    return " | ".join(telling[-4:])[-900:] or "it printed nothing"


def go_step(what: str, failure: str, arguments: Sequence[str], *, cwd: Path, scratch: Path, total: int = 0) -> int:
    """Run one step of a build, again after a passing fault of the network; return the lines it printed."""
    output, log = scratch / "output", scratch / "log"
    for attempt in range(1, ATTEMPTS + 1):
        if run_go(what, arguments, cwd=cwd, output=output, log=log, total=total) == 0:
            return len(output.read_bytes().splitlines())
        if attempt == ATTEMPTS or not _PASSING_FAULT.search(log.read_text(errors="replace")):
            break
        say(f"{what}: the network failed ({tail(log)}): trying again")
        time.sleep(5 * attempt)
    raise BackendError(f"{failure}; Go said: {tail(log)}")


def build(backend: Backend, label: str) -> None:
    """Build one backend and move it into the cache in one step: a broken-off build leaves nothing half done."""
    target = backend.folder()
    started = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        binaries = scratch / "binaries"
        binaries.mkdir()
        what = f"{label} {backend.title}"
        say(f"{what} (about {backend.minutes} minutes the first time): fetching its modules ...")
        tags = ["-tags", backend.tags] if backend.tags else []
        total = go_step(
            f"{what}: fetching its modules",
            f"the modules of {backend.title} could not be fetched: check that Go can reach its module proxy and run "
            f"the same command again",
            ["list", "-deps", "-mod=readonly", *tags, *backend.packages],
            cwd=backend.module,
            scratch=scratch,
        )
        say(f"{what}: compiling {total} packages ...")
        go_step(
            f"{what}: compiling",
            f"{backend.title} could not be built",
            ["build", "-v", *backend.flags(), "-o", f"{binaries}{os.sep}", *backend.packages],
            cwd=backend.module,
            scratch=scratch,
            total=total,
        )
        if missing := [program for program in backend.programs if not (binaries / program).is_file()]:
            raise BackendError(f"the build of {backend.title} did not give {', '.join(missing)}.")
        shutil.rmtree(target, ignore_errors=True)
        binaries.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    took = time.monotonic() - started
    say(f"{label} {backend.title}: built in {took // 60:.0f} min {took % 60:02.0f} s")


def build_missing(names: Sequence[str]) -> None:
    """Build the named backends that the cache lacks, one after another: together they would only slow each other."""
    wanted = [backend for backend in BACKENDS if not names or backend.name in names]
    if all(backend.is_built() for backend in wanted):
        say(f"{', '.join(backend.title for backend in wanted)}: already built in {cache_folder()}")
        return
    go_program()
    folder = cache_folder()
    try:
        with only_one_run(folder):
            for leftover in folder.glob(".building-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            for position, backend in enumerate(wanted, start=1):
                label = f"{position}/{len(wanted)}"
                if backend.is_built():
                    say(f"{label} {backend.title}: already built")
                else:
                    build(backend, label)
    except OSError as error:
        raise BackendError(
            f"the cache {folder} cannot be written ({error.strerror or error}): free some space there or name another "
            f"folder in CLEW_BACKENDS_DIR."
        ) from error


def generate_collector() -> None:
    """Write the Collector's Go sources, go.mod and go.sum anew from ``otel-collector/builder-manifest.yaml``.

    The builder's own ``go mod tidy`` also wants modules that only tests need; resolving what is built is enough.
    """
    collector = BACKENDS[0]
    manifest = collector.module.parent / "builder-manifest.yaml"
    builder = f"go.opentelemetry.io/collector/cmd/builder@v{collector.version}"
    modules = re.findall(r"(?m)^\s*- gomod: (\S+) (\S+)$", manifest.read_text())
    with tempfile.TemporaryDirectory(prefix="clew-collector-") as name:
        scratch = Path(name)
        steps: list[tuple[str, Path, list[str]]] = [
            (
                "generating the sources",
                manifest.parent,
                ["run", builder, "--skip-get-modules", "--skip-compilation", "--config", str(manifest)],
            ),
            ("starting its go.mod", collector.module, ["mod", "init", "clew/otelcol"]),
            (
                "requiring its components",
                collector.module,
                ["mod", "edit", f"-go={OLDEST_GO}"]
                + [f"-require={path}@{version}" for path, version in [*modules, collector.requires.split()]],
            ),
            ("resolving its modules", collector.module, ["list", "-deps", "-mod=mod", "."]),
        ]
        shutil.rmtree(collector.module, ignore_errors=True)
        collector.module.mkdir()
        for what, cwd, arguments in steps:
            say(f"{collector.title}: {what} ...")
            go_step(f"{collector.title}: {what}", f"{what} failed", arguments, cwd=cwd, scratch=scratch)
    collector.module.chmod(0o755)
    (collector.module / "main_windows.go").unlink()


def show_list() -> None:
    """Print every program, its version and where it lies, or that it is not built."""
    for backend in BACKENDS:
        for program in backend.programs:
            path = backend.folder() / program
            print(f"{program:<11} {backend.version:<8} {path if path.is_file() else 'not built'}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="tools/backends.py", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    names = [backend.name for backend in BACKENDS]
    programs = [program for backend in BACKENDS for program in backend.programs]
    builder = commands.add_parser("build", help="build what is missing")
    builder.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}; all when none is named")
    commands.add_parser("path", help="print where a built program lies").add_argument("program", choices=programs)
    commands.add_parser("list", help="show what is built")
    commands.add_parser("generate-collector", help="write the Collector's Go sources anew from its manifest")
    arguments = parser.parse_args()
    for name in getattr(arguments, "names", []):
        if name not in names:
            parser.error(f"there is no backend {name!r}: name some of {', '.join(names)}")
    return arguments


def stop(signum: int, _frame: object) -> None:
    """End on SIGTERM the way Ctrl-C does, so that the running go ends too."""
    raise SystemExit(128 + signum)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.command == "build":
        build_missing(arguments.names)
    elif arguments.command == "generate-collector":
        generate_collector()
    elif arguments.command == "list":
        show_list()
    elif path := program_path(arguments.program):
        print(path)
    else:
        raise BackendError(f"{arguments.program} is not built: run 'python tools/backends.py build' first.")


def main() -> int:
    """Run the command line and return the exit status: 0, 1 when something failed, 3 without Go."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, stop)
    try:
        run(arguments)
    except BackendError as error:
        print(f"clew backends: {error}", file=sys.stderr, flush=True)
        return EXIT_WITHOUT_GO if isinstance(error, GoMissingError) else EXIT_FAILED
    except KeyboardInterrupt:
        print("clew backends: stopped; what was built so far is kept.", file=sys.stderr, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
