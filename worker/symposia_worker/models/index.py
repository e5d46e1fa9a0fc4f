"""The index of the model store: a row for each checkpoint, so that thousands are listed by a few requests.

Rows lie in shards by their id's digest, each changed by compare-and-set. A manifest is the truth and its row is drawn from
it: whoever writes or removes a manifest leaves a mark first and takes it away when the row is right, so that a row whose
writer was killed is known, and its manifest is read instead.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from symposia_shared.errors import Conflict, Damaged, Unavailable

if TYPE_CHECKING:
    from symposia_shared.catalogue import Entry
    from symposia_shared.store import Store
    from symposia_worker.models.manifest import Manifest

PREFIX = "catalogue/"
SHARDS = 16
_COMPLETE, MARKS = f"{PREFIX}complete", f"{PREFIX}changing/"
#: a shard that many write at once is tried so often
_TRIES = 40

#: what is known of one checkpoint, as JSON: ``stored`` (a manifest without its files) and ``entry`` (where it may be had); either may lack
Row = dict[str, Any]
Rows = dict[str, Row]

T = TypeVar("T")
R = TypeVar("R")


def stored_row(manifest: Manifest) -> dict[str, Any]:
    """What the index keeps of a manifest."""
    return {"revision": manifest.revision, "bytes": manifest.size, **manifest.facts.model_dump(mode="json", exclude_defaults=True)}


class Readable(Protocol):
    """What the index is read from (``symposia_shared.store``, ``symposia_shared.reading``)."""

    def keys(self, prefix: str) -> list[str]: ...

    def tagged(self, key: str) -> tuple[bytes, str] | None: ...


@dataclass(frozen=True, slots=True)
class Listed:
    """What the index has. ``unsure``: ids whose row may be old, for a change of theirs is under way or was cut off."""

    rows: Rows
    unsure: frozenset[str]
    #: whether every stored manifest has been looked at; a store that was filled by an earlier version has not
    complete: bool


class Index:
    """The rows of a bucket's checkpoints. Safe to share between threads and between processes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @contextmanager
    def changing(self, model: str) -> Iterator[None]:
        """The manifest of ``model`` is changed within the block, and its row; where that is cut off the mark stays.

        Nothing of ``model`` is collected while its mark is younger than the collector's grace.
        """
        mark = f"{MARKS}{model.replace('/', '~')}~~{secrets.token_hex(6)}"
        self._store.put(mark, b"{}")
        yield
        self._store.delete(mark)

    def note(self, manifest: Manifest) -> None:
        """The manifest was stored."""
        self._change(shard_of(manifest.id), lambda rows: _merged(rows, manifest.id, stored=stored_row(manifest)))

    def forget(self, model: str, *, entry: bool = False) -> bool:
        """The manifest of ``model`` was removed; ``entry``: where it may be had is forgotten, too. Whether there was such an entry."""
        had = False

        def without(rows: Rows) -> Rows:
            nonlocal had
            row = rows.get(model, {})
            had = "entry" in row
            kept = {k: v for k, v in row.items() if k == "entry" and not entry}
            return {**{k: v for k, v in rows.items() if k != model}, **({model: kept} if kept else {})}

        self._change(shard_of(model), without)
        return had

    def settle(self, model: str, manifest: Manifest | None) -> None:
        """Draw the row of ``model`` again from its manifest, after a change that was cut off."""
        if manifest is not None:
            self.note(manifest)
        else:
            self.forget(model)

    def register(self, entries: Iterable[Entry]) -> None:
        """Know ``entries``: where these checkpoints may be had."""
        by_shard: dict[int, list[Entry]] = {}
        for entry in entries:
            by_shard.setdefault(shard_of(entry.id), []).append(entry)

        def add(rows: Rows, some: list[Entry]) -> Rows:
            for entry in some:
                rows = _merged(rows, entry.id, entry=json.loads(entry.to_json()))
            return rows

        _in_parallel(lambda item: self._change(item[0], lambda rows: add(rows, item[1])), by_shard.items())

    def entry(self, name: str) -> Entry | None:
        """The entry registered under ``name``, an id or else an alias."""
        from symposia_shared.catalogue import Entry

        row = (self._shard(shard_of(name))[0] or {}).get(name)
        if row is None or "entry" not in row:
            row = next((r for r in self.listed().rows.values() if name in r.get("entry", {}).get("aliases", ())), None)
        return Entry.parse(row["entry"]) if row and "entry" in row else None

    def listed(self) -> Listed:
        """All rows by id, as far as they are known."""
        return read(self._store)

    def rebuild(self, manifests: Callable[[], Iterable[Manifest]]) -> None:
        """Draw all rows from ``manifests`` again; entries stay. What others write meanwhile is theirs. Raises Conflict."""
        before = dict(enumerate(_in_parallel(self._shard, range(SHARDS))))
        by_shard: dict[int, list[Manifest]] = {n: [] for n in range(SHARDS)}
        for manifest in manifests():
            by_shard[shard_of(manifest.id)].append(manifest)
        for shard, stored in by_shard.items():
            rows, etag = before[shard]
            drawn: Rows = {k: {"entry": row["entry"]} for k, row in (rows or {}).items() if "entry" in row}
            for manifest in stored:
                drawn = _merged(drawn, manifest.id, stored=stored_row(manifest))
            if drawn != rows and not self._store.put_if(_key(shard), _packed(drawn), etag) and self._shard(shard)[0] != drawn:
                raise Conflict("the index of the model store is being written by others; try again.")
        self._store.put(_COMPLETE, b"{}")

    def _shard(self, shard: int) -> tuple[Rows | None, str | None]:
        return _shard(self._store, shard)

    def _change(self, shard: int, change: Callable[[Rows], Rows]) -> None:
        for _ in range(_TRIES):
            rows, etag = self._shard(shard)
            if rows is None:  # to write would lose its other rows for good
                raise Damaged(f"{self._store.uri(_key(shard))}, a part of the model store's index, cannot be read. Draw it again: symposia models list --check")
            changed = change(rows)
            if changed == rows or self._store.put_if(_key(shard), _packed(changed), etag):
                return
        raise Unavailable(f"{self._store.uri(_key(shard))} is written by too many at once. Try again.")


def read(store: Readable) -> Listed:
    """What the index in ``store`` has."""
    keys = store.keys(PREFIX)
    rows: Rows = {}
    shards = [shard for shard, _ in _in_parallel(lambda n: _shard(store, n), [n for n in range(SHARDS) if _key(n) in keys])]
    for shard in shards:
        rows.update(shard or {})
    marks = frozenset(marked(key) for key in keys if key.startswith(MARKS))
    return Listed(dict(sorted(rows.items())), marks, complete=_COMPLETE in keys and None not in shards)


def marked(key: str) -> str:
    """The id of the checkpoint a mark is for."""
    return key.removeprefix(MARKS).partition("~~")[0].replace("~", "/")


def shard_of(model: str) -> int:
    """The shard of a checkpoint's row."""
    return hashlib.sha256(model.encode()).digest()[0] % SHARDS


def _shard(store: Readable, shard: int) -> tuple[Rows | None, str | None]:
    found = store.tagged(_key(shard))
    return ({}, None) if found is None else (_unpacked(found[0]), found[1])


def _key(shard: int) -> str:
    return f"{PREFIX}rows/{shard:02x}.json.z"


def _merged(rows: Rows, model: str, **more: Mapping[str, Any]) -> Rows:
    return {**rows, model: {**rows.get(model, {}), **more}}


def _packed(rows: Rows) -> bytes:
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 3)


def _unpacked(body: bytes) -> Rows | None:
    """The rows; None where they cannot be read: ``rebuild`` draws them again."""
    try:
        rows = json.loads(zlib.decompress(body))
    except (zlib.error, ValueError):
        return None
    return rows if isinstance(rows, dict) else None


def _in_parallel(call: Callable[[T], R], over: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(SHARDS) as threads:
        return [*threads.map(call, over)]
