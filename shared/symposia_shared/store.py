"""S3: the one seam to it. Objects are small JSON written once, or weights."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from symposia_shared.errors import Conflict, StoreUnavailable, SymposiaError

if TYPE_CHECKING:
    from symposia_shared.settings import S3Settings


@dataclass(frozen=True, slots=True)
class Written:
    """What a write-once put found: ``ours`` is False when an equal or other object was there before."""

    ours: bool
    body: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """What S3 says of an object without sending it."""

    etag: str
    #: bytes
    size: int
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing tells it."""

    key: str
    #: bytes
    size: int
    #: seconds since the epoch
    written_at: float


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in parts under way, or left behind."""

    key: str
    id: str
    #: seconds since the epoch
    begun_at: float


class Replaced(Exception):
    """The object is no longer the one its ETag named: begin again with a new head."""


class Store:
    """A bucket. Safe to share between threads.

    Every method raises StoreUnavailable when S3 is away or refuses; what a caller retries is its own decision.
    """

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self.bucket = settings.bucket
        self._client: Any = None
        self._making = threading.Lock()

    @property
    def client(self) -> Any:
        """The boto3 client, made once, on first use: importing boto3 takes a while."""
        with self._making:
            if self._client is None:
                self._client = self._made()
            return self._client

    def _made(self) -> Any:
        import boto3
        from botocore.config import Config

        s = self.settings
        config = Config(
            connect_timeout=5, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 4}, max_pool_connections=32,
            signature_version="s3v4", s3={"addressing_style": "path"} if s.endpoint_url else {},
        )
        return boto3.session.Session(profile_name=s.profile).client(
            "s3", endpoint_url=s.endpoint_url, region_name=s.region, config=config,
            aws_access_key_id=s.access_key, aws_secret_access_key=s.secret_key.get_secret_value() if s.secret_key else None,
        )

    def beside(self, bucket: str) -> Store:
        """Another bucket of the same S3."""
        return Store(self.settings.model_copy(update={"bucket": bucket}))

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

    def tagged(self, key: str) -> tuple[bytes, str] | None:
        """The object's bytes and its ETag, or None where there is none."""
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=key)
            return answer["Body"].read(), str(answer["ETag"])
        except Exception as error:
            if _status(error) == 404:
                return None
            raise self._away("read", key, error) from error

    def put_if(self, key: str, body: bytes, etag: str | None, content_type: str = "application/json") -> bool:
        """Write an object if it still is the one ``etag`` names, None: if there is none. False: another was first, or our response was lost.

        After False read again: where the object has what was to be written, it is done (facts: services §5).
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            self.client.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=content_type, **condition)
        except Exception as error:
            if _status(error) in (404, 409, 412):
                return False
            raise self._away("write", key, error) from error
        return True

    def head(self, key: str) -> Head | None:
        """What is known of the object, or None where there is none."""
        try:
            found = self.client.head_object(Bucket=self.bucket, Key=key)
        except Exception as error:
            if _status(error) == 404:
                return None
            raise self._away("read", key, error) from error
        return Head(etag=found["ETag"], size=int(found["ContentLength"]), metadata=dict(found.get("Metadata", {})))

    def get_range(self, key: str, start: int, *, length: int, etag: str) -> bytes:
        """``length`` bytes from ``start`` of the object ``etag`` names; fewer where the connection was cut or the object is shorter.

        Raises Replaced where it has another ETag or is gone. boto3 does not check the sums of a range: the caller must.
        """
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=key, Range=f"bytes={start}-{start + length - 1}", IfMatch=etag)
            body: bytes = answer["Body"].read()
            return body
        except Exception as error:
            if _status(error) in (404, 412, 416):
                raise Replaced(key) from error
            raise self._away("read", key, error) from error

    def put_file(self, key: str, path: Path, *, metadata: Mapping[str, str] | None = None,
                 sent: Callable[[int], None] | None = None) -> None:
        """Write or overwrite an object with a file's bytes, in parts where it is large: then it goes on after the parts that a killed upload left.

        ``sent`` is told how many more bytes are there.
        """
        from symposia_shared import sending

        try:
            if path.stat().st_size > sending.PART_BYTES:
                sending.send_parts(self, key, path, metadata=metadata or {}, sent=sent or (lambda _: None))
                return
            body = path.read_bytes()
            self.client.put_object(Bucket=self.bucket, Key=key, Body=body, Metadata=dict(metadata or {}))
            if sent is not None:
                sent(len(body))
        except SymposiaError:
            raise
        except OSError as error:
            if error.filename is not None:
                raise
            raise self._away("write", key, error) from error
        except Exception as error:
            raise self._away("write", key, error) from error

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error."""
        try:
            self.client.delete_object(Bucket=self.bucket, Key=key)
        except Exception as error:
            raise self._away("delete", key, error) from error

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete objects, a thousand in a request; those that are not there are no error."""
        for at in range(0, len(keys), 1000):
            with self.reaching("delete", keys[at]):
                answer = self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": [{"Key": k} for k in keys[at:at + 1000]], "Quiet": True})
            if answer.get("Errors"):  # told key by key in an answer that is itself a 200
                first = answer["Errors"][0]
                raise StoreUnavailable(f"S3 refused to delete {len(answer['Errors'])} objects, the first {self.uri(first.get('Key', ''))}: "
                                       f"{first.get('Code', '')} {first.get('Message', '')}")

    @contextmanager
    def reaching(self, verb: str, key: str) -> Iterator[None]:
        """What goes wrong with the client within, as StoreUnavailable with its remedy."""
        try:
            yield
        except Exception as error:
            raise self._away(verb, key, error) from error

    def keys(self, prefix: str) -> list[str]:
        """All keys under ``prefix``, in order."""
        return [found.key for found in self.objects(prefix)]

    def objects(self, prefix: str) -> list[Listed]:
        """All objects under ``prefix``, in the order of their keys."""
        try:
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return [Listed(item["Key"], int(item["Size"]), item["LastModified"].timestamp()) for page in pages for item in page.get("Contents", ())]
        except Exception as error:
            raise self._away("list", prefix, error) from error

    def uploads(self, prefix: str) -> list[Upload]:
        """The uploads in parts under ``prefix`` that were begun and neither completed nor ended."""
        try:
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix)
            return [Upload(item["Key"], item["UploadId"], item["Initiated"].timestamp()) for page in pages for item in page.get("Uploads", ())]
        except Exception as error:
            raise self._away("list", prefix, error) from error

    def first_part(self, key: str) -> int | None:
        """Bytes of the first part of an object that was uploaded in parts; None where S3 does not say."""
        try:
            found = self.client.head_object(Bucket=self.bucket, Key=key, PartNumber=1)
        except Exception:
            return None
        return int(found["ContentLength"])

    def end_upload(self, upload: Upload) -> None:
        """Drop the parts of an upload; one that ended meanwhile is no error."""
        try:
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload.key, UploadId=upload.id)
        except Exception as error:
            if _status(error) != 404:
                raise self._away("delete", upload.key, error) from error

    def listed(self, prefix: str) -> Iterator[tuple[str, float]]:
        """All keys under ``prefix``, in order, a page at a time, each with when it was written, in seconds since the epoch."""
        try:
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                yield from ((item["Key"], item["LastModified"].timestamp()) for item in page.get("Contents", ()))
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
