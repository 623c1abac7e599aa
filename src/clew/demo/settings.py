"""What the demo's services are told by the environment: ``DEMO_*``, ``VALKEY_URL``, ``NATS_URL`` and the OpenAI client's own variables."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

import clew

AGENTS: Final = ("processor", "topicizer", "exporter")
"""The agents that a document is handed along, in this order."""

Queue = Literal["valkey", "nats", "celery"]

QUEUES: Final[tuple[Queue, ...]] = get_args(Queue)
"""Who may carry the messages."""

STAND_IN_MODEL: Final = "clew-extractive-1"
"""The one model that the stand-in serves."""

READY_FD_VARIABLE: Final = "DEMO_READY_FD"
"""Names the file descriptor on which a service tells the one who started it that it is ready."""

_PROBE_BYTES: Final = 1024 * 1024


class DemoError(clew.ClewError):
    """The demo can't go on: the message is one sentence that names what is wrong and the mend."""


def _agents(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    names = [name for part in value.split(",") if (name := part.strip().lower()) and name != "none"]
    return AGENTS if names == ["all"] else tuple(names)


def _known_agents(value: tuple[str, ...]) -> tuple[str, ...]:
    if strangers := [name for name in value if name not in AGENTS]:
        raise ValueError(f"{strangers[0]!r} is no agent: give some of {', '.join(AGENTS)}, or all, or none")
    return tuple(name for name in AGENTS if name in value)


def _redis_scheme(value: str) -> str:
    address = f"redis{value.removeprefix('valkey')}" if value.startswith(("valkey://", "valkeys://")) else value
    if not address.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must be an address such as redis://127.0.0.1:6379/0")
    return address


def _nats_scheme(value: str) -> str:
    if not value.startswith(("nats://", "tls://", "ws://", "wss://")):
        raise ValueError("must be an address such as nats://127.0.0.1:4222")
    return value


def default_data_dir() -> Path:
    """Return where the XDG base directory specification puts what a program keeps between runs."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "clew" / "demo"


class DemoSettings(BaseSettings):
    """The settings of every service of the demo, all from the environment.

    Example:
        >>> DemoSettings.load(port=8123).port
        8123
    """

    model_config = SettingsConfigDict(
        env_prefix="DEMO_", frozen=True, extra="forbid", populate_by_name=True, env_ignore_empty=True
    )

    # Where things are
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65_535)
    llm_port: int = Field(default=8001, ge=1, le=65_535)
    scheduler_port: int = Field(default=9464, ge=1, le=65_535)
    gateway_url: Annotated[str, AfterValidator(lambda value: value.rstrip("/"))] = ""
    data_dir: Path = Field(default_factory=default_data_dir)
    database_url: str = ""
    valkey_url: Annotated[str, AfterValidator(_redis_scheme)] = Field(
        default="redis://127.0.0.1:6379/0", validation_alias=AliasChoices("VALKEY_URL")
    )
    nats_url: Annotated[str, AfterValidator(_nats_scheme)] = Field(
        default="nats://127.0.0.1:4222", validation_alias=AliasChoices("NATS_URL")
    )

    # How documents are worked on
    queue: Queue = "valkey"
    agents_apart: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_agents), AfterValidator(_known_agents)] = (
        "topicizer",
    )
    model: str = Field(default=STAND_IN_MODEL, min_length=1)
    max_document_bytes: int = Field(default=256 * 1024, ge=1)
    topics_per_document: int = Field(default=8, ge=1, le=50)
    budget_usd: float = Field(default=0.05, gt=0)
    workers: int = Field(default=4, ge=1, le=64)

    # When things are done
    verify_delay_s: float = Field(default=0.2, ge=0)
    digest_interval_s: float = Field(default=2.0, gt=0)
    health_interval_s: float = Field(default=2.0, gt=0)
    cleanup_interval_s: float = Field(default=60.0, gt=0)
    retention_s: float = Field(default=48 * 3600.0, gt=0)
    redeliver_after_s: float = Field(default=60.0, gt=0)

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read the environment.

        Raises:
            DemoError: a value can't be used; the message names the variable, the value and what is allowed.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            item = error.errors()[0]
            field = str(item["loc"][0])
            variable = field if field.isupper() else f"DEMO_{field.upper()}"
            allowed = item["msg"].removeprefix("Value error, ")
            raise DemoError(f"{variable}={item['input']!r}: {allowed[0].lower()}{allowed[1:]}.") from None

    def sql_url(self) -> str:
        """Return where documents, topics and exports are kept: by default an SQLite file in the data folder."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir / 'documents.db'}"

    def export_file(self, export_id: str) -> Path:
        """Return where an export is written to and downloaded from: JSON Lines, one document a line."""
        return self.data_dir / "exports" / f"{export_id}.jsonl"

    def make_data_dir(self) -> Path:
        """Return the data folder, which is there from now on.

        Raises:
            DemoError: it can't be made, or nothing can be written to it.
        """
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.data_dir) as probe:
                # Rights alone do not tell whether a disk is full
                probe.write(b"\0" * _PROBE_BYTES)
                probe.flush()
                os.fsync(probe.fileno())
        except OSError as error:
            raise DemoError(
                f"the data folder {self.data_dir} can't be written ({error.strerror or error}): "
                "give another with --data-dir or DEMO_DATA_DIR"
            ) from error
        return self.data_dir
