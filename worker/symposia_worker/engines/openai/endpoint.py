"""An endpoint as a device: where it is, what of it is served, and how long one waits for it. Never its key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from symposia_shared.errors import BadInput
from symposia_shared.jobs import ModelId
from symposia_shared.values import Value

#: a device of this prefix is an endpoint: ``openai:http://host:8000/v1``
PREFIX = "openai:"
#: in an engine process's environment: the endpoint as JSON, and the key to it
ENDPOINT, KEY = "SYMPOSIA_ENDPOINT", "SYMPOSIA_OPENAI_API_KEY"
#: more listed models than this are not all served unasked
MOST_LISTED = 64

#: ``openai``: any server of which nothing more is known
ServerKind = Literal["vllm", "llamacpp", "ollama", "openai"]

_ID: TypeAdapter[str] = TypeAdapter(ModelId)


class Patience(Value):
    """How long a turn waits, and for what."""

    connect_s: float = Field(10.0, gt=0)
    #: from the request to the first token: a busy server queues
    first_token_s: float = Field(300.0, gt=0)
    #: between two pieces of a streamed answer
    token_s: float = Field(60.0, gt=0)
    #: for a whole answer
    answer_s: float = Field(3600.0, gt=0)
    #: tries of a turn whose server fails; waits asked for by the server (429) are not counted
    tries: int = Field(6, ge=1, le=100)
    #: for a server that is away, or asks to wait, before the turn is given back
    away_s: float = Field(600.0, gt=0)


class Endpoint(Value):
    """An OpenAI-compatible server."""

    #: up to and with ``/v1``
    url: str
    #: None: found out
    server: ServerKind | None = None
    #: requests in flight at once
    max_concurrency: int = Field(32, ge=1, le=4096)
    #: our id → the server's, where they differ
    renamed: dict[str, str] = Field(default_factory=dict)
    #: tokens of prompt and answer together, where the server does not say
    context: int = Field(8192, ge=1)
    patience: Patience = Patience()

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{_shown(url)!r} is no endpoint; write openai:http://HOST:PORT/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"an endpoint's URL holds neither user, password nor query; put the key into the environment as {KEY}")
        return url.rstrip("/")

    @property
    def root(self) -> str:
        """The URL without ``/v1``: where servers keep what is their own."""
        return self.url.removesuffix("/v1")

    @property
    def device(self) -> str:
        """The device's name."""
        return PREFIX + self.url

    def remote(self, model: str) -> str:
        """The server's name of a checkpoint."""
        return self.renamed.get(model, model)

    def environ(self, key: str | None) -> dict[str, str]:
        """What its engine process finds in its environment."""
        return {ENDPOINT: self.to_json(), **({KEY: key} if key else {})}

    @classmethod
    def of_device(cls, device: str, **fields: object) -> Self:
        """The endpoint a device names. Raises BadInput."""
        return cls.parse({"url": device.removeprefix(PREFIX), **fields})


def is_endpoint(device: str) -> bool:
    """Whether a device is an endpoint."""
    return device.startswith(PREFIX)


def pool_name(device: str) -> str:
    """The name of a pool: ``pool-cuda-0``; on an endpoint ``pool-openai-HOST-PORT``, and its path where that is not ``/v1``."""
    if not is_endpoint(device):
        return "pool-" + device.replace(":", "-").replace("+", "-")
    parts = urlsplit(device.removeprefix(PREFIX))
    path = parts.path.rstrip("/").removesuffix("/v1")
    return "pool-openai-" + re.sub(r"[^A-Za-z0-9._-]+", "-", parts.netloc.rpartition("@")[2] + path).strip("-")


def key_in(environ: Mapping[str, str], name: str | None) -> str | None:
    """The key in the variable ``name``, which must then be set; by default in SYMPOSIA_OPENAI_API_KEY, if that is set."""
    key = environ.get(name or KEY, "").strip()
    if name and not key:
        raise BadInput(f"the environment has no {name}.", field="--api-key-env", value=name, remedy="Set it to the endpoint's key.")
    if not key.isascii() or any(c.isspace() for c in key):
        raise BadInput(f"the key in {name or KEY} holds white space or characters outside ASCII.", field=name or KEY, remedy="Correct it.")
    return key or None


def asked_models(given: Sequence[str]) -> dict[str, str]:
    """Our id → the server's of ``ID`` or ``ID=REMOTE`` each. Raises BadInput."""
    found: dict[str, str] = {}
    for text in given:
        local, _, remote = text.partition("=")
        if not is_checkpoint_id(local) or local.startswith(("test/", "check/")):
            raise BadInput(f"{local!r} cannot name a checkpoint here.", field="--model", value=text,
                           remedy=f"Give it a name: --model {nameable(local)}={remote or local}")
        found[local] = remote or local
    return found


def nameable(remote: str) -> str:
    """A name that a job could use for a server's model, as a suggestion."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", remote.rpartition("/")[2]).strip("-.") or "NAME"


def is_checkpoint_id(name: str) -> bool:
    """Whether a job may name a checkpoint so."""
    try:
        _ID.validate_python(name)
    except ValidationError:
        return False
    return True


def from_environ(environ: Mapping[str, str] = os.environ) -> tuple[Endpoint, str | None]:
    """The endpoint and the key that an engine process was started with. Raises BadInput where there is none."""
    text = environ.get(ENDPOINT)
    if text is None:
        raise BadInput("this device is no endpoint, so it has no engine 'openai'.", field="engine", value="openai",
                       remedy="Start a pool with --device openai:http://HOST:PORT/v1")
    return Endpoint.from_json(text), environ.get(KEY) or None


def _shown(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)
