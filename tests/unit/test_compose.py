"""docker-compose.yml cannot be run where tests run: it is held against the Compose specification and against our own rules."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from clew.demo.settings import DemoSettings
from clew.settings import Settings
from tools.backends import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SCHEMA = json.loads((ROOT / "tests" / "schemas" / "compose-spec.json").read_text())

SECRETS = ("GRAFANA_ADMIN_PASSWORD", "OTELCOL_TOKEN", "POSTGRES_PASSWORD", "VALKEY_PASSWORD")
FILLED_IN = {name: f"{number:048x}" for number, name in enumerate(SECRETS, 1)}

# What stands out, and why it may
WITHOUT_HEALTH_CHECK = {
    "otel-collector": "the image has neither a shell nor a program that could ask",
    "orchestrator": "a worker answers no requests",
    "processor": "a worker answers no requests",
    "topicizer": "a worker answers no requests",
    "exporter": "a worker answers no requests",
    "scheduler": "a worker answers no requests",
    "volumes": "it ends at once",
}
AS_ROOT = {"volumes": "it gives new volumes to the users that write to them"}
CAPABILITIES = {"volumes": ["CHOWN"]}
RESTARTED = {"volumes": "no"}
PORTS = {"gateway": {8000}, "grafana": {3000}, "otel-collector": {4317, 4318}}
LEADING_OUT = {
    "gateway": "its port",
    "grafana": "its port",
    "otel-collector": "its ports",
    "processor": "a real language model",
    "topicizer": "a real language model",
    "scheduler": "a real language model",
}
OTHER_VERSION = {"jaeger": "the Go module of Jaeger 2 cannot be built, so tests run a release candidate of it"}
BACKEND_SERVICES = {"otel-collector": "otel-collector", "prometheus": "prometheus", "loki": "loki", "jaeger": "jaeger"}

_INTERPOLATION = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<operator>:?[-?])(?P<word>[^}]*))?\})")


def each_service(test: Callable[..., None]) -> Any:
    return pytest.mark.parametrize("name", sorted(SERVICES))(test)


class RefusedError(Exception):
    """Compose would not start: a variable is required."""


def interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    """Fill in variables as the Compose specification says."""
    if isinstance(value, dict):
        return {key: interpolated(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, environment) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        operator, given = match["operator"] or "", environment.get(match["name"])
        missing = given is None or (operator.startswith(":") and not given)
        if missing and operator.endswith("?"):
            raise RefusedError(f"required variable {match['name']} is missing a value: {match['word']}")
        return match["word"] or "" if missing else given or ""

    return _INTERPOLATION.sub(fill, value)


def variables(value: Any) -> list[re.Match[str]]:
    if isinstance(value, dict):
        return [match for item in value.values() for match in variables(item)]
    if isinstance(value, list):
        return [match for item in value for match in variables(item)]
    return [match for match in _INTERPOLATION.finditer(value) if match["name"]] if isinstance(value, str) else []


def mounts(name: str, kind: str) -> list[dict[str, Any]]:
    return [mount for mount in SERVICES[name].get("volumes", []) if mount["type"] == kind]


def networks(name: str) -> set[str]:
    return set(SERVICES[name].get("networks", []))


def mebibytes(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(m|g|MiB|GiB)", text).groups()  # type: ignore[union-attr]
    return int(number) * (1024 if unit.lower().startswith("g") else 1)


# ---- the file as a whole


@pytest.mark.parametrize("environment", [None, FILLED_IN], ids=["as written", "filled in"])
def test_it_follows_the_compose_specification(environment):
    document = COMPOSE if environment is None else interpolated(COMPOSE, environment)
    jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_the_schema_would_find_a_mistake():
    wrong = {"services": {"a": {"image": "b:1", "mem_limits": "64m"}}}
    with pytest.raises(jsonschema.ValidationError, match="mem_limits"):
        jsonschema.Draft202012Validator(SCHEMA).validate(wrong)


def test_every_part_of_the_stack_is_there():
    assert {"otel-collector", "prometheus", "loki", "jaeger", "grafana", "valkey", "postgres"} <= SERVICES.keys()
    assert {"gateway", "orchestrator", "processor", "topicizer", "exporter", "scheduler", "llm"} <= SERVICES.keys()


def _compose_is_here() -> bool:
    return (
        shutil.which("docker") is not None
        and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    )


if _compose_is_here():

    def test_compose_itself_agrees():
        asked = subprocess.run(
            ["docker", "compose", "--env-file", os.devnull, "config", "--quiet"],
            cwd=ROOT,
            env={**os.environ, **FILLED_IN},
            capture_output=True,
            text=True,
            check=False,
        )
        assert asked.returncode == 0, asked.stderr


# ---- no default password


@pytest.mark.parametrize("given", [None, ""], ids=["unset", "empty"])
@pytest.mark.parametrize("secret", SECRETS)
def test_it_refuses_to_start_without_a_secret_and_says_which(secret, given):
    environment = {name: value for name, value in FILLED_IN.items() if name != secret}
    if given is not None:
        environment[secret] = given
    with pytest.raises(RefusedError, match=f"{secret} is missing a value: set {secret} in .env, as .env.example shows"):
        interpolated(COMPOSE, environment)


def test_it_refuses_the_example_as_it_is():
    example = dict(
        line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if re.match(r"\w+=", line)
    )
    assert set(example) == set(SECRETS)
    with pytest.raises(RefusedError):
        interpolated(COMPOSE, example)


def test_every_variable_is_in_the_example():
    text = (ROOT / ".env.example").read_text()
    assert {match["name"] for match in variables(COMPOSE)} == set(re.findall(r"(?m)^#?(\w+)=", text))


@each_service
def test_what_is_secret_has_no_default(name):
    for key, value in SERVICES[name].get("environment", {}).items():
        if re.search(r"PASSWORD|TOKEN|SECRET|HEADERS|VALKEY_URL", key):
            operators = {match["operator"] for match in variables(value)}
            assert operators == {":?"}, f"{name}: {key}={value}"


def test_no_secret_is_on_a_command_line():
    for service in SERVICES.values():
        named = {match["name"] for key in ("command", "entrypoint") for match in variables(service.get(key))}
        assert not named & set(SECRETS)


# ---- every container


@each_service
def test_versions_are_pinned(name):
    service = SERVICES[name]
    if "build" in service:
        dockerfile = (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).read_text()
        images = re.findall(r"(?m)^FROM (\S+)", dockerfile)
        assert len(images) >= 1
    else:
        images = [service["image"]]
    for image in images:
        assert re.fullmatch(r"[\w./-]+:v?\d+(\.\d+)+(-[\w.]+)?", image), image


@pytest.mark.parametrize(("backend", "service"), BACKEND_SERVICES.items())
def test_the_image_has_the_version_that_tests_run(backend, service):
    built = {one.name: one.version for one in BACKENDS}[backend]
    image = SERVICES[service]["image"].rpartition(":")[2].removeprefix("v")
    assert (image != built) == (service in OTHER_VERSION), f"{service}: {image} in compose, {built} in tests"


@each_service
def test_ports_are_on_loopback(name):
    published = [interpolated(port, FILLED_IN).split(":") for port in SERVICES[name].get("ports", [])]
    assert all(host == "127.0.0.1" for host, _, _ in published)
    assert {int(container) for _, _, container in published} == PORTS.get(name, set())


@each_service
def test_only_what_has_to_is_on_a_network_that_leads_out(name):
    outside = {network for network in networks(name) if not COMPOSE["networks"][network].get("internal")}
    assert bool(outside) == (name in LEADING_OUT)
    # Docker publishes no port of a container that is on internal networks only
    assert not SERVICES[name].get("ports") or outside
    assert networks(name) or SERVICES[name]["network_mode"] == "none"


@each_service
def test_it_is_hardened(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == CAPABILITIES.get(name, [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "pid", "ipc", "userns_mode", "devices"}
    user = service["user"].split(":")[0]
    assert user.isdecimal(), "a number, so that it can be checked here"
    assert (user == "0") == (name in AS_ROOT)


@each_service
def test_it_has_limits(name):
    service = SERVICES[name]
    assert 0 < service["cpus"] <= 2
    assert 16 <= mebibytes(service["mem_limit"]) <= 1024
    assert 0 < service["pids_limit"] <= 256
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["restart"] == RESTARTED.get(name, "unless-stopped")
    for mount in service.get("tmpfs", []):
        assert "size=" in mount, "a temporary file system without a size is half of the machine's memory"


@pytest.mark.parametrize("name", [name for name in SERVICES if "GOMEMLIMIT" in SERVICES[name].get("environment", {})])
def test_go_knows_its_memory_limit(name):
    service = SERVICES[name]
    # The Collector refuses data at a limit of its own, which lies below the container's
    limit = float(service["environment"].get("OTELCOL_MEMORY_MIB", mebibytes(service["mem_limit"])))
    assert limit <= mebibytes(service["mem_limit"])
    assert mebibytes(service["environment"]["GOMEMLIMIT"]) == pytest.approx(0.8 * limit, rel=0.01)


@each_service
def test_it_has_a_health_check_or_a_reason(name):
    check = SERVICES[name].get("healthcheck")
    assert (check is None) == (name in WITHOUT_HEALTH_CHECK)
    if check is not None:
        assert check.keys() >= {"test", "interval", "timeout", "retries", "start_period"}
        assert check["test"][0] in {"CMD", "CMD-SHELL"}


@each_service
def test_it_waits_for_what_can_become_so(name):
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        fitting = {
            "service_healthy": "healthcheck" in SERVICES[needed],
            "service_completed_successfully": SERVICES[needed]["restart"] == "no",
            "service_started": True,
        }
        assert fitting[how["condition"]], f"{name} waits for {needed}"
    if mounts(name, "volume") and name != "volumes":
        assert SERVICES[name]["depends_on"]["volumes"] == {"condition": "service_completed_successfully"}


# ---- files and data


@each_service
def test_what_it_mounts_is_in_the_repository_and_read_only(name):
    for mount in mounts(name, "bind"):
        assert (ROOT / mount["source"]).exists(), mount["source"]
        assert mount["read_only"] is True
    for path in re.findall(r"/etc/[\w./-]+\.(?:yaml|yml|args)", json.dumps(SERVICES[name].get("command", []))):
        assert any(path == mount["target"] for mount in mounts(name, "bind")), f"{path} is not mounted"


@each_service
def test_its_volume_is_declared_and_belongs_to_its_user(name):
    if name == "volumes":
        assert {mount["source"] for mount in mounts(name, "volume")} == COMPOSE["volumes"].keys()
        return
    given = re.findall(r"(?m)^chown (\S+) (.+)$", SERVICES["volumes"]["command"][-1])
    owners = {Path(folder).name: user for user, folders in given for folder in folders.split()}
    for mount in mounts(name, "volume"):
        assert mount["source"] in COMPOSE["volumes"]
        assert owners[mount["source"]] == SERVICES[name]["user"]
        assert mount["volume"] == {"nocopy": True}, "what the image has there would take the owner away again"


@pytest.mark.parametrize("name", ["otel-collector", "loki", "jaeger", "grafana"])
def test_its_environment_is_what_its_files_ask_for(name):
    sources = [ROOT / mount["source"] for mount in mounts(name, "bind")]
    files = [file for source in sources for file in ([source] if source.is_file() else source.rglob("*.yaml"))]
    text = "\n".join(file.read_text() for file in files)
    asked = set(re.findall(r"\$\{?(?:env:)?([A-Z][A-Z0-9_]+)", text))
    own = {key for key in SERVICES[name]["environment"] if key != "GOMEMLIMIT" and not key.startswith("GF_")}
    assert own <= asked, "a variable that no file reads"
    without_default = set(re.findall(r"\$\{?(?:env:)?([A-Z][A-Z0-9_]+)(?:\}|:-\}|\s)", text))
    assert without_default <= own, "a variable that no default stands in for"
    # Loopback, the default of all of them, is reached by nobody else in a container
    assert all(SERVICES[name]["environment"][key] == "0.0.0.0" for key in own if key.endswith("_HOST"))


def test_prometheus_scrapes_services_of_this_file():
    for group in yaml.safe_load((ROOT / "prometheus" / "targets-compose" / "compose.yml").read_text()):
        for target in group["targets"]:
            assert target.split(":")[0] in SERVICES
            assert networks(target.split(":")[0]) & networks("prometheus")


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("prometheus/prometheus.yml", ("storage", "tsdb", "retention", "time")),
        ("loki/loki.yaml", ("limits_config", "retention_period")),
        (
            "jaeger/badger.yaml",
            ("extensions", "jaeger_storage", "backends", "durable_traces", "badger", "ttl", "spans"),
        ),
    ],
)
def test_telemetry_is_kept_for_48_hours(file, path):
    value = yaml.safe_load((ROOT / file).read_text())
    for key in path:
        value = value[key]
    assert value == "48h"
    assert any((ROOT / mount["source"]) == ROOT / file for service in SERVICES for mount in mounts(service, "bind")), (
        "and that file is mounted"
    )


# ---- the demo


DEMO = [name for name in SERVICES if "build" in SERVICES[name]]


@pytest.mark.parametrize("name", DEMO)
def test_the_demo_understands_what_it_is_given(name, monkeypatch):
    for key in [key for key in os.environ if key.startswith(("OTEL_", "CLEW_", "DEMO_", "VALKEY_"))]:
        monkeypatch.delenv(key)
    for key, value in interpolated(SERVICES[name]["environment"], FILLED_IN).items():
        monkeypatch.setenv(key, value)
    settings = Settings.load()
    assert settings.service_name == name
    assert settings.headers == {"Authorization": f"Bearer {FILLED_IN['OTELCOL_TOKEN']}"}
    assert settings.destination("traces").url == "http://otel-collector:4318/v1/traces"
    assert settings.resource_attributes["service.namespace"] == "clew-demo"
    demo = DemoSettings.load()
    assert demo.valkey_url == f"redis://:{FILLED_IN['VALKEY_PASSWORD']}@valkey:6379/0"
    # What must outlive the container lies on its volume
    (volume,) = mounts(name, "volume")
    assert settings.spool_path().is_relative_to(volume["target"])
    assert demo.data_dir.is_relative_to(volume["target"])


@pytest.mark.parametrize("name", DEMO)
def test_the_demo_has_such_a_service(name):
    dockerfile = (ROOT / SERVICES[name]["build"]["dockerfile"]).read_text()
    assert 'ENTRYPOINT ["python", "-m"]' in dockerfile
    module = SERVICES[name]["command"][0]
    assert importlib.util.find_spec(module) is not None


def test_every_agent_that_is_apart_has_a_process():
    apart = {SERVICES[name]["command"][1] for name in DEMO if SERVICES[name]["command"][0] == "clew.demo.agent"}
    configured = DemoSettings(agents_apart=SERVICES["orchestrator"]["environment"]["DEMO_AGENTS_APART"])
    assert apart == set(configured.agents_apart)


def test_the_image_is_built_from_the_lock_file():
    dockerfile = (ROOT / "docker" / "demo.Dockerfile").read_text()
    assert "pip install --require-hashes -r requirements/demo.txt" in dockerfile
    assert re.search(r"(?m)^USER (?!0)\d+", dockerfile)
    sent = (ROOT / "docker" / "demo.Dockerfile.dockerignore").read_text().splitlines()
    copied = {source for line in re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", dockerfile) for source in line.split()}
    assert copied <= {line.removeprefix("!") for line in sent if line.startswith("!")}
