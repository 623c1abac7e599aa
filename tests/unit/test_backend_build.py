"""How the real backends are built: pinned, once, in sight, and with one sentence when it cannot be done."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "backends.py"
backends: Any = importlib.import_module("tools.backends")

# A stand-in for Go: it notes each call, and does what FAKE_GO names: "build", "refuse", "flaky", "hang" or "nothing".
FAKE_GO = f"""\
    #!{sys.executable}
    import json, os, pathlib, sys, time
    arguments, folder = sys.argv[1:], pathlib.Path(os.environ["FAKE_GO_DIR"])
    calls = folder / "calls"
    earlier = calls.read_text().splitlines() if calls.exists() else []
    with calls.open("a") as out:
        out.write(json.dumps({{"arguments": arguments, "cwd": os.getcwd(), "cgo": os.environ["CGO_ENABLED"]}}) + "\\n")
    mode = os.environ["FAKE_GO"]
    if mode == "refuse":
        print("go: downloading example.org/fine v1.0.0", file=sys.stderr)
        sys.exit("go: example.org/wanted@v1.2.3: reading example.org/wanted: 403 Forbidden: not available")
    if mode == "flaky" and not earlier:
        sys.exit("go: example.org/wanted@v1.2.3: Get: net/http: TLS handshake timeout")
    if mode == "hang":
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(60)
    if arguments[0] == "list":
        print("fmt", "os", sep="\\n")
    elif mode != "nothing":
        print("fmt", file=sys.stderr)
        target = arguments[arguments.index("-o") + 1]
        for package in arguments[arguments.index("-o") + 2 :]:
            name = "otelcol" if package == "." else package.rsplit("/", 1)[1]
            pathlib.Path(target + name).write_text(name)
"""


@pytest.fixture
def fake_go(tmp_path, monkeypatch):
    """Put the stand-in first on PATH, and the cache into a folder of the test's own."""
    script = tmp_path / "bin" / "go"
    script.parent.mkdir()
    script.write_text(textwrap.dedent(FAKE_GO))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_GO_DIR", str(tmp_path))
    monkeypatch.setenv("CLEW_BACKENDS_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(backends.time, "sleep", lambda _seconds: None)

    def choose(mode: str) -> None:
        monkeypatch.setenv("FAKE_GO", mode)

    choose("build")
    return choose


def calls(folder: Path) -> list[dict[str, Any]]:
    noted = folder / "calls"
    return [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("backend", backends.BACKENDS, ids=lambda backend: backend.name)
def test_a_module_requires_the_version_it_is_named_by(backend):
    module = (backend.module / "go.mod").read_text()
    assert re.search(rf"(?m)^(require|\t)\s*{re.escape(backend.requires)}", module)
    path, version = backend.requires.split()
    assert f"{path} {version}/go.mod " in (backend.module / "go.sum").read_text()


def test_the_collectors_sources_hold_what_its_manifest_lists():
    manifest = yaml.safe_load((ROOT / "otel-collector" / "builder-manifest.yaml").read_text())
    listed = {
        entry["gomod"]
        for kind in ("receivers", "processors", "connectors", "exporters", "extensions", "providers")
        for entry in manifest[kind]
    }
    module = ROOT / "otel-collector" / "module"
    required = {line.strip() for line in (module / "go.mod").read_text().splitlines() if "// indirect" not in line}
    assert listed <= required
    components = (module / "components.go").read_text()
    generated = set(re.findall(r'"(\S+ v\S+)"', components))
    assert generated == {gomod for gomod in listed if "/provider/" not in gomod}
    assert manifest["dist"]["version"] == backends.BACKENDS[0].version


def test_a_build_puts_all_programs_into_the_cache_once(fake_go, tmp_path, capsys):
    backends.build_missing([])
    assert [call["arguments"][0] for call in calls(tmp_path)] == ["list", "build"] * 4
    assert {call["cgo"] for call in calls(tmp_path)} == {"0"}
    assert [Path(call["cwd"]).parent.name for call in calls(tmp_path)[::2]] == [one.name for one in backends.BACKENDS]
    for name in ("otelcol", "prometheus", "promtool", "loki", "jaeger"):
        assert backends.program_path(name).read_text() == name
    out = capsys.readouterr().out
    assert "clew backends: 2/4 prometheus 3.15.0 (about 5 minutes the first time): fetching its modules ..." in out
    assert not list((tmp_path / "cache").glob(".building-*"))

    backends.build_missing([])
    assert len(calls(tmp_path)) == 8
    assert "already built in" in capsys.readouterr().out


def test_only_what_is_named_is_built(fake_go, tmp_path):
    backends.build_missing(["prometheus"])
    (build,) = [call["arguments"] for call in calls(tmp_path) if call["arguments"][0] == "build"]
    assert {"-mod=readonly", "-trimpath", "netgo,remove_all_sd"} <= set(build)
    assert backends.program_path("promtool") is not None
    assert backends.program_path("loki") is None


def test_other_versions_or_flags_are_another_folder(fake_go, monkeypatch, tmp_path):
    backend = backends.BACKENDS[1]
    before = backend.folder()
    changed = type(backend)(**{**vars(backend), "tags": "netgo"})
    assert changed.folder() != before
    copied = tmp_path / backend.name / "module"
    copied.mkdir(parents=True)
    for path in backend.module.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(backends, "ROOT", tmp_path)
    assert backend.folder() == before
    with (copied / "go.sum").open("a") as out:
        out.write("example.org/other v1.0.0 h1:=\n")
    assert backend.folder() != before


def test_a_refused_module_is_told_in_one_sentence_with_what_go_said(fake_go, tmp_path):
    fake_go("refuse")
    with pytest.raises(backends.BackendError) as caught:
        backends.build_missing(["loki"])
    said = str(caught.value)
    assert said.startswith("the modules of loki 3.7.8 could not be fetched: check that Go can reach its module proxy")
    assert said.endswith("reading example.org/wanted: 403 Forbidden: not available")
    assert "downloading" not in said
    assert "\n" not in said
    assert len(calls(tmp_path)) == 1, "a refusal is final"
    assert not list((tmp_path / "cache").iterdir()) or backends.program_path("loki") is None


def test_a_passing_fault_of_the_network_is_tried_again(fake_go, tmp_path, capsys):
    fake_go("flaky")
    backends.build_missing(["jaeger"])
    assert [call["arguments"][0] for call in calls(tmp_path)] == ["list", "list", "build"]
    assert "TLS handshake timeout): trying again" in capsys.readouterr().out


def test_a_build_that_gives_no_program_fails(fake_go):
    fake_go("nothing")
    with pytest.raises(backends.BackendError, match="did not give prometheus, promtool"):
        backends.build_missing(["prometheus"])


def test_a_cache_that_cannot_be_written_is_named(fake_go, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(backends.BackendError, match=r"the cache .*/cache cannot be written .* CLEW_BACKENDS_DIR"):
        backends.build_missing(["loki"])


def test_a_long_step_says_that_it_goes_on(fake_go, monkeypatch, capsys):
    monkeypatch.setattr(backends, "HEARTBEAT_S", 0.01)
    backends.build_missing(["loki"])
    assert re.search(r"1/1 loki 3\.7\.8: fetching its modules \.\.\. 0 min 00 s", capsys.readouterr().out)


def test_two_runs_at_once_build_once(fake_go, tmp_path):
    both = [
        subprocess.Popen([sys.executable, str(SCRIPT), "build", "loki"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=60)[0] for run in both]
    assert [run.returncode for run in both] == [0, 0]
    assert [call["arguments"][0] for call in calls(tmp_path)] == ["list", "build"]
    assert sum("already built" in output for output in outputs) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_build_takes_go_along_and_leaves_nothing_half_done(fake_go, tmp_path, how):
    fake_go("hang")
    run = subprocess.Popen(
        [sys.executable, str(SCRIPT), "build", "loki"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    noted = tmp_path / "pid"
    deadline = time.monotonic() + 20
    while not (noted.exists() and noted.read_text()) and time.monotonic() < deadline:
        os.sched_yield()
    run.send_signal(how)
    run.communicate(timeout=20)
    assert run.returncode in {130, 128 + how}
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_without_go_it_says_which_tests_are_left_out_and_what_to_install(tmp_path):
    ran = command("build", PATH=str(tmp_path), CLEW_BACKENDS_DIR=str(tmp_path / "cache"))
    assert ran.returncode == 3
    assert re.fullmatch(
        r"clew backends: Go is not installed, so tests/stack \(.*\) is left out: install Go 1\.\d+\.\d+ or newer, .*\.\n",
        ran.stderr,
    )


def test_an_unbuilt_program_has_no_path_and_an_unknown_name_is_refused(tmp_path):
    cache = str(tmp_path / "cache")
    ran = command("path", "loki", CLEW_BACKENDS_DIR=cache)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "clew backends: loki is not built: run 'python tools/backends.py build' first.\n"
    assert "not built" in command("list", CLEW_BACKENDS_DIR=cache).stdout
    refused = command("build", "grafana", CLEW_BACKENDS_DIR=cache)
    assert refused.returncode == 2
    assert "there is no backend 'grafana': name some of otel-collector, prometheus, loki, jaeger" in refused.stderr
