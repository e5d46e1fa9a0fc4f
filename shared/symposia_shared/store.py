"""S3: the one seam to it. Objects are small JSON written once, or weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from symposia_shared.errors import Conflict, StoreUnavailable, SymposiaError

if TYPE_CHECKING:
    from symposia_shared.settings import S3Settings


@dataclass(frozen=True, slots=True)
class Written:
    """What a write-once put found: ``ours`` is False when an equal or other object was there before."""

    ours: bool
    body: bytes


class Store:
    """A bucket. Safe to share between threads.

    Every method raises StoreUnavailable when S3 is away or refuses; what a caller retries is its own decision.
    """

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self.bucket = settings.bucket
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The boto3 client, made on first use: importing boto3 takes a while."""
        if self._client is None:
            import boto3
            from botocore.config import Config

            s = self.settings
            config = Config(
                connect_timeout=5, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 4}, max_pool_connections=32,
                signature_version="s3v4", s3={"addressing_style": "path"} if s.endpoint_url else {},
            )
            self._client = boto3.session.Session().client(
                "s3", endpoint_url=s.endpoint_url, region_name=s.region, config=config,
                aws_access_key_id=s.access_key, aws_secret_access_key=s.secret_key.get_secret_value() if s.secret_key else None,
            )
        return self._client

    def uri(self, key: str) -> str:
        """``s3://bucket/key``."""
        return f"s3://{self.bucket}/{key}"

    def get(self, key: str) -> bytes | None:
        """The object's bytes, or None where there is none."""
        try:
            body: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            return body
        except Exception as error:
            if _status(error) == 404:
                return None
            raise self._away("read", key, error) from error

    def put(self, key: str, body: bytes, content_type: str = "application/json") -> None:
        """Write or overwrite an object."""
        try:
            self.client.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=content_type)
        except Exception as error:
            raise self._away("write", key, error) from error

    def put_once(self, key: str, body: bytes, content_type: str = "application/json") -> Written:
        """Write an object unless it exists; the first writer wins and its bytes are returned.

        A lost response is retried by boto3 and then answered 412 although our write won, so on 412 the object is
        read back and compared (facts: services §5).
        """
        for _ in range(3):
            try:
                self.client.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=content_type, IfNoneMatch="*",
                                       Metadata={"sha256": hashlib.sha256(body).hexdigest()})
                return Written(ours=True, body=body)
            except Exception as error:
                if _status(error) not in (409, 412):
                    raise self._away("write", key, error) from error
            found = self.get(key)
            if found is not None:
                return Written(ours=found == body, body=found)
        raise Conflict(f"{self.uri(key)} is being written and deleted at once; see who else writes there.")

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error."""
        try:
            self.client.delete_object(Bucket=self.bucket, Key=key)
        except Exception as error:
            raise self._away("delete", key, error) from error

    def keys(self, prefix: str) -> list[str]:
        """All keys under ``prefix``, in order."""
        try:
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return [item["Key"] for page in pages for item in page.get("Contents", ())]
        except Exception as error:
            raise self._away("list", prefix, error) from error

    def _away(self, verb: str, key: str, error: Exception) -> SymposiaError:
        where = self.settings.endpoint_url or f"AWS S3 ({self.settings.region})"
        status = _status(error)
        if status == 403:
            remedy = "Check the access key, its secret and its rights on the bucket."
        elif status == 404:
            remedy = f"Create the bucket {self.bucket!r} or set SYMPOSIA_S3__BUCKET."
        elif status == 507 or "ENOSPC" in str(error) or "no free volumes" in str(error).lower():
            remedy = "The store is full: free space, then try again."
        else:
            remedy = "Start it (`symposia up`), or check SYMPOSIA_S3__ENDPOINT_URL; `symposia doctor` tells more."
        return StoreUnavailable(f"S3 at {where} did not {verb} {self.bucket}/{key}: {_short(error)}. {remedy}")


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return int(status) if status else None
    return None


def _short(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".replace("\n", " ")
    return text if len(text) <= 200 else text[:197] + "..."
