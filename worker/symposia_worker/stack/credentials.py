"""``credentials.json``: how to reach this stack, with its secrets; read by ``symposia_shared.settings``."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from symposia_shared.errors import BadInput, StackUnavailable
from symposia_shared.settings import S3Settings, Settings
from symposia_shared.values import Value
from symposia_worker.stack.folder import Folder, write_private
from symposia_worker.stack.ports import LOOPBACK, Ports


class S3Credentials(Value):
    """An S3 endpoint, a bucket and the keys to it."""

    endpoint_url: str | None
    access_key: str | None
    secret_key: str | None
    bucket: str
    region: str


class Login(Value):
    """Flower's basic authentication."""

    user: str
    password: str


class Credentials(Value):
    """What a client of this stack needs to know. ``embedded`` names the services that are the stack's own."""

    broker_url: str
    prefix: str
    s3: S3Credentials
    #: signs the messages
    message_key: str = ""
    api_key: str
    flower: Login
    embedded: tuple[str, ...] = ()


def read(folder: Folder) -> Credentials | None:
    """The stored credentials, None before the first start. Raises StackUnavailable for a file that is not ours to read."""
    try:
        return Credentials.from_json(folder.credentials.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, BadInput, UnicodeDecodeError) as error:
        raise StackUnavailable(f"{folder.credentials} cannot be used ({error}) Remove it and run `symposia up` again: "
                               "new secrets are made; jobs and results are kept.") from None


def write(folder: Folder, settings: Settings, ports: Ports) -> Credentials:
    """Compose and store the credentials of this run; secrets made before are kept.

    ``settings``: from the environment alone, so that what they name is external.
    """
    before = read(folder)
    credentials = Credentials(
        broker_url=settings.broker if settings.external else _broker_url(before, ports),
        prefix=settings.prefix if before is None or "prefix" in settings.model_fields_set else before.prefix,
        s3=_external_s3(settings.s3) if external_store(settings) else _embedded_s3(before, settings, ports),
        message_key=_message_key(before, settings),
        api_key=before.api_key if before else "sym-" + _secret(),
        flower=before.flower if before else Login(user="symposia", password=_secret()),
        embedded=tuple(name for name, external in (("broker", settings.external), ("store", external_store(settings))) if not external),
    )
    if credentials != before:
        write_private(folder.credentials, credentials.model_dump_json(indent=2) + "\n")
    return credentials


def external_store(settings: Settings) -> bool:
    """Whether S3 was named by the environment, so that no embedded one is meant."""
    return settings.s3.endpoint_url is not None or settings.s3.access_key is not None


def password(credentials: Credentials) -> str:
    """The broker's password."""
    return urlsplit(credentials.broker_url).password or ""


def _message_key(before: Credentials | None, settings: Settings) -> str:
    if settings.message_key is not None:
        return settings.message_key.get_secret_value()
    return (before.message_key if before else "") or _secret()


def _broker_url(before: Credentials | None, ports: Ports) -> str:
    secret = password(before) if before and "broker" in before.embedded else _secret()
    return f"redis://:{secret}@{LOOPBACK}:{ports.broker}/0"


def _embedded_s3(before: Credentials | None, settings: Settings, ports: Ports) -> S3Credentials:
    kept = before.s3 if before and "store" in before.embedded else None
    return S3Credentials(
        endpoint_url=f"http://{LOOPBACK}:{ports.s3}", access_key=kept.access_key if kept else "symposia-" + secrets.token_hex(6),
        secret_key=kept.secret_key if kept else _secret(), bucket=settings.s3.bucket, region=settings.s3.region,
    )


def _external_s3(s3: S3Settings) -> S3Credentials:
    return S3Credentials(endpoint_url=s3.endpoint_url, access_key=s3.access_key, bucket=s3.bucket, region=s3.region,
                         secret_key=s3.secret_key.get_secret_value() if s3.secret_key else None)


def _secret() -> str:
    # hexadecimal: it stands in a URL, in a configuration file and in Flower's comma-separated variable without quoting
    return secrets.token_hex(24)
