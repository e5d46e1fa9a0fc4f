"""Where Redis, S3 and the stack's folder are: from the environment first, then from the folder's credentials file."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from symposia_shared.errors import BadInput, StackUnavailable
from symposia_shared.notices.targets import Network, read_networks

CREDENTIALS = "credentials.json"
#: characters of a message key at least
SHORTEST_KEY = 16


class S3Settings(BaseModel):
    """An S3 endpoint and a bucket. Without keys, boto3's own chain finds them."""

    #: None: AWS
    endpoint_url: str | None = None
    region: str = "us-east-1"
    access_key: str | None = None
    secret_key: SecretStr | None = None
    bucket: str = "symposia"
    #: of boto3's configuration files; keys that are given come before it
    profile: str | None = None


class LimitSettings(BaseModel):
    """What a submit may fill; beyond it is refused as Busy."""

    #: turns that wait on one queue
    queue: int = Field(100_000, ge=1)
    #: jobs in flight
    jobs: int = Field(500_000, ge=1)
    #: share of Redis' maxmemory
    memory: float = Field(0.8, gt=0.0, le=1.0)
    #: seconds for which an idempotency key is known, after the time its jobs may take
    idempotency_s: float = Field(86_400.0, ge=1.0, le=90 * 86_400.0)
    #: seconds for which a reply is kept to be given again
    reuse_s: float = Field(7 * 86_400.0, ge=1.0, le=400 * 86_400.0)


class SpoolSettings(BaseModel):
    """Where a pool keeps replies that S3 does not take, and how much of them."""

    #: None: ``spool`` in the stack's folder; each pool has a folder of its name in it
    folder: Path | None = None
    #: bytes of one pool's; when they are full it takes no more turns. 0: nothing is spooled, what S3 does not take waits in memory
    max_bytes: int = Field(1024 * 1024 * 1024, ge=0)


class DeviceSettings(BaseModel):
    """What becomes of a device that fails."""

    #: seconds of its first quarantine; each that follows without an answer between lasts twice as long, up to an hour
    quarantine_s: float = Field(300.0, gt=0.0, le=3600.0)


class ApiSettings(BaseModel):
    """The HTTP API: its first key, and what one request may ask for; beyond it is refused."""

    #: a key that is always good, for the tenant ``default``; the embedded stack's is in its credentials file
    key: SecretStr | None = None
    #: the checkpoint or team that answers for ``auto``; None: ``auto`` is refused
    auto_model: str | None = None
    #: seconds a request's job may take
    timeout_s: float = Field(600.0, gt=0.0, le=86_400.0)
    #: seconds a job may take that runs in the background (``background`` of ``/v1/responses``)
    background_timeout_s: float = Field(86_400.0, gt=0.0, le=30 * 86_400.0)
    #: bytes of a body
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1_024)
    #: messages of a chat
    max_messages: int = Field(1_000, ge=1)
    #: members of a collaboration times its rounds
    max_member_rounds: int = Field(100, ge=1)
    #: new tokens of one answer; None: to the end of the context
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    #: bytes of a request's headers together
    max_header_bytes: int = Field(32_768, ge=1_024, le=1_048_576)
    #: whether a request that does not say is answered with kept replies where it can be
    reuse: bool = False


class WebhookSettings(BaseModel):
    """Webhooks: where they may go, and how long they are tried."""

    #: networks that may be called although they are not public, such as ``10.1.0.0/16,127.0.0.0/8``; plain http is for these alone
    allow: str = ""
    #: hours for which a notice is tried
    hours: float = Field(72.0, gt=0.0, le=30 * 24.0)
    #: seconds an endpoint has to answer
    timeout_s: float = Field(15.0, gt=0.0, le=60.0)

    @field_validator("allow")
    @classmethod
    def _networks(cls, allow: str) -> str:
        read_networks(allow)
        return allow

    @property
    def networks(self) -> tuple[Network, ...]:
        """``allow``, read."""
        return read_networks(self.allow)


class RetentionSettings(BaseModel):
    """How long is kept what has ended, in days; None, in the environment ``never``: for ever. Swept by the coordinator."""

    #: a job's result and all its other papers
    jobs_days: float | None = Field(30.0, gt=0.0)
    #: the rounds within a result, and prompts and replies beside it
    transcripts_days: float | None = Field(30.0, gt=0.0)
    #: uploaded files, and batches' output
    files_days: float | None = Field(30.0, gt=0.0)
    #: notices that were delivered or given up
    notices_days: float | None = Field(7.0, gt=0.0)
    #: seconds between two sweeps
    every_s: float = Field(3600.0, ge=0.1)

    @field_validator("*", mode="before")
    @classmethod
    def _for_ever(cls, days: object) -> object:
        return None if days == "never" else days


class BatchSettings(BaseModel):
    """What a batch may be, and how much of it is in the queues at once."""

    #: bytes of an input file
    max_bytes: int = Field(200 * 1024 * 1024, ge=1_024)
    #: lines of it
    max_lines: int = Field(50_000, ge=1, le=9_999_999)
    #: lines of one batch in flight at most; within it twice as many as the pools have slots
    in_flight: int = Field(1_024, ge=1, le=10_000)


class ResidencySettings(BaseModel):
    """Which checkpoints a device holds, where it serves more than it can hold."""

    #: seconds no turn shall wait for its checkpoint; what that promise is worth stands in ``symposia_shared.residency``
    longest_wait_s: float = Field(30.0, gt=0.0)
    #: seconds the oldest turn of a queue waits before a full device swaps for it; None: as long as there is time, which loads least
    patience_s: float | None = Field(2.0, ge=0.0)
    #: seconds after which a checkpoint nobody asks is unloaded; None: never
    idle_ttl_s: float | None = Field(None, gt=0.0)
    #: checkpoints that are loaded first and never evicted, beside those of ``symposia models pin``
    pins: tuple[str, ...] = ()

    @field_validator("patience_s", "idle_ttl_s", mode="before")
    @classmethod
    def _nothing(cls, given: object) -> object:
        """An empty variable is None."""
        return None if given == "" else given


class Settings(BaseSettings):
    """``SYMPOSIA_BROKER_URL``, ``SYMPOSIA_S3__ENDPOINT_URL`` and so on; see ``load``."""

    model_config = SettingsConfigDict(env_prefix="SYMPOSIA_", env_nested_delimiter="__", extra="ignore")

    #: ``redis://``, ``rediss://`` or ``redis+socket://``
    broker_url: SecretStr | None = None
    s3: S3Settings = S3Settings()
    limits: LimitSettings = LimitSettings()
    api: ApiSettings = ApiSettings()
    #: the S3 that ``symposia models pull s3://BUCKET/PREFIX`` reads, where it is another one; the bucket is the source's own
    source: S3Settings | None = None
    #: whether checkpoints whose licence forbids commercial use may be added
    allow_non_commercial: bool = False
    residency: ResidencySettings = ResidencySettings()
    webhooks: WebhookSettings = WebhookSettings()
    retention: RetentionSettings = RetentionSettings()
    batches: BatchSettings = BatchSettings()
    spool: SpoolSettings = SpoolSettings()
    devices: DeviceSettings = DeviceSettings()
    #: the key that messages are signed with, the same for all producers and workers of a deployment
    message_key: SecretStr | None = None
    #: every Redis key and channel of ours starts with it
    prefix: str = "symposia:"
    #: the stack's folder
    dir: Path = Field(default_factory=lambda: Path.home() / ".symposia")

    @field_validator("prefix")
    @classmethod
    def _plain(cls, prefix: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}:", prefix):
            raise ValueError("a prefix is 1 to 40 letters, digits, '.', '_' or '-' and a colon, such as 'symposia:'")
        return prefix

    @field_validator("message_key")
    @classmethod
    def _long_enough(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key.get_secret_value()) < SHORTEST_KEY:
            raise ValueError(f"a message key has at least {SHORTEST_KEY} characters; make one with `openssl rand -hex 24`")
        return key

    @property
    def signing_key(self) -> bytes:
        """The key that messages are signed with. Raises StackUnavailable where none is known."""
        if self.message_key is None:
            raise StackUnavailable("No message key is known, so no message can be signed or trusted. Set SYMPOSIA_MESSAGE_KEY to the same secret "
                                   "for every producer and worker (`openssl rand -hex 24`), or name the stack's folder with --dir or SYMPOSIA_DIR.")
        return self.message_key.get_secret_value().encode()

    @property
    def external(self) -> bool:
        """Whether Redis was named by the environment, so that no embedded one is meant."""
        return self.broker_url is not None

    @property
    def broker(self) -> str:
        """The broker's URL, password included. Raises StackUnavailable where none is known."""
        if self.broker_url is None:
            raise StackUnavailable(f"No broker is known: no stack has been started in {self.dir}, and SYMPOSIA_BROKER_URL is not set. "
                                   "Run `symposia up`, or name the folder with --dir or SYMPOSIA_DIR.")
        return self.broker_url.get_secret_value()

    def environ(self) -> dict[str, str]:
        """These settings as environment variables, for a child process."""
        pairs: dict[str, str | None] = {
            "SYMPOSIA_BROKER_URL": self.broker_url.get_secret_value() if self.broker_url else None, "SYMPOSIA_PREFIX": self.prefix,
            "SYMPOSIA_MESSAGE_KEY": self.message_key.get_secret_value() if self.message_key else None,
            "SYMPOSIA_DIR": str(self.dir), "SYMPOSIA_S3__ENDPOINT_URL": self.s3.endpoint_url, "SYMPOSIA_S3__REGION": self.s3.region,
            "SYMPOSIA_S3__ACCESS_KEY": self.s3.access_key, "SYMPOSIA_S3__BUCKET": self.s3.bucket,
            "SYMPOSIA_SPOOL__FOLDER": str(self.spool.folder) if self.spool.folder else None, "SYMPOSIA_SPOOL__MAX_BYTES": str(self.spool.max_bytes),
            "SYMPOSIA_DEVICES__QUARANTINE_S": str(self.devices.quarantine_s),
            "SYMPOSIA_S3__SECRET_KEY": self.s3.secret_key.get_secret_value() if self.s3.secret_key else None,
        }
        return {name: value for name, value in pairs.items() if value is not None}


def load(folder: Path | str | None = None) -> Settings:
    """The settings in force: the environment, completed by ``folder``'s credentials file (default SYMPOSIA_DIR or ~/.symposia)."""
    given: dict[str, Any] = {} if folder is None else {"dir": Path(folder)}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        fault = error.errors()[0]
        name = "SYMPOSIA_" + "__".join(str(part).upper() for part in fault["loc"])
        raise BadInput(f"{name} is {fault.get('input')!r}: {fault['msg']}.", field=name, value=fault.get("input"),
                       remedy="Correct the environment variable.") from None
    settings = settings.model_copy(update={"dir": settings.dir.expanduser().absolute()})
    return settings.model_copy(update=_from_credentials(settings))


def _from_credentials(settings: Settings) -> dict[str, Any]:
    path = settings.dir / CREDENTIALS
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StackUnavailable(f"{path} cannot be read ({error}). Make it readable, or remove it and run `symposia up` again.") from None
    update: dict[str, Any] = {}
    try:
        found = _Stored.model_validate(stored)
    except ValidationError as error:
        fault = error.errors()[0]
        raise StackUnavailable(f"{path} is not a stack's credentials file ({'.'.join(map(str, fault['loc'])) or 'its content'}: {fault['msg']}). "
                               "Remove it and run `symposia up` again.") from None
    if settings.broker_url is None:
        update["broker_url"] = found.broker_url
        if "SYMPOSIA_PREFIX" not in os.environ and found.prefix is not None:
            update["prefix"] = found.prefix
    if settings.message_key is None:
        update["message_key"] = found.message_key
    if settings.api.key is None and found.api_key is not None:
        update["api"] = settings.api.model_copy(update={"key": found.api_key})
    if settings.s3.endpoint_url is None and settings.s3.access_key is None:
        update["s3"] = found.s3
    return update


class _Stored(BaseModel):
    """What ``symposia up`` leaves in a stack's folder, as far as clients need it."""

    broker_url: SecretStr
    message_key: SecretStr | None = None
    prefix: str | None = None
    api_key: SecretStr | None = None
    s3: S3Settings
