"""Files of tenants: their bytes in S3, what is known of them in Redis."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterator
from types import TracebackType
from typing import Literal, Self

from symposia_shared.batches.survey import Surveyor
from symposia_shared.batches.uploads import Upload, pieces
from symposia_shared.batches.values import BatchFile, Purpose, Survey
from symposia_shared.errors import BadInput, StoreUnavailable, UnknownJob
from symposia_shared.ledger import Ledger, away
from symposia_shared.store import Store

#: files of a tenant at most
MOST_FILES = 10_000
#: characters of a file's name
LONGEST_NAME = 255


class Files:
    """The files of a deployment. Methods raise BrokerUnavailable and StoreUnavailable."""

    def __init__(self, ledger: Ledger, store: Store) -> None:
        self.ledger, self.store = ledger, store

    def writing(self, tenant: str, filename: str, *, purpose: Purpose = "batch", file_id: str | None = None, most: int | None = None) -> Writing:
        """A file to be written, of at most so many bytes: see ``Writing``."""
        # ids begin with the time, so that their order is that of the files
        made = file_id or f"file-{int(time.time() * 1000):012x}{secrets.token_hex(6)}"
        return Writing(self, made, tenant, filename[:LONGEST_NAME], purpose, most)

    def get(self, tenant: str, file_id: str) -> BatchFile:
        """A file. Raises UnknownJob."""
        with away():
            stored = self.ledger.redis.hget(self._key(tenant), file_id)
        found = None if stored is None else BatchFile.from_json(stored)
        if found is None or (found.expires_at is not None and found.expires_at <= time.time()):
            raise UnknownJob(f"there is no file {file_id[:80]!r}.", field="file_id", value=file_id, remedy="List them: GET /v1/files.")
        return found

    def all(self, tenant: str) -> list[BatchFile]:
        """All files of a tenant, oldest first."""
        with away():
            stored = self.ledger.redis.hvals(self._key(tenant))
        now = time.time()
        found = [BatchFile.from_json(s) for s in stored]
        return sorted((f for f in found if f.expires_at is None or f.expires_at > now), key=lambda f: (f.created_at, f.id))

    def count(self, tenant: str) -> int:
        """How many there are."""
        with away():
            return int(self.ledger.redis.hlen(self._key(tenant)))

    def content(self, file: BatchFile) -> Iterator[bytes]:
        """The bytes of a file."""
        head = self.store.head(file.content)
        if head is None:
            raise StoreUnavailable(f"{self.store.uri(file.content)} is missing, although the file {file.id} is listed. Was the bucket emptied?")
        return pieces(self.store, file.content, head)

    def survey(self, file_id: str) -> Survey:
        """Where the lines of a batch's input are."""
        body = self.store.get(f"files/{file_id}/survey.json")
        if body is None:
            raise UnknownJob(f"the file {file_id!r} was not read as a batch's input.", field="input_file_id", value=file_id,
                              remedy="Upload it with the purpose 'batch'.")
        return Survey.from_json(body)

    def keep(self, file: BatchFile) -> None:
        """List a file whose bytes are in S3."""
        with away(), self.ledger.redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._key(file.tenant), file.id, file.to_json())
            pipe.zadd(self.ledger.key("filed"), {f"{file.tenant} {file.id}": file.created_at})
            if file.expires_at is not None:
                pipe.zadd(self.ledger.key("expiring"), {f"{file.tenant} {file.id}": file.expires_at})
            pipe.execute()

    def delete(self, tenant: str, file_id: str) -> bool:
        """Delete a file and all that belongs to it. False where there is none."""
        self.store.delete_many([f"files/{file_id}/{name}" for name in ("content", "survey.json", "columns.parquet", "columns.jsonl")])
        with away(), self.ledger.redis.pipeline(transaction=True) as pipe:
            pipe.hdel(self._key(tenant), file_id)
            pipe.zrem(self.ledger.key("expiring"), f"{tenant} {file_id}")
            pipe.zrem(self.ledger.key("filed"), f"{tenant} {file_id}")
            return bool(pipe.execute()[0])

    def delete_expired(self, *, keep: Collection[str] = (), most: int = 100) -> int:
        """Delete files whose time has come, but those to ``keep``; returns how many."""
        return self._delete_from("expiring", time.time(), keep, most)

    def delete_older(self, before_s: float, *, keep: Collection[str] = (), most: int = 1_000) -> int:
        """Delete files made before then, but those to ``keep``; returns how many."""
        return self._delete_from("filed", before_s, keep, most)

    def _delete_from(self, index: str, until_s: float, keep: Collection[str], most: int) -> int:
        with away():
            due = self.ledger.redis.zrangebyscore(self.ledger.key(index), "-inf", until_s, start=0, num=most)
        gone = [entry.partition(" ") for entry in due if entry.partition(" ")[2] not in keep]
        for tenant, _, file_id in gone:
            self.delete(tenant, file_id)
        return len(gone)

    def _key(self, tenant: str) -> str:
        return self.ledger.key(f"files:{tenant}")


def too_large(most: int) -> BadInput:
    """The refusal of a file that is too large."""
    return BadInput(f"the file has more than {most:,} bytes, which is the most that is taken.", field="file",
                    remedy="Split it, or raise SYMPOSIA_BATCHES__MAX_BYTES.")


class Writing:
    """A file that is being written: within ``with``, ``write`` its bytes and then ``finish``; what is left unfinished is dropped.

    An input is read as it goes by. Raises BadInput where there are too many files.
    """

    def __init__(self, files: Files, file_id: str, tenant: str, filename: str, purpose: Purpose, most: int | None) -> None:
        if purpose == "batch" and files.count(tenant) >= MOST_FILES:
            raise BadInput(f"there are {MOST_FILES:,} files, which is the most.", field="file", remedy="Delete some.")
        self.files, self.id, self.tenant, self.filename, self.purpose, self.most = files, file_id, tenant, filename, purpose, most
        self._upload = Upload(files.store, f"files/{file_id}/content")
        self.surveyor = Surveyor() if purpose == "batch" else None
        self._lines = 0

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._upload.size

    def write(self, piece: bytes) -> None:
        """The next bytes. Raises BadInput where they are too many."""
        if self.most is not None and self.size + len(piece) > self.most:
            raise too_large(self.most)
        self._upload.write(piece)
        if self.surveyor is not None:
            self.surveyor.feed(piece)
        else:
            self._lines += piece.count(b"\n")

    def finish(self, *, expires_s: int | None = None, columns: Literal["parquet", "jsonl"] | None = None) -> BatchFile:
        """Have the file exist."""
        self._upload.finish()
        lines = self._lines
        if self.surveyor is not None:
            survey = self.surveyor.finish()
            lines = survey.lines
            self.files.store.put(f"files/{self.id}/survey.json", survey.to_json().encode())
        now = int(time.time())
        file = BatchFile(id=self.id, tenant=self.tenant, filename=self.filename, bytes=self.size, purpose=self.purpose, created_at=now, lines=lines,
                         expires_at=None if expires_s is None else now + expires_s, columns=columns)
        self.files.keep(file)
        return file

    def __enter__(self) -> Self:
        self._upload.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._upload.__exit__(kind, error, trace)
