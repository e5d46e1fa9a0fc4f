"""A file as an object in parts: what a killed upload has left in S3 is gone on with, each part of it that still is the file's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from symposia_shared.store import Store, Upload

#: bytes of a part; the files of checkpoints are at most 10,000 times as large
PART_BYTES = 16 * 1024 * 1024
_AT_ONCE = 4


def send_parts(store: Store, key: str, path: Path, *, metadata: Mapping[str, str], sent: Callable[[int], None] = lambda _: None) -> None:
    """Write or overwrite an object. ``sent`` is told how many more bytes are there, from whatever thread. Raises the S3 client's errors, and OSError.

    ``metadata`` is that of the upload which is gone on with: a key stands for one content.
    """
    size = path.stat().st_size
    begun = max((u for u in store.uploads(key) if u.key == key), key=lambda u: u.begun_at, default=None)
    there = _there(store, begun) if begun else {}
    where = {"Bucket": store.bucket, "Key": key}
    upload_id = begun.id if begun else store.client.create_multipart_upload(**where, Metadata=dict(metadata))["UploadId"]

    def send(number: int) -> dict[str, Any]:
        body = _part(path, number)
        tag = there.get(number)
        if tag is None or tag != f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"':
            tag = store.client.upload_part(**where, UploadId=upload_id, PartNumber=number, Body=body)["ETag"]
        sent(len(body))
        return {"PartNumber": number, "ETag": tag}

    try:
        _complete(store, where, upload_id, send, parts=-(-size // PART_BYTES))
    except store.client.exceptions.NoSuchUpload:
        # another process went on with the same upload and was first
        head = store.head(key)
        if head is None or head.size != size or head.metadata != dict(metadata):
            raise


def _complete(store: Store, where: Mapping[str, str], upload_id: str, send: Callable[[int], dict[str, Any]], *, parts: int) -> None:
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="part") as threads:
        sending = [threads.submit(send, number) for number in range(1, parts + 1)]
        try:
            sent = [future.result() for future in sending]
        finally:
            for future in sending:
                future.cancel()
    store.client.complete_multipart_upload(**where, UploadId=upload_id, MultipartUpload={"Parts": sent})


def _there(store: Store, upload: Upload) -> dict[int, str]:
    """ETags by part of what has arrived: the MD5 of a part, where S3 does not encrypt."""
    pages = store.client.get_paginator("list_parts").paginate(Bucket=store.bucket, Key=upload.key, UploadId=upload.id)
    return {int(part["PartNumber"]): str(part["ETag"]) for page in pages for part in page.get("Parts", ())}


def _part(path: Path, number: int) -> bytes:
    with path.open("rb") as file:
        file.seek((number - 1) * PART_BYTES)
        return file.read(PART_BYTES)
