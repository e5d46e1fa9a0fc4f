"""A batch's answers in S3: a part for each span as it ends, and all of them put together once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from symposia_shared.batches.files import Files
from symposia_shared.batches.lines import Written
from symposia_shared.batches.values import Batch, BatchFile
from symposia_shared.errors import StoreUnavailable
from symposia_shared.store import Store

Which = Literal["out", "err"]
#: the file's name, behind the batch's id
_NAMES = {"out": "output", "err": "error"}


class Parts:
    """The parts of one batch. Methods raise StoreUnavailable."""

    def __init__(self, store: Store, batch_id: str) -> None:
        self.store, self.batch_id = store, batch_id

    def keep(self, span: int, lines: Sequence[Written], *, again: bool = False) -> None:
        """Write a span's parts. Again is no harm: they come out the same; after a resume (``again``) one may have become empty, and goes."""
        ordered = sorted(lines, key=lambda w: w.number)
        for which in ("out", "err"):
            text = b"".join(w.text for w in ordered if w.failed == (which == "err"))
            if text:
                self.store.put(self._key(span, which), text, "application/jsonl")
            elif again:
                self.store.delete(self._key(span, which))

    def read(self, which: Which) -> Iterator[bytes]:
        """The parts that are there, in order."""
        for key in self._listed(which):
            body = self.store.get(key)
            if body:
                yield body

    def assemble(self, files: Files, batch: Batch, which: Which, *, still: Callable[[], None]) -> BatchFile | None:
        """The file of all parts; None where there are none. Its id is the batch's, so that no second one is made.

        ``still`` is called as parts are read and before the file is there; it raises where another driver has the batch. Raises
        StoreUnavailable where a part that was listed is gone.
        """
        keys = self._listed(which)
        if not keys:
            return None
        stem = hashlib.sha256(f"{self.batch_id} {which} {batch.attempt}".encode()).hexdigest()[:24]
        with files.writing(batch.order.tenant, f"{self.batch_id}_{_NAMES[which]}.jsonl", purpose="batch_output", file_id=f"file-{stem}") as file:
            for key in keys:
                still()
                body = self.store.get(key)
                if body is None:
                    raise StoreUnavailable(f"{self.store.uri(key)} was listed and is gone, so that {file.filename} would be short.")
                file.write(body)
            # parts are deleted after the batch has moved on alone: where it has not by now, the listing was whole, and so is what was read
            still()
            return file.finish(expires_s=batch.order.output_expires_s)

    def delete(self) -> None:
        """All parts."""
        self.store.delete_many(self.store.keys(f"batches/{self.batch_id}/parts/"))

    def _listed(self, which: Which) -> list[str]:
        return [key for key in self.store.keys(f"batches/{self.batch_id}/parts/") if key.endswith(f"-{which}.jsonl")]

    def _key(self, span: int, which: str) -> str:
        return f"batches/{self.batch_id}/parts/{span:06d}-{which}.jsonl"
