"""A checkpoint of another bucket: another model store's, verified by its manifest, or a plain folder, verified as far as S3 lets one.

S3 says no sha256 of an object. Its ETag is the MD5 of what was uploaded at once, and of an upload in parts the MD5 of the parts'
MD5s; where neither can be computed (another part size, encryption), the object is read twice and must be the same.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from symposia_shared.catalogue import S3Source
from symposia_shared.errors import BadInput, Damaged, StoreUnavailable, Unavailable, UnknownModel
from symposia_shared.store import Head, Replaced, Store
from symposia_worker.models.download import PARALLEL, download
from symposia_worker.models.manifest import RANGE_BYTES, Manifest, StoredFile, revision_of, within
from symposia_worker.models.sources import keep_only, wanted_files
from symposia_worker.models.store import Progress

#: objects of a source at most: more is no checkpoint
_MOST_OBJECTS = 10_000
#: part sizes that clients are known to take, in MiB
_PART_MIB = (5, 8, 10, 15, 16, 25, 32, 50, 64, 100, 128, 256, 512)


def fetch_s3(store: Store, source: S3Source, folder: Path, *, progress: Progress) -> S3Source:
    """Download what is wanted of ``source`` into ``folder``; the source with the digest of what was read.

    Raises UnknownModel where there is nothing, Damaged, BadInput for a key that leads out of the folder, Unavailable.
    """
    try:
        sizes = {o.key.removeprefix(f"{source.prefix}/"): o.size for o in store.objects(f"{source.prefix}/")}
        if not sizes:
            raise UnknownModel(f"there is nothing at {source.uri}.", field="source", value=source.uri, remedy="Check the bucket and the prefix.")
        if len(sizes) > _MOST_OBJECTS:
            raise BadInput(f"there are {len(sizes):,} objects at {source.uri}, so it is no checkpoint.", field="source", value=source.uri,
                           remedy="Name the folder that has its config.json.")
        manifest = _manifest(store, source) if "manifest.json" in sizes else None
        if manifest is not None:
            _fetch_stored(store, source, manifest, folder, progress=progress)
            return source.model_copy(update={"revision": manifest.revision})
        files = _fetch_plain(store, source, {n: sizes[n] for n in wanted_files([*sizes])}, folder, progress=progress)
        return source.model_copy(update={"revision": revision_of(files)})
    except StoreUnavailable as error:
        raise Unavailable(f"{error} {source.uri} is read with SYMPOSIA_SOURCE__ENDPOINT_URL, __ACCESS_KEY, __SECRET_KEY or __PROFILE where they are set, "
                          "or --endpoint-url and --profile.") from None


def _manifest(store: Store, source: S3Source) -> Manifest | None:
    """The manifest of another model store's checkpoint; None where the file of that name is something else."""
    model = source.prefix.removeprefix("models/")
    body = store.get(f"{source.prefix}/manifest.json")
    return Manifest.unsealed(body, source.uri, model=model) if body is not None and b'"seal"' in body else None


def _fetch_stored(store: Store, source: S3Source, manifest: Manifest, folder: Path, *, progress: Progress) -> None:
    done = 0
    keep_only(folder, [file.path for file in manifest.files])
    for file in manifest.files:
        target = within(folder, file.path)
        target.parent.mkdir(parents=True, exist_ok=True)

        def received(so_far: int, before: int = done, path: str = file.path) -> None:
            progress(f"fetching {path}", before + so_far, manifest.size)

        download(store, f"{source.prefix}/{manifest.revision}/{file.path}", file, to=target, received=received)
        done += file.size


def _fetch_plain(store: Store, source: S3Source, sizes: dict[str, int], folder: Path, *, progress: Progress) -> list[StoredFile]:
    done, total, files = 0, sum(sizes.values()), []
    keep_only(folder, [*sizes])
    for path in sorted(sizes):
        target = within(folder, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        progress(f"fetching {path}", done, total)
        _object(store, f"{source.prefix}/{path}", target)
        files.append(StoredFile.of(folder, path))
        done += sizes[path]
    return files


def _object(store: Store, key: str, target: Path) -> None:
    """The object's bytes in ``target``, the same as the ETag says or as a second reading gives. Raises Damaged."""
    head = store.head(key)
    if head is None:
        raise Damaged(f"{store.uri(key)} was removed while it was read. Try again.")
    if target.is_file() and target.stat().st_size == head.size and _as_etag(store, key, head, target):
        return  # an earlier fetch came so far
    try:
        with target.open("wb") as file:
            for body in _bodies(store, key, head):
                file.write(body)
        if not _as_etag(store, key, head, target):
            _read_again(store, key, head, target)
    except Replaced:
        raise Damaged(f"{store.uri(key)} was replaced, or cut short, while it was read. Try again when nobody writes there.") from None


def _bodies(store: Store, key: str, head: Head) -> Iterator[bytes]:
    coming: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="range") as threads:
        try:
            for start in range(0, head.size, RANGE_BYTES):
                if len(coming) == PARALLEL:
                    yield coming.popleft().result()
                coming.append(threads.submit(_range, store, key, start, length=min(RANGE_BYTES, head.size - start), etag=head.etag))
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


def _range(store: Store, key: str, start: int, *, length: int, etag: str) -> bytes:
    for _ in range(3):
        body = store.get_range(key, start, length=length, etag=etag)
        if len(body) == length:
            return body
    raise Replaced(key)


def _as_etag(store: Store, key: str, head: Head, target: Path) -> bool:
    """Whether the file's MD5, or that of its parts' MD5s, is the object's ETag."""
    digest, _, parts = head.etag.strip('"').partition("-")
    if not parts:
        with target.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == digest
    first = store.first_part(key)
    sizes = dict.fromkeys([first, *(mib * 2**20 for mib in _PART_MIB)])
    return any(_composite(target, size) == digest for size in sizes if size and str(-(-head.size // size)) == parts)


def _composite(target: Path, part: int) -> str:
    digests = b""
    with target.open("rb") as file:
        left = os.fstat(file.fileno()).st_size
        while left > 0:
            digest, of_part = hashlib.md5(usedforsecurity=False), min(part, left)
            left -= of_part
            while of_part and (block := file.read(min(of_part, 2**20))):
                digest.update(block)
                of_part -= len(block)
            digests += digest.digest()
    return hashlib.md5(digests, usedforsecurity=False).hexdigest()


def _read_again(store: Store, key: str, head: Head, target: Path) -> None:
    second = hashlib.sha256()
    for body in _bodies(store, key, head):
        second.update(body)
    with target.open("rb") as file:
        first = hashlib.file_digest(file, "sha256").hexdigest()
    if first != second.hexdigest():
        raise Damaged(f"{store.uri(key)} was read twice and came as sha256 {first} and {second.hexdigest()}. Check the network, and try again.")
