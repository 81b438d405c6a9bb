"""Settings of the services: environment variables `MAGICFLOW_…`, or a file named by
`MAGICFLOW_CONFIG` (YAML). The command line puts its options on top."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from engine.core.playbook import MAX_DOCUMENT, MAX_EDGES, MAX_NODES, Limits


class Settings(BaseSettings):
    """What a service needs to know. Durations are seconds."""

    model_config = SettingsConfigDict(env_prefix="MAGICFLOW_", extra="forbid")

    listen: str = Field("127.0.0.1:7200", description="host:port of the gRPC server")
    advertise: str = Field("", description="host:port for other instances; default: listen")
    instance: str = Field("", description="name of this instance; default: host and process id")
    nats: Annotated[list[str], NoDecode] = Field(
        ["nats://127.0.0.1:4222"], description="servers of the bus"
    )
    nats_monitor: Annotated[list[str], NoDecode] = Field(
        [], description="monitoring endpoints of the servers, http://host:8222: checked at start"
    )
    replicas: int = Field(1, ge=1, le=5, description="copies of each stream")
    etcd: Annotated[list[str], NoDecode] = Field(
        [], description="etcd endpoints, host:port; empty: embedded"
    )
    etcd_user: str = ""
    etcd_password: str = Field("", repr=False)
    database: str = Field("", description="SQLAlchemy URL; empty: SQLite in the data directory")
    data: Path = Field(Path(".magicflow"), description="data directory of embedded parts")
    keys: Path | None = Field(None, description="folder of signing keys; default: <data>/keys")
    partitions: int = Field(8, ge=1, le=256, description="fixed when the cluster is made")
    auth: Literal["required", "local"] = Field(
        "required", description="`local`: calls without a token from this host are allowed"
    )
    lease: float = Field(6.0, ge=2, le=60, description="time to live of ownership leases")
    lateness: float = Field(
        0.001,
        ge=0.0005,
        le=60,
        description="how late the dispatcher's loop may run before it holds back starts",
    )
    drain: float = Field(10.0, ge=0, le=600, description="how long a stop waits for running tasks")
    max_nodes: int = Field(MAX_NODES, ge=1, le=MAX_NODES, description="of one playbook")
    max_edges: int = Field(MAX_EDGES, ge=1, le=MAX_EDGES, description="of one playbook")
    max_document: int = Field(
        MAX_DOCUMENT, ge=1_024, le=MAX_DOCUMENT, description="bytes of one playbook"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = True

    @field_validator("nats", "nats_monitor", "etcd", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """A comma-separated text is a list, too."""
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("listen", "advertise")
    @classmethod
    def _address(cls, value: str) -> str:
        if value and not value.rpartition(":")[2].isdigit():
            raise ValueError(f"{value!r} is no host:port")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.pop("MAGICFLOW_CONFIG", "")
        from_file = (YamlConfigSettingsSource(settings_cls, Path(file)),) if file else ()
        return (init_settings, env_settings, *from_file)

    @property
    def name(self) -> str:
        return self.instance or f"{socket.gethostname()}-{os.getpid()}"

    @property
    def address(self) -> str:
        return self.advertise or self.listen

    @property
    def limits(self) -> Limits:
        """Of the playbooks that the registry takes."""
        return Limits(self.max_nodes, self.max_edges, self.max_document)

    @property
    def keys_folder(self) -> Path:
        return self.keys or self.data / "keys"

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite+aiosqlite:///{self.data / 'magicflow.db'}"

    @property
    def loopback(self) -> bool:
        host = self.listen.rpartition(":")[0].strip("[]")
        return host in ("127.0.0.1", "localhost", "::1")
