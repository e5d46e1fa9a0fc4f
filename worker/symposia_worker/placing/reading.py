"""A problem written as a file: TOML, YAML or JSON, with ``devices`` and ``checkpoints``."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator

from symposia_shared.errors import BadInput
from symposia_shared.values import Value
from symposia_worker.engines.openai.endpoint import pool_name
from symposia_worker.placing.problem import Precision, Site
from symposia_worker.stack.amounts import bytes_of


class WrittenDevice(Value):
    """A device of the file; ``memory`` as in 24GB."""

    device: str
    memory: int
    pool: str = ""
    speed: float | None = Field(None, gt=0)
    precision: Precision | None = None
    threads: int | None = Field(None, ge=1)

    @field_validator("memory", mode="before")
    @classmethod
    def _amount(cls, given: object) -> int:
        return bytes_of(str(given))

    @property
    def site(self) -> Site:
        """As the solver takes it."""
        return Site(pool=self.pool or pool_name(self.device), device=self.device, memory_bytes=self.memory, speed=self.speed, precision=self.precision,
                    threads=self.threads)


class WrittenCheckpoint(Value):
    """A checkpoint of the file. What is not told of its size comes from where it is stored, or from the catalogue."""

    id: str
    traffic: float = Field(0.0, ge=0)
    params_b: float | None = Field(None, gt=0)
    memory: int | None = None
    precision: Precision | None = None
    copies: int = Field(1, ge=1)
    pools: tuple[str, ...] = ()

    @field_validator("memory", mode="before")
    @classmethod
    def _amount(cls, given: object) -> int | None:
        return None if given is None else bytes_of(str(given))


class Written(Value):
    """The whole file."""

    devices: tuple[WrittenDevice, ...] = ()
    checkpoints: tuple[WrittenCheckpoint, ...] = ()


def read(path: Path) -> Written:
    """The file's content. Raises BadInput."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}).", field="--file", value=str(path)) from None
    try:
        raw: Any = {".toml": tomllib.loads, ".json": json.loads}.get(path.suffix.lower(), yaml.safe_load)(text)
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(f"{path} is not what its name says ({' '.join(str(error).split())}).", field="--file", value=str(path),
                       remedy="Write TOML, YAML or JSON, named .toml, .yaml or .json.") from None
    if not isinstance(raw, dict):
        raise BadInput(f"{path} has no tables 'devices' and 'checkpoints'.", field="--file", value=str(path))
    return Written.parse(raw)
